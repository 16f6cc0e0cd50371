"""From scenes to tables: all runs of all seeds, and what is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from costream.data import DataSet
from costream.encoders.device import keep_freed_memory
from costream.encoders.dual import DualEncoder
from costream.evaluate import ClaimOptions, ClaimRow, ClaimTable, compare_seeds
from costream.evaluate.run_log import RunLog
from costream.methods._long_clip.runs import KEEP, OLD, WAYS, tune
from costream.methods._long_clip.world import OLD_CONTEXT, crowded_scenes, plain_scenes
from costream.methods.long_clip import LongClipObjective
from costream.train.config import TrainConfig
from costream.train.short import cache_pairs, train_short
from costream.train.worlds import first_samples, tiny_clips

Values = Mapping[str, float]

FIRST = TrainConfig(
    steps=400, batch_size=64, learning_rate=1e-3, warmup_steps=50, weight_decay=0.05
)
SECOND = replace(FIRST, steps=250, learning_rate=5e-4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Sizes of the experiment.

    Attributes:
        train: Scenes of each kind that are trained on.
        dev: Scenes of each kind that are measured on.
        first: Training of the old model.
        second: Fine-tuning; the same for every way.
        depth: Layers of each tower.
    """

    train: int = 4000
    dev: int = 400
    first: TrainConfig = FIRST
    second: TrainConfig = SECOND
    depth: int = 2


FAST = Scale(
    train=64,
    dev=16,
    first=replace(FIRST, steps=2, batch_size=8),
    second=replace(FIRST, steps=2, batch_size=8),
    depth=1,
)


def reproduce(options: ClaimOptions) -> list[ClaimTable]:
    """Make every run that is not in the log, and compare.

    Args:
        options: For seeds, size, log and progress.

    Returns:
        One table.
    """
    keep_freed_memory()
    scale = FAST if options.fast else Scale()
    log = RunLog(None if options.out is None else options.out / "long_clip_runs.jsonl")
    plain = plain_scenes(scale.train + scale.dev, seed=0)
    crowded = crowded_scenes(scale.train + scale.dev, seed=0)
    every = DataSet(name="scenes", samples=plain.samples + crowded.samples)
    make = tiny_clips(every, context=OLD_CONTEXT, depth=scale.depth)
    train = [first_samples(data, scale.train) for data in (plain, crowded)]
    dev = [
        DataSet(name=f"{data.name}, held out", samples=data.samples[scale.train :])
        for data in (plain, crowded)
    ]
    values: dict[str, list[Values]] = {name: [] for name in WAYS}
    for seed in range(options.seeds):
        old: DualEncoder | None = None
        for name, config in WAYS.items():
            key = {"scale": asdict(scale), "way": asdict(config), "seed": seed, "data": every.hash}
            known = log.get(key)
            if known is None:
                if old is None:
                    old = make(seed)
                    _train_old(old, train[0], replace(scale.first, seed=seed))
                model = make(seed)
                model.load_state_dict(old.state_dict())
                known = tune(model, config, train[1], replace(scale.second, seed=seed), dev)
                log.add(key, known)
            values[name].append(known)
            shown = ", ".join(f"{what} {value:.1f}" for what, value in known.items())
            options.say(f"seed {seed}, {name}: {shown}")
    return [_table(values, scale, options, every.hash)]


def _train_old(model: DualEncoder, plain: DataSet, loop: TrainConfig) -> None:
    train_short(model, LongClipObjective(OLD), cache_pairs(model, plain), loop)


def _table(
    values: Mapping[str, Sequence[Values]], scale: Scale, options: ClaimOptions, data_hash: str
) -> ClaimTable:
    def row(name: str, what: str, against: str, threshold: float) -> ClaimRow:
        return compare_seeds(
            name,
            [each[what] for each in values["long_clip"]],
            [each[what] for each in values[against]],
            threshold=threshold,
            unit="%",
        )

    rows = (
        row("long texts, hit@1: against texts cut at the old context", "long", "cut", 5.0),
        row("old captions, hit@1: against interpolation and long texts only", "short", "direct", 2),
        row(
            "old captions, hit@1, before fine-tuning: kept rows against interpolation",
            "untuned short",
            "interpolated",
            2.0,
        ),
        row("old captions, hit@1: kept rows against interpolation", "short", "interpolated", 1.0),
        row("old captions, hit@1: principal part against the whole vector", "short", "mixed", 1.0),
        row("long texts, hit@1: principal part against the whole vector", "long", "mixed", 1.0),
        row("old captions, hit@1: with the short loss against without", "short", "long only", 1.0),
        row("old captions, cosine to the old vector: against interpolation", "kept", "direct", 2.0),
    )
    return ClaimTable(
        title="Kept rows and the principal part: a model reads long texts and keeps the short ones",
        rows=rows,
        settings={
            "data": f"scenes made for this, {scale.train} of each kind trained on, {scale.dev} "
            f"measured on, hash {data_hash[:16]}; crowded ones in families of four with the same "
            "first two sentences",
            "old model": f"CLIP's kind, {scale.depth} layers a tower, context {OLD_CONTEXT}, "
            f"{scale.first.steps} steps on one-sentence captions of 9 to 13 tokens",
            "fine-tuning": f"{scale.second.steps} steps of {scale.second.batch_size} pictures, "
            f"rate {scale.second.learning_rate:g}, every way the same; {KEEP} rows kept, the rest "
            "four times longer",
            "seeds": str(options.seeds),
            "measured": "hit@1, mean of both directions, on held-out scenes; nothing selected",
            "larger scale": "no real data set at hand has long texts with like beginnings; the "
            "paper's numbers need its 1.2 million long captions",
        },
    )
