"""Questions whose picture is in a collection or was taken out, for `relevance.py`.

Shape letters: Q questions, N pictures, D dimensions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.encoders.dual import DualEncoder
from costream.search.algebra import combine
from costream.search.engine import cut_region
from costream.search.relevance import Kind

Floats = NDArray[np.floating[Any]]
Numbers = NDArray[np.int64]

PER_PICTURE = 5
_AT_ONCE = 100
_LEFT, _RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Half:
    """One half of the split.

    Attributes:
        wholes_ND: Its pictures.
        lefts_ND: Their left halves, which questions are made of.
        rights_ND: Their right halves, which such questions are to find.
        captions_ND: Float32 (N, 5, D): what people said of them.
    """

    wholes_ND: Floats
    lefts_ND: Floats
    rights_ND: Floats
    captions_ND: Floats


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What questions are made of: captions and pictures by number.

    Attributes:
        half: Of the split.
        target_Q: The picture that is asked for.
        other_Q: Another picture.
        first_Q: A caption of the target.
        second_Q: Another caption of the target.
        weight_Q: 0.5 or 1.
    """

    half: Half
    target_Q: Numbers
    other_Q: Numbers
    first_Q: Numbers
    second_Q: Numbers
    weight_Q: Floats

    def caption(self) -> Floats:
        """Of the target."""
        return self.half.captions_ND[self.target_Q, self.first_Q]

    def second_caption(self) -> Floats:
        """Of the target."""
        return self.half.captions_ND[self.target_Q, self.second_Q]

    def other_caption(self) -> Floats:
        """Of the other picture."""
        return self.half.captions_ND[self.other_Q, self.second_Q]

    def left(self) -> Floats:
        """Half of the target."""
        return self.half.lefts_ND[self.target_Q]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to ask.

    Attributes:
        kind: What the product takes it for.
        terms: Vectors and weights of the terms.
        finds_rights: Whether right halves of pictures are searched, else whole ones.
    """

    kind: Kind
    terms: Callable[[Draw], list[tuple[Floats, Floats | float]]]
    finds_rights: bool = False


CASES: Mapping[str, Case] = {
    "words": Case(kind="words", terms=lambda d: [(d.caption(), 1.0)]),
    "words + words": Case(
        kind="words", terms=lambda d: [(d.caption(), 1.0), (d.second_caption(), d.weight_Q)]
    ),
    "words - words": Case(
        kind="words less", terms=lambda d: [(d.caption(), 1.0), (d.other_caption(), -0.5)]
    ),
    "words - picture": Case(
        kind="words less",
        terms=lambda d: [(d.caption(), 1.0), (d.half.wholes_ND[d.other_Q], -0.5)],
    ),
    "region": Case(kind="pictures", terms=lambda d: [(d.left(), 1.0)], finds_rights=True),
    "region + words": Case(
        kind="pictures",
        terms=lambda d: [(d.left(), 1.0), (d.caption(), d.weight_Q)],
        finds_rights=True,
    ),
    "region - words": Case(
        kind="pictures less",
        terms=lambda d: [(d.left(), 1.0), (d.other_caption(), -0.5)],
        finds_rights=True,
    ),
    "region - picture": Case(
        kind="pictures less",
        terms=lambda d: [(d.left(), 1.0), (d.half.wholes_ND[d.other_Q], -0.5)],
        finds_rights=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Questions, each of a collection of its own.

    Attributes:
        vectors_QD: The questions.
        collections: Vectors of the pictures that each searches.
        present_Q: Whether the picture that is asked for is there.
        target_Q: Its number, for resampling; -1 for questions without one.
    """

    vectors_QD: Floats
    collections: list[Floats]
    present_Q: NDArray[np.bool_]
    target_Q: Numbers


