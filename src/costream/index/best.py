"""From rows that a kernel finds to the best items: ties, moments, and no more than needed.

A kernel gives the best so many rows, of equal scores some. So it is asked for more than wanted,
until everything that is as good as the last wanted one is known.

Shape letters: Q queries, N rows, D dimensions, R rows found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.scoring.kernels import Kernel

# An item's moments are often alike, so that several are among the best.
_ROWS_AN_ITEM = 4


def candidates(
    kernel: Kernel,
    queries: NDArray[Any],
    top: int,
    allowed: NDArray[np.bool_] | None,
    units_N: NDArray[np.int64] | None,
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Rows of each query that are at least as good as its `top`-th best.

    Args:
        kernel: What finds rows.
        queries: Floating point (Q, D).
        top: How many are wanted.
        allowed: bool (N,), which rows may be found, no removed ones; None for all.
        units_N: int64 (N,), what a row counts as; None when every row counts.

    Returns:
        Per query rows and scores, best first; all there are when these are fewer than wanted.
    """
    alive = kernel.rows
    num_rows = len(alive) - alive.num_removed if allowed is None else int(allowed.sum())
    found: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
    pending = np.arange(len(queries))
    count = (top + 1) * (1 if units_N is None else _ROWS_AN_ITEM)
    while True:
        rows, scores = kernel.top(queries[pending], max(min(count, num_rows), 1), allowed)
        open_ = []
        for query, rows_R, scores_R in zip(pending.tolist(), rows, scores, strict=True):
            end = cut(rows_R if units_N is None else units_N[rows_R], scores_R, top)
            if end is None and count < num_rows:
                open_.append(query)
            else:
                found[query] = rows_R[:end], scores_R[:end]
        if not open_:
            return [found[query] for query in range(len(queries))]
        pending = np.array(open_)
        count *= 4


def cut(units_R: NDArray[np.int64], scores_R: NDArray[np.float32], top: int) -> int | None:
    """How many of the rows are as good as the best row of the `top`-th unit; None if unknown."""
    if not len(scores_R):
        return None
    # Of rows as good as the last one there may be more.
    known = int(np.searchsorted(-scores_R, -scores_R[-1], side="left"))
    _, firsts = np.unique(units_R[:known], return_index=True)
    if len(firsts) < top:
        return None
    last = np.sort(firsts)[top - 1]
    return int(np.searchsorted(-scores_R, -scores_R[last], side="right"))
