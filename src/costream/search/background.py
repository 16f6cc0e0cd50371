"""What chance gives a query: mean and spread of its scores, from the collection and from before it.

A model may ship a prior: mean and covariance of the vectors of ordinary pictures, which give the
mean and the spread of any query's scores, composed ones too, before a collection has any item. The
moments of the collection are added to it, so that it counts as `WEIGHT` items of the collection and
fades as that grows. How much it counts matters little: 3 to 1,000 told pictures that are there
from others equally well.

`benchmarks/relevance.py --fit` writes priors.

Shape letters: N vectors of the sample, D dimensions, L vectors of examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE: Final = 1024
"""Vectors of a collection that are enough to know what chance gives."""

FEWEST: Final = 20
"""Of fewer vectors no spread can be told, unless there is a prior."""

WEIGHT: Final = 30
"""Vectors of a collection that a prior counts as much as."""

PRIORS: Final = Path(__file__).parents[1] / "assets" / "relevance"
"""Folder of priors; their names are hashes of weights."""

# An example's own vector, as far as float16 tells.
_SAME = 0.9999


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prior:
    """Ordinary pictures, as a model sees them.

    Attributes:
        mean_D: Of their vectors, float32 (D,).
        covariance_DD: Of their vectors, float32 (D, D).
    """

    mean_D: NDArray[np.float32]
    covariance_DD: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """What chance gives a query.

    Attributes:
        mean: Of the scores of what does not match.
        spread: Their standard deviation.
        num_items: Items that are searched.
    """

    mean: float
    spread: float
    num_items: int


@cache
def read_prior(weights_hash: str) -> Prior | None:
    """The prior that is shipped for a model.

    Args:
        weights_hash: Of the model.

    Returns:
        None where there is none.
    """
    path = PRIORS / f"{weights_hash}.safetensors"
    if not weights_hash.isalnum() or not path.is_file():
        return None
    from safetensors.numpy import load_file

    held = load_file(path)
    return Prior(
        mean_D=held["mean"].astype(np.float32),
        covariance_DD=held["covariance"].astype(np.float32),
    )


def prior_from(pictures_ND: NDArray[np.float32]) -> Prior:
    """Mean and covariance of pictures.

    Args:
        pictures_ND: Their vectors, float32 (N, D), N at least 1.
    """
    mean_D = pictures_ND.mean(axis=0)
    centred_ND = pictures_ND - mean_D
    return Prior(mean_D=mean_D, covariance_DD=centred_ND.T @ centred_ND / len(pictures_ND))


def write_prior(prior: Prior, weights_hash: str) -> Path:
    """Put a prior where `read_prior` finds it.

    Args:
        prior: Of a model.
        weights_hash: Of the model.

    Returns:
        The file.
    """
    from safetensors.numpy import save_file

    path = PRIORS / f"{weights_hash}.safetensors"
    PRIORS.mkdir(parents=True, exist_ok=True)
    halves = {"mean": prior.mean_D, "covariance": prior.covariance_DD}
    save_file({name: array.astype(np.float16) for name, array in halves.items()}, path)
    return path


def without(
    sample_ND: NDArray[np.float32], examples_LD: NDArray[np.float32]
) -> NDArray[np.float32]:
    """A sample less the examples that a query was made of: they are no finds, so no chance either.

    Args:
        sample_ND: Vectors of the collection, float32 (N, D).
        examples_LD: Vectors of the examples, float32 (L, D).

    Example:
        >>> without(np.float32([[1, 0], [0, 1]]), np.float32([[0, 1]])).tolist()
        [[1.0, 0.0]]
    """
    if not len(sample_ND):
        return sample_ND
    is_other_N: NDArray[np.bool_] = (sample_ND @ examples_LD.T).max(axis=1, initial=-1) < _SAME
    return sample_ND[is_other_N]


def background_of(
    asked_D: NDArray[np.float32],
    sample_ND: NDArray[np.float32],
    num_items: int,
    prior: Prior | None = None,
) -> Background | None:
    """Compare a query with a sample of the collection, and with what was known before it.

    Args:
        asked_D: The query, float32 (D,) of length 1.
        sample_ND: Vectors of the collection, float32 (N, D).
        num_items: Items that are searched.
        prior: Of the model, of D dimensions.

    Returns:
        None where there are no items, or no prior and too few vectors, or all are the same.

    Example:
        >>> sample = np.float32([[0.3, 0], [0.1, 0]] * 10)
        >>> background = background_of(np.float32([1, 0]), sample, 20)
        >>> round(background.mean, 3), round(background.spread, 3)
        (0.2, 0.1)
    """
    if num_items < 1 or (prior is None and len(sample_ND) < FEWEST):
        return None
    scores_N = (sample_ND @ asked_D).astype(np.float64)
    weight, first, second = len(scores_N), float(scores_N.sum()), float((scores_N**2).sum())
    if prior is not None:
        mean = float(prior.mean_D @ asked_D)
        square = float(asked_D @ prior.covariance_DD @ asked_D) + mean**2
        weight, first, second = weight + WEIGHT, first + WEIGHT * mean, second + WEIGHT * square
    mean = first / weight
    variance = second / weight - mean**2
    # What is left of equal scores after rounding is no spread.
    if variance <= 1e-12:
        return None
    return Background(mean=mean, spread=math.sqrt(variance), num_items=num_items)


def best_of(count: int) -> float:
    """The best of many draws from a normal distribution, in standard deviations (median).

    Args:
        count: Draws, at least 1.

    Example:
        >>> round(best_of(1), 2), round(best_of(20), 2), round(best_of(10**6), 2)
        (0.0, 1.82, 4.83)
    """
    return NormalDist().inv_cdf(0.5 ** (1 / count))
