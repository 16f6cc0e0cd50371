"""How time, memory and disk grow with a collection, from 10^4 to 10^7 vectors.

    python benchmarks/growth.py --json out.json --plot out.png # half an hour, 11 GB of disk
    python benchmarks/growth.py --rows 10000 100000            # a minute; writes nothing

    python benchmarks/growth.py --set DIR --make 10000000      # DIR keeps the vectors; in pieces,
    python benchmarks/growth.py --set DIR --rows 10000000 --json out.json  # minutes each

The float16 vectors lie in a derived file as an index has it. `four_bit` reads from it the rows that
it scores, with their checksums, as in an index; for `exact`, which reads all, it is mapped into
memory. Memory is what a process holds besides, and the most that it held. Each size and kernel runs
in a process of its own. Sizes for which there is no room are left out with a note, and above three
million the exact kernel is, which would read the whole file for every query. "Default" is what
`choose` takes.
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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _machine
import _results
import _vectors
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from costream.index.codes import Header
    from costream.scoring.matrix import Matrix

TOP = 10
BATCH = 64
QUERIES = 128
SIZES = [10**4, 10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7]
# Memory that a kernel needs besides the file, for each byte of float16 vectors, at most.
NEEDS = {"exact": 1.1, "four_bit": 0.4}
# Above, the exact kernel keeps no copy in memory and every query reads the whole file.
MOST_EXACT = 3_000_000
# Queries whose recall is measured on more than that, in one pass over the whole file.
FEWER = 64


def run_kernel(kernel: str, folder: Path, rows: int, dim: int) -> dict[str, Any]:
    """Measure one kernel on one size, in this process."""
    from costream.scoring.kernels import build, choose, exactly

    if kernel == "exact":
        # As in a process that has loaded a model.
        import torch  # noqa: F401
    vectors = rows_of(folder, kernel, rows, dim)
    world = _vectors.make_world(dim)
    queries = _vectors.texts(world, QUERIES, among=rows)
    before = _machine.resident_bytes()
    started = time.perf_counter()
    made = build(vectors, kernel=kernel)
    for _ in range(2):
        made.top(queries[:1], TOP)
    build_s = time.perf_counter() - started
    peak = _machine.peak_bytes()
    made.top(queries[:BATCH], TOP)
    found = [made.top(query[None], TOP)[0][0] for query in queries[:16]]
    held = _machine.resident_bytes() - before
    single = _machine.timed([lambda q=query: made.top(q[None], TOP) for query in queries[:64]])
    batch_ms = _machine.timed([lambda: made.top(queries[:BATCH], TOP)] * 3)["best_ms"]
    recall = 1.0
    if not made.exact:
        asked = queries if rows <= MOST_EXACT else queries[:FEWER]
        true, _ = exactly(made.rows, asked, TOP)
        found, _ = made.top(asked, TOP)
        hits = [len(set(f.tolist()) & set(t.tolist())) for f, t in zip(found, true, strict=True)]
        recall = float(np.mean(hits)) / TOP
    return {
        "kernel": kernel,
        "is_default": choose(rows, dim) == kernel,
        "rows": rows,
        "dim": dim,
        "build_s": build_s,
        **single,
        "batch_qps": 1e3 * BATCH / batch_ms,
        "recall": recall,
        "memory_mb": held / 2**20,
        "peak_mb": peak / 2**20,
        "disk_mb": rows * dim * 2 / 2**20,
    }


def make_set(folder: Path, rows: int, dim: int) -> None:
    """Write the vectors to a derived file, a block after another."""
    from costream.index import codes

    world, size = _vectors.make_world(dim), codes.block_rows(dim)

    def blocks() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        for start in range(0, rows, _vectors.BLOCK_ROWS):
            some = min(_vectors.BLOCK_ROWS, rows - start)
            made = _vectors.pictures(world, some, first=start)
            for at in range(0, some, size):
                part = made[at : at + size]
                yield np.arange(start + at, start + at + len(part)), part

    whole = codes.Segment(
        before=codes.NOTHING, token=bytes(16), generations=(0, 1), dim=dim, blocks=blocks()
    )
    if _vectors.BLOCK_ROWS % size or codes.write_segment(folder, whole) is None:
        raise SystemExit(f"cannot write {rows:,} x {dim} vectors into {folder}")


def rows_of(folder: Path, kernel: str, rows: int, dim: int) -> Matrix:
    """The first vectors of the set, as a kernel of an index has them."""
    from costream.index import codes
    from costream.index.held import RowFile, RowsInFiles

    header = _header(folder, dim)
    numbers = None if header is None else codes.read_numbers(header)
    if header is None or numbers is None:
        raise SystemExit(f"{folder} holds no vectors of {dim} dimensions")
    if kernel == "four_bit":
        file = RowFile(header, numbers.crcs[:rows])
        return RowsInFiles([file], np.empty((0, dim), dtype=np.float16))
    return np.memmap(
        header.path, dtype=np.float16, mode="r", offset=header.vectors_at, shape=(rows, dim)
    )


def _header(folder: Path, dim: int) -> Header | None:
    from costream.index import codes

    return next(iter(codes.chain(folder, dim)), None)


def room(rows: int, dim: int, kernel: str, folder: Path) -> str:
    """Why a size cannot be measured; empty when it can."""
    if kernel == "exact" and rows > MOST_EXACT:
        return "every query would read the whole file"
    size = rows * dim * 2
    free = shutil.disk_usage(folder).free
    if not _holds(folder, rows, dim) and size * 1.1 > free:
        return f"{size / 2**30:.0f} GiB of disk are needed, {free / 2**30:.0f} are free"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            memory = int(line.split()[1]) * 1024
    if size * NEEDS[kernel] > memory:
        return f"{size * NEEDS[kernel] / 2**30:.0f} GiB of memory are needed"
    return ""


def _holds(folder: Path, rows: int, dim: int) -> bool:
    header = _header(folder, dim)
    return header is not None and header.num_vectors >= rows


def measured(kernel: str, folder: Path, rows: int, dim: int) -> dict[str, Any] | None:
    """One line of the table, from a new process; None, with a note, when it cannot be had."""
    reason = room(rows, dim, kernel, folder)
    if reason:
        print(f"{rows:,} x {dim} with {kernel}: left out, {reason}", file=sys.stderr)
        return None
    words = ["--kernel", kernel, "--folder", str(folder), "--rows", str(rows), "--dim", str(dim)]
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"{rows:,} x {dim} with {kernel}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    package = "turbovec" if kernel == "four_bit" else "costream"
    return result | _results.stamp(package) | {"name": f"{kernel} {rows}"}


def print_table(results: list[dict[str, Any]]) -> None:
    """As Markdown."""
    print(f"\n{_machine.machine()}; {', '.join(_machine.versions(['turbovec']))}\n")
    print(
        "| vectors | kernel | ready s | one query ms: best, p50, p95 (busy) "
        "| queries/s in batches of 64 | recall@10 | memory MB (at most) | vectors on disk MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for r in results:
        name = r["kernel"] + (", the default" if r["is_default"] else "")
        print(
            f"| {r['rows']:,} x {r['dim']} | {name} | {r['build_s']:.1f} "
            f"| {r['best_ms']:.2f}, {r['p50_ms']:.2f}, {r['p95_ms']:.2f} ({r['busy_ms']:.1f}) "
            f"| {r['batch_qps']:,.0f} | {r['recall']:.4f} "
            f"| {r['memory_mb']:,.0f}{_most(r)} | {r['disk_mb']:,.0f} |"
        )


def _most(result: dict[str, Any]) -> str:
    return f" ({result['peak_mb']:,.0f})" if "peak_mb" in result else ""


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Four curves over the number of vectors, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        ("best_ms", "one query, best, ms"),
        ("build_s", "ready after, s"),
        ("memory_mb", "memory besides the file, MB"),
        ("disk_mb", "vectors on disk, MB"),
    ]
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    for axis, (key, title) in zip(axes, panels, strict=True):
        for kernel, marker in (("exact", "o"), ("four_bit", "s")):
            mine = [r for r in results if r["kernel"] == kernel]
            values = [max(r[key], 1e-3) for r in mine]
            axis.loglog([r["rows"] for r in mine], values, marker=marker, label=kernel)
        axis.set_title(title)
        axis.set_xlabel("vectors")
        axis.grid(visible=True, which="major", alpha=0.3)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def in_order(path: Path | None, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """New lines and those of a file, by size."""
    order = [f"{kernel} {rows}" for rows in SIZES for kernel in NEEDS]
    return _results.merged(path, results, order + [r["name"] for r in results])


def main() -> int:
    """Run the benchmark, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--json", type=Path, help="where to write the numbers as well")
    parser.add_argument("--plot", type=Path, help="where to draw them")
    parser.add_argument("--folder", type=Path, help="where the vectors are put; default: /tmp")
    parser.add_argument("--set", type=Path, help="where the vectors are kept for another run")
    parser.add_argument("--make", type=int, help="only write so many vectors, to --set")
    parser.add_argument("--kernel", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kernel:
        (rows,) = options.rows
        print(json.dumps(run_kernel(options.kernel, options.folder, rows, options.dim)))
        return 0
    if options.make:
        folder = options.set or parser.error("--make needs --set")
        folder.mkdir(parents=True, exist_ok=True)
        make_set(folder, options.make, options.dim)
        return 0
    warning = _machine.load_warning()
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = options.set or Path(made)
        folder.mkdir(exist_ok=True)
        largest = [rows for rows in options.rows if not room(rows, options.dim, "four_bit", folder)]
        # The first rows of a larger set are those of a smaller one, so one file serves all.
        if not _holds(folder, max(largest), options.dim):
            make_set(folder, max(largest), options.dim)
        for rows in sorted(largest):
            for kernel in NEEDS:
                result = measured(kernel, folder, rows, options.dim)
                if result is not None:
                    results.append(result)
                    if options.json:
                        _results.write(options.json, in_order(options.json, results))
        for rows in sorted(set(options.rows) - set(largest)):
            print(f"{rows:,}: left out, there is no room for it", file=sys.stderr)
    results = in_order(options.json, results)
    print_table(results)
    if warning:
        print(f"\nNot to be trusted: {warning}.")
    if options.plot:
        plot(results, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
