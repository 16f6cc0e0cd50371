"""How good an index's approximate answers are, measured in the background on its real queries.

Shape letters: Q queries, N rows, D dimensions.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.scoring.audit import BackgroundAudit, RecallAudit
from costream.scoring.kernels import Kernel

# Shortest time between two audits.
PAUSE_S = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class _Mask:
    """The rows that a condition allowed, a bit each; compared by identity."""

    num_rows: int
    bits: NDArray[np.uint8]

    def rows(self) -> NDArray[np.bool_]:
        return np.unpackbits(self.bits, count=self.num_rows).view(np.bool_)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Watch:
    """Audits the kernel of an index from the first approximate answer on.

    Attributes:
        kernel_of: Gives the kernel that answers at present, without waiting; None for none.
    """

    kernel_of: Callable[[], Kernel | None]
    _audit: RecallAudit = field(default_factory=RecallAudit)
    _background: BackgroundAudit | None = None
    _kernel: Kernel | None = None
    _change: threading.Lock = field(default_factory=threading.Lock)

    def note(
        self,
        kernel: Kernel,
        queries: NDArray[Any],
        top: int,
        allowed: NDArray[np.bool_] | None,
    ) -> None:
        """Take notice of queries that were just answered.

        Args:
            kernel: What answered them.
            queries: Floating point (Q, D).
            top: How many results were wanted.
            allowed: bool (N,), which rows could be found; None for all.
        """
        if kernel.exact:
            return
        with self._change:
            if kernel is not self._kernel:
                # Its rows have other numbers, which earlier masks do not fit.
                self._audit.forget(conditions_too=True)
                self._kernel = kernel
            where = None if allowed is None else _Mask(len(allowed), np.packbits(allowed))
            self._audit.note(queries, top, where)
            if self._background is None:
                self._background = self._begin()

    def _begin(self) -> BackgroundAudit:
        # The thread must not keep an index alive that nobody uses and nobody has closed.
        here = weakref.ref(self)

        def known() -> Kernel | None:
            watch = here()
            return None if watch is None else watch._known_kernel()

        background = BackgroundAudit(self._audit, known, allowed_of=_allowed, pause_s=PAUSE_S)
        weakref.finalize(self, background.stop)
        return background

    def _known_kernel(self) -> Kernel | None:
        """The present kernel if it is the one that the masks are for."""
        kernel = self.kernel_of()
        return kernel if kernel is self._kernel else None

    def recall(self, kernel: Kernel) -> float | None:
        """What share of the true results the kernel finds; None when exact or not yet measured."""
        if kernel.exact or kernel is not self._kernel:
            return None
        estimate = self._audit.estimate()
        return None if estimate is None else estimate.recall

    def close(self) -> None:
        """End the background work, after the pass that is under way."""
        with self._change:
            background, self._background, self._kernel = self._background, None, None
        if background is not None:
            background.close()


def _allowed(where: object) -> NDArray[np.bool_] | None:
    return where.rows() if isinstance(where, _Mask) else None
