"""One process and two that share the batch are the same run (gloo, real processes)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from costream.encoders.storage import save_model
from costream.train.log import read_metrics
from tiny_world import tiny_config, tiny_model, write_scenes

WORKER = Path(__file__).with_name("distributed_worker.py")


def start(processes: int, *words: str | Path, script: tuple[str, ...] = (str(WORKER),)) -> None:
    """Run a script alone, or through torchrun, which finds itself a free port."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, *script, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a model without dropout, whose draws differ between processes."""
    folder = tmp_path_factory.mktemp("world")
    write_scenes(folder / "scenes", 20)
    save_model(tiny_model(), folder / "model")
    save_model(tiny_model(tiny_config(dropout=0.2)), folder / "dropout")
    return folder


def train(
    world: Path, out: Path, processes: int, *, model: str = "model", stop: int = 0, dtype: str
) -> None:
    data = world / "scenes" / "train.jsonl"
    start(processes, "run", out, world / model, data, str(stop), dtype)


@pytest.fixture(scope="module")
def in_double(world: Path) -> Path:
    """A folder with a run in one process, `1`, and the same run in two, `2`, both in float64."""
    for processes in (1, 2):
        train(world, world / str(processes), processes, dtype="float64")
    return world


def final_state(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / "step-00000006" / "state.safetensors")


def test_rows_are_gathered_in_order_and_gradients_come_home(tmp_path: Path) -> None:
    start(2, "gather", tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    table = torch.arange(8, dtype=torch.float32).view(4, 2) + 1
    for number, each in enumerate(found):
        assert each["size"] == 2
        assert each["whole"] == table.tolist()
        for kind in (torch.float32, torch.int64, torch.bool, torch.uint8):
            assert each[str(kind)] == (table > 3).to(kind).tolist()
        # d/dx of (1 + 2) * x^2, from both processes
        assert each["gradient"] == (6 * table[2 * number : 2 * number + 2]).tolist()
        assert each["nothing"] == 0.0
    # The average of the shares is the mean over all rows; the row of weight 0 is not a number.
    mean = (2.0 * 1.0 + 4.0 * 0.5 + 8.0 * 0.25) / 1.75
    assert (found[0]["share"] + found[1]["share"]) / 2 == pytest.approx(mean)


def test_one_and_two_processes_train_the_same_model(in_double: Path) -> None:
    """Losses of every step, and every part of the checkpoint but the random states.

    In float64, for Adam's first steps have the size of the learning rate however small the gradient
    is: where it is 0 but for rounding, as for the bias of an attention's keys, float32 weights
    drift apart by a tenth of that in steps that are right.
    """
    logs = [read_metrics(in_double / n / "metrics.jsonl") for n in ("1", "2")]
    assert [len(log) for log in logs] == [6, 6]
    for one, two in zip(*logs, strict=True):
        assert set(one) == set(two)
        for name in set(one) - {"seconds"}:
            assert two[name] == pytest.approx(one[name], rel=1e-9), name
    one, two = (final_state(in_double / n) for n in ("1", "2"))
    assert one["model/text_projection.weight"].dtype == torch.float64
    assert set(two) - set(one) == {"random/cpu/1"}
    for name, value in one.items():
        if name.startswith("random/"):
            continue
        assert two[name].shape == value.shape, name
        assert torch.allclose(two[name].double(), value.double(), rtol=0, atol=1e-9), name


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in /proc")
def test_no_thread_of_the_group_outlives_it(in_double: Path) -> None:
    """One that does may abort the process while the interpreter shuts down."""
    for number in (0, 1):
        names = json.loads((in_double / "2" / f"threads-{number}.json").read_text())
        assert any("gloo" in name for name in names["before"])
        assert not any("gloo" in name for name in names["after"])


def test_two_processes_resume_bit_for_bit(world: Path, tmp_path: Path) -> None:
    """Each with its own random state: their dropout goes on where each of them was."""
    train(world, tmp_path / "whole", 2, model="dropout", dtype="float32")
    train(world, tmp_path / "part", 2, model="dropout", stop=3, dtype="float32")
    assert not (tmp_path / "part" / "checkpoints" / "step-00000006").exists()
    train(world, tmp_path / "part", 2, model="dropout", dtype="float32")
    whole, part = final_state(tmp_path / "whole"), final_state(tmp_path / "part")
    assert whole.keys() == part.keys()
    assert not torch.equal(whole["random/cpu"], whole["random/cpu/1"])
    assert all(torch.equal(value, part[name]) for name, value in whole.items())


def test_the_program_trains_in_two_processes(world: Path, tmp_path: Path) -> None:
    """`torchrun -m costream train`: both fit one visual tokenizer, one writes the model."""
    out = tmp_path / "run"
    settings = {
        "start": world / "model",
        "steps": 3,
        "batch_size": 8,
        "queue_size": 8,
        "visual_tokenizer": "kmeans",
        "visual_codes": 8,
    }
    words = [w for key, value in settings.items() for w in ("--set", f"{key}={value}")]
    data = world / "scenes" / "train.jsonl"
    start(2, "train", "cots", "--data", data, "--out", out, *words, script=("-m", "costream"))
    assert (out / "model" / "model.safetensors").is_file()
    assert "processes: 2" in (out / "model" / "card.md").read_text()
    assert len(read_metrics(out / "metrics.jsonl")) == 1
