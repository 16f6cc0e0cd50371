"""Copy an index from one place to another, resumably, and verify the copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from costream.errors import DataError
from costream.index.protocol import SearchIndex
from costream.index.records import Item

_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyReport:
    """What a copy did.

    Attributes:
        copied: Items written.
        kept: Items that were there already, the same.
        removed: Items of the target that the source has not.
    """

    copied: int
    kept: int
    removed: int


def copy_index(
    source: SearchIndex,
    target: SearchIndex,
    *,
    progress: Callable[[int], None] | None = None,
) -> CopyReport:
    """Make a target index hold what a source index holds: items, vectors, moments.

    Stopped at any moment, it is run again and goes on: what is there already, with the same
    content, is not written again. In the end both are read and compared.

    Args:
        source: Copied from; its active space only.
        target: Copied to; empty, or of the same space.
        progress: Called with the number of items done since the last call.

    Returns:
        Counts.

    Raises:
        SpaceMismatch: The target holds vectors of another space.
        DataError: The source is empty, was changed meanwhile, or an index fails.
    """
    space = source.space
    if space is None:
        raise DataError(f"the index {source.location} is empty, nothing to copy")
    wanted = source.items()
    there = {item.id: item for item in target.items()}
    gone = sorted(there.keys() - {item.id for item in wanted})
    removed = target.remove(gone)
    kept = 0
    for start in range(0, len(wanted), _AT_ONCE):
        part = wanted[start : start + _AT_ONCE]
        new = [item for item in part if there.get(item.id) != item]
        same = [item for item in part if there.get(item.id) == item]
        changed = _differing(source, target, same)
        if new or changed:
            _write(source, target, [*new, *changed])
        kept += len(same) - len(changed)
        if progress is not None:
            progress(len(part))
    _verify(source, target)
    return CopyReport(copied=len(wanted) - kept, kept=kept, removed=removed)


def _write(source: SearchIndex, target: SearchIndex, items: Sequence[Item]) -> None:
    space = source.space
    if space is None:
        raise DataError(f"the index {source.location} was emptied meanwhile", hint="run it again")
    ids = [item.id for item in items]
    moments = source.moments(ids)
    parents = [number for number, each in enumerate(moments) for _ in each]
    spans = [
        [np.nan if edge is None else edge for edge in (moment.t_start, moment.t_end)]
        for each in moments
        for moment in each
    ]
    target.add_moments(
        items, source.all_vectors(ids), np.array(parents), np.array(spans, dtype=float), space
    )


def _differing(source: SearchIndex, target: SearchIndex, items: Sequence[Item]) -> list[Item]:
    """Items whose vectors or moments are not the same in both."""
    ids = [item.id for item in items]
    pairs = zip(items, source.moments(ids), target.moments(ids), strict=True)
    compared = [(item, one == other, len(one)) for item, one, other in pairs]
    wrong = [item for item, same, _ in compared if not same]
    alike = [(item, count) for item, same, count in compared if same]
    ids = [item.id for item, _ in alike]
    if ids:
        same_M = (source.all_vectors(ids) == target.all_vectors(ids)).all(axis=1)
        starts = np.cumsum([0, *(count for _, count in alike)])
        for (item, count), start in zip(alike, starts, strict=False):
            if not same_M[start : start + count].all():
                wrong.append(item)
    return wrong


def _verify(source: SearchIndex, target: SearchIndex) -> None:
    items = source.items()
    same = items == target.items()
    for start in range(0, len(items), _AT_ONCE):
        same = same and not _differing(source, target, items[start : start + _AT_ONCE])
    if not same:
        raise DataError(
            f"{source.location} and {target.location} hold different items after copying",
            hint="one of them was changed meanwhile: run it again",
        )
