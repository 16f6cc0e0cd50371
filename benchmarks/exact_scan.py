"""How fast an index opens and answers: `python benchmarks/exact_scan.py [--dim 256] [ITEMS ...]`.

Every cold number comes from a new process with warm file caches. "Brute force" is numpy's float32
product with a full sort, on vectors that are in memory already.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from costream.index import Index, Item
from costream.records import Space

TOP = 10

_COLD = """
import json, sys, time
import numpy as np
started = time.perf_counter()
from costream.index import Index
imported = time.perf_counter()
with Index.open(sys.argv[1]) as index:
    space = index.space
    query = np.full((1, space.dim), space.dim**-0.5, dtype=np.float32)
    index.get(index.search(query, space, 10).ids[0])
    answered = time.perf_counter()
assert "torch" not in sys.modules and "PIL" not in sys.modules
print(json.dumps([1e3 * (imported - started), 1e3 * (answered - imported)]))
"""


def unit_vectors(rows: int, dim: int) -> NDArray[np.float32]:
    """Random unit vectors float32 (rows, dim)."""
    values = np.random.default_rng(0).standard_normal((rows, dim), dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def build(directory: Path, vectors: NDArray[np.float32], space: Space) -> None:
    """An index of made-up picture files."""
    with Index.open(directory, create=True) as index:
        for start in range(0, len(vectors), 1024):
            part = vectors[start : start + 1024]
            names = [
                f"/home/someone/pictures/{row % 97}/IMG_{row:07d}.jpg"
                for row in range(start, start + len(part))
            ]
            items = [Item(id=name, path=name, content_hash=f"{name:x>64}") for name in names]
            index.add(items, part, space)


def cold(directory: Path) -> tuple[float, float]:
    """Milliseconds to import and to open, search and look up, in a new process."""
    answers = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", _COLD, str(directory)], check=True, capture_output=True
        )
        answers.append(json.loads(done.stdout))
    imported, answered = (statistics.median(column) for column in zip(*answers, strict=True))
    return imported, answered


def first(directory: Path) -> float:
    """Milliseconds of the first search, which has to read the vectors from the database."""
    (directory / "vectors.f16").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", _COLD, str(directory)], check=True, capture_output=True
    )
    return float(json.loads(done.stdout)[1])


def median_ms(work: Callable[[], object], times: int = 7) -> float:
    """Median milliseconds, after two calls that do not count."""
    spent = []
    for number in range(times + 2):
        started = time.perf_counter()
        work()
        if number > 1:
            spent.append(1e3 * (time.perf_counter() - started))
    return statistics.median(spent)


def brute_force(vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> object:
    """Best ten of each query by a full product and sort."""
    return np.argsort(-(queries @ vectors.T), axis=1)[:, :TOP]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("items", nargs="*", type=int, default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=256)
    options = parser.parse_args()
    print(
        f"{'items':>9} {'import':>8} {'cold':>8} {'no file':>8} {'1 query':>8} {'64':>8}"
        f" {'brute 1':>8} {'brute 64':>9}   (ms; {options.dim} dimensions, top {TOP})"
    )
    for rows in options.items:
        vectors = unit_vectors(rows, options.dim)
        space = Space(encoder="benchmark", weights_hash="", preprocessing_hash="", dim=options.dim)
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder), vectors, space)
            without_file = first(Path(folder))
            imported, answered = cold(Path(folder))
            one, many = vectors[:1], vectors[:64]
            with Index.open(folder) as index:
                warm_one = median_ms(lambda: index.search(one, space, TOP))  # noqa: B023
                warm_many = median_ms(lambda: index.search(many, space, TOP))  # noqa: B023
            brute_one = median_ms(lambda: brute_force(vectors, one))  # noqa: B023
            brute_many = median_ms(lambda: brute_force(vectors, many), times=3)  # noqa: B023
        print(
            f"{rows:>9,} {imported:>8.1f} {answered:>8.1f} {without_file:>8.1f} {warm_one:>8.2f}"
            f" {warm_many:>8.1f} {brute_one:>8.2f} {brute_many:>9.1f}"
        )


if __name__ == "__main__":
    main()
