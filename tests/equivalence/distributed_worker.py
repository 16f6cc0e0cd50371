"""One process of a distributed run, started by test_distributed.py through torchrun or alone.

distributed_worker.py gather OUT             what the gathering functions give, as JSON
distributed_worker.py run OUT MODEL DATA STOP TYPE   train with COTS and names, stop at a step

Either leaves OUT/threads-RANK.json, the threads before and after leaving the other processes.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from costream.data import DataSet, read_data
from costream.encoders.preprocess import tokenize
from costream.encoders.storage import load
from costream.methods import cots
from costream.objectives.gather import (
    gather_rows,
    gather_rows_with_gradient,
    mean_across,
    rank,
    world_size,
)
from costream.objectives.names import NamesObjective
from costream.parts import Base, Training
from costream.train.config import TrainConfig
from costream.train.loop import run, start_processes, stop_processes


class Stop(Exception):
    """Ends a run."""


def gather(out: Path) -> None:
    """Rows 2 * rank and 2 * rank + 1 of a table of four, through every function."""
    table = torch.arange(8, dtype=torch.float32).view(4, 2) + 1
    mine = table[2 * rank() : 2 * rank() + 2]
    kinds = (torch.float32, torch.int64, torch.bool, torch.uint8)
    found = {str(kind): gather_rows((mine > 3).to(kind)).tolist() for kind in kinds}
    leaf = mine.clone().requires_grad_()
    whole = gather_rows_with_gradient(leaf)
    # Every process uses all rows, each with a factor of its own; gradients come home summed.
    (whole.square().sum() * (rank() + 1)).backward()
    weight = torch.tensor([1.0, 0.5]) if rank() == 0 else torch.tensor([0.25, 0.0])
    values = torch.tensor([2.0, 4.0]) if rank() == 0 else torch.tensor([8.0, float("nan")])
    found |= {
        "size": world_size(),
        "whole": whole.tolist(),
        "gradient": leaf.grad.tolist() if leaf.grad is not None else None,
        "share": float(mean_across(values, weight)),
        "nothing": float(mean_across(values, torch.zeros(2))),
    }
    (out / f"{rank()}.json").write_text(json.dumps(found))


def compute_in_double() -> None:
    """Make everything float64, what towers and losses cast up from bfloat16 to float32 too."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def unequally_trusted(data: DataSet) -> DataSet:
    """Weights 0, 0.5 and 1, so that the processes' shares of a mean differ."""
    samples = enumerate(data.samples)
    return replace(data, samples=tuple(replace(sample, weight=n % 3 / 2) for n, sample in samples))


def train(out: Path, model_dir: Path, data: Path, stop: int) -> None:
    """A run with every loss, and names of things."""
    model = load(model_dir, device="cpu").to(torch.get_default_dtype())
    samples = unequally_trusted(read_data(data))
    config = TrainConfig(
        steps=6,
        batch_size=8,
        captions=2,
        learning_rate=1e-3,
        average=0.5,
        checkpoint_every=2,
        log_every=1,
        warmup_steps=1,
        precision="float32",
    )
    losses = cots.Config(
        queue_size=10,
        visual_tokenizer="kmeans",
        visual_codes=8,
        mask_words=0.4,
        online=1.0,
        in_batch="momentum",
        filter_k=2.0,
        filter_window=64,
        filter_warm_up=16,
    )
    terms = list(
        cots.parts(
            losses, Base(model=model, training=Training(data=samples, directory=out))
        ).objective
    )
    ids, mask = tokenize(
        model.tokenizer, ["a disc", "a box", "a cross"], model.config.text_preprocess
    )
    groups = torch.Generator().manual_seed(0)
    opinion = torch.rand(len(samples), 3, generator=groups).softmax(dim=1)
    names = NamesObjective(
        opinion, torch.from_numpy(ids)[None], torch.from_numpy(mask)[None], classes_a_step=2
    )
    terms.append((0.5, names))

    def progress(done: int, total: int, losses: Mapping[str, float]) -> None:
        if done == stop:
            raise Stop

    resume = (out / "checkpoints").exists()
    try:
        run(model, terms, samples, config, out, facts={}, resume=resume, progress=progress)
    except Stop:
        return


def threads() -> list[str]:
    """Names of this process's threads, those that Python does not know of too; Linux only."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def main() -> None:
    """Run one of both."""
    # A collection by chance would free what must not depend on chance.
    gc.disable()
    torch.set_num_threads(1)
    what, out, *more = sys.argv[1:]
    Path(out).mkdir(parents=True, exist_ok=True)
    started = start_processes()
    number = rank()
    try:
        if what == "gather":
            gather(Path(out))
        else:
            if more[3] == "float64":
                compute_in_double()
            train(Path(out), Path(more[0]), Path(more[1]), int(more[2]))
    finally:
        before = threads()
        if started:
            stop_processes()
        found = json.dumps({"before": before, "after": threads()})
        (Path(out) / f"threads-{number}.json").write_text(found)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
