"""`Searcher`: the same law for every kind of term, pages that join, names, relevance, duplicates.

The encoder knows 32 colours by name and sees the mean colour of a picture's cells, so that what
must be found can be told without a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from costream.data.decode import open_image
from costream.encoders.light.encoder import LightEncoder
from costream.errors import ConfigError, DataError, SpaceMismatch
from costream.index import Filter, Index, Item
from costream.records import Ranking, Space
from costream.search import Answer, Like, Picture, Query, Result, Searcher, Words
from costream.search.engine import cut_region

DIM = 32
SPACE = Space(encoder="colours", weights_hash="c", preprocessing_hash="c", dim=DIM)
COLOURS = {"red": 0, "green": 1, "blue": 2, "dark": 3}


class TextColours:
    """Each word is a direction; a word that is no colour has one of its own."""

    space = SPACE

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> np.ndarray:
        vector = np.zeros(DIM, dtype=np.float32)
        for word in text.lower().split():
            vector[COLOURS.get(word, 4 + sum(word.encode()) % (DIM - 4))] += 1
        return vector / np.linalg.norm(vector)


class Colours(TextColours):
    """The same, and pictures by their mean colour."""

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        means = [np.asarray(open_image(image)).reshape(-1, 3).mean(axis=0) for image in images]
        vectors = np.zeros((len(means), DIM), dtype=np.float32)
        vectors[:, :3] = np.stack(means)
        vectors[:, 3] = 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def unit(count: int, seed: int, dim: int = DIM) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An empty one."""
    with Index.open(tmp_path / "index", create=True) as opened:
        yield opened


@pytest.fixture
def many(index: Index) -> Searcher:
    """400 items in random directions, named by number."""
    items = [Item(id=f"i{n:03}", path=f"/pictures/{n:03}.jpg") for n in range(400)]
    index.add(items, unit(400, 0), SPACE)
    return Searcher(index, Colours())


def ask(searcher: Searcher, *terms: Any, **options: Any) -> Answer:
    return searcher.answer(Query(terms=terms, **options))


def ids(answer: Answer) -> list[str]:
    return [result.id for result in answer.results]


# --- terms ---


def test_a_question_in_words_is_a_plain_search(many: Searcher) -> None:
    answer = ask(many, Words("red"), top=25, hybrid=False)
    plain = many.index.search(Colours().encode_texts(["red"]), SPACE, 25)
    assert ids(answer) == list(plain.ids[0])
    assert [result.score for result in answer.results] == plain.scores[0].tolist()
    assert [result.rank for result in answer.results] == list(range(1, 26))
    assert (answer.exact, answer.kernel, answer.total) == (plain.exact, plain.kernel, 400)


def test_a_weight_of_one_term_alone_changes_nothing(many: Searcher) -> None:
    once, thrice = (ask(many, Words("red", weight=weight), top=25) for weight in (1, 3))
    assert ids(once) == ids(thrice)


def test_the_order_of_terms_does_not_matter(many: Searcher) -> None:
    terms = [
        Words("red"),
        Words("blue", weight=-0.5),
        Picture(Image.new("RGB", (8, 8), "green"), weight=2),
        Like("i007"),
    ]
    expected = ask(many, *terms).results
    for shift in range(1, 4):
        assert ask(many, *terms[shift:], *terms[:shift]).results == expected


@pytest.mark.parametrize(
    "term",
    [Words("blue"), Picture(Image.new("RGB", (8, 8), "blue")), Like("i007")],
    ids=["words", "picture", "item"],
)
def test_what_is_added_and_taken_back_leaves_no_trace(many: Searcher, term: Any) -> None:
    plain = ask(many, Words("red"), top=400, hybrid=False)
    again = ask(many, Words("red"), term, replace(term, weight=-1.0), top=400)
    assert again.results == plain.results


def test_terms_that_cancel_are_refused(many: Searcher) -> None:
    with pytest.raises(ConfigError, match="cancel"):
        ask(many, Words("red"), Words("red", weight=-1))


def test_a_subtracted_word_pushes_what_it_names_back(index: Index) -> None:
    encoder = Colours()
    names = ["red", "red dark", "red blue"]
    index.add([Item(id=name) for name in names], encoder.encode_texts(names), SPACE)
    answer = ask(Searcher(index, encoder), Words("red"), Words("blue", weight=-0.5))
    assert ids(answer) == ["red", "red dark", "red blue"]


