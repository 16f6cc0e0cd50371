"""What an upgrade of the model that asks gains and loses, on a gallery that stays as it is.

Shape letters: Q queries, N pictures, M texts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costream.errors import ConfigError, DataError, SpaceMismatch
from costream.evaluate.metrics.common import check_cutoff
from costream.evaluate.ranks import rank_of_truth
from costream.evaluate.scores import DotScores, as_vectors
from costream.evaluate.vectors import IMAGE_TO_TEXT, TEXT_TO_IMAGE, check_owners, retrieval_truth
from costream.records import Report

if TYPE_CHECKING:
    from costream.data import DataSet
    from costream.parts import System

Successes = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Flips:
    """Queries whose success changed.

    Attributes:
        positive: Queries that only the new model answers.
        negative: Queries that only the old model answered.
        queries: All of them.
    """

    positive: int
    negative: int
    queries: int

    @property
    def positive_rate(self) -> float:
        """PFR in percent."""
        return 100.0 * self.positive / self.queries

    @property
    def negative_rate(self) -> float:
        """NFR in percent."""
        return 100.0 * self.negative / self.queries

    @property
    def gain(self) -> float:
        """What hit@k gains, in percent: PFR - NFR."""
        return 100.0 * (self.positive - self.negative) / self.queries


def count_flips(old: Successes, new: Successes) -> Flips:
    """Compare the successes of two models on the same queries.

    Args:
        old: bool (Q,).
        new: bool (Q,).

    Raises:
        DataError: There is no query, or the two are of different queries.

    Example:
        >>> flips = count_flips(np.array([True, False, False]), np.array([False, True, True]))
        >>> flips.positive, flips.negative
        (2, 1)
    """
    if len(old) != len(new) or not len(old):
        raise DataError(
            f"got successes of {len(old)} and of {len(new)} queries, expected the same, at least 1"
        )
    return Flips(
        positive=int((new & ~old).sum()), negative=int((old & ~new).sum()), queries=len(old)
    )


def successes(
    query_images: ArrayLike,
    query_texts: ArrayLike,
    gallery_images: ArrayLike,
    gallery_texts: ArrayLike,
    image_of_text: ArrayLike,
    k: int,
) -> dict[str, Successes]:
    """Which queries have something right among the k best of a gallery; ties count against them.

    Args:
        query_images: Unit vectors float (N, D) of the pictures that ask.
        query_texts: Unit vectors float (M, D) of the texts that ask.
        gallery_images: The same pictures as they are in the gallery.
        gallery_texts: The same texts as they are in the gallery.
        image_of_text: int (M,), the picture of each text.
        k: How many results are looked at.

    Returns:
        For `image_to_text` bool (N,), for `text_to_image` bool (M,).
    """
    asking = as_vectors(query_images, "image"), as_vectors(query_texts, "text")
    held = as_vectors(gallery_images, "image"), as_vectors(gallery_texts, "text")
    owner = check_owners(image_of_text, num_images=len(held[0]), num_texts=len(held[1]))
    to_text, to_image = retrieval_truth(owner, len(held[0]), None)
    found: dict[str, Successes] = {}
    for direction, queries, items, truth in (
        (IMAGE_TO_TEXT, asking[0], held[1], to_text),
        (TEXT_TO_IMAGE, asking[1], held[0], to_image),
    ):
        ranks = rank_of_truth(DotScores(queries, items), truth, tie_rule="pessimistic")
        found[direction] = ranks.first_within(check_cutoff(k)) > 0.5
    return found


def is_compatible(old: Mapping[str, float], new: Mapping[str, float]) -> bool:
    """Whether new questions to the old gallery beat old ones, strictly, in every direction.

    Args:
        old: Direction to the measure of old questions to the old gallery.
        new: The same of new questions.

    Raises:
        DataError: A direction is missing: one that was not looked at proves nothing.

    Example:
        >>> is_compatible({"image_to_text": 3.0, "text_to_image": 2.0},
        ...               {"image_to_text": 5.0, "text_to_image": 2.0})
        False
    """
    wanted = {IMAGE_TO_TEXT, TEXT_TO_IMAGE}
    if set(old) != wanted or set(new) != wanted:
        raise DataError(
            f"got directions {sorted(old)} and {sorted(new)}, expected {sorted(wanted)} of both"
        )
    return all(new[direction] > old[direction] for direction in wanted)


class UpgradeEvaluation:
    """New questions to the old model's gallery, against the old model's own questions.

    Args:
        old: Name or directory of the old model.
        k: How many results are looked at.
    """

    def __init__(self, old: str, k: int = 1) -> None:
        self._old = old
        self._k = k

    def run(self, system: System, data: DataSet) -> Report:
        """Measure successes and flips in both directions.

        Raises:
            ConfigError: No old model is named.
            SpaceMismatch: The model that is measured was fitted to another one.
            DataError: A sample has no picture or no caption.
        """
        from costream.encoders.storage import load
        from costream.evaluate.retrieval import describe_data
        from costream.evaluate.systems import describe_system
        from costream.train.short import check_captions

        if not self._old:
            raise ConfigError("xbt measures against an old model, got none", hint="old=NAME_OR_DIR")
        old, new = load(self._old), system.model
        if new.space != old.space:
            raise SpaceMismatch(
                f"{new.name} asks indexes of {new.space.encoder!r} (weights "
                f"{new.space.weights_hash}), the old model is {old.name!r} (weights "
                f"{old.space.weights_hash})",
                hint="name the model that it was trained with as old=",
            )
        check_captions(data)
        pictures = [sample.slots["image"] for sample in data.samples]
        texts = [text for sample in data.samples for text in sample.slots["text"]]
        counts = [len(sample.slots["text"]) for sample in data.samples]
        owner = np.repeat(np.arange(len(counts)), counts)
        gallery = old.encode_images(pictures), old.encode_texts(texts)
        before = successes(*gallery, *gallery, owner, self._k)
        asked = new.encode_images(pictures), new.encode_texts(texts)
        after = successes(*asked, *gallery, owner, self._k)
        return Report(
            metrics={name: self._of(before[name], after[name]) for name in before},
            definitions=self._definitions(),
            data=describe_data(data, ()),
            model=describe_system(system) | {"gallery": old.name},
            tie_rule="pessimistic",
        )

    def _of(self, old: Successes, new: Successes) -> dict[str, float]:
        flips, k = count_flips(old, new), self._k
        return {
            f"old hit@{k}": 100.0 * float(old.mean()),
            f"hit@{k}": 100.0 * float(new.mean()),
            f"positive_flips@{k}": flips.positive_rate,
            f"negative_flips@{k}": flips.negative_rate,
            f"gain@{k}": flips.gain,
            "compatible": float(flips.gain > 0),
        }

    def _definitions(self) -> dict[str, str]:
        k = self._k
        hit = f"the old model's gallery, share of queries with a match among the {k} best, percent"
        return {
            f"old hit@{k}": f"The old model asks {hit}.",
            f"hit@{k}": f"The new model asks {hit}.",
            f"positive_flips@{k}": "Share of queries that only the new model answers, percent.",
            f"negative_flips@{k}": "Share of queries that only the old model answered, percent.",
            f"gain@{k}": "Positive less negative flips: what the new model gains, percent.",
            "compatible": "1 where the new model is strictly better; it is backward-compatible "
            "only when both directions say 1.",
        }
