"""COTS: golden values, laws and reductions of each loss.

Shape letters: N pairs, M columns of the queue, D dimensions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from costream.config import parse_settings
from costream.data import DataSet, make_scenes
from costream.encoders.dual import DualEncoder
from costream.encoders.visual_tokenizer import KMeansTokenizer
from costream.errors import ConfigError, DataError, NumericalError
from costream.methods.cots import (
    Condition,
    Config,
    CotsObjective,
    State,
    loss_weights,
    parts,
    words_of,
)
from costream.parts import Base, Training
from costream.records import Batch, Features, Sample
from tiny_world import scene_batch, tiny_config, tiny_model

Array = NDArray[np.float64]

# --- the formulas in plain numpy, float64 ---


SMALL = {"visual_tokenizer": "kmeans", "visual_codes": "8", "queue_size": "8", "filter_k": "none"}
"""Settings for the contract of all methods."""


def angles(*degrees: float) -> Array:
    """Unit vectors (N, 2)."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def softmax(scores: Array) -> Array:
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def distributions(queries_ND: Array, keys_ND: Array, queue_MD: Array, tau: float) -> Array:
    """softmax([q_i . key_i, q_i . queue_1, ...] / tau), (N, 1 + M)."""
    positive = (queries_ND * keys_ND).sum(axis=1, keepdims=True)
    return softmax(np.concatenate([positive, queries_ND @ queue_MD.T], axis=1) / tau)


def in_batch_distributions(queries_ND: Array, keys_ND: Array, queue_MD: Array, tau: float) -> Array:
    """The same with all keys of the batch as columns, (N, N + M)."""
    return softmax(queries_ND @ np.concatenate([keys_ND, queue_MD]).T / tau)


def divergence(p: Array, q: Array) -> float:
    return float((p * np.log(p / q)).sum(axis=1).mean())


