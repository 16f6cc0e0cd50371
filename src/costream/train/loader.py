"""Batches for training: which samples a step sees, and how they become tensors.

Everything random comes from (seed, epoch, position), so a run that resumes at step s, or that is
split over processes, sees the same crops, captions and masks as one that was never interrupted.

Shape letters: B pictures, K captions a picture, T tokens, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from costream.data import DataSet
from costream.data.decode import open_image
from costream.data.picture import PictureSource
from costream.data.video import even_frames
from costream.encoders.dual import DualEncoder
from costream.encoders.preprocess import tokenize
from costream.errors import ConfigError, DataError
from costream.records import Batch, Sample
from costream.train.config import TrainConfig

_PREFETCH = 3
_PICTURES_PER_BROKEN_ONE = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """One picture of a step.

    Attributes:
        sample: Number in the data set.
        seed: Of everything random about this visit.
    """

    sample: int
    seed: int


def draws_of_step(step: int, size: int, batch_size: int, seed: int) -> list[Draw]:
    """Which samples step number `step` sees: each epoch a new order, without gaps between epochs.

    Args:
        step: From 0.
        size: Samples in the data set.
        batch_size: Samples a step.
        seed: Of the run.

    Returns:
        `batch_size` draws.

    Example:
        >>> first = [draw.sample for step in range(2) for draw in draws_of_step(step, 4, 2, 0)]
        >>> sorted(first)
        [0, 1, 2, 3]
    """
    draws = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, index = divmod(position, size)
        draws.append(
            Draw(
                sample=int(_epoch_order(size, epoch, seed)[index]),
                seed=int(np.random.SeedSequence((seed, position)).generate_state(1)[0]),
            )
        )
    return draws


_orders: dict[tuple[int, int, int], NDArray[np.int64]] = {}


def _epoch_order(size: int, epoch: int, seed: int) -> NDArray[np.int64]:
    key = (size, epoch, seed)
    if key not in _orders:
        if len(_orders) > 4:
            _orders.clear()
        _orders[key] = np.random.default_rng((seed, 7919, epoch)).permutation(size)
    return _orders[key]


def augment(
    image: Image.Image, side_px: int, config: TrainConfig, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A random crop of an upright RGB picture, perhaps mirrored, as uint8 (3, side_px, side_px).

    Area uniform in [crop_area, 1] of the picture, aspect log-uniform in [3/4, 4/3].

    Args:
        image: Any size.
        side_px: Side of the result.
        config: For `crop_area`, `mirror` and `colour`.
        rng: All randomness; the same state gives the same pixels.
    """
    width, height = image.size
    area = width * height * rng.uniform(config.crop_area, 1.0)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    crop_width = min(width, (area * aspect) ** 0.5)
    crop_height = min(height, (area / aspect) ** 0.5)
    left = rng.uniform(0, width - crop_width) if crop_width < width else 0.0
    top = rng.uniform(0, height - crop_height) if crop_height < height else 0.0
    box = (left, top, min(left + crop_width, width), min(top + crop_height, height))
    cut = image.resize((side_px, side_px), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if rng.random() < 0.5 and config.mirror:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if config.colour > 0:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            cut = enhance(cut).enhance(1.0 + rng.uniform(-config.colour, config.colour))
    return np.asarray(cut, dtype=np.uint8).transpose(2, 0, 1)


Views = dict[str, NDArray[Any]]
"""What one draw shows, by slot."""

_NAMES = {"image": "picture", "text": "caption", "video": "video"}


def is_text(slot: str) -> bool:
    """Whether a slot holds texts: `text`, `text.fr` and the like."""
    return slot == "text" or slot.startswith("text.")


def _where_to_get(lacking: Sequence[str], reads: Sequence[str]) -> str:
    """What to do about slots that samples lack."""
    others = [slot for slot in lacking if slot not in _NAMES and not is_text(slot)]
    if others:
        return (
            "manifests name pictures, videos and texts only: call costream.train with a DataSet "
            f"whose samples have the slot {others[0]!r}"
        )
    foreign = any(slot not in _NAMES for slot in lacking)
    more = ' (text.de is {"translations": {"de": ...}})' if foreign else ""
    return f"train on a manifest with {' and '.join(_NAMES.get(s, s) for s in reads)}{more}"


def _has(sample: Sample, slot: str) -> bool:
    value = sample.slots.get(slot)
    return value is not None and (not is_text(slot) or bool(value))


class Loader:
    """Makes the batches of one process, a few steps ahead, in threads.

    A picture that cannot be decoded is left out: its row has weight 0, and `take_failures` tells of
    it. More than one in a hundred of the data set (rounded up) stops the run.

    Args:
        data: Samples with all slots of `reads`, and at least one caption in those of text.
        model: For its preprocessing.
        config: Sizes and augmentation.
        reads: Slots that batches have: `image`; `video`, frames or the path of a clip; `text` and
            its kin; any other is taken as an array of numbers as it is.
        rank: Number of this process.
        processes: Number of processes; `batch_size` is split evenly over them.

    Raises:
        DataError: When there are no samples, or one lacks a slot.
        ConfigError: When the batch does not split evenly.
    """

    def __init__(
        self,
        data: DataSet,
        model: DualEncoder,
        config: TrainConfig,
        *,
        reads: Sequence[str] = ("image", "text"),
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        parts = processes * config.accumulate
        if config.batch_size % parts:
            raise ConfigError(
                f"batch_size {config.batch_size} does not split into {processes} processes x "
                f"{config.accumulate} parts",
                hint=f"choose a multiple of {parts}",
            )
        if not data.samples:
            raise DataError(
                f"{data.name} has no samples, expected at least one", hint="name other data"
            )
        for sample in data.samples:
            lacking = [slot for slot in reads if not _has(sample, slot)]
            if lacking:
                raise DataError(
                    f"sample {sample.id!r} of {data.name} has no "
                    f"{' and no '.join(_NAMES.get(slot, slot) for slot in lacking)}",
                    hint=_where_to_get(lacking, reads),
                )
        self.reads = tuple(reads)
        self.data, self.model, self.config = data, model, config
        self.side = config.image_px or model.config.image_preprocess.size_px
        self.text = model.config.text_preprocess
        if config.max_tokens:
            shorter = min(config.max_tokens, self.text.max_tokens)
            self.text = replace(self.text, max_tokens=shorter)
        groups = dict.fromkeys(sample.group for sample in data.samples)
        self.groups = {group: number for number, group in enumerate(groups)}
        self.rank, self.processes = rank, processes
        self._cache: dict[str, Image.Image] = {}
        self._broken: dict[str, str] = {}
        self._told = 0

    def take_failures(self) -> list[str]:
        """One sentence for each picture that was found broken since the last call."""
        sentences = [*self._broken.values()][self._told :]
        self._told += len(sentences)
        return sentences

    def _picture(self, name: str, source: PictureSource) -> Image.Image:
        cached = self._cache.get(name)
        if cached is not None:
            return cached
        least = max(self.config.cache_px, self.side)
        image = open_image(source, smallest_side=least)
        if self.config.cache_images:
            scale = least / min(image.size)
            if scale < 1:
                size = (round(image.width * scale), round(image.height * scale))
                image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
            self._cache[name] = image
        return image

    def _views(self, draw: Draw) -> Views | None:
        """What a draw shows, by slot; None when a picture of it is broken."""
        sample = self.data.samples[draw.sample]
        views: Views = {}
        try:
            for slot in self.reads:
                if slot == "image":
                    rng = np.random.default_rng(draw.seed)
                    image = self._picture(sample.id, sample.slots[slot])
                    views[slot] = augment(image, self.side, self.config, rng)
                elif slot == "video":
                    views[slot] = self._frames(sample, draw)
                elif not is_text(slot):
                    views[slot] = np.asarray(sample.slots[slot], dtype=np.float32)
        except DataError as error:
            self._broken[sample.id] = str(error)
        else:
            return views
        most = -(-len(self.data) // _PICTURES_PER_BROKEN_ONE)
        if len(self._broken) > most:
            shown = "; ".join([*self._broken.values()][:5])
            raise DataError(
                f"{len(self._broken)} of {len(self.data)} pictures of {self.data.name} are broken, "
                f"expected at most {most}: {shown}",
                hint="restore them or leave them out",
            )
        return None

    def _frames(self, sample: Sample, draw: Draw) -> NDArray[np.uint8]:
        """uint8 (F, 3, H, W): frames spread evenly over a video, all cropped alike."""
        names = [f"{sample.id} {number}" for number in range(self.config.frames)]
        pictures = [self._cache[name] for name in names if name in self._cache]
        if len(pictures) < len(names):
            least = max(self.config.cache_px, self.side)
            frames = even_frames(sample.slots["video"], len(names), smallest_side=least)
            pictures = [self._picture(*each) for each in zip(names, frames, strict=True)]
        return np.stack(
            [
                augment(picture, self.side, self.config, np.random.default_rng(draw.seed))
                for picture in pictures
            ]
        )

    def _captions(self, draw: Draw, slot: str) -> list[str]:
        """K captions of a picture, all different while there are enough, then from the start."""
        texts: Sequence[str] = self.data.samples[draw.sample].slots[slot]
        order = np.random.default_rng((draw.seed, 1)).permutation(len(texts))
        return [texts[order[k % len(texts)]] for k in range(self.config.captions)]

    def _assemble(self, draws: Sequence[Draw], views: Sequence[Views | None]) -> Batch:
        samples = [self.data.samples[draw.sample] for draw in draws]
        slots: dict[str, torch.Tensor] = {}
        for slot in self.reads:
            if is_text(slot):
                texts = [text for draw in draws for text in self._captions(draw, slot)]
                ids, mask = tokenize(self.model.tokenizer, texts, self.text)
                shape = (len(draws), self.config.captions, -1)
                slots[f"{slot}.ids"] = torch.from_numpy(ids).view(shape)
                slots[f"{slot}.mask"] = torch.from_numpy(mask).view(shape)
            else:
                blank = self._blank(slot, views)
                given = [blank if each is None else each[slot] for each in views]
                slots[slot] = torch.from_numpy(np.stack(given))
        weights = [
            0.0 if each is None else sample.weight
            for sample, each in zip(samples, views, strict=True)
        ]
        return Batch(
            ids=tuple(sample.id for sample in samples),
            groups=torch.tensor([self.groups[sample.group] for sample in samples]),
            slots=slots,
            weight=torch.tensor(weights, dtype=torch.float32),
            seeds=torch.tensor([draw.seed for draw in draws]),
        )

    def _blank(self, slot: str, views: Sequence[Views | None]) -> NDArray[Any]:
        for each in views:
            if each is not None:
                return np.zeros_like(each[slot])
        front = (self.config.frames,) if slot == "video" else ()
        return np.zeros((*front, 3, self.side, self.side), dtype=np.uint8)

    def _parts(self, step: int) -> list[list[Draw]]:
        """This process's draws of a step, split into accumulated parts."""
        draws = draws_of_step(step, len(self.data), self.config.batch_size, self.config.seed)
        count = self.config.accumulate
        size = len(draws) // (self.processes * count)
        starts = [(part * self.processes + self.rank) * size for part in range(count)]
        return [draws[start : start + size] for start in starts]

    def batches(self, first_step: int) -> Iterator[list[Batch]]:
        """The batches of each step from `first_step` to the last, one per accumulated part.

        Args:
            first_step: Steps done before, from 0.

        Raises:
            DataError: When too many pictures are broken; names some.
        """
        last = self.config.steps
        with ThreadPoolExecutor(max_workers=self.config.threads) as pool:

            def begin(step: int) -> list[tuple[list[Draw], list[Future[Views | None]]]]:
                return [
                    (draws, [pool.submit(self._views, draw) for draw in draws])
                    for draws in self._parts(step)
                ]

            waiting = [begin(step) for step in range(first_step, min(first_step + _PREFETCH, last))]
            for step in range(first_step, last):
                parts = waiting.pop(0)
                if step + _PREFETCH < last:
                    waiting.append(begin(step + _PREFETCH))
                yield [self._assemble(d, [each.result() for each in p]) for d, p in parts]
