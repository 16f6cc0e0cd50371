"""Parts that losses are made of: formulas, extremes and gradients."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from costream.errors import ConfigError, NumericalError
from costream.objectives.align import kl_rows
from costream.objectives.contrast import contrast_rows
from costream.objectives.filter import SimilarityFilter
from costream.objectives.gather import (
    gather_rows,
    gather_rows_with_gradient,
    mean_across,
    rank,
    wait_for_all,
    world_size,
)
from costream.objectives.momentum import PairedQueue, follow, momentum_copy
from costream.objectives.names import NamesObjective
from tiny_world import scene_batch, tiny_model

INF = float("inf")


def rows(*values: list[float]) -> Tensor:
    return torch.tensor([*values], dtype=torch.float64)


def alone(count: int, columns: int) -> Tensor:
    """Related to the own column only."""
    return torch.eye(count, columns, dtype=torch.bool)


# --- contrast ---


def test_info_nce_golden_values() -> None:
    """Logits (1, 0) and (1, 0.5), the first column is the positive."""
    scores = rows([1.0, 0.0], [1.0, 0.5])
    expected = [
        -math.log(math.exp(1.0) / (math.exp(1.0) + math.exp(0.0))),
        -math.log(math.exp(1.0) / (math.exp(1.0) + math.exp(0.5))),
    ]
    assert expected == pytest.approx([0.3132617, 0.4740770], abs=1e-7)
    own = torch.zeros(2, dtype=torch.int64)
    found = contrast_rows(scores, own, torch.tensor([[True, False]] * 2))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_several_positives_share_the_target() -> None:
    """-1/|P| sum over P of log p, the denominator over all columns."""
    s = [1.0, 0.2, -0.5, 0.7]
    total = sum(map(math.exp, s))
    expected = -(math.log(math.exp(s[0]) / total) + math.log(math.exp(s[3]) / total)) / 2
    related = torch.tensor([[True, False, False, True]])
    found = contrast_rows(rows(s), torch.tensor([0]), related, "positive")
    assert float(found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("siblings", ["negative", "remove", "positive"])
def test_no_rows_and_one_column(siblings: Any) -> None:
    nothing = contrast_rows(
        torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), alone(0, 3), siblings
    )
    assert nothing.shape == (0,)
    one = contrast_rows(rows([5.0]), torch.tensor([0]), alone(1, 1), siblings)
    assert one.tolist() == [0.0]


@pytest.mark.parametrize("siblings", ["negative", "remove", "positive"])
def test_ties_are_chance(siblings: Any) -> None:
    found = contrast_rows(torch.zeros(2, 4), torch.tensor([0, 1]), alone(2, 4), siblings)
    assert found.tolist() == pytest.approx([math.log(4)] * 2)


@pytest.mark.parametrize("siblings", ["negative", "remove", "positive"])
def test_columns_at_minus_infinity_are_absent(siblings: Any) -> None:
    scores = rows([1.0, -INF, 0.5, -INF]).requires_grad_()
    related = torch.tensor([[True, True, False, False]])
    found = contrast_rows(scores, torch.tensor([0]), related, siblings)
    fewer = contrast_rows(
        rows([1.0, 0.5]), torch.tensor([0]), torch.tensor([[True, False]]), siblings
    )
    assert float(found.detach()) == pytest.approx(float(fewer), abs=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    assert torch.isfinite(gradient).all()
    assert gradient[0, [1, 3]].tolist() == [0.0, 0.0]


def test_huge_scores_stay_finite() -> None:
    scores = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    found = contrast_rows(scores, torch.tensor([0, 0]), torch.tensor([[True, False]] * 2))
    assert found.tolist() == [0.0, 2e4]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 2**31 - 1))
def test_contrast_is_the_plain_loop(count: int, more: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, count + more)) * 3
    related = rng.random((count, count + more)) < 0.3
    related[np.arange(count), np.arange(count)] = True
    for siblings in ("negative", "remove", "positive"):
        expected = []
        for i in range(count):
            keep = [
                c
                for c in range(count + more)
                if siblings != "remove" or c == i or not related[i, c]
            ]
            total = sum(math.exp(scores[i, c]) for c in keep)
            good = [c for c in keep if related[i, c]] if siblings == "positive" else [i]
            logs = [math.log(math.exp(scores[i, c]) / total) for c in good]
            expected.append(-sum(logs) / len(logs))
        found = contrast_rows(
            torch.tensor(scores),
            torch.arange(count),
            torch.tensor(related),
            siblings,  # type: ignore[arg-type] # one of three
        )
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


# --- align ---


def test_kl_golden_values() -> None:
    """Two-way example at temperature 1: logits (1, 0) against (1, 0.5)."""
    p, q = np.exp([1.0, 0.0]), np.exp([1.0, 0.5])
    p, q = p / p.sum(), q / q.sum()
    forward, reverse = float((p * np.log(p / q)).sum()), float((q * np.log(q / p)).sum())
    golden = {"forward": 0.0263446, "reverse": 0.0279550, "symmetric": 0.0271498}
    formula = {"forward": forward, "reverse": reverse, "symmetric": (forward + reverse) / 2}
    assert formula == pytest.approx(golden, abs=1e-7)
    for direction, value in golden.items():
        found = kl_rows(rows([1.0, 0.0]), rows([1.0, 0.5]), direction)  # type: ignore[arg-type] # one of three
        assert float(found) == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize("direction", ["forward", "reverse", "symmetric"])
def test_kl_extremes(direction: Any) -> None:
    assert kl_rows(torch.zeros(0, 3), torch.zeros(0, 3), direction).shape == (0,)
    assert float(kl_rows(rows([4.0]), rows([-4.0]), direction)) == 0.0
    same = rows([3.0, -1.0, 0.5])
    assert float(kl_rows(same, same + 7.0, direction)) == pytest.approx(0.0, abs=1e-6)
    absent = kl_rows(rows([1.0, -INF, 0.0]), rows([1.0, -INF, 0.5]), direction)
    fewer = kl_rows(rows([1.0, 0.0]), rows([1.0, 0.5]), direction)
    assert float(absent) == pytest.approx(float(fewer), abs=1e-7)


@pytest.mark.parametrize("direction", ["forward", "reverse", "symmetric"])
def test_gradient_of_kl_is_right_and_finite_beside_absent_columns(direction: Any) -> None:
    torch.manual_seed(0)
    first = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    second = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    kl_rows(first, second, direction).sum().backward()
    for number, inputs in enumerate((first, second)):
        for place in np.ndindex(2, 4):
            moved = [first.detach().clone(), second.detach().clone()]
            values = []
            for way in (1e-3, -1e-3):
                shifted = [part.clone() for part in moved]
                shifted[number][place] += way
                p, q = (np.exp(part.numpy()) for part in shifted)
                p, q = (part / part.sum(axis=1, keepdims=True) for part in (p, q))
                ahead, back = (p * np.log(p / q)).sum(), (q * np.log(q / p)).sum()
                values.append(
                    {"forward": ahead, "reverse": back}.get(direction, (ahead + back) / 2)
                )
            assert inputs.grad is not None
            slope = (values[0] - values[1]) / 2e-3
            assert float(inputs.grad[place]) == pytest.approx(slope, abs=1e-5)
    holed = rows([1.0, -INF, 0.0]).requires_grad_()
    kl_rows(holed, rows([1.0, -INF, 0.5]), direction).sum().backward()
    assert holed.grad is not None
    assert torch.isfinite(holed.grad).all()


# --- filter ---


def filled(k: float | None, values: list[float], *, window: int = 8) -> SimilarityFilter:
    keep = SimilarityFilter(k=k, window=window, warm_up=2)
    keep.push(torch.tensor(values))
    return keep


@pytest.mark.parametrize(("k", "threshold", "kept"), [(1.0, 0.3358216, 3), (2.0, 0.0091433, 4)])
def test_threshold_is_mean_less_k_deviations(k: float, threshold: float, kept: int) -> None:
    similarities = [0.9, 0.8, 0.85, 0.1]
    mean, deviation = np.mean(similarities), np.std(similarities)
    assert (mean, deviation) == (pytest.approx(0.6625), pytest.approx(0.3266784, abs=1e-7))
    keep = filled(k, similarities)
    assert float(keep.threshold()) == pytest.approx(mean - k * deviation, abs=1e-6)
    assert float(keep.threshold()) == pytest.approx(threshold, abs=1e-6)
    assert int(keep.kept(torch.tensor(similarities)).sum()) == kept


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.0, -0.3])
def test_equal_similarities_are_all_kept(value: float) -> None:
    """At least, not above; rounding of the mean must not matter."""
    keep = filled(0.0, [value] * 7)
    assert keep.kept(torch.full((7,), value)).all()


def test_nothing_is_left_out_before_the_warm_up_or_without_k() -> None:
    early = SimilarityFilter(k=0.0, window=8, warm_up=5)
    early.push(torch.full((4,), 0.9))
    assert early.kept(torch.tensor([-1.0])).all()
    early.push(torch.tensor([0.9]))
    assert not early.kept(torch.tensor([-1.0])).any()
    assert filled(None, [0.9] * 4).kept(torch.tensor([-1.0])).all()


def test_statistics_are_of_the_last_window() -> None:
    keep = SimilarityFilter(k=1.0, window=3, warm_up=2)
    for part in ([0.1, 0.2], [0.3, 0.4], [0.5]):
        keep.push(torch.tensor(part))
    assert sorted(keep.recent.tolist()) == pytest.approx([0.3, 0.4, 0.5])
    keep.push(torch.tensor([0.6, 0.7, 0.8, 0.9, 1.0]))
    assert sorted(keep.recent.tolist()) == pytest.approx([0.8, 0.9, 1.0])
    assert int(keep.seen) == 10
    keep.push(torch.zeros(0))
    assert int(keep.seen) == 10


def test_a_similarity_that_is_no_number_is_kept_and_not_remembered() -> None:
    keep = filled(1.0, [0.5, 0.6, 0.7])
    assert keep.kept(torch.tensor([float("nan")])).all()
    before = keep.recent.clone()
    with pytest.raises(NumericalError, match="not finite"):
        keep.push(torch.tensor([0.5, float("nan")]))
    assert torch.equal(keep.recent, before)


# --- queue ---


def numbered(start: int, count: int, dim: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Unit keys that tell which pair they are."""
    numbers = torch.arange(start, start + count, dtype=torch.float32)
    image = nn.functional.normalize(torch.stack([numbers + 1, numbers * 0, -numbers], 1), dim=1)
    return image[:, :dim], -image[:, :dim], numbers.to(torch.int64)


