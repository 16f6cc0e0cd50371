"""A thread that works for the event loop, one call at a time."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


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
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name=f"costream-{name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether calls are still taken."""
        return self._thread.is_alive() and not self._stopped

    async def run(self, call: Callable[[], T]) -> T:
        """Have a call made, after those that came before.

        Args:
            call: What to do.

        Returns:
            What the call returned.

        Raises:
            RuntimeError: The thread has ended.
            Exception: What the call raised.
        """
        if not self.alive:
            raise RuntimeError("the thread has ended")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                result = call()
            except BaseException as error:
                # A call that wants to end the process ends its request only; a future takes
                # StopIteration as little as it takes an exit.
                if not isinstance(error, Exception) or isinstance(error, StopIteration):
                    error = RuntimeError(f"the call ended with {error!r}")
                _settle(loop, future, error=error)
            else:
                _settle(loop, future, result=result)

        self._calls.put(work)
        return await future

    def stop(self) -> None:
        """Take no more calls; the one being made is not waited for."""
        self._stopped = True
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _settle(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[T],
    *,
    result: T | None = None,
    error: BaseException | None = None,
) -> None:
    def settle() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more
