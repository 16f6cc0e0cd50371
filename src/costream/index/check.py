"""What may enter an index: refusals that name the item.

Shape letters: N items, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.errors import ConfigError, DataError, NumericalError, SpaceMismatch
from costream.index.records import Item
from costream.records import Space

# How far from 1 the length of a vector may be in a space of unit vectors: wider than float16 or
# bfloat16 rounding, narrower than any mistake.
_LENGTH_SLACK = 0.02
_LARGEST_INT = 2**63 - 1


def checked_vectors(
    items: Sequence[Item], vectors_ND: NDArray[Any], space: Space
) -> NDArray[np.float16]:
    """Vectors as they are stored.

    Args:
        items: What the rows belong to.
        vectors_ND: Floating point (N, D).
        space: Where they live.

    Returns:
        float16 (N, D), finite, no row zero.

    Raises:
        ConfigError: The space is not one of dense vectors.
        DataError: The array is not floating point, or not one row an item.
        SpaceMismatch: The rows have another number of dimensions than the space.
        NumericalError: A row is not finite, zero, too large for float16, or not of length 1 in a
            space of unit vectors; the item is named.
    """
    if space.kind != "dense":
        raise ConfigError(f"got {space.kind} vectors, this index holds dense ones only")
    vectors_ND = np.asarray(vectors_ND)
    if vectors_ND.dtype.kind != "f" or vectors_ND.ndim != 2 or len(vectors_ND) != len(items):
        raise DataError(
            f"got vectors of type {vectors_ND.dtype} and shape {vectors_ND.shape} for "
            f"{len(items)} items, expected float32 ({len(items)}, {space.dim})"
        )
    if vectors_ND.shape[1] != space.dim:
        first = f" (first item {items[0].id!r})" if items else ""
        raise SpaceMismatch(
            f"got vectors with {vectors_ND.shape[1]} dimensions{first}, "
            f"expected {space.dim} as {in_words(space)} has",
            hint="pass the space of the model that made the vectors",
        )
    with np.errstate(over="ignore"):
        stored_ND = vectors_ND.astype("<f2")
    lengths_N = np.sqrt((vectors_ND.astype(np.float64) ** 2).sum(axis=1))
    _refuse_rows(items, ~np.isfinite(vectors_ND).all(axis=1), "has a value that is not finite")
    _refuse_rows(items, ~np.isfinite(stored_ND).all(axis=1), "has a value above 65,504")
    _refuse_rows(items, (stored_ND == 0).all(axis=1), "is zero in float16")
    if space.normalised:
        _refuse_rows(
            items, np.abs(lengths_N - 1) > _LENGTH_SLACK, "has another length than 1", lengths_N
        )
    return stored_ND


def _refuse_rows(
    items: Sequence[Item],
    bad_N: NDArray[np.bool_],
    what: str,
    lengths_N: NDArray[np.float64] | None = None,
) -> None:
    if not bad_N.any():
        return
    row = int(np.argmax(bad_N))
    length = "" if lengths_N is None else f" ({lengths_N[row]:.4g})"
    raise NumericalError(
        f"the vector of item {items[row].id!r} {what}{length}; nothing was stored",
        hint=f"{int(bad_N.sum())} of {len(items)} vectors are like that; check the model",
    )


def refuse_repeated(items: Sequence[Item]) -> None:
    """Refuse a list of items in which an id comes twice.

    Raises:
        DataError: Names the id.
    """
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"got item {item.id!r} twice, expected each id once")
        seen.add(item.id)


def checked_row(item: Item) -> tuple[bytes, str]:
    """Id and meta of an item as they are stored.

    Raises:
        DataError: The id, a number or the meta cannot be stored.
    """
    if not item.id:
        raise DataError("got an item with an empty id, expected a unique name")
    if replace(item, meta={}) != Item(
        id=item.id,
        path=item.path,
        content_hash=item.content_hash,
        size=item.size,
        mtime_ns=item.mtime_ns,
    ):
        raise DataError(
            f"item {item.id!r} has a modality, date, tags, caption or text, "
            "expected an image without, which is what format 1 of an index holds"
        )
    for name, value in (("size", item.size), ("mtime_ns", item.mtime_ns)):
        if not -_LARGEST_INT <= value <= _LARGEST_INT:
            raise DataError(f"item {item.id!r} has {name}={value}, expected a 64-bit number")
    try:
        meta = json.dumps(dict(item.meta), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the meta of item {item.id!r} cannot be stored as JSON: {error}",
            hint="use strings, finite numbers, lists and dictionaries",
        ) from error
    return encoded_id(item.id), meta


def encoded_id(item_id: str) -> bytes:
    """An id as it is stored: UTF-8, undecodable bytes of file names as they were.

    Raises:
        DataError: The string has surrogates that stand for no byte.
    """
    try:
        return item_id.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise DataError(f"the id {item_id!r} is no valid Unicode string") from error


def decoded_id(stored: bytes) -> str:
    """The id that `encoded_id` stored."""
    return stored.decode("utf-8", "surrogateescape")


def check_same(stored: Space | None, got: Space, where: str) -> None:
    """Refuse to compare vectors of two spaces.

    Raises:
        SpaceMismatch: They differ; names both.
    """
    if stored is not None and stored != got:
        raise SpaceMismatch(
            f"the index {where} holds vectors of {in_words(stored)}, got {in_words(got)}",
            hint="use the model that made the index, or index into another directory",
        )


def in_words(space: Space) -> str:
    """A space as messages name it."""
    unit = "" if space.normalised else ", not normalised"
    return (
        f"{space.encoder!r} (weights {space.weights_hash}, preprocessing "
        f"{space.preprocessing_hash}, {space.dim} dimensions{unit})"
    )
