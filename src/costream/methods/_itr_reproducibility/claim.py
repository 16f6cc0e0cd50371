"""Rows of the claim: each factor against the range of seeds, the rules, the ensemble, the guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import costream
from costream.data import DataSet, make_scenes
from costream.encoders.starting_weights import pretrained_mini
from costream.evaluate import ClaimOptions, ClaimTable, compare_seeds
from costream.evaluate.claims import ClaimRow
from costream.evaluate.run_log import RunLog
from costream.methods import itr_reproducibility as study
from costream.methods._itr_reproducibility.small import freeze
from costream.train.worlds import PHOTO_PX, short_model, tiny_models

if TYPE_CHECKING:
    from costream.encoders.dual import DualEncoder


def reproduce(options: ClaimOptions) -> list[ClaimTable]:
    """Run the grid.

    Args:
        options: With `flickr8k` below its data root on photographs, else on scenes, where nothing
            is pretrained.
    """
    folder = options.folder("flickr8k")
    config = study.Config(seeds=options.seeds)
    size = (2000, 1000)
    if options.fast:
        config = study.Config(seeds=options.seeds, pairs=64, checkpoints=2)
        size = (24, 24)
    model: DualEncoder
    if folder is None:
        train = make_scenes(size[0], seed=0, num_captions=2, detail="full")
        rest = make_scenes(size[1], seed=0, skip=size[0], num_captions=2, detail="full")
        model, start = tiny_models(train)(0), "random towers: pretrained words know nothing here"
    else:
        train, rest = (
            DataSet(name=f"{folder.name} {name}", samples=found.samples[:most])
            for name, most in zip(("train", "dev"), size, strict=True)
            for found in [costream.read_data(folder / f"{name}.jsonl")]
        )
        model = short_model(pretrained_mini(), 0)
        start = f"ImageNet's EfficientNet-Lite2 at {PHOTO_PX} pixels, words of MiniLM-L6"
    options.say(f"features of {len(train) + len(rest):,} pictures")
    half = len(rest) // 2
    frozen = freeze(model, train.samples, rest.samples[:half], rest.samples[half:])
    log = RunLog(None if options.out is None else options.out / "itr_reproducibility_runs.jsonl")
    facts = {
        "train data": f"{train.name}, {len(train):,} pictures, hash {train.hash[:16]}",
        "measured data": f"{rest.name}, hash {rest.hash[:16]}: the first {half:,} pictures pick "
        f"checkpoints, the other {len(rest) - half:,} are reported",
        "features": start,
        "training": f"{config.pairs:,} pairs a run, {config.checkpoints} checkpoints",
    }

    def kept(settings: dict[str, Any], make: Callable[[], dict[str, float]]) -> dict[str, float]:
        settings = settings | facts
        known = log.get(settings)
        if known is None:
            options.say(f"seed {settings['run']}")
            known = make()
            log.add(settings, known)
        return known

    values = study.run_grid(frozen, config, kept=kept)
    seeds = {"seeds": ", ".join(map(str, range(config.seeds)))}
    title = "What moves rSum of image-text retrieval besides architectures"
    return [ClaimTable(title=title, rows=tuple(rows_of(values)), settings=facts | seeds)]


def rows_of(values: dict[str, list[float]]) -> list[ClaimRow]:
    """The comparisons; factors must move more than the range of the base's seeds."""
    base = values["base"]
    reach = max(base) - min(base)

    def row(
        name: str, method: Sequence[float], baseline: Sequence[float], threshold: float = 0.0
    ) -> ClaimRow:
        return compare_seeds(f"rSum: {name}", method, baseline, threshold=threshold)

    def moved(one: tuple[str, str], other: tuple[str, str]) -> ClaimRow:
        # What is claimed is that a factor matters, not which way: a two-sided interval is as good
        # from either end, so the better value stands first.
        better, worse = sorted((one, other), key=lambda each: -sum(values[each[1]]))
        name = f"{better[0]} over {worse[0]}, by the range of seeds"
        return row(name, values[better[1]], values[worse[1]], reach)

    return [
        moved(("pretrained words", "base"), ("random words", "words=random")),
        moved(("hardest negative", "base"), ("sum of hinges", "loss=sum")),
        moved(("hardest negative", "base"), ("InfoNCE", "loss=info_nce")),
        moved(("batches of 128", "base"), ("batches of 32 for as many pairs", "batch=32")),
        row(
            "best checkpoint on what is reported over best on dev",
            values["checkpoint=best reported"],
            base,
        ),
        row("best checkpoint on dev over the last", base, values["checkpoint=last"]),
        row("two models averaged over their mean", values["ensemble of 2"], values["mean of 2"]),
        row("guard, not to be shown: the same with other seeds", values["twin"], base),
    ]