@pytest.mark.parametrize(("size", "step"), [(6, 2), (7, 3), (5, 5), (4, 9), (1, 2)])
def test_queue_is_first_in_first_out_whatever_the_batch(size: int, step: int) -> None:
    """After ceil(size / batch) steps only pushed pairs are left: the newest `size` of them."""
    queue = PairedQueue(size, 3)
    rounds = -(-size // step) + 3
    for number in range(rounds):
        queue.push(*numbered(number * step, step))
        image, text, groups = queue.contents()
        pushed = (number + 1) * step
        assert sorted(groups.tolist()) == [*range(max(pushed - size, 0), pushed)]
        for column, group in enumerate(groups.tolist()):
            expected_image, expected_text, _ = numbered(group, 1)
            assert torch.equal(image[column], expected_image[0])
            assert torch.equal(text[column], expected_text[0])
        assert image.norm(dim=1).tolist() == pytest.approx([1.0] * len(groups), abs=1e-6)
    assert int(queue.pointer) == rounds * step % size or step > size


def test_contents_are_copies() -> None:
    queue = PairedQueue(4, 3)
    queue.push(*numbered(0, 2))
    before = queue.contents()
    queue.push(*numbered(2, 4))
    assert before[2].tolist() == [0, 1]


def test_a_queue_of_size_0_and_an_empty_push_do_nothing() -> None:
    queue = PairedQueue(0, 3)
    queue.push(*numbered(0, 2))
    assert [len(part) for part in queue.contents()] == [0, 0, 0]
    queue = PairedQueue(2, 3)
    queue.push(*numbered(0, 0))
    assert int(queue.filled) == 0


@pytest.mark.parametrize("half", [0, 1])
def test_a_key_that_is_not_finite_leaves_the_queue_as_it_was(half: int) -> None:
    queue = PairedQueue(4, 3)
    queue.push(*numbered(0, 2))
    keys = numbered(2, 2)
    keys[half][1, 0] = float("nan")
    before = copy.deepcopy(queue.state_dict())
    with pytest.raises(NumericalError, match="key for the queue"):
        queue.push(*keys)
    assert all(torch.equal(before[name], value) for name, value in queue.state_dict().items())


# --- momentum ---


def test_follow_is_the_moving_average_of_what_trains() -> None:
    torch.manual_seed(0)
    fast, slow = nn.Linear(3, 2), nn.Linear(3, 2)
    fast.bias.requires_grad = False
    before = [weight.detach().clone().double() for weight in slow.parameters()]
    follow(slow, fast, 0.75)
    expected = 0.75 * before[0] + 0.25 * fast.weight.detach().double()
    assert torch.allclose(slow.weight.double(), expected, atol=1e-7)
    assert torch.equal(slow.bias.double(), before[1])


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_0_copies_and_1_stays(momentum: float) -> None:
    fast, slow = nn.Linear(3, 2), nn.Linear(3, 2)
    before = slow.weight.detach().clone()
    follow(slow, fast, momentum)
    assert torch.equal(slow.weight, before if momentum else fast.weight)


def test_buffers_are_copied() -> None:
    fast, slow = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    fast(torch.randn(8, 2))
    follow(slow, fast, 0.9)
    assert torch.equal(slow.running_mean, fast.running_mean)  # type: ignore[arg-type] # are there


def test_a_momentum_copy_is_apart_and_shares_the_tokenizer() -> None:
    model = tiny_model()
    twin = momentum_copy(model)
    assert twin.tokenizer is model.tokenizer
    assert not twin.training
    assert not any(weight.requires_grad for weight in twin.parameters())
    with torch.no_grad():
        model.text.token_embedding.weight.add_(1.0)
    assert not torch.equal(model.text.token_embedding.weight, twin.text.token_embedding.weight)


# --- gather, in a single process ---


def test_a_single_process_gathers_itself() -> None:
    values = torch.ones(2, 3, requires_grad=True)
    assert (world_size(), rank()) == (1, 0)
    assert not gather_rows(values).requires_grad
    assert gather_rows_with_gradient(values) is values
    wait_for_all()


def test_mean_over_weights() -> None:
    values, weight = rows([1.0, 2.0, 4.0])[0], rows([1.0, 0.5, 0.0])[0]
    assert float(mean_across(values, weight)) == pytest.approx((1.0 + 2.0 * 0.5) / 1.5)
    assert float(mean_across(values[:1], weight[:1])) == 1.0


@pytest.mark.parametrize("broken", [float("nan"), INF, -INF])
def test_rows_of_weight_0_may_be_anything(broken: float) -> None:
    values = rows([1.0, broken])[0].requires_grad_()
    total = mean_across(values, rows([2.0, 0.0])[0])
    total.backward()
    assert float(total) == 1.0
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0]


