"""What the experiment leaves behind: numbers as JSON, tables as Markdown, two plots."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costream.evaluate import ClaimTable, claim_to_json, render_claim
from costream.evaluate.efficiency import efficiency_table, plot_efficiency
from costream.methods._cots.all_runs import Results, Values
from costream.methods._cots.speed import curve_of
from costream.methods._cots.tables import LOSS_NAMES, column, filter_sentence, mean_of
from costream.methods._cots.world import Say, Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _SKY, _RED, _ORANGE, _GREY = "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#777777"
_LOSS_COLOURS = {
    "contrast": _GREY,
    "kl": _SKY,
    "masked": _ORANGE,
    "all": _RED,
    "longer": _GREY,
}
_FILTER_LOOKS = {
    "off": (_GREY, "o", "no filter"),
    "k=1": (_BLUE, "D", "filter, k = 1"),
    "oracle": (_ORANGE, "^", "oracle"),
}


def write_report(
    out: Path,
    tables: Sequence[ClaimTable],
    results: Results,
    speed: Mapping[str, Any],
    scale: Scale,
    say: Say,
) -> None:
    """Write `cots.json`, `cots.md` and, where matplotlib is installed, the plots.

    Args:
        out: Folder, made when absent.
        tables: What is claimed and shown.
        results: Values of all runs.
        speed: Values of the timing.
        scale: Sizes.
        say: Told about what was written.
    """
    out.mkdir(parents=True, exist_ok=True)
    stored = {
        "method": "cots",
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "claims": [claim_to_json(table) for table in tables],
        "runs": {
            "losses": {name: list(runs) for name, runs in results.losses.items()},
            "filters": {
                f"{100 * share:g} % mismatched, {kind}": list(runs)
                for (share, kind), runs in results.filters.items()
            },
        },
        "speed": speed,
    }
    _write(out / "cots.json", json.dumps(stored, indent=1, allow_nan=False) + "\n")
    _write(out / "cots.md", markdown(tables, results, speed, scale))
    try:
        plot_ablation(results, scale, out / "cots_ablation.png")
        plot_efficiency(curve_of(speed), out / "cots_efficiency.png")
    except ImportError:
        say("matplotlib is not installed, so nothing was drawn; pip install 'costream[train]'")
    say(f"wrote cots.json, cots.md and plots to {out}")


def _write(path: Path, text: str) -> None:
    """Replace a file whole, so that a stop leaves the old or the new one."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, encoding="utf-8", delete=False, prefix=path.name
    ) as file:
        file.write(text)
    written = Path(file.name)
    written.chmod(0o644)
    written.replace(path)


def markdown(
    tables: Sequence[ClaimTable], results: Results, speed: Mapping[str, Any], scale: Scale
) -> str:
    """All numbers for documentation: absolute values first, then every comparison."""
    parts = [
        "# COTS: what its claim shows here",
        "Written by `costream reproduce cots`. Gains are paired differences over seeds with their "
        "95 % interval; `shown`, `not shown` and `contradicted` follow from the interval.",
        "![hit@1 of all runs](cots_ablation.png)",
        _markdown_table(loss_rows(results)),
        _markdown_table(filter_rows(results, scale)),
        *(render_claim(table, "markdown") for table in tables),
        "![time to rank](cots_efficiency.png)",
        _markdown_table(efficiency_table(curve_of(speed))),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


def loss_rows(results: Results) -> list[tuple[str, ...]]:
    """Absolute values of the loss runs, means over seeds, headings first."""
    rows: list[tuple[str, ...]] = [
        ("trained with", "hit@1 image to text", "hit@1 text to image", "seconds a step")
    ]
    for key, name in LOSS_NAMES.items():
        runs = results.losses[key]
        label = f"{name} ({results.longer_steps} steps)" if key == "longer" else name
        hits = [_spread(runs, f"{way} hit@1") for way in ("image_to_text", "text_to_image")]
        rows.append((label, *hits, f"{mean_of(runs, 'step_s'):.3f}"))
    return rows


def filter_rows(results: Results, scale: Scale) -> list[tuple[str, ...]]:
    """Absolute values of the filter runs, means over seeds, headings first."""
    rows: list[tuple[str, ...]] = [
        ("mismatched captions", "filter", "hit@1, mean of both ways", "what it left out")
    ]
    for (share, kind), runs in results.filters.items():
        said = filter_sentence(runs, share) if kind.startswith("k=") else ""
        rows.append((f"{100 * share:g} %", kind, _spread(runs, "hit@1"), said))
    return rows


def _spread(runs: Sequence[Values], metric: str) -> str:
    values = column(runs, metric)
    return f"{mean_of(runs, metric):.2f} ({min(values):.1f} to {max(values):.1f})"


def plot_ablation(results: Results, scale: Scale, path: Path) -> None:
    """Draw hit@1 of every run: by losses on the left, by mismatched captions on the right.

    Raises:
        ImportError: When matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    _draw_losses(left, results)
    _draw_filters(right, results, scale)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    figure.savefig(path, format="png")


def _draw_losses(axes: Axes, results: Results) -> None:
    for place, key in enumerate(reversed(LOSS_NAMES)):
        values = column(results.losses[key], "hit@1")
        mean, colour = sum(values) / len(values), _LOSS_COLOURS[key]
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color=colour, linewidth=2.5)
        axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.7, markersize=6)
        axes.annotate(
            f"{mean:.1f}", (mean, place + 0.34), ha="center", va="bottom", fontsize=9, color=colour
        )
        if key == "contrast":
            axes.axvline(mean, color="#cccccc", linewidth=1, linestyle="--", zorder=0)
    names = list(reversed(LOSS_NAMES.values()))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.2)
    axes.margins(x=0.12)
    axes.set_xlabel("hit@1 in percent, mean of both directions (one dot a seed, line: mean)")
    axes.set_title("Losses, at equal steps but for the last", fontsize=11)
    axes.grid(visible=True, axis="x", color="#eeeeee")


def _draw_filters(axes: Axes, results: Results, scale: Scale) -> None:
    for number, (kind, (colour, marker, label)) in enumerate(_FILTER_LOOKS.items()):
        shares = [share for share in scale.shares if (share, kind) in results.filters]
        # A little apart, so that points do not hide each other.
        places = [100 * share + 0.7 * (number - 1) for share in shares]
        runs = [results.filters[share, kind] for share in shares]
        means = [mean_of(each, "hit@1") for each in runs]
        axes.plot(places, means, color=colour, marker=marker, linewidth=1.5, label=label)
        for place, each in zip(places, runs, strict=True):
            values = column(each, "hit@1")
            axes.plot([place, place], [min(values), max(values)], color=colour, alpha=0.5)
    axes.set_xticks([100 * share for share in scale.shares])
    axes.set_xlabel("training pictures with another one's captions, in percent")
    axes.set_ylabel("hit@1 in percent (bars: range over seeds)")
    axes.set_title("The filter, contrast alone", fontsize=11)
    axes.grid(visible=True, color="#eeeeee")
    axes.legend(frameon=False)
