"""What the routes share: the collection, the model, and the work that goes on beside requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from anyio import CapacityLimiter, to_thread
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from costream.data.decode_apart import Decoders
from costream.encoders.preprocess import ImagePreprocess
from costream.errors import CostreamError
from costream.index.protocol import SearchIndex
from costream.index.records import Item
from costream.search import Answer, Picture, Query, Term, Words
from costream.serve.batching import Batcher
from costream.serve.collection import Collection
from costream.serve.explaining import PICTURED, Explained, ask_about, with_patches
from costream.serve.fetch import Fetcher
from costream.serve.keys import Sessions
from costream.serve.metrics import Metrics
from costream.serve.models import TICKET, ModelParts, ServedModel, Ticket
from costream.serve.place import Place
from costream.serve.problems import Problem, too_busy
from costream.serve.settings import ServeSettings

T = TypeVar("T")

_log = logging.getLogger("costream.serve")

_WATCH_S = 2.0
# Looking for thumbnails of what was removed reads every item.
_SWEEP_S = 10.0
_READY_S = 1.0
_READY_TIMEOUT_S = 10.0
# Threads that search wait for the model most of the time; those that decode pictures compute.
_SEARCH_THREADS = 64
# Searches that wait for nothing only keep each other from the processor.
_WORDS_THREADS = 4
_PICTURE_THREADS = 4
# Searches that hang (in a database that does not answer) keep their threads after their requests
# have been answered.
_MOST_HANGING = 128


class Service:
    """A running service.

    Args:
        place: Folder of the index, or the address of its database.
        settings: How it is reached.
        load: Makes the model for an index; called again when the index has another space.
        cache: Folder for thumbnails; None for the index's own, or for one below the user's caches
            when the index is in a database.

    Raises:
        DataError: There is no index, or it is damaged.
        WeightsError: Its model cannot be loaded.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        settings: ServeSettings,
        load: Callable[[SearchIndex], ModelParts],
        *,
        cache: Path | None = None,
    ) -> None:
        self.settings = settings
        self.collection = Collection(Place(place, kernel=settings.kernel), settings, cache=cache)
        self.metrics = Metrics()
        self.sessions = Sessions()
        self.decoders = Decoders()
        self.fetcher = Fetcher(max_bytes=settings.limits.body_bytes)
        self._load = load
        self._parts = load(self.collection.index)
        self._model: ServedModel | None = None
        self._model_error = ""
        self._ready: tuple[float, str] = (-_READY_S, "")
        self._ready_lock = asyncio.Lock()
        self._search_threads: CapacityLimiter | None = None
        self._words_threads: CapacityLimiter | None = None
        self._picture_threads: CapacityLimiter | None = None
        self._explain_thread: CapacityLimiter | None = None
        self._searching = _Count()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work while the block runs."""
        self._search_threads = CapacityLimiter(_SEARCH_THREADS)
        self._words_threads = CapacityLimiter(_WORDS_THREADS)
        self._picture_threads = CapacityLimiter(_PICTURE_THREADS)
        self._explain_thread = CapacityLimiter(1)
        self._model = ServedModel(self._parts, self.settings.limits)
        beside = [
            asyncio.create_task(self._watch(), name="costream-watch"),
            # Loads the tower for pictures before somebody needs it.
            asyncio.create_task(self._try(), name="costream-warm"),
        ]
        try:
            # Requests are what runs side by side: threads within one small product only wait for
            # each other, which costs as much processor time again.
            with threadpool_limits(limits=1, user_api="blas"):
                yield
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._model.stop()
            self.decoders.close()
            self.collection.close()

    @property
    def model(self) -> ServedModel:
        """The model.

        Raises:
            Problem: 503 when there is none for this index.
        """
        if self._model is None or self._model_error:
            raise Problem(
                503,
                self._model_error or "the service is starting",
                hint="start it again without --model" if self._model_error else "try again",
            )
        return self._model

    @property
    def picture_settings(self) -> ImagePreprocess | None:
        """How the model fits pictures, where that is known."""
        return self._parts.fit

    async def search(self, query: Query, shape: Callable[[Answer], T]) -> T:
        """Answer a question; a cancelled caller's work is taken back from the model.

        Args:
            query: The question.
            shape: What is made of the answer, in the same thread: another one would have to be
                waited for.

        Returns:
            What `shape` returned.
        """
        model = self.model
        # In the event loop, so that no thread waits for it: the words of all requests meet there.
        begin = time.perf_counter()
        await model.texts([term.text for term in query.terms if isinstance(term, Words)])
        waited = time.perf_counter() - begin

        def answered() -> T:
            found = model.searcher(self.collection.index).answer(query)
            spent = {**found.seconds, "encode": found.seconds["encode"] + waited}
            for stage, seconds in spent.items():
                self.metrics.stage_seconds.labels(stage).observe(seconds)
            return shape(replace(found, seconds=spent))

        return await self._searched(
            answered, waits=any(isinstance(term, Picture) for term in query.terms)
        )

    async def explain(self, item: Item, terms: Sequence[Term]) -> Explained:
        """Find out why an item matches; a cancelled caller's work is taken back from the model.

        Args:
            item: Of the index.
            terms: The question.

        Returns:
            Its scores, and where in its picture they come from.
        """
        model, collection = self.model, self.collection
        asked = await self._searched(lambda: ask_about(collection.index, model, item, terms))
        if not model.explains or item.modality not in PICTURED:
            return asked
        async with asyncio.timeout(self.settings.limits.answer_s):
            return await to_thread.run_sync(
                lambda: with_patches(asked, collection, model, item), limiter=self._explain_thread
            )

    async def _searched(self, call: Callable[[], T], *, waits: bool = True) -> T:
        """Something that asks the index, in a thread; `waits` if that may wait for the model."""
        if self._searching.now >= _MOST_HANGING:
            raise too_busy("searches hang, as the index does not answer", retry_after_s=5)
        ticket = Ticket()
        TICKET.set(ticket)

        def counted() -> T:
            with self._searching:
                return call()

        try:
            async with asyncio.timeout(self.settings.limits.answer_s):
                return await to_thread.run_sync(
                    counted,
                    limiter=self._search_threads if waits else self._words_threads,
                    abandon_on_cancel=True,
                )
        finally:
            ticket.cancel()

    async def with_files(self, call: Callable[[], T]) -> T:
        """Do something with files or pictures in a thread.

        Args:
            call: What to do.

        Returns:
            What it returned.
        """
        return await to_thread.run_sync(call, limiter=self._picture_threads)

    # --- readiness ---

    async def why_not_ready(self) -> str:
        """Have the model and the index work for real; at most once a second.

        Returns:
            What is wrong; empty when everything works.
        """
        async with self._ready_lock:
            checked, reason = self._ready
            if time.monotonic() - checked >= _READY_S:
                reason = await self._try()
                self._ready = (time.monotonic(), reason)
            return reason

    async def _try(self) -> str:
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                model = self.model
                await model.check(_READY_TIMEOUT_S)
                await self.with_files(lambda: _search_once(self.collection.index, model))
        except TimeoutError:
            return f"the model gave no answer within {_READY_TIMEOUT_S:g} s"
        except Exception as error:  # whatever it is, the service cannot answer
            _log.warning("not ready: %s: %s", type(error).__name__, error)
            return f"a search failed ({type(error).__name__})"
        return ""

    # --- beside requests ---

    async def _watch(self) -> None:
        """Notice what other processes do to the index."""
        seen, swept, swept_at = "", "", -_SWEEP_S
        while True:
            try:
                token = await self.with_files(self.collection.token)
                if token != seen:
                    await self._follow()
                    seen = token
                if token != swept and time.monotonic() - swept_at >= _SWEEP_S:
                    swept, swept_at = token, time.monotonic()
                    await self.with_files(self.collection.sweep)
            except CostreamError as error:
                _log.warning("the index cannot be followed: %s", error)
            except OSError as error:  # thumbnails that another user has made, say
                _log.warning("thumbnails of what was removed stay: %s", error)
            self._count_waiting()
            await asyncio.sleep(_WATCH_S)

    def _count_waiting(self) -> None:
        if self._model is None:
            return
        queues: dict[str, Batcher[Any]] = {
            "words": self._model.words_queue,
            "pictures": self._model.pictures_queue,
        }
        for kind, queue in queues.items():
            self.metrics.waiting.labels(kind).set(queue.waiting)
            while queue.batch_sizes:
                self.metrics.batch_size.labels(kind).observe(queue.batch_sizes.popleft())

    async def _follow(self) -> None:
        index = self.collection.index
        space = await self.with_files(lambda: index.space)
        self.metrics.items.set(await self.with_files(lambda: len(index)))
        model = self._model
        if model is None or space is None:
            return
        if space == await self.with_files(lambda: model.searcher(index).encoder.space):
            self._model_error = ""
        else:
            await self._replace_model(index)

    async def _replace_model(self, index: SearchIndex) -> None:
        _log.info("the index has a new space; loading its model")
        old = self._model
        parts = await self.with_files(lambda: self._load(index))
        fresh = ServedModel(parts, self.settings.limits)
        if fresh.searcher(index).encoder.space != index.space:
            await fresh.stop()
            self._model_error = "the index was made with another model than this service has"
            return
        self._parts = parts
        self._model, self._model_error = fresh, ""
        if old is not None:
            await old.stop()


class _Count:
    """How many threads are in it."""

    def __init__(self) -> None:
        self.now = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.now -= 1


def _search_once(index: SearchIndex, model: ServedModel) -> None:
    if len(index):
        space = model.searcher(index).encoder.space
        index.search(np.ones((1, space.dim), dtype=np.float32), space, 1)
