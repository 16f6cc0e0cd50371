"""Micro-batching: what many requests want from a model at once goes through it together.

One thread works on one batch at a time, so a model needs no lock. Requests take turns in filling a
batch, so a request for a thousand items does not hold up one for a single item. An item that the
model refuses fails alone; the others of its batch are done again without it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from costream.errors import CostreamError, NumericalError
from costream.serve.model_thread import ModelThread

In = TypeVar("In")
Vector = NDArray[np.float32]

_log = logging.getLogger("costream.serve")


class OverloadedError(Exception):
    """More is waiting than will be done in time.

    Attributes:
        retry_after_s: When to try again.
    """

    def __init__(self, waiting: int, limit: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} items wait for the model, at most {limit} may")
        self.retry_after_s = retry_after_s


class EncodeError(Exception):
    """The model failed on an item in a way that it should not; the log has the trace."""


@dataclass(slots=True)
class _Job(Generic[In]):
    item: In
    future: asyncio.Future[Vector]
    expires: float


class Batcher(Generic[In]):
    """A queue in front of a function that turns items into vectors.

    Args:
        encode: Items to vectors (N, D), row i for item i; runs in a thread of its own.
        max_batch: Most items a call.
        max_wait_s: How long a batch may wait for company; a lone request never waits.
        max_waiting: Most items in the queue.
        name: Of the thread.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[In]], Vector],
        *,
        max_batch: int = 32,
        max_wait_s: float = 0.005,
        max_waiting: int = 1024,
        name: str = "model",
    ) -> None:
        self._encode = encode
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._max_waiting = max_waiting
        self._thread = ModelThread(name)
        self._groups: deque[deque[_Job[In]]] = deque()
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._item_s = 0.01  # a first guess of the time that one item takes
        self.batch_sizes: deque[int] = deque(maxlen=1000)

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return self._waiting

    def start(self) -> None:
        """Begin to work; call it where the event loop runs."""
        self._task = asyncio.create_task(self._work(), name="costream-batcher")

    async def stop(self) -> None:
        """End at once; requests are drained by whoever takes them, before."""
        self._thread.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def submit(self, items: Sequence[In], *, timeout_s: float) -> list[Vector]:
        """Vectors of items; all, or the error of the first that failed.

        Args:
            items: Any number; none gives none.
            timeout_s: How long to wait; what is still in the queue then is dropped.

        Returns:
            One vector an item.

        Raises:
            OverloadedError: The queue is full.
            TimeoutError: The time is over.
            CostreamError: What the model said about an item.
            EncodeError: The model failed in another way.
        """
        if not items:
            return []
        if self._waiting + len(items) > self._max_waiting:
            seconds = math.ceil(self._waiting * self._item_s)
            raise OverloadedError(self._waiting, self._max_waiting, min(max(seconds, 1), 60))
        if self._task is None or self._task.done() or not self._thread.alive:
            raise EncodeError("the model's thread has ended")
        loop = asyncio.get_running_loop()
        expires = time.monotonic() + timeout_s
        jobs = [_Job(item, loop.create_future(), expires) for item in items]
        self._groups.append(deque(jobs))
        self._waiting += len(jobs)
        self._arrived.set()
        if self._waiting >= self._max_batch:
            self._full.set()
        futures = [job.future for job in jobs]
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.gather(*futures)
        finally:
            # Also when the client has gone: what nobody waits for is not computed.
            for future in futures:
                future.cancel()

    async def _work(self) -> None:
        had_company = False
        while True:
            await self._arrived.wait()
            if had_company and self._waiting < self._max_batch:
                self._full.clear()
                try:
                    await asyncio.wait_for(self._full.wait(), self._max_wait_s)
                except TimeoutError:
                    pass
            jobs = self._next_batch()
            if not self._waiting:
                self._arrived.clear()
            if jobs:
                had_company = len(jobs) > 1
                await self._run(jobs)

    def _next_batch(self) -> list[_Job[In]]:
        """Take one item of each request in turn, leaving out what nobody waits for."""
        jobs: list[_Job[In]] = []
        now = time.monotonic()
        while self._groups and len(jobs) < self._max_batch:
            group = self._groups.popleft()
            job = group.popleft()
            self._waiting -= 1
            if group:
                self._groups.append(group)
            if not job.future.done() and job.expires > now:
                jobs.append(job)
        return jobs

    async def _run(self, jobs: list[_Job[In]]) -> None:
        begin = time.monotonic()
        items = [job.item for job in jobs]
        results: list[Vector | Exception]
        try:
            results = await self._thread.run(lambda: self._encode_each(items))
        except RuntimeError as error:  # the thread is gone, or the model wanted to end the process
            results = [EncodeError(str(error))] * len(jobs)
        self._item_s = 0.8 * self._item_s + 0.2 * (time.monotonic() - begin) / len(jobs)
        self.batch_sizes.append(len(jobs))
        for job, result in zip(jobs, results, strict=True):
            if job.future.done():
                continue
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

    def _encode_each(self, items: list[In]) -> list[Vector | Exception]:
        """Vectors, or per item why there is none."""
        try:
            return self._checked(items)
        except BaseException as error:  # an item that makes a library call exit() harms only itself
            if len(items) > 1:
                return [result for item in items for result in self._encode_each([item])]
            if isinstance(error, CostreamError):
                return [error]
            _log.exception("the model failed on an item")
            return [EncodeError(f"the model failed ({type(error).__name__})")]

    def _checked(self, items: list[In]) -> list[Vector | Exception]:
        vectors = self._encode(items)
        if len(vectors) != len(items):
            raise NumericalError(f"the model gave {len(vectors)} vectors for {len(items)} items")
        return [
            vector
            if np.isfinite(vector).all()
            else NumericalError("the model's vector is not finite")
            for vector in vectors
        ]
