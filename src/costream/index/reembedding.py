"""From one model to another: every item embedded again beside the old vectors, then one switch.

Until the switch the index answers with the old model, and others may go on adding to it. What is
embedded is durable batch by batch, so a run that was killed is run again and goes on. The old
vectors stay until they are dropped; going back is the same thing with the models exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from costream.data.decode_apart import Decoders
from costream.data.failures import Failure
from costream.data.video import DEFAULT_SAMPLING, Sampling
from costream.errors import ConfigError, DataError
from costream.index import check, files
from costream.index.ingest import Ingest
from costream.index.models import ImageEncoder
from costream.index.records import Item

if TYPE_CHECKING:
    from costream.index.protocol import SearchIndex
    from costream.records import Space


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationReport:
    """What a migration did.

    Attributes:
        embedded: Items that got a vector of the new model.
        switched: Whether the index answers with the new model now.
        failures: Items that got none, and why.
    """

    embedded: int
    switched: bool
    failures: tuple[Failure, ...]


def migrate_index(
    index: SearchIndex,
    model: ImageEncoder,
    *,
    allow_missing: bool = False,
    batch_size: int = 64,
    smallest_side: int | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    progress: Callable[[int, int], None] | None = None,
) -> MigrationReport:
    """Embed every item with another model and make that the one of the index.

    Args:
        index: Which; its active space stays, to switch back to.
        model: The other model, or one whose vectors are held since an earlier switch.
        allow_missing: Whether items that cannot be embedded are accepted; they are then found by
            words and conditions only.
        batch_size: As of `update_index`.
        smallest_side: As of `update_index`.
        sampling: As of `update_index`.
        progress: Called with the number of items dealt with and their total.

    Returns:
        Counts. Not switched when an item failed and that is not allowed.

    Raises:
        ConfigError: The index is that of the model already, or the model only asks what another
            one has embedded.
        DataError: The index is empty or cannot be written.
        NumericalError: The model is broken.
    """
    if index.space is None or not len(index):
        raise DataError(f"the index {index.location} is empty, expected items to embed again")
    if index.space == model.space:
        raise ConfigError(
            f"the index {index.location} has vectors of {check.in_words(model.space)} already"
        )
    check.refuse_query_only(model)
    index.begin_space(model.space)
    failures: dict[str, Failure] = {}
    embedded = 0
    while True:
        missing = index.missing(model.space, max(len(index), 1))
        todo = [item for item in missing if item.id not in failures]
        if todo:
            run = _run(index, model, todo, batch_size, smallest_side, sampling, progress)
            left = {item.id for item in index.missing(model.space, len(index) + 1)}
            embedded += sum(item.id not in left for item in todo)
            reasons = {failure.path: failure for failure in run.failures}
            failures |= {i.id: _failure(i, reasons) for i in todo if i.id in left}
        elif missing and not allow_missing:
            return _report(embedded, failures, switched=False)
        elif _switch(index, model.space, missing):
            return _report(embedded, failures, switched=True)


def _run(
    index: SearchIndex,
    model: ImageEncoder,
    items: Sequence[Item],
    batch_size: int,
    smallest_side: int | None,
    sampling: Sampling,
    progress: Callable[[int, int], None] | None,
) -> Ingest:
    # Without its time, no file counts as unchanged.
    by_path = {item.path: replace(item, mtime_ns=0) for item in items if item.path is not None}
    with Decoders() as decoders:
        run = Ingest(
            index=_Filling(index),
            model=model,
            batch_size=batch_size,
            smallest_side=smallest_side,
            sampling=sampling,
            progress=progress,
            total=len(by_path),
            decoders=decoders,
            known=by_path,
        )
        run.over(list(by_path))
    return run


class _Filling:
    """Takes what is embedded into the space that it belongs to, active or not."""

    def __init__(self, index: SearchIndex) -> None:
        self._index = index

    def add(self, items: Sequence[Item], vectors: NDArray[Any], space: Space) -> None:
        self._index.fill_space(items, vectors, space)

    def add_moments(
        self,
        items: Sequence[Item],
        vectors: NDArray[Any],
        parents: NDArray[Any],
        spans: NDArray[Any],
        space: Space,
    ) -> None:
        self._index.fill_space(items, vectors, space, parents=parents, spans=spans)

    def reuse(self, items: Sequence[Item], *, remove: Iterable[str] = ()) -> list[Item]:
        # Nothing counts as known, so this is called with nothing.
        return list(items)

    def touch(self, items: Sequence[Item]) -> None:
        pass  # the item stays as it is


def _switch(index: SearchIndex, space: Space, missing: Sequence[Item]) -> bool:
    """Make a space the active one; not when items came meanwhile."""
    try:
        index.switch_space(space, allow_missing=bool(missing))
    except DataError:
        if len(index.missing(space, len(missing) + 1)) <= len(missing):
            raise
        return False
    index.load()
    return True


def _failure(item: Item, reasons: dict[str, Failure]) -> Failure:
    name = item.path or item.id
    if item.path is None:
        return Failure(path=name, reason="has no file that it could be embedded from")
    if item.path in reasons:
        return reasons[item.path]
    if files.is_gone(item.path):
        return Failure(path=name, reason="its file is gone")
    return Failure(
        path=name,
        reason="has changed since it was indexed; bring the index up to date with costream index",
    )


def _report(embedded: int, failures: dict[str, Failure], *, switched: bool) -> MigrationReport:
    return MigrationReport(embedded=embedded, switched=switched, failures=tuple(failures.values()))