def test_no_weight_at_all_is_0_with_zero_gradient() -> None:
    for values in (torch.zeros(0, requires_grad=True), torch.ones(3, requires_grad=True)):
        total = mean_across(values, torch.zeros(len(values)))
        total.backward()
        assert float(total) == 0.0
        assert values.grad is not None
        assert not values.grad.any()


def test_gradient_of_the_mean_is_right() -> None:
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: mean_across(x, weight), values)


# --- names ---


def names_of(probabilities: Tensor, **options: Any) -> tuple[Any, NamesObjective]:
    model = tiny_model().eval()
    texts = ["a red disc", "a blue box", "a green cross", "a white triangle"]
    encoded = [model.tokenizer.encode(text).ids for text in texts]
    longest = max(map(len, encoded))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in encoded])
    return model, NamesObjective(probabilities, ids[None], (ids > 0).long()[None], **options)


@torch.no_grad()
def test_names_are_learned_by_cross_entropy_with_the_classifier() -> None:
    """-sum over classes of p log softmax(f . name / temperature), mean over the batch."""
    torch.manual_seed(0)
    probabilities = torch.rand(16, 4).softmax(dim=1)
    model, objective = names_of(probabilities, temperature=0.1)
    batch = scene_batch(model)
    features = model.features(batch)
    found = objective.loss(model, batch, features, objective.init_state(model))
    names = model.embed_tokens(objective.name_ids[0], objective.name_mask[0]).double().numpy()
    values = []
    for picture, group in zip(features["image"].pooled, batch.groups, strict=True):
        scores = names @ picture.double().numpy() / 0.1
        log_p = scores - np.log(np.exp(scores).sum())
        values.append(-(probabilities[group].double().numpy() * log_p).sum())
    assert float(found.total) == pytest.approx(np.mean(values), abs=1e-4)


