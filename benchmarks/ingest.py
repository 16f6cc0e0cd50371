"""How fast vectors become durable: costream's index and embedded stores, side by side in one run.

    python benchmarks/ingest.py                  # 200,000 x 512: some minutes
    python benchmarks/ingest.py --rows 20000     # half a minute

Every batch is acknowledged before the next one begins. What acknowledging means differs, so it is
counted: how often each engine asks the disk to keep what was written, by `strace` where that is
installed. A store that does not ask loses acknowledged rows with the power. Qdrant Edge is measured
with a flush after each batch and without. Making up the vectors is not counted, putting rows into
the form that a store takes is; each engine runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import _machine
import _results
import _vectors
import numpy as np
from numpy.typing import NDArray

Batch = tuple[int, NDArray[np.float32]]
# Takes the first row and the vectors of each batch, and calls what it is given after each.
Fill = Callable[[Iterable[Batch], Callable[[], None]], None]
PACKAGES = {
    "costream": "costream",
    "lance": "lancedb",
    "qdrant-flush": "qdrant-edge-py",
    "qdrant": "qdrant-edge-py",
}
NAMES = {
    "costream": "costream Index.add",
    "lance": "LanceDB add",
    "qdrant-flush": "Qdrant Edge upsert and flush",
    "qdrant": "Qdrant Edge upsert",
}


def one_by_one(add: Callable[[int, NDArray[np.float32]], None]) -> Fill:
    """Add each batch before the next is taken."""

    def fill(batches: Iterable[Batch], acknowledged: Callable[[], None]) -> None:
        for start, vectors in batches:
            add(start, vectors)
            acknowledged()

    return fill


def costream_store(folder: Path, dim: int) -> Fill:
    """The index of costream."""
    from costream.index import Index, Item
    from costream.records import Space

    space = Space(encoder="made up", weights_hash="", preprocessing_hash="", dim=dim)
    index = Index.open(folder / "index", create=True)

    def items(start: int, count: int) -> list[Item]:
        rows = range(start, start + count)
        return [Item(id=f"item{row:010d}", meta={"camera": "abcd"[row % 4]}) for row in rows]

    return one_by_one(lambda start, v: index.add(items(start, len(v)), v, space))


def lance_store(folder: Path, dim: int) -> Fill:
    """A LanceDB table."""
    import lancedb
    import pyarrow

    schema = pyarrow.schema(
        [
            pyarrow.field("id", pyarrow.string()),
            pyarrow.field("camera", pyarrow.string()),
            pyarrow.field("vector", pyarrow.list_(pyarrow.float32(), dim)),
        ]
    )
    table = lancedb.connect(str(folder)).create_table("items", schema=schema)

    def add(start: int, vectors: NDArray[np.float32]) -> None:
        rows = range(start, start + len(vectors))
        columns = [
            pyarrow.array([f"item{row:010d}" for row in rows]),
            pyarrow.array(["abcd"[row % 4] for row in rows]),
            pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), dim),
        ]
        table.add(pyarrow.Table.from_arrays(columns, schema=schema))

    return one_by_one(add)


def qdrant_store(folder: Path, dim: int, *, flush: bool) -> Fill:
    """A Qdrant Edge shard."""
    import qdrant_edge as edge

    params = edge.EdgeVectorParams(size=dim, distance=edge.Distance.Dot)
    shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors={"v": params}))

    def add(start: int, vectors: NDArray[np.float32]) -> None:
        points = [
            edge.Point(start + n, {"v": vector}, {"camera": "abcd"[n % 4]})
            for n, vector in enumerate(vectors.tolist())
        ]
        shard.update(edge.UpdateOperation.upsert_points(points))
        if flush:
            shard.flush()

    return one_by_one(add)


def store_of(name: str, folder: Path, dim: int) -> Fill:
    """Open an empty store."""
    if name.startswith("costream"):
        return costream_store(folder, dim)
    if name == "lance":
        return lance_store(folder, dim)
    return qdrant_store(folder, dim, flush=name == "qdrant-flush")


def made_up(rows: int, dim: int) -> NDArray[np.float32]:
    """Float32 vectors of a batch; every batch has the same."""
    some = min(rows, _vectors.BLOCK_ROWS)
    vectors = _vectors.pictures(_vectors.make_world(dim), some).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.resize(vectors, (rows, dim))


def run_store(name: str, rows: int, size: int, dim: int, folder: Path) -> dict[str, Any]:
    """Fill one store, in this process."""
    fill = store_of(name, folder, dim)
    vectors = made_up(min(size, rows), dim)
    batches = ((start, vectors[: rows - start]) for start in range(0, rows, size))
    busy, times = time.process_time(), [time.perf_counter()]
    fill(batches, lambda: times.append(time.perf_counter()))
    busy_s = time.process_time() - busy
    disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "name": name,
        "rows_per_s": rows / (times[-1] - times[0]),
        "rows_per_busy_s": rows / busy_s,
        "slowest_batch_s": float(np.diff(times).max()),
        "bytes_per_row": disk / rows,
    }


def syncs(words: list[str]) -> float | None:
    """Calls of fsync and its kin while a command runs; None when they cannot be counted."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    with tempfile.NamedTemporaryFile("r") as log:
        calls = "trace=fsync,fdatasync,sync_file_range,msync,syncfs"
        subprocess.run(
            [strace, "-f", "-qq", "-e", calls, "-o", log.name, *words],
            check=True,
            capture_output=True,
        )
        return len(re.findall(r"(?:fsync|fdatasync|msync|syncfs)\(", log.read()))


