"""The claim of COTS: its runs are fair, its numbers are those of the formulas, and it can fail."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from costream.data import make_scenes
from costream.encoders.dual import DualEncoder
from costream.encoders.presets import COTS_MINI
from costream.errors import DataError, NumericalError
from costream.evaluate import claim_from_json, claim_to_json, render_claim
from costream.methods import cots
from costream.methods._cots.all_runs import Results, filter_runs, loss_runs, seeded
from costream.methods._cots.claim import (
    PHOTOGRAPHS,
    SCENES,
    photographs,
    reproduce,
    scenes,
)
from costream.methods._cots.one_run import (
    FilterWatch,
    Run,
    auc,
    make_run,
    method_of,
    mismatch,
    told_and_not_told,
)
from costream.methods._cots.report import plot_ablation
from costream.methods._cots.speed import hits
from costream.methods._cots.tables import filter_table, loss_table, purpose_table
from costream.methods._cots.world import World
from costream.objectives import Losses
from costream.records import Batch, Features
from costream.train.loader import draws_of_step
from costream.train.short import CachedPairs, cache_pairs, encode_cached, train_short
from costream.train.worlds import short_config, short_model, word_tokenizer

SMALL = replace(
    SCENES,
    loop=replace(SCENES.loop, steps=6, batch_size=16, warmup_steps=2),
    method=replace(
        SCENES.method, queue_size=32, filter_window=40, filter_warm_up=20, visual_codes=8
    ),
    seeds=(0, 1),
    shares=(0.0, 0.4),
    most_train=48,
    most_dev=16,
    cross_steps=2,
    cross_pictures=8,
    counts=(4, 8),
    longest_s=1.0,
)


def quiet(text: str) -> None:
    del text


@pytest.fixture(scope="module")
def world() -> World:
    return scenes(SMALL, quiet)


# --- the whole ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a claim that was run from start to end."""
    out = tmp_path_factory.mktemp("claim")
    reproduce(None, out, quiet, scale=SMALL)
    return out


def test_the_claim_leaves_tables_numbers_and_plots(finished: Path) -> None:
    stored = json.loads((finished / "cots.json").read_text())
    # claim_from_json computes every verdict again and refuses one that does not follow.
    tables = [claim_from_json(claim) for claim in stored["claims"]]
    assert len(tables) == 4
    for table in tables:
        assert table.rows
        assert all(len(row.method) >= len(SMALL.seeds) for row in table.rows)
        assert render_claim(table, "markdown") in (finished / "cots.md").read_text()
    for plot in ("cots_ablation.png", "cots_efficiency.png"):
        pytest.importorskip("matplotlib")
        assert (finished / plot).read_bytes().startswith(b"\x89PNG")


def test_a_stopped_claim_goes_on_where_it_stopped(finished: Path, tmp_path: Path) -> None:
    lines = (finished / "cots_runs.jsonl").read_bytes().splitlines(keepends=True)
    kept = [*lines[:2], *lines[3:]]
    (tmp_path / "cots_runs.jsonl").write_bytes(b"".join(kept))
    said: list[str] = []
    reproduce(None, tmp_path, said.append, scale=SMALL)
    made = [line for line in said if "hit@1" in line and "made before" not in line]
    assert len(made) == 1
    again = (tmp_path / "cots_runs.jsonl").read_bytes().splitlines(keepends=True)
    assert again[:-1] == kept
    # The same run gives the same numbers, but for its time.
    before, after = json.loads(lines[2]), json.loads(again[-1])
    assert before["settings"] == after["settings"]
    timed = {"seconds", "step_s"}
    assert {k: v for k, v in before["values"].items() if k not in timed} == {
        k: v for k, v in after["values"].items() if k not in timed
    }


def test_other_sizes_are_other_runs(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "cots_runs.jsonl").write_bytes((finished / "cots_runs.jsonl").read_bytes())
    one = replace(SMALL, loop=replace(SMALL.loop, learning_rate=2e-3), seeds=(0, 1), shares=(0.0,))
    said: list[str] = []
    reproduce(None, tmp_path, said.append, scale=one)
    assert not any("made before" in line and "hit@1" in line for line in said[:3])


def test_data_without_both_manifests_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    for source in (tmp_path, tmp_path / "train.jsonl", tmp_path / "absent"):
        with pytest.raises(DataError, match=r"expected train\.jsonl and dev\.jsonl"):
            photographs(source, PHOTOGRAPHS, quiet)