def random_units(count: int, dim: int, seed: int) -> Array:
    vectors = np.random.default_rng(seed).normal(size=(count, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# --- a model whose vectors are its weights, to look at the losses between pairs alone ---


class Planted(nn.Module):
    """Gives pair i the vectors `image[i]` and `text[i]`; rows are found by the batch's seeds."""

    def __init__(self, image_ND: Array, text_ND: Array) -> None:
        super().__init__()
        self.image = nn.Parameter(torch.tensor(image_ND, dtype=torch.float32))
        self.text = nn.Parameter(torch.tensor(text_ND, dtype=torch.float32))
        self.config = SimpleNamespace(dim=image_ND.shape[1])
        self.tokenizer = None
        self.device = torch.device("cpu")

    def features(self, batch: Batch, frozen: Tensor | None = None) -> dict[str, Features]:
        captions = batch.slots["text.ids"].shape[1]
        rows = batch.seeds
        texts = (rows[:, None] * captions + torch.arange(captions)).flatten()
        nothing = torch.zeros(len(rows), 1)
        return {
            "image": Features(
                pooled=self.image[rows], extras={"frozen": nothing, "stem_map": nothing}
            ),
            "text": Features(pooled=self.text[texts]),
        }


PAIRS_ONLY = Config(
    mvm=0, mlm=0, kl=0, temperature=0.5, queue_size=0, filter_k=None, siblings="negative"
)


def planted_batch(
    rows: Sequence[int],
    *,
    groups: Sequence[int] | None = None,
    weight: Sequence[float] | None = None,
    captions: int = 1,
) -> Batch:
    count = len(rows)
    tokens = torch.zeros(count, captions, 1, dtype=torch.int64)
    return Batch(
        ids=tuple(map(str, rows)),
        groups=torch.tensor(list(rows if groups is None else groups)),
        slots={"text.ids": tokens, "text.mask": tokens + 1},
        weight=torch.tensor([1.0] * count if weight is None else list(weight)),
        seeds=torch.tensor(list(rows)),
    )


class Scene:
    """Online vectors, momentum keys and queues, planted; `losses` runs the objective on them."""

    def __init__(
        self,
        image: Array,
        text: Array,
        key_image: Array,
        key_text: Array,
        queue_image: Array,
        queue_text: Array,
    ) -> None:
        self.image, self.text = image, text
        self.key_image, self.key_text = key_image, key_text
        self.queue_image, self.queue_text = queue_image, queue_text

    @classmethod
    def random(cls, pairs: int, columns: int, dim: int = 8, seed: int = 0) -> Scene:
        sizes = (pairs, pairs, pairs, pairs, columns, columns)
        return cls(*(random_units(size, dim, 10 * seed + n) for n, size in enumerate(sizes)))

    def start(
        self, config: Config, queue_groups: Sequence[int] | None = None
    ) -> tuple[Any, CotsObjective, State]:
        columns = len(self.queue_image)
        model: Any = Planted(self.image, self.text)
        objective = CotsObjective(replace(config, queue_size=max(columns, 1)), model)
        state = objective.init_state(model)
        twin: Any = state.momentum
        twin.image.data = torch.tensor(self.key_image, dtype=torch.float32)
        twin.text.data = torch.tensor(self.key_text, dtype=torch.float32)
        groups = range(1000, 1000 + columns) if queue_groups is None else queue_groups
        state.queue.push(
            torch.tensor(self.queue_image, dtype=torch.float32),
            torch.tensor(self.queue_text, dtype=torch.float32),
            torch.tensor(list(groups), dtype=torch.int64),
        )
        return model, objective, state

    def losses(self, config: Config, batch: Batch | None = None) -> dict[str, float]:
        model, objective, state = self.start(config)
        batch = planted_batch(range(len(self.image))) if batch is None else batch
        found = objective.loss(model, batch, model.features(batch), state)
        return {name: float(value) for name, value in found.parts.items()} | {
            "total": float(found.total.detach())
        }


GOLDEN = Scene(
    image=angles(0, 90),
    text=angles(10, 80),
    key_image=angles(5, 85),
    key_text=angles(15, 75),
    queue_image=angles(30, 120, 200),
    queue_text=angles(40, 130, 210),
)


# --- golden: instance level and task level ---


def test_instance_loss_is_the_golden_value() -> None:
    p_i2t = distributions(GOLDEN.image, GOLDEN.key_text, GOLDEN.queue_text, 0.5)
    p_t2i = distributions(GOLDEN.text, GOLDEN.key_image, GOLDEN.queue_image, 0.5)
    loss_i2t, loss_t2i = -np.log(p_i2t[:, 0]).mean(), -np.log(p_t2i[:, 0]).mean()
    assert loss_i2t == pytest.approx(0.6808100, abs=1e-7)
    assert loss_t2i == pytest.approx(0.7301894, abs=1e-7)

    assert GOLDEN.losses(PAIRS_ONLY)["contrast"] == pytest.approx(loss_i2t + loss_t2i, abs=1e-6)


@pytest.mark.parametrize(
    ("direction", "golden"),
    [("forward", 0.00677084), ("reverse", 0.00688019), ("symmetric", 0.00682551)],
)
def test_alignment_loss_is_the_golden_value(direction: Any, golden: float) -> None:
    p = distributions(GOLDEN.image, GOLDEN.key_text, GOLDEN.queue_text, 0.5)
    q = distributions(GOLDEN.text, GOLDEN.key_image, GOLDEN.queue_image, 0.5)
    forward, reverse = divergence(p, q), divergence(q, p)
    both = {"forward": forward, "reverse": reverse, "symmetric": (forward + reverse) / 2}
    assert both[direction] == pytest.approx(golden, abs=1e-8)

    config = replace(PAIRS_ONLY, kl=1.0, kl_direction=direction)
    assert GOLDEN.losses(config)["kl"] == pytest.approx(golden, abs=2e-7)


def test_batch_keys_as_extra_negatives_are_the_golden_value() -> None:
    p = in_batch_distributions(GOLDEN.image, GOLDEN.key_text, GOLDEN.queue_text, 0.5)
    q = in_batch_distributions(GOLDEN.text, GOLDEN.key_image, GOLDEN.queue_image, 0.5)
    loss_i2t = -np.log(np.diag(p)).mean()
    assert loss_i2t == pytest.approx(0.7976876, abs=1e-7)

    config = replace(PAIRS_ONLY, in_batch="momentum")
    expected = loss_i2t - np.log(np.diag(q)).mean()
    assert GOLDEN.losses(config)["contrast"] == pytest.approx(expected, abs=1e-6)


# --- laws of the losses between pairs ---

WITH_KL = replace(PAIRS_ONLY, kl=1.0)


def test_columns_of_both_queues_are_the_same_past_pairs() -> None:
    """Permuting one queue leaves contrast and changes alignment; permuting both changes neither."""
    before = GOLDEN.losses(WITH_KL)
    order = [1, 0, 2]
    one, both = copy.copy(GOLDEN), copy.copy(GOLDEN)
    one.queue_image = both.queue_image = GOLDEN.queue_image[order]
    both.queue_text = GOLDEN.queue_text[order]

    forward = one.losses(replace(WITH_KL, kl_direction="forward"))
    assert forward["contrast"] == pytest.approx(before["contrast"], abs=1e-6)
    assert forward["kl"] == pytest.approx(0.4802066, abs=1e-6)
    assert both.losses(WITH_KL) == pytest.approx(before, abs=1e-6)


def test_without_the_other_losses_it_is_momentum_contrast() -> None:
    """Weights 0 and no filter: InfoNCE of MoCo in both directions, summed, to 1e-6."""
    scene = Scene.random(pairs=5, columns=7)
    expected = 0.0
    for queries, keys, queue in (
        (scene.image, scene.key_text, scene.queue_text),
        (scene.text, scene.key_image, scene.queue_image),
    ):
        for query, key in zip(queries, keys, strict=True):
            logits = np.array([query @ key, *(query @ past for past in queue)]) / 0.5
            expected += (np.log(np.exp(logits).sum()) - logits[0]) / len(queries)
    found = scene.losses(PAIRS_ONLY)
    assert found["contrast"] == pytest.approx(expected, abs=1e-6)
    assert found["total"] == found["contrast"]


def clip_loss(image: Tensor, text: Tensor, tau: float) -> Tensor:
    scores, own = image @ text.T / tau, torch.arange(len(image))
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2


def test_with_momentum_0_and_no_queue_it_is_twice_clip_in_value() -> None:
    """A sum, not a mean; gradients differ, because keys carry none."""
    scene = Scene.random(pairs=6, columns=0)
    scene.key_image, scene.key_text = scene.image, scene.text
    model, objective, state = scene.start(replace(PAIRS_ONLY, in_batch="momentum"))
    batch = planted_batch(range(6))
    total = objective.loss(model, batch, model.features(batch), state).total
    expected = 2 * clip_loss(model.image, model.text, 0.5)
    assert total.item() == pytest.approx(expected.item(), abs=1e-6)
    (mine,) = torch.autograd.grad(total, model.image)
    (clip,) = torch.autograd.grad(expected, model.image)
    assert not torch.allclose(mine, clip, atol=1e-3)


def test_online_contrast_is_twice_clip_in_value_and_gradient() -> None:
    scene = Scene.random(pairs=6, columns=3)
    model, objective, state = scene.start(replace(PAIRS_ONLY, contrast=0, online=1.0))
    batch = planted_batch(range(6))
    total = objective.loss(model, batch, model.features(batch), state).total
    expected = 2 * clip_loss(model.image, model.text, 0.5)
    assert total.item() == pytest.approx(expected.item(), abs=1e-6)
    for weight in (model.image, model.text):
        (mine,) = torch.autograd.grad(total, weight, retain_graph=True)
        (clip,) = torch.autograd.grad(expected, weight, retain_graph=True)
        assert torch.allclose(mine, clip, atol=1e-6)


@pytest.mark.parametrize("in_batch", ["none", "momentum"])
def test_swapping_the_modalities_changes_nothing(in_batch: Any) -> None:
    scene = Scene.random(pairs=4, columns=5)
    swapped = Scene(
        scene.text,
        scene.image,
        scene.key_text,
        scene.key_image,
        scene.queue_text,
        scene.queue_image,
    )
    config = replace(WITH_KL, in_batch=in_batch, online=1.0)
    assert swapped.losses(config) == pytest.approx(scene.losses(config), abs=1e-6)


def test_alignment_is_zero_between_equal_tasks() -> None:
    scene = Scene.random(pairs=4, columns=5)
    scene.text, scene.key_text, scene.queue_text = scene.image, scene.key_image, scene.queue_image
    assert scene.losses(WITH_KL)["kl"] == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("in_batch", ["none", "momentum"])
def test_order_of_the_batch_does_not_count(in_batch: Any) -> None:
    scene = Scene.random(pairs=5, columns=4)
    config = replace(WITH_KL, in_batch=in_batch, online=0.5)
    shuffled = scene.losses(config, planted_batch([3, 1, 4, 0, 2]))
    assert shuffled == pytest.approx(scene.losses(config), abs=1e-6)


def siblings_reference(how: str, scores: Array, own: int, related: Array) -> float:
    keep = np.ones_like(related)
    if how == "remove":
        keep = ~related
        keep[own] = True
    log_p = np.where(keep, scores - np.log(np.exp(scores[keep]).sum()), 0.0)
    positives = [column for column in np.flatnonzero(related)] if how == "positive" else [own]
    return float(-np.mean(log_p[positives]))


@pytest.mark.parametrize("how", ["negative", "remove", "positive"])
@pytest.mark.parametrize("in_batch", ["none", "momentum"])
def test_other_captions_of_the_same_picture(how: Any, in_batch: Any) -> None:
    """Pairs 0 and 2 are of one picture, which is in the queue too (column 1)."""
    scene = Scene.random(pairs=4, columns=3)
    groups, past = np.array([7, 1, 7, 3]), np.array([50, 7, 51])
    model, objective, state = scene.start(
        replace(PAIRS_ONLY, siblings=how, in_batch=in_batch), queue_groups=past.tolist()
    )
    batch = planted_batch(range(4), groups=groups.tolist())
    found = objective.loss(model, batch, model.features(batch), state)

    rows = []
    for queries, keys, queue in (
        (scene.image, scene.key_text, scene.queue_text),
        (scene.text, scene.key_image, scene.queue_image),
    ):
        for i in range(4):
            columns = list(range(4)) if in_batch == "momentum" else [i]
            scores = queries[i] @ np.concatenate([keys[columns], queue]).T / 0.5
            related = np.concatenate([groups[columns], past]) == groups[i]
            rows.append(siblings_reference(how, scores, columns.index(i), related))
    assert float(found.parts["contrast"]) == pytest.approx(sum(rows) / 4, abs=1e-6)


def test_several_captions_a_picture_make_as_many_pairs() -> None:
    """K captions of B pictures are B * K pairs, the picture repeated."""
    image, text = random_units(2, 8, 0), random_units(6, 8, 1)
    nothing = np.zeros((0, 8))
    config = replace(PAIRS_ONLY, in_batch="momentum", siblings="remove", kl=1.0, online=1.0)
    wide = Scene(image, text, image, text, nothing, nothing)
    model, objective, state = wide.start(config)
    batch = planted_batch(range(2), captions=3)
    found = objective.loss(model, batch, model.features(batch), state).parts

    repeated = image.repeat(3, axis=0)
    flat = Scene(repeated, text, repeated, text, nothing, nothing)
    expected = flat.losses(config, planted_batch(range(6), groups=[0, 0, 0, 1, 1, 1]))
    for name in ("contrast", "kl", "online"):
        assert float(found[name]) == pytest.approx(expected[name], abs=1e-6)


def test_soft_targets_mix_in_the_momentum_towers_own_distribution() -> None:
    scene, share = Scene.random(pairs=4, columns=3), 0.4
    config = replace(PAIRS_ONLY, in_batch="momentum", soft_targets=share)
    expected = 0.0
    for queries, own, keys, queue in (
        (scene.image, scene.key_image, scene.key_text, scene.queue_text),
        (scene.text, scene.key_text, scene.key_image, scene.queue_image),
    ):
        p = in_batch_distributions(queries, keys, queue, 0.5)
        soft = in_batch_distributions(own, keys, queue, 0.5)
        hard = np.eye(4, 7)
        target = (1 - share) * hard + share * soft
        expected += -(target * np.log(p)).sum(axis=1).mean()
    assert scene.losses(config)["contrast"] == pytest.approx(expected, abs=1e-6)


def test_soft_targets_leave_siblings_out_where_they_are_removed() -> None:
    """Two pairs of one picture: with siblings removed each row has its own column only."""
    scene = Scene.random(pairs=2, columns=0)
    config = replace(PAIRS_ONLY, in_batch="momentum", soft_targets=0.5, siblings="remove")
    batch = planted_batch(range(2), groups=[5, 5])
    assert scene.losses(config, batch)["contrast"] == pytest.approx(0.0, abs=1e-6)


# --- queue ---


def test_pairs_enter_the_queue_after_the_loss() -> None:
    """A pair is never its own negative: on an empty queue there is nothing to tell apart."""
    scene = Scene.random(pairs=3, columns=0)
    model, objective, state = scene.start(WITH_KL)
    state.queue = type(state.queue)(8, 8)
    batch = planted_batch(range(3))
    first = objective.loss(model, batch, model.features(batch), state).parts
    assert float(first["contrast"]) == 0.0
    assert float(first["kl"]) == 0.0
    image, text, groups = state.queue.contents()
    assert torch.equal(image, state.momentum.image)
    assert torch.equal(text, state.momentum.text)
    assert groups.tolist() == [0, 1, 2]
    second = objective.loss(model, batch, model.features(batch), state).parts
    expected = -np.log(distributions(scene.image, scene.key_text, scene.key_text, 0.5)[:, 0])
    expected -= np.log(distributions(scene.text, scene.key_image, scene.key_image, 0.5)[:, 0])
    assert float(second["contrast"]) == pytest.approx(expected.mean(), abs=1e-6)


# --- filter ---


def full_filter(state: State, similarity: float) -> None:
    state.filter.push(torch.full((8,), similarity))


def test_filtered_pairs_count_nothing_and_are_not_enqueued() -> None:
    """The least similar pair falls below mean - k deviations; statistics see it all the same."""
    scene = Scene.random(pairs=4, columns=3)
    scene.key_text = np.concatenate([scene.key_image[:3], -scene.key_image[3:]])
    config = replace(WITH_KL, filter_k=1.0, filter_window=8, filter_warm_up=4)
    model, objective, state = scene.start(config)
    full_filter(state, 0.9)
    batch = planted_batch(range(4))
    found = objective.loss(model, batch, model.features(batch), state)
    alone = planted_batch(range(3))
    model, objective, fewer = scene.start(config)
    full_filter(fewer, 0.9)
    expected = objective.loss(model, alone, model.features(alone), fewer)
    assert float(found.total) == pytest.approx(float(expected.total), abs=1e-6)
    assert float(found.parts["kept"]) == 0.75
    assert 3 not in state.queue.groups.tolist()
    assert state.filter.recent.min() == pytest.approx(-1.0, abs=1e-6)


def test_filtered_pairs_are_enqueued_when_asked_for() -> None:
    scene = Scene.random(pairs=2, columns=3)
    config = replace(PAIRS_ONLY, filter_k=0.0, filter_window=8, filter_warm_up=4)
    for wanted in (False, True):
        model, objective, state = scene.start(replace(config, enqueue_filtered=wanted))
        full_filter(state, 0.99)
        batch = planted_batch(range(2))
        parts_ = objective.loss(model, batch, model.features(batch), state).parts
        assert float(parts_["kept"]) == 0.0
        assert ({0, 1} <= set(state.queue.groups.tolist())) == wanted


def test_nothing_kept_is_loss_0_with_zero_gradients() -> None:
    scene = Scene.random(pairs=4, columns=3)
    config = replace(
        WITH_KL, filter_k=0.0, filter_window=8, filter_warm_up=4, online=1.0, learn_temperature=True
    )
    model, objective, state = scene.start(config)
    full_filter(state, 0.99)
    batch = planted_batch(range(4))
    total = objective.loss(model, batch, model.features(batch), state).total
    total.backward()
    assert float(total) == 0.0
    for weight in (model.image, model.text, objective.temperature.log):
        assert weight.grad is not None
        assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_a_pair_of_weight_0_is_absent() -> None:
    """As row, as column of the batch, in the queue and in the statistics of the filter."""
    scene = Scene.random(pairs=4, columns=3)
    config = replace(
        WITH_KL, in_batch="momentum", online=1.0, filter_k=2.0, filter_window=8, filter_warm_up=4
    )
    model, objective, state = scene.start(config)
    batch = planted_batch(range(4), weight=[1, 0, 1, 1])
    found = objective.loss(model, batch, model.features(batch), state).parts
    model, objective, fewer = scene.start(config)
    batch = planted_batch([0, 2, 3])
    expected = objective.loss(model, batch, model.features(batch), fewer).parts
    for name in ("contrast", "kl", "online"):
        assert float(found[name]) == pytest.approx(float(expected[name]), abs=1e-6)
    assert int(state.filter.seen) == int(fewer.filter.seen) == 3
    assert torch.equal(state.queue.groups, fewer.queue.groups)


def test_weights_of_pairs_weigh_the_mean() -> None:
    scene, weight = Scene.random(pairs=3, columns=4), np.array([1.0, 0.5, 0.25])
    rows = -np.log(distributions(scene.image, scene.key_text, scene.queue_text, 0.5)[:, 0])
    rows -= np.log(distributions(scene.text, scene.key_image, scene.queue_image, 0.5)[:, 0])
    found = scene.losses(PAIRS_ONLY, planted_batch(range(3), weight=weight.tolist()))
    expected = float((rows * weight).sum() / weight.sum())
    assert found["contrast"] == pytest.approx(expected, abs=1e-6)


def test_a_broken_momentum_vector_is_never_filtered_away() -> None:
    scene = Scene.random(pairs=3, columns=3)
    scene.key_text = scene.key_text * np.array([[1.0], [np.nan], [1.0]])
    with pytest.raises(NumericalError, match="not finite"):
        scene.losses(replace(PAIRS_ONLY, filter_k=2.0, filter_warm_up=0))


# --- temperature ---


@pytest.mark.parametrize("in_batch", ["none", "momentum"])
def test_alignment_does_not_train_the_temperature(in_batch: Any) -> None:
    """It could make any two distributions alike by flattening both."""
    scene = Scene.random(pairs=3, columns=4)
    config = replace(WITH_KL, contrast=0, in_batch=in_batch, learn_temperature=True)
    model, objective, state = scene.start(config)
    batch = planted_batch(range(3))
    total = objective.loss(model, batch, model.features(batch), state).total
    total.backward()
    assert objective.temperature.log.grad is None or objective.temperature.log.grad == 0.0
    assert model.image.grad.abs().sum() > 0


@pytest.mark.parametrize("in_batch", ["none", "momentum"])
def test_contrast_trains_the_temperature_beside_alignment(in_batch: Any) -> None:
    scene = Scene.random(pairs=3, columns=4)
    gradients = []
    for kl in (0.0, 1.0):
        config = replace(PAIRS_ONLY, kl=kl, in_batch=in_batch, learn_temperature=True)
        model, objective, state = scene.start(config)
        batch = planted_batch(range(3))
        objective.loss(model, batch, model.features(batch), state).total.backward()
        gradients.append(float(objective.temperature.log.grad))
    assert math.isfinite(gradients[0])
    assert gradients[0] != 0.0
    assert gradients[1] == pytest.approx(gradients[0], abs=1e-7)


def test_a_learned_temperature_stays_in_its_range_and_a_fixed_one_as_it_is() -> None:
    scene = Scene.random(pairs=2, columns=2)
    model, objective, state = scene.start(replace(PAIRS_ONLY, learn_temperature=True))
    for wild, kept in ((-100.0, 0.01), (100.0, 0.5)):
        objective.temperature.log.data.fill_(wild)
        objective.after_step(model, state)
        assert math.exp(float(objective.temperature.log)) == pytest.approx(kept)
    model, objective, state = scene.start(replace(PAIRS_ONLY, temperature=1.0))
    assert not objective.temperature.log.requires_grad
    objective.after_step(model, state)
    assert math.exp(float(objective.temperature.log)) == 1.0


# --- momentum towers ---


def test_momentum_towers_follow_what_the_next_keys_are_made_of() -> None:
    """Keys of a step come from m * old + (1 - m) * the online weights of that very step."""
    model = tiny_model()
    objective = CotsObjective(replace(PAIRS_ONLY, momentum=0.9), model)
    state = objective.init_state(model)
    old = {name: w.detach().clone().double() for name, w in state.momentum.named_parameters()}
    assert all(torch.equal(old[name].float(), w) for name, w in model.named_parameters())
    assert not any(w.requires_grad for w in state.momentum.parameters())
    model.vision.class_token.requires_grad = False  # type: ignore[union-attr] # is there
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * weight.requires_grad)
    objective.after_step(model, state)
    for (name, slow), fast in zip(
        state.momentum.named_parameters(), model.parameters(), strict=True
    ):
        expected = 0.9 * old[name] + 0.1 * fast.detach().double()
        assert torch.allclose(slow.double(), expected, atol=1e-6), name


def test_momentum_towers_get_no_gradient_and_no_dropout() -> None:
    model = tiny_model(tiny_config(dropout=0.5)).train()
    objective = CotsObjective(PAIRS_ONLY, model)
    state = objective.init_state(model)
    batch = scene_batch(model)
    vectors = [state.momentum.features(batch)["image"].pooled for _ in range(2)]
    assert torch.equal(vectors[0], vectors[1])
    objective.loss(model, batch, model.features(batch), state).total.backward()
    assert all(weight.grad is None for weight in state.momentum.parameters())


# --- token level ---


class GivenCodes:
    """A visual tokenizer that says what it is told."""

    def __init__(self, codes_BHW: Tensor, vocab_size: int = 8) -> None:
        self.codes, self.vocab_size, self.pixels_per_token = codes_BHW, vocab_size, 6

    def encode(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == (24, 24)
        assert images.dtype == torch.uint8
        return self.codes


MASKED_ONLY = Config(contrast=0, kl=0, queue_size=4, filter_k=None)


def masked_parts(
    model: DualEncoder, batch: Batch, config: Config, codes: Tensor | None = None, seed: int = 0
) -> tuple[CotsObjective, Any]:
    torch.manual_seed(seed)
    count = len(batch.ids)
    rng = torch.Generator().manual_seed(5)
    codes = torch.randint(8, (count, 4, 4), generator=rng) if codes is None else codes
    tokenizer = GivenCodes(codes)
    objective = CotsObjective(config, model, tokenizer=tokenizer, words=words_of(model))
    state = objective.init_state(model)
    return objective, objective.loss(model, batch, model.features(batch), state)


def layer_norm(x: Array, module: Any) -> Array:
    weight, bias = (p.detach().double().numpy() for p in (module.weight, module.bias))
    centred = x - x.mean()
    return centred / np.sqrt((centred**2).mean() + module.eps) * weight + bias


def linear(x: Array, module: Any) -> Array:
    return module.weight.detach().double().numpy() @ x + module.bias.detach().double().numpy()


def negative_log_softmax(logits: Array, target: int) -> float:
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target])