@torch.no_grad()
def test_with_fewer_names_a_step_the_likeliest_are_taken_and_renormalised() -> None:
    probabilities = torch.tensor([[0.05, 0.6, 0.05, 0.3]]).repeat(16, 1)
    model, objective = names_of(probabilities, classes_a_step=2)
    batch = scene_batch(model)
    features = model.features(batch)
    found = objective.loss(model, batch, features, objective.init_state(model))
    names = model.embed_tokens(objective.name_ids[0, [1, 3]], objective.name_mask[0, [1, 3]])
    log_p = (features["image"].pooled @ names.T / 0.05).log_softmax(dim=1)
    expected = -(log_p * torch.tensor([2 / 3, 1 / 3])).sum(dim=1).mean()
    assert float(found.total) == pytest.approx(float(expected), abs=1e-4)


def test_pictures_of_weight_0_teach_no_name() -> None:
    probabilities = torch.rand(16, 4).softmax(dim=1)
    model, objective = names_of(probabilities, classes_a_step=2)
    batch = scene_batch(model)
    nothing = replace(batch, weight=torch.zeros(4))
    state = objective.init_state(model)
    found = objective.loss(model, nothing, model.features(batch), state)
    found.total.backward()
    assert float(found.total) == 0.0
    objective.after_step(model, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": torch.rand(16, 3)}, "expected"),
        ({"classes_a_step": 0}, "classes_a_step"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_tables_and_numbers_that_do_not_fit_are_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        names_of(**({"probabilities": torch.rand(16, 4)} | change))
