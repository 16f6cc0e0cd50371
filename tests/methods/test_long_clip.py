"""Long-CLIP: the stretched table, what stays as it was, the principal part, both losses.

Shape letters: N rows or pairs, M columns, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import costream
from costream.data import make_scenes
from costream.encoders.dual import DualConfig, DualEncoder
from costream.encoders.storage import load, save_model
from costream.errors import ConfigError, NumericalError
from costream.method import apply_methods, read_method
from costream.methods._long_clip.runs import two_lengths
from costream.methods._long_clip.world import crowded_scenes
from costream.methods.long_clip import (
    SHORT,
    Config,
    LongClipObjective,
    TwoLengths,
    lengthen,
    principal_part,
    smoothed_rows,
    stretch_positions,
    stretched_length,
)
from costream.records import Batch, Features, Sample
from costream.system import load_system
from costream.train.config import TrainConfig
from costream.train.short import train_short
from costream.train.worlds import retrieval_hits, tiny_clips
from tiny_world import tiny_config, tiny_model

SMALL: dict[str, str] = {"keep": "6", "stretch": "2"}

Array = NDArray[np.float64]

LONG_TEXT = "a red disc at the top left and a blue square in the middle with a white cross"
SHORT_TEXT = "a red disc"


def clip_like(*, seed: int = 0) -> DualEncoder:
    """A small causal tower read at its last token."""
    form = tiny_config(depth=2)
    text = replace(form.text, causal=True, final_norm=True, pooling="eot", eot_id=3)
    return tiny_model(replace(form, text=text), seed=seed).eval()


def bert_like(*, seed: int = 0) -> DualEncoder:
    """A small tower that looks both ways and takes the mean."""
    return tiny_model(tiny_config(depth=2), seed=seed).eval()


# --- the stretched table ---


def test_stretched_table_is_the_formula_of_the_paper() -> None:
    table = np.random.default_rng(0).normal(size=(77, 5))
    expected = np.zeros((248, 5))
    expected[:20] = table[:20]
    for i in range(56):
        for j in range(4):
            expected[20 + 4 * i + j] = ((4 - j) * table[20 + i] + j * table[21 + i]) / 4
    for j in range(4):
        expected[244 + j] = table[76] + j / 4 * (table[76] - table[75])
    found = stretch_positions(torch.tensor(table), keep=20, stretch=4).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_old_rows_are_found_again_to_the_last_bit() -> None:
    table = torch.randn(77, 8)
    longer = stretch_positions(table, keep=20, stretch=4)
    assert len(longer) == stretched_length(77, 20, 4) == 248
    assert torch.equal(longer[:20], table[:20])
    assert torch.equal(longer[20::4], table[20:])


@pytest.mark.parametrize(("keep", "stretch"), [(24, 4), (7, 1), (0, 1)])
def test_keeping_all_rows_or_stretching_once_changes_nothing(keep: int, stretch: int) -> None:
    table = torch.randn(24, 8)
    assert torch.equal(stretch_positions(table, keep, stretch), table)


def test_a_line_of_positions_stays_a_line() -> None:
    line = torch.arange(10.0)[:, None]
    longer = stretch_positions(line, keep=0, stretch=4)[:, 0]
    torch.testing.assert_close(longer, torch.arange(40) / 4)


# --- surgery ---


@pytest.mark.parametrize("make", [clip_like, bert_like])
def test_texts_within_the_kept_rows_have_the_same_vector_as_before(
    make: Callable[[], DualEncoder],
) -> None:
    model = make()
    texts = [SHORT_TEXT, "a cross", LONG_TEXT]
    before = model.encode_texts(texts)
    lengthen(model, Config(keep=6))
    after = model.encode_texts(texts)
    np.testing.assert_allclose(after[:2], before[:2], rtol=0, atol=1e-6)
    assert np.abs(after[2] - before[2]).max() > 1e-4


def test_causal_towers_keep_the_states_of_the_first_tokens_others_do_not() -> None:
    for model, same in ((clip_like(), True), (bert_like(), False)):
        before = model.text_features([LONG_TEXT]).tokens
        lengthen(model, Config(keep=6))
        after = model.text_features([LONG_TEXT]).tokens
        assert before is not None and after is not None
        gap = float((after[0, :6] - before[0, :6]).abs().max())
        assert (gap < 1e-6) is same


def test_longer_texts_are_read_to_their_end_afterwards() -> None:
    model = clip_like()
    texts = [f"{' and '.join(['a red disc'] * 8)} {last}" for last in ("left", "above")]
    cut = model.encode_texts(texts)
    np.testing.assert_allclose(cut[0], cut[1], rtol=0, atol=1e-6)
    lengthen(model, Config(keep=6))
    whole = model.encode_texts(texts)
    assert model.config.text_preprocess.max_tokens == 6 + 4 * 18
    assert np.abs(whole[0] - whole[1]).max() > 1e-4


def test_what_the_model_reads_at_most_grows_as_its_positions_do() -> None:
    form = tiny_config()
    model = tiny_model(replace(form, text=replace(form.text, context=40)))
    lengthen(model, Config(keep=10, stretch=2))
    assert model.config.text.context == 70
    assert model.config.text_preprocess.max_tokens == 10 + 2 * 14


def test_kept_rows_do_not_train_and_all_else_does() -> None:
    model = clip_like()
    old = model.text.position_embedding.detach().clone()
    lengthen(model, Config(keep=6))
    pairs = two_lengths(model, make_scenes(16, detail="full", size_px=24))
    train_short(
        model,
        LongClipObjective(Config()),
        pairs,
        TrainConfig(steps=3, batch_size=8, learning_rate=1e-2, warmup_steps=0, weight_decay=0.5),
    )
    now = model.text.position_embedding.detach()
    assert torch.equal(now[:6], old[:6])
    assert (now[6:20] - stretch_positions(old, 6, 4)[6:20]).abs().max() > 1e-3
    still = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert still == ["text.parametrizations.position_embedding.original0"]


@pytest.mark.parametrize("keep", [0, 6, 24])
def test_saved_model_is_loaded_with_its_longer_table(keep: int, tmp_path: Path) -> None:
    method = read_method(f"long_clip keep={keep}")
    model = apply_methods(clip_like(), [method]).model
    loaded = load(save_model(model, tmp_path / "model"), device="cpu")
    assert loaded.space == model.space
    assert loaded.config == model.config
    assert load(save_model(loaded, tmp_path / "again"), device="cpu").space == loaded.space
    expected = model.text.position_embedding.detach().half().float()
    assert torch.equal(loaded.text.position_embedding.detach(), expected)
    system = load_system(tmp_path / "model", device="cpu")
    assert system.model.config.text.context == stretched_length(24, keep, 4)


def test_a_stretched_model_is_not_stretched_by_mistake_but_can_be_trained_on() -> None:
    model = lengthen(clip_like(), Config(keep=6))
    with pytest.raises(ConfigError, match=r"stretched before, to 78 positions.*stretch=1"):
        lengthen(model, Config(keep=6))
    table = model.text.position_embedding.detach().clone()
    lengthen(model, Config(keep=10, stretch=1))
    assert torch.equal(model.text.position_embedding.detach(), table)
    assert len(model.text.state_dict()["parametrizations.position_embedding.original0"]) == 10


def test_models_that_cannot_be_stretched_are_refused() -> None:
    form = tiny_config()
    last: DualConfig = replace(form, text=replace(form.text, pooling="last"))
    with pytest.raises(ConfigError, match="pools the last position"):
        lengthen(tiny_model(last), Config())
    with pytest.raises(ConfigError, match="keep=25, but tiny has 24 positions"):
        lengthen(tiny_model(form), Config(keep=25))


# --- the principal part ---


def numpy_principal(rows: Array, count: int) -> Array:
    mean = rows.mean(axis=0)
    values, directions = np.linalg.eigh(np.cov((rows - mean).T))
    main = directions[:, np.argsort(-values)[:count]]
    return mean + (rows - mean) @ main @ main.T


def rows_of(count: int, dim: int, seed: int = 0) -> Tensor:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return torch.tensor(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=torch.float32)


def everyone(rows: Tensor) -> Tensor:
    return torch.ones(len(rows), dtype=torch.bool)


def test_principal_part_is_the_projection_on_the_first_eigenvectors() -> None:
    rows = rows_of(30, 12)
    found, kept = principal_part(rows, everyone(rows), 5)
    expected = numpy_principal(rows.double().numpy(), 5)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    spread = np.var(expected, axis=0).sum() / np.var(rows.double().numpy(), axis=0).sum()
    assert float(kept) == pytest.approx(spread, abs=1e-5)


@pytest.mark.parametrize(("count", "same"), [(16, True), (33, True), (34, False), (128, False)])
def test_thirty_two_directions_do_nothing_in_small_batches(count: int, same: bool) -> None:
    rows = rows_of(count, 512)
    found, kept = principal_part(rows, everyone(rows), 32)
    assert torch.allclose(found, rows, atol=1e-5) is same
    assert (float(kept) > 1 - 1e-6) is same


def test_principal_part_has_few_dimensions_and_knows_no_order() -> None:
    rows = rows_of(40, 16)
    found, _ = principal_part(rows, everyone(rows), 3)
    assert int(torch.linalg.matrix_rank(found, atol=1e-4)) <= 4
    order = torch.randperm(40)
    shuffled, _ = principal_part(rows[order], everyone(rows), 3)
    torch.testing.assert_close(shuffled, found[order], atol=1e-5, rtol=0)


def test_absent_rows_change_nothing() -> None:
    rows = rows_of(20, 8)
    present = torch.arange(20) < 12
    alone, _ = principal_part(rows[:12], present[:12], 3)
    with_others, _ = principal_part(rows, present, 3)
    torch.testing.assert_close(with_others[:12], alone)
    assert not with_others[12:].any()


def test_gradient_is_finite_where_the_one_through_the_svd_is_not() -> None:
    equal = torch.cat([torch.eye(4), -torch.eye(4)]).requires_grad_()
    found, _ = principal_part(equal, everyone(equal), 2)
    (gradient,) = torch.autograd.grad(found.square().sum(), equal)
    assert torch.isfinite(gradient).all()
    rows = rows_of(10, 6).requires_grad_()
    through, _ = principal_part(rows, everyone(rows), 2, through_svd=True)
    (whole,) = torch.autograd.grad(through.square().sum(), rows)
    fixed, _ = principal_part(rows, everyone(rows), 2)
    (part,) = torch.autograd.grad(fixed.square().sum(), rows)
    assert torch.equal(through, fixed) and not torch.allclose(whole, part)


def test_a_vector_that_is_not_finite_is_told() -> None:
    rows = rows_of(4, 3)
    rows[1, 0] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        principal_part(rows, everyone(rows), 2)


# --- the losses ---


def numpy_contrast(image: Array, text: Array, scale: float, smoothing: float) -> float:
    """Symmetric cross-entropy with label smoothing, all other columns negative."""
    total = 0.0
    for scores in (scale * image @ text.T, scale * text @ image.T):
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        target = np.full_like(log_p, smoothing / len(log_p))
        target[np.diag_indices(len(log_p))] += 1 - smoothing
        total += float(-(target * log_p).sum(axis=1).mean()) / 2
    return total


def batch_of(count: int, *, captions: int = 1, weight: Tensor | None = None) -> Batch:
    return Batch(
        ids=tuple(map(str, range(count))),
        groups=torch.arange(count),
        slots={},
        weight=torch.ones(count) if weight is None else weight,
        seeds=torch.arange(count),
    )


def features_of(image: Tensor, long: Tensor, short: Tensor) -> dict[str, Features]:
    return {
        "image": Features(pooled=image),
        "text": Features(pooled=long),
        SHORT: Features(pooled=short),
    }


def losses_of(
    objective: LongClipObjective, features: dict[str, Features], batch: Batch
) -> dict[str, float]:
    model = clip_like()
    found = objective.loss(model, batch, features, objective.init_state(model))
    return {"total": float(found.total.detach()), **{k: float(v) for k, v in found.parts.items()}}


def test_losses_are_the_formula() -> None:
    image, long, short = rows_of(12, 6), rows_of(12, 6, 1), rows_of(12, 6, 2)
    config = Config(scale=10.0, component_share=0.5, smoothing=0.1)
    found = losses_of(LongClipObjective(config), features_of(image, long, short), batch_of(12))
    v, t, s = (each.double().numpy() for each in (image, long, short))
    assert found["long"] == pytest.approx(numpy_contrast(v, t, 10.0, 0.1), abs=1e-5)
    main = numpy_principal(v, 3)
    assert found["short"] == pytest.approx(numpy_contrast(main, s, 10.0, 0.1), abs=1e-5)
    assert found["total"] == pytest.approx(found["long"] + found["short"], abs=1e-5)
    assert 0 < found["variance"] < 1


def test_all_components_reduce_the_short_loss_to_plain_contrast() -> None:
    image, text = rows_of(5, 8), rows_of(5, 8, 1)
    objective = LongClipObjective(Config(component_share=1.0))
    found = losses_of(objective, features_of(image, text, text), batch_of(5))
    assert found["short"] == pytest.approx(found["long"], abs=1e-4)


def test_renormalised_parts_have_sharper_logits() -> None:
    image = rows_of(32, 16)
    flat, _ = principal_part(image, everyone(image), 4)
    assert float(flat.norm(dim=1).mean()) < 0.9
    text = torch.nn.functional.normalize(flat, dim=1)
    values = [
        losses_of(
            LongClipObjective(Config(renormalise=on, smoothing=0.0)),
            features_of(image, text, text),
            batch_of(32),
        )["short"]
        for on in (False, True)
    ]
    assert values[1] < values[0]


def test_pairs_of_weight_zero_are_absent_and_the_order_of_pairs_does_not_matter() -> None:
    image, long, short = rows_of(10, 6), rows_of(10, 6, 1), rows_of(10, 6, 2)
    objective = LongClipObjective(Config(scale=10.0))
    weight = torch.tensor([1.0] * 7 + [0.0] * 3)
    whole = losses_of(objective, features_of(image, long, short), batch_of(10, weight=weight))
    part = losses_of(objective, features_of(image[:7], long[:7], short[:7]), batch_of(7))
    assert whole == pytest.approx(part, abs=1e-5)
    order = torch.randperm(7)
    mixed = features_of(image[:7][order], long[:7][order], short[:7][order])
    assert losses_of(objective, mixed, batch_of(7)) == pytest.approx(part, abs=1e-5)
    nothing = batch_of(10, weight=torch.zeros(10))
    assert losses_of(objective, features_of(image, long, short), nothing)["total"] == 0.0


def test_other_texts_of_the_same_picture_are_no_negatives() -> None:
    image, long = rows_of(3, 6), rows_of(3, 6, 1)
    twice = long.repeat_interleave(2, dim=0)
    objective = LongClipObjective(Config(scale=10.0, smoothing=0.0, short_weight=0.0))
    double = losses_of(objective, features_of(image, twice, twice), batch_of(3))["long"]
    absent = (
        torch.eye(3).repeat_interleave(2, 0).repeat_interleave(2, 1).bool() & ~torch.eye(6).bool()
    )
    scores = 10.0 * image.repeat_interleave(2, dim=0) @ twice.T
    own = torch.arange(6)
    rows = smoothed_rows(scores, own, absent, 0.0) + smoothed_rows(scores.T, own, absent, 0.0)
    assert double == pytest.approx(float(rows.mean()) / 2, abs=1e-5)


def test_the_scale_trains_from_a_hundred_without_bound() -> None:
    objective = LongClipObjective(Config())
    assert float(objective.temperature.inverse()) == pytest.approx(100.0, rel=1e-5)
    image = rows_of(6, 6).requires_grad_()
    found = objective.loss(
        clip_like(), batch_of(6), features_of(image, image, image), torch.nn.Module()
    )
    found.total.backward()  # type: ignore[no-untyped-call]
    assert objective.temperature.log.grad is not None and image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_two_losses_of_weight_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match="both losses have weight 0"):
        LongClipObjective(Config(long_weight=0, short_weight=0))


# --- texts of two lengths ---


def sample_of(*texts: str) -> Sample:
    return Sample(id="a", group="a", slots={"image": None, "text": texts})


def test_the_short_text_is_the_first_sentence_or_one_of_the_captions() -> None:
    rng = np.random.default_rng(0)
    told = sample_of("A dog runs. It is brown.", "Just one")
    (split,) = TwoLengths()([told], rng)
    assert split.slots[SHORT] == ("A dog runs", "Just one")
    assert split.slots["text"] == told.slots["text"]
    (joined,) = TwoLengths("joined")([sample_of("A dog.", "It runs .")], rng)
    assert joined.slots["text"] == ("A dog. It runs", "It runs. A dog")
    assert joined.slots[SHORT] == ("A dog.", "It runs .")
    assert SHORT not in told.slots


# --- learning ---


def test_a_user_trains_saves_and_loads_a_longer_model(tmp_path: Path) -> None:
    scenes = make_scenes(12, num_captions=2, detail="full")
    settings = {
        "start": "random",
        "preset": "tiny",
        "steps": "2",
        "batch_size": "4",
        "texts": "joined",
        "threads": "1",
    }
    path = costream.train("long_clip", scenes, tmp_path / "run", settings)
    model = load(path, device="cpu")
    assert model.config.text.context == 20 + 4 * 12
    assert model.config.methods == ("long_clip texts=joined",)


def test_it_learns_what_stands_beyond_the_old_context() -> None:
    crowded = crowded_scenes(16, seed=0)
    hits = {}
    for name, config in {"long": Config(keep=8), "cut": Config(keep=0, stretch=1)}.items():
        model = tiny_clips(crowded, context=16, depth=1)(0)
        lengthen(model, config)
        loop = TrainConfig(steps=120, batch_size=16, learning_rate=2e-3, warmup_steps=10)
        pairs = two_lengths(model, crowded)
        train_short(model, LongClipObjective(config), pairs, loop)
        hits[name] = retrieval_hits(model, pairs.long)["hit@1"]
    # Families of four begin alike: up to the old context there is no more than a word to go by.
    assert hits["long"] > 80
    assert hits["cut"] < 70
