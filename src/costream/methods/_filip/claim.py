"""One vector a picture against late interaction: same towers, steps and batches, then the tables.

Shape letters: N pictures and as many texts, P patches, T tokens, D dimensions.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from costream.data.scenes import COLOURS, SceneObject
from costream.encoders.device import autocast
from costream.encoders.dual import DualEncoder
from costream.encoders.preprocess import tokenize
from costream.evaluate import ClaimOptions, ClaimTable, compare_seeds
from costream.evaluate.claims import ClaimRow
from costream.evaluate.run_log import RunLog
from costream.methods.filip import Config, FilipObjective, late_scores
from costream.objectives import Losses, Objective
from costream.records import Batch, Features, Sample
from costream.train import worlds
from costream.train.config import TrainConfig
from costream.train.short import CachedPairs, first_captions, train_short

Arm = Literal["one vector", "late interaction", "late interaction, same numbers"]
Runs = Mapping[str, Sequence[Mapping[str, float]]]

ARMS: tuple[Arm, ...] = ("one vector", "late interaction", "late interaction, same numbers")
_SHORTLIST = 10
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of the experiment.

    Attributes:
        loop: Steps, batch size and rates of every run; the seed is set by each.
        most_train: Training pictures.
        most_dev: Pictures measured on, each with its first caption.
    """

    loop: TrainConfig
    most_train: int
    most_dev: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tokens:
    """Unit vectors of a data set's patches and of its captions' tokens, or of the whole.

    Attributes:
        images: (N, P, D).
        texts: (N, T, D).
        mask: bool (N, T).
    """

    images: Tensor
    texts: Tensor
    mask: Tensor

    def scores(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores of pictures for texts (N, N), a text a row, and of texts for pictures."""
        t2i = late_scores(self.texts, self.images, query_mask=self.mask)
        i2t = late_scores(self.images, self.texts, item_mask=self.mask)
        return t2i.numpy(), i2t.numpy()


class OneVector(nn.Module, Objective):
    """The same loss with one vector a picture and one a text: contrast of cosines."""

    def __init__(self) -> None:
        super().__init__()
        self.contrast = FilipObjective(Config())

    def after_step(self, model: DualEncoder, state: nn.Module) -> None:
        """Keep the temperature in its range."""
        self.contrast.after_step(model, state)

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """Contrast of sets that have one vector each."""
        images = features["image"].pooled[:, None]
        texts = features["text"].pooled[:, None]
        return self.contrast.contrast(batch, images, texts, texts.new_ones(len(texts), 1).bool())


def reproduce(options: ClaimOptions) -> list[ClaimTable]:
    """Train all arms with every seed on photographs, where there are any, and on scenes.

    Args:
        options: With `flickr8k` below its data root there is a table on photographs.

    Returns:
        A table a world.
    """
    log = RunLog(None if options.out is None else options.out / "filip_runs.jsonl")
    folder = options.folder("flickr8k")
    tables = [] if folder is None else [_photographs(folder, options, log)]
    return [*tables, _scenes(options, log)]


def _sizes(options: ClaimOptions, *, steps: int, rate: float, text_rate: float) -> Sizes:
    steps = 2 if options.fast else steps
    return Sizes(
        loop=TrainConfig(
            steps=steps,
            batch_size=8 if options.fast else 48,
            learning_rate=rate,
            stem_rate=0.0,
            text_rate=text_rate,
            warmup_steps=max(steps // 10, 1),
            weight_decay=0.05,
        ),
        most_train=24 if options.fast else 3000,
        most_dev=12 if options.fast else 500,
    )


def _photographs(folder: Path, options: ClaimOptions, log: RunLog) -> ClaimTable:
    sizes = _sizes(options, steps=150, rate=1.5e-3, text_rate=0.5)
    world = worlds.photographs(
        folder, most_train=sizes.most_train, most_dev=sizes.most_dev, say=options.say
    )
    runs = _runs("photographs", world, sizes, options, log)
    title = "On photographs: late interaction against one vector (dev, first captions)"
    return ClaimTable(title=title, rows=_retrieval_rows(runs), settings=_settings(world, sizes))


def _scenes(options: ClaimOptions, log: RunLog) -> ClaimTable:
    sizes = _sizes(options, steps=400, rate=1e-3, text_rate=1.0)
    world = worlds.scenes(num_train=sizes.most_train, num_dev=sizes.most_dev, say=options.say)
    runs = _runs("scenes", world, sizes, options, log)
    rows = [*_retrieval_rows(runs)]
    for metric, name in (
        ("binding", "the caption beats the one with colours swapped"),
        ("localised", "the best patch of a colour's word is on the object"),
    ):
        rows.append(_row(f"{name}: late interaction over one vector", runs, metric, *ARMS[1::-1]))
    title = "On scenes of two objects: late interaction against one vector"
    return ClaimTable(title=title, rows=tuple(rows), settings=_settings(world, sizes))


def _retrieval_rows(runs: Runs) -> tuple[ClaimRow, ...]:
    one, late, same = ARMS
    rows = [
        _row(f"{way} hit@1: late interaction over one vector", runs, way, late, one)
        for way in ("text to image", "image to text")
    ]
    rows.append(
        _row(
            "text to image hit@1: late interaction with as many numbers a picture as one vector",
            runs,
            "text to image",
            same,
            one,
        )
    )
    shortlist = compare_seeds(
        f"text to image hit@1: only the {_SHORTLIST} best pictures of each token, against all "
        "(at most 1 point lost)",
        [run["shortlist"] for run in runs[late]],
        [run["text to image"] for run in runs[late]],
        threshold=-1.0,
        unit="%",
    )
    return (*rows, shortlist)


def _row(name: str, runs: Runs, metric: str, method: Arm, baseline: Arm) -> ClaimRow:
    values = ([run[metric] for run in runs[arm]] for arm in (method, baseline))
    return compare_seeds(name, *values, unit="%")


def _settings(world: worlds.World, sizes: Sizes) -> dict[str, str]:
    model = world.make(0)
    return {
        **world.facts,
        "steps": f"{sizes.loop.steps} of {sizes.loop.batch_size} pictures with one caption each, "
        "in every arm",
        "same numbers": f"{_same_numbers(model)} dimensions a patch, so that all patches are as "
        "large as one vector",
        "selection": "none: the last step is measured",
    }


def _runs(
    name: str, world: worlds.World, sizes: Sizes, options: ClaimOptions, log: RunLog
) -> dict[str, list[Mapping[str, float]]]:
    runs: dict[str, list[Mapping[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for arm in ARMS:
            key = {"world": name, "arm": arm, "seed": seed, "sizes": repr(sizes)}
            key["facts"] = repr(sorted(world.facts.items()))
            values = log.get(key)
            if values is None:
                values = _run(world, arm, replace(sizes.loop, seed=seed))
                log.add(key, values)
            runs[arm].append(values)
            options.say(f"{name}, {arm}, seed {seed}: {values['text to image']:.1f} % hit@1")
    return runs


def _run(world: worlds.World, arm: Arm, loop: TrainConfig) -> dict[str, float]:
    model = world.make(loop.seed)
    if arm == ARMS[2]:
        _narrow(model, loop.seed)
    objective = OneVector() if arm == ARMS[0] else FilipObjective(Config())
    _, seconds = train_short(model, objective, world.train, loop)
    few = first_captions(world.dev, len(world.dev.names))
    tokens, whole = encode_tokens(model, few)
    measured = whole if arm == ARMS[0] else tokens
    t2i, i2t = measured.scores()
    values = {
        "text to image": hit_at_1(t2i),
        "image to text": hit_at_1(i2t),
        "shortlist": shortlist_hits(measured, t2i),
        "seconds a step": statistics.median(seconds),
    }
    if all("objects" in sample.meta for sample in world.dev_data.samples):
        values |= binding(model, few, world.dev_data.samples, measured is whole)
        values["localised"] = localised(model, few, world.dev_data.samples, tokens)
    return values


def _same_numbers(model: DualEncoder) -> int:
    """So few dimensions a patch that all of a picture are as many numbers as one vector."""
    return max(1, model.config.dim // model.vision.grid**2)


def _narrow(model: DualEncoder, seed: int) -> None:
    dim = _same_numbers(model)
    torch.manual_seed(seed)
    model.image_projection = nn.Linear(model.vision.width, dim, bias=False)
    model.text_projection = nn.Linear(model.text.width, dim, bias=False)
    model.config = replace(model.config, dim=dim)


@torch.inference_mode()
def encode_tokens(model: DualEncoder, pairs: CachedPairs) -> tuple[Tokens, Tokens]:
    """Vectors of patches and tokens, and those of the whole, of pictures and their captions."""
    every: dict[str, list[Tensor]] = {"patches": [], "tokens": [], "image": [], "text": []}
    model.eval()
    with autocast(model.device):
        for rows in torch.split(torch.arange(len(pairs.names)), _AT_ONCE):
            batch = _batch(pairs, rows)
            frozen = None if pairs.frozen is None else pairs.frozen[rows].float()
            found = model.features(batch, frozen)
            every["patches"].append(model.project_tokens(found["image"]))
            every["tokens"].append(model.project_tokens(found["text"]))
            every["image"].append(found["image"].pooled[:, None])
            every["text"].append(found["text"].pooled[:, None])
    joined = {name: torch.cat(parts).float() for name, parts in every.items()}
    whole = torch.ones(len(pairs.names), 1, dtype=torch.bool)
    return (
        Tokens(images=joined["patches"], texts=joined["tokens"], mask=pairs.mask.bool()),
        Tokens(images=joined["image"], texts=joined["text"], mask=whole),
    )


def _batch(pairs: CachedPairs, rows: Tensor) -> Batch:
    slots = {
        "image": pairs.pixels[rows],
        "text.ids": pairs.ids[rows, None],
        "text.mask": pairs.mask[rows, None],
    }
    return Batch(
        ids=tuple(pairs.names[row] for row in rows.tolist()),
        groups=rows,
        slots=slots,
        weight=torch.ones(len(rows)),
        seeds=rows,
    )


def hit_at_1(scores: NDArray[np.float32]) -> float:
    """Percent of rows whose own column is above all others; a tie is a miss.

    Example:
        >>> hit_at_1(np.float32([[2, 1], [3, 3]]))
        50.0
    """
    own = scores.diagonal()[:, None]
    return 100.0 * float(((scores >= own).sum(axis=1) == 1).mean())


def shortlist_hits(tokens: Tokens, t2i: NDArray[np.float32]) -> float:
    """hit@1 of texts when only the best few pictures of each of their tokens are scored."""
    kept = np.full_like(t2i, -np.inf)
    for row, (text, mask) in enumerate(zip(tokens.texts, tokens.mask, strict=True)):
        best = torch.einsum("td,npd->tnp", text[mask], tokens.images).amax(dim=2)
        some = best.topk(min(_SHORTLIST, best.shape[1]), dim=1).indices.unique().numpy()
        kept[row, some] = t2i[row, some]
    return hit_at_1(kept)


def binding(
    model: DualEncoder, pairs: CachedPairs, samples: Sequence[Sample], is_whole: bool
) -> dict[str, float]:
    """Percent of scenes whose caption beats the same caption with both colours swapped."""
    chosen = [row for row, sample in enumerate(samples) if _has_two_colours(sample)]
    swapped = [swap_colours(samples[row]) for row in chosen]
    ids, mask = tokenize(model.tokenizer, swapped, model.config.text_preprocess)
    some = _rows_of(pairs, chosen)
    right = encode_tokens(model, some)[is_whole]
    wrong_pairs = replace(some, ids=torch.from_numpy(ids), mask=torch.from_numpy(mask))
    wrong = encode_tokens(model, wrong_pairs)[is_whole]
    better = _pair_scores(right) > _pair_scores(wrong)
    return {"binding": 100.0 * float(better.float().mean())}


def _pair_scores(tokens: Tokens) -> Tensor:
    """Score (N,) of each text and its own picture."""
    rows = [
        late_scores(text[None], image[None], query_mask=mask[None])[0, 0]
        for text, image, mask in zip(tokens.texts, tokens.images, tokens.mask, strict=True)
    ]
    return torch.stack(rows)


def _has_two_colours(sample: Sample) -> bool:
    first, second = sample.meta["objects"]
    return bool(first.colour != second.colour)


def swap_colours(sample: Sample) -> str:
    """The first caption of a scene with the colours of its two objects swapped."""
    first, second = (each.colour for each in sample.meta["objects"])
    other = {first: second, second: first}
    return " ".join(other.get(word, word) for word in sample.slots["text"][0].split())


def _rows_of(pairs: CachedPairs, rows: Sequence[int]) -> CachedPairs:
    """Some pictures of those with one caption each."""
    some = list(rows)
    return replace(
        pairs,
        names=tuple(pairs.names[row] for row in some),
        frozen=None if pairs.frozen is None else pairs.frozen[some],
        pixels=pairs.pixels[some],
        ids=pairs.ids[some],
        mask=pairs.mask[some],
        first_text=tuple(range(len(some) + 1)),
    )


def localised(
    model: DualEncoder, pairs: CachedPairs, samples: Sequence[Sample], tokens: Tokens
) -> float:
    """Percent of colour words whose best patch has its middle in the object of that colour."""
    side_px = model.config.image_preprocess.size_px / model.vision.grid
    colours = {model.tokenizer.token_to_id(colour): colour for colour in COLOURS}
    hits = []
    for row, sample in enumerate(samples):
        if not _has_two_colours(sample):
            continue
        boxes = {each.colour: each for each in sample.meta["objects"]}
        for place, number in enumerate(pairs.ids[row].tolist()):
            colour = colours.get(number)
            if colour is not None:
                patch = int((tokens.images[row] @ tokens.texts[row, place]).argmax())
                hits.append(_is_within(patch, model.vision.grid, side_px, boxes[colour]))
    return 100.0 * float(np.mean(hits))


def _is_within(patch: int, grid: int, side_px: float, item: SceneObject) -> bool:
    row, column = divmod(patch, grid)
    x, y = (column + 0.5) * side_px, (row + 0.5) * side_px
    left, top, right, bottom = item.box_px
    return left <= x < right and top <= y < bottom
