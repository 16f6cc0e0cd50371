"""Training's parts: which sample is seen when, what becomes of it, rates, averages, the log."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import costream
from costream.config import parse_settings
from costream.data import DataSet, make_scenes
from costream.encoders import device as device_module
from costream.encoders.device import (
    autocast,
    autocast_dtype,
    bf16_speedup,
    inference_autocast,
    keep_freed_memory,
    precision,
    training_attention,
)
from costream.encoders.locate import DEFAULT_MODEL
from costream.encoders.presets import PRESETS, find_preset
from costream.encoders.starting_weights import pretrained_model
from costream.encoders.storage import save_model
from costream.errors import ConfigError, DataError, WeightsError
from costream.objectives import Losses
from costream.records import Batch, Sample
from costream.train import split_settings
from costream.train.config import TrainConfig
from costream.train.loader import Loader, augment, draws_of_step
from costream.train.log import TrainingLog, draw_curves, read_metrics
from costream.train.loop import AveragedWeights, StepLoss
from costream.train.optim import make_optimiser, rate_at, rate_factor
from costream.train.start import StartConfig, start_model
from tiny_world import scene_batch, tiny_config, tiny_model

SCENES = make_scenes(10, num_captions=3, size_px=24)
CPU = torch.device("cpu")

# --- which samples a step sees ---


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 5))
def test_every_epoch_sees_every_sample_once(size: int, batch_size: int, seed: int) -> None:
    """Without gaps between epochs: any `size` draws that begin at an epoch are all samples."""
    steps = -(-3 * size // batch_size)
    seen = [d.sample for s in range(steps) for d in draws_of_step(s, size, batch_size, seed)]
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == [*range(size)]


def test_draws_depend_on_the_step_alone() -> None:
    """A run that resumes at step 7 draws what the uninterrupted one drew."""
    run = [draws_of_step(step, 10, 4, 3) for step in range(12)]
    assert draws_of_step(7, 10, 4, 3) == run[7]
    seeds = [draw.seed for draws in run for draw in draws]
    assert len(set(seeds)) == len(seeds)
    assert draws_of_step(7, 10, 4, 4) != run[7]
    orders = [[d.sample for d in draws_of_step(step, 10, 10, 3)] for step in range(2)]
    assert orders[0] != orders[1]


# --- loader ---


def loader(**options: Any) -> Loader:
    known = {name: options.pop(name) for name in ("rank", "processes") if name in options}
    data = options.pop("data", SCENES)
    config = TrainConfig(**({"steps": 6, "batch_size": 4, "threads": 2} | options))
    return Loader(data, tiny_model(), config, **known)


def same(first: Batch, second: Batch) -> bool:
    return (
        first.ids == second.ids
        and torch.equal(first.groups, second.groups)
        and torch.equal(first.seeds, second.seeds)
        and torch.equal(first.weight, second.weight)
        and all(torch.equal(first.slots[name], second.slots[name]) for name in first.slots)
    )


def test_batches_from_any_step_are_those_of_the_whole_run() -> None:
    whole = list(loader(colour=0.3, captions=2).batches(0))
    assert len(whole) == 6
    for first in (1, 4, 5):
        rest = list(loader(colour=0.3, captions=2).batches(first))
        assert all(same(a[0], b[0]) for a, b in zip(whole[first:], rest, strict=True))
    assert list(loader().batches(6)) == []


def test_two_processes_have_the_two_halves_of_the_batch() -> None:
    (whole,) = next(loader(captions=2).batches(2))
    halves = [next(loader(captions=2, rank=r, processes=2).batches(2))[0] for r in (0, 1)]
    assert whole.ids == halves[0].ids + halves[1].ids
    for name in ("groups", "seeds", "weight"):
        parts = torch.cat([getattr(half, name) for half in halves])
        assert torch.equal(getattr(whole, name), parts)
    images = torch.cat([half.slots["image"] for half in halves])
    assert torch.equal(whole.slots["image"], images)


def test_accumulated_parts_are_the_batch_in_parts_over_processes() -> None:
    """Part by part, all processes together see the batch of one process in its order."""
    whole = next(loader(accumulate=2).batches(1))
    halves = [next(loader(accumulate=2, rank=r, processes=2).batches(1)) for r in (0, 1)]
    for part in (0, 1):
        assert whole[part].ids == halves[0][part].ids + halves[1][part].ids


def test_captions_are_different_while_there_are_enough() -> None:
    for captions in (1, 3, 7):
        (batch,) = next(loader(captions=captions, batch_size=5).batches(0))
        ids = batch.slots["text.ids"]
        assert ids.shape[:2] == (5, captions)
        for row in ids.tolist():
            counts = Counter(map(tuple, row)).values()
            assert len(counts) == min(captions, 3)
            assert max(counts) - min(counts) <= 1


def test_groups_are_the_same_for_the_same_picture_at_any_step() -> None:
    found: dict[str, int] = {}
    for (batch,) in loader(steps=8).batches(0):
        for name, group in zip(batch.ids, batch.groups.tolist(), strict=True):
            assert found.setdefault(name, group) == group
    assert len(set(found.values())) == len(SCENES)


def test_longer_texts_are_cut_for_training() -> None:
    (short,) = next(loader(max_tokens=4).batches(0))
    assert short.slots["text.ids"].shape[2] == 4
    (long,) = next(loader(max_tokens=1000).batches(0))
    assert long.slots["text.ids"].shape[2] <= 24


@pytest.mark.parametrize("cached", [False, True])
def test_pictures_are_cached_unchanged_when_they_are_small(cached: bool) -> None:
    plain, again = (next(loader(cache_images=c).batches(0))[0] for c in (False, cached))
    assert same(plain, again)


def test_cached_pictures_are_never_smaller_than_a_crop() -> None:
    picture = Image.new("RGB", (400, 300))
    data = DataSet(
        name="one", samples=(Sample(id="a", group="a", slots={"image": picture, "text": ("a",)}),)
    )
    big = loader(data=data, cache_images=True, cache_px=16, image_px=48, batch_size=1)
    next(big.batches(0))
    assert min(big._cache["a"].size) == 48


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 5, "accumulate": 2}, ConfigError, "does not split"),
        ({"batch_size": 3, "processes": 2}, ConfigError, "2 processes x 1 parts"),
        ({"data": DataSet(name="none", samples=())}, DataError, "no samples"),
        (
            {"data": DataSet(name="x", samples=(Sample(id="q", group="q", slots={"image": b""}),))},
            DataError,
            "'q'.*no caption",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        loader(**options)


def with_broken(count: int, good: int) -> DataSet:
    broken = tuple(
        Sample(id=f"b{n}", group=f"b{n}", slots={"image": b"junk", "text": ("a",)})
        for n in range(count)
    )
    return DataSet(name="some", samples=broken + make_scenes(good, size_px=24).samples)


def test_a_broken_picture_is_left_out_and_told_once() -> None:
    run = loader(data=with_broken(1, 7), batch_size=8, steps=3)
    for (batch,) in run.batches(0):
        weights = dict(zip(batch.ids, batch.weight.tolist(), strict=True))
        assert weights.pop("b0") == 0.0
        assert set(weights.values()) == {1.0}
    (sentence,) = run.take_failures()
    assert "expected a picture" in sentence
    assert run.take_failures() == []


def test_too_many_broken_pictures_stop_the_run() -> None:
    run = loader(data=with_broken(2, 6), batch_size=8, steps=2)
    with pytest.raises(DataError, match="2 of 8 pictures of some are broken, expected at most 1"):
        list(run.batches(0))


# --- augmentation ---


def test_augmentation_comes_from_its_generator_alone() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    config = TrainConfig(colour=0.4)
    made = [augment(image, 24, config, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
    assert made[0].shape == (3, 24, 24)
    assert made[0].dtype == np.uint8


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 2), (500, 20)])
def test_pictures_of_any_shape_are_augmented(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    for seed in range(20):
        made = augment(image, 8, TrainConfig(crop_area=0.05), np.random.default_rng(seed))
        assert {tuple(pixel) for pixel in made.reshape(3, -1).T.tolist()} == {(10, 20, 30)}


def test_half_of_the_pictures_are_mirrored() -> None:
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], (24, 1, 3))
    image = Image.fromarray(ramp)
    made = [augment(image, 8, TrainConfig(), np.random.default_rng(s)) for s in range(200)]
    mirrored = sum(int(x[0, 0, 0]) > int(x[0, 0, -1]) for x in made)
    assert 70 < mirrored < 130
    plain = [
        augment(image, 8, TrainConfig(mirror=False), np.random.default_rng(s)) for s in (0, 1, 2)
    ]
    assert all(int(x[0, 0, 0]) < int(x[0, 0, -1]) for x in plain)


# --- optimiser and rates ---


def test_rates_by_name() -> None:
    config = TrainConfig(stem_rate=2.0, vision_rate=3.0, text_rate=5.0, embedding_rate=7.0)
    expected = {
        "text.token_embedding.weight": 35.0,
        "text.position_embedding": 5.0,
        "text.transformer.layers.0.mlp_in.weight": 5.0,
        "vision.stem.head.weight": 2.0,
        "vision.project.weight": 3.0,
        "image_projection.weight": 1.0,
        "text_projection.weight": 1.0,
    }
    assert {name: rate_factor(name, config) for name in expected} == expected


def test_groups_of_the_optimiser_have_their_rate_and_decay() -> None:
    model = tiny_model()
    objectives = nn.ModuleList([nn.Linear(2, 2)])
    config = TrainConfig(text_rate=0.5, embedding_rate=0.0, weight_decay=0.1)
    optimiser = make_optimiser(model, objectives, config)
    found = {}
    for group in optimiser.param_groups:
        for weight in group["params"]:
            found[id(weight)] = (group["factor"], group["weight_decay"])
    for name, weight in [*model.named_parameters(), *objectives.named_parameters()]:
        if name == "text.token_embedding.weight":
            assert not weight.requires_grad
            assert id(weight) not in found
            continue
        factor = 0.5 if name.startswith("text.") else 1.0
        assert found[id(weight)] == (factor, 0.1 if weight.ndim > 1 else 0.0), name


def test_an_optimiser_of_nothing_is_refused() -> None:
    nothing = TrainConfig(stem_rate=0, vision_rate=0, text_rate=0)
    model = tiny_model()
    model.image_projection.requires_grad_(False)
    model.text_projection.requires_grad_(False)
    with pytest.raises(ConfigError, match="no weight is left"):
        make_optimiser(model, nn.ModuleList(), nothing)


def test_the_rate_warms_up_and_falls_as_a_cosine() -> None:
    config = TrainConfig(steps=50, warmup_steps=10, learning_rate=2.0, final_rate=0.1)
    for step in range(50):
        if step < 10:
            expected = 2.0 * (step + 1) / 10
        else:
            expected = 2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 40)) / 2)
        assert rate_at(step, config) == pytest.approx(expected)
    assert rate_at(10, config) == 2.0
    assert rate_at(1000, config) == pytest.approx(0.2)


@pytest.mark.parametrize(("steps", "warm"), [(1, 0), (5, 5), (5, 100)])
def test_rates_of_short_runs_are_finite_and_positive(steps: int, warm: int) -> None:
    config = TrainConfig(steps=steps, warmup_steps=warm)
    rates = [rate_at(step, config) for step in range(steps)]
    assert all(0 < rate <= config.learning_rate for rate in rates)


# --- averaged weights ---


def test_averaged_weights_follow_their_formula_and_swap_back() -> None:
    model = tiny_model()
    model.text.token_embedding.weight.requires_grad = False
    average = AveragedWeights(model, 0.5)
    weight = model.image_projection.weight
    expected = weight.detach().clone().double()
    for count in range(1, 8):
        with torch.no_grad():
            for each in model.parameters():
                each.add_(torch.randn_like(each) * each.requires_grad)
        average.update(model)
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * weight.detach().double()
    online = {name: value.clone() for name, value in model.state_dict().items()}
    average.swap(model)
    assert torch.allclose(weight.double(), expected, atol=1e-6)
    average.swap(model)
    assert all(torch.equal(value, online[name]) for name, value in model.state_dict().items())


# --- the sum of objectives ---


class Constant(nn.Module):
    """An objective that is a number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def init_state(self, model: object) -> nn.Module:
        return nn.Module()

    def loss(self, model: object, batch: object, features: object, state: object) -> Losses:
        return Losses(total=self.value, parts={"constant": self.value.detach()})

    def after_step(self, model: object, state: object) -> None:
        """Nothing."""


