"""From data to tables: the two sizes of the experiment, and the one function that runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from costream.evaluate import ClaimOptions, ClaimTable
from costream.evaluate.run_log import RunLog
from costream.methods import cots
from costream.methods._cots.all_runs import Experiment, all_results
from costream.methods._cots.report import write_report
from costream.methods._cots.speed import measure_speed, speed_table
from costream.methods._cots.tables import filter_table, loss_table, purpose_table
from costream.methods._cots.world import Say, Scale, World, make_world
from costream.train import worlds
from costream.train.config import TrainConfig

PHOTOGRAPHS = Scale(
    loop=TrainConfig(
        steps=240,
        batch_size=64,
        learning_rate=1.5e-3,
        stem_rate=0.0,
        text_rate=0.5,
        embedding_rate=0.0,
        warmup_steps=24,
        weight_decay=0.05,
    ),
    method=cots.Config(
        online=1.0,
        in_batch="momentum",
        queue_size=1000,
        momentum=0.98,
        visual_codes=256,
        filter_window=2048,
        filter_warm_up=2048,
    ),
)
"""Photographs with captions: a frozen ImageNet stem, MiniLM with its first layers frozen."""

SCENES = Scale(
    loop=TrainConfig(
        steps=400, batch_size=64, learning_rate=1e-3, warmup_steps=40, weight_decay=0.05
    ),
    method=cots.Config(
        in_batch="momentum",
        queue_size=1000,
        momentum=0.98,
        temperature=0.07,
        visual_codes=64,
        filter_window=2048,
        filter_warm_up=2048,
    ),
    most_train=4000,
    most_dev=500,
    longest_s=20.0,
)
"""Procedural scenes, small towers from random weights: nothing needed, and always the same."""


def reproduce(
    data: Path | None, out: Path | None, say: Say, *, scale: Scale | None = None
) -> list[ClaimTable]:
    """Run the experiment, or finish it where it stopped.

    Args:
        data: A folder with `train.jsonl` and `dev.jsonl`, or one of the two; procedural scenes when
            None.
        out: Folder for `cots.json`, `cots.md`, two plots and `cots_runs.jsonl`, from which a
            stopped experiment goes on; nothing is written when None.
        say: Told about progress.
        scale: Other sizes than the usual ones.

    Returns:
        Tables about the interactions, what they do, the filter, and the speed.

    Raises:
        DataError: When a data set is absent or broken.
        WeightsError: When the starting weights for photographs are not installed.
    """
    if data is None:
        scale = SCENES if scale is None else scale
        world = scenes(scale, say)
    else:
        scale = PHOTOGRAPHS if scale is None else scale
        world = photographs(data, scale, say)
    log = RunLog(None if out is None else out / "cots_runs.jsonl")
    if len(log):
        say(f"found {len(log)} runs that were made before")
    experiment = Experiment(world, scale, log, say)
    results = all_results(experiment)
    speed = measure_speed(experiment)
    tables = [
        loss_table(results, run_settings(world, scale)),
        purpose_table(results),
        filter_table(results, scale),
        speed_table(speed, scale),
    ]
    if out is not None:
        write_report(out, tables, results, speed, scale, say)
    return tables


def scale_of(options: ClaimOptions, data: Path | None) -> Scale:
    """The sizes of the experiment; much smaller ones where it is only to be tried."""
    scale = SCENES if data is None else PHOTOGRAPHS
    scale = replace(scale, seeds=tuple(range(options.seeds)))
    if not options.fast:
        return scale
    return replace(
        scale,
        loop=replace(scale.loop, steps=6, batch_size=16, warmup_steps=2),
        method=replace(
            scale.method, queue_size=32, filter_window=40, filter_warm_up=20, visual_codes=8
        ),
        shares=(0.0, 0.4),
        most_train=48,
        most_dev=16,
        cross_steps=2,
        cross_pictures=8,
        counts=(4, 8),
        longest_s=1.0,
    )


def run_settings(world: World, scale: Scale) -> dict[str, str]:
    """What fixes the runs, for people."""
    loop = scale.loop
    return {
        **world.facts,
        "steps": f"{loop.steps} of {loop.batch_size} pairs",
        "seeds": ", ".join(map(str, scale.seeds)),
        "torch": torch.__version__,
    }


def photographs(source: Path, scale: Scale, say: Say) -> World:
    """Photographs on the frozen stem.

    Raises:
        DataError: When there are no manifests for training and for measuring.
        WeightsError: When the starting weights are not installed.
    """
    folder = source if source.is_dir() else source.parent
    shared = worlds.photographs(
        folder, most_train=scale.most_train, most_dev=scale.most_dev, say=say
    )
    return make_world(shared, scale)


def scenes(scale: Scale, say: Say) -> World:
    """Procedural scenes, each caption naming both objects and their places."""
    return make_world(
        worlds.scenes(num_train=scale.most_train, num_dev=scale.most_dev, say=say), scale
    )
