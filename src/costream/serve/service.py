"""What the routes share: the collection, the model, and the work that goes on beside requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from anyio import CapacityLimiter, to_thread

from costream.errors import CostreamError
from costream.index import Index
from costream.serve.answering import Answer, Query, answer
from costream.serve.collection import Collection
from costream.serve.fetch import Fetcher
from costream.serve.keys import Sessions
from costream.serve.metrics import Metrics
from costream.serve.models import TICKET, ModelParts, ServedModel, Ticket
from costream.serve.problems import Problem
from costream.serve.settings import ServeSettings

T = TypeVar("T")

_log = logging.getLogger("costream.serve")

_WATCH_S = 2.0
_READY_S = 1.0
_READY_TIMEOUT_S = 10.0
# Threads that search wait for the model most of the time; those that decode pictures compute.
_SEARCH_THREADS = 64
_PICTURE_THREADS = 4


class Service:
    """A running service.

    Args:
        directory: Of the index.
        settings: How it is reached.
        load: Makes the model for an index; called again when the index has another space.

    Raises:
        DataError: There is no index, or it is damaged.
        WeightsError: Its model cannot be loaded.
    """

    def __init__(
        self, directory: Path, settings: ServeSettings, load: Callable[[Index], ModelParts]
    ) -> None:
        self.settings = settings
        self.collection = Collection(directory, settings)
        self.metrics = Metrics()
        self.sessions = Sessions()
        self.fetcher = Fetcher(max_bytes=settings.limits.body_bytes)
        self._load = load
        self._parts = load(self.collection.index)
        self._model: ServedModel | None = None
        self._model_error = ""
        self._ready: tuple[float, str] = (-_READY_S, "")
        self._ready_lock = asyncio.Lock()
        self._search_threads: CapacityLimiter | None = None
        self._picture_threads: CapacityLimiter | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work while the block runs."""
        self._search_threads = CapacityLimiter(_SEARCH_THREADS)
        self._picture_threads = CapacityLimiter(_PICTURE_THREADS)
        self._model = ServedModel(self._parts, self.settings.limits)
        beside = [
            asyncio.create_task(self._watch(), name="costream-watch"),
            # Loads the tower for pictures before somebody needs it.
            asyncio.create_task(self._try(), name="costream-warm"),
        ]
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._model.stop()
            self.collection.close()

    @property
    def model(self) -> ServedModel:
        """The model.

        Raises:
            Problem: 503 when there is none for this index.
        """
        if self._model is None or self._model_error:
            raise Problem(503, self._model_error or "the service is starting")
        return self._model

    async def search(self, query: Query) -> Answer:
        """Answer a question; a cancelled caller's work is taken back from the model.

        Args:
            query: The question.

        Returns:
            What was found.
        """
        model, index = self.model, self.collection.index
        ticket = Ticket()
        TICKET.set(ticket)
        try:
            async with asyncio.timeout(self.settings.limits.answer_s):
                found = await to_thread.run_sync(
                    lambda: answer(index, model, query),
                    limiter=self._search_threads,
                    abandon_on_cancel=True,
                )
        finally:
            ticket.cancel()
        for stage, seconds in found.seconds.items():
            self.metrics.stage_seconds.labels(stage).observe(seconds)
        return found

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
        state: object = None
        while True:
            now = self.collection.state()
            if now != state:
                state = now
                await self._follow()
            model = self._model
            if model is not None:
                for kind, queue in (
                    ("words", model.words_queue),
                    ("pictures", model.pictures_queue),
                ):
                    self.metrics.waiting.labels(kind).set(queue.waiting)
                    while queue.batch_sizes:
                        self.metrics.batch_size.labels(kind).observe(queue.batch_sizes.popleft())
            await asyncio.sleep(_WATCH_S)

    async def _follow(self) -> None:
        try:
            index = self.collection.index
            space = await self.with_files(lambda: index.space)
            self.metrics.items.set(await self.with_files(lambda: len(index)))
            await self.with_files(self.collection.sweep)
            if self._model is not None and space not in (None, self._model.space):
                await self._replace_model(index)
        except CostreamError as error:
            _log.warning("the index cannot be followed: %s", error)

    async def _replace_model(self, index: Index) -> None:
        _log.info("the index has a new space; loading its model")
        old = self._model
        parts = await self.with_files(lambda: self._load(index))
        if parts.words.space != index.space:
            self._model_error = "the index was made with another model than this service has"
            return
        self._model, self._model_error = ServedModel(parts, self.settings.limits), ""
        if old is not None:
            await old.stop()


def _search_once(index: Index, model: ServedModel) -> None:
    if len(index):
        probe = np.ones((1, model.space.dim), dtype=np.float32)
        index.search(probe, model.space, 1)
