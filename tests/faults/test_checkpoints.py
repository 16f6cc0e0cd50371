"""A run that is stopped anywhere goes on as if it had never stopped, or says why it cannot."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import costream
from costream.data import DataSet, make_scenes
from costream.encoders.dual import DualEncoder
from costream.encoders.storage import save_model
from costream.errors import ConfigError, DataError, NumericalError, WeightsError
from costream.methods import cots
from costream.parts import Base, Training
from costream.records import Sample
from costream.train.checkpoint import newest_checkpoint
from costream.train.config import TrainConfig
from costream.train.log import read_metrics
from costream.train.loop import run
from tiny_world import tiny_config, tiny_model, write_scenes

SCENES = make_scenes(12, num_captions=2, size_px=24)
# Everything that has a state: queue, filter, momentum towers, averaged weights, dropout.
LOOP = TrainConfig(
    steps=8,
    batch_size=6,
    captions=2,
    learning_rate=1e-2,
    warmup_steps=2,
    average=0.5,
    checkpoint_every=2,
    log_every=1,
)
LOSSES = cots.Config(
    queue_size=10,
    visual_tokenizer="kmeans",
    visual_codes=8,
    mask_words=0.4,
    filter_k=1.0,
    filter_window=16,
    filter_warm_up=8,
    learn_temperature=True,
)


class Stop(Exception):
    """Ends a run between two checkpoints."""


Progress = Callable[[int, int, Mapping[str, float]], None]


def stop_at(step: int) -> Progress:
    def progress(done: int, total: int, losses: Mapping[str, float]) -> None:
        if done == step:
            raise Stop

    return progress


def go(
    out: Path,
    loop: TrainConfig = LOOP,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    data: DataSet = SCENES,
    width: int = 16,
    facts: Mapping[str, Any] | None = None,
    **options: Any,
) -> DualEncoder:
    """A run in `out`; a resumed one starts from other random weights, which must not matter."""
    model = tiny_model(tiny_config(dropout=0.2, width=width), seed=7 if resume else 0)
    base = Base(model=model, seed=loop.seed, training=Training(data=data, directory=out))
    terms = cots.parts(LOSSES, base).objective
    known = facts or {"data": "scenes"}
    run(model, terms, data, loop, out, facts=known, resume=resume, progress=progress, **options)
    return model


def final(out: Path, steps: int = LOOP.steps) -> bytes:
    return (out / "checkpoints" / f"step-{steps:08d}" / "state.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    go(out)
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2 and 4, stopped in step 5. Copy it before use."""
    out = tmp_path_factory.mktemp("runs") / "part"
    with pytest.raises(Stop):
        go(out, progress=stop_at(5))
    return out


@pytest.fixture
def part(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "part"))


def losses_of(out: Path) -> list[dict[str, Any]]:
    lines = read_metrics(out / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


# --- going on ---


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    uninterrupted: Path, part: Path
) -> None:
    """Weights, moments, queue, filter, averages, and the random state: the next dropout too."""
    state = load_file(part / "checkpoints" / "step-00000004" / "state.safetensors")
    assert state["states/0.queue.filled"] == 10
    assert state["states/0.filter.seen"] == 48
    assert {"random/cpu", "average/updates", "objectives/0.temperature.log"} <= set(state)
    go(part, resume=True)
    assert final(part) == final(uninterrupted)
    assert losses_of(part) == losses_of(uninterrupted)


def test_a_run_that_is_stopped_before_its_first_checkpoint_starts_again(
    uninterrupted: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        go(tmp_path, progress=stop_at(1))
    model = tiny_model(tiny_config(dropout=0.2))
    base = Base(model=model, seed=0, training=Training(data=SCENES, directory=tmp_path))
    terms = cots.parts(LOSSES, base).objective
    run(model, terms, SCENES, LOOP, tmp_path, facts={"data": "scenes"}, resume=True)
    assert final(tmp_path) == final(uninterrupted)


def test_resuming_a_finished_run_changes_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(uninterrupted, tmp_path / "copy"))
    once = go(out, resume=True)
    again = go(out, resume=True)
    assert final(out) == final(uninterrupted)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters()))  # noqa: B905


