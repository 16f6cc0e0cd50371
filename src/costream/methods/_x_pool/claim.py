"""Clips with r of 12 frames that belong to the text, scored by several poolings of the same frames.

Shape letters: N clips, F frames, V views of a picture, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from costream.data import open_image, read_data
from costream.encoders.locate import DEFAULT_MODEL
from costream.encoders.storage import load
from costream.evaluate import ClaimOptions, ClaimTable, compare_seeds, hit_at_k, rank_of_truth
from costream.evaluate.run_log import RunLog
from costream.evaluate.truth import truth_from_groups
from costream.methods.x_pool import FramePooling

_FRAMES = 12
_SHOWN = (1, 2, 4, 12)
_VIEWS = ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.8, 0.8), (0.2, 0.2, 1.0, 1.0))
_SMALLEST_GAIN = 1.0
_HOLDS = -1.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Views:
    """Vectors of pictures and their captions.

    Attributes:
        images: float32 (N, V, D), unit vectors of views of each picture.
        texts: float32 (N, D), unit vectors of one caption each.
    """

    images: Tensor
    texts: Tensor


def photograph_views(folder: Path, name: str, most: int, options: ClaimOptions) -> Views:
    """Views of photographs (a pan from one corner to the other) by the default model."""
    model = load(DEFAULT_MODEL)
    samples = read_data(folder / f"{name}.jsonl").samples[:most]
    options.say(f"{name}: {len(samples):,} photographs, {len(_VIEWS)} views each")
    rows = []
    for start in range(0, len(samples), 50):
        some = samples[start : start + 50]
        pictures = [open_image(s.slots["image"], smallest_side=256) for s in some]
        views = [cut(picture, box) for picture in pictures for box in _VIEWS]
        rows.append(model.encode_images(views).reshape(len(some), len(_VIEWS), -1))
    texts = model.encode_texts([s.slots["text"][0] for s in samples])
    return Views(images=torch.from_numpy(np.concatenate(rows)), texts=torch.from_numpy(texts))


def cut(picture: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """A part of a picture, given in shares of its sides."""
    width, height = picture.size
    sides = (width, height, width, height)
    return picture.crop(tuple(round(share * s) for share, s in zip(box, sides, strict=True)))  # type: ignore[arg-type] # four


def noisy_views(count: int, seed: int, *, dim: int = 64, noise: float = 1.6) -> Views:
    """Texts at random, pictures their texts with noise: what no image tower is needed for."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(count, dim, generator=generator)
    drawn = torch.randn(count, len(_VIEWS), dim, generator=generator)
    images = texts[:, None] + noise * drawn
    return Views(
        images=functional.normalize(images, dim=-1), texts=functional.normalize(texts, dim=-1)
    )


def clips(views: Views, shown: int, seed: int) -> Tensor:
    """Frames (N, F, D): `shown` views of the clip's own picture, cut into those of others."""
    count = len(views.images)
    rng = np.random.default_rng((seed, shown))
    frames = torch.empty(count, _FRAMES, views.images.shape[-1])
    for number in range(count):
        others = rng.integers(count - 1, size=_FRAMES - shown)
        others = others + (others >= number)
        owner = np.concatenate([np.full(shown, number), others])
        view = rng.integers(views.images.shape[1], size=_FRAMES)
        place = rng.permutation(_FRAMES)
        frames[number] = views.images[owner[place], view[place]]
    return frames


def mean_scores(texts: Tensor, frames: Tensor) -> Tensor:
    """Mean of the frames, unit length: COTS' text-to-video retrieval."""
    return texts @ functional.normalize(frames.mean(dim=1), dim=-1).T


def best_scores(texts: Tensor, frames: Tensor) -> Tensor:
    """The best frame alone."""
    return torch.stack([(texts @ clip.T).max(dim=1).values for clip in frames], dim=1)


def softmax_scores(texts: Tensor, frames: Tensor, temperature: float = 0.01) -> Tensor:
    """Frames weighted by the softmax of their cosines, without parameters."""
    columns = []
    for clip in frames:
        weights = torch.softmax(texts @ clip.T / temperature, dim=1)
        columns.append((texts * functional.normalize(weights @ clip, dim=-1)).sum(dim=1))
    return torch.stack(columns, dim=1)


@torch.no_grad()
def pooled_scores(pooling: FramePooling, texts: Tensor, frames: Tensor) -> Tensor:
    """Scores of X-Pool, in blocks of clips."""
    pooling.eval()
    return torch.cat([pooling.scores(texts, some) for some in frames.split(32)], dim=1)