def test_objectives_are_summed_by_weight_and_no_part_hides_another() -> None:
    model = tiny_model()
    step = StepLoss(model, [(2.0, Constant(3.0)), (0.5, Constant(8.0))])
    total, parts = step(scene_batch(model), [nn.Module(), nn.Module()])
    assert float(total) == 10.0
    assert {name: float(value) for name, value in parts.items()} == {
        "constant": 3.0,
        "constant 2": 8.0,
    }


# --- log ---


def test_the_log_is_read_back_and_a_resumed_run_writes_on(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path)
    log.begin(0, "starts")
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step})
    log.close()
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(log.path)] == [1, 2, 3]
    again = TrainingLog(tmp_path)
    again.begin(2, "goes on")
    again.write(3, {"loss": 7.0})
    again.close()
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 7.0)]


def test_other_processes_write_no_metrics_but_their_warnings(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "run", active=False)
    log.begin(0, "starts")
    log.write(1, {"loss": 1.0})
    log.close()
    assert not (tmp_path / "run").exists()
    log.warn("a picture is broken")
    assert (tmp_path / "run" / "warnings.txt").read_text() == "a picture is broken\n"


@pytest.mark.parametrize("damage", ["[]\n", '"x"\n', "{}\n", "nonsense\n"])
def test_a_damaged_line_ends_the_metrics(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + damage + '{"step": 2}\n')
    assert read_metrics(path) == [{"step": 1}]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_curves_are_a_picture_of_every_value(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = [{"step": s, "loss": 1.0 / s, "gradient_norm": 2.0, "seconds": s} for s in range(1, 9)]
    for number, metrics in enumerate((lines, [])):
        draw_curves(metrics, tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as picture:
            assert picture.size[0] > 300


# --- precision ---


def test_bf16_is_used_where_it_is_faster() -> None:
    """The choice is the measurement's, and the measurement agrees with a plain stop watch."""
    assert (autocast_dtype(CPU) == torch.bfloat16) == (bf16_speedup() > 1.2)
    best: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.full((512, 512), 0.5, dtype=dtype)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            torch.mm(a, a)
            times.append(time.perf_counter() - start)
        best[dtype] = min(times)
    speedup = best[torch.float32] / best[torch.bfloat16]
    # A factor of two either way is what other work on the machine can do to a short measurement.
    if autocast_dtype(CPU) is None:
        assert speedup < 2.4
    else:
        assert speedup > 0.6


def test_measuring_the_precision_moves_no_random_state() -> None:
    """It happens in the first step of a process: a resumed run would draw other dropout."""
    before = torch.get_rng_state()
    bf16_speedup.__wrapped__(64, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_precision_is_what_is_asked_for() -> None:
    a = torch.ones(4, 4)
    with precision(CPU, torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
    with precision(CPU, None):
        assert (a @ a).dtype == torch.float32
    with autocast(CPU):
        assert (a @ a).dtype == (autocast_dtype(CPU) or torch.float32)


def test_embedding_is_float32_on_a_cpu_and_attention_unchanged() -> None:
    """A vector must not depend on the machine, nor training on the kernel that is faster."""
    a = torch.ones(4, 4)
    with inference_autocast(CPU):
        assert (a @ a).dtype == torch.float32
    model = tiny_model().eval()
    batch = scene_batch(model)
    with torch.no_grad():
        plain = model.features(batch)["text"].pooled
        with training_attention(CPU):
            other = model.features(batch)["text"].pooled
    assert torch.allclose(plain, other, atol=1e-6)
    keep_freed_memory()
    assert device_module.default_device().type in ("cpu", "cuda")


# --- start ---


def test_a_model_is_started_from_its_directory_under_a_new_name(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "m")
    model = start_model(StartConfig(start=str(tmp_path / "m"), name="mine"))
    assert model.name == "mine"
    assert model.config == replace(tiny_config(), name="mine")
    assert start_model(StartConfig(start=str(tmp_path / "m"))).name == "tiny"


def test_presets_are_found_by_name() -> None:
    assert DEFAULT_MODEL in PRESETS
    assert all(find_preset(name).name == name for name in PRESETS)
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        find_preset("tinny")
    with pytest.raises(WeightsError, match="no starting weights are known for 'tiny'"):
        pretrained_model("tiny")
    with pytest.raises(ConfigError, match="no preset 'huge'"):
        start_model(StartConfig(start="pretrained", preset="huge"))


# --- settings ---


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("steps", "-1"),
        ("batch_size", "0"),
        ("accumulate", "0"),
        ("captions", "0"),
        ("learning_rate", "0"),
        ("stem_rate", "-1"),
        ("final_rate", "2"),
        ("clip", "0"),
        ("average", "1"),
        ("crop_area", "0"),
        ("colour", "1.5"),
        ("checkpoint_every", "0"),
        ("threads", "0"),
        ("cache_px", "0"),
    ],
)
def test_settings_out_of_range_are_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_settings(TrainConfig, {key: text})


def test_each_setting_goes_where_it_belongs() -> None:
    common = (StartConfig, TrainConfig)
    start, loop = split_settings({"steps": "7", "name": "mine"}, common, {})
    assert (start.name, loop.steps) == ("mine", 7)
    with pytest.raises(ConfigError, match=r"no option 'stepz'.*did you mean 'steps'"):
        split_settings({"stepz": "7"}, common, {})
    with pytest.raises(ConfigError, match="option 'start' is of StartConfig and of the Config of"):
        split_settings({}, common, {"other": StartConfig})


def test_a_setting_of_two_methods_is_written_with_the_method() -> None:
    methods = {"first": ExampleConfig, "second": ExampleConfig}
    with pytest.raises(ConfigError, match=r"of first and second.*write first\.share=0\.5"):
        split_settings({"share": "0.5"}, (TrainConfig,), methods)
    _, one, other = split_settings({"second.share": "0.5"}, (TrainConfig,), methods)
    assert (one.share, other.share) == (0.25, 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleConfig:
    share: float = 0.25


def test_the_package_is_the_function_whatever_was_imported_first() -> None:
    import costream.train as package

    for run in (costream.train, package):
        with pytest.raises(ConfigError, match="no method 'nothing'"):
            run("nothing", "data", "out")
    program = (
        "import costream.train.config, costream\n"
        "from costream.errors import ConfigError\n"
        "try: costream.train('nothing', 'data', 'out')\n"
        "except ConfigError as error: assert 'no method' in str(error)\n"
        "else: raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
