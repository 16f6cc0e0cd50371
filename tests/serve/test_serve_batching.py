"""Batching: requests share a batch and nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.errors import DataError, NumericalError
from costream.serve.batching import Batcher, EncodeError, OverloadedError
from costream.serve.model_thread import ModelThread


class Doubler:
    """Stands where a model stands: twice the number, and trouble for some numbers."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[float]] = []
        self.seconds = seconds

    def __call__(self, items: Sequence[float]) -> NDArray[np.float32]:
        self.batches.append(list(items))
        time.sleep(self.seconds)
        if 13 in items:
            raise DataError("13 is no number that anybody wants")
        if 14 in items:
            raise RuntimeError("the library broke")
        if 15 in items:
            raise SystemExit("the library gave up")
        return np.float32([[np.nan if item == 16 else 2 * item] for item in items])


async def running(batcher: Batcher[float]) -> Batcher[float]:
    batcher.start()
    return batcher


def test_every_request_gets_its_own_vectors_in_order() -> None:
    async def go() -> None:
        model = Doubler(0.002)
        batcher = await running(Batcher(model, max_batch=8))
        wanted = [[10 * n + i for i in range(n % 5)] for n in range(40)]
        found = await asyncio.gather(*(batcher.submit(w, timeout_s=10) for w in wanted))
        assert [[float(v[0]) for v in each] for each in found] == [
            [2 * i for i in w] for w in wanted
        ]
        assert max(map(len, model.batches)) == 8
        assert len(model.batches) < sum(map(len, wanted)) / 4
        await batcher.stop()

    asyncio.run(go())


@pytest.mark.parametrize(
    ("bad", "kind"), [(13, DataError), (14, EncodeError), (15, EncodeError), (16, NumericalError)]
)
def test_a_bad_item_harms_no_other_request(bad: float, kind: type[Exception]) -> None:
    async def go() -> None:
        batcher = await running(Batcher(Doubler(0.01), max_batch=32))
        wanted = [[1.0], [2.0, 3.0], [bad], [4.0]]
        found = await asyncio.gather(
            *(batcher.submit(w, timeout_s=10) for w in wanted), return_exceptions=True
        )
        assert isinstance(found[2], kind)
        del found[2]
        assert [[float(v[0]) for v in each] for each in found] == [[2], [4, 6], [8]]  # type: ignore[union-attr]
        # And the thread goes on.
        assert float((await batcher.submit([5.0], timeout_s=10))[0][0]) == 10
        await batcher.stop()

    asyncio.run(go())


def test_a_huge_request_does_not_hold_up_a_small_one() -> None:
    async def go() -> None:
        model = Doubler(0.005)
        batcher = await running(Batcher(model, max_batch=4, max_waiting=1000))
        huge = asyncio.create_task(
            batcher.submit([float(n + 100) for n in range(400)], timeout_s=60)
        )
        await asyncio.sleep(0.02)
        before = len(model.batches)
        await batcher.submit([1.0], timeout_s=10)
        # The batch in the making, and the next one.
        assert len(model.batches) - before <= 2
        assert not huge.done()
        assert len(await huge) == 400
        await batcher.stop()

    asyncio.run(go())


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    async def go() -> None:
        batcher = await running(Batcher(Doubler(0.05), max_batch=1, max_waiting=10))
        first = asyncio.create_task(batcher.submit([float(n) for n in range(9)], timeout_s=60))
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError) as refused:
            await batcher.submit([1.0] * 5, timeout_s=60)
        assert 1 <= refused.value.retry_after_s <= 60
        assert len(await first) == 9
        await batcher.stop()

    asyncio.run(go())


def test_what_nobody_waits_for_is_not_computed() -> None:
    async def go() -> None:
        model = Doubler(0.05)
        batcher = await running(Batcher(model, max_batch=1))
        first = asyncio.create_task(batcher.submit([1.0], timeout_s=10))
        await asyncio.sleep(0.01)
        gone = asyncio.create_task(batcher.submit([2.0], timeout_s=10))
        late = asyncio.create_task(batcher.submit([3.0], timeout_s=0.01))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(TimeoutError):
            await late
        await first
        await batcher.submit([4.0], timeout_s=10)
        assert [2.0] not in model.batches
        assert [3.0] not in model.batches
        await batcher.stop()

    asyncio.run(go())


def test_a_lone_request_does_not_wait_for_company() -> None:
    async def go() -> None:
        batcher = await running(Batcher(Doubler(), max_wait_s=5.0))
        begin = time.monotonic()
        for n in range(5):
            await batcher.submit([float(n)], timeout_s=10)
        assert time.monotonic() - begin < 2.5
        await batcher.stop()

    asyncio.run(go())


def test_a_thread_that_hangs_lets_requests_time_out_and_the_process_end() -> None:
    async def go() -> None:
        forever = threading.Event()
        batcher: Batcher[float] = Batcher(lambda _: forever.wait() or np.zeros((1, 1)))  # type: ignore[arg-type,return-value]
        batcher.start()
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await batcher.submit([1.0], timeout_s=0.05)
        await batcher.stop()
        with pytest.raises(EncodeError, match="ended"):
            await batcher.submit([1.0], timeout_s=0.05)

    asyncio.run(go())


def test_a_stopped_thread_says_so() -> None:
    async def go() -> None:
        thread = ModelThread("test")
        assert await thread.run(lambda: 1) == 1
        with pytest.raises(RuntimeError, match="SystemExit"):
            await thread.run(lambda: exec("raise SystemExit"))  # noqa: S102
        assert thread.alive
        thread.stop()
        assert not thread.alive
        with pytest.raises(RuntimeError, match="ended"):
            await thread.run(lambda: 1)

    asyncio.run(go())
