"""Keep an index equal to the picture files below some folders.

The work of one run, in order: find the files; skip those whose size and time are as noted; read
the others and compare their hash; decode, embed and store, in batches, those whose content is new.
Reading runs in threads, and decoding in processes, while the model works on the batch before. A
batch is stored in one durable step, so a run that is killed loses at most the batches in the
making, and the next run goes on from there. A file that crashes its decoder, or keeps it busy for a
minute, is a broken file like any other.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from costream.data.decode_apart import Decoders
from costream.data.failures import Failure
from costream.data.perceptual import HASH_KEY, difference_hash
from costream.data.taken import date_taken
from costream.data.walk import find_images
from costream.errors import ConfigError, DataError, NumericalError
from costream.index import check, files
from costream.index.records import Item, UpdateReport

if TYPE_CHECKING:
    from PIL.Image import Image

    from costream.index.protocol import SearchIndex
    from costream.records import Space

_THREADS = 2
# A batch is closed early when its decoded pictures have this many pixels (200 MB as RGB).
_BATCH_PIXELS = 2**26
# Least time between two calls of `progress`: drawing a bar costs more than looking at a file.
_PROGRESS_S = 0.05


class ImageEncoder(Protocol):
    """What turns pictures into vectors; `DualEncoder` is one."""

    @property
    def space(self) -> Space:
        """Where its vectors live."""

    def encode_images(self, images: Sequence[Any], *, batch_size: int) -> NDArray[np.float32]:
        """Turn N pictures into float32 (N, D), row i for picture i."""


def update_index(
    index: SearchIndex,
    model: ImageEncoder,
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    prune: bool = False,
    batch_size: int = 64,
    smallest_side: int | None = None,
    read_words: Callable[[Image], str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> UpdateReport:
    """Bring the pictures below some folders into an index, embedding only what is new.

    The id of a picture is its real path. A file whose size and time are as noted is not read. One
    that was touched but holds the same bytes is not embedded again; nor is one that holds the bytes
    of another item. When that other item's file is gone and was below `paths`, the file was moved,
    and the old item goes. Nothing outside `paths` is ever removed. Ctrl-C (KeyboardInterrupt) ends
    a run like an error does: what was stored stays, and the next run goes on from there.

    A broken file is listed and does not stop the run. If it was indexed before, the vector of its
    last good content stays: a file may be broken because it is just being written or because its
    disk is away, and `prune` is the way to drop files that are gone.

    Args:
        index: Where to.
        model: Makes the vectors; its space must be that of the index, unless that is empty.
        paths: Folders or files.
        prune: Whether to remove items below `paths` whose files are gone.
        batch_size: Pictures embedded and made durable at a time.
        smallest_side: Passed to `open_image`: JPEG files may be decoded smaller, down to this many
            pixels. Give what the model's own decoding uses, or None to decode in full.
        read_words: Finds the words in a picture, which become its text; None leaves it empty. Only
            pictures that are embedded are read.
        progress: Called with the number of files dealt with and their total.

    Returns:
        What was done, with the failures.

    Raises:
        SpaceMismatch: The index holds vectors of another model.
        DataError: A given path is absent, or the index cannot be written. What was stored before
            stays stored.
        NumericalError: No picture of the first batch got a usable vector: the model is broken.
        ConfigError: `batch_size` is below 1.

    Example:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from costream.index import Index
        >>> from costream.records import Space
        >>> class MeanColour:
        ...     space = Space(encoder="mean", weights_hash="", preprocessing_hash="", dim=3)
        ...     def encode_images(self, images, *, batch_size):
        ...         means = np.stack([np.asarray(i).mean(axis=(0, 1)) for i in images])
        ...         return np.float32(means / np.linalg.norm(means, axis=1, keepdims=True))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (8, 8), "red").save(Path(folder, "red.png"))
        ...     with Index.open(Path(folder, "index"), create=True) as index:
        ...         report = update_index(index, MeanColour(), folder)
        >>> report.added
        1
    """
    if batch_size < 1:
        raise ConfigError(f"got batch_size={batch_size}, expected at least 1")
    if len(index):
        check.check_same(index.space, model.space, index.location)
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found, failures = find_images(given)
    roots = [os.path.realpath(path) for path in given]
    names = files.real_paths(found)
    run = _Run(
        index=index,
        model=model,
        roots=roots,
        batch_size=batch_size,
        smallest_side=smallest_side,
        read_words=read_words,
        progress=progress,
        total=len(names),
        failures=failures,
        decoders=Decoders(),
    )
    run.know(index.items())
    run.over(names)
    if prune:
        run.count("removed", _prune(index, roots))
    index.load()  # so that the next search finds the vectors in one file
    return UpdateReport(**run.counts, failures=tuple(run.failures))


def _date(content: files.Content) -> float | None:
    """When a picture was taken; of a fresh file without that, when it was modified."""
    taken = date_taken(content.encoded)
    # The stamp of a fresh file does not say, and it shall be found by its date all the same.
    return content.modified_ns / 1e9 if taken is None and not content.stamp.mtime_ns else taken


def _moved(origin: Item, item: Item) -> Item:
    """An item under its new path, with all else that was known of it."""
    return replace(
        origin,
        id=item.id,
        path=item.path,
        size=item.size,
        mtime_ns=item.mtime_ns,
        date=item.date,
    )


def _prune(index: SearchIndex, roots: Sequence[str]) -> int:
    gone = [
        item.id
        for item in index.items()
        if item.path is not None and files.is_below(item.path, roots) and files.is_gone(item.path)
    ]
    return index.remove(gone)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """A file that was read: its picture, or that its content is known, or why it is no use."""

    item: Item
    picture: Image | None = None
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Pictures on their way through the model."""

    items: list[Item]
    vectors: Future[NDArray[np.float32]]