# --- fair runs ---


def test_runs_of_a_seed_differ_only_in_what_is_compared() -> None:
    scale = PHOTOGRAPHS
    plain = method_of(loss_runs(scale)["contrast"], scale)
    assert (plain.contrast, plain.kl, plain.mvm, plain.mlm, plain.filter_k) == (1, 0, 0, 0, None)
    for runs in (loss_runs(scale), filter_runs(scale)):
        for run in runs.values():
            assert run.steps == scale.loop.steps
            other = method_of(run, scale)
            same = replace(other, kl=0.0, mvm=0.0, mlm=0.0, filter_k=None)
            assert same == plain
    assert len(scale.seeds) >= 3
    assert [run.seed for run in seeded(loss_runs(scale).values(), scale)[:4]] == [0] * 4


def test_the_same_seed_starts_every_run_from_the_same_weights_and_batches(world: World) -> None:
    first, second, other = world.make(0), world.make(0), world.make(1)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    assert not torch.equal(first.image_projection.weight, other.image_projection.weight)


def test_a_run_is_the_same_twice_and_a_filter_that_never_filters_changes_nothing(
    world: World,
) -> None:
    run = Run(steps=4, seed=1)
    values, model = make_run(world, SMALL, run)
    again, _ = make_run(world, SMALL, run)
    loose, same = make_run(world, SMALL, replace(run, filter_k=1e6))
    for name in ("hit@1", "kl", "image_to_text hit@5"):
        assert values[name] == again[name] == loose[name]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name]), name


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("count", [2, 10, 101])
def test_mismatch_moves_exactly_the_share(count: int, share: float) -> None:
    owner = mismatch(count, share, seed=3)
    moved = int((owner != np.arange(count)).sum())
    wanted = round(share * count)
    # One picture alone has nobody to exchange with.
    assert moved == (wanted if wanted != 1 else 0)
    assert sorted(owner.tolist()) == list(range(count))
    if wanted > 3:
        assert not np.array_equal(owner, mismatch(count, share, seed=4))


def test_mismatched_pictures_get_the_captions_of_another(world: World) -> None:
    pairs = world.train
    owner = mismatch(len(pairs.names), 0.5, seed=0)
    draws = draws_of_step(0, len(pairs.names), 16, 0)
    batch, _ = pairs.batch(draws, owner.tolist(), [1.0] * len(pairs.names))
    for row, draw in enumerate(draws):
        text = pairs.first_text[owner[draw.sample]]
        length = int(pairs.mask[text].sum())
        ids = batch.slots["text.ids"][row, 0]
        assert ids[:length].tolist() == pairs.ids[text, :length].tolist()
        assert torch.equal(batch.slots["image"][row], pairs.pixels[draw.sample])
        assert int(batch.groups[row]) == draw.sample


def test_an_oracle_makes_the_captions_of_left_out_pictures_irrelevant(world: World) -> None:
    """Their loss weighs nothing and their keys are no negatives, so any captions give the same."""
    count = len(world.train.names)
    weights = []
    for seed in (5, 6):
        owner = np.arange(count)
        chosen = np.arange(0, count, 3)
        owner[chosen] = np.roll(chosen, seed)
        model = world.make(0)
        settings = replace(SMALL.method, kl=0.0, mvm=0.0, mlm=0.0, filter_k=None, in_batch="none")
        train_short(
            model,
            cots.CotsObjective(settings, model),
            world.train,
            replace(SMALL.loop, steps=4, clip=1e9),
            captions_of=owner.tolist(),
            trust=(owner == np.arange(count)).astype(float).tolist(),
        )
        weights.append(model.image_projection.weight.detach().clone())
    assert torch.allclose(*weights, atol=1e-5)


# --- numbers ---


def test_auc_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    higher, lower = rng.integers(0, 6, 40) / 2, rng.integers(0, 5, 30) / 2
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in higher for b in lower]
    assert auc(higher, lower) == pytest.approx(np.mean(wins), abs=1e-12)
    assert auc(higher, higher) == pytest.approx(0.5)
    assert auc(np.array([]), lower) == 0.5


