"""FILIP: golden values, laws and reductions of the late scores, and what training with them does.

Shape letters: N queries, C items, P and Q tokens, D dimensions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from costream.data import make_scenes
from costream.evaluate.systems import evaluate_system
from costream.index import Index, update_index
from costream.methods.filip import (
    Config,
    FilipObjective,
    LateScorer,
    TokenForm,
    keep_best,
    late_scores,
)
from costream.parts import Parts, System
from costream.records import Features
from costream.search.engine import Searcher
from costream.search.query import Query, Words
from costream.system import load_system
from costream.train import train
from tiny_world import scene_batch, tiny_config, tiny_model, write_scenes

SMALL: dict[str, str] = {}

Array = NDArray[np.float64]
E1, E2 = [1.0, 0.0], [0.0, 1.0]
HALF = [0.5**0.5, 0.5**0.5]


def units(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def loop_score(query: Array, item: Array) -> float:
    """The formula as a loop."""
    total = 0.0
    for one in query:
        total += max(float(one @ other) for other in item)
    return total / len(query)


# --- golden ---


@pytest.mark.parametrize(
    ("image", "text", "i2t", "t2i"),
    [
        ([E1, E2], [E1, HALF], 0.8535534, 0.8535534),
        ([E1, E2], [E1, E1], 0.5, 1.0),  # the directions differ
        ([HALF], [E1], 0.5**0.5, 0.5**0.5),  # one token a side: the cosine
    ],
)
def test_scores_are_the_golden_values(
    image: list[list[float]], text: list[list[float]], i2t: float, t2i: float
) -> None:
    images, texts = torch.tensor([image]), torch.tensor([text])
    assert float(late_scores(images, texts)) == pytest.approx(i2t, abs=1e-6)
    assert float(late_scores(texts, images)) == pytest.approx(t2i, abs=1e-6)


def test_scores_are_those_of_a_loop_over_tokens() -> None:
    queries, items = units(4, 5, 8), units(3, 7, 8, seed=1)
    lengths = [7, 3, 1]
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    found = late_scores(queries, items, item_mask=mask)
    back = late_scores(items, queries, query_mask=mask)
    for row, query in enumerate(queries.double().numpy()):
        for column, item in enumerate(items.double().numpy()):
            real = item[: lengths[column]]
            assert float(found[row, column]) == pytest.approx(loop_score(query, real), abs=1e-6)
            assert float(back[column, row]) == pytest.approx(loop_score(real, query), abs=1e-6)


def test_the_loss_is_the_mean_of_both_cross_entropies() -> None:
    model = tiny_model().eval()
    batch = scene_batch(model, size=4)
    features = model.features(batch)
    objective = FilipObjective(Config(temperature=0.1))
    losses = objective.loss(model, batch, features, objective.init_state(model))
    images = model.project_tokens(features["image"])
    texts, mask = model.project_tokens(features["text"]), features["text"].mask
    own = torch.arange(4)
    i2t = functional.cross_entropy(late_scores(images, texts, item_mask=mask) / 0.1, own)
    t2i = functional.cross_entropy(late_scores(texts, images, query_mask=mask) / 0.1, own)
    assert losses.total.item() == pytest.approx((i2t + t2i).item() / 2, abs=1e-5)


# --- laws ---


def test_padding_of_any_content_changes_nothing() -> None:
    queries, items = units(3, 4, 8), units(5, 6, 8, seed=1)
    before = late_scores(queries, items), late_scores(items, queries)
    for junk in (torch.zeros(5, 3, 8), 100 * torch.ones(5, 3, 8)):
        longer = torch.cat([items, junk], dim=1)
        mask = (torch.arange(9) < 6).expand(5, -1)
        assert torch.allclose(late_scores(queries, longer, item_mask=mask), before[0])
        assert torch.allclose(late_scores(longer, queries, query_mask=mask), before[1])


def test_order_and_doubling_of_tokens_change_nothing_and_no_score_is_above_1() -> None:
    queries, items = units(3, 4, 8), units(5, 6, 8, seed=1)
    before = late_scores(queries, items), late_scores(items, queries)
    assert float(torch.cat([before[0].flatten(), before[1].flatten()]).max()) <= 1 + 1e-6
    for changed in (items[:, torch.randperm(6)], torch.cat([items, items], dim=1)):
        assert torch.allclose(late_scores(queries, changed), before[0], atol=1e-6)
        assert torch.allclose(late_scores(changed, queries), before[1], atol=1e-6)


def test_a_side_without_tokens_has_the_least_score_and_no_nan() -> None:
    queries, items = units(2, 4, 8), units(2, 3, 8, seed=1)
    mask = torch.tensor([[False] * 3, [True] * 3])
    items.requires_grad_(True)
    found, back = (
        late_scores(queries, items, item_mask=mask),
        late_scores(items, queries, query_mask=mask),
    )
    assert found[:, 0].tolist() == back[0].tolist() == [-1.0, -1.0]
    (found.sum() + back.sum()).backward()
    assert items.grad is not None
    assert torch.isfinite(items.grad).all()


def test_scores_in_blocks_are_those_at_once_with_their_gradient() -> None:
    queries, items = units(3, 4, 8).requires_grad_(True), units(5, 6, 8, seed=1)
    mask = torch.arange(6) < torch.tensor([6, 2, 1, 5, 6])[:, None]
    whole = late_scores(queries, items, item_mask=mask)
    (expected,) = torch.autograd.grad(whole.square().sum(), queries)
    blocks = late_scores(queries, items, item_mask=mask, at_once=3 * 4 * 6 * 2)
    (found,) = torch.autograd.grad(blocks.square().sum(), queries)
    assert torch.allclose(blocks, whole, atol=1e-6)
    assert torch.allclose(found, expected, atol=1e-6)


def test_vectors_made_without_gradients_are_scored_in_blocks_too() -> None:
    """What inference mode makes can be kept for no backward pass."""
    with torch.inference_mode():
        queries, items = torch.rand(3, 4, 5), torch.rand(7, 6, 5)
    blocks = late_scores(queries, items, at_once=3 * 4 * 6 * 2)
    torch.testing.assert_close(blocks, late_scores(queries, items))


def test_pruning_keeps_the_tokens_that_are_answered_best() -> None:
    tokens = torch.tensor([[E1, HALF, [-1.0, 0.0]], [E2, E1, E1]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    others, all_others = torch.tensor([[E1]]), torch.tensor([[True]])
    kept, kept_mask = keep_best(tokens, mask, others, all_others, 0.5)
    assert kept_mask.tolist() == [[True, True], [True, False]]
    assert torch.equal(kept[0], torch.tensor([E1, HALF]))
    assert torch.equal(kept[1, 0], torch.tensor(E1))
    same, same_mask = keep_best(tokens, mask, others, all_others, 1.0)
    assert same is tokens
    assert same_mask is mask


# --- reduces to ---


def test_with_one_token_a_side_the_loss_is_contrast_of_cosines() -> None:
    model = tiny_model().eval()
    batch = scene_batch(model, size=4)
    width = model.text.width
    image, text = torch.randn(4, 2, width), torch.randn(4, 1, width)
    features = {
        "image": Features(pooled=image[:, 0], tokens=image, modality="image"),  # class token first
        "text": Features(
            pooled=text[:, 0], tokens=text, mask=torch.ones(4, 1).bool(), modality="text"
        ),
    }
    objective = FilipObjective(Config(temperature=0.1))
    found = objective.loss(model, batch, features, objective.init_state(model)).total
    images = functional.normalize(model.image_projection(image[:, 1]), dim=-1)
    texts = functional.normalize(model.text_projection(text[:, 0]), dim=-1)
    scores, own = images @ texts.T / 0.1, torch.arange(4)
    both = functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)
    assert found.item() == pytest.approx(both.item() / 2, abs=1e-5)


# --- scorer, form, and the whole way ---


def test_the_form_scores_as_the_scorer() -> None:
    model = tiny_model().eval()
    texts = ["a red disc", "a blue square above a green cross"]
    pictures = [sample.slots["image"] for sample in make_scenes(3, size_px=24).samples]
    form = TokenForm(model)
    read, seen = model.text_features(texts), model.image_features(pictures)
    t2i = LateScorer().score(read, seen).numpy()
    i2t = LateScorer().score(seen, read).numpy()
    for row, asked in enumerate(form.of_texts(texts)):
        for column, item in enumerate(form.of_images(pictures)):
            assert form.score(asked, item) == pytest.approx(t2i[row, column], abs=1e-5)
            assert form.score(item, asked) == pytest.approx(i2t[column, row], abs=1e-5)
            best = (asked @ item.T).max(axis=1)
            assert form.bound(best) == pytest.approx(form.score(asked, item), abs=1e-6)
    assert form.space == replace(model.space, kind="multi")


def test_a_trained_model_is_indexed_and_asked_with_all_its_vectors(tmp_path: Path) -> None:
    """From training to an answer, which is that of scoring every picture."""
    from costream.encoders.storage import save_model

    start = save_model(tiny_model(), tmp_path / "start")
    data = write_scenes(tmp_path / "scenes", 12)
    settings = {"start": str(start), "steps": "2", "batch_size": "4"}
    system = load_system(train("filip", data, tmp_path / "run", settings))
    form = system.parts.index
    assert form is not None
    with Index.open(tmp_path / "index", create=True) as index:
        update_index(index, form, tmp_path / "scenes")
        answer = Searcher(index, form).answer(Query(terms=(Words("a red disc"),), hybrid=False))
        asked = form.of_texts(["a red disc"])[0]
        scores = {one: form.score(asked, index.all_vectors([one])) for one in index.ids()}
    order = sorted(scores, key=lambda one: -scores[one])
    assert [result.id for result in answer.results] == order[:10]
    assert answer.exact


def test_late_interaction_learns_what_training_shows() -> None:
    """Trained on scenes, words find the right picture far above chance, by late scores."""
    data = make_scenes(64, detail="full", size_px=24)
    torch.manual_seed(0)
    model = tiny_model(tiny_config(width=32, dim=16), seed=0)
    objective = FilipObjective(Config())
    optimiser = torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=3e-3)
    model.train()
    for step in range(120):
        batch = scene_batch(model, size=16, step=step, data=data)
        losses = objective.loss(model, batch, model.features(batch), torch.nn.Module())
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    system = System(model=model.eval(), parts=Parts(scorer=LateScorer()))
    report = evaluate_system(system, data)
    assert report.metrics["text_to_image"]["hit@1"] > 5 * 100 / 64