@dataclass(kw_only=True, slots=True)
class _Run:
    """One run of `update_index`: threads read and embed, processes decode, the main thread stores.

    Attributes:
        decoders: Turn the bytes of a file into a picture.
        known: What the index held at first, by path.
        holders: The same by content hash, less what was moved since.
        counts: Fields of the report.
        waiting: Decoded pictures for the next batch.
        copies: Items whose content the index has already, for the next step.
        touched: Items of which only the stamp is new, for the next step.
        in_model: The batch that the model works on.
        done: Files dealt with.
    """

    index: SearchIndex
    model: ImageEncoder
    roots: Sequence[str]
    batch_size: int
    smallest_side: int | None
    read_words: Callable[[Image], str] | None
    progress: Callable[[int, int], None] | None
    total: int
    failures: list[Failure]
    decoders: Decoders
    known: dict[str, Item] = field(default_factory=dict)
    holders: dict[str, list[Item]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    waiting: list[_Read] = field(default_factory=list)
    copies: list[Item] = field(default_factory=list)
    touched: list[Item] = field(default_factory=list)
    in_model: _Batch | None = None
    done: int = 0
    told_s: float = 0.0

    def know(self, items: Iterable[Item]) -> None:
        """Note what the index holds."""
        for item in items:
            if item.path is not None:
                self.known[item.path] = item
            if item.content_hash:
                self.holders.setdefault(item.content_hash, []).append(item)

    def over(self, names: Sequence[str]) -> None:
        """Deal with every file."""
        with (
            self.decoders,
            ThreadPoolExecutor(_THREADS) as readers,
            ThreadPoolExecutor(1) as model_thread,
        ):
            try:
                for read in self._read_ahead(readers, names):
                    self._take(read, model_thread)
                self._store_copies(model_thread)
                self._send(model_thread)
                self._store_batch()
                self._store_touched()
            except BaseException:
                # Ctrl-C or an error: what is stored is stored, the rest is for the next run.
                readers.shutdown(wait=False, cancel_futures=True)
                self.decoders.close()
                model_thread.shutdown(wait=False, cancel_futures=True)
                raise

    def count(self, what: str, number: int = 1) -> None:
        """Add to a field of the report."""
        self.counts[what] = self.counts.get(what, 0) + number

    def _advance(self, number: int = 1) -> None:
        self.done += number
        now_s = time.monotonic()
        if self.progress and (self.done == self.total or now_s - self.told_s > _PROGRESS_S):
            self.told_s = now_s
            self.progress(self.done, self.total)

    # --- reading, in threads ---

    def _read_ahead(self, readers: ThreadPoolExecutor, names: Sequence[str]) -> Iterator[_Read]:
        window: deque[Future[_Read]] = deque()
        for name in names:
            if self._is_unchanged(name):
                self.count("unchanged")
                self._advance()
                continue
            window.append(readers.submit(self._read, name))
            if len(window) > 2 * _THREADS:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()

    def _is_unchanged(self, name: str) -> bool:
        item = self.known.get(name)
        if item is None or not item.mtime_ns:
            return False
        try:
            return files.stamp(name) == files.Stamp(size=item.size, mtime_ns=item.mtime_ns)
        except DataError:
            return False  # reading it will say why

    def _read(self, name: str, *, decode: bool = False) -> _Read:
        """Read a file, and decode it unless its content is known."""
        old = self.known.get(name)
        item = Item(id=name, path=name) if old is None else old
        try:
            content = files.read_content(name)
            item = replace(
                item,
                content_hash=content.content_hash,
                size=content.stamp.size,
                mtime_ns=content.stamp.mtime_ns,
                date=_date(content),
                # Words that were found in other content are not found in this.
                text=item.text if item.content_hash == content.content_hash else "",
            )
            if item.content_hash in self.holders and not decode:
                return _Read(item=item)
            picture = self.decoders.decode(
                content.encoded, content.name, smallest_side=self.smallest_side
            )
            item = replace(item, meta={**item.meta, HASH_KEY: difference_hash(picture)})
            if self.read_words is not None:
                whole = self.decoders.decode(content.encoded, content.name)
                item = replace(item, text=self.read_words(whole))
            return _Read(item=item, picture=picture)
        except DataError as error:
            return _Read(item=item, failure=Failure.of(name, error))

    # --- counting and storing, in the main thread ---

    def _take(self, read: _Read, model_thread: ThreadPoolExecutor) -> None:
        old = self.known.get(read.item.path or "")
        if read.failure is not None:
            self.failures.append(read.failure)
            self._advance()
        elif read.picture is not None:
            self.waiting.append(read)
            pixels = sum(r.picture.width * r.picture.height for r in self.waiting if r.picture)
            if len(self.waiting) == self.batch_size or pixels >= _BATCH_PIXELS:
                self._send(model_thread)
        elif old is not None and old.content_hash == read.item.content_hash:
            self.touched.append(read.item)
            if len(self.touched) == self.batch_size:
                self._store_touched()
        else:
            self.copies.append(read.item)
            if len(self.copies) == self.batch_size:
                self._store_copies(model_thread)

    def _store_touched(self) -> None:
        self.index.touch(self.touched)
        self.count("unchanged", len(self.touched))
        self._advance(len(self.touched))
        self.touched = []

    def _store_copies(self, model_thread: ThreadPoolExecutor) -> None:
        """Give files the vectors of the items that have the same content."""
        copies, self.copies = self.copies, []
        origins = [self._pop_origin(item) for item in copies]
        items = [
            item if origin is None else _moved(origin, item)
            for item, origin in zip(copies, origins, strict=True)
        ]
        gone = [origin.id for origin in origins if origin is not None]
        missing = self.index.reuse(items, remove=gone)
        for item, origin in zip(items, origins, strict=True):
            if item in missing:
                # The content's last holder changed or went meanwhile: embed it after all.
                self._take(self._read(item.path or "", decode=True), model_thread)
            else:
                self._count_stored(item, moved=origin is not None)

    def _pop_origin(self, item: Item) -> Item | None:
        """The item that a file was moved from, if it was moved."""
        for origin in self.holders.get(item.content_hash, []):
            path = origin.path
            if path in (None, item.path) or not files.is_below(path, self.roots):
                continue
            if files.is_gone(path):
                self.holders[item.content_hash].remove(origin)
                return origin
        return None

    def _send(self, model_thread: ThreadPoolExecutor) -> None:
        """Hand what waits to the model, after storing what it made before."""
        self._store_batch()
        if self.waiting:
            pictures = [read.picture for read in self.waiting]
            self.in_model = _Batch(
                items=[read.item for read in self.waiting],
                vectors=model_thread.submit(
                    self.model.encode_images, pictures, batch_size=self.batch_size
                ),
            )
            self.waiting = []

    def _store_batch(self) -> None:
        if self.in_model is None:
            return
        items, vectors_ND = self.in_model.items, self.in_model.vectors.result()
        self.in_model = None
        usable = self._usable_rows(items, vectors_ND)
        self.index.add([items[row] for row in usable], vectors_ND[usable], self.model.space)
        self.count("embedded", len(usable))
        for row in usable:
            self._count_stored(items[row])

    def _usable_rows(self, items: Sequence[Item], vectors_ND: NDArray[np.float32]) -> list[int]:
        """Rows that may be stored; a picture that gives none is a failure of that picture."""
        if vectors_ND.ndim != 2 or len(vectors_ND) != len(items):
            raise DataError(
                f"the model gave vectors of shape {vectors_ND.shape} for {len(items)} pictures, "
                f"expected ({len(items)}, {self.model.space.dim})"
            )
        fine_N = np.isfinite(vectors_ND).all(axis=1) & (vectors_ND != 0).any(axis=1)
        if not fine_N.any() and not self.counts.get("embedded"):
            raise NumericalError(
                f"the model gave no usable vector for {len(items)} pictures, the first being "
                f"{items[0].id!r}: every one is zero or not finite",
                hint="check the model's weights",
            )
        for row in np.flatnonzero(~fine_N).tolist():
            reason = "the model gave a vector that is zero or not finite; leave this picture out"
            self.failures.append(Failure(path=items[row].path or items[row].id, reason=reason))
            self._advance()
        return list(np.flatnonzero(fine_N).tolist())

    def _count_stored(self, item: Item, *, moved: bool = False) -> None:
        is_known = (item.path or "") in self.known
        self.count("moved" if moved else "changed" if is_known else "added")
        self._advance()
