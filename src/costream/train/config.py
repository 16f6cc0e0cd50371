"""Settings of the training loop, the same for every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from costream.config import Range

Count = Annotated[int, Range(1)]
Size = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]
Factor = Annotated[float, Range(0)]

WITHOUT_EFFECT: Final = frozenset(
    {"checkpoint_every", "log_every", "threads", "cache_images", "precision"}
)
"""Settings that change no weight: a run may be resumed with other values of them.

`precision` does, but a checkpoint holds the one that was chosen, and a resumed run keeps it.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: Optimiser steps in all; 0 saves what the methods made of the model before any.
        batch_size: Pictures a step, over all processes and accumulated parts.
        accumulate: Parts that a step's batch is split into, to save memory. Contrastive losses see
            one part at a time, so this is not the same as one large batch.
        captions: Captions drawn a picture a step.
        frames: Frames taken of a video, spread evenly over it.
        max_tokens: Longest caption while training; the model's own limit when 0.
        learning_rate: Peak rate of newly made weights.
        stem_rate: Factor on the rate for the convolutional stem; 0 leaves it as loaded.
        vision_rate: Factor for the other layers of the vision tower.
        text_rate: Factor for the text tower.
        embedding_rate: Factor for the token embeddings, beside that of the text tower; 0 leaves
            them as loaded.
        warmup_steps: Steps in which the rate grows linearly from 0.
        final_rate: Share of the peak rate that the cosine ends at.
        weight_decay: Of matrices; vectors (biases, norms) have none.
        clip: Largest norm of the gradient.
        average: Share of the old average that the averaged weights keep a step; 0 is off.
        precision: Of matrix products: `auto` is bfloat16 where that is faster (measured).
        seed: Of everything random.
        image_px: Side of the training crops; the model's own size when 0.
        crop_area: Least share of the picture's area in a training crop.
        mirror: Whether half of the pictures are mirrored. Captions that say left or right are then
            wrong half of the time.
        colour: Strength of brightness, contrast and saturation changes, 0 is off.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between lines of the log.
        threads: Threads that decode pictures.
        cache_images: Whether decoded pictures stay in memory.
        cache_px: Short side that cached pictures are scaled down to; never below the training
            crops' own side.
    """

    steps: Size = 1000
    batch_size: Count = 64
    accumulate: Count = 1
    captions: Count = 1
    frames: Count = 4
    max_tokens: Size = 0
    learning_rate: Annotated[float, Range(0, low_included=False)] = 5e-4
    stem_rate: Factor = 1.0
    vision_rate: Factor = 1.0
    text_rate: Factor = 1.0
    embedding_rate: Factor = 1.0
    warmup_steps: Size = 100
    final_rate: Share = 0.01
    weight_decay: Factor = 0.02
    clip: Annotated[float, Range(0, low_included=False)] = 1.0
    average: Annotated[float, Range(0, 1, high_included=False)] = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: Size = 0
    image_px: Size = 0
    crop_area: Annotated[float, Range(0, 1, low_included=False)] = 0.5
    mirror: bool = True
    colour: Share = 0.0
    checkpoint_every: Count = 500
    log_every: Count = 10
    threads: Count = 2
    cache_images: bool = False
    cache_px: Count = 256