def ask(half: Half, case: Case, size: int, seed: int) -> Asked:
    """Ask for every picture twice: where it is one of `size` pictures, and where it is not."""
    rng = np.random.default_rng([seed, size])
    count = len(half.wholes_ND)
    target_Q = np.repeat(np.arange(count), 2)
    first_Q = rng.integers(PER_PICTURE, size=len(target_Q))
    draw = Draw(
        half=half,
        target_Q=target_Q,
        other_Q=(target_Q + rng.integers(1, count, size=len(target_Q))) % count,
        first_Q=first_Q,
        second_Q=(first_Q + rng.integers(1, PER_PICTURE, size=len(target_Q))) % PER_PICTURE,
        weight_Q=rng.choice([0.5, 1.0], size=len(target_Q)),
    )
    searched_ND = half.rights_ND if case.finds_rights else half.wholes_ND
    present_Q = np.arange(len(target_Q)) % 2 == 0
    collections = []
    for target, present in zip(target_Q.tolist(), present_Q.tolist(), strict=True):
        others = (target + 1 + rng.choice(count - 1, size - present, replace=False)) % count
        kept = np.append(others, target) if present else others
        collections.append(searched_ND[kept])
    return Asked(
        vectors_QD=_combined(case, draw),
        collections=collections,
        present_Q=present_Q,
        target_Q=target_Q,
    )


def ask_strange(vectors_QD: Floats, half: Half, size: int, seed: int) -> Asked:
    """Questions that have no picture anywhere."""
    rng = np.random.default_rng([seed, size])
    count = len(half.wholes_ND)
    kept = [rng.choice(count, size, replace=False) for _ in vectors_QD]
    return Asked(
        vectors_QD=vectors_QD,
        collections=[half.wholes_ND[each] for each in kept],
        present_Q=np.zeros(len(vectors_QD), dtype=bool),
        target_Q=np.full(len(vectors_QD), -1),
    )


def _combined(case: Case, draw: Draw) -> Floats:
    """As a `Searcher` puts terms together."""
    vectors, weights = zip(*case.terms(draw), strict=True)
    count = len(draw.target_Q)
    stacked_QTD = np.stack(vectors, axis=1).astype(np.float32)
    weights_QT = np.stack([np.broadcast_to(weight, count) for weight in weights], axis=1)
    pairs = zip(stacked_QTD, weights_QT.tolist(), strict=True)
    return np.stack([combine(terms_TD, each) for terms_TD, each in pairs])


def read_halves(data: Path, model: DualEncoder, cache: Path | None) -> tuple[Half, Half]:
    """Embed the dev split, or read it from the cache, and split it by the hash of names."""
    rows = [json.loads(line) for line in (data / "dev.jsonl").read_text().splitlines()]
    rows = [row for row in rows if len(row["captions"]) >= PER_PICTURE]
    if cache is not None and cache.exists():
        stored = dict(np.load(cache))
    else:
        stored = _embedded(model, data, rows)
        if cache is not None:
            np.savez(cache, **stored)
    texts_ND = stored["texts"].reshape(len(rows), PER_PICTURE, -1)
    # As an index stores them.
    whole, left, right = (
        stored[name].astype(np.float16).astype(np.float32) for name in ("wholes", "lefts", "rights")
    )
    names = [row["image"].encode() for row in rows]
    side = np.array([int(hashlib.sha256(name).hexdigest(), 16) % 2 for name in names])
    a, b = (
        Half(
            wholes_ND=whole[side == number],
            lefts_ND=left[side == number],
            rights_ND=right[side == number],
            captions_ND=texts_ND[side == number],
        )
        for number in (0, 1)
    )
    return a, b


def _embedded(model: DualEncoder, data: Path, rows: list[dict[str, Any]]) -> dict[str, Floats]:
    texts = [caption for row in rows for caption in row["captions"][:PER_PICTURE]]
    paths = [data / row["image"] for row in rows]
    found: dict[str, list[Floats]] = {"wholes": [], "lefts": [], "rights": []}
    for start in range(0, len(paths), _AT_ONCE):
        some = paths[start : start + _AT_ONCE]
        found["wholes"].append(model.encode_images(some))
        for name, region in (("lefts", _LEFT), ("rights", _RIGHT)):
            found[name].append(model.encode_images([cut_region(path, region) for path in some]))
    stacked = {name: np.concatenate(parts) for name, parts in found.items()}
    return {"texts": model.encode_texts(texts)} | stacked
