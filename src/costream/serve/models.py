"""The model behind the service: two queues of work, and an encoder that any thread may call.

Words and pictures have a thread each, because they go through different towers: a query in words
does not wait for a batch of pictures.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from costream.config import from_dict
from costream.data.picture import PictureSource
from costream.encoders.locate import FORMAT, field_of, locate_model, read_description
from costream.encoders.preprocess import ImagePreprocess
from costream.errors import NotFittedError, SpaceMismatch
from costream.records import Space
from costream.search.model import SearchModel, load_search_model
from costream.serve.batching import Batcher, Vector
from costream.serve.settings import Limits

if TYPE_CHECKING:
    from costream.encoders.dual import DualEncoder
    from costream.index.protocol import SearchIndex
    from costream.search import Explanation, Searcher

T = TypeVar("T")

_CACHED_TEXTS = 4096
_PROBE = "a photo"
_GREY = Image.new("RGB", (64, 64), (128, 128, 128))


class WordsModel(Protocol):
    """What words need."""

    @property
    def space(self) -> Space:
        """Of the vectors."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Strings to vectors (N, D)."""
        ...


class PicturesModel(Protocol):
    """What pictures need."""

    @property
    def space(self) -> Space:
        """Of the vectors."""
        ...

    def encode_images(self, images: Sequence[PictureSource]) -> NDArray[np.float32]:
        """Pictures to vectors (N, D)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelParts:
    """The two towers of one model.

    Attributes:
        words: For texts.
        pictures: Makes the other tower; called once, in the thread of pictures, because it may
            take seconds.
        count_tokens: How many tokens texts have.
        whole: Makes the model that tells which parts of a picture match; None where there is none.
        fit: How the model fits pictures; None where that is not known without its weights.
        search: How its methods have items ranked; None where it has no methods.
    """

    words: WordsModel
    pictures: Callable[[], PicturesModel]
    count_tokens: Callable[[Sequence[str]], int]
    whole: Callable[[], DualEncoder] | None = None
    fit: ImagePreprocess | None = None
    search: SearchModel | None = None


def load_parts(name: str, rank: Sequence[str] = ()) -> ModelParts:
    """A model by its name; the tower for words now, the other when it is first used.

    Args:
        name: A shipped model, a directory, or a hub name.
        rank: Words of methods that bring rank steps, beside those that it was saved with.

    Returns:
        The towers.

    Raises:
        ConfigError: A method is not there, brings no rank step, or does not fit the model.
        WeightsError: There is no such model, or it is damaged.
    """
    from costream.encoders.light.text import load_text_encoder
    from costream.encoders.preprocess import load_tokenizer

    directory = locate_model(name)
    search = load_search_model(name, rank)
    tokenizer = load_tokenizer(directory / "tokenizer.json")

    def pictures() -> PicturesModel:
        from costream.encoders.light.vision import load_image_encoder

        return load_image_encoder(name)

    def load_whole() -> DualEncoder:
        from costream.encoders.storage import load

        return load(name)

    def count_tokens(texts: Sequence[str]) -> int:
        return sum(len(found.ids) for found in tokenizer.encode_batch(list(texts)))

    fit = _fit_of(directory)
    whole = search.whole
    if whole is None:
        return ModelParts(
            words=load_text_encoder(name),
            pictures=pictures,
            count_tokens=count_tokens,
            whole=load_whole,
            fit=fit,
        )
    return ModelParts(
        words=whole,
        pictures=lambda: whole,
        count_tokens=count_tokens,
        whole=lambda: whole,
        fit=fit,
        search=search,
    )


def _fit_of(directory: Path) -> ImagePreprocess | None:
    description = read_description(directory, ours=False)
    if description.get("format") != FORMAT:
        return None
    source = directory / "config.json"
    config = field_of(description, "config", source, dict)
    return from_dict(ImagePreprocess, field_of(config, "image_preprocess", source, dict))


class Ticket:
    """What one request has asked of the model, so that it can be taken back."""

    def __init__(self) -> None:
        self._calls: set[asyncio.Task[list[Vector]]] = set()
        self._lock = threading.Lock()
        self._cancelled = False

    def hold(self, task: asyncio.Task[list[Vector]]) -> None:
        """Remember a call; one that comes after `cancel` is cancelled at once."""
        with self._lock:
            self._calls.add(task)
            if self._cancelled:
                task.cancel()

    def cancel(self) -> None:
        """Take everything back; call it where the event loop runs."""
        with self._lock:
            self._cancelled = True
            for task in self._calls:
                task.cancel()


TICKET: contextvars.ContextVar[Ticket] = contextvars.ContextVar("costream_ticket")


class ServedModel:
    """An encoder whose calls are batched with those of other threads.

    `encode_texts` and `encode_images` are for threads other than the event loop's, `texts` and
    `images` for the event loop. Make it where the event loop runs.

    Args:
        parts: The towers.
        limits: Of time and queue.
    """

    def __init__(self, parts: ModelParts, limits: Limits) -> None:
        self.space = parts.words.space
        self._limits = limits
        self._parts = parts
        self._search = parts.search or SearchModel(encoder=parts.words)
        self._pictures: PicturesModel | None = None
        self._whole: DualEncoder | None = None
        self._searcher: Searcher | None = None
        self._loop = asyncio.get_running_loop()
        self._cache: OrderedDict[str, Vector] = OrderedDict()
        self._cache_lock = threading.Lock()
        self.words_queue: Batcher[str] = Batcher(
            self._run_words, max_waiting=limits.waiting_items, name="words"
        )
        self.pictures_queue: Batcher[PictureSource] = Batcher(
            self._run_pictures, max_batch=8, max_waiting=limits.waiting_items // 4, name="pictures"
        )
        self.words_queue.start()
        self.pictures_queue.start()

    async def stop(self) -> None:
        """End the threads."""
        await asyncio.gather(self.words_queue.stop(), self.pictures_queue.stop())

    async def check(self, timeout_s: float) -> None:
        """Have both towers work, past the cache.

        Raises:
            Exception: What is wrong.
        """
        await asyncio.gather(
            self.words_queue.submit([_PROBE], timeout_s=timeout_s),
            self.pictures_queue.submit([_GREY], timeout_s=timeout_s),
        )

    # --- in the event loop ---

    async def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Strings to vectors (N, D)."""
        known = {text: vector for text in texts if (vector := self._cached(text)) is not None}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        vectors = await self.words_queue.submit(new, timeout_s=self._limits.answer_s)
        for text, vector in zip(new, vectors, strict=True):
            known[text] = vector
            self._keep(text, vector)
        return self._stacked([known[text] for text in texts])

    async def images(self, images: Sequence[PictureSource]) -> NDArray[np.float32]:
        """Pictures to vectors (N, D); check them before: one that breaks here costs time."""
        return self._stacked(
            await self.pictures_queue.submit(images, timeout_s=self._limits.answer_s)
        )

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens texts have."""
        return self._parts.count_tokens(texts)

    # --- in other threads ---

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Strings to vectors (N, D)."""
        known = [vector for text in texts if (vector := self._cached(text)) is not None]
        if len(known) == len(texts):
            return self._stacked(known)
        return self._from_thread(lambda: self.texts(texts))

    def encode_images(self, images: Sequence[PictureSource]) -> NDArray[np.float32]:
        """Pictures to vectors (N, D)."""
        return self._from_thread(lambda: self.images(images))

    def searcher(self, index: SearchIndex) -> Searcher:
        """What answers questions to an index with this model and its methods.

        Args:
            index: Where to search; asked for the same one again, the same searcher is given, which
                keeps what its rank steps know of the items.
        """
        known = self._searcher
        form = self._search.form_of(index)
        if known is None or known.index is not index or known.encoder is not (form or self):
            known = self._search.searcher(index, self)
            self._searcher = known
        return known

    @property
    def explains(self) -> bool:
        """Whether `explain` can be called."""
        return self._parts.whole is not None

    def explain(self, picture: Image.Image, question: NDArray[np.float32]) -> Explanation:
        """Which parts of a picture match; from one thread at a time.

        Args:
            picture: Upright RGB.
            question: float32 (D,).

        Returns:
            A score for each cell of the tower's grid.

        Raises:
            WeightsError: The whole model cannot be loaded.
        """
        from costream.search import explain

        if self._parts.whole is None:
            raise NotFittedError("the model cannot tell which parts of a picture match")
        if self._whole is None:
            self._whole = self._parts.whole()
        return explain(self._whole, picture, question)

    def _from_thread(self, call: Callable[[], Awaitable[T]]) -> T:
        ticket = TICKET.get(None)

        async def run() -> T:
            task = asyncio.ensure_future(call())
            if ticket is not None:
                ticket.hold(task)  # type: ignore[arg-type]
            return await task

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    # --- in the model's threads ---

    def _run_words(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._parts.words.encode_texts(texts)

    def _run_pictures(self, images: Sequence[PictureSource]) -> NDArray[np.float32]:
        if self._pictures is None:
            pictures = self._parts.pictures()
            if pictures.space != self.space:
                raise SpaceMismatch("the two towers of the model are of different models")
            self._pictures = pictures
        return self._pictures.encode_images(images)

    # --- cache ---

    def _cached(self, text: str) -> Vector | None:
        with self._cache_lock:
            vector = self._cache.get(text)
            if vector is not None:
                self._cache.move_to_end(text)
            return vector

    def _keep(self, text: str, vector: Vector) -> None:
        with self._cache_lock:
            self._cache[text] = vector
            if len(self._cache) > _CACHED_TEXTS:
                self._cache.popitem(last=False)

    def _stacked(self, vectors: Sequence[Vector]) -> NDArray[np.float32]:
        empty = np.zeros((0, self.space.dim), dtype=np.float32)
        return np.stack(vectors) if vectors else empty
