"""Storing one batch while the next one is made: two cores at work instead of one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def store_while_making(
    batches: Iterable[Made],
    store: Callable[[Made, Callable[[], None]], int],
    progress: Callable[[int], None] | None = None,
) -> int:
    """Store batches one after the other, each while the next is being made.

    Batches are made in the calling thread and stored in another one. An error of either ends it:
    what was made before the error is stored, nothing after it.

    Args:
        batches: Made as they are asked for.
        store: Stores one and gives the number of its items; calls what it is given as soon as the
            interpreter is little needed any more, so that making the next begins.
        progress: Called in the calling thread after each batch, with that number.

    Returns:
        The number of items of all batches.
    """
    total = 0
    running: Future[int] | None = None

    def finish() -> None:
        nonlocal total, running
        if running is not None:
            stored, running = running, None
            count = stored.result()
            total += count
            if progress is not None:
                progress(count)

    with ThreadPoolExecutor(1, thread_name_prefix="costream-add") as writer:
        try:
            for batch in batches:
                finish()
                under_way = threading.Event()
                running = writer.submit(_stored, store, batch, under_way.set)
                under_way.wait()
        finally:
            finish()
    return total


def _stored(
    store: Callable[[Made, Callable[[], None]], int], batch: Made, under_way: Callable[[], None]
) -> int:
    try:
        return store(batch, under_way)
    finally:
        under_way()