def measured(name: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """One line of the table; None, with a note, when it cannot be had."""
    try:
        version(PACKAGES[name])
    except PackageNotFoundError:
        print(f"{NAMES[name]}: left out, {PACKAGES[name]} is not installed", file=sys.stderr)
        return None

    def words(rows: int, folder: str) -> list[str]:
        size = min(options.batch, rows)
        numbers = ["--rows", str(rows), "--batch", str(size), "--dim", str(options.dim)]
        return [sys.executable, __file__, "--store", name, "--into", folder, *numbers]

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        done = subprocess.run(
            words(options.rows, folder), capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"{NAMES[name]}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
            return None
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    # Counting slows down, so it is done apart: the difference of five batches and one.
    counts = []
    for num in (1, 5):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            some = [word if word != str(options.batch) else "200" for word in words(200, folder)]
            some[some.index("--rows") + 1] = str(200 * num)
            counts.append(syncs(some))
    first, last = counts
    result["syncs_per_batch"] = None if first is None or last is None else (last - first) / 4
    return result | _results.stamp(PACKAGES[name])


def print_table(results: list[dict[str, Any]], rows: int, dim: int, batch: int) -> None:
    """As Markdown."""
    ours = next((r["rows_per_s"] for r in results if r["name"] == "costream"), None)
    print(f"\n{rows:,} x {dim} in batches of {batch:,}; {_machine.machine()}\n")
    print(
        "| store | rows/s | costream is times as fast | rows a busy second | slowest batch s | "
        "syncs a batch | bytes a row on disk |"
    )
    print("|---|---|---|---|---|---|---|")
    for r in results:
        ratio = "" if ours is None else f"{ours / r['rows_per_s']:.2f}"
        count = "not counted" if r["syncs_per_batch"] is None else f"{r['syncs_per_batch']:.1f}"
        print(
            f"| {NAMES[r['name']]} ({r['version']}) | {r['rows_per_s']:,.0f} "
            f"| {ratio} | {r['rows_per_busy_s']:,.0f} | {r['slowest_batch_s']:.2f} | {count} "
            f"| {r['bytes_per_row']:,.0f} |"
        )


def main() -> int:
    """Run the benchmark and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--stores", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: /tmp")
    parser.add_argument("--json", type=Path, help="where to write the numbers as well")
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.store:
        result = run_store(options.store, options.rows, options.batch, options.dim, options.into)
        print(json.dumps(result))
        return 0
    warning = _machine.load_warning()
    results = [r for name in options.stores if (r := measured(name, options)) is not None]
    results = _results.merged(options.json, results, list(NAMES))
    print_table(results, options.rows, options.dim, options.batch)
    if warning:
        print(f"\nNot to be trusted: {warning}.")
    if options.json:
        sizes = {"rows": options.rows, "dim": options.dim, "batch": options.batch}
        _results.write(options.json, results, **sizes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
