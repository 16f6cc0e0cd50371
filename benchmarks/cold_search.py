"""Time of a search from a cold start, by words and by example, on indexes of several sizes.

    python benchmarks/cold_search.py [--counts 1000 10000 100000]

The vectors are random in the default model's space: a search reads, scores and looks up
the same whatever they mean. Each time is a whole process, the fastest and the median of five.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import _machine
import _results
import numpy as np

import costream
from costream.encoders.light.vision import load_image_encoder


def fill(directory: Path, count: int, space: costream.Space) -> None:
    """Make an index of `count` items with random vectors."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((count, space.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = [
        costream.Item(id=f"/p/{n}.jpg", path=f"/p/{n}.jpg", content_hash=f"{n}", size=1, mtime_ns=1)
        for n in range(count)
    ]
    with costream.Index.open(directory, create=True) as index:
        index.add(items, vectors, space)
        index.load()


def seconds(words: list[str]) -> tuple[float, float]:
    """Fastest and median time of five runs of a command."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "costream", *words], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times), statistics.median(times)


def print_table(results: list[dict[str, Any]]) -> None:
    """As Markdown."""
    print(f"\n{_machine.machine()}\n")
    print("| items | by words, s (best, median) | by example, s (best, median) |")
    print("|---|---|---|")
    for r in results:
        (words, words_median), (example, example_median) = r["words_s"], r["example_s"]
        print(
            f"| {r['items']:,} | {words:.2f}, {words_median:.2f} "
            f"| {example:.2f}, {example_median:.2f} |"
        )


def main() -> int:
    """Run the benchmark and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--json", type=Path, help="where to write the numbers as well")
    options = parser.parse_args()
    space = load_image_encoder("cots-mini").space
    example = next((resources.files("costream") / "assets" / "gallery").glob("*.jpg"))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for count in options.counts:
            directory = Path(folder, str(count))
            fill(directory, count, space)
            place = ["--index", str(directory), "--json"]
            words = seconds(["search", "two dogs in the snow", *place])
            example_s = seconds(["search", "--image", str(example), *place])
            line = {"name": str(count), "items": count, "words_s": words, "example_s": example_s}
            results.append(line | _results.stamp("costream"))
    print_table(results)
    if options.json:
        _results.write(options.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
