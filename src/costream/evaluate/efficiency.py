"""How long ranking takes: two streams against one, measured, with the cost model that explains it.

For one text query and N pictures:

    two streams, gallery ready        t = c_text + N c_dot
    two streams, from pixels          t = c_text + N c_dot + N c_image    (c_image once a gallery)
    one stream, gallery tokens ready  t = N c_joint
    one stream, from pixels           t = N c_joint + N c_tokens          (c_tokens once a gallery)

The ratio of the two is no constant: it grows with N until N c_dot outweighs c_text, and ends at
c_joint / c_dot. So a factor is only ever quoted with its N and its machine.

Shape letters: N pictures ranked, P pictures in the pool that stands for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from costream.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from costream.encoders.cross import CrossEncoder
    from costream.encoders.dual import DualEncoder

Scorer = Literal["two streams", "one stream"]
Gallery = Literal["ready", "from pixels"]

_ALL: tuple[tuple[Scorer, Gallery], ...] = (
    ("two streams", "ready"),
    ("two streams", "from pixels"),
    ("one stream", "ready"),
    ("one stream", "from pixels"),
)
_CHUNK = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingTime:
    """Time to rank N pictures for one text.

    Attributes:
        scorer: Which kind of model.
        gallery: Whether what can be computed ahead was (vectors, or tokens), or counts.
        count: N.
        seconds: Best of the repeats.
        measured: Whether this was run; else it is the cost model's value, as running it would have
            taken longer than allowed.
    """

    scorer: Scorer
    gallery: Gallery
    count: int
    seconds: float
    measured: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Seconds of each part, fitted to the measured times.

    Attributes:
        text_s: Encoding one text in the text tower.
        dot_s: One dot product of the scan, its share of the sort included.
        image_s: Encoding one picture in the picture tower.
        joint_s: One joint pass of the single-stream model.
        tokens_s: Making one picture's tokens for the single-stream model.
        worst_error: Largest relative error of the model on a measured time.
    """

    text_s: float
    dot_s: float
    image_s: float
    joint_s: float
    tokens_s: float
    worst_error: float = 0.0

    def seconds(self, scorer: Scorer, gallery: Gallery, count: int) -> float:
        """Time that the model gives for N = `count` pictures."""
        cold = gallery == "from pixels"
        if scorer == "two streams":
            return self.text_s + count * (self.dot_s + (self.image_s if cold else 0.0))
        return count * (self.joint_s + (self.tokens_s if cold else 0.0))

    def factor(self, count: int) -> float:
        """How many times faster two streams are for N = `count` pictures, both galleries ready."""
        return self.seconds("one stream", "ready", count) / self.seconds(
            "two streams", "ready", count
        )

    def count_for_factor(self, factor: float) -> int | None:
        """Fewest pictures at which two streams are `factor` times faster; None when never.

        Example:
            >>> cost = CostModel(text_s=0.01, dot_s=1e-7, image_s=0.05, joint_s=0.01, tokens_s=0.03)
            >>> cost.count_for_factor(1000), cost.count_for_factor(200_000)
            (1011, None)
        """
        gained = self.joint_s - factor * self.dot_s
        return math.ceil(factor * self.text_s / gained) if gained > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingCurve:
    """Times of both kinds of model at several N, and what explains them.

    Attributes:
        times: One a scorer, gallery and N.
        cost: Fitted to the measured ones.
        device: Where both models ran.
        threads: CPU threads used.
        two_stream: Name of the two-stream model.
    """

    times: tuple[RankingTime, ...]
    cost: CostModel
    device: str
    threads: int
    two_stream: str


