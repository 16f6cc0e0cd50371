"""The work of one update: threads read, processes decode, the model embeds, the index stores."""

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
from costream.data.video import Sampling
from costream.errors import DataError
from costream.index import files
from costream.index.embedding import NO_SPAN, Batches, Growing, Span, Vectors
from costream.index.forms import ItemForm
from costream.index.left_out import no_tower_for_sounds
from costream.index.models import ImageEncoder, PreparingEncoder, SoundEncoder
from costream.index.records import Item

if TYPE_CHECKING:
    from PIL.Image import Image

    from costream.records import Space

# Threads that read, each with a process that decodes; more than this outrun any model on a CPU.
_THREADS = min(max(os.cpu_count() or 2, 2), 16)
# Least time between two calls of `progress`: drawing a bar costs more than looking at a file.
_PROGRESS_S = 0.05
_NAMES = {"image": "picture", "video": "video", "audio": "sound", "text": "text"}


class Sink(Protocol):
    """What takes items; an index does."""

    def add(self, items: Sequence[Item], vectors: NDArray[Any], space: Space) -> None:
        """As of an index."""

    def add_moments(
        self,
        items: Sequence[Item],
        vectors: NDArray[Any],
        parents: NDArray[Any],
        spans: NDArray[Any],
        space: Space,
    ) -> None:
        """As of an index."""

    def reuse(self, items: Sequence[Item], *, remove: Iterable[str] = ()) -> list[Item]:
        """As of an index."""

    def touch(self, items: Sequence[Item]) -> None:
        """As of an index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """A file that was read: a picture, a clip, one whose content is known, or why it is no use.

    Attributes:
        item: What is known of it so far.
        picture: Decoded, and prepared if the model does that beforehand.
        clip: What was read of a clip; its moments are still to be decoded.
        failure: Why it is no use.
    """

    item: Item
    picture: Any = None
    clip: files.Content | None = None
    failure: Failure | None = None


@dataclass(kw_only=True, slots=True)
class Ingest:
    """One run of `update_index`: threads read and embed, processes decode, the main thread stores.

    Attributes:
        decoders: Turn files into pictures and samples; closed by who made them, or by an error.
        threads: That read, each with a process that decodes.
        known: What the index held at first, by path.
        holders: The same by content hash, less what was moved since.
        counts: Fields of the report.
        copies: Items whose content the index has already, for the next step.
        touched: Items of which only the stamp is new, for the next step.
        pictures: Pictures and moments of videos on their way through the model.
        sounds: The same of sounds.
        done: Files dealt with.
    """

    index: Sink
    model: ImageEncoder | ItemForm
    batch_size: int
    smallest_side: int | None
    sampling: Sampling
    total: int
    decoders: Decoders
    roots: Sequence[str] = ()
    read_words: Callable[[Image], str] | None = None
    progress: Callable[[int, int], None] | None = None
    failures: list[Failure] = field(default_factory=list)
    threads: int = _THREADS
    known: dict[str, Item] = field(default_factory=dict)
    holders: dict[str, list[Item]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    copies: list[Item] = field(default_factory=list)
    touched: list[Item] = field(default_factory=list)
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
            ThreadPoolExecutor(self.threads) as readers,
            ThreadPoolExecutor(1) as model_thread,
        ):
            try:
                pictures = self._batches(self._encode_pictures, model_thread)
                sounds = self._batches(self._encode_sounds, model_thread)
                for read in self._read_ahead(readers, names):
                    self._take(read, pictures, sounds)
                self._store_copies(pictures, sounds)
                pictures.finish()
                sounds.finish()
                self._store_touched()
            except BaseException:
                # Ctrl-C or an error: what is stored is stored, the rest is for the next run.
                readers.shutdown(wait=False, cancel_futures=True)
                self.decoders.close()
                model_thread.shutdown(wait=False, cancel_futures=True)
                raise

    def _batches(self, encode: Callable[[list[Any]], Any], thread: ThreadPoolExecutor) -> Batches:
        return Batches(
            encode,
            dim=self.model.space.dim,
            batch_size=self.batch_size,
            thread=thread,
            store=self._store,
        )

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
            if len(window) > 2 * self.threads:
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
                modality=content.modality,
                date=_date(content, self.decoders),
                # Words that were found in other content are not found in this.
                text=item.text if item.content_hash == content.content_hash else "",
            )
            if item.content_hash in self.holders and not decode:
                return _Read(item=item)
            if content.modality != "image":
                return _Read(item=item, clip=content)
            picture = self.decoders.decode(
                content.encoded, content.name, smallest_side=self.smallest_side
            )
            item = replace(item, meta={**item.meta, HASH_KEY: difference_hash(picture)})
            if self.read_words is not None:
                whole = self.decoders.decode(content.encoded, content.name)
                item = replace(item, text=self.read_words(whole))
            return _Read(item=item, picture=self._prepared(picture))
        except DataError as error:
            return _Read(item=item, failure=Failure.of(name, error))

    def _prepared(self, picture: Image) -> Any:
        if isinstance(self.model, PreparingEncoder):
            return self.model.prepare_image(picture)
        return picture

    # --- clips, in the main thread: while the model works on a batch, the next one is decoded ---

    def _moments(self, clip: files.Content) -> Iterator[tuple[Any, Span]]:
        """What the model gets of a clip, with the spans of time.

        Raises:
            DataError: The clip cannot be decoded, or it was changed meanwhile.
        """
        if clip.modality == "video":
            frames = self.decoders.frames(
                clip.path, sampling=self.sampling, smallest_side=self.smallest_side
            )
            for frame in frames:
                yield self._prepared(frame.image), (frame.t_start, frame.t_end)
        else:
            model = self.model
            if not isinstance(model, SoundEncoder):
                raise no_tower_for_sounds(clip.name, model.space)
            windows = self.decoders.windows(
                clip.path, rate_hz=model.rate_hz, window_s=model.window_s
            )
            for window in windows:
                yield window.samples, (window.t_start, window.t_end)
        files.check_unchanged(clip)

    def _take_clip(self, item: Item, clip: files.Content, batches: Batches) -> None:
        growing = batches.begin(item)
        moments = self._moments(clip)
        while True:
            try:
                part, span = next(moments)
            except StopIteration:
                growing.is_whole = True
                return
            except DataError as error:
                batches.drop(growing)
                self._fail(item, Failure.of(clip.path, error).reason)
                return
            batches.add(growing, part, span)  # its errors are those of the model and the index

    def _encode_pictures(self, pictures: list[Any]) -> Vectors | list[Vectors]:
        if isinstance(self.model, ItemForm):
            return self.model.of_images(pictures)
        if isinstance(self.model, PreparingEncoder):
            return self.model.encode_prepared(pictures, batch_size=self.batch_size)
        return self.model.encode_images(pictures, batch_size=self.batch_size)

    def _encode_sounds(self, sounds: list[Any]) -> Vectors:
        assert isinstance(self.model, SoundEncoder)  # noqa: S101  or there would be no sounds
        return self.model.encode_sounds(sounds, batch_size=self.batch_size)

    # --- counting and storing, in the main thread ---

    def _take(self, read: _Read, pictures: Batches, sounds: Batches) -> None:
        old = self.known.get(read.item.path or "")
        if read.failure is not None:
            self._fail(read.item, read.failure.reason)
        elif read.clip is not None:
            batches = sounds if read.clip.modality == "audio" else pictures
            self._take_clip(read.item, read.clip, batches)
        elif read.picture is not None:
            growing = pictures.begin(read.item)
            growing.is_whole = True
            pictures.add(growing, read.picture, NO_SPAN)
        elif old is not None and old.content_hash == read.item.content_hash:
            self.touched.append(read.item)
            if len(self.touched) == self.batch_size:
                self._store_touched()
        else:
            self.copies.append(read.item)
            if len(self.copies) == self.batch_size:
                self._store_copies(pictures, sounds)

    def _fail(self, item: Item, reason: str) -> None:
        self.failures.append(Failure(path=item.path or item.id, reason=reason))
        self._advance()

    def _store_touched(self) -> None:
        self.index.touch(self.touched)
        self.count("unchanged", len(self.touched))
        self._advance(len(self.touched))
        self.touched = []

    def _store_copies(self, pictures: Batches, sounds: Batches) -> None:
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
                self._take(self._read(item.path or "", decode=True), pictures, sounds)
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

    def _store(self, grown: Sequence[Growing]) -> None:
        """Make items durable that have all their vectors; in two steps, if some have several."""
        usable = [growing for growing in grown if growing.is_usable]
        for growing in grown:
            if growing not in usable:
                what = f"leave this {_NAMES[growing.item.modality]} out"
                reason = f"the model gave a vector that is zero or not finite; {what}"
                self._fail(growing.item, reason)
        single = [growing for growing in usable if _is_single(growing)]
        several = [growing for growing in usable if not _is_single(growing)]
        if single:
            vectors_ND = np.concatenate([growing.vectors[0] for growing in single])
            self.index.add([growing.item for growing in single], vectors_ND, self.model.space)
        if several:
            parts = [part for growing in several for part in growing.vectors]
            spans = [span for growing in several for span in growing.spans]
            counts = [sum(map(len, growing.vectors)) for growing in several]
            self.index.add_moments(
                [growing.item for growing in several],
                np.concatenate(parts),
                np.repeat(np.arange(len(several)), counts),
                np.repeat(np.array(spans), [len(part) for part in parts], axis=0),
                self.model.space,
            )
        self.count("embedded", len(usable))
        for growing in usable:
            self._count_stored(growing.item)

    def _count_stored(self, item: Item, *, moved: bool = False) -> None:
        is_known = (item.path or "") in self.known
        self.count("moved" if moved else "changed" if is_known else "added")
        self._advance()


def _is_single(growing: Growing) -> bool:
    """Whether it is a picture of one vector: clips have moments, even if it is only one."""
    return growing.item.modality == "image" and sum(map(len, growing.vectors)) == 1


def _date(content: files.Content, decoders: Decoders) -> float | None:
    """When it was taken; of a fresh file without that, when it was modified."""
    if content.modality == "image":
        taken = date_taken(content.encoded)
    else:
        taken = decoders.date_made(content.path)
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
