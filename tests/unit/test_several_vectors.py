"""Items and questions of several vectors: stored by an update, found as by scoring everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from costream.data import open_image
from costream.errors import ConfigError, SpaceMismatch
from costream.index import Index, Item, update_index
from costream.index.forms import ItemForm
from costream.records import Space
from costream.search.engine import Searcher
from costream.search.query import Like, Picture, Query, Words

DIM = 6
SPACE = Space(encoder="quarters", weights_hash="0", preprocessing_hash="0", dim=DIM, kind="multi")
COLOURS = ("red", "green", "blue", "yellow", "white", "black")
Array = NDArray[np.float32]


class Quarters:
    """A vector for each quarter of a picture, and one for each word: their colours, noisily."""

    space = SPACE

    def of_images(self, images: Sequence[Any]) -> list[Array]:
        return [
            np.stack([self._colour(open_image(image), cell) for cell in range(4)])
            for image in images
        ]

    def of_texts(self, texts: Sequence[str]) -> list[Array]:
        places = ([COLOURS.index(word) for word in text.split()] for text in texts)
        return [np.eye(DIM, dtype=np.float32)[one] for one in places]

    def score(self, query: Array, item: Array) -> float:
        return float((query @ item.T).max(axis=1).mean())

    def bound(self, best_V: Array) -> float:
        return float(best_V.mean())

    def _colour(self, image: Image.Image, cell: int) -> Array:
        half = image.width // 2
        left, top = cell % 2 * half, cell // 2 * half
        mean = np.asarray(image.crop((left, top, left + half, top + half))).mean(axis=(0, 1))
        names = np.array([np.array(Image.new("RGB", (1, 1), c))[0, 0] for c in COLOURS])
        closeness = np.exp(-np.abs(names - mean).sum(axis=1) / 100)
        unit: Array = (closeness / np.linalg.norm(closeness)).astype(np.float32)
        return unit


FORM = Quarters()


def four(colours: Sequence[str]) -> Image.Image:
    image = Image.new("RGB", (8, 8))
    for cell, colour in enumerate(colours):
        image.paste(colour, (cell % 2 * 4, cell // 2 * 4, cell % 2 * 4 + 4, cell // 2 * 4 + 4))
    return image


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "index", create=True) as opened:
        yield opened


def random_items(index: Index, count: int, *, seed: int = 0) -> dict[str, Array]:
    """Items of 2 to 5 random vectors each, as the index gives them back."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 6, count)
    vectors = rng.standard_normal((counts.sum(), DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = [Item(id=f"i{number:04}") for number in range(count)]
    parents = np.repeat(np.arange(count), counts)
    index.add_moments(items, vectors, parents, np.full((len(vectors), 2), np.nan), SPACE)
    return {item.id: index.all_vectors([item.id]) for item in items}


def best(stored: dict[str, Array], asked: Array, top: int) -> list[str]:
    """By scoring everything."""
    return sorted(stored, key=lambda one: (-FORM.score(asked, stored[one]), one))[:top]


def ids(searcher: Searcher, query: Query) -> list[str]:
    return [result.id for result in searcher.answer(query).results]


def test_it_is_a_form() -> None:
    assert isinstance(FORM, ItemForm)


def test_an_update_stores_all_vectors_of_a_picture(index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    looks = {"a": ("red", "green", "blue", "white"), "b": ("red", "red", "red", "red")}
    for name, colours in looks.items():
        four(colours).save(folder / f"{name}.png")
    assert update_index(index, FORM, folder).added == 2
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes())
    report = update_index(index, FORM, folder)  # the copy gets the vectors of what it copies
    assert (report.added, report.embedded, report.unchanged) == (1, 0, 2)
    assert index.space == SPACE
    stored = {Path(one).stem: index.all_vectors([one]) for one in index.ids()}
    assert np.allclose(stored["a"], FORM.of_images([four(looks["a"])])[0], atol=1e-3)
    assert np.array_equal(stored["a"], stored["c"])
    answer = Searcher(index, FORM).answer(Query(terms=(Words("red green blue"),), hybrid=False))
    assert [Path(result.id).stem for result in answer.results] == ["a", "c", "b"]
    assert answer.exact
    assert index.check() == ()


@pytest.mark.parametrize("text", ["red", "red green", "white black blue yellow"])
@pytest.mark.parametrize("top", [1, 10, 60])
def test_the_answer_is_that_of_scoring_everything(index: Index, text: str, top: int) -> None:
    """With 2,000 items, so that the first stage leaves most of them out."""
    stored = random_items(index, 2000)
    answer = Searcher(index, FORM).answer(Query(terms=(Words(text),), top=top, hybrid=False))
    asked = FORM.of_texts([text])[0]
    assert [result.id for result in answer.results] == best(stored, asked, top)
    expected = [FORM.score(asked, stored[result.id]) for result in answer.results]
    assert [result.score for result in answer.results] == pytest.approx(expected, abs=1e-6)
    assert all(result.relevance is None for result in answer.results)


def test_exact_is_said_only_when_nothing_better_can_be_missed(index: Index) -> None:
    """An item that is second for every vector, behind a crowd for each, is found or admitted."""
    crowd = 400
    eye = np.eye(DIM, dtype=np.float32)
    middle = np.array([0.7, 0.7, 0, 0, 0, 0.1], np.float32)
    rows = [eye[number % 2] for number in range(2 * crowd)]
    vectors = np.stack([*rows, middle / np.linalg.norm(middle)])
    items = [Item(id=f"{number:04}") for number in range(2 * crowd)] + [Item(id="middle")]
    spans = np.full((len(items), 2), np.nan)
    index.add_moments(items, vectors, np.arange(len(items)), spans, SPACE)
    answer = Searcher(index, FORM).answer(Query(terms=(Words("red green"),), top=1, hybrid=False))
    assert answer.results[0].id == "middle"
    assert answer.exact


def test_terms_are_added_and_subtracted(index: Index) -> None:
    stored = random_items(index, 50)
    searcher = Searcher(index, FORM)
    red, blue = FORM.of_texts(["red", "blue"])

    def score(one: str) -> float:
        return FORM.score(red, stored[one]) - 0.5 * FORM.score(blue, stored[one])

    query = Query(terms=(Words("red"), Words("blue", weight=-0.5)), top=50, hybrid=False)
    assert ids(searcher, query) == sorted(stored, key=lambda one: (-score(one), one))
    with pytest.raises(ConfigError, match="only terms to subtract"):
        ids(searcher, Query(terms=(Words("red", weight=-1),)))


def test_pictures_and_items_ask_with_all_their_vectors(index: Index) -> None:
    stored = random_items(index, 50)
    searcher = Searcher(index, FORM)
    picture = four(("red", "blue", "blue", "white"))
    asked = FORM.of_images([picture])[0]
    assert ids(searcher, Query(terms=(Picture(picture),))) == best(stored, asked, 10)
    others = {one: stored[one] for one in stored if one != "i0007"}
    like = Query(terms=(Like("i0007"),))
    assert ids(searcher, like) == best(others, stored["i0007"], 10)


def test_a_clip_counts_by_its_best_moment(index: Index) -> None:
    eye = np.eye(DIM, dtype=np.float32)
    moments = np.stack([eye[0], eye[1], eye[0], eye[2]])  # red and green, then red and blue
    spans = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 2.0], [1.0, 2.0]])
    index.add_moments([Item(id="clip", modality="video")], moments, np.zeros(4, int), spans, SPACE)
    answer = Searcher(index, FORM).answer(Query(terms=(Words("red blue"),), hybrid=False))
    (result,) = answer.results
    assert result.span == (1.0, 2.0)
    assert result.score == pytest.approx(1.0)
    answer = Searcher(index, FORM).answer(Query(terms=(Words("green blue"),), hybrid=False))
    assert answer.results[0].score == pytest.approx(0.5)


