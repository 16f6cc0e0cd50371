"""From worlds to tables: temperatures picked on some queries, everything measured on the others.

Shape letters: Q queries, G items, M rows of a bank, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costream.evaluate import ClaimOptions, ClaimTable, compare_seeds
from costream.evaluate.claims import ClaimRow
from costream.methods._dbnorm.photographs import Encoded, encode_photographs
from costream.methods._dbnorm.toy import ToyWorld, make_toy
from costream.methods.dbnorm import dynamic, log_mean_exp

Array = NDArray[np.float64]
Values = Mapping[str, float]

GRID = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0)
_TINY_BANK = 20
_NEAREST, _NNN_WEIGHT = 128, 0.75
_SKEW_AT = 10
_TUNED_SHARE = 0.3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Task:
    """One direction of retrieval with its banks; all vectors of unit length.

    Attributes:
        queries: (Q, D).
        items: (G, D).
        own: int (Q, P), the right items of each query.
        query_bank: (M, D).
        gallery_bank: (M, D).
        foreign_bank: (M, D), queries of another domain; None where there are none.
        tuned: bool (Q,), the queries by which temperatures are picked; the others are measured.
    """

    queries: Array
    items: Array
    own: NDArray[np.int64]
    query_bank: Array
    gallery_bank: Array
    foreign_bank: Array | None
    tuned: NDArray[np.bool_]


def reproduce(options: ClaimOptions) -> list[ClaimTable]:
    """Run the experiment.

    Args:
        options: With `flickr8k` below its data root there is a table on photographs, too; `rsicd`
            gives the queries of another domain there.

    Returns:
        A table a world.
    """
    size = (100, 200) if options.fast else (1000, 4000)
    options.say(f"toy space, {options.seeds} seeds")
    toys = [
        measure(toy_task(make_toy(seed, queries=size[0], bank=size[1]), seed), seed)
        for seed in range(options.seeds)
    ]
    about = {
        "data": f"{size[0]:,} queries and items of 64 dimensions that drift towards the queries' "
        f"mean; banks of {size[1]:,}",
        **_settings(options),
    }
    tables = [_table("A toy space with hubs, text-like queries", _full_rows(toys), about)]
    if options.data_root is not None:
        tables += _photograph_tables(options)
    return tables


def measure(task: Task, seed: int) -> dict[str, float]:
    """hit@1 and skewness of every way to score.

    Args:
        task: Queries, items and banks.
        seed: Of the shuffling of the control and the choice of the tiny bank.

    Returns:
        Name to value: `raw`, `is`, `gallery`, `dual`, `dis` (DualDIS), `centred`, `nnn`,
        `shuffled`, those with a `tiny` or `foreign` query bank (`blind`: its temperatures
        are those of the right bank), `skew ...`, and picked `b...`.
    """
    rng = np.random.default_rng(seed)
    raw = task.queries @ task.items.T
    gallery = _logs(task.gallery_bank @ task.items.T)
    banks = {"": task.query_bank}
    banks["tiny "] = task.query_bank[rng.permutation(len(task.query_bank))[:_TINY_BANK]]
    if task.foreign_bank is not None:
        banks["foreign "] = task.foreign_bank
    values = {"raw": hits(raw, task), "skew raw": skewness(raw[~task.tuned])}
    for name, rows in banks.items():
        sides = _logs(rows @ task.items.T), gallery
        for way, (first, second) in {"is": (GRID, (0.0,)), "dual": (GRID, GRID)}.items():
            pair = _pick(raw, task, sides, first, second)
            values |= {f"b1 {name}{way}": pair[0], f"b2 {name}{way}": pair[1]}
            scores = raw - bias_at(sides, pair)
            values[name + way] = hits(scores, task)
            values[f"skew {name}{way}"] = skewness(scores[~task.tuned])
    if task.foreign_bank is not None:
        sides = _logs(task.foreign_bank @ task.items.T), gallery
        for way in ("is", "dual"):
            pair = values[f"b1 {way}"], values[f"b2 {way}"]
            values[f"blind {way}"] = hits(raw - bias_at(sides, pair), task)
    main = _logs(task.query_bank @ task.items.T), gallery
    values["gallery"] = hits(raw - bias_at(main, _pick(raw, task, main, (0.0,), GRID)), task)
    pair = (values["b1 dual"], values["b2 dual"])
    similar = [task.query_bank @ task.items.T, task.gallery_bank @ task.items.T]
    chosen = dynamic(raw.astype(np.float32), list(zip(similar, pair, strict=True)), 1)
    values["dis"] = hits(chosen if sum(pair) else raw, task)
    # The control keeps how large the biases are, and gives them to other items.
    strongest = bias_at(main, (20.0, 20.0))
    values["shuffled"] = hits(raw - rng.permutation(strongest), task)
    values["centred"] = hits(_centred(task), task)
    nearest = np.sort(similar[0], axis=0)[-_NEAREST:].mean(axis=0)
    values["nnn"] = hits(raw - _NNN_WEIGHT * nearest, task)
    return values


def hits(scores: NDArray[np.floating], task: Task, *, tuned: bool = False) -> float:
    """hit@1 in percent of the queries that are measured, or of those that are tuned on."""
    rows = task.tuned if tuned else ~task.tuned
    some, own = scores[rows], task.own[rows]
    best = np.take_along_axis(some, own, axis=1).max(axis=1, keepdims=True)
    is_own = np.zeros(some.shape, dtype=np.bool_)
    np.put_along_axis(is_own, own, True, axis=1)
    return 100.0 * float((~((some >= best) & ~is_own).any(axis=1)).mean())


def skewness(scores: NDArray[np.floating], k: int = _SKEW_AT) -> float:
    """Skewness of how often each item is among the k best: the more, the more hubs.

    Example:
        >>> round(skewness(np.array([[3.0, 2.0, 1.0]] * 4), 1), 3)
        0.707
    """
    top = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
    counts = np.bincount(top.ravel(), minlength=scores.shape[1]).astype(np.float64)
    spread = counts.std()
    return float(((counts - counts.mean()) ** 3).mean() / spread**3) if spread else 0.0


def toy_task(world: ToyWorld, seed: int) -> Task:
    """The toy space as a task."""
    return Task(
        queries=world.queries,
        items=world.items,
        own=np.arange(len(world.items))[:, None],
        query_bank=world.query_bank,
        gallery_bank=world.gallery_bank,
        foreign_bank=world.foreign_bank,
        tuned=_some(len(world.items), seed),
    )


def caption_task(world: Encoded, seed: int) -> Task:
    """Captions that look for pictures."""
    tuned = _some(len(world.pictures), seed)
    return Task(
        queries=world.captions,
        items=world.pictures,
        own=world.picture_of[:, None],
        query_bank=_draw(world.bank_captions, seed),
        gallery_bank=_draw(world.bank_pictures, seed),
        foreign_bank=world.foreign_captions,
        tuned=tuned[world.picture_of],
    )


def picture_task(world: Encoded, seed: int) -> Task:
    """Pictures that look for captions."""
    order = np.argsort(world.picture_of, kind="stable")
    return Task(
        queries=world.pictures,
        items=world.captions,
        own=order.reshape(len(world.pictures), -1),
        query_bank=_draw(world.bank_pictures, seed),
        gallery_bank=_draw(world.bank_captions, seed),
        foreign_bank=None,
        tuned=_some(len(world.pictures), seed),
    )


def bias_at(
    sides: tuple[Mapping[float, Array], Mapping[float, Array]], pair: tuple[float, float]
) -> Array:
    """The bias at two temperatures, from the logarithms at every temperature."""
    total = sum(pair)
    logs = [side[b] for side, b in zip(sides, pair, strict=True)]
    return np.asarray(np.sum(logs, axis=0) / total) if total else np.zeros(len(logs[0]))


def _logs(bank_MG: Array) -> dict[float, Array]:
    return {b: log_mean_exp(bank_MG, b) if b else np.zeros(bank_MG.shape[1]) for b in GRID}


def _pick(
    raw: Array,
    task: Task,
    sides: tuple[Mapping[float, Array], Mapping[float, Array]],
    first: Sequence[float],
    second: Sequence[float],
) -> tuple[float, float]:
    """The pair of temperatures that is best on the tuned queries; the smallest of equal ones."""
    pairs = [(one, two) for one in first for two in second]
    return max(pairs, key=lambda pair: hits(raw - bias_at(sides, pair), task, tuned=True))


def _centred(task: Task) -> Array:
    sides = ((task.queries, task.query_bank), (task.items, task.gallery_bank))
    moved = [vectors - bank.mean(axis=0) for vectors, bank in sides]
    queries, items = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in moved)
    return np.asarray(queries @ items.T)


def _some(count: int, seed: int) -> NDArray[np.bool_]:
    return np.random.default_rng((seed, 1)).permutation(count) < _TUNED_SHARE * count


def _draw(pool: Array, seed: int) -> Array:
    """Two thirds of a pool: another bank every seed."""
    return pool[np.random.default_rng((seed, 2)).permutation(len(pool))[: len(pool) * 2 // 3]]


# --- tables ---


def _photograph_tables(options: ClaimOptions) -> list[ClaimTable]:
    world = encode_photographs(options)
    if world is None:
        return []

    def over_seeds(task: Callable[[Encoded, int], Task]) -> list[dict[str, float]]:
        return [measure(task(world, seed), seed) for seed in range(options.seeds)]

    options.say("photographs, text to image")
    forward = _full_rows(over_seeds(caption_task))
    options.say("photographs, image to text")
    backward = _rows(over_seeds(picture_task), _IN_DOMAIN)
    about = {**world.facts, **_settings(options)}
    return [
        _table("Photographs, text to image", forward, about),
        _table("Photographs, image to text", backward, about),
    ]


# Name, method, baseline, threshold in points of hit@1.
_BLIND = " (temperatures of the right one)"
_IN_DOMAIN = (
    ("query bank (IS) over raw scores", "is", "raw", 1.0),
    ("gallery bank over raw scores", "gallery", "raw", 1.0),
    ("both banks (DualIS) over raw scores", "dual", "raw", 1.0),
    ("both banks over the query bank alone", "dual", "is", 0.5),
    ("DualDIS over DualIS", "dis", "dual", 0.5),
    ("both banks over centred vectors", "dual", "centred", 0.0),
    ("both banks over NNN", "dual", "nnn", 0.0),
    ("control: raw scores over shuffled biases", "raw", "shuffled", 0.0),
)
_BAD_BANKS = (
    (f"both banks over the query bank alone, {_TINY_BANK} queries", "tiny dual", "tiny is", 0.5),
    ("query bank of another domain over raw scores", "foreign is", "raw", 0.0),
    ("both banks over the query bank, of another domain", "foreign dual", "foreign is", 0.5),
    (f"query bank of another domain{_BLIND} over raw scores", "blind is", "raw", 0.0),
    (f"both banks over the query bank, of another domain{_BLIND}", "blind dual", "blind is", 0.5),
)


def _full_rows(runs: Sequence[Values]) -> list[ClaimRow]:
    return _rows(runs, (*_IN_DOMAIN, *_BAD_BANKS))


def _rows(runs: Sequence[Values], wanted: Sequence[tuple[str, str, str, float]]) -> list[ClaimRow]:
    rows = [
        compare_seeds(
            f"hit@1: {name}",
            [run[method] for run in runs],
            [run[baseline] for run in runs],
            threshold=threshold,
            unit="%",
        )
        for name, method, baseline, threshold in wanted
        if method in runs[0] and baseline in runs[0]
    ]
    for way in ("is", "dual"):
        skews = [[run[f"skew {which}"] for run in runs] for which in (way, "raw")]
        name = "query bank" if way == "is" else "both banks"
        rows.append(
            compare_seeds(
                f"skewness of {_SKEW_AT}-occurrences: {name} below raw scores",
                *skews,
                more_is_better=False,
            )
        )
    return rows


def _table(title: str, rows: Sequence[ClaimRow], settings: Mapping[str, str]) -> ClaimTable:
    return ClaimTable(title=title, rows=tuple(rows), settings=settings)


def _settings(options: ClaimOptions) -> dict[str, str]:
    return {
        "temperatures": f"each of {', '.join(f'{b:g}' for b in GRID)}, picked by hit@1 on "
        f"{_TUNED_SHARE:.0%} of the queries, measured on the others",
        "seeds": ", ".join(map(str, range(options.seeds))),
    }
