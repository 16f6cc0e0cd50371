"""What an index must answer, computed the slow and obvious way from a dictionary."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.index import Filter, Item
from costream.records import Ranking, Space

DIM = 12
SPACE = Space(encoder="toy", weights_hash="w0", preprocessing_hash="p0", dim=DIM)
OTHER = Space(encoder="toy", weights_hash="w1", preprocessing_hash="p0", dim=DIM // 2)


def unit(seed: int, rows: int, dim: int = DIM) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@dataclass
class Oracle:
    """Items with their vectors and spans, by id."""

    items: dict[str, Item] = field(default_factory=dict)
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    spans: dict[str, list[Any]] = field(default_factory=dict)

    def put(self, item: Item, vectors: NDArray[np.float32], spans: list[Any]) -> None:
        self.items[item.id] = item
        self.vectors[item.id] = vectors.astype(np.float16)
        self.spans[item.id] = spans

    def drop(self, item_id: str) -> None:
        for held in (self.items, self.vectors, self.spans):
            held.pop(item_id, None)  # type: ignore[attr-defined]

    def matches(self, where: Filter | None) -> set[str]:
        return {i for i, item in self.items.items() if where is None or where.matches(item)}

    def search(
        self, query: NDArray[np.float32], top: int, where: Filter | None, group: bool
    ) -> list[tuple[str, float, Any]]:
        """score = float32(sum_d float64(float16(x_d)) * float64(q_d)); then by id, then by part."""
        found = []
        for item_id in self.matches(where):
            scores = [
                float(np.float32((v.astype(np.float64) * query.astype(np.float64)).sum()))
                for v in self.vectors[item_id]
            ]
            rows = sorted(range(len(scores)), key=lambda part, s=scores: (-s[part], part))
            for part in rows[:1] if group else rows:
                found.append((-scores[part], item_id.encode(), part, item_id))
        return [(i, -s, self.spans[i][part]) for s, _, part, i in sorted(found)[:top]]

    def with_word(self, word: str) -> set[str]:
        """Ids of the items that hold a word of plain letters."""
        return {i for i, item in self.items.items() if word.lower() in words_of(item)}


def words_of(item: Item) -> set[str]:
    name = (item.path or "").rpartition("/")[2]
    return set(
        re.findall("[a-z0-9]+", " ".join((name, item.caption, *item.tags, item.text)).lower())
    )


def answers(ranking: Ranking) -> list[list[tuple[str, float, Any]]]:
    """A ranking as the oracle writes it."""
    spans = ranking.spans or [[None] * len(ids) for ids in ranking.ids]
    return [
        list(zip(ids, scores.tolist(), some, strict=True))
        for ids, scores, some in zip(ranking.ids, ranking.scores, spans, strict=True)
    ]