@torch.no_grad()
def test_masked_patches_are_predicted_from_their_output_and_the_text() -> None:
    """-log softmax(W (LN(p) + A f))[t], mean over all masked patches of the batch."""
    from costream.objectives.masking import block_mask

    model = tiny_model().eval()
    batch = scene_batch(model)
    codes = torch.randint(8, (4, 4, 4), generator=torch.Generator().manual_seed(1))
    objective, found = masked_parts(model, batch, replace(MASKED_ONLY, mlm=0), codes)
    head: Any = objective.patch_head
    online = model.features(batch)
    values = []
    for i in range(4):
        generator = torch.Generator().manual_seed(int(batch.seeds[i]))
        (mask,) = block_mask(1, 4, 4, share=0.4, generator=generator)
        assert int(mask.sum()) == 6
        pixels = model.normalise_pixels(batch.slots["image"][i : i + 1])
        patches = model.vision.patches(pixels)
        patches[0, mask] = head.mask_embedding
        tokens = model.vision.encode(patches).tokens[0, 1:].double().numpy()
        told = linear(online["text"].pooled[i].double().numpy(), head.condition.linear)
        for j in np.flatnonzero(mask.numpy()):
            mixed = layer_norm(tokens[j], head.condition.norm) + told
            logits = linear(mixed, head.classify)
            values.append(negative_log_softmax(logits, int(codes[i].flatten()[j])))
    assert float(found.parts["mvm"]) == pytest.approx(np.mean(values), abs=1e-5)


