"""Short training runs on what frozen layers gave: for experiments of many runs on a small machine.

A picture passes the frozen part of the vision tower once, without augmentation; every run starts
from the kept maps, and a step costs only what trains. Objectives see the same `Batch` and
`Features` as in the training loop proper.

Shape letters: N pictures, M texts, B pictures of a batch, T tokens, D dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from costream.data import DataSet, open_image
from costream.encoders.device import autocast, training_attention
from costream.encoders.dual import DualEncoder
from costream.encoders.preprocess import tokenize
from costream.errors import DataError, NumericalError
from costream.objectives import Objective
from costream.records import Batch, Sample
from costream.train.config import TrainConfig
from costream.train.loader import Draw, draws_of_step
from costream.train.optim import make_optimiser, rate_at

_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CachedPairs:
    """A captioned data set after the frozen part of a vision tower.

    Attributes:
        names: One a picture.
        frozen: (N, C, H, W), the tower's `frozen_part`; None where nothing of the tower is frozen.
        pixels: uint8 (N, 3, h, w), for what reads pixels (visual codes), or for the tower itself
            where `frozen` is None.
        ids: int64 (M, T), tokens of all texts, picture by picture.
        mask: int64 (M, T).
        first_text: int (N + 1,); picture i has the texts first_text[i] to first_text[i + 1].
    """

    names: tuple[str, ...]
    frozen: Tensor | None
    pixels: Tensor
    ids: Tensor
    mask: Tensor
    first_text: tuple[int, ...]

    @property
    def image_of_text(self) -> NDArray[np.int64]:
        """int64 (M,), the picture of each text."""
        counts = [stop - start for start, stop in pairwise(self.first_text)]
        return np.repeat(np.arange(len(self.names)), counts)

    def batch(
        self, draws: Sequence[Draw], captions_of: Sequence[int], trust: Sequence[float]
    ) -> tuple[Batch, Tensor | None]:
        """The batch of these draws, one caption a picture drawn by the draw's seed.

        Args:
            draws: Pictures and the seeds of their visits.
            captions_of: For each picture of the data set the picture whose captions it gets.
            trust: Weight of each picture of the data set.

        Returns:
            The batch, and the frozen part of its pictures.
        """
        rows = [draw.sample for draw in draws]
        texts = []
        for draw in draws:
            owner = captions_of[draw.sample]
            start, stop = self.first_text[owner], self.first_text[owner + 1]
            texts.append(int(np.random.default_rng((draw.seed, 1)).integers(start, stop)))
        longest = int(self.mask[texts].sum(dim=1).max())
        batch = Batch(
            ids=tuple(self.names[row] for row in rows),
            groups=torch.tensor(rows),
            slots={
                "image": self.pixels[rows],
                "text.ids": self.ids[texts, None, :longest],
                "text.mask": self.mask[texts, None, :longest],
            },
            weight=torch.tensor([trust[row] for row in rows]),
            seeds=torch.tensor([draw.seed for draw in draws]),
        )
        return batch, None if self.frozen is None else self.frozen[rows].float()


class Pairs(Protocol):
    """What `train_short` trains on; `CachedPairs` is one."""

    @property
    def names(self) -> tuple[str, ...]:
        """One a picture."""

    def batch(
        self, draws: Sequence[Draw], captions_of: Sequence[int], trust: Sequence[float]
    ) -> tuple[Batch, Tensor | None]:
        """As of `CachedPairs.batch`."""


def cache_pairs(
    model: DualEncoder,
    data: DataSet,
    *,
    kept_px: int = 0,
    progress: Callable[[int], None] | None = None,
) -> CachedPairs:
    """Decode every picture once and run the frozen part of the vision tower on it.

    Args:
        model: Whose preprocessing, tokenizer and frozen part are used, on the CPU.
        data: Pictures with at least one caption each.
        kept_px: Side of the pixels that are kept; the model's own when 0, and always where the
            tower has no stem.
        progress: Called with the number of pictures done since the last call.

    Raises:
        DataError: When there is no picture, one is broken, or one has no caption.
    """
    check_captions(data)
    texts = [text for sample in data.samples for text in sample.slots["text"]]
    ids, mask = tokenize(model.tokenizer, texts, model.config.text_preprocess)
    side = model.config.image_preprocess.size_px
    kept = side if model.vision.stem is None or not kept_px else kept_px
    maps, pixels = [], []
    model.eval()
    with ThreadPoolExecutor(max_workers=2) as pool, torch.inference_mode():
        for start in range(0, len(data), _AT_ONCE):
            samples = data.samples[start : start + _AT_ONCE]
            full = torch.from_numpy(np.stack([*pool.map(pixels_of(model), samples)]))
            pixels.append(_shrink(full, kept))
            if model.vision.stem is not None:
                with autocast(model.device):
                    frozen = model.vision.frozen_part(model.normalise_pixels(full))
                # Half the memory; what autocast gave has no more digits anyway.
                maps.append(frozen.to(torch.bfloat16).contiguous())
            if progress is not None:
                progress(len(samples))
    counts = (len(sample.slots["text"]) for sample in data.samples)
    return CachedPairs(
        names=tuple(sample.id for sample in data.samples),
        # Copies: tensors of inference mode cannot be saved for a backward pass.
        frozen=torch.cat(maps).clone() if maps else None,
        pixels=torch.cat(pixels).clone(),
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        first_text=tuple(accumulate(counts, initial=0)),
    )


def cache_texts(
    model: DualEncoder, pairs: CachedPairs, captions: Sequence[Sequence[str]]
) -> CachedPairs:
    """The same pictures with other captions (of another language, say).

    Args:
        model: Whose tokenizer is used.
        pairs: Pictures.
        captions: At least one for each of them.
    """
    ids, mask = tokenize(
        model.tokenizer, [text for each in captions for text in each], model.config.text_preprocess
    )
    return replace(
        pairs,
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        first_text=tuple(accumulate((len(each) for each in captions), initial=0)),
    )


def check_captions(data: DataSet) -> None:
    """Refuse a data set that is empty or has a picture without captions.

    Raises:
        DataError: Naming the picture.
    """
    if not data.samples:
        raise DataError(f"{data.name} has no pictures, expected at least one")
    for sample in data.samples:
        if "image" not in sample.slots or not sample.slots.get("text"):
            raise DataError(
                f"sample {sample.id!r} of {data.name} has no picture or no caption",
                hint="name a manifest with captions",
            )


def pixels_of(model: DualEncoder) -> Callable[[Sample], NDArray[np.uint8]]:
    """A function from a sample to the pixels uint8 (3, H, W) that the model wants of it."""
    settings = model.config.image_preprocess

    def pixels(sample: Sample) -> NDArray[np.uint8]:
        return settings.pixels(open_image(sample.slots["image"], smallest_side=settings.size_px))

    return pixels


def _shrink(pixels: Tensor, side: int) -> Tensor:
    if pixels.shape[-1] == side:
        return pixels
    small = functional.interpolate(pixels.float(), (side, side), mode="area")
    return small.round().to(torch.uint8)


def train_short(
    model: DualEncoder,
    objective: Objective,
    pairs: Pairs,
    config: TrainConfig,
    *,
    captions_of: Sequence[int] | None = None,
    trust: Sequence[float] | None = None,
    on_step: Callable[[int, Sequence[int], nn.Module], None] | None = None,
) -> tuple[nn.Module, list[float]]:
    """Train a model in place with one objective on cached pairs.

    Args:
        model: On the CPU; left in evaluation mode.
        objective: What to minimise.
        pairs: Of `cache_pairs` with a model that has the same frozen part.
        config: Steps, batch size, rates, clipping and seed; what concerns pictures is not used.
        captions_of: For each picture the picture whose captions it is trained with; its own when
            None.
        trust: Weight of each picture, 1 when None.
        on_step: Called after each step with its number, the pictures of its batch and the
            objective's state.

    Returns:
        The objective's state, and the seconds of each step.

    Raises:
        NumericalError: When a loss is not finite; names the step.
    """
    torch.manual_seed(config.seed)
    count = len(pairs.names)
    captions_of = range(count) if captions_of is None else captions_of
    trust = [1.0] * count if trust is None else trust
    module = objective if isinstance(objective, nn.Module) else nn.Module()
    optimiser = make_optimiser(model, module, config)
    trained = [weight for group in optimiser.param_groups for weight in group["params"]]
    state = objective.init_state(model)
    seconds: list[float] = []
    model.train()
    for step in range(config.steps):
        begin = time.perf_counter()
        draws = draws_of_step(step, count, config.batch_size, config.seed)
        batch, frozen = pairs.batch(draws, captions_of, trust)
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, config) * group["factor"]
        with autocast(model.device), training_attention(model.device):
            features = model.features(batch, frozen)
            losses = objective.loss(model, batch, features, state)
        if not torch.isfinite(losses.total):
            raise NumericalError(
                f"the loss is {float(losses.total)} at step {step}", hint="lower the learning rate"
            )
        torch.autograd.backward(losses.total)
        nn.utils.clip_grad_norm_(trained, config.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        objective.after_step(model, state)
        seconds.append(time.perf_counter() - begin)
        if on_step is not None:
            on_step(step, [draw.sample for draw in draws], state)
    model.eval()
    return state, seconds


@torch.inference_mode()
def encode_cached(model: DualEncoder, pairs: CachedPairs) -> tuple[Tensor, Tensor]:
    """Vectors of all pictures float32 (N, D) and of all texts (M, D), in evaluation mode."""
    images = encode_cached_images(model, pairs)
    texts = torch.zeros(len(pairs.ids), model.config.dim)
    lengths = pairs.mask.sum(dim=1)
    with autocast(model.device):
        # Texts of like length together, so that little of a batch is padding.
        for rows in torch.split(lengths.argsort(stable=True), _AT_ONCE):
            longest = int(lengths[rows].max())
            ids, mask = pairs.ids[rows, :longest], pairs.mask[rows, :longest]
            texts[rows] = model.embed_tokens(ids, mask)
    return images, texts


@torch.inference_mode()
def encode_cached_images(model: DualEncoder, pairs: CachedPairs) -> Tensor:
    """Vectors of all pictures float32 (N, D), in evaluation mode."""
    model.eval()
    images = []
    with autocast(model.device):
        for rows in torch.split(torch.arange(len(pairs.names)), _AT_ONCE):
            start = pairs.pixels[rows] if pairs.frozen is None else pairs.frozen[rows].float()
            frozen = model.normalise_pixels(start) if pairs.frozen is None else start
            seen = model.vision.encode_map(model.vision.trained_part(frozen))
            images.append(model.project_image(seen))
    return torch.cat(images)


def first_captions(pairs: CachedPairs, count: int) -> CachedPairs:
    """The first `count` pictures with their first caption only."""
    rows = list(pairs.first_text[:-1][:count])
    return replace(
        pairs,
        names=pairs.names[:count],
        frozen=None if pairs.frozen is None else pairs.frozen[:count],
        pixels=pairs.pixels[:count],
        ids=pairs.ids[rows],
        mask=pairs.mask[rows],
        first_text=tuple(range(len(rows) + 1)),
    )
