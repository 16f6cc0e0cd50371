"""Search of vectors in memory: costream's kernels and others, side by side in one run.

    python benchmarks/vector_search.py                     # 1,000,000 x 512: takes 10 minutes
    python benchmarks/vector_search.py --rows 50000        # a minute
    python benchmarks/vector_search.py --slow              # with graphs: half an hour more
    python benchmarks/vector_search.py --engines exact four_bit faiss
    python benchmarks/vector_search.py --set DIR --json FILE   # in pieces: DIR keeps the vectors,
                                       # FILE the lines of engines that were measured before

Peers are those of `requirements.txt`; one that is not installed is left out with a note. Every
engine runs in a process of its own, one after the other. Queries are texts and vectors pictures, as
`_vectors.py` makes them. Times of single queries are the best, the median and the 95th percentile
after a warm-up, and the mean time that all cores together were busy; batches count by the best one.
Ratios are of the best, which other programs disturb least. An engine that needs more than a minute
for all queries is asked as many as it answers in one, and the table says how many. Recall@10 is
measured against a float32 product whose best 100 are scored again in float64.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _machine
import _results
import _vectors
import numpy as np
from _engines import ENGINES
from numpy.typing import NDArray

TOP = 10
BATCH = 64
MOST_S = 60.0


def truth(vectors_ND: NDArray[np.float16], queries_QD: NDArray[np.float32]) -> NDArray[np.int64]:
    """Best rows (Q, TOP) of a float32 product in blocks, decided in float64."""
    best_QK = np.empty((len(queries_QD), 0), dtype=np.int64)
    scores_QK = np.empty((len(queries_QD), 0), dtype=np.float32)
    for start in range(0, len(vectors_ND), 2**16):
        part = queries_QD @ vectors_ND[start : start + 2**16].astype(np.float32).T
        rows = np.broadcast_to(np.arange(start, start + part.shape[1]), part.shape)
        scores_QK = np.concatenate([scores_QK, part], axis=1)
        best_QK = np.concatenate([best_QK, rows], axis=1)
        keep = np.argpartition(scores_QK, -min(100, scores_QK.shape[1]), axis=1)[:, -100:]
        scores_QK = np.take_along_axis(scores_QK, keep, axis=1)
        best_QK = np.take_along_axis(best_QK, keep, axis=1)
    out = np.empty((len(queries_QD), TOP), dtype=np.int64)
    for query, near in enumerate(best_QK):
        rows = np.sort(near)
        wide = vectors_ND[rows].astype(np.float64)
        scores = (wide @ queries_QD[query].astype(np.float64)).astype(np.float32)
        out[query] = rows[np.lexsort((rows, -scores))[:TOP]]
    return out


def run_engine(name: str, folder: Path) -> dict[str, Any]:
    """Measure one engine, in this process."""
    vectors = np.load(folder / "vectors.npy")
    queries, true = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    before = _machine.resident_bytes()
    started = time.perf_counter()
    engine = ENGINES[name].make(vectors)
    engine.top(queries[:1], TOP)
    build_s = time.perf_counter() - started
    held = _machine.resident_bytes() - before
    found = []
    for query in queries[:3]:
        engine.top(query[None], TOP)
    single = _machine.timed(
        (
            lambda row=row: found.append(engine.top(queries[row : row + 1], TOP)[0])
            for row in range(len(queries))
        ),
        MOST_S,
    )
    whole = [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]
    whole = [batch for batch in whole if len(batch) == BATCH] or [queries]
    if len(found) == len(queries):
        engine.top(whole[0], TOP)
    batch_ms = _machine.timed((lambda b=batch: engine.top(b, TOP) for batch in whole), MOST_S)[
        "best_ms"
    ]
    some = true[: len(found)]
    hits = [len(set(rows.tolist()) & set(t.tolist())) for rows, t in zip(found, some, strict=True)]
    return {
        "name": name,
        "build_s": build_s,
        **single,
        "batch_qps": 1e3 * len(whole[0]) / batch_ms,
        "recall": float(np.mean(hits)) / TOP,
        "queries": len(found),
        "memory_mb": held / 2**20,
    }


def make_set(folder: Path, rows: int, dim: int, queries: int, seed: int) -> None:
    """Vectors, queries and their true answers, as files."""
    world = _vectors.make_world(dim, seed)
    vectors = _vectors.pictures(world, rows)
    asked = _vectors.texts(world, queries, among=rows)
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", asked)
    np.save(folder / "truth.npy", truth(vectors, asked))


def measured(name: str, folder: Path) -> dict[str, Any] | None:
    """One line of the table, from a new process; None, with a note, when it cannot be had."""
    entry = ENGINES[name]
    if entry.version is None:
        print(f"{entry.name}: left out, {entry.package} is not installed", file=sys.stderr)
        return None
    words = [sys.executable, __file__, "--engine", name, "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{entry.name}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result | _results.stamp(entry.package)


def print_table(results: list[dict[str, Any]], rows: int, dim: int) -> None:
    """As Markdown, with ratios to the first peer that is exact."""
    reference = next((r for r in results if r["name"] == "faiss"), results[0])
    name = ENGINES[reference["name"]].name
    print(f"\n{rows:,} x {dim}, top {TOP}; {_machine.machine()}\n")
    print(
        f"| engine | ready s | one query ms: best, p50, p95 (busy) | times as fast as {name} | "
        f"queries/s in batches of {BATCH} | times | recall@{TOP} | memory MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    asked = max((r.get("queries", 0) for r in results), default=0)
    for r in results:
        entry = ENGINES[r["name"]]
        few = f", {r['queries']} queries" if r.get("queries", asked) < asked else ""
        print(
            f"| {entry.name} ({r['version']}{few}) | {r['build_s']:.1f} "
            f"| {r['best_ms']:.2f}, {r['p50_ms']:.2f}, {r['p95_ms']:.2f} ({r['busy_ms']:.1f}) "
            f"| {reference['best_ms'] / r['best_ms']:.1f} "
            f"| {r['batch_qps']:,.0f} | {r['batch_qps'] / reference['batch_qps']:.1f} "
            f"| {r['recall']:.4f} | {r['memory_mb']:,.0f} |"
        )


def main() -> int:
    """Run the benchmark and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES))
    parser.add_argument("--slow", action="store_true", help="also what takes minutes to build")
    parser.add_argument("--json", type=Path, help="where to write the numbers as well")
    parser.add_argument("--set", type=Path, help="where the vectors are kept for another run")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(run_engine(options.engine, options.folder)))
        return 0
    chosen = options.engines or [
        name for name, entry in ENGINES.items() if options.slow or not entry.is_slow
    ]
    warning = _machine.load_warning()
    with tempfile.TemporaryDirectory() as made:
        folder = options.set or Path(made)
        if not (folder / "truth.npy").exists():
            folder.mkdir(exist_ok=True)
            make_set(folder, options.rows, options.dim, options.queries, options.seed)
        results = []
        for name in chosen:
            result = measured(name, folder)
            if result is not None:
                results = _results.merged(options.json, [*results, result], list(ENGINES))
                if options.json:
                    _results.write(options.json, results, rows=options.rows, dim=options.dim)
    print_table(results, options.rows, options.dim)
    if warning:
        print(f"\nNot to be trusted: {warning}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