def test_what_is_done_at_a_checkpoint_does_not_change_the_run(
    uninterrupted: Path, tmp_path: Path
) -> None:
    """Saving the best model draws random weights; measuring draws whatever it likes."""
    seen = []

    def on_checkpoint(step: int, model: DualEncoder) -> None:
        torch.randn(1000)
        save_model(model, tmp_path / "best")
        state = load_file(newest(tmp_path) / "state.safetensors")
        weight = state["average/values.0"]
        assert torch.equal(next(p for p in model.parameters() if p.requires_grad), weight)
        seen.append(step)

    go(tmp_path, on_checkpoint=on_checkpoint)
    assert seen == [2, 4, 6, 8]
    assert final(tmp_path) == final(uninterrupted)


def newest(out: Path) -> Path:
    checkpoint, damaged = newest_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    assert damaged == []
    return checkpoint


def test_only_the_newest_two_are_kept_and_nothing_half(uninterrupted: Path) -> None:
    names = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000008"]


def test_settings_without_effect_may_change(uninterrupted: Path, part: Path) -> None:
    go(part, replace(LOOP, log_every=3, threads=1, checkpoint_every=4), resume=True)
    assert final(part) == final(uninterrupted)


def test_the_precision_of_a_run_stays(part: Path) -> None:
    """Whatever this machine would measure now."""
    path = part / "checkpoints" / "step-00000004" / "state.json"
    description = json.loads(path.read_text())
    other = {"bfloat16": "float32", "float32": "bfloat16"}[description["precision"]]
    path.write_text(json.dumps({**description, "precision": other}))
    with pytest.raises(WeightsError, match=f"a run in {other}, precision is"):
        go(part, replace(LOOP, precision=description["precision"]), resume=True)
    go(part, resume=True)
    assert json.loads((newest(part) / "state.json").read_text())["precision"] == other


# --- killed ---


def program(out: Path, model: Path, data: Path, *more: str) -> list[str]:
    settings = {
        "start": str(model),
        "steps": "80",
        "batch_size": "6",
        "checkpoint_every": "5",
        "queue_size": "10",
        "visual_tokenizer": "kmeans",
        "visual_codes": "8",
        "average": "0.9",
    }
    words = [sys.executable, "-m", "costream", "train", "cots", "--data", str(data)]
    words += ["--out", str(out), *more]
    return words + [w for key, value in settings.items() for w in ("--set", f"{key}={value}")]