@torch.no_grad()
def test_masked_words_are_predicted_from_their_output_and_the_picture() -> None:
    """-log softmax(MLM(LN(u) + A' f))[w], mean over all masked words of the batch."""
    from costream.objectives.masking import mask_words

    model = tiny_model().eval()
    batch = scene_batch(model, captions=2)
    objective, found = masked_parts(model, batch, replace(MASKED_ONLY, mvm=0, mask_words=0.5))
    head: Any = objective.word_head
    words = words_of(model)
    pictures = model.features(batch)["image"].pooled.double().numpy()
    table = model.text.token_embedding.weight.double().numpy()
    values = []
    for i in range(4):
        ids, real = batch.slots["text.ids"][i], batch.slots["text.mask"][i].bool()
        masked, target = mask_words(
            ids,
            real,
            share=0.5,
            mask_id=words.mask,
            vocab_size=words.vocabulary,
            special_ids=words.special,
            generator=torch.Generator().manual_seed(int(batch.seeds[i]) + 1),
        )
        tokens = model.text(masked, real).tokens.double().numpy()
        told = linear(pictures[i], head.condition.linear)
        for k, j in zip(*np.nonzero(target.numpy()), strict=True):
            mixed = layer_norm(tokens[k, j], head.condition.norm) + told
            inner = linear(mixed, head.dense)
            erf = np.array([math.erf(x / math.sqrt(2)) for x in inner])
            inner = layer_norm(inner * (1 + erf) / 2, head.norm)
            logits = table @ inner + head.bias.double().numpy()
            values.append(negative_log_softmax(logits, int(ids[k, j])))
    assert len(values) > 8
    assert float(found.parts["mlm"]) == pytest.approx(np.mean(values), abs=1e-5)