def test_a_region_is_all_that_counts(index: Index) -> None:
    encoder = Colours()
    both = Image.new("RGB", (60, 40), "red")
    both.paste("blue", (30, 0, 60, 40))
    pictures = {colour: Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")}
    vectors = encoder.encode_images(list(pictures.values()))
    index.add([Item(id=colour) for colour in pictures], vectors, SPACE)
    searcher = Searcher(index, encoder)
    right = ask(searcher, Picture(both, region=(0.5, 0, 1, 1)))
    assert ids(right) == ["blue", "red"]
    assert right.results == ask(searcher, Picture(pictures["blue"])).results
    assert ids(ask(searcher, Picture(both, region=(0, 0, 0.5, 1)))) == ["red", "blue"]


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (200, 100)])
def test_a_region_has_at_least_one_pixel(size: tuple[int, int]) -> None:
    for region in ((0, 0, 1e-9, 1e-9), (0.999999, 0.999999, 1, 1), (0.4, 0.4, 0.5, 0.5)):
        assert min(cut_region(Image.new("RGB", size), region).size) >= 1
    assert cut_region(Image.new("RGB", size), (0, 0, 1, 1)).size == size


def test_more_like_an_item_are_the_others(many: Searcher) -> None:
    answer = ask(many, Like("i007"), top=400)
    vector = many.index.vectors(["i007"])
    plain = [one for one in many.index.search(vector, SPACE, 400).ids[0] if one != "i007"]
    assert ids(answer) == plain


def test_an_unknown_item_is_named(many: Searcher) -> None:
    with pytest.raises(DataError, match="'absent'"):
        ask(many, Like("absent"))


def test_a_string_is_never_taken_for_a_path(many: Searcher, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(path)
    as_words, as_picture = ask(many, Words(str(path))), ask(many, Picture(str(path)))
    assert ids(as_words) != ids(as_picture)
    assert ids(as_picture) == ids(ask(many, Picture(path.read_bytes())))


def test_a_picture_needs_an_encoder_that_sees(many: Searcher) -> None:
    searcher = Searcher(many.index, TextColours())
    with pytest.raises(ConfigError, match="reads texts only"):
        ask(searcher, Picture(Image.new("RGB", (8, 8))))
    assert ids(ask(searcher, Words("red"), Like("i003"))) != []


def test_another_models_question_is_refused(many: Searcher) -> None:
    other = Colours()
    other.space = replace(SPACE, weights_hash="other")
    with pytest.raises(SpaceMismatch):
        ask(Searcher(many.index, other), Words("red"))


# --- conditions and pages ---


def test_conditions_hold_for_every_result(many: Searcher) -> None:
    where = Filter(path_prefix="/pictures/1")
    answer = ask(many, Words("red"), where=where, top=400)
    assert set(ids(answer)) == many.index.matches(where)
    assert answer.total == 100
    whole = ask(many, Words("red"), top=400)
    assert ids(answer) == [one for one in ids(whole) if one.startswith("i1")]


def test_a_condition_that_nothing_meets_finds_nothing(many: Searcher) -> None:
    answer = ask(many, Words("red"), where=Filter(tags=("absent",)))
    assert (answer.results, answer.total, answer.nothing_relevant) == ((), 0, True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hybrid": False},
        {"min_relevance": 0.05},
        {"collapse_duplicates": True},
        {"where": Filter(path_prefix="/pictures/1")},
    ],
    ids=str,
)
def test_pages_join_to_the_whole(many: Searcher, options: dict[str, Any]) -> None:
    """Also where the page reaches past the depth to which the two rankings are fused."""
    marked = [replace(item, caption="red thing") for item in many.index.items()[::7]]
    many.index.add(marked, many.index.vectors([item.id for item in marked]), SPACE)
    whole = ask(many, Words("red"), top=400, **options).results
    pages: list[Result] = []
    while page := ask(many, Words("red"), top=90, offset=len(pages), **options).results:
        pages.extend(page)
    assert pages == list(whole)
    assert len({result.id for result in pages}) == len(pages)


# --- names ---


def test_a_name_goes_first_however_far_its_vector_is(many: Searcher) -> None:
    far = ask(many, Words("red"), top=400, hybrid=False).results[-1]
    item = many.index.get([far.id])[0]
    for changed in (
        replace(item, path="/pictures/Réd.jpg"),
        replace(item, caption="RED"),
        replace(item, tags=("red",)),
        replace(item, text="red"),
        replace(item, caption="a thing that is red all over"),
    ):
        many.index.add([changed], many.index.vectors([item.id]), SPACE)
        first = ask(many, Words("red")).results[0]
        assert first.id == far.id
        assert first.score == far.score
        assert first.reasons["named"] == 1.0
        assert first.relevance == 1.0


