"""Rank steps of a `Searcher`: the same answers as a full scan of rescored items.

Shape letters: N items, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.index import Filter, Index, Item
from costream.records import Space
from costream.scoring.protocol import RankContext, RankStep, Scores
from costream.search import Answer, Query, Searcher, Words
from costream.search.asked import OneVector
from costream.search.steps import RankSteps

Program = Any  # of tests/conftest.py, which cannot be imported

DIM, MANY = 16, 900
SPACE = Space(encoder="directions", weights_hash="d", preprocessing_hash="d", dim=DIM)


class Directions:
    """Every text is a direction of its own."""

    space = SPACE

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        return np.concatenate([unit(1, 100 + sum(text.encode())) for text in texts])


def unit(count: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Drawn:
    """A bias that follows one coordinate: large against the cosines, and of each item its own."""

    needs: Literal["topk", "all"] = "all"

    def __init__(self, size: float) -> None:
        self.size, self.asked = size, 0

    def bias(self, items: NDArray[np.float32], modality: str, item_modality: str) -> Scores:
        self.asked += len(items)
        assert (modality, item_modality) == ("text", "image")
        return (self.size * items[:, 0]).astype(np.float32)

    def rescore(self, scores: Scores, context: RankContext) -> Scores:
        return scores - self.bias(context.items, context.modality, context.item_modality)


class Backwards:
    """Turns the order round."""

    def __init__(self, needs: Literal["topk", "all"]) -> None:
        self.needs = needs
        self.seen: list[int] = []

    def rescore(self, scores: Scores, context: RankContext) -> Scores:
        self.seen.append(scores.shape[1])
        return -scores


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """`MANY` items with one vector each."""
    with Index.open(tmp_path / "index", create=True) as opened:
        items = [Item(id=f"i{n:03}", tags=("odd",) if n % 2 else ()) for n in range(MANY)]
        opened.add(items, unit(MANY, 0), SPACE)
        yield opened


def ask(index: Index, *steps: RankStep, **options: object) -> Answer:
    searcher = Searcher(index, Directions(), steps=steps)
    return searcher.answer(Query(terms=(Words("red"),), hybrid=False, **options))  # type: ignore[arg-type]


def ids(answer: Answer) -> list[str]:
    return [result.id for result in answer.results]


def expected(index: Index, size: float) -> list[str]:
    """A full scan in float64."""
    names = index.ids()
    vectors = index.vectors(names).astype(np.float64)
    scores = vectors @ Directions().encode_texts(["red"])[0] - size * vectors[:, 0]
    return [names[place] for place in np.argsort(-scores, kind="stable")]


@pytest.mark.parametrize("size", [0.0, 0.1, 1.0, 20.0])
def test_a_bias_is_exact_over_the_whole_index(index: Index, size: float) -> None:
    answer = ask(index, Drawn(size), top=50)
    assert ids(answer) == expected(index, size)[:50]
    assert answer.exact


def test_two_biases_add_up(index: Index) -> None:
    assert ids(ask(index, Drawn(0.7), Drawn(0.3), top=50)) == expected(index, 1.0)[:50]


def test_pages_join(index: Index) -> None:
    pages = [ids(ask(index, Drawn(0.5), top=100, offset=start)) for start in range(0, MANY, 100)]
    assert [one for page in pages for one in page] == expected(index, 0.5)


def test_the_first_stage_goes_no_deeper_than_the_bias_asks_for(index: Index) -> None:
    question = OneVector(vector=Directions().encode_texts(["red"])[0], space=SPACE)
    depths = []
    for size in (0.0, 0.05, 20.0):
        ranked = RankSteps(index, [Drawn(size)]).rank(question, modality="text", wanted=10)
        depths.append(len(ranked.found.ids[0]))
    # Without differences one more place is needed to know what is above the last one.
    assert depths[0] <= 800
    assert depths[-1] == MANY


def test_a_bias_is_computed_once_until_the_index_changes(index: Index) -> None:
    step = Drawn(0.5)
    searcher = Searcher(index, Directions(), steps=[step])
    query = Query(terms=(Words("red"),), hybrid=False)
    for _ in range(3):
        searcher.answer(query)
    assert step.asked == MANY
    best = Directions().encode_texts(["red"]) - 2 * np.eye(DIM, dtype=np.float32)[:1]
    index.add([Item(id="new")], best / np.linalg.norm(best), SPACE)
    assert searcher.answer(query).results[0].id == "new"
    assert step.asked == 2 * MANY + 1


def test_conditions_hold_and_the_cosine_stays_beside_the_new_score(index: Index) -> None:
    answer = ask(index, Drawn(1.0), top=20, where=Filter(tags=("odd",)))
    assert ids(answer) == [one for one in expected(index, 1.0) if int(one[1:]) % 2][:20]
    vectors = index.vectors(ids(answer))
    for result, vector in zip(answer.results, vectors, strict=True):
        cosine = float(vector @ Directions().encode_texts(["red"])[0])
        assert result.score == pytest.approx(cosine, abs=1e-3)
        assert result.reasons["steps"] == pytest.approx(cosine - vector[0], abs=2e-3)


def test_an_item_with_moments_has_its_best_one_after_the_bias(tmp_path: Path) -> None:
    asked = Directions().encode_texts(["red"])[0]
    # The moment that is nearest is a hub.
    hub = asked + 0.6 * np.eye(DIM, dtype=np.float32)[0]
    plain = asked - 0.6 * np.eye(DIM, dtype=np.float32)[0] + 0.7 * unit(1, 5)[0]
    hub, plain = (vector / np.linalg.norm(vector) for vector in (hub, plain))
    assert asked @ hub > asked @ plain
    with Index.open(tmp_path / "clips", create=True) as clips:
        items = [Item(id="clip", modality="video"), Item(id="still")]
        vectors = np.stack([hub, plain, unit(1, 6)[0]])
        spans = np.array([[0.0, 1.0], [1.0, 2.0], [np.nan, np.nan]])
        clips.add_moments(items, vectors, np.array([0, 0, 1]), spans, SPACE)
        before = {one.id: one.span for one in ask(clips).results}
        after = {one.id: one.span for one in ask(clips, Drawn(1.0)).results}
    assert (before["clip"], after["clip"]) == ((0.0, 1.0), (1.0, 2.0))
    assert after["still"] is None


def test_a_step_for_all_items_sees_all(index: Index) -> None:
    step = Backwards("all")
    answer = ask(index, step, top=30)
    assert ids(answer) == expected(index, 0.0)[::-1][:30]
    assert set(step.seen) == {MANY}
    assert answer.exact


def test_a_step_for_the_best_sees_these_and_leaves_the_others_behind(index: Index) -> None:
    step = Backwards("topk")
    answer = ask(index, step, top=MANY)
    plain, count = expected(index, 0.0), step.seen[0]
    assert count < MANY
    assert ids(answer) == [*plain[:count][::-1], *plain[count:]]
    assert not ask(index, step).exact


def test_steps_follow_each_other(index: Index) -> None:
    answer = ask(index, Drawn(1.0), Backwards("all"), top=30)
    assert ids(answer) == expected(index, 1.0)[::-1][:30]


def test_the_program_takes_rank_steps(
    tmp_path: Path, tiny_model_dir: Path, three_pictures: list[Path], costream_program: Program
) -> None:
    model = ("--model", tiny_model_dir)
    costream_program.here("index", "pictures", *model, cwd=tmp_path)
    bank = Path(__file__).parents[1] / "golden" / "bank" / "bank.jsonl"
    ask = ("search", "red", *model, "--no-names", "--json")
    plain = costream_program.here(*ask, cwd=tmp_path).json["results"]
    words = f"dbnorm bank={bank}"
    ranked = costream_program.here(*ask, "--rank", words, cwd=tmp_path).json["results"]
    assert {one["id"] for one in ranked} == {one["id"] for one in plain}
    steps = [one["reasons"]["steps"] for one in ranked]
    assert steps == sorted(steps, reverse=True)
    refused = costream_program.here(*ask, "--rank", "cots", cwd=tmp_path, code=2)
    assert "rank step" in refused.stderr