@torch.no_grad()
def test_only_masked_patches_are_targets() -> None:
    from costream.objectives.masking import block_mask

    model = tiny_model().eval()
    batch = scene_batch(model)
    masks = torch.cat(
        [
            block_mask(1, 4, 4, share=0.4, generator=torch.Generator().manual_seed(seed))
            for seed in batch.seeds.tolist()
        ]
    ).view(4, 4, 4)
    codes = torch.zeros(4, 4, 4, dtype=torch.int64)
    config = replace(MASKED_ONLY, mlm=0)
    _, before = masked_parts(model, batch, config, codes)
    _, unmasked = masked_parts(model, batch, config, torch.where(masks, codes, codes + 3))
    _, masked = masked_parts(model, batch, config, torch.where(masks, codes + 3, codes))
    assert torch.equal(before.parts["mvm"], unmasked.parts["mvm"])
    assert not torch.equal(before.parts["mvm"], masked.parts["mvm"])


def test_nothing_masked_is_loss_0() -> None:
    model = tiny_model()
    config = replace(MASKED_ONLY, mask_patches=0.0, mask_words=0.0)
    _, found = masked_parts(model, scene_batch(model), config)
    found.total.backward()
    assert float(found.parts["mvm"]) == float(found.parts["mlm"]) == 0.0
    assert all(w.grad is None or torch.isfinite(w.grad).all() for w in model.parameters())