def test_a_common_word_does_not_push_the_vectors_best_out(many: Searcher) -> None:
    best = ids(ask(many, Words("red"), hybrid=False))[0]
    others = [item for item in many.index.items() if item.id != best]
    for share in (2, 4):
        marked = [replace(item, caption="the red one") for item in others[::share]]
        many.index.add(marked, many.index.vectors([item.id for item in marked]), SPACE)
        assert best in ids(ask(many, Words("red")))


def test_words_and_vectors_together_beat_either_alone(many: Searcher) -> None:
    """An item that both rank second comes before those that only one of them ranks first."""
    ranked = ids(ask(many, Words("red car"), hybrid=False, top=400))
    captions = {ranked[300]: "car car car", ranked[1]: "a car in red", ranked[350]: "red red red"}
    captions |= {one: "a red day" for one in ranked[200:220]}
    items = [replace(i, caption=captions[i.id]) for i in many.index.get(list(captions))]
    many.index.add(items, many.index.vectors(list(captions)), SPACE)
    assert ids(ask(many, Words("red car")))[0] == ranked[1]


def test_with_pictures_or_subtraction_names_do_not_count(many: Searcher) -> None:
    item = replace(many.index.get(["i005"])[0], caption="red")
    many.index.add([item], many.index.vectors(["i005"]), SPACE)
    for terms in (
        (Words("red"), Words("blue", weight=-0.5)),
        (Words("red"), Like("i009")),
        (Words("red"), Picture(Image.new("RGB", (8, 8), "red"))),
    ):
        answer = ask(many, *terms)
        assert answer.results == ask(many, *terms, hybrid=False).results


def test_an_item_without_a_vector_is_found_by_its_name(many: Searcher) -> None:
    new = replace(SPACE, weights_hash="new")
    many.index.begin_space(new)
    items = [item for item in many.index.missing(new, 1000) if item.id != "i009"]
    many.index.fill_space(items, unit(len(items), 1), new)
    named = replace(many.index.get(["i009"])[0], caption="zebra")
    many.index.add([named], many.index.vectors(["i009"]), SPACE)
    many.index.switch_space(new, allow_missing=True)
    encoder = Colours()
    encoder.space = new
    first = ask(Searcher(many.index, encoder), Words("zebra"), collapse_duplicates=True).results[0]
    assert first.id == "i009"
    assert "vectors" not in first.reasons


@pytest.mark.parametrize("text", ['"', "red OR (", "NEAR(a b)", "name:red*", "'; DROP TABLE", "-"])
def test_no_text_is_taken_for_a_language(many: Searcher, text: str) -> None:
    assert len(ask(many, Words(text)).results) == 10


# --- moments ---


def test_a_clip_comes_once_with_its_best_moment(index: Index) -> None:
    encoder = Colours()
    vectors = encoder.encode_texts(["red", "blue", "green", "blue red"])
    spans = np.array([[0, 1], [1, 2], [2, 3], [np.nan, np.nan]], dtype=np.float64)
    items = [Item(id="clip", modality="video"), Item(id="picture")]
    index.add_moments(items, vectors, np.array([0, 0, 0, 1]), spans, SPACE)
    answer = ask(Searcher(index, encoder), Words("blue"))
    assert [(one.id, one.span, one.modality) for one in answer.results] == [
        ("clip", (1.0, 2.0), "video"),
        ("picture", None, "image"),
    ]


# --- relevance ---


def test_relevance_is_a_share_and_rises_with_the_score(many: Searcher) -> None:
    results = ask(many, Words("red"), top=400, hybrid=False).results
    relevances = [result.relevance for result in results]
    assert all(one is not None and 0 <= one <= 1 for one in relevances)
    assert relevances == sorted(relevances, key=lambda one: one or 0.0, reverse=True)


def test_what_is_asked_for_is_relevant_and_chance_is_not(many: Searcher) -> None:
    nothing = ask(many, Words("red"))
    assert nothing.nothing_relevant
    assert len(nothing.results) == 10
    many.index.add([Item(id="hit")], Colours().encode_texts(["red"]), SPACE)
    something = ask(many, Words("red"))
    assert not something.nothing_relevant
    assert ids(something)[0] == "hit"
    assert (something.results[0].relevance or 0) > 0.9


