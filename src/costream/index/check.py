"""What may enter an index: refusals that name the item.

Shape letters: N items, D dimensions.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costream.errors import ConfigError, DataError, NumericalError, SpaceMismatch
from costream.index.models import AskingEncoder
from costream.index.records import MODALITIES, Item
from costream.records import Space
from costream.scoring.halves import narrow

if TYPE_CHECKING:
    from costream.index.forms import ItemForm
    from costream.index.models import ImageEncoder

# How far from 1 the length of a vector may be in a space of unit vectors: wider than float16 or
# bfloat16 rounding, narrower than any mistake.
_LENGTH_SLACK = 0.02
_MOST_MOMENTS = 2**20
_LARGEST_INT = 2**63 - 1
# Made once, since `json.dumps` makes one a call.
_META = json.JSONEncoder(sort_keys=True, allow_nan=False, ensure_ascii=False)
_SURROGATE = re.compile("[\ud800-\udfff]")


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
        ConfigError: The space is one of sparse vectors.
        DataError: The array is not floating point, or not one row an item.
        SpaceMismatch: The rows have another number of dimensions than the space.
        NumericalError: A row is not finite, zero, too large for float16, or not of length 1 in a
            space of unit vectors; the item is named.
    """
    refuse_other_kinds(space)
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
    with np.errstate(over="ignore", invalid="ignore"):
        lengths_N = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND))
        off_N = ~(np.abs(lengths_N - 1) <= _LENGTH_SLACK)
        is_fine = space.normalised and not off_N.any()
        if is_fine and vectors_ND.dtype == np.float32:
            return narrow(vectors_ND)
        stored_ND = vectors_ND.astype("<f2")
    if is_fine:
        return stored_ND  # of length 1: finite, and no row zero in float16
    _refuse_rows(items, ~np.isfinite(vectors_ND).all(axis=1), "has a value that is not finite")
    _refuse_rows(items, ~np.isfinite(stored_ND).all(axis=1), "has a value above 65,504")
    _refuse_rows(items, (stored_ND == 0).all(axis=1), "is zero in float16")
    if space.normalised:
        _refuse_rows(items, off_N, "has another length than 1", lengths_N)
    return stored_ND


@dataclass(frozen=True, slots=True)
class Batch:
    """Vectors that passed every check, in the order of the items they belong to.

    Attributes:
        vectors: float16 (M, D), little-endian.
        parents: int64 (M,): number of the item, never falling.
        spans: float64 (M, 2), or None when none has a span; NaN for none.
    """

    vectors: NDArray[np.float16]
    parents: NDArray[np.int64]
    spans: NDArray[np.float64] | None = None

    def parts(self) -> NDArray[np.int64]:
        """int64 (M,): the vector's number within its item."""
        firsts = np.searchsorted(self.parents, self.parents, side="left")
        return np.arange(len(self.parents)) - firsts

    def of(self, rows: Sequence[int]) -> Batch:
        """The vectors of some of the items, which are numbered anew."""
        numbers = np.full(int(self.parents.max(initial=-1)) + 1, -1)
        numbers[list(rows)] = np.arange(len(rows))
        parents = numbers[self.parents]
        order = np.argsort(parents, kind="stable")[int((parents < 0).sum()) :]
        spans = None if self.spans is None else self.spans[order]
        return Batch(self.vectors[order], parents[order], spans)


def checked_batch(items: Sequence[Item], vectors_ND: NDArray[Any], space: Space) -> Batch:
    """One vector an item, as they are stored; raises what `checked_vectors` raises."""
    refuse_repeated(items)
    stored = checked_vectors(items, vectors_ND, space)
    return Batch(stored, np.arange(len(items), dtype=np.int64))


def checked_moments(
    items: Sequence[Item],
    vectors_MD: NDArray[Any],
    parents: NDArray[Any],
    spans: NDArray[Any],
    space: Space,
) -> Batch:
    """Vectors of moments as they are stored.

    Args:
        items: What the vectors belong to.
        vectors_MD: Floating point (M, D).
        parents: Integer (M,): which of the items.
        spans: Floating point (M, 2): start and end in seconds; both NaN for no span.
        space: Where they live.

    Returns:
        The vectors in the order of the items.

    Raises:
        DataError: An array has another form, a parent is none of the items, an item has no vector
            or more than 2**20, a span ends before it starts or is half given, or an id comes twice.
        ConfigError, SpaceMismatch, NumericalError: As of `checked_vectors`.
    """
    refuse_repeated(items)
    parents_M, spans_M2 = np.asarray(parents), np.asarray(spans)
    count = len(vectors_MD)
    if parents_M.dtype.kind not in "iu" or parents_M.shape != (count,):
        raise DataError(
            f"got parents of type {parents_M.dtype} and shape {parents_M.shape}, "
            f"expected integers ({count},)"
        )
    if spans_M2.dtype.kind != "f" or spans_M2.shape != (count, 2):
        raise DataError(
            f"got spans of type {spans_M2.dtype} and shape {spans_M2.shape}, "
            f"expected floating point ({count}, 2)"
        )
    if count and not (0 <= parents_M.min() and parents_M.max() < len(items)):
        raise DataError(
            f"got parents from {parents_M.min()} to {parents_M.max()}, "
            f"expected numbers of {len(items)} items"
        )
    counts = np.bincount(parents_M, minlength=len(items))
    for row in np.flatnonzero((counts == 0) | (counts > _MOST_MOMENTS))[:1].tolist():
        raise DataError(
            f"item {items[row].id!r} has {counts[row]} vectors, expected 1 to {_MOST_MOMENTS:,}"
        )
    start_M, end_M = spans_M2.T.astype(np.float64)
    given_M = np.isfinite(start_M) & np.isfinite(end_M)
    fine_M = (np.isnan(start_M) & np.isnan(end_M)) | (given_M & (start_M <= end_M))
    for row in np.flatnonzero(~fine_M)[:1].tolist():
        raise DataError(
            f"item {items[parents_M[row]].id!r} has a moment from {start_M[row]} to {end_M[row]}, "
            "expected finite seconds in order, or NaN for both"
        )
    stored = checked_vectors([items[row] for row in parents_M.tolist()], vectors_MD, space)
    order = np.argsort(parents_M, kind="stable")
    has_spans = not np.isnan(start_M).all()
    return Batch(
        stored[order],
        parents_M[order].astype(np.int64),
        spans_M2[order].astype(np.float64) if has_spans else None,
    )


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