def test_pairs_of_weight_0_predict_nothing() -> None:
    model = tiny_model()
    batch = replace(scene_batch(model), weight=torch.zeros(4))
    _, found = masked_parts(model, batch, replace(MASKED_ONLY, contrast=1, kl=1, online=1))
    found.total.backward()
    assert float(found.total) == 0.0
    assert all(w.grad is None or not w.grad.any() for w in model.parameters())


@torch.no_grad()
def test_masks_and_codes_of_a_pair_do_not_depend_on_its_batch() -> None:
    """All four at once weigh as the mean of one by one: as many patches are masked in each."""
    model = tiny_model().eval()
    batch = scene_batch(model)
    codes = torch.randint(8, (4, 4, 4), generator=torch.Generator().manual_seed(1))
    config = replace(MASKED_ONLY, mlm=0)
    _, together = masked_parts(model, batch, config, codes)
    alone = []
    for i in range(4):
        one = Batch(
            ids=batch.ids[i : i + 1],
            groups=batch.groups[i : i + 1],
            slots={name: value[i : i + 1] for name, value in batch.slots.items()},
            weight=batch.weight[i : i + 1],
            seeds=batch.seeds[i : i + 1],
        )
        alone.append(float(masked_parts(model, one, config, codes[i : i + 1])[1].parts["mvm"]))
    assert float(together.parts["mvm"]) == pytest.approx(np.mean(alone), abs=1e-5)


