"""Changes an index step by step; says on standard output when each change is acknowledged."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from index_worker import DIM, ColourHistogram, unit

from costream.index import Index, Item

SPACE = ColourHistogram.space
ITEMS = [Item(id=f"item{n}", content_hash=f"hash{n}", caption=f"word{n} " * 40) for n in range(60)]
VECTORS = unit(np.random.default_rng(0), len(ITEMS), DIM)

CHANGES: tuple[Callable[[Index], Any], ...] = (
    lambda index: index.add(ITEMS[:20], VECTORS[:20], SPACE),
    lambda index: index.add(ITEMS[20:21], VECTORS[20:21], SPACE),
    lambda index: index.remove([item.id for item in ITEMS[3:9]]),
    lambda index: index.add(ITEMS[15:45], -VECTORS[15:45], SPACE),
    lambda index: index.touch([replace(item, mtime_ns=9) for item in ITEMS[15:18]]),
    lambda index: index.reuse([replace(ITEMS[0], id="moved")], remove=[ITEMS[0].id]),
    lambda index: index.forget([ITEMS[30].id]),
    lambda index: index.add(ITEMS[45:], VECTORS[45:], SPACE),
    lambda index: index.remove([item.id for item in ITEMS[50:55]]),
)


def main() -> None:
    with Index.open(sys.argv[1]) as index:
        for change in CHANGES:
            change(index)
            os.write(1, b"acknowledged\n")
    os.write(1, b"closed\n")


if __name__ == "__main__":
    main()
