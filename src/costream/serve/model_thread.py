"""A thread that works for the event loop, one call at a time."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    work: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]

    def make(self) -> None:
        try:
            result = self.work()
        except BaseException as error:
            # A call that wants to end the process ends its request only; a future takes
            # StopIteration as little as it takes an exit.
            plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
            self.fail(error if plain else RuntimeError(f"the call ended with {error!r}"))
        else:
            self.settle(lambda: self.future.set_result(result))

    def fail(self, error: BaseException) -> None:
        self.settle(lambda: self.future.set_exception(error))

    def settle(self, how: Callable[[], None]) -> None:
        def unless_done() -> None:
            if not self.future.done():
                how()

        try:
            self.loop.call_soon_threadsafe(unless_done)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more


class ModelThread:
    """One thread with a name. A call that hangs keeps neither the event loop nor the exit waiting.

    That is why this is not an executor: Python waits for the threads of those before it ends.

    Args:
        name: Of the thread.

    Example:
        >>> thread = ModelThread("adder")
        >>> asyncio.run(thread.run(lambda: 1 + 1))
        2
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._open: set[_Call] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"costream-{name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether calls are still taken."""
        return self._thread.is_alive() and not self._ended.is_set()

    async def run(self, work: Callable[[], T]) -> T:
        """Have a call made, after those that came before.

        Args:
            work: What to call.

        Returns:
            What the call returned.

        Raises:
            RuntimeError: The thread has ended.
            Exception: What the call raised.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        call = _Call(work, loop, future)
        self._open.add(call)
        self._calls.put(call)
        if not self.alive:
            self._fail_all()
        try:
            return await future
        finally:
            self._open.discard(call)

    def stop(self) -> None:
        """Take no more calls; the one being made is not waited for."""
        self._ended.set()
        self._calls.put(None)

    def _work(self) -> None:
        try:
            while (call := self._calls.get()) is not None:
                call.make()
                self._open.discard(call)
        finally:
            # Whatever ended the thread, nobody waits for ever for what it will not do.
            self._ended.set()
            self._fail_all()

    def _fail_all(self) -> None:
        for call in list(self._open):
            call.fail(RuntimeError("the thread has ended"))