class Recorded(nn.Module):
    """COTS, remembering what it said it kept."""

    def __init__(self, inner: cots.CotsObjective) -> None:
        super().__init__()
        self.inner = inner
        self.kept: list[float] = []

    def init_state(self, model: DualEncoder) -> nn.Module:
        return self.inner.init_state(model)

    def after_step(self, model: DualEncoder, state: nn.Module) -> None:
        self.inner.after_step(model, state)

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        losses = self.inner.loss(model, batch, features, state)
        self.kept.append(float(losses.parts["kept"]))
        return losses


def test_the_watch_sees_what_the_filter_did(world: World) -> None:
    model = world.make(0)
    settings = replace(SMALL.method, kl=0.0, mvm=0.0, mlm=0.0, filter_k=0.5)
    objective = Recorded(cots.CotsObjective(settings, model))
    count = len(world.train.names)
    wrong = mismatch(count, 0.4, seed=0) != np.arange(count)
    watch = FilterWatch(wrong, first=2)
    loop = replace(SMALL.loop, steps=8)
    train_short(model, objective, world.train, loop, on_step=watch)
    values = watch.values()
    assert values["left out"] == pytest.approx(100 * (1 - np.mean(objective.kept[2:])), abs=1e-4)
    assert 0 < values["left out"] < 100
    # Precision * left out = recall * mismatched: both count the mismatched pairs left out.
    visits = [d.sample for s in range(2, 8) for d in draws_of_step(s, count, 16, loop.seed)]
    assert values["precision"] * values["left out"] == pytest.approx(
        values["recall"] * 100 * wrong[visits].mean()
    )


def test_without_condition_the_partner_makes_no_difference(world: World) -> None:
    gaps = {}
    for condition in ("none", "add_projected"):
        model = world.make(0)
        settings = replace(SMALL.method, condition=condition, filter_k=None)
        objective = cots.CotsObjective(
            settings, model, tokenizer=world.codes, words=cots.words_of(model)
        )
        state, _ = train_short(model, objective, world.train, replace(SMALL.loop, steps=2))
        values = told_and_not_told(model, objective, world.dev, state)
        gaps[condition] = [values[f"{w} told"] - values[f"{w} not told"] for w in ("mlm", "mvm")]
    assert gaps["none"] == [0.0, 0.0]
    assert all(gap != 0.0 for gap in gaps["add_projected"])


def test_hits_of_constant_scores_are_chance() -> None:
    assert np.mean(hits(np.zeros((8, 8), dtype=np.float32))) == pytest.approx(100 / 8)
    assert hits(np.eye(3, dtype=np.float32)) == [100.0] * 6


# --- frozen layers ---


def test_cached_maps_give_the_features_of_the_pictures(world: World) -> None:
    torch.manual_seed(0)
    base = DualEncoder(COTS_MINI, word_tokenizer(make_scenes(4)))
    model = short_model(base, seed=0)
    data = make_scenes(6, num_captions=2, size_px=64)
    pairs = cache_pairs(model, data, kept_px=32)
    assert pairs.frozen is not None
    assert pairs.frozen.shape[2:] == (4, 4)
    assert pairs.pixels.shape == (6, 3, 32, 32)
    assert pairs.image_of_text.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    images, texts = encode_cached(model, pairs)
    wanted = model.encode_images([sample.slots["image"] for sample in data.samples])
    read = model.encode_texts([text for sample in data.samples for text in sample.slots["text"]])
    # The maps are kept with the 8 bits of bfloat16.
    assert np.abs((images.numpy() * wanted).sum(axis=1) - 1).max() < 1e-3
    assert np.abs((texts.numpy() * read).sum(axis=1) - 1).max() < 1e-3


def test_a_light_model_has_the_stem_and_texts_of_the_whole_one_and_trains_the_rest() -> None:
    torch.manual_seed(0)
    base = DualEncoder(COTS_MINI, word_tokenizer(make_scenes(4)))
    config = short_config(base.config)
    assert config.vision.transformer.depth < base.config.vision.transformer.depth
    model = short_model(base, seed=0)
    trained = {name for name, weight in model.text.named_parameters() if weight.requires_grad}
    assert trained and all(name.startswith("transformer.layers.") for name in trained)
    assert {int(name.split(".")[2]) for name in trained} == {4, 5}
    whole = base.state_dict()
    for name, weight in model.state_dict().items():
        if name.startswith(("text.", "vision.stem.")):
            assert torch.equal(weight, whole[name]), name
    other = short_model(base, seed=1).state_dict()
    assert not torch.equal(model.image_projection.weight, other["image_projection.weight"])


