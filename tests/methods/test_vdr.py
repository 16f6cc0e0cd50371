"""VDR: golden values, laws and reductions of words as dimensions, and what training gives them.

Shape letters: N items, T tokens, V words.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from costream.data import make_scenes
from costream.encoders.blocks import Encoded
from costream.encoders.dual import DualEncoder
from costream.errors import ConfigError
from costream.index.sparse import SparseIndex
from costream.methods.vdr import (
    BagEvaluation,
    Config,
    VdrObjective,
    WordHead,
    bags_of,
    contrastive_mask,
    elu1p,
    encode_bags,
    encode_sparse,
    keep_top,
    sparse_space,
    symmetric,
    with_words,
    word_ids,
    words_of,
)
from costream.parts import System
from costream.records import Batch
from costream.system import load_system
from costream.train import train
from tiny_world import SPECIAL, scene_batch, scene_tokenizer, tiny_config, tiny_model, write_scenes

SMALL: dict[str, str] = {"k": "8"}
# Those after it must be made for its number of dimensions.
FIRST = True


# --- golden ---


def test_symmetric_contrast_is_the_golden_value() -> None:
    """Two queries; their own items, one between and one of nothing."""
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    queries, own = torch.eye(2), torch.arange(2)
    found = symmetric(queries @ items.T, own, items[:2] @ queries.T)
    rows, columns = np.log(2 + np.e + np.exp(0.5)) - 1, np.log(1 + np.e) - 1
    assert (rows, columns) == pytest.approx((0.851129, 0.313262), abs=1e-6)
    assert found.tolist() == pytest.approx([(rows + columns) / 2] * 2, abs=1e-6)


def test_the_contrastive_mask_is_the_golden_one() -> None:
    bags = torch.zeros(2, 6)
    bags[0, 0] = bags[1, 3] = 1
    mask = contrastive_mask(bags)
    assert mask.int().tolist() == [[0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 1]]
    assert not (mask & (bags > 0).any(dim=0)).any()
    assert not (mask[0] & mask[1]).any()


def test_the_activation_is_continuous_with_slope_1_and_above_0() -> None:
    x = torch.tensor([-20.0, -1e-3, 0.0, 1e-3, 5.0], dtype=torch.float64, requires_grad=True)
    y = elu1p(x)
    assert y[2].item() == 1.0
    assert bool((y > 0).all())
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope[1:4].tolist() == pytest.approx([1.0, 1.0, 1.0], abs=2e-3)
    rows = torch.randn(3, 7, 5)
    assert torch.equal(elu1p(rows).amax(dim=1), elu1p(rows.amax(dim=1)))


def test_the_loss_is_the_mean_of_both_terms() -> None:
    model = with_words(tiny_model(), Config()).eval()
    batch = scene_batch(model, size=4)
    features = model.features(batch)
    objective = VdrObjective(Config(k=5, temperature=0.1))
    found = objective.loss(model, batch, features, torch.nn.Module())
    images, texts = features["image"].pooled, features["text"].pooled
    bags = torch.from_numpy(encode_bags(model, captions_of(batch, model)))
    own, expected = torch.arange(4), 0.0
    for queries in (keep_top(texts, 5, bags), functional.normalize(bags, dim=1)):
        scores = queries @ images.T / 0.1
        both = functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)
        expected += float(both.detach()) / 4
    assert float(found.total.detach()) == pytest.approx(expected, abs=1e-5)


def captions_of(batch: Batch, model: DualEncoder) -> list[str]:
    """The captions of a batch, from its tokens."""
    ids = batch.slots["text.ids"][:, 0].tolist()
    rows = ([model.tokenizer.id_to_token(n) for n in row] for row in ids)
    return [" ".join(str(word) for word in row if word not in SPECIAL) for row in rows]


# --- laws ---


def test_words_are_pieces_of_latin_letters_digits_and_signs() -> None:
    tokenizer = scene_tokenizer()
    words = word_ids(tokenizer)
    assert not {tokenizer.token_to_id(piece) for piece in SPECIAL} & set(words)
    assert len(words) == tokenizer.get_vocab_size() - len(SPECIAL)


def test_bags_lose_order_repetition_padding_and_special_tokens() -> None:
    model = with_words(tiny_model(), Config())
    once, again = encode_bags(model, ["a red disc", "disc red red a a"])
    assert np.array_equal(once, again)
    assert {words_of(model)[word] for word in np.flatnonzero(once)} == {"a", "red", "disc"}
    columns = torch.tensor([-1, 0, 1])
    mask = torch.tensor([[True, True, False]])
    assert bags_of(torch.tensor([[0, 1, 2]]), mask, columns, 2).tolist() == [[1.0, 0.0]]


def test_keeping_all_is_the_identity_and_named_words_stay() -> None:
    weights = torch.tensor([[0.1, 0.5, 0.3, 0.2]])
    assert keep_top(weights, 4) is weights
    assert torch.equal(keep_top(weights, 2), torch.tensor([[0.0, 0.5, 0.3, 0.0]]))
    also = torch.tensor([[1.0, 0, 0, 0]])
    assert torch.equal(keep_top(weights, 1, also), torch.tensor([[0.1, 0.5, 0, 0]]))


def test_padding_takes_no_part_in_the_maximum() -> None:
    torch.manual_seed(0)
    head = WordHead(8, range(5), 5)
    tokens = torch.randn(2, 3, 8)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    junk = tokens.clone()
    junk[1, 1:] = 100.0
    vectors = [
        head(Encoded(pooled=tokens[:, 0], tokens=each, mask=mask)) for each in (tokens, junk)
    ]
    assert torch.equal(*vectors)
    assert torch.allclose(vectors[0].norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("own_codebook", [True, False])
def test_a_tied_codebook_is_saved_once_and_stays_tied(own_codebook: bool) -> None:
    model = with_words(tiny_model(), Config(own_codebook=own_codebook))
    names = [name for name in model.state_dict() if "head" in name]
    assert ("image_head.codebook" in names) == own_codebook
    assert "text_head.codebook" not in names
    before = model.encode_texts(["a red disc"])
    with torch.no_grad():
        model.text.token_embedding.weight.mul_(2)
    assert not np.allclose(model.encode_texts(["a red disc"]), before)


def test_sharing_needs_towers_of_the_same_width() -> None:
    model = tiny_model()
    model.vision.width = 7
    with pytest.raises(ConfigError, match="wide"):
        with_words(model, Config(own_codebook=False))


def test_the_mask_gives_dead_words_a_gradient_that_they_lack_without() -> None:
    gradients = {}
    for masked in (False, True):
        model = with_words(tiny_model(), Config())
        batch = scene_batch(model, size=4)
        objective = VdrObjective(Config(terms="bag", mask=masked, activation="elu1p"))
        features = model.features(batch)
        features["image"].pooled.retain_grad()
        objective.loss(model, batch, features, torch.nn.Module()).total.backward()
        bags = encode_bags(model, captions_of(batch, model)).any(axis=0)
        gradient = features["image"].pooled.grad
        assert gradient is not None
        gradients[masked] = gradient[:, torch.from_numpy(~bags)].abs().sum().item()
    assert gradients[False] == pytest.approx(0.0, abs=1e-9)
    assert gradients[True] > 1e-4


# --- the whole way ---


def test_an_inverted_index_finds_and_explains_what_dense_products_give(tmp_path: Path) -> None:
    model = with_words(tiny_model(), Config()).eval()
    scenes = make_scenes(20, size_px=24).samples
    seen = encode_sparse(model.encode_images([scene.slots["image"] for scene in scenes]), 6)
    space = sparse_space(model)
    index = SparseIndex(space, words_of(model))
    index.add([scene.id for scene in scenes], seen, space)
    bags = encode_bags(model, ["a red disc", "a blue square above a green cross"])
    found = index.search(bags, space, 20)
    for row, bag in enumerate(bags):
        scores = dict(zip([scene.id for scene in scenes], seen @ bag, strict=True))
        expected = sorted((one for one in scores if scores[one] > 0), key=lambda o: -scores[o])
        assert [scores[one] for one in found.ids[row]] == pytest.approx(
            [scores[one] for one in expected], abs=1e-6
        )
        for one, score in zip(found.ids[row], found.scores[row], strict=True):
            reasons = index.explain(bag, one)
            assert sum(value for _, value in reasons) == pytest.approx(float(score), abs=1e-6)


def test_a_trained_model_loads_and_is_measured_both_ways(tmp_path: Path) -> None:
    from costream.encoders.storage import save_model

    start = save_model(tiny_model(), tmp_path / "start")
    data = write_scenes(tmp_path / "scenes", 12)
    settings = {"start": str(start), "steps": "2", "batch_size": "4", **SMALL}
    system = load_system(train("vdr", data, tmp_path / "run", settings))
    assert system.model.config.dim == len(words_of(system.model))
    report = BagEvaluation(8).run(system, make_scenes(8, size_px=24))
    assert set(report.metrics) == {"text_to_image", "bag_of_words_to_image"}


def test_a_model_without_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match="no head over words"):
        BagEvaluation(8).run(System(model=tiny_model()), make_scenes(2, size_px=24))


def test_bags_learn_to_find_pictures_without_a_text_tower() -> None:
    data = make_scenes(64, detail="full", size_px=24)
    hits = {}
    for terms in ("encoder", "both"):
        config = Config(terms=terms)
        model = with_words(tiny_model(tiny_config(width=32), seed=0), config)
        objective = VdrObjective(config)
        optimiser = torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=3e-3)
        model.train()
        for step in range(80):
            batch = scene_batch(model, size=16, step=step, data=data)
            losses = objective.loss(model, batch, model.features(batch), torch.nn.Module())
            optimiser.zero_grad()
            losses.total.backward()
            optimiser.step()
        report = BagEvaluation(1000).run(System(model=model.eval()), data)
        hits[terms] = report.metrics["bag_of_words_to_image"]["hit@10"]
    assert hits["both"] > hits["encoder"] + 10
    assert hits["both"] > 2 * 100 * 10 / 64