def test_words_of_names_count_beside_the_vectors(index: Index) -> None:
    random_items(index, 300)
    named = Item(id="x", path="/pictures/red.png")
    worst = -np.eye(DIM, dtype=np.float32)[:1]
    index.add_moments([named], worst, np.zeros(1, int), np.full((1, 2), np.nan), SPACE)
    assert ids(Searcher(index, FORM), Query(terms=(Words("red"),)))[0] == "x"


def test_what_needs_one_vector_an_item_is_refused(index: Index) -> None:
    random_items(index, 5)
    searcher = Searcher(index, FORM)
    for query in (
        Query(terms=(Words("red"),), min_relevance=0.5),
        Query(terms=(Words("red"),), collapse_duplicates=True),
        Query(terms=(Words("red"), Words("blue")), product=True),
    ):
        with pytest.raises(ConfigError, match="one vector an item"):
            searcher.answer(query)


def test_rank_steps_are_refused(index: Index) -> None:
    class Same:
        needs: Literal["topk", "all"] = "topk"

        def rescore(self, scores: Array, context: Any) -> Array:
            return scores

    with pytest.raises(ConfigError, match="one vector an item"):
        Searcher(index, FORM, steps=(Same(),))


def test_a_model_of_one_vector_cannot_ask(index: Index) -> None:
    random_items(index, 5)

    class OneVector:
        space = Space(encoder="quarters", weights_hash="0", preprocessing_hash="0", dim=DIM)

        def encode_texts(self, texts: Sequence[str]) -> Array:
            return np.stack([FORM.of_texts([text])[0][0] for text in texts])

    with pytest.raises(SpaceMismatch, match="several an item"):
        Searcher(index, OneVector()).answer(Query(terms=(Words("red"),)))
