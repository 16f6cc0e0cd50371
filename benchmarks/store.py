"""How fast vectors become durable, and what follows: `python benchmarks/store.py [ITEMS]`.

Every batch is one `Index.add`, which returns when the batch would survive a loss of power. "Busy"
is processor time; the rest of the time is the disk's. Everything runs in one process but the last
two lines, which are new processes with warm file caches.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _results
import numpy as np
from numpy.typing import NDArray

from costream.index import Filter, Index, Item
from costream.records import Space

_COLD = """
import json, sys, time
import numpy as np
started = time.perf_counter()
from costream.index import Index
with Index.open(sys.argv[1]) as index:
    space = index.space
    query = np.full((1, space.dim), space.dim**-0.5, dtype=np.float32)
    index.get(index.search(query, space, 10).ids[0])
    answered = time.perf_counter()
assert "torch" not in sys.modules and "PIL" not in sys.modules
print(json.dumps(answered - started))
"""


def batch_of(start: int, rows: int) -> list[Item]:
    """Made-up items with what a search filters by, and no files."""
    return [
        Item(id=f"item{row:010d}", date=float(row), meta={"camera": "abcd"[row % 4]})
        for row in range(start, start + rows)
    ]


def unit_vectors(rows: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Random unit vectors float32 (rows, dim)."""
    values = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - busy


def line(what: str, wall_s: float, busy_s: float | None = None, more: str = "") -> None:
    """One row of the table."""
    busy = "" if busy_s is None else f"{busy_s:9.2f}"
    print(f"{what:48s} {wall_s:9.2f} {busy:>9s}  {more}", flush=True)


def disk_bytes(directory: Path) -> int:
    """Size of all files of the index."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def add_all(index: Index, space: Space, num_items: int, rows: int) -> tuple[float, float]:
    """Add in batches; the time of making up the items is not counted."""
    wall_s = busy_s = 0.0
    vectors = unit_vectors(rows, space.dim, 0)
    for start in range(0, num_items, rows):
        items = batch_of(start, min(rows, num_items - start))
        wall, busy = timed(lambda items=items: index.add(items, vectors[: len(items)], space))
        wall_s, busy_s = wall_s + wall, busy_s + busy
    return wall_s, busy_s


def cold_s(directory: Path) -> float:
    """Seconds from the start of the import to the answer in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", _COLD, str(directory)], check=True, capture_output=True, text=True
    )
    return float(json.loads(done.stdout))


def measure(directory: Path, num_items: int, dim: int, rows: int) -> dict[str, Any]:
    """Print the table; give what the documentation shows of it."""
    space = Space(encoder="random", weights_hash="", preprocessing_hash="", dim=dim)
    query = unit_vectors(1, dim, 1)
    print(f"{num_items:,} x {dim}, batches of {rows:,}; load {os.getloadavg()[0]:.1f}")
    print(f"{'':48s} {'wall s':>9s} {'busy s':>9s}")
    with Index.open(directory, create=True) as index:
        wall, busy = add_all(index, space, num_items, rows)
        rate = f"{num_items / wall:,.0f} rows/s, {num_items / busy:,.0f} a busy second"
        line("add, durable", wall, busy, rate)
        ready = timed(lambda: index.search(query, space, 10))
        kernel = index.search(query, space, 10).kernel
        line("first search after the last add", *ready, more=f"kernel {kernel}")
        again = [timed(lambda: index.search(query, space, 10)) for _ in range(20)]
        line("one of the following, best", *min(again))
        line("write the derived files", *timed(index.load))
        numbers = {
            "name": "store",
            "rows": num_items,
            "dim": dim,
            "kernel": kernel,
            "rows_per_s": num_items / wall,
            "rows_per_busy_s": num_items / busy,
            "ready_s": ready[0],
            "ready_busy_s": ready[1],
            "query_best_ms": 1e3 * min(again)[0],
        }
        line("add 1 item", *timed(lambda: index.add(batch_of(0, 1), query, space)))
        line("search after it", *timed(lambda: index.search(query, space, 10)))
        for share in (0.5, 0.01, 0.0001):
            where = Filter(before=num_items * share, fields={"camera": "a"})
            ask = timed(lambda where=where: index.search(query, space, 10, where=where))
            again = timed(lambda where=where: index.search(query, space, 10, where=where))
            line(f"filter, {share / 4:.4%} match", *ask, more=f"again {again[0]:.3f} s")
        size = disk_bytes(directory)
        line("close", *timed(index.close), more=f"{size / num_items:,.0f} bytes an item on disk")
    line("cold search", cold_s(directory))
    shutil.rmtree(directory / "codes")
    line("cold search without the codes file", cold_s(directory))
    return numbers | _results.stamp("costream")


def main() -> None:
    """Measure in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where to put the index; default: /tmp")
    parser.add_argument("--json", type=Path, help="where to write the numbers as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        numbers = measure(Path(folder) / "index", given.items, given.dim, given.batch)
    if given.json:
        _results.write(given.json, [numbers])


if __name__ == "__main__":
    main()
