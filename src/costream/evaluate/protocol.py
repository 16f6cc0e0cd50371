"""What an evaluation is: a question about a system, answered by a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from costream.data import DataSet
    from costream.parts import System
    from costream.records import Report


class Evaluation(Protocol):
    """Measures a system on data.

    A constant scorer scores chance, an oracle scores best, and other ids change nothing.
    """

    def run(self, system: System, data: DataSet) -> Report:
        """The measurement."""
