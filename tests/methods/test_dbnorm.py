"""DBNorm: golden values, laws, and what it is good for.

Shape letters: Q queries, G items, M rows of a bank, D dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.data import make_scenes, read_data
from costream.errors import ConfigError, DataError
from costream.evaluate.systems import evaluate_system
from costream.method import read_method
from costream.methods import dbnorm
from costream.methods._dbnorm.claim import skewness
from costream.methods._dbnorm.toy import ToyWorld, hit_at_1, make_toy
from costream.methods.dbnorm import (
    Bank,
    Banks,
    Config,
    DynamicNormaliser,
    Form,
    ItemNormaliser,
    activated,
    bias_of,
    dynamic,
)
from costream.parts import Base, System
from costream.scoring.protocol import ItemBias, RankContext
from costream.system import load_system
from tiny_world import tiny_model

Array = NDArray[np.float64]

BANK = Path(__file__).parents[1] / "golden" / "bank" / "bank.jsonl"
SMALL = {"bank": str(BANK), "num_queries": "8", "num_items": "5"}
CONFIG = Config(bank=str(BANK), num_queries=8, num_items=5)


def random_scores(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def inverted_softmax(scores_QG: Array, bank_MG: Array, b: float) -> Array:
    """As published: a loop over pairs."""
    result = np.zeros_like(scores_QG)
    for query, item in np.ndindex(*scores_QG.shape):
        over = sum(np.exp(b * bank_MG[row, item]) for row in range(len(bank_MG)))
        result[query, item] = np.exp(b * scores_QG[query, item]) / over
    return result


def order(scores: Array) -> list[list[int]]:
    return np.argsort(-scores, axis=1, kind="stable").tolist()


# --- golden ---


def test_a_hub_that_is_best_for_both_queries_is_left_to_one() -> None:
    scores = np.array([[0.9, 0.5], [0.8, 0.7]])
    assert scores.argmax(axis=1).tolist() == [0, 0]
    assert (scores - bias_of([(scores, 10.0)])).argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize(("b1", "b2"), [(20.0, 5.0), (1 / 1.99, 3.0), (20.0, 0.0), (0.0, 7.0)])
def test_logarithms_agree_with_the_published_product(b1: float, b2: float) -> None:
    scores = random_scores(6, 9, seed=1)
    query_bank, gallery_bank = random_scores(11, 9, seed=2), random_scores(7, 9, seed=3)
    product = inverted_softmax(scores, query_bank, b1) * inverted_softmax(scores, gallery_bank, b2)
    ours = scores - bias_of([(query_bank, b1), (gallery_bank, b2)])
    rows = np.log(product) / (b1 + b2) - ours
    # The same but for one constant: means stand for sums.
    np.testing.assert_allclose(rows, rows[0, 0], atol=1e-12)
    assert order(product) == order(ours)


def test_with_the_queries_as_bank_the_columns_of_is_sum_to_one() -> None:
    scores = random_scores(5, 4)
    logs = 20.0 * (scores - bias_of([(scores, 20.0)])) - np.log(len(scores))
    np.testing.assert_allclose(np.exp(logs).sum(axis=0), 1.0)


def test_dynamic_rows_are_raw_or_normalised_by_their_best_item() -> None:
    scores = random_scores(40, 6, seed=4).astype(np.float32)
    banks = [(random_scores(3, 6, seed=seed), b) for seed, b in ((5, 20.0), (6, 5.0))]
    expected = scores.astype(np.float64)
    for row, (bank, b) in itertools.product(range(len(scores)), banks):
        if int(scores[row].argmax()) in set(bank.argmax(axis=1).tolist()):
            expected[row] -= np.log(np.exp(b * bank).mean(axis=0)) / 25.0
    np.testing.assert_allclose(dynamic(scores, banks, 1), expected, atol=1e-6)


# --- laws ---


def test_a_constant_on_an_item_changes_nothing() -> None:
    added = random_scores(9, seed=7)
    scores, bank = random_scores(6, 9), random_scores(11, 9, seed=8)
    plain = scores - bias_of([(bank, 20.0)])
    np.testing.assert_allclose((scores + added) - bias_of([(bank + added, 20.0)]), plain)


def test_without_temperatures_or_with_constant_banks_the_order_is_raw() -> None:
    bank = random_scores(11, 9)
    assert bias_of([(bank, 0.0), (bank, 0.0)]).tolist() == [0.0] * 9
    assert np.ptp(bias_of([(np.full((4, 9), 0.3), 20.0), (np.full((2, 9), -0.1), 5.0)])) < 1e-12


def test_a_small_temperature_takes_off_the_mean() -> None:
    bank = random_scores(11, 9)
    np.testing.assert_allclose(bias_of([(bank, 1e-6)]), bank.mean(axis=0), atol=1e-5)


def test_without_the_second_temperature_dual_is_reduces_to_is() -> None:
    bank, other = random_scores(11, 9), random_scores(4, 9, seed=1)
    one, both = bias_of([(bank, 20.0)]), bias_of([(bank, 20.0), (other, 0.0)])
    np.testing.assert_array_equal(one, both)


def test_a_dynamic_bank_that_activates_nothing_found_is_raw_and_one_of_all_is_is() -> None:
    scores = random_scores(8, 5).astype(np.float32)
    bank = random_scores(3, 5, seed=1)
    assert activated(bank, 5).all()
    everywhere = dynamic(scores, [(bank, 20.0)], 5)
    np.testing.assert_allclose(everywhere, scores - bias_of([(bank, 20.0)]), atol=1e-6)
    away = bank.copy()
    away[:, 4] = 2.0
    others = scores[scores.argmax(axis=1) != 4]
    np.testing.assert_array_equal(dynamic(others, [(away, 20.0)], 1), others)


def context(queries: Array, items: Array) -> RankContext:
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (queries, items)]
    return RankContext(
        queries=unit[0].astype(np.float32), items=unit[1].astype(np.float32), modality="text"
    )


def step_of(form: Form) -> ItemNormaliser | DynamicNormaliser:
    given = dbnorm.parts(replace(CONFIG, form=form), Base(model=tiny_model()))
    (step,) = given.rank
    assert isinstance(step, ItemNormaliser | DynamicNormaliser)
    return step


@pytest.mark.parametrize("form", ["is", "dual_is"])
def test_the_bias_of_an_item_is_its_own(form: Form) -> None:
    step = step_of(form)
    assert isinstance(step, ItemBias)
    seen = context(random_scores(3, 8), random_scores(7, 8, seed=1))
    whole = step.bias(seen.items, "text", "image")
    alone = [step.bias(item[None], "text", "image")[0] for item in seen.items]
    np.testing.assert_allclose(whole, alone, atol=1e-6)
    scores = (seen.queries @ seen.items.T).astype(np.float32)
    np.testing.assert_allclose(step.rescore(scores, seen), scores - whole, atol=1e-7)


def test_the_dynamic_form_is_no_bias() -> None:
    assert not isinstance(step_of("dual_dis"), ItemBias)


@pytest.mark.parametrize("form", ["is", "dual_is", "dis", "dual_dis"])
def test_a_query_alone_scores_as_among_others(form: Form) -> None:
    step, seen = step_of(form), context(random_scores(4, 8), random_scores(7, 8, seed=1))
    scores = (seen.queries @ seen.items.T).astype(np.float32)
    whole = step.rescore(scores, seen)
    for row in range(4):
        some = replace(seen, queries=seen.queries[row : row + 1])
        np.testing.assert_array_equal(
            step.rescore(scores[row : row + 1], some), whole[row : row + 1]
        )


# --- banks ---


def test_banks_are_of_the_modality_of_queries_and_items() -> None:
    model = tiny_model()
    banks = Banks(Bank(model, CONFIG), CONFIG)
    data = read_data(BANK)
    captions = model.encode_texts([t for s in data.samples for t in s.slots["text"]])
    pictures = model.encode_images([s.slots["image"] for s in data.samples])

    def is_among(rows: Sequence[NDArray[np.float32]], known: NDArray[np.float32]) -> bool:
        return all(np.abs(known - row).max(axis=1).min() < 1e-5 for row in rows)

    (queries, b1), (items, b2) = banks.sides("text", "image")
    assert (len(queries), b1, len(items), b2) == (8, 20.0, 5, 5.0)
    assert is_among(queries, captions)
    assert is_among(items, pictures)
    (queries, _), (items, _) = banks.sides("image", "text")
    assert is_among(queries, pictures)
    assert is_among(items, captions)


def test_vectors_of_a_bank_are_kept_and_used_for_the_same_model_only(tmp_path: Path) -> None:
    config = replace(CONFIG, vectors=str(tmp_path / "bank.npz"))
    first = Bank(tiny_model(), config).rows("text", 8)
    written = (tmp_path / "bank.npz").read_bytes()
    np.testing.assert_array_equal(Bank(tiny_model(), config).rows("text", 8), first)
    assert (tmp_path / "bank.npz").read_bytes() == written
    other = Bank(tiny_model(seed=1), config).rows("text", 8)
    assert np.abs(other - first).max() > 0.01
    (tmp_path / "bank.npz").write_bytes(b"no vectors")
    with pytest.raises(DataError, match=r"bank\.npz"):
        Bank(tiny_model(), config).rows("text", 8)


@pytest.mark.parametrize("bank", ["", "absent.jsonl"])
def test_a_bank_must_be_there(bank: str) -> None:
    with pytest.raises(ConfigError, match="bank"):
        dbnorm.parts(Config(bank=bank), Base(model=tiny_model()))


def test_words_may_have_spaces_in_quotes() -> None:
    method = read_method('dbnorm bank="my pictures/train.jsonl" b2=0')
    assert method.config.bank == "my pictures/train.jsonl"
    assert read_method(method.words).config == method.config
    with pytest.raises(ConfigError, match="quote"):
        read_method('dbnorm bank="my')


def test_a_rank_step_leaves_the_space_as_it_is(tiny_model_dir: Path) -> None:
    plain = load_system(tiny_model_dir)
    ranked = load_system(tiny_model_dir, [f"dbnorm bank={BANK}"])
    assert ranked.model.space == plain.model.space
    assert ranked.beside[0].startswith("dbnorm ")


def test_an_evaluation_uses_and_names_it() -> None:
    model, data = tiny_model(), make_scenes(12, seed=3, detail="full", size_px=24)
    plain = evaluate_system(System(model=model), data)
    given = dbnorm.parts(CONFIG, Base(model=model))
    ranked = evaluate_system(System(model=model, parts=given, beside=("dbnorm",)), data)
    assert ranked.model["methods"] == ["dbnorm"]
    none = dbnorm.parts(replace(CONFIG, b1=0.0, b2=0.0), Base(model=model))
    assert evaluate_system(System(model=model, parts=none), data).metrics == plain.metrics
    assert ranked.metrics != plain.metrics


# --- what it is good for ---


@pytest.fixture(scope="module")
def hubs() -> ToyWorld:
    return make_toy(0, queries=300, bank=800, hub=0.6)


def test_a_query_bank_finds_what_hubs_hide(hubs: ToyWorld) -> None:
    raw, bias = hubs.scores(), bias_of([(hubs.query_bank @ hubs.items.T, 20.0)])
    assert hit_at_1(raw - bias) > hit_at_1(raw) + 10
    assert skewness(raw - bias, 10) < skewness(raw, 10) / 2


def test_a_bank_whose_items_are_shuffled_does_not(hubs: ToyWorld) -> None:
    raw, bias = hubs.scores(), bias_of([(hubs.query_bank @ hubs.items.T, 20.0)])
    shuffled = np.random.default_rng(0).permutation(bias)
    assert hit_at_1(raw - shuffled) < hit_at_1(raw) + 1


def test_the_second_bank_saves_one_of_another_domain(hubs: ToyWorld) -> None:
    raw = hubs.scores()
    foreign, items = hubs.foreign_bank @ hubs.items.T, hubs.gallery_bank @ hubs.items.T
    one, both = bias_of([(foreign, 20.0)]), bias_of([(foreign, 20.0), (items, 20.0)])
    assert hit_at_1(raw - both) > hit_at_1(raw - one)