def train_pooling(views: Views, *, seed: int, steps: int, count: int = 64) -> FramePooling:
    """X-Pool trained on clips of all kinds, on frozen vectors."""
    torch.manual_seed(seed)
    pooling = FramePooling(views.images.shape[-1], dropout=0.3)
    log_scale = torch.nn.Parameter(torch.tensor(3.0))
    optimiser = torch.optim.AdamW([*pooling.parameters(), log_scale], lr=1e-4, weight_decay=0.02)
    every = {shown: clips(views, shown, 10_000 + seed) for shown in _SHOWN}
    rng = np.random.default_rng(seed)
    pooling.train()
    own = torch.arange(min(count, len(views.texts)))
    for step in range(steps):
        rows = torch.from_numpy(rng.permutation(len(views.texts))[: len(own)])
        frames = every[_SHOWN[step % len(_SHOWN)]][rows]
        scores = pooling.scores(views.texts[rows], frames) * log_scale.exp()
        loss = functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(pooling.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            log_scale.clamp_(max=4.6)
    return pooling


def hits(scores: Tensor) -> float:
    """hit@1 in percent of texts that look for their clip."""
    groups = np.arange(len(scores))
    return hit_at_k(rank_of_truth(scores.numpy(), truth_from_groups(groups, groups)), 1)


def reproduce(options: ClaimOptions) -> list[ClaimTable]:
    """Train the pooling with every seed and compare it with the others on the same clips."""
    folder = options.folder("flickr8k")
    steps = 4 if options.fast else 400
    sizes = (16, 12) if options.fast else (1500, 500)
    log = RunLog(None if options.out is None else options.out / "x_pool_runs.jsonl")
    key = {"steps": steps, "sizes": list(sizes), "data": "photographs" if folder else "vectors"}
    runs: list[Mapping[str, float]] = []
    world: tuple[Views, Views] | None = None
    for seed in range(options.seeds):
        values = log.get(key | {"seed": seed})
        if values is None:
            if folder is None:
                world = noisy_views(sizes[0], 2 * seed), noisy_views(sizes[1], 2 * seed + 1)
            elif world is None:
                world = (
                    photograph_views(folder, "train", sizes[0], options),
                    photograph_views(folder, "dev", sizes[1], options),
                )
            values = _run(*world, seed=seed, steps=steps)
            log.add(key | {"seed": seed}, values)
        runs.append(values)
        options.say(f"seed {seed}: " + ", ".join(f"{k} {v:.1f}" for k, v in values.items()))
    return [_table(runs, sizes, steps, key["data"])]


def _run(train: Views, dev: Views, *, seed: int, steps: int) -> dict[str, float]:
    trained = train_pooling(train, seed=seed, steps=steps)
    untrained = FramePooling(dev.images.shape[-1])
    values: dict[str, float] = {}
    for shown in _SHOWN:
        frames = clips(dev, shown, seed)
        found = {
            "mean": mean_scores(dev.texts, frames),
            "best frame": best_scores(dev.texts, frames),
            "softmax": softmax_scores(dev.texts, frames),
            "untrained": pooled_scores(untrained, dev.texts, frames),
            "trained": pooled_scores(trained, dev.texts, frames),
        }
        values |= {f"{name}, r={shown}": hits(scores) for name, scores in found.items()}
    return values


def _table(
    runs: list[Mapping[str, float]], sizes: tuple[int, int], steps: int, data: object
) -> ClaimTable:
    rows = []
    for shown in _SHOWN:
        for other in ("mean", "best frame", "softmax", "untrained"):
            control = shown == _FRAMES
            rows.append(
                compare_seeds(
                    f"{shown} of {_FRAMES} frames shown: X-Pool over {other}"
                    + (" (control: may lose 1)" if control else ""),
                    [run[f"trained, r={shown}"] for run in runs],
                    [run[f"{other}, r={shown}"] for run in runs],
                    threshold=_HOLDS if control else _SMALLEST_GAIN,
                    unit="%",
                )
            )
    where = (
        f"clips cut together from {sizes[0]:,} training and {sizes[1]:,} dev photographs of "
        f"flickr8k, views of them made up as pans; vectors of {DEFAULT_MODEL}, frozen"
        if data == "photographs"
        else f"{sizes[0]:,} training and {sizes[1]:,} dev vectors with noise"
    )
    settings = {
        "data": where,
        "measure": "hit@1 of texts that look for their clip; motion is synthetic",
        "steps": f"{steps} of 64 clips, trained on all r alike; the towers are not trained",
        "selection": "none: the last step is measured",
    }
    title = "X-Pool finds clips of which some frames show what the text says"
    return ClaimTable(title=title, rows=tuple(rows), settings=settings)