# --- how the partner enters ---


@pytest.mark.parametrize("how", ["add", "add_projected", "concat_linear", "none"])
def test_condition_is_its_formula(how: Any) -> None:
    torch.manual_seed(0)
    width = 8
    condition: Any = Condition(width, width, how)
    tokens, partner = torch.randn(3, width), torch.randn(3, width)
    found = condition(tokens, partner).detach().double().numpy()
    for row, token, told in zip(found, tokens.numpy(), partner.numpy(), strict=True):
        normal = layer_norm(token.astype(np.float64), condition.norm)
        if how == "add":
            expected = token + told
        elif how == "none":
            expected = normal
        elif how == "add_projected":
            expected = normal + linear(told.astype(np.float64), condition.linear)
        else:
            expected = linear(np.concatenate([normal, told]), condition.linear)
        assert row == pytest.approx(expected, abs=1e-5)


def test_adding_vectors_of_another_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokens of 16 and vectors of 8"):
        Condition(16, 8, "add")


@pytest.mark.parametrize("how", ["add_projected", "concat_linear", "none"])
def test_without_condition_the_partner_says_nothing(how: Any) -> None:
    """With `none` another partner changes neither value nor gradient; else it changes the value."""
    model = tiny_model().eval()
    batch = scene_batch(model)
    other = replace(
        batch, slots={**batch.slots, "text.ids": batch.slots["text.ids"].roll(1, dims=0)}
    )
    config = replace(MASKED_ONLY, mlm=0, condition=how)
    _, right = masked_parts(model, batch, config)
    _, wrong = masked_parts(model, other, config)
    assert torch.equal(right.parts["mvm"], wrong.parts["mvm"]) == (how == "none")
    right.total.backward()
    trained = any(w.grad is not None and w.grad.any() for w in model.text.parameters())
    assert trained == (how != "none")


@pytest.mark.parametrize("detached", [False, True])
def test_detached_condition_leaves_the_partner_alone(detached: bool) -> None:
    for config, partner in (
        (replace(MASKED_ONLY, mlm=0), "text"),
        (replace(MASKED_ONLY, mvm=0, mask_words=0.5), "vision"),
    ):
        model = tiny_model().eval()
        _, found = masked_parts(
            model, scene_batch(model), replace(config, detach_condition=detached)
        )
        found.total.backward()
        tower = getattr(model, partner)
        trained = any(w.grad is not None and w.grad.any() for w in tower.parameters())
        assert trained != detached


# --- the whole ---

ALL = Config(
    contrast=0.5, mvm=0.25, mlm=2.0, kl=0.125, online=4.0, queue_size=8, temperature=0.1,
    filter_k=None, in_batch="momentum", mask_words=0.5,
)  # fmt: skip


def test_the_total_is_the_weighted_sum() -> None:
    model = tiny_model().eval()
    _, found = masked_parts(model, scene_batch(model), ALL)
    weights = loss_weights(ALL)
    assert set(weights) <= set(found.parts)
    expected = sum(weight * float(found.parts[name]) for name, weight in weights.items())
    assert float(found.total) == pytest.approx(expected, rel=1e-6)
    assert all(math.isfinite(float(value)) for value in found.parts.values())


@pytest.mark.parametrize("name", ["contrast", "mvm", "mlm", "kl", "online"])
def test_each_loss_can_be_switched_off(name: str) -> None:
    """It is gone from the parts, and the others are as they were."""
    model = tiny_model().eval()
    batch = scene_batch(model)
    _, every = masked_parts(model, batch, ALL)
    off = replace(ALL, **{name: 0.0})  # type: ignore[arg-type] # a float
    objective, found = masked_parts(model, batch, off)
    assert set(every.parts) - set(found.parts) == {name}
    assert (objective.patch_head is None) == (name == "mvm")
    assert (objective.word_head is None) == (name == "mlm")
    for other in {"contrast", "kl", "online", "mvm"} - {name}:
        assert float(found.parts[other]) == pytest.approx(float(every.parts[other]), abs=1e-6)