def kill_after(words: list[str], marker: Path) -> None:
    """Start a process and kill it as soon as `marker` exists."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 300
        while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        _, complaint = process.communicate()
    assert process.returncode == -signal.SIGKILL, complaint.decode()


def test_a_run_killed_twice_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "scenes", 12)
    start = save_model(tiny_model(tiny_config(dropout=0.2)), tmp_path / "start")
    done = tmp_path / "whole"
    subprocess.run(program(done, start, data), check=True, capture_output=True, timeout=600)

    out = tmp_path / "killed"
    kill_after(program(out, start, data), out / "checkpoints" / "step-00000010")
    kill_after(program(out, start, data, "--resume"), out / "checkpoints" / "step-00000040")
    words = program(out, start, data, "--resume")
    subprocess.run(words, check=True, capture_output=True, timeout=600)
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (done / weights).read_bytes()
    assert final(out, 80) == final(done, 80)


# --- damaged ---


def truncate(checkpoint: Path) -> None:
    path = checkpoint / "state.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(checkpoint: Path) -> None:
    path = checkpoint / "state.safetensors"
    payload = bytearray(path.read_bytes())
    payload[len(payload) // 2] ^= 1
    path.write_bytes(payload)


def empty(checkpoint: Path) -> None:
    (checkpoint / "state.safetensors").write_bytes(b"")


def without_tensors(checkpoint: Path) -> None:
    (checkpoint / "state.safetensors").unlink()


def without_facts(checkpoint: Path) -> None:
    (checkpoint / "state.json").unlink()


def half_facts(checkpoint: Path) -> None:
    path = checkpoint / "state.json"
    path.write_text(path.read_text()[:-20])


def other_facts(checkpoint: Path) -> None:
    (checkpoint / "state.json").write_text("[]")


def no_facts(checkpoint: Path) -> None:
    (checkpoint / "state.json").write_text("{}")


DAMAGES = [
    truncate,
    flip_a_bit,
    empty,
    without_tensors,
    without_facts,
    half_facts,
    other_facts,
    no_facts,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over(
    damage: Callable[[Path], None], uninterrupted: Path, part: Path
) -> None:
    damage(part / "checkpoints" / "step-00000004")
    go(part, resume=True)
    assert final(part) == final(uninterrupted)
    assert "passed over: step-00000004" in (part / "warnings.txt").read_text()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again(part: Path) -> None:
    for checkpoint in (part / "checkpoints").iterdir():
        truncate(checkpoint)
    with pytest.raises(WeightsError, match=r"no checkpoint in .* is intact: step-00000004.*step-"):
        go(part, resume=True)


def test_half_a_checkpoint_is_none(uninterrupted: Path, part: Path) -> None:
    """What a kill while writing leaves."""
    working = part / "checkpoints" / ".step-00000006.part"
    working.mkdir()
    (working / "state.safetensors").write_bytes(b"half")
    go(part, resume=True)
    assert final(part) == final(uninterrupted)
    assert not working.exists()


# --- of another run ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loop": replace(LOOP, learning_rate=0.5)}, "config.learning_rate: was 0.01, now 0.5"),
        ({"loop": replace(LOOP, steps=9, seed=1)}, "config.steps: was 8, now 9; config.seed"),
        ({"facts": {"data": "others"}}, "data: was 'scenes', now 'others'"),
        ({"width": 32}, "does not fit"),
        ({"loop": replace(LOOP, average=0.0)}, "config.average: was 0.5, now 0.0"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    changes: dict[str, Any], message: str, part: Path
) -> None:
    with pytest.raises(WeightsError, match=message):
        go(part, **changes, resume=True)
    assert [p.name for p in sorted((part / "checkpoints").glob("step-*"))] == [
        "step-00000002",
        "step-00000004",
    ]


def test_a_refused_checkpoint_changes_nothing(part: Path) -> None:
    """Shapes are compared before the first weight is put back."""
    from costream.train.checkpoint import Running, read_checkpoint
    from costream.train.optim import make_optimiser

    model = tiny_model(tiny_config(width=32))
    optimiser = make_optimiser(model, torch.nn.ModuleList(), LOOP)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    checkpoint = part / "checkpoints" / "step-00000004"
    with pytest.raises(WeightsError, match="does not fit"):
        read_checkpoint(checkpoint, Running(modules={"model": model}, optimiser=optimiser), {})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_a_checkpoint_of_another_format_is_refused(part: Path) -> None:
    path = part / "checkpoints" / "step-00000004" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(WeightsError, match="has format 99, expected 1"):
        go(part, resume=True)


# --- not finite ---


def weights_of(model: DualEncoder) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


@pytest.mark.parametrize("where", ["online", "momentum"])
def test_a_loss_that_is_not_finite_stops_before_the_update(where: str, tmp_path: Path) -> None:
    """Step 3 is broken: the message names its samples, the weights are those of step 2."""
    model = tiny_model(tiny_config(dropout=0.2))
    base = Base(model=model, seed=0, training=Training(data=SCENES, directory=tmp_path))
    ((weight, objective),) = cots.parts(LOSSES, base).objective
    kept: list[torch.Tensor] = []
    twins: list[Any] = []
    make = objective.init_state

    def remember(model: DualEncoder) -> torch.nn.Module:
        twins.append(make(model))
        return twins[0]

    objective.init_state = remember  # type: ignore[method-assign] # to reach the state

    def progress(done: int, total: int, losses: Mapping[str, float]) -> None:
        if done == 3:
            broken = model if where == "online" else twins[0].momentum
            broken.text_projection.weight.data[0, 0] = float("nan")
            kept.extend(weights_of(model))

    with pytest.raises(NumericalError) as caught:
        run(model, [(weight, objective)], SCENES, LOOP, tmp_path, facts={}, progress=progress)
    seen = SCENES.samples
    from costream.train.loader import draws_of_step

    names = [seen[draw.sample].id for draw in draws_of_step(3, len(seen), 6, 0)]
    message = str(caught.value)
    assert "step 3" in message
    assert "the weights were not changed" in message
    assert all(name in message for name in names)
    after = weights_of(model)
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(kept, after, strict=True))
    assert newest(tmp_path).name == "step-00000002"
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    from costream.objectives import Losses

    class Rooted(torch.nn.Module):
        """sqrt at 0: a finite loss with an infinite slope."""

        def init_state(self, model: object) -> torch.nn.Module:
            return torch.nn.Module()

        def loss(self, model: Any, batch: object, features: Any, state: object) -> Losses:
            total = (features["text"].pooled * 0).sum().abs().sqrt()
            return Losses(total=total, parts={})

        def after_step(self, model: object, state: object) -> None:
            """Nothing."""

    model = tiny_model()
    with pytest.raises(NumericalError, match=r"gradient_norm.*step 0.*scene-"):
        run(model, [(1.0, Rooted())], SCENES, LOOP, tmp_path, facts={})


# --- disk full ---


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing past `size` bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_older_checkpoint_whole(uninterrupted: Path, part: Path) -> None:
    older = final(part, 4)
    with largest_file(20_000), pytest.raises(WeightsError, match="cannot write the checkpoint"):
        go(part, resume=True)
    names = sorted(path.name for path in (part / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004"]
    assert final(part, 4) == older
    go(part, resume=True)
    assert final(part) == final(uninterrupted)


# --- the whole verb ---

FEW = {
    "steps": "2",
    "batch_size": "4",
    "queue_size": "8",
    "mvm": "0",
    "mlm": "0",
    "checkpoint_every": "1",
}


@pytest.fixture
def start(tmp_path: Path) -> dict[str, str]:
    return FEW | {"start": str(save_model(tiny_model(), tmp_path / "start"))}


def test_a_directory_with_a_run_is_not_trained_over(tmp_path: Path, start: dict[str, str]) -> None:
    out = tmp_path / "run"
    model = costream.train("cots", SCENES, out, start)
    assert costream.load(model).encode_texts(["a"]).shape == (1, 8)
    assert {"run.json", "metrics.jsonl", "model", "checkpoints"} <= {p.name for p in out.iterdir()}
    with pytest.raises(ConfigError, match="holds a run already"):
        costream.train("cots", SCENES, out, start)
    note = (out / "run.json").read_text()
    with pytest.raises(WeightsError, match=r"config.steps: was 2, now 3"):
        costream.train("cots", SCENES, out, start | {"steps": "3"}, resume=True)
    with pytest.raises(WeightsError, match=r"own.kl: was 1.0, now 0.5"):
        costream.train("cots", SCENES, out, start | {"kl": "0.5"}, resume=True)
    assert (out / "run.json").read_text() == note


def test_broken_pictures_are_listed_and_training_goes_on(
    tmp_path: Path, start: dict[str, str]
) -> None:
    broken = Sample(id="bad", group="bad", slots={"image": b"junk", "text": ("a red disc",)})
    data = DataSet(name="some", samples=(broken, *SCENES.samples))
    costream.train("cots", data, tmp_path / "run", start | {"steps": "4", "mvm": "1"} | KMEANS)
    warnings = (tmp_path / "run" / "warnings.txt").read_text()
    assert warnings.count("picture left out") == 1
    with pytest.raises(DataError, match="2 of 14"):
        twice = DataSet(name="some", samples=(replace(broken, id="b2"), *data.samples))
        costream.train("cots", twice, tmp_path / "other", start | {"steps": "9"})


KMEANS = {"visual_tokenizer": "kmeans", "visual_codes": "8"}
