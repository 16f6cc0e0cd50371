"""What items are called is kept between questions, and never longer than it is true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from costream.index import Index, Item
from costream.records import Space
from costream.search import Answer, Query, Searcher, Words

SPACE = Space(encoder="same", weights_hash="w", preprocessing_hash="p", dim=4)


class Same:
    """Every text has the same vector: only words tell items apart."""

    space = SPACE

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        return np.tile(np.float32([[1, 0, 0, 0]]), (len(texts), 1))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path, create=True) as opened:
        put(opened, a="a red car", b="a blue car", c="a dog")
        yield opened


def put(index: Index, **captions: str) -> None:
    items = [Item(id=name, caption=caption) for name, caption in captions.items()]
    index.add(items, Same().encode_texts(list(captions)), SPACE)


def found_by_words(answer: Answer) -> list[str]:
    return [result.id for result in answer.results if "words" in result.reasons]


def ask(searcher: Searcher, text: str) -> Answer:
    return searcher.answer(Query(terms=(Words(text),)))


def test_a_searcher_that_was_asked_before_answers_as_a_new_one(index: Index) -> None:
    kept = Searcher(index, Same())
    for text in ("car", "the red car", "a dog", "red", "CAR", "a cat"):
        again, fresh = ask(kept, text), ask(Searcher(index, Same()), text)
        assert again.results == fresh.results
        assert ask(kept, text).results == fresh.results


def test_what_changes_its_caption_is_found_by_the_new_one_only(
    index: Index, tmp_path: Path
) -> None:
    searcher = Searcher(index, Same())
    assert found_by_words(ask(searcher, "red car")) == ["a"]
    put(index, a="a green bus")
    assert found_by_words(ask(searcher, "red car")) == []
    assert found_by_words(ask(searcher, "green bus")) == ["a"]
    with Index.open(tmp_path) as elsewhere:
        put(elsewhere, b="a red car", d="a red car")
        assert found_by_words(ask(searcher, "red car")) == ["b", "d"]
        elsewhere.remove(["b"])
    assert found_by_words(ask(searcher, "red car")) == ["d"]
