"""ITR reproducibility: golden losses, recall that chance gives, rules, and the grid."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch

from costream.data import DataSet, make_scenes
from costream.errors import DataError
from costream.methods._itr_reproducibility.small import Setup, freeze, hinge, train
from costream.methods.itr_reproducibility import (
    Config,
    FactorGrid,
    effects,
    grid,
    in_folds,
    picked,
    r_sum,
    run_grid,
    split,
)
from costream.parts import System
from tiny_world import tiny_model

SMALL = {"seeds": "2", "pairs": "32", "checkpoints": "2"}

# --- golden ---


def test_hinges() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.85, 0.7, 0.75], [0.0, 0.2, 0.6]])
    assert float(hinge(scores, "sum")) == pytest.approx(1.5)
    assert float(hinge(scores, "max")) == pytest.approx(1.25)


def test_hinge_is_the_published_loop() -> None:
    scores = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (6, 6)))
    rows = [
        [max(0.0, float(0.2 + scores[i, j] - scores[i, i])) for j in range(6) if j != i]
        for i in range(6)
    ]
    columns = [
        [max(0.0, float(0.2 + scores[j, i] - scores[i, i])) for j in range(6) if j != i]
        for i in range(6)
    ]
    every = sum(map(sum, rows)) + sum(map(sum, columns))
    hardest = sum(map(max, rows)) + sum(map(max, columns))
    assert float(hinge(scores, "sum")) == pytest.approx(every)
    assert float(hinge(scores, "max")) == pytest.approx(hardest)
    assert hardest <= every


# --- laws ---


def test_what_is_far_enough_apart_costs_nothing_and_has_no_gradient() -> None:
    for kind in ("sum", "max"):
        scores = (torch.eye(4) * 0.9).requires_grad_()
        loss = hinge(scores, kind)  # type: ignore[arg-type]
        loss.backward()
        assert float(loss.detach()) == 0
        assert scores.grad is not None
        assert not scores.grad.any()


def test_of_two_pairs_both_hinges_are_one() -> None:
    scores = torch.rand(2, 2, generator=torch.Generator().manual_seed(0))
    assert float(hinge(scores, "sum")) == pytest.approx(float(hinge(scores, "max")))


def test_a_constant_scorer_has_the_recall_of_chance() -> None:
    count = 12
    owners = np.repeat(np.arange(count), 5)
    expected = sum(
        100 * (1 - comb(5 * count - 5, k) / comb(5 * count, k)) + 100 * k / count
        for k in (1, 5, 10)
    )
    constant = np.zeros((count, 5 * count), dtype=np.float32)
    assert r_sum(constant, owners) == pytest.approx(expected)


def test_an_oracle_has_all() -> None:
    owners = np.repeat(np.arange(12), 5)
    assert r_sum((owners[None] == np.arange(12)[:, None]).astype(np.float32), owners) == 600.0


def test_folds_are_the_mean_of_their_blocks_and_no_harder_than_the_whole() -> None:
    owners = np.repeat(np.arange(20), 5)
    scores = np.random.default_rng(0).standard_normal((20, 100)).astype(np.float32)
    scores[owners, np.arange(100)] += 1.0
    blocks = [
        r_sum(scores[at : at + 4, 5 * at : 5 * at + 20], owners[:20]) for at in range(0, 20, 4)
    ]
    assert in_folds(scores, owners, 5) == pytest.approx(np.mean(blocks))
    assert in_folds(scores, owners, 5) >= r_sum(scores, owners)


def test_picking_on_what_is_reported_never_reports_less() -> None:
    draws = np.random.default_rng(0).normal(300, 5, (50, 4, 2))
    runs = [picked([(float(dev), float(held)) for dev, held in run]) for run in draws]
    assert all(run.best_held >= max(run.best_dev, run.last) for run in runs)


def test_the_grid_changes_one_factor_at_a_time() -> None:
    base = Setup()
    for name, setup in grid().items():
        changed = sum(
            getattr(setup, key) != getattr(base, key) for key in ("loss", "words", "batch")
        )
        assert changed == (name not in ("base", "twin"))


def test_effects_are_paired_by_seed() -> None:
    values = {"base": [300.0, 310.0], "loss=sum": [290.0, 300.0]}
    found = effects(values)["loss=sum"]
    assert (found["effect"], found["low"], found["high"]) == (-10.0, -10.0, -10.0)
    assert found["in_sds"] == pytest.approx(-(2**0.5))


# --- the evaluation ---

SCENES = make_scenes(40, seed=2, num_captions=2, detail="full", size_px=24)


def test_no_picture_is_in_two_parts() -> None:
    parts = split(SCENES, Config())
    ids = [sample.id for part in parts for sample in part]
    assert sorted(ids) == sorted(sample.id for sample in SCENES.samples)
    assert [len(part) for part in parts] == [24, 8, 8]
    with pytest.raises(DataError, match="at least 10"):
        split(DataSet(name="few", samples=SCENES.samples[:9]), Config())


def test_a_report_has_every_factor_with_its_interval() -> None:
    config = Config(seeds=2, pairs=64, checkpoints=2)
    found = FactorGrid(config).run(System(model=tiny_model()), SCENES)
    assert set(grid()) | {"checkpoint=last", "ensemble of 2"} <= set(found.metrics)
    for values in found.metrics.values():
        assert values["low"] <= values["effect"] <= values["high"]
    assert found.metrics["base"]["effect"] == 0
    assert found.metrics["base"]["sd"] > 0
    assert found.metrics["checkpoint=best reported"]["effect"] >= 0
    again = FactorGrid(config).run(System(model=tiny_model()), SCENES)
    assert again.metrics == found.metrics


def test_other_ids_change_nothing_but_the_split() -> None:
    parts = split(SCENES, Config())
    renamed = [[replace(one, id=f"x{one.id}") for one in part] for part in parts]
    plain, other = freeze(tiny_model(), *parts), freeze(tiny_model(), *renamed)
    torch.testing.assert_close(plain.held.features, other.held.features)


def test_every_seed_is_a_run_of_its_own_to_what_keeps_them() -> None:
    asked = []

    def kept(settings: dict[str, object], make: object) -> dict[str, float]:
        asked.append(tuple(sorted(settings.items())))
        return {"base": float(len(asked))}

    frozen = freeze(tiny_model(), *split(SCENES, Config()))
    assert run_grid(frozen, Config(seeds=3), kept=kept) == {"base": [1.0, 2.0, 3.0]}
    assert len(set(asked)) == 3


# --- learns ---


def test_the_small_model_learns() -> None:
    data = make_scenes(200, seed=5, num_captions=2, detail="full", size_px=24)
    frozen = freeze(tiny_model(), data.samples[:150], data.samples[150:175], data.samples[175:])
    seen = replace(frozen, held=frozen.train)
    ((_, scores),) = train(seen, Setup(loss="info_nce", batch=50), pairs=10_000, checkpoints=1)
    owners = frozen.train.picture_of
    assert r_sum(scores, owners) > 3 * r_sum(np.zeros_like(scores), owners)