@pytest.mark.parametrize("name", ["contrast", "mvm", "mlm", "kl", "online"])
def test_each_loss_alone_has_finite_gradients(name: str) -> None:
    model = tiny_model()
    zero: dict[str, Any] = dict.fromkeys(("contrast", "mvm", "mlm", "kl", "online"), 0.0)
    _, found = masked_parts(model, scene_batch(model), replace(ALL, **(zero | {name: 1.0})))
    found.total.backward()
    gradients = [w.grad for w in model.parameters() if w.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_what_is_encoded_does_not_depend_on_what_trains() -> None:
    """Nothing of queue, momentum towers, heads and filter survives to inference."""
    model = tiny_model().eval()
    texts = ["a red disc", "a blue cross above a green box"]
    pictures = [sample.slots["image"] for sample in make_scenes(3, size_px=24).samples]
    before = model.encode_texts(texts), model.encode_images(pictures), model.space
    objective, found = masked_parts(model, scene_batch(model), ALL)
    found.total.backward()
    del objective
    assert np.array_equal(before[0], model.encode_texts(texts))
    assert np.array_equal(before[1], model.encode_images(pictures))
    assert before[2] == model.space
    assert not [name for name in model.state_dict() if "queue" in name or "head" in name]


def test_state_makes_a_round_trip() -> None:
    model = tiny_model()
    batch = scene_batch(model)
    objective = CotsObjective(replace(ALL, mvm=0, mlm=0), model)
    state = objective.init_state(model)
    objective.loss(model, batch, model.features(batch), state)
    other = objective.init_state(tiny_model(seed=1))
    other.load_state_dict(state.state_dict())
    again = [objective.loss(model, batch, model.features(batch), s).parts for s in (state, other)]
    assert again[0].keys() == again[1].keys()
    assert all(torch.equal(again[0][name], again[1][name]) for name in again[0])


def test_another_state_is_refused() -> None:
    model = tiny_model()
    objective = CotsObjective(PAIRS_ONLY, model)
    with pytest.raises(TypeError, match="expected the State"):
        objective.after_step(model, nn.Module())


# --- configuration and parts ---


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("contrast", "-1"),
        ("temperature", "0"),
        ("momentum", "1.5"),
        ("queue_size", "-1"),
        ("soft_targets", "2"),
        ("mask_patches", "1.1"),
        ("mask_words", "-0.1"),
        ("visual_codes", "1"),
        ("filter_k", "-2"),
        ("filter_window", "1"),
        ("condition", "attention"),
        ("kl_direction", "both"),
        ("siblings", "drop"),
        ("in_batch", "online"),
    ],
)
def test_settings_out_of_range_are_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_settings(Config, {key: text})


def test_the_filter_is_switched_off_by_none() -> None:
    assert parse_settings(Config, {"filter_k": "none"}).filter_k is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(mlm=0), "visual tokenizer"),
        (Config(mvm=0), "mask token"),
        (Config(contrast=0, mvm=0, mlm=0, kl=0), "all losses"),
        (Config(mvm=0, mlm=0, temperature=1.0, learn_temperature=True), "temperature"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config: Config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CotsObjective(config, tiny_model())


def base_of(folder: Path, data: DataSet | None = None) -> Base:
    scenes = data or make_scenes(20, num_captions=2, size_px=24)
    return Base(model=tiny_model(), training=Training(data=scenes, directory=folder))


def test_parts_fit_a_visual_tokenizer_once(tmp_path: Path) -> None:
    config = Config(visual_tokenizer="kmeans", visual_codes=16, queue_size=4)
    ((weight, first),) = parts(config, base_of(tmp_path)).objective
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    ((_, second),) = parts(config, base_of(tmp_path)).objective
    assert weight == 1.0
    assert files == {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert isinstance(first, CotsObjective)
    assert isinstance(second, CotsObjective)
    assert isinstance(first.tokenizer, KMeansTokenizer)
    assert isinstance(second.tokenizer, KMeansTokenizer)
    assert torch.equal(first.tokenizer.centroids, second.tokenizer.centroids)


def test_a_visual_tokenizer_of_other_settings_is_refused(tmp_path: Path) -> None:
    config = Config(visual_tokenizer="kmeans", visual_codes=16, mlm=0)
    parts(config, base_of(tmp_path))
    with pytest.raises(ConfigError, match="visual_codes=8"):
        parts(replace(config, visual_codes=8), base_of(tmp_path))


def test_a_broken_picture_does_not_stop_the_visual_tokenizer(tmp_path: Path) -> None:
    good = make_scenes(20, size_px=24)
    broken = Sample(id="b", group="b", slots={"image": b"no picture", "text": ("a",)})
    config = Config(visual_tokenizer="kmeans", visual_codes=8, mlm=0)
    data = DataSet(name="some", samples=(broken, *good.samples))
    assert parts(config, base_of(tmp_path / "some", data)).objective
    with pytest.raises(DataError, match="no picture that can be decoded"):
        parts(config, base_of(tmp_path / "none", DataSet(name="none", samples=(broken,))))


def test_masked_words_need_a_mask_token() -> None:
    model = tiny_model()
    words = words_of(model)
    assert (words.mask, set(words.special)) == (4, {0, 1, 2, 3, 4})
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    model.tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(ConfigError, match=r"\[MASK\]"):
        words_of(model)