class Broken:
    """An objective whose loss is not a number from the second step on."""

    def __init__(self) -> None:
        self.steps: Iterator[float] = iter([1.0, float("nan")])

    def init_state(self, model: DualEncoder) -> nn.Module:
        del model
        return nn.Module()

    def after_step(self, model: DualEncoder, state: nn.Module) -> None: ...

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        del model, batch, state
        total: Tensor = features["image"].pooled.sum() * next(self.steps)
        return Losses(total=total, parts={})


def test_a_loss_that_is_not_finite_stops_the_run(world: World) -> None:
    with pytest.raises(NumericalError, match="at step 1"):
        train_short(world.make(0), Broken(), world.train, SMALL.loop)


def test_pictures_without_captions_are_refused(world: World) -> None:
    data = make_scenes(2)
    bare = replace(data.samples[1], slots={"image": data.samples[1].slots["image"], "text": ()})
    with pytest.raises(DataError, match=bare.id):
        cache_pairs(world.make(0), replace(data, samples=(data.samples[0], bare), _hash=[]))


# --- verdicts ---


def made_results(gains: Mapping[str, list[float]]) -> Results:
    """Results in which each run's hit@1 is 20 plus the gain of its seed."""

    def runs(name: str) -> list[dict[str, float]]:
        return [
            {
                "hit@1": 20 + gain,
                "image_to_text hit@1": 22 + gain,
                "text_to_image hit@1": 18 + gain,
                "kl": 0.5 - gain / 10,
                "step_s": 0.1,
                "left out": 5.0,
                "precision": 60.0,
                "recall": 40.0,
                "auc": 0.9,
                **{f"{w} told": 2.0 - gain / 10 for w in ("mlm", "mvm")},
                **{f"{w} not told": 2.0 for w in ("mlm", "mvm")},
            }
            for gain in gains.get(name, [0.0, 0.1, -0.1])
        ]

    losses = {name: runs(name) for name in ("contrast", "kl", "masked", "all", "longer")}
    kinds = {key: key[1] for key in filter_runs(SMALL)}
    return Results(
        losses=losses,
        filters={key: runs(name) for key, name in kinds.items()},
        longer_steps=10,
    )


def test_verdicts_follow_from_the_numbers() -> None:
    results = made_results(
        {"kl": [1.0, 1.2, 0.9], "masked": [-1.0, -1.1, -0.9], "all": [2.0, -2.0, 0.1]}
    )
    verdicts = {row.name: row.verdict for row in loss_table(results, {}).rows}
    assert verdicts["contrast + KL over contrast"] == "shown"
    assert verdicts["contrast + masked over contrast"] == "contradicted"
    assert verdicts["all three over contrast"] == "not shown"
    purposes = purpose_table(results).rows
    assert [row.verdict for row in purposes][:3] == ["not shown", "not shown", "shown"]


def test_the_filter_must_gain_where_captions_are_mismatched_and_cost_little_where_none_are() -> (
    None
):
    name = "filter k=1 over no filter"
    for gains, cost in (([-0.5, -0.4, -0.6], "shown"), ([-1.5, -1.4, -1.6], "contradicted")):
        table = filter_table(made_results({"k=1": gains}), SMALL)
        rows = {row.name: row.verdict for row in table.rows}
        assert rows[f"{name}, 0 % mismatched, costs at most 1"] == cost
        assert rows[f"{name}, 40 % mismatched"] == "contradicted"


def test_tables_survive_being_stored() -> None:
    for table in (loss_table(made_results({}), {}), filter_table(made_results({}), SMALL)):
        assert claim_from_json(json.loads(json.dumps(claim_to_json(table)))) == table


def test_the_plot_draws_equal_and_extreme_values(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for number, gains in enumerate(({"kl": [0.0] * 3}, {"all": [80.0, 79.0, 80.0]})):
        plot_ablation(made_results(gains), SMALL, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5000


def test_pairs_know_the_picture_of_each_text(world: World) -> None:
    assert isinstance(world.train, CachedPairs)
    assert world.train.image_of_text.tolist() == list(range(SMALL.most_train))
