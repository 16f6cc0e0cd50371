"""XMAI: golden values, laws, and what it says of models that know nothing or everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from costream.data import DataSet, make_scenes
from costream.errors import DataError
from costream.evaluate.metrics.mean_reciprocal_rank import mean_reciprocal_rank
from costream.evaluate.ranks import TieRule, rank_of_truth
from costream.evaluate.truth import truth_from_groups
from costream.methods._xmai.claim import without_colours
from costream.methods._xmai.words import (
    WordModel,
    bleu,
    direct_slots,
    insert,
    nouns_of,
)
from costream.methods.xmai import (
    Attacked,
    AttributeInsertions,
    Config,
    Inserter,
    scaled,
    seen_in,
    word_scores,
)
from costream.parts import System
from costream.records import Report
from tiny_world import tiny_model

SMALL = {"most_captions": "12", "block": "12"}
SCENES = make_scenes(12, seed=4, num_captions=2, detail="full", size_px=24)
BARE = without_colours(SCENES, 0.0)


# --- golden ---


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1, 5, 5), (0.0909, 0.7121, 0.6250)),
        ((1, 1, 1), (0.3333, 0.6111, 0.4583)),
        ((1, 0, 0), (1.0, 1 / 3, 0.0)),
        ((10, 50, 50), (0.0909, 0.7121, 0.6250)),
    ],
)
def test_scores_of_words(weights: tuple[float, ...], expected: tuple[float, ...]) -> None:
    scores = word_scores([0.5, 0.3, 0.2], [0.1, 0.9, 0.4], [0.70, 0.72, 0.74], weights)
    np.testing.assert_allclose(scores, expected, atol=5e-5)


def test_equal_values_are_one_and_equal_zeros_zero() -> None:
    assert scaled([0.2, 0.2]).tolist() == [1.0, 1.0]
    assert scaled([0.0, 0.0]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("rule", "expected"), [("optimistic", 1.0), ("pessimistic", 4 / 9)])
def test_ties_decide_reciprocal_ranks(rule: TieRule, expected: float) -> None:
    scores = [[0.5, 0.5, 0.1], [0.2, 0.9, 0.9], [0.3, 0.3, 0.3]]
    ranks = rank_of_truth(scores, truth_from_groups(np.arange(3), np.arange(3)), tie_rule=rule)
    assert mean_reciprocal_rank(ranks) == pytest.approx(100 * expected)


def test_a_word_is_as_likely_as_its_neighbours_say() -> None:
    model = WordModel(["a red car", "a red car", "a tall man", "the old man"], smoothing=0.0)
    # P(red | a) P(car | red) = 2/3 x 1; no other word stands between the two.
    assert model.best("a", "car", 5)[0] == ("red", 1.0)
    (first, mass), *_ = model.best("a", "man", 1)
    assert (first, mass) == ("tall", 1.0)


# --- laws ---


def inserter(data: DataSet, config: Config) -> Inserter:
    corpus = [text for sample in SCENES.samples for text in sample.slots["text"]]
    attacked = Attacked(tiny_model(), data.samples)
    return Inserter(config, attacked, WordModel(corpus), nouns_of(corpus))


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (1.0, 5.0, 0.0), (1.0, 5.0, 5.0)])
def test_deleting_what_was_inserted_gives_the_caption_back(
    weights: tuple[float, float, float],
) -> None:
    makes = inserter(BARE, Config())
    for number, sample in enumerate(BARE.samples):
        for caption in sample.slots["text"]:
            changed = makes.insert(caption, number, seen_in(sample), weights)
            assert changed.words
            text = changed.text
            # From the back, so that places in front stay where they are.
            for start, word, _ in reversed(changed.words):
                before = sum(len(w) + 1 for place, w, _ in changed.words if place < start)
                at = start + before
                assert text[at : at + len(word) + 1] == f"{word} "
                text = text[:at] + text[at + len(word) + 1 :]
            assert text == caption


def test_with_enough_words_to_choose_from_grounded_ones_are_true() -> None:
    makes = inserter(BARE, Config(k=20))
    for number, sample in enumerate(BARE.samples):
        seen = seen_in(sample)
        assert seen is not None
        changed = makes.insert(sample.slots["text"][0], number, seen, (1.0, 1e6, 0.0))
        for _, word, slot in changed.words:
            assert word in {one for place in slot.objects for one in seen[place].attributes}


def test_no_object_no_change() -> None:
    caption = "nothing of the kind"
    assert inserter(BARE, Config()).insert(caption, 0, (), (1.0, 5.0, 5.0)).text == caption


def test_slots_are_whole_words_after_a_space() -> None:
    assert direct_slots("dog runs", [("dog",)]) == []
    assert direct_slots("a hotdog", [("dog",)]) == []
    (slot,) = direct_slots("The dog, a dog", [("dog",)])
    assert (slot.start, slot.objects) == (4, (0,))
    assert insert("The dog, a dog", [(slot.start, "old")]) == "The old dog, a dog"


def test_bleu_is_whole_for_the_same_and_falls_with_insertions() -> None:
    text = "a dog runs over the green grass"
    assert bleu(text, text) == pytest.approx(100)
    once = bleu("a big dog runs over the green grass", text)
    twice = bleu("a big dog runs over the very green grass", text)
    assert 0 < twice < once < 100


# --- the evaluation ---


def report(data: DataSet, **changes: object) -> Report:
    config = replace(Config(block=24, most_captions=0), **changes)  # type: ignore[arg-type]
    return AttributeInsertions(config).run(System(model=tiny_model()), data)


def test_a_report_has_truth_where_the_data_knows_it() -> None:
    found = report(without_colours(SCENES, 0.5), k=6)
    assert set(found.metrics) == {
        *("original", "deletion", "language_model", "grounded", "adversarial")
    }
    assert found.metrics["grounded"]["true"] > found.metrics["language_model"]["true"]
    assert found.metrics["adversarial"]["image_cosine"] < found.metrics["grounded"]["image_cosine"]
    assert found.metrics["original"]["changed"] == 0
    assert found.metrics["adversarial"]["text_cosine"] < found.metrics["original"]["text_cosine"]
    unknown = DataSet(
        name="photographs", samples=tuple(replace(one, meta={}) for one in SCENES.samples)
    )
    plain = report(unknown)
    assert "true" not in plain.metrics["grounded"]
    assert plain.metrics["grounded"]["changed"] > 0


def test_other_ids_change_nothing() -> None:
    renamed = tuple(replace(one, id=f"x{one.id}", group=f"x{one.group}") for one in BARE.samples)
    assert report(DataSet(name="renamed", samples=renamed)).metrics == report(BARE).metrics


class Same:
    """A scorer that knows nothing."""

    cost, needs = "dot", "pooled"

    def score(self, query, gallery):  # type: ignore[no-untyped-def]
        return query.pooled.new_zeros(len(query.pooled), len(gallery.pooled))


def test_a_scorer_that_knows_nothing_is_at_chance_whatever_is_inserted() -> None:
    from costream.parts import Parts

    system = System(model=tiny_model(), parts=Parts(scorer=Same()))  # type: ignore[arg-type]
    found = AttributeInsertions(Config(block=24, most_captions=0)).run(system, BARE)
    chance = 100 * float(np.mean(1 / np.arange(1, 13)))
    for values in found.metrics.values():
        assert values["mrr"] == pytest.approx(chance)
        assert values["mrr_optimistic"] == 100.0


def test_objects_need_names() -> None:
    broken = replace(BARE.samples[0], meta={"objects": [{"attributes": ["red"]}]})
    with pytest.raises(DataError, match="name"):
        seen_in(broken)
