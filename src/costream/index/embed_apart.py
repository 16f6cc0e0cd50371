"""Embed files where the index is not: the same work as an update, with values as its result.

Shape letters: V vectors of an item, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costream.data.failures import Failure
from costream.index.forms import ItemForm
from costream.index.ingest import Ingest
from costream.index.models import ImageEncoder
from costream.index.records import Item

if TYPE_CHECKING:
    from costream.data.decode_apart import Decoders
    from costream.data.video import Sampling
    from costream.index.protocol import SearchIndex
    from costream.records import Space


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Made:
    """What came of one file.

    Attributes:
        item: What is known of it.
        vectors_VD: float32; None for a file whose content is as it was.
        spans_V2: Of its moments, in seconds; None for a picture of one vector.
    """

    item: Item
    vectors_VD: NDArray[np.float32] | None = None
    spans_V2: NDArray[np.float64] | None = None


def embed_apart(
    maker: ImageEncoder | ItemForm,
    names: Sequence[str],
    known: Iterable[Item],
    *,
    decoders: Decoders,
    sampling: Sampling,
    smallest_side: int | None,
    batch_size: int = 64,
    threads: int = 1,
) -> tuple[list[Made], list[Failure]]:
    """Read, decode and embed files as `update_index` does.

    Args:
        maker: Makes the vectors.
        names: Files; each is read.
        known: Items that the index has of these files.
        decoders: Turn files into pictures and samples; left open.
        sampling: As of `update_index`.
        smallest_side: As of `update_index`.
        batch_size: As of `update_index`.
        threads: That read, each with a process that decodes.

    Returns:
        What came of each file that can be used, in any order, and why the others cannot.

    Raises:
        NumericalError: As of `update_index`.
    """
    sink = _Sink()
    run = Ingest(
        index=sink,
        model=maker,
        batch_size=batch_size,
        smallest_side=smallest_side,
        sampling=sampling,
        total=len(names),
        decoders=decoders,
        threads=threads,
    )
    # Without its time, no file counts as unchanged.
    run.know(replace(item, mtime_ns=0) for item in known)
    run.over(names)
    return sink.made, run.failures


def add_made(index: SearchIndex, made: Sequence[Made], space: Space) -> None:
    """Put into an index what was embedded elsewhere.

    Args:
        index: Where to.
        made: Of different files.
        space: Of the vectors.

    Raises:
        SpaceMismatch, NumericalError, DataError: As of `SearchIndex.add`.
    """
    index.touch([one.item for one in made if one.vectors_VD is None])
    single, several = [], []
    for one in made:
        if one.vectors_VD is not None and one.spans_V2 is None:
            single.append((one.item, one.vectors_VD))
        elif one.vectors_VD is not None and one.spans_V2 is not None:
            several.append((one.item, one.vectors_VD, one.spans_V2))
    if single:
        items, vectors = zip(*single, strict=True)
        index.add(items, np.concatenate(vectors), space)
    if several:
        clips, parts, spans = zip(*several, strict=True)
        parents = np.repeat(np.arange(len(clips)), [len(part) for part in parts])
        index.add_moments(clips, np.concatenate(parts), parents, np.concatenate(spans), space)


class _Sink:
    """Keeps what would be stored."""

    def __init__(self) -> None:
        self.made: list[Made] = []

    def add(self, items: Sequence[Item], vectors: NDArray[Any], space: Space) -> None:
        self.made += [
            Made(item=item, vectors_VD=vectors[row : row + 1]) for row, item in enumerate(items)
        ]

    def add_moments(
        self,
        items: Sequence[Item],
        vectors: NDArray[Any],
        parents: NDArray[Any],
        spans: NDArray[Any],
        space: Space,
    ) -> None:
        self.made += [
            Made(item=item, vectors_VD=vectors[parents == row], spans_V2=spans[parents == row])
            for row, item in enumerate(items)
        ]

    def reuse(self, items: Sequence[Item], *, remove: Iterable[str] = ()) -> list[Item]:
        # Another file with these bytes is in the index, which is not here.
        return list(items)

    def touch(self, items: Sequence[Item]) -> None:
        self.made += [Made(item=item) for item in items]
