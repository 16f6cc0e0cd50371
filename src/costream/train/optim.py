"""Optimiser and learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from costream.encoders.dual import DualEncoder
from costream.errors import ConfigError
from costream.train.config import TrainConfig


def rate_factor(name: str, config: TrainConfig) -> float:
    """Factor on the learning rate for the weight of this name in a `DualEncoder`.

    Example:
        >>> rate_factor("vision.stem.head.weight", TrainConfig(stem_rate=0.25))
        0.25
    """
    if name.startswith("text.token_embedding"):
        return config.text_rate * config.embedding_rate
    if name.startswith("text."):
        return config.text_rate
    if name.startswith("vision.stem."):
        return config.stem_rate
    if name.startswith("vision."):
        return config.vision_rate
    return 1.0


def make_optimiser(
    model: DualEncoder, objectives: nn.Module, config: TrainConfig
) -> torch.optim.AdamW:
    """AdamW over the model's and the objectives' weights, grouped by rate and decay.

    Weights whose factor is 0 stop training altogether: no decay, no momentum copy of their own.

    Args:
        model: Its weights are told apart by name (`rate_factor`).
        objectives: Their weights train at the full rate.
        config: Rates and decay.

    Returns:
        Groups with an entry `factor` each; their rates are 0 until the loop sets them.

    Raises:
        ConfigError: When nothing is left to train.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    named = [(name, weight, rate_factor(name, config)) for name, weight in model.named_parameters()]
    named += [(name, weight, 1.0) for name, weight in objectives.named_parameters()]
    for _, weight, factor in named:
        if factor == 0.0:
            weight.requires_grad = False
        if weight.requires_grad:
            decay = config.weight_decay if weight.ndim > 1 else 0.0
            groups.setdefault((factor, decay), []).append(weight)
    if not groups:
        raise ConfigError("no weight is left to train", hint="set one of the rates to more than 0")
    return torch.optim.AdamW(
        [
            {"params": weights, "lr": 0.0, "factor": factor, "weight_decay": decay}
            for (factor, decay), weights in groups.items()
        ],
        betas=(0.9, 0.98),
        fused=True,
    )


def rate_at(step: int, config: TrainConfig) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then a cosine to `final_rate`.

    Example:
        >>> config = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0, final_rate=0.0)
        >>> rate_at(4, config), rate_at(10, config), round(rate_at(60, config), 3)
        (0.5, 1.0, 0.5)
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = max(config.steps - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * cosine)