def refuse_other_kinds(space: Space) -> None:
    """Refuse a space of sparse vectors.

    Raises:
        ConfigError: It is one.
    """
    if space.kind == "sparse":
        raise ConfigError("got sparse vectors, this index holds dense ones only")


def refuse_repeated(items: Sequence[Item]) -> None:
    """Refuse a list of items in which an id comes twice.

    Raises:
        DataError: Names the id.
    """
    if len({item.id for item in items}) == len(items):
        return
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"got item {item.id!r} twice, expected each id once")
        seen.add(item.id)


def refuse_bad_row(item: Item) -> None:
    """Refuse an item that cannot be stored; its meta is looked at by `metas_as_json`.

    Raises:
        DataError: The id, a number or a text cannot be stored.
    """
    refuse_empty_id(item)
    if not (abs(item.size) <= _LARGEST_INT and abs(item.mtime_ns) <= _LARGEST_INT):
        raise DataError(
            f"item {item.id!r} has size={item.size} and mtime_ns={item.mtime_ns}, "
            "expected 64-bit numbers"
        )
    _check_words(item)


def refuse_empty_id(item: Item) -> None:
    """Refuse an item without an id.

    Raises:
        DataError: It has none.
    """
    if not item.id:
        raise DataError("got an item with an empty id, expected a unique name")


def checked_row(item: Item) -> tuple[bytes, str]:
    """Id and meta of an item as they are stored.

    Raises:
        DataError: The id, a number, a text or the meta cannot be stored.
    """
    refuse_bad_row(item)
    return encoded_id(item.id), _meta_as_json(item)


def metas_as_json(items: Sequence[Item]) -> list[str]:
    """The meta of each item as it is stored.

    Raises:
        DataError: One cannot be stored as JSON; names the item.
    """
    # One call for all is three times as fast as one an item: they are joined by a string that
    # none of them holds.
    mark = os.urandom(12).hex()
    listed: list[Any] = []
    for item in items:
        listed += (mark, item.meta)
    try:
        joined = _META.encode(listed) if all(type(i.meta) is dict for i in items) else ""
    except (TypeError, ValueError):
        joined = ""  # said below, with the name of the item
    if not joined:
        return [_meta_as_json(item) for item in items]
    parts = _escaped(joined[:-1]).split(f'"{mark}", ')[1:]
    return [part.removesuffix(", ") for part in parts]


def _meta_as_json(item: Item) -> str:
    try:
        return _escaped(_META.encode(dict(item.meta)))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the meta of item {item.id!r} cannot be stored as JSON: {error}",
            hint="use strings, finite numbers, lists and dictionaries",
        ) from error


def _escaped(text: str) -> str:
    """JSON without the characters that UTF-8 has no bytes for."""
    if text.isascii():
        return text
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _check_words(item: Item) -> None:
    if item.modality not in MODALITIES:
        raise DataError(
            f"item {item.id!r} has modality {item.modality!r}, expected one of "
            f"{', '.join(MODALITIES)}"
        )
    if item.date is not None and not math.isfinite(item.date):
        raise DataError(f"item {item.id!r} has date {item.date}, expected finite seconds or None")
    if item.tags or not isinstance(item.tags, tuple):
        _check_tags(item)
    if not (item.caption.isascii() and item.text.isascii() and item.content_hash.isascii()):
        for text in (item.caption, item.text, item.content_hash):
            _refuse_surrogates(item, text)


def _check_tags(item: Item) -> None:
    # A string here would become a tag a letter.
    if not isinstance(item.tags, tuple) or not all(item.tags) or "\x1f" in "".join(item.tags):
        raise DataError(
            f"item {item.id!r} has tags {item.tags!r}, expected a tuple of words, none empty and "
            "none with the control character 31"
        )
    for tag in item.tags:
        _refuse_surrogates(item, tag)


def _refuse_surrogates(item: Item, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text of item {item.id!r} is no valid Unicode: {text[:80]!r}",
            hint="replace what cannot be encoded, as text.encode('utf-8', 'replace') does",
        ) from error


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


def refuse_query_only(model: ImageEncoder | ItemForm) -> None:
    """Refuse to embed items with a model that is there to ask what another one has embedded.

    Args:
        model: Whatever would make the vectors.

    Raises:
        ConfigError: It is one; says which model to use.
    """
    if isinstance(model, AskingEncoder) and model.is_query_only:
        raise ConfigError(
            f"{model.name} only asks indexes of {in_words(model.space)}: what it makes of a "
            "picture is a question there, no item",
            hint=f"embed items with {model.space.encoder!r}, and give this one to costream search "
            "--model",
        )


def in_words(space: Space) -> str:
    """A space as messages name it."""
    unit = "" if space.normalised else ", not normalised"
    unit += ", several an item" if space.kind == "multi" else ""
    return (
        f"{space.encoder!r} (weights {space.weights_hash}, preprocessing "
        f"{space.preprocessing_hash}, {space.dim} dimensions{unit})"
    )
