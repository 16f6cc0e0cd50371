"""What a run leaves behind: a JSON line a logged step, TensorBoard events, a curve to look at."""

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
    """Writes `metrics.jsonl`, `warnings.txt`, and TensorBoard events where that is installed.

    Args:
        directory: Of the run.
        active: Whether this process writes metrics.
    """

    def __init__(self, directory: Path, *, active: bool = True) -> None:
        self.directory = directory
        self.path = directory / "metrics.jsonl"
        self.active = active
        self._start = time.monotonic()
        self._events: SummaryWriter | None = None

    def begin(self, step: int, sentence: str) -> None:
        """Open the log; lines after `step` are dropped, a resumed run writes them again.

        Args:
            step: Steps done before.
            sentence: What is about to run: device, precision, seed, data.
        """
        _logger.info(sentence)
        if not self.active:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = [line for line in read_metrics(self.path) if line["step"] <= step]
        working = self.path.with_name(f".{self.path.name}.part")
        working.write_text("".join(json.dumps(line) + "\n" for line in lines))
        working.replace(self.path)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            _logger.info("tensorboard is not installed: metrics.jsonl only")
        else:
            folder = str(self.directory / "tensorboard")
            self._events = SummaryWriter(folder, purge_step=step + 1)

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
        """Say what was left out or passed over, and keep it in `warnings.txt`."""
        _logger.warning(sentence)
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "warnings.txt").open("a") as file:
            file.write(f"{sentence}\n")

    def close(self) -> None:
        """Flush what is buffered."""
        if self._events is not None:
            self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` up to the first damaged one; none when it does not exist.

    A run that was killed leaves a half-written last line.

    Args:
        path: Of the file.

    Returns:
        One mapping a line, each with a `step`.
    """
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or "step" not in line:
            break
        lines.append(line)
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
