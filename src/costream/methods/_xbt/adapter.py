"""The adapter on a new model: a map at its end, and matrices of low rank in its towers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.encoders.blocks import Encoded, Transformer
from costream.encoders.dual import DualEncoder, Head
from costream.errors import ConfigError
from costream.records import Space

NAME = "xbt"
_MAP = "old_space_map"


class LowRank(nn.Module):
    """A frozen linear layer plus a product of two thin matrices that train.

    Args:
        base: The layer.
        rank: Inner dimension of the product.
        scale: What the product is multiplied by.

    Attributes:
        is_on: Whether the product counts; without it the layer is what it was, to the last bit.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = scale
        self.is_on = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        whole: Tensor = self.base(x)
        if not self.is_on:
            return whole
        return whole + self.scale * functional.linear(functional.linear(x, self.down), self.up)


class MappedHead(nn.Module):
    """A tower's output to vectors of the old space.

    Args:
        inner: What made vectors of it before; None for projection and unit length.
        project: The model's projection.
        mapping: From the new space to the old one.
    """

    def __init__(self, inner: Head | None, project: nn.Module, mapping: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        # In a tuple they are no parts of this module: their weights belong to the model.
        self._shared = (project, mapping)

    def forward(self, encoded: Encoded) -> Tensor:
        """To unit vectors float32 (B, O)."""
        project, mapping = self._shared
        if self.inner is not None:
            own = self.inner(encoded)
        else:
            own = functional.normalize(project(encoded.pooled).float(), dim=-1)
        with torch.autocast(own.device.type, enabled=False):
            mapped: Tensor = mapping(own.float())
        return mapped


def put_adapter(
    model: DualEncoder,
    mapping: nn.Module,
    space: Space,
    *,
    rank: int,
    scale: float = 1.0,
) -> DualEncoder:
    """Have a model ask in the space of another one, in place.

    Args:
        model: The new model.
        mapping: From its space to the old one.
        space: The old model's.
        rank: Of the matrices in the attention of every layer; 0 for none.
        scale: What their product is multiplied by.

    Returns:
        The model.

    Raises:
        ConfigError: It has a map to another space already.
    """
    if _MAP in dict(model.named_children()):
        raise ConfigError(
            f"{model.name} has a map to another model's space already",
            hint="start from the model that it was made of",
        )
    model.add_module(_MAP, mapping.to(model.device))
    for name, project in (("image", model.image_projection), ("text", model.text_projection)):
        inner = getattr(model, f"{name}_head")
        _set_head(model, name, MappedHead(inner, project, mapping))
    if rank:
        for tower in (model.vision, model.text):
            _put_low_rank(tower.transformer, rank, scale)
    model.config = replace(model.config, dim=space.dim, query_space=space)
    return model.to(model.device)


def _set_head(model: DualEncoder, name: str, head: Head | None) -> None:
    # torch takes no None or module in place of the other kind otherwise.
    delattr(model, f"{name}_head")
    setattr(model, f"{name}_head", head)


def _put_low_rank(transformer: Transformer, rank: int, scale: float) -> None:
    for layer in transformer.layers:
        attention = cast(nn.Module, layer.attention)
        for name in ("qkv", "out"):
            base = cast(nn.Linear, attention.get_submodule(name))
            setattr(attention, name, LowRank(base, rank, scale))


def low_ranks(model: nn.Module) -> list[LowRank]:
    """The adapters of a model."""
    return [module for module in model.modules() if isinstance(module, LowRank)]


@contextlib.contextmanager
def adapters_off(model: DualEncoder) -> Iterator[None]:
    """The towers as they were before stage 2; phi stays."""
    adapters = low_ranks(model)
    for adapter in adapters:
        adapter.is_on = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.is_on = True


def without_adapter(model: DualEncoder) -> DualEncoder:
    """The new model as it was: a copy, whose vectors and space are the same to the last bit.

    Args:
        model: With the adapter as its last method.

    Raises:
        ConfigError: It has none, or was changed afterwards.
    """
    methods = model.config.methods
    if not methods or methods[-1].split()[0] != NAME:
        raise ConfigError(
            f"the last method of {model.name} is {methods[-1] if methods else 'none'}, expected "
            f"{NAME}",
            hint="load the new model itself",
        )
    plain = copy.deepcopy(model)
    for name in ("image", "text"):
        _set_head(plain, name, cast(MappedHead, getattr(plain, f"{name}_head")).inner)
    delattr(plain, _MAP)
    for tower in (plain.vision, plain.text):
        for layer in tower.transformer.layers:
            attention = cast(nn.Module, layer.attention)
            for name in ("qkv", "out"):
                found = attention.get_submodule(name)
                setattr(attention, name, found.base if isinstance(found, LowRank) else found)
    plain.config = replace(
        model.config,
        dim=plain.text_projection.out_features,
        methods=methods[:-1],
        query_space=None,
        in_query_space=False,
    )
    return plain
