"""A scorer of pairs behind the first stage of a `Searcher`: its scores, from stored moments.

Shape letters: N items, F moments, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from costream.errors import ConfigError
from costream.index import Filter, Index, Item
from costream.records import Features, Space
from costream.scoring.protocol import RankContext, Scores
from costream.search import Answer, Like, Query, Searcher, Words

DIM = 16
COUNTS = [1, 3, 2, 3, 1, 5] * 60
SPACE = Space(encoder="directions", weights_hash="d", preprocessing_hash="d", dim=DIM)


class Directions:
    """Every text is a direction of its own."""

    space = SPACE

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        return np.concatenate([unit(1, 100 + sum(text.encode())) for text in texts])


class WorstMoment:
    """The least cosine of any moment: no pooled vector can tell it."""

    needs: Literal["pooled", "tokens"] = "tokens"

    def __init__(self, cost: Literal["dot", "late", "pair"] = "pair") -> None:
        self.cost = cost

    def score(self, query: Features, gallery: Features) -> Tensor:
        assert (query.modality, gallery.modality) == ("text", "video")
        assert gallery.tokens is not None
        worst: Tensor = (gallery.tokens @ query.pooled.T).amin(dim=1)
        return worst.T


class Halved:
    """Halves all scores, and knows what it is asked about."""

    needs: Literal["topk", "all"] = "all"

    def rescore(self, scores: Scores, context: RankContext) -> Scores:
        assert scores.shape == (1, len(context.items))
        assert np.allclose(np.linalg.norm(context.items, axis=1), 1, atol=1e-3)
        return scores / 2


def unit(count: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def clips(tmp_path: Path) -> Iterator[Index]:
    parents = np.repeat(np.arange(len(COUNTS)), COUNTS)
    starts = np.concatenate([np.arange(count, dtype=float) for count in COUNTS])
    spans = np.stack([starts, starts + 1], axis=1)
    items = [Item(id=f"clip{n:03}", modality="video") for n in range(len(COUNTS))]
    with Index.open(tmp_path / "index", create=True) as index:
        index.add_moments(items, unit(len(parents), 0), parents, spans, SPACE)
        yield index


def cosines(index: Index) -> dict[str, NDArray[np.float32]]:
    asked = Directions().encode_texts(["red"])[0]
    return {each: index.all_vectors([each]) @ asked for each in index.ids()}


def ask(searcher: Searcher, top: int) -> Answer:
    return searcher.answer(Query(terms=(Words("red"),), top=top, hybrid=False))


def test_the_best_are_ordered_by_pairs_and_the_others_stay_behind(clips: Index) -> None:
    answer = ask(Searcher(clips, Directions(), scorer=WorstMoment()), len(COUNTS))
    by = cosines(clips)
    first_stage = sorted(by, key=lambda each: -by[each].max())
    best = sorted(first_stage[:200], key=lambda each: -by[each].min())
    assert [one.id for one in answer.results] == [*best, *first_stage[200:]]
    for one in answer.results[:200]:
        assert one.reasons["steps"] == pytest.approx(by[one.id].min(), abs=2e-3)
        assert one.score == pytest.approx(by[one.id].max(), abs=2e-3)
        assert one.span is not None
        assert one.span[0] == by[one.id].argmax()
    assert not answer.exact


def test_steps_come_after_pairs(clips: Index) -> None:
    answer = ask(Searcher(clips, Directions(), scorer=WorstMoment(), steps=[Halved()]), 20)
    by = cosines(clips)
    # The step needs all items, so that pairs are scored for all.
    want = sorted(by, key=lambda each: -by[each].min())[:20]
    assert [one.id for one in answer.results] == want
    assert answer.results[0].reasons["steps"] == pytest.approx(by[want[0]].min() / 2, abs=2e-3)


def test_pairs_are_of_words_an_example_is_answered_by_the_first_stage(clips: Index) -> None:
    query = Query(terms=(Like("clip003"),), top=50, hybrid=False)
    plain = Searcher(clips, Directions()).answer(query)
    paired = Searcher(clips, Directions(), scorer=WorstMoment()).answer(query)
    assert [one.id for one in paired.results] == [one.id for one in plain.results]
    assert paired.exact and plain.exact


def test_the_answer_is_exact_where_every_item_was_scored(clips: Index) -> None:
    """Passed over is what the first stage leaves out; of few items it leaves out none."""
    few = Filter(ids=frozenset(f"clip{n:03}" for n in range(200)))
    more = Filter(ids=frozenset(f"clip{n:03}" for n in range(201)))
    searcher = Searcher(clips, Directions(), scorer=WorstMoment())
    for where, exact in ((few, True), (more, False), (None, False)):
        query = Query(terms=(Words("red"),), where=where, hybrid=False)
        assert searcher.answer(query).exact is exact


def test_only_scorers_of_pairs_are_taken(clips: Index) -> None:
    with pytest.raises(ConfigError, match=r"'late'.*'pair'"):
        Searcher(clips, Directions(), scorer=WorstMoment("late"))
