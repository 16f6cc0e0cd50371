"""Settings of the training loop, the same for every method."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: Optimiser steps in all.
        batch_size: Pictures a step, over all processes and accumulated parts.
        accumulate: Parts that a step's batch is split into, to save memory. Contrastive losses see
            one part at a time, so this is not the same as one large batch.
        captions: Captions drawn a picture a step.
        max_tokens: Longest caption while training; the model's own limit when 0.
        learning_rate: Peak rate of newly made weights.
        stem_rate: Factor on the rate for the convolutional stem or the patch projection.
        vision_rate: Factor for the other layers of the vision tower.
        text_rate: Factor for the text tower.
        embedding_rate: Factor for the token embeddings; 0 leaves them as loaded.
        warmup_steps: Steps in which the rate grows linearly from 0.
        final_rate: Share of the peak rate that the cosine ends at.
        weight_decay: Of matrices; vectors (biases, norms) have none.
        clip: Largest norm of the gradient.
        average: Share of the old average that the averaged weights keep a step; 0 is off.
        seed: Of everything random.
        image_px: Side of the training crops; the model's own size when 0.
        crop_area: Least share of the picture's area in a training crop.
        colour: Strength of brightness, contrast and saturation changes, 0 is off.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between lines of the log.
        threads: Threads that decode pictures.
        cache_images: Whether decoded pictures stay in memory, scaled to `cache_px`.
        cache_px: Short side of cached pictures.
    """

    steps: int = 1000
    batch_size: int = 64
    accumulate: int = 1
    captions: int = 1
    max_tokens: int = 0
    learning_rate: float = 5e-4
    stem_rate: float = 1.0
    vision_rate: float = 1.0
    text_rate: float = 1.0
    embedding_rate: float = 1.0
    warmup_steps: int = 100
    final_rate: float = 0.01
    weight_decay: float = 0.02
    clip: float = 1.0
    average: float = 0.0
    seed: int = 0
    image_px: int = 0
    crop_area: float = 0.5
    colour: float = 0.0
    checkpoint_every: int = 500
    log_every: int = 10
    threads: int = 2
    cache_images: bool = False
    cache_px: int = 256
