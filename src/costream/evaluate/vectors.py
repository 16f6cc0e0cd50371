"""Retrieval metrics of vectors that exist already, in both directions.

Shape letters: N pictures, M texts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costream.errors import ConfigError, DataError
from costream.evaluate.metrics import (
    define_hit_at_k,
    define_median_rank,
    hit_at_k,
    median_rank,
)
from costream.evaluate.ranks import Ranks, Scores, TieRule, rank_of_truth, ranks_by_chance
from costream.evaluate.scores import DotScores, as_vectors
from costream.evaluate.truth import Truth, truth_from_groups

IMAGE_TO_TEXT = "image_to_text"
TEXT_TO_IMAGE = "text_to_image"


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """What to call pictures and texts in messages.

    Attributes:
        images: One a picture.
        texts: One a text.
    """

    images: Sequence[str]
    texts: Sequence[str]


def evaluate_vectors(
    image_vectors: ArrayLike,
    text_vectors: ArrayLike,
    image_of_text: ArrayLike,
    *,
    ks: Sequence[int] = (1, 5, 10),
    tie_rule: TieRule = "expected",
    image_groups: ArrayLike | None = None,
    names: Names | None = None,
) -> dict[str, dict[str, float]]:
    """Measure how well pictures find their texts and texts their pictures.

    The score of a pair is the dot product of its vectors. Two texts with the same words have the
    same vector and tie: when they belong to two pictures, the tie rule decides how much finding the
    other one's counts.

    Args:
        image_vectors: float (N, D), of length 1 where the cosine is meant.
        text_vectors: float (M, D).
        image_of_text: int (M,), the row of the picture that each text belongs to, 0 to N - 1.
        ks: Cut-offs of hit@k.
        tie_rule: What to assume of items with equal scores.
        image_groups: int (N,); pictures with equal numbers are copies of each other, and each
            counts for the texts of all. By default every picture stands alone.
        names: What to call pictures and texts in messages; numbers where absent.

    Returns:
        `image_to_text` and `text_to_image`, each {`hit@k` in percent for every k, `median_rank`}.
        For `image_to_text` any text of the picture counts.

    Raises:
        ConfigError: When a cut-off is not a whole number of at least 1, or the tie rule is unknown.
        DataError: When shapes do not fit, a text names no picture, or a picture has no text.
        NumericalError: When a vector or a score is not finite.

    Example:
        >>> import numpy as np
        >>> evaluate_vectors(np.eye(2), np.eye(2), [0, 1], ks=(1,))["image_to_text"]
        {'hit@1': 100.0, 'median_rank': 1.0}
    """
    images, texts = as_vectors(image_vectors, "image"), as_vectors(text_vectors, "text")
    return evaluate_scores(
        DotScores(images, texts),
        DotScores(texts, images),
        image_of_text,
        ks=ks,
        tie_rule=tie_rule,
        image_groups=image_groups,
        names=names,
    )


def evaluate_scores(
    of_images: Scores,
    of_texts: Scores,
    image_of_text: ArrayLike,
    *,
    ks: Sequence[int] = (1, 5, 10),
    tie_rule: TieRule = "expected",
    image_groups: ArrayLike | None = None,
    names: Names | None = None,
) -> dict[str, dict[str, float]]:
    """Measure how well pictures find their texts and texts their pictures, by any scores.

    Args:
        of_images: Pictures as queries (N), texts as items (M).
        of_texts: Texts as queries (M), pictures as items (N).
        image_of_text: As of `evaluate_vectors`.
        ks: As of `evaluate_vectors`.
        tie_rule: As of `evaluate_vectors`.
        image_groups: As of `evaluate_vectors`.
        names: As of `evaluate_vectors`.

    Returns:
        As of `evaluate_vectors`.

    Raises:
        ConfigError: As of `evaluate_vectors`.
        DataError: As of `evaluate_vectors`.
        NumericalError: When a score is not finite.

    Example:
        >>> from costream.evaluate import GivenScores
        >>> scores = GivenScores([[1.0, 0.0], [0.0, 1.0]])
        >>> evaluate_scores(scores, scores, [0, 1], ks=(1,))["text_to_image"]
        {'hit@1': 100.0, 'median_rank': 1.0}
    """
    num_images, num_texts = of_images.num_queries, of_texts.num_queries
    owner = check_owners(image_of_text, num_images=num_images, num_texts=num_texts)
    to_text, to_image = retrieval_truth(owner, num_images, image_groups)
    image_ids = names.images if names else None
    text_ids = names.texts if names else None
    forward = rank_of_truth(
        of_images, to_text, tie_rule=tie_rule, query_ids=image_ids, item_ids=text_ids
    )
    backward = rank_of_truth(
        of_texts, to_image, tie_rule=tie_rule, query_ids=text_ids, item_ids=image_ids
    )
    return {IMAGE_TO_TEXT: measure(forward, ks), TEXT_TO_IMAGE: measure(backward, ks)}


def chance_of_vectors(
    image_of_text: ArrayLike,
    num_images: int,
    *,
    ks: Sequence[int] = (1, 5, 10),
    tie_rule: TieRule = "expected",
    image_groups: ArrayLike | None = None,
) -> dict[str, dict[str, float]]:
    """What a model that knows nothing scores on this truth: the number to compare a weak one with.

    Args:
        image_of_text: int (M,), the row of the picture that each text belongs to.
        num_images: Number of pictures.
        ks: Cut-offs of hit@k.
        tie_rule: What to assume of items with equal scores.
        image_groups: int (N,), as in `evaluate_vectors`.

    Returns:
        The same form as `evaluate_vectors`.

    Raises:
        ConfigError: When a cut-off is not a whole number of at least 1.
        DataError: When a text names no picture, or a picture has no text.

    Example:
        >>> chance_of_vectors([0, 0, 1, 1], 2, ks=(1,))["text_to_image"]
        {'hit@1': 50.0, 'median_rank': 1.5}
    """
    owner = check_owners(image_of_text, num_images=num_images, num_texts=None)
    to_text, to_image = retrieval_truth(owner, num_images, image_groups)
    return {
        IMAGE_TO_TEXT: measure(ranks_by_chance(to_text, tie_rule=tie_rule), ks),
        TEXT_TO_IMAGE: measure(ranks_by_chance(to_image, tie_rule=tie_rule), ks),
    }


def measure(ranks: Ranks, ks: Sequence[int]) -> dict[str, float]:
    """The metrics of one direction.

    Args:
        ranks: Where the relevant items stand.
        ks: Cut-offs of hit@k.

    Returns:
        {`hit@k` in percent for every k, `median_rank`}.

    Raises:
        ConfigError: When there is no cut-off, one repeats, or one is not a whole number >= 1.
        DataError: When there is no query.

    Example:
        >>> truth = truth_from_groups([0, 1], [0, 1])
        >>> measure(rank_of_truth([[1, 0], [0, 1]], truth), ks=(1,))
        {'hit@1': 100.0, 'median_rank': 1.0}
    """
    check_cutoffs(ks)
    return {f"hit@{k}": hit_at_k(ranks, k) for k in ks} | {"median_rank": median_rank(ranks)}


def define(ks: Sequence[int], tie_rule: TieRule) -> dict[str, str]:
    """The sentence behind every number that `measure` returns.

    Args:
        ks: Cut-offs of hit@k.
        tie_rule: How equal scores are ranked.

    Returns:
        {metric: definition}, the keys those of `measure`.

    Raises:
        ConfigError: When there is no cut-off, one repeats, or one is not a whole number >= 1.

    Example:
        >>> sorted(define((1, 5), "expected"))
        ['hit@1', 'hit@5', 'median_rank']
    """
    check_cutoffs(ks)
    sentences = {f"hit@{k}": define_hit_at_k(k, tie_rule) for k in ks}
    return sentences | {"median_rank": define_median_rank(tie_rule)}


def check_cutoffs(ks: Sequence[int]) -> None:
    """Refuse cut-offs that make no report.

    Args:
        ks: Whole numbers of at least 1, each once.

    Raises:
        ConfigError: When there is none, one repeats, or one is not a whole number of at least 1.
    """
    if not ks or len(set(ks)) != len(ks):
        raise ConfigError(f"ks is {tuple(ks)}, expected different cut-offs", hint="try (1, 5, 10)")
    for k in ks:
        define_hit_at_k(k)


def check_owners(
    image_of_text: ArrayLike, *, num_images: int, num_texts: int | None
) -> NDArray[np.int64]:
    """Check which picture each text belongs to.

    Args:
        image_of_text: int (M,).
        num_images: Number of pictures N.
        num_texts: Number of texts M, or None to take it as given.

    Returns:
        int64 (M,), every value 0 to N - 1, every picture named at least once.

    Raises:
        DataError: When the array is not of whole numbers (M,), a text names no picture, or a
            picture has no text.
    """
    owner = np.asarray(image_of_text)
    if owner.ndim != 1 or not np.issubdtype(owner.dtype, np.integer):
        raise DataError(
            f"image_of_text has shape {owner.shape} and type {owner.dtype}, expected whole numbers "
            "(texts,)",
            hint="give the row of its picture for each text",
        )
    if num_texts is not None and len(owner) != num_texts:
        raise DataError(
            f"image_of_text has {len(owner)} entries, expected one for each of {num_texts} texts",
            hint="give the row of its picture for each text",
        )
    outside = np.flatnonzero((owner < 0) | (owner >= num_images))
    if len(outside):
        raise DataError(
            f"text {int(outside[0])} belongs to picture {int(owner[outside[0]])}, expected 0 to "
            f"{num_images - 1}",
            hint="rows of pictures count from 0",
        )
    without = np.setdiff1d(np.arange(num_images), owner)
    if len(without):
        raise DataError(
            f"{len(without)} of {num_images} pictures have no text, the first is {int(without[0])}",
            hint="leave out pictures without a text: no text can be right for them",
        )
    return owner.astype(np.int64)


def retrieval_truth(
    owner: NDArray[np.int64], num_images: int, image_groups: ArrayLike | None = None
) -> tuple[Truth, Truth]:
    """Truth of both directions.

    Args:
        owner: int64 (M,), the picture of each text.
        num_images: Number of pictures N.
        image_groups: int (N,); equal numbers are copies of each other.

    Returns:
        The truth of pictures as queries and of texts as queries.

    Raises:
        DataError: When the groups are not whole numbers (N,).
    """
    groups = np.arange(num_images) if image_groups is None else np.asarray(image_groups)
    if groups.shape != (num_images,) or not np.issubdtype(groups.dtype, np.integer):
        raise DataError(
            f"image_groups has shape {groups.shape} and type {groups.dtype}, expected whole "
            f"numbers ({num_images},)",
            hint="give one number a picture",
        )
    of_text = groups[owner].astype(np.int64)
    of_image = groups.astype(np.int64)
    return truth_from_groups(of_image, of_text), truth_from_groups(of_text, of_image)
