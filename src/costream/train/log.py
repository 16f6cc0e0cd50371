"""What a run leaves behind: one JSON line a logged step, TensorBoard events, and a curve to look at."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_logger = logging.getLogger("costream.train")


class TrainingLog:
    """Writes `metrics.jsonl`, and TensorBoard events where that package is installed.

    Args:
        directory: Of the run.
        active: Whether this process writes at all.
    """

    def __init__(self, directory: Path, *, active: bool = True) -> None:
        self.path = directory / "metrics.jsonl"
        self.active = active
        self._start = time.monotonic()
        self._events: SummaryWriter | None = None
        if active:
            directory.mkdir(parents=True, exist_ok=True)
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                _logger.info("tensorboard is not installed: metrics.jsonl only")
            else:
                self._events = SummaryWriter(str(directory / "tensorboard"))

    def keep_until(self, step: int) -> None:
        """Drop lines after `step`: a resumed run writes them again."""
        if not self.active:
            return
        lines = [line for line in read_metrics(self.path) if line["step"] <= step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of one step."""
        if not self.active:
            return
        line = {"step": step, **values, "seconds": round(time.monotonic() - self._start, 2)}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def warn(self, sentence: str) -> None:
        """Log a warning."""
        _logger.warning(sentence)

    def close(self) -> None:
        """Flush what is buffered."""
        if self._events is not None:
            self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; none when it does not exist. A half-written last line is left."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def draw_curves(metrics: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw every logged value over the steps as one PNG.

    Args:
        metrics: Lines as of `read_metrics`.
        out: PNG file to write.

    Raises:
        ImportError: When matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = sorted({name for line in metrics for name in line} - {"step", "seconds"})
    columns = 3
    rows = -(-len(names) // columns) or 1
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        points = [(line["step"], line[name]) for line in metrics if name in line]
        axis.plot(*zip(*points, strict=True), linewidth=1.2, color="#2458a6")
        axis.set_title(name.replace("_", " "), fontsize=10, loc="left")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=9)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