def test_below_the_least_relevance_nothing_is_shown(many: Searcher) -> None:
    many.index.add([Item(id="hit")], Colours().encode_texts(["red"]), SPACE)
    assert ids(ask(many, Words("red"), min_relevance=0.9)) == ["hit"]
    whole = ask(many, Words("red"), top=400, hybrid=False).results
    for least in (0.0, 0.01, 0.2):
        kept = ask(many, Words("red"), top=400, min_relevance=least, hybrid=False).results
        assert kept == tuple(one for one in whole if (one.relevance or 0) >= least)


def test_of_an_unmeasured_model_a_handful_of_items_is_too_few_to_judge(index: Index) -> None:
    index.add([Item(id=f"{n}") for n in range(5)], unit(5, 0), SPACE)
    answer = ask(Searcher(index, Colours()), Words("red"), min_relevance=0.9)
    assert [result.relevance for result in answer.results] == [None] * 5
    assert not answer.nothing_relevant
    assert "20 items" in answer.unjudged


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_of_a_measured_model_every_question_is_judged_in_any_collection(
    index: Index, count: int
) -> None:
    model = LightEncoder("cots-mini")
    index.add([Item(id=f"{n}") for n in range(count)], unit(count, 0, 256), model.space)
    other = Words("snow", weight=-0.5)
    for terms in [(Words("red"),), (Words("red"), other), (Like("0"),), (Like("0"), other)]:
        answer = ask(Searcher(index, model), *terms, hybrid=False)
        assert all(0 <= (one.relevance or -1) <= 1 for one in answer.results)
        assert bool(answer.unjudged) is not bool(answer.results)


def test_an_item_as_an_example_is_judged_as_if_it_were_outside(many: Searcher) -> None:
    outside = ask(many, Words("red"), top=30, hybrid=False).results
    many.index.add([Item(id="example")], Colours().encode_texts(["red"]), SPACE)
    inside = ask(many, Like("example"), top=30).results
    assert [one.relevance for one in inside] == pytest.approx(
        [one.relevance for one in outside], abs=1e-4
    )


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"product": True}], ids=str)
def test_what_was_never_measured_has_no_relevance_and_the_answer_says_why(
    many: Searcher, options: dict[str, Any]
) -> None:
    weight, product = options.get("weight", 1.0), options.get("product", False)
    answer = ask(many, Words("red", weight=weight), product=product, min_relevance=0.99)
    assert len(answer.results) == 10
    assert all(one.relevance is None for one in answer.results)
    assert answer.unjudged
    assert not answer.nothing_relevant


# --- duplicates ---


def test_of_nearly_the_same_only_the_best_is_shown(many: Searcher) -> None:
    vector = Colours().encode_texts(["red"])[0]
    near = vector + 0.02 * unit(3, 9)
    copies = [Item(id=f"copy{n}") for n in range(3)]
    many.index.add(copies, near / np.linalg.norm(near, axis=1, keepdims=True), SPACE)
    plain = ids(ask(many, Words("red"), top=8))
    answer = ask(many, Words("red"), top=5, collapse_duplicates=True)
    assert {*plain[:3]} == {"copy0", "copy1", "copy2"}
    assert ids(answer) == [plain[0], *plain[3:7]]
    assert answer.results[0].duplicates == tuple(plain[1:3])
    assert all(result.duplicates == () for result in answer.results[1:])


# --- others at work ---


class Interrupted(Index):
    """An index from which another process removes the best item while an answer is made."""

    def search(self, *args: Any, **options: Any) -> Ranking:
        found = super().search(*args, **options)
        if len(self) > 398:
            self.remove([found.ids[0][0]])
        return found


def test_an_item_that_goes_meanwhile_is_left_out(many: Searcher, tmp_path: Path) -> None:
    best = ids(ask(many, Words("red"), top=4))
    many.index.close()
    with Interrupted.open(tmp_path / "index") as index:
        assert ids(ask(Searcher(index, Colours()), Words("red"), top=2)) == best[2:4]


def test_a_closed_index_says_so(many: Searcher) -> None:
    many.index.close()
    with pytest.raises(DataError, match="closed"):
        ask(many, Words("red"))


def test_every_stage_is_timed(many: Searcher) -> None:
    answer = ask(many, Words("red"))
    assert set(answer.seconds) == {"encode", "judge", "search", "sift", "look up"}
    assert all(seconds >= 0 for seconds in answer.seconds.values())