def _fit_line(times: Sequence[RankingTime]) -> tuple[float, float]:
    """Intercept and slope, neither negative, with least squared *relative* error."""
    count = np.array([row.count for row in times], dtype=np.float64)
    seconds = np.array([row.seconds for row in times], dtype=np.float64)
    parts = np.stack([1.0 / seconds, count / seconds], axis=1)
    (intercept, slope), *_ = np.linalg.lstsq(parts, np.ones(len(times)), rcond=None)
    if len(times) < 2 or slope < 0.0:
        return _fit_slope(parts[:, 0]), 0.0
    if intercept < 0.0:
        return 0.0, _fit_slope(parts[:, 1])
    return float(intercept), float(slope)


def _fit_slope(parts: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """The c that brings c * parts closest to 1."""
    return float(parts.sum() / (parts**2).sum())


def fit_cost_model(times: Sequence[RankingTime]) -> CostModel:
    """Fit the cost of each part to measured times, all N weighing the same.

    Args:
        times: At least one measured time of each scorer and gallery; others are left out.

    Raises:
        DataError: When a scorer and gallery have no measured time, or a time is not above 0.
    """
    kinds: dict[tuple[Scorer, Gallery], list[RankingTime]] = {kind: [] for kind in _ALL}
    for row in times:
        if row.measured:
            kinds[row.scorer, row.gallery].append(row)
    for (scorer, gallery), rows in kinds.items():
        if not rows or min(row.seconds for row in rows) <= 0.0:
            raise DataError(
                f"got {len(rows)} times of {scorer}, gallery {gallery}, "
                "expected at least one, all above 0 s",
                hint="measure more counts or allow longer runs",
            )
    text_s, dot_s = _fit_line(kinds["two streams", "ready"])

    def slope(kind: tuple[Scorer, Gallery]) -> float:
        shares = [row.count / row.seconds for row in kinds[kind]]
        return _fit_slope(np.array(shares, dtype=np.float64))

    joint_s = slope(("one stream", "ready"))
    tokens_s = max(slope(("one stream", "from pixels")) - joint_s, 0.0)
    # Less what the query itself costs, weighed by the same relative error.
    cold = kinds["two streams", "from pixels"]
    shares = np.array([row.count / row.seconds for row in cold])
    rest = np.array([1 - (text_s + row.count * dot_s) / row.seconds for row in cold])
    image_s = max(float((rest * shares).sum() / (shares**2).sum()), 0.0)
    cost = CostModel(
        text_s=text_s, dot_s=dot_s, image_s=image_s, joint_s=joint_s, tokens_s=tokens_s
    )
    errors = [
        abs(cost.seconds(row.scorer, row.gallery, row.count) / row.seconds - 1)
        for rows in kinds.values()
        for row in rows
    ]
    return CostModel(**(asdict(cost) | {"worst_error": max(errors)}))


def _best(run: Callable[[int], object], count: int, repeats: int) -> float:
    """Best time of `repeats` runs; a run of more than a second is not repeated."""
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        run(count)
        best = min(best, time.perf_counter() - start)
        if best > 1.0:
            break
    return best


def _times(
    kind: tuple[Scorer, Gallery],
    run: Callable[[int], object],
    counts: Sequence[int],
    repeats: int,
    longest_s: float,
) -> list[RankingTime]:
    """Times of one scorer and gallery at rising N; stops where the next would take too long."""
    run(counts[0])
    rows: list[RankingTime] = []
    for count in counts:
        if rows and rows[-1].seconds * count / rows[-1].count > longest_s:
            break
        seconds = _best(run, count, repeats)
        rows.append(
            RankingTime(
                scorer=kind[0], gallery=kind[1], count=count, seconds=seconds, measured=True
            )
        )
    return rows


def _runs(
    two_stream: DualEncoder, cross: CrossEncoder, pixels: Tensor, query: str, top: int
) -> dict[tuple[Scorer, Gallery], Callable[[int], object]]:
    """What is timed: functions of N, each ending with the best pictures' numbers.

    The pool of pictures is gone through again and again until N are done; the work is the same as
    for N different ones.
    """
    import torch

    from costream.encoders.cross import tokens_of_pixels, tokens_of_texts
    from costream.encoders.device import inference_autocast

    device = two_stream.device
    pixels = pixels.to(device)
    pool = len(pixels)

    def embed(batch: Tensor) -> Tensor:
        with torch.inference_mode(), inference_autocast(device):
            return two_stream.embed_pixels(batch)

    vectors = torch.cat([embed(part) for part in torch.split(pixels, _CHUNK)]).float()
    tokens = tokens_of_pixels(two_stream, pixels)
    gallery: dict[int, Tensor] = {}

    def rows(start: int, count: int) -> Tensor:
        return torch.arange(start, min(start + _CHUNK, count), device=device) % pool

    def scan(count: int) -> Tensor:
        if count not in gallery:
            gallery[count] = vectors[torch.arange(count, device=device) % pool].contiguous()
        text = torch.from_numpy(two_stream.encode_texts([query])).to(device)
        return (gallery[count] @ text[0]).topk(min(top, count)).indices.cpu()

    def encode_and_scan(count: int) -> Tensor:
        for start in range(0, count, _CHUNK):
            embed(pixels[rows(start, count)])
        return scan(count)

    def joint(count: int, *, cold: bool) -> Tensor:
        scores = []
        with torch.inference_mode(), inference_autocast(device):
            words, mask = tokens_of_texts(two_stream, [query])
            entered = cross.enter_texts(words)
            for start in range(0, count, _CHUNK):
                chunk = rows(start, count)
                read = tokens_of_pixels(two_stream, pixels[chunk]) if cold else tokens[chunk]
                images = cross.enter_images(read)
                number = len(images)
                texts, real = entered.expand(number, -1, -1), mask.expand(number, -1)
                scores.append(cross.score_entered(images, texts, real))
            return torch.cat(scores).topk(min(top, count)).indices.cpu()

    return {
        ("two streams", "ready"): scan,
        ("two streams", "from pixels"): encode_and_scan,
        ("one stream", "ready"): lambda count: joint(count, cold=False),
        ("one stream", "from pixels"): lambda count: joint(count, cold=True),
    }


def measure_ranking_time(
    two_stream: DualEncoder,
    cross: CrossEncoder,
    pixels: Tensor,
    query: str,
    *,
    counts: Sequence[int] = (100, 300, 1000, 3000, 10_000),
    repeats: int = 3,
    longest_s: float = 60.0,
    top: int = 10,
) -> RankingCurve:
    """Time the ranking of N pictures for one text by both kinds of model on the same machine.

    Args:
        two_stream: The two-stream model.
        cross: The single-stream model that reads the tokens of `two_stream`; on the same device.
        pixels: uint8 (P, 3, H, W), the pool of pictures, already cut to the model's size; used
            again and again until N are done.
        query: The text; its tokenization counts for both.
        counts: The N, in any order.
        repeats: Runs of each; the best counts.
        longest_s: A run that would take longer is not made; the cost model gives its time, and its
            row says so.
        top: Pictures asked for.

    Returns:
        The times in the order two streams ready, from pixels, one stream ready, from pixels, each
        at rising N, and the fitted cost model.

    Raises:
        ConfigError: When there are no counts, or one is below 1.
        DataError: When there are no pictures.
    """
    import torch

    wanted = sorted(set(counts))
    if not wanted or wanted[0] < 1 or repeats < 1:
        raise ConfigError(f"got counts {wanted} and {repeats=}, expected numbers of at least 1")
    if len(pixels) == 0:
        raise DataError("got no pictures to rank, expected at least one")
    modes = two_stream.training, cross.training
    two_stream.eval()
    cross.eval()
    rows: list[RankingTime] = []
    for kind, run in _runs(two_stream, cross, pixels, query, top).items():
        rows.extend(_times(kind, run, wanted, repeats, longest_s))
    two_stream.train(modes[0])
    cross.train(modes[1])
    cost = fit_cost_model(rows)
    found = {(row.scorer, row.gallery, row.count): row for row in rows}
    times = [
        found.get((scorer, gallery, count))
        or RankingTime(
            scorer=scorer,
            gallery=gallery,
            count=count,
            seconds=cost.seconds(scorer, gallery, count),
            measured=False,
        )
        for scorer, gallery in _ALL
        for count in wanted
    ]
    return RankingCurve(
        times=tuple(times),
        cost=cost,
        device=str(two_stream.device),
        threads=torch.get_num_threads(),
        two_stream=two_stream.name,
    )


def efficiency_table(curve: RankingCurve) -> tuple[tuple[str, ...], ...]:
    """A curve as rows of text, the first one of headings; a time that was not run has a `~`.

    Returns:
        Rows of N, seconds of the four kinds, and the factor with both galleries ready.
    """
    by_kind = {(row.scorer, row.gallery, row.count): row for row in curve.times}
    rows = [("pictures", *(f"{scorer}, {gallery}" for scorer, gallery in _ALL), "factor")]
    for count in sorted({row.count for row in curve.times}):
        cells = [by_kind[scorer, gallery, count] for scorer, gallery in _ALL]
        shown = [f"{'' if cell.measured else '~'}{cell.seconds:.4g} s" for cell in cells]
        factor = cells[2].seconds / cells[0].seconds
        guessed = not (cells[0].measured and cells[2].measured)
        rows.append((f"{count:,}", *shown, f"{'~' if guessed else ''}{factor:,.0f}"))
    return tuple(rows)


def efficiency_to_json(curve: RankingCurve) -> dict[str, Any]:
    """A curve as plain numbers and strings, to be stored."""
    return {**asdict(curve), "times": [asdict(row) for row in curve.times]}


def efficiency_from_json(stored: dict[str, Any]) -> RankingCurve:
    """The curve that `efficiency_to_json` stored.

    Raises:
        DataError: When `stored` has another form.
    """
    try:
        fields = stored | {
            "times": tuple(RankingTime(**row) for row in stored["times"]),
            "cost": CostModel(**stored["cost"]),
        }
        return RankingCurve(**fields)
    except (TypeError, KeyError) as error:
        raise DataError(f"this is no stored ranking curve: {error}") from error


def plot_efficiency(curve: RankingCurve, path: str | Path) -> None:
    """Draw time against N, both axes logarithmic, into a PNG file.

    Filled points were measured, hollow ones come from the cost model, whose lines are drawn.

    Args:
        curve: What to draw.
        path: The PNG file; replaced when it is there.

    Raises:
        ConfigError: When matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "drawing needs matplotlib, which is not installed",
            hint="pip install 'costream[train]'",
        ) from error

    figure = Figure(figsize=(7.5, 5.0), dpi=120, layout="constrained")
    axes = figure.subplots()
    looks = zip(_ALL, ("#0072b2", "#56b4e9", "#d55e00", "#e69f00"), "osD^", strict=True)
    for (scorer, gallery), colour, marker in looks:
        rows = [row for row in curve.times if (row.scorer, row.gallery) == (scorer, gallery)]
        counts = [row.count for row in rows]
        line = [curve.cost.seconds(scorer, gallery, count) for count in counts]
        axes.plot(counts, line, color=colour, linewidth=1.2)
        for measured in (True, False):
            some = [row for row in rows if row.measured is measured]
            axes.plot(
                [row.count for row in some],
                [row.seconds for row in some],
                linestyle="none",
                marker=marker,
                color=colour,
                markerfacecolor=colour if measured else "white",
                label=f"{scorer}, gallery {gallery}" if measured else None,
            )
    largest = max(row.count for row in curve.times)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="pictures ranked for one text",
        ylabel="seconds",
        title=f"{curve.cost.factor(largest):,.0f} times faster at {largest:,} pictures "
        f"({curve.device}, {curve.threads} threads)",
    )
    axes.grid(visible=True, which="major", color="#dddddd")
    axes.legend(frameon=False)
    figure.savefig(Path(path), format="png")
