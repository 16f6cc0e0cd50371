"""The contract of every evaluation: chance for a constant scorer, 100 for an oracle, names free.

`EVALUATIONS` lists what is checked: functions from vectors and truth to metrics by direction. The
second half runs the whole of `evaluate` on picture files with a small model that really looks at
them (the mean colour of a picture against the colour that a text names).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from costream.data.dataset import DataSet
from costream.data.decode import open_image
from costream.errors import ConfigError, DataError, NumericalError
from costream.evaluate import (
    DotScores,
    chance_of_vectors,
    evaluate,
    evaluate_vectors,
    hit_at_k,
    mean_reciprocal_rank,
    median_rank,
    rank_of_truth,
    recall_at_k,
    truth_from_groups,
)
from costream.records import Sample, Space

Metrics = dict[str, dict[str, float]]


def all_metrics(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> Metrics:
    """Every metric there is, in both directions."""
    own = np.arange(len(images))
    directions = {
        "image_to_text": (DotScores(images, texts), truth_from_groups(own, owner)),
        "text_to_image": (DotScores(texts, images), truth_from_groups(owner, own)),
    }
    results: Metrics = {}
    for name, (scores, truth) in directions.items():
        ranks = rank_of_truth(scores, truth, rows_at_once=3)
        results[name] = {f"hit@{k}": hit_at_k(ranks, k) for k in (1, 5, 10)}
        results[name] |= {f"recall@{k}": recall_at_k(ranks, k) for k in (1, 5, 10)}
        results[name] |= {
            "median_rank": median_rank(ranks),
            "mean_reciprocal_rank": mean_reciprocal_rank(ranks),
        }
    return results


Evaluation = Callable[[np.ndarray, np.ndarray, np.ndarray], Metrics]
EVALUATIONS: list[Evaluation] = [evaluate_vectors, all_metrics]
every_evaluation = pytest.mark.parametrize("run", EVALUATIONS)


def some_owner(rng: np.random.Generator, num_images: int) -> np.ndarray:
    """One to four texts a picture, in mixed order."""
    return rng.permutation(np.repeat(np.arange(num_images), rng.integers(1, 5, num_images)))


@every_evaluation
def test_an_oracle_scores_100(run: Evaluation) -> None:
    owner = some_owner(np.random.default_rng(0), 20)
    for name, values in run(np.eye(20), np.eye(20)[owner], owner).items():
        assert values["hit@1"] == 100.0, name
        assert values["median_rank"] == 1.0
        assert values.get("mean_reciprocal_rank", 100.0) == pytest.approx(100.0)
        assert values.get("recall@5", 100.0) == pytest.approx(100.0)


@every_evaluation
def test_the_reverse_of_an_oracle_scores_0(run: Evaluation) -> None:
    owner = np.repeat(np.arange(40), 2)
    for values in run(np.eye(40), -np.eye(40)[owner], owner).values():
        assert values["hit@10"] == 0.0
        assert values["median_rank"] >= 39.0


@every_evaluation
def test_a_constant_scorer_scores_what_random_scorers_score_on_average(run: Evaluation) -> None:
    rng = np.random.default_rng(1)
    num_images, captions = 60, 5
    owner = np.repeat(np.arange(num_images), captions)
    constant = run(np.ones((num_images, 8)), np.ones((len(owner), 8)), owner)
    shape = (300, 8)
    by_chance = [
        run(rng.normal(size=(num_images, 8)), rng.normal(size=shape), owner) for _ in range(30)
    ]
    for direction, values in constant.items():
        for metric, value in values.items():
            drawn = [each[direction][metric] for each in by_chance]
            error = np.std(drawn) / np.sqrt(len(drawn))
            assert abs(value - np.mean(drawn)) < 5 * error + 1e-9, (direction, metric)


def test_a_constant_scorer_scores_the_chance_that_we_report() -> None:
    owner = some_owner(np.random.default_rng(2), 30)
    constant = evaluate_vectors(np.ones((30, 4)), np.ones((len(owner), 4)), owner)
    assert constant == chance_of_vectors(owner, 30)


@every_evaluation
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_of_pictures_and_texts_changes_nothing(run: Evaluation, seed: int) -> None:
    """With ties on purpose: the vectors are of few different values."""
    rng = np.random.default_rng(seed)
    num_images = int(rng.integers(1, 15))
    owner = some_owner(rng, num_images)
    images = rng.integers(-1, 2, (num_images, 3)).astype(float)
    texts = rng.integers(-1, 2, (len(owner), 3)).astype(float)
    before = run(images, texts, owner)
    picture, text = rng.permutation(num_images), rng.permutation(len(owner))
    after = run(images[picture], texts[text], np.argsort(picture)[owner[text]])
    for direction, values in before.items():
        assert values == pytest.approx(after[direction]), direction


@every_evaluation
def test_scaling_by_a_power_of_two_changes_nothing(run: Evaluation) -> None:
    rng = np.random.default_rng(3)
    owner = some_owner(rng, 25)
    images, texts = rng.normal(size=(25, 16)), rng.normal(size=(len(owner), 16))
    assert run(images, texts, owner) == run(images * 1024, texts / 64, owner)


@every_evaluation
def test_values_that_are_not_finite_raise(run: Evaluation) -> None:
    images, owner = np.ones((3, 2)), np.arange(3)
    images[1, 1] = np.nan
    with pytest.raises(NumericalError, match=r"(image|query) 1"):
        run(images, np.ones((3, 2)), owner)


def test_copies_of_a_picture_count_for_each_others_texts() -> None:
    vectors = np.eye(3)[[0, 0, 1]]
    alone = evaluate_vectors(vectors, vectors, [0, 1, 2], ks=(1,))
    grouped = evaluate_vectors(vectors, vectors, [0, 1, 2], ks=(1,), image_groups=[5, 5, 6])
    assert alone["text_to_image"]["hit@1"] == pytest.approx(100 * (0.5 + 0.5 + 1) / 3)
    assert grouped["text_to_image"]["hit@1"] == 100.0


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ([0, 1], "2 entries, expected one for each of 3"),
        ([0, 1, 2], "belongs to picture 2"),
        ([0, 1, -1], "belongs to picture -1"),
        ([0, 0, 0], "1 of 2 pictures have no text, the first is 1"),
        ([0.0, 1.0, 1.0], "whole numbers"),
        ([[0, 1, 1]], "whole numbers"),
    ],
)
def test_texts_without_a_picture_and_pictures_without_a_text_are_refused(
    owner: list[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_vectors(np.ones((2, 4)), np.ones((3, 4)), owner)


def test_shapes_and_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="4 dimensions and items 5"):
        evaluate_vectors(np.ones((1, 4)), np.ones((1, 5)), [0])
    with pytest.raises(DataError, match="shape"):
        evaluate_vectors(np.ones(4), np.ones((1, 4)), [0])
    with pytest.raises(DataError, match="image_groups"):
        evaluate_vectors(np.ones((1, 4)), np.ones((1, 4)), [0], image_groups=[1, 2])
    for ks in ((), (1, 1), (0,)):
        with pytest.raises(ConfigError):
            evaluate_vectors(np.ones((1, 4)), np.ones((1, 4)), [0], ks=ks)


# --- evaluate: files in, report out ---

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


class MeanColour:
    """A whole model: the mean colour of a picture, and the colour that a text names."""

    name = "mean-colour"
    space = Space(encoder="mean-colour", weights_hash="0", preprocessing_hash="0", dim=4)

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode_images(
        self, images: Sequence[Any], *, batch_size: int = 32, progress: Any = None
    ) -> np.ndarray:
        means = [np.asarray(open_image(each), dtype=float).mean(axis=(0, 1)) for each in images]
        return unit(np.array(means))

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int = 32, progress: Any = None
    ) -> np.ndarray:
        self.texts.extend(texts)
        if progress is not None:
            progress(len(texts))
        return unit(np.array([COLOURS[text.split()[-1]] for text in texts], dtype=float))


def unit(colours: np.ndarray) -> np.ndarray:
    centred = np.concatenate([colours / 255 - 0.5, np.full((len(colours), 1), 0.1)], axis=1)
    return (centred / np.linalg.norm(centred, axis=1, keepdims=True)).astype(np.float32)


def pictures(folder: Path, colours: Sequence[str], texts: Sequence[tuple[str, ...]]) -> DataSet:
    samples = []
    for number, (colour, captions) in enumerate(zip(colours, texts, strict=True)):
        path = folder / f"{number}.png"
        if colour in COLOURS:
            Image.new("RGB", (8, 8), COLOURS[colour]).save(path)
        else:
            path.write_bytes(b"not a picture")
        slots = {"image": path, "text": captions}
        samples.append(Sample(id=path.name, group=path.name, slots=slots))
    return DataSet(name="colours", samples=tuple(samples))


def test_evaluate_reports_numbers_with_what_is_needed_to_believe_them(tmp_path: Path) -> None:
    data = pictures(tmp_path, list(COLOURS), [(f"a {c}", f"very {c}") for c in COLOURS])
    done: list[int] = []
    report = evaluate(MeanColour(), data, progress=done.append)
    perfect = {"hit@1": 100.0, "hit@5": 100.0, "hit@10": 100.0, "median_rank": 1.0}
    assert report.metrics == {"image_to_text": perfect, "text_to_image": perfect}
    assert report.data == {"hash": data.hash, "images": 4, "captions": 8}
    assert report.model["name"] == "mean-colour"
    assert set(report.definitions) == set(perfect)
    assert report.tie_rule == "expected"
    assert sum(done) == 12


def test_the_package_is_the_function_whatever_was_imported_first(tmp_path: Path) -> None:
    import costream.evaluate.ranks

    data = pictures(tmp_path, ["red"], [("a red",)])
    assert costream.evaluate(MeanColour(), data) == evaluate(MeanColour(), data)  # type: ignore[operator]
    assert costream.evaluate.ranks.rank_of_truth is rank_of_truth


def test_a_caption_of_two_pictures_is_encoded_once_and_ties(tmp_path: Path) -> None:
    """Two of three pictures are red with one caption: each finds its own half the time."""
    data = pictures(tmp_path, ["red", "red", "blue"], [("red",), ("red",), ("blue",)])
    model, done = MeanColour(), []
    report = evaluate(model, data, ks=(1,), progress=done.append)
    assert model.texts == ["red", "blue"]
    for values in report.metrics.values():
        assert values["hit@1"] == pytest.approx(100 * (0.5 + 0.5 + 1) / 3)
    assert sum(done) == 6
    assert evaluate(model, data, ks=(1,), tie_rule="optimistic").metrics["text_to_image"] == {
        "hit@1": 100.0,
        "median_rank": 1.0,
    }


def test_names_and_order_of_files_change_nothing_but_the_hash(tmp_path: Path) -> None:
    colours, texts = ["red", "blue", "red"], [("green",), ("blue",), ("red",)]
    one = evaluate(MeanColour(), pictures(tmp_path, colours, texts))
    (tmp_path / "b").mkdir()
    other = evaluate(MeanColour(), pictures(tmp_path / "b", colours[::-1], texts[::-1]))
    assert one.metrics == other.metrics


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_the_batch_size_changes_nothing(tmp_path: Path, batch_size: int) -> None:
    colours = ["red", "blue", "red", "white"] * 5
    data = pictures(tmp_path, colours, [(f"a {c}",) for c in reversed(colours)])
    report = evaluate(MeanColour(), data, batch_size=batch_size)
    assert report.metrics == evaluate(MeanColour(), data).metrics


def test_one_broken_picture_among_ten_refuses_the_evaluation_unless_allowed(
    tmp_path: Path,
) -> None:
    colours = ["red", "blue", "white", "green"] * 2 + ["broken", "red"]
    texts = [("a red", "b red") if c == "broken" else (f"a {c}",) for c in colours]
    data = pictures(tmp_path, colours, texts)
    with pytest.raises(DataError, match=r"broken pictures, expected at most 0.*8\.png"):
        evaluate(MeanColour(), data)
    done: list[int] = []
    report = evaluate(MeanColour(), data, allow_broken=1, batch_size=1, progress=done.append)
    assert (report.data["images"], report.data["captions"]) == (9, 9)
    assert [each["path"] for each in report.data["broken"]] == ["8.png"]
    assert sum(done) == 10 + 11
    without = DataSet(name="x", samples=data.samples[:8] + data.samples[9:])
    assert report.data["hash"] == without.hash
    assert report.metrics == evaluate(MeanColour(), without).metrics


def test_all_pictures_broken_is_no_number(tmp_path: Path) -> None:
    data = pictures(tmp_path, ["broken"], [("red",)])
    with pytest.raises(DataError, match="none of 1 pictures could be read"):
        evaluate(MeanColour(), data, allow_broken=5)


def test_data_that_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0\.png in 'colours' has no caption"):
        evaluate(MeanColour(), pictures(tmp_path, ["red"], [()]))
    with pytest.raises(DataError, match="empty caption"):
        evaluate(MeanColour(), pictures(tmp_path, ["red"], [("red", "  ")]))
    with pytest.raises(DataError, match="0 pictures"):
        evaluate(MeanColour(), DataSet(name="none", samples=()))
    blind = DataSet(name="t", samples=(Sample(id="a", group="a", slots={"text": ("red",)}),))
    with pytest.raises(DataError, match="no picture"):
        evaluate(MeanColour(), blind)
    with pytest.raises(DataError):
        evaluate(MeanColour(), tmp_path / "absent")


def test_options_that_cannot_be_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    for options in (
        {"ks": ()},
        {"ks": (0,)},
        {"tie_rule": "lucky"},
        {"batch_size": 0},
        {"allow_broken": -1},
        {"allow_broken": True},
    ):
        with pytest.raises(ConfigError):
            evaluate(MeanColour(), absent, **options)  # type: ignore[arg-type]


def test_a_model_that_gives_nan_raises_and_names_the_picture(tmp_path: Path) -> None:
    class Broken(MeanColour):
        def encode_images(self, images: Sequence[Any], **options: Any) -> np.ndarray:
            return np.full((len(images), 4), np.nan, dtype=np.float32)

    with pytest.raises(NumericalError, match="image 0"):
        evaluate(Broken(), pictures(tmp_path, ["red"], [("red",)]))
