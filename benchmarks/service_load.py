"""The service under load: errors, throughput and waiting times of many clients at once.

    python benchmarks/service_load.py --json docs/results/service_load.json

A real `costream serve` in a process of its own, on an index of items like those of the sample
gallery. Half of the questions are asked once, half are drawn from 200 that are asked again and
again, as people do. First some are asked one after the other, then all by many clients at once,
each asking the next as soon as it has an answer. Then some are asked one after the other again, and
the answers must be the same. Clients and service share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import _machine
import numpy as np
from _http import Call, ask_all

import costream

DOCS = Path(__file__).parents[1] / "docs"
REPEATED = 200
COMPARED = 500
SPREAD = 0.7
WARM_UP = 50
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Scores of the same question, alone and in a batch, may differ in their last bits.
ROUNDING = 1e-5

WHO = "a dog;two dogs;a man;a woman;a child;a girl;a boy;people;a crowd;a cat;a horse;a bird"
HOW = "black;brown;white;small;large;old;young;happy;tired;wet"
DOES = "running;jumping;sleeping;sitting;swimming;climbing;playing;eating;standing;walking;waiting"
WHERE = (
    "on a beach;in the snow;in a park;on a street;at night;near a river;in a kitchen;on a roof;"
    "under a tree;in a field;by a window;on a boat;in the rain;on stage;at a market;on a mountain"
)


def questions(count: int, seed: int) -> list[str]:
    """Half different ones, half from few that come again, in mixed order."""
    parts = (part.split(";") for part in (WHO, HOW, DOES, WHERE))
    every = [f"{who} that looks {how} {does} {where}" for who, how, does, where in product(*parts)]
    drawn = np.random.default_rng(seed)
    drawn.shuffle(every)
    often, once = every[:REPEATED], every[REPEATED:]
    asked = once[: count - count // 2] + drawn.choice(often, count // 2).tolist()
    drawn.shuffle(asked)
    return asked


def make_index(directory: Path, count: int) -> Path:
    """An index of so many items that lie around the pictures of the sample gallery.

    What a search costs does not depend on where the vectors lie, so nothing is embedded but the
    gallery; the names of its pictures give the search for words something to find.
    """
    gallery = sorted((resources.files("costream") / "assets" / "gallery").glob("*.jpg"))
    model = costream.load("cots-mini")
    centres_ND = model.encode_images([str(path) for path in gallery])
    drawn = np.random.default_rng(0)
    owners = np.arange(count) % len(gallery)
    noise_ND = drawn.standard_normal((count, centres_ND.shape[1])) / centres_ND.shape[1] ** 0.5
    vectors_ND = (centres_ND[owners] + SPREAD * noise_ND).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    paths = [f"/pictures/{gallery[n].stem}_{number:06d}.jpg" for number, n in enumerate(owners)]
    items = [
        costream.Item(id=path, path=path, content_hash=f"{number:064x}", size=1, mtime_ns=1)
        for number, path in enumerate(paths)
    ]
    with costream.Index.open(directory, create=True) as index:
        index.add(items, vectors_ND, model.space)
        index.load()
    return directory


@contextlib.contextmanager
def service(index: Path) -> Iterator[tuple[str, int]]:
    """URL and process of a service that runs while the block does."""
    words = ["serve", "--index", str(index), "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "costream", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        url = "" if process.stdout is None else process.stdout.readline().strip()
        if not url:
            raise SystemExit("the service did not start")
        try:
            yield url, process.pid
        finally:
            process.send_signal(signal.SIGINT)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def figures(name: str, calls: Sequence[Call], seconds: float) -> dict[str, Any]:
    """What is reported of a number of calls."""
    spent = np.array([call.milliseconds for call in calls])
    errors = Counter(call.error for call in calls if call.error)
    stages = [call.answer["seconds"] for call in calls if call.answer]
    names = sorted({stage for each in stages for stage in each})
    p50, p95, p99 = np.percentile(spent, [50, 95, 99])
    return {
        "what": name,
        "requests": len(calls),
        "errors": sum(errors.values()),
        "kinds_of_errors": dict(errors.most_common(5)),
        "per_second": round(len(calls) / seconds, 1),
        "p50_ms": round(float(p50), 1),
        "p95_ms": round(float(p95), 1),
        "p99_ms": round(float(p99), 1),
        "max_ms": round(float(spent.max()), 1),
        "mean_stage_ms": {
            stage: round(1e3 * float(np.mean([each.get(stage, 0.0) for each in stages])), 2)
            for stage in names
        },
    }


def timed(url: str, pid: int, name: str, texts: Sequence[str], clients: int) -> tuple[Any, Any]:
    """Ask everything, and what that took."""
    service_cpu, own_cpu = cpu_seconds(pid), time.process_time()
    begin = time.perf_counter()
    calls = asyncio.run(ask_all(url, texts, clients))
    found = figures(name, calls, time.perf_counter() - begin)
    found["service_cpu_ms"] = round(1e3 * (cpu_seconds(pid) - service_cpu) / len(texts), 2)
    found["clients_cpu_ms"] = round(1e3 * (time.process_time() - own_cpu) / len(texts), 2)
    return found, calls


def differences(together: Sequence[Call], alone: Sequence[Call]) -> int:
    """How many answers are not the same."""
    return sum(
        not _same(one.found, other.found) for one, other in zip(together, alone, strict=True)
    )


def _same(one: list[tuple[str, float]], other: list[tuple[str, float]]) -> bool:
    return (
        len(one) == len(other) > 0
        and [item for item, _ in one] == [item for item, _ in other]
        and all(abs(a - b) <= ROUNDING for (_, a), (_, b) in zip(one, other, strict=True))
    )


def measure(index: Path, num_clients: int, num_requests: int) -> dict[str, Any]:
    """Run everything against a service of its own."""
    texts = questions(num_requests, seed=1)
    sequential = questions(max(num_requests // 10, 1), seed=2)
    with service(index) as (url, pid):
        warm_up = asyncio.run(ask_all(url, questions(WARM_UP, seed=3), 4))
        alone, _ = timed(url, pid, "one after the other", sequential, 1)
        many, calls = timed(url, pid, f"{num_clients} clients", texts, num_clients)
        chosen = np.random.default_rng(4).permutation(len(calls))[:COMPARED].tolist()
        again = asyncio.run(ask_all(url, [texts[number] for number in chosen], 1))
    return {
        "machine": _machine.machine(),
        "note": "clients and service share the machine",
        "items": warm_up[0].answer.get("total"),
        "clients": num_clients,
        "compared": len(again),
        "different_answers": differences([calls[number] for number in chosen], again),
        "results": [alone, many],
    }


def print_tables(report: dict[str, Any]) -> None:
    """One table of times, one of where they go."""
    print("\n| | requests | errors | a second | p50 ms | p95 ms | p99 ms | max ms |")
    print("|---|---|---|---|---|---|---|---|")
    for row in report["results"]:
        times = " | ".join(f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms"))
        counts = f"{row['requests']:,} | {row['errors']} | {row['per_second']:.0f}"
        print(f"| {row['what']} | {counts} | {times} |")
    stages = list(report["results"][0]["mean_stage_ms"])
    print(f"\n| mean ms | {' | '.join(stages)} | CPU of service | CPU of clients |")
    print("|---|" + "---|" * (len(stages) + 2))
    for row in report["results"]:
        cells = [f"{row['mean_stage_ms'].get(stage, 0.0):.2f}" for stage in stages]
        cells += [f"{row['service_cpu_ms']:.2f}", f"{row['clients_cpu_ms']:.2f}"]
        print(f"| {row['what']} | {' | '.join(cells)} |")
    same = report["compared"] - report["different_answers"]
    print(f"\n{same} of {report['compared']} answers under load are those of calls alone.")


def main() -> int:
    """Run the benchmark, print two tables and store the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        index = make_index(Path(made) / "index", options.items)
        warning = _machine.load_warning()
        report = measure(index, options.clients, options.requests)
    if warning:
        report["note"] += f"; {warning}"
    print_tables(report)
    print(f"\n{report['note']}.")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if report["results"][1]["errors"] or report["different_answers"] else 0


if __name__ == "__main__":
    sys.exit(main())
