"""Made-up vectors for the benchmarks: pictures, and texts that ask for them.

What they share with vectors of real models, because it decides how hard searching is:

- 3,000 topics of Zipf-distributed popularity, so that some regions are crowded.
- A spectrum that decays: the variance lies in about 64 of the dimensions (participation ratio; the
  model that comes with costream has 28 of 256). Without this all vectors of a topic would be
  equally far from each other, which no collection is.
- A gap: pictures lie in one cone and texts in another.
- A text is about one picture, but noisy, partly in directions in which pictures do not vary: the
  queries are out of distribution for an index that was made from pictures.

Every block of rows has its own seed, so a set is the same however it is made, and the first rows
of a larger set are those of a smaller one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 2**15
NUM_TOPICS = 3000
# Lengths, relative to a topic of about 1.
WITHIN_TOPIC = 0.7
GAP = 1.0
TEXT_NOISE = 0.7
TEXT_STRAY = 0.5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class World:
    """What all rows of a set have in common."""

    dim: int
    seed: int
    spectrum: NDArray[np.float32]
    topics: NDArray[np.float32]
    popularity: NDArray[np.float64]
    picture_cone: NDArray[np.float32]
    text_cone: NDArray[np.float32]


def make_world(dim: int = 512, seed: int = 0) -> World:
    """The topics and cones of a set."""
    rng = np.random.default_rng([seed, 0])
    scales = (np.arange(dim) + 10.0) ** -0.75
    scales /= np.sqrt((scales**2).sum())
    turned = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    spectrum = (scales[:, None] * turned).astype(np.float32)
    popularity = 1 / np.arange(1, NUM_TOPICS + 1)
    cones = rng.standard_normal((2, dim))
    cones = (GAP * cones / np.linalg.norm(cones, axis=1, keepdims=True)).astype(np.float32)
    return World(
        dim=dim,
        seed=seed,
        spectrum=spectrum,
        topics=_draw(rng, NUM_TOPICS, dim) @ spectrum,
        popularity=np.cumsum(popularity / popularity.sum()),
        picture_cone=cones[0],
        text_cone=cones[1],
    )


def pictures(world: World, count: int, *, first: int = 0) -> NDArray[np.float16]:
    """Unit vectors float16 (count, D) of pictures `first` and following, a multiple of a block."""
    out = np.empty((count, world.dim), dtype=np.float16)
    _fill(world, out, first)
    return out


def texts(world: World, count: int, *, among: int) -> NDArray[np.float32]:
    """Unit vectors float32 (count, D), each about one of the first `among` pictures."""
    rng = np.random.default_rng([world.seed, 2])
    chosen = rng.integers(among, size=count)
    meanings = np.empty((count, world.dim), dtype=np.float32)
    for block in np.unique(chosen // BLOCK_ROWS):
        mine = chosen // BLOCK_ROWS == block
        meanings[mine] = _meanings(world, int(block))[chosen[mine] % BLOCK_ROWS]
    noise = TEXT_NOISE * (_draw(rng, count, world.dim) @ world.spectrum)
    stray = TEXT_STRAY * _draw(rng, count, world.dim) * np.float32(world.dim**-0.5)
    return _unit(meanings + noise + stray + world.text_cone)


def _fill(world: World, out: NDArray[np.float16], first: int) -> None:
    if first % BLOCK_ROWS:
        raise ValueError(f"got first={first}, expected a multiple of {BLOCK_ROWS}")
    for start in range(0, len(out), BLOCK_ROWS):
        part = out[start : start + BLOCK_ROWS]
        meanings = _meanings(world, (first + start) // BLOCK_ROWS)
        part[:] = _unit(meanings[: len(part)] + world.picture_cone)


def _meanings(world: World, block: int) -> NDArray[np.float32]:
    """What the pictures of a block show, before they are put into a cone."""
    rng = np.random.default_rng([world.seed, 1, block])
    topics = np.searchsorted(world.popularity, rng.random(BLOCK_ROWS))
    varied = WITHIN_TOPIC * (_draw(rng, BLOCK_ROWS, world.dim) @ world.spectrum)
    return world.topics[np.minimum(topics, NUM_TOPICS - 1)] + varied


def _draw(rng: np.random.Generator, rows: int, dim: int) -> NDArray[np.float32]:
    return rng.standard_normal((rows, dim), dtype=np.float32)


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values / np.linalg.norm(values, axis=1, keepdims=True)
