"""Measure a model with the scorer and rank steps of its methods.

Shape letters: Q queries, G items of the gallery, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costream.data.dataset import DataSet, are_videos, picture_of
from costream.data.failures import printable
from costream.data.video import even_frames
from costream.errors import DataError
from costream.evaluate.ranks import TieRule, check_tie_rule
from costream.evaluate.retrieval import Progress, describe_data, describe_model, read_if_path
from costream.evaluate.vectors import Names, define, evaluate_scores
from costream.records import Features, Report, Sample
from costream.scoring.protocol import RankContext

if TYPE_CHECKING:
    from costream.encoders.dual import DualEncoder
    from costream.parts import System
    from costream.scoring.protocol import RankStep, Scorer

# Pairs scored at once; a late interaction holds some hundred numbers for each.
_PAIRS_AT_ONCE = 2**14
_VIDEOS_AT_ONCE = 8


def evaluate_system(
    system: System,
    data: DataSet | str | Path,
    *,
    ks: Sequence[int] = (1, 5, 10),
    tie_rule: TieRule = "expected",
    batch_size: int = 32,
    frames: int = 12,
    progress: Progress | None = None,
) -> Report:
    """Measure retrieval in both directions as `evaluate`, by a system's own scores.

    Where samples have a `video` (a clip, or its frames), videos stand in for pictures. Unless the
    system says otherwise, that of a video is the mean of its frames' unit vectors, made unit length
    (COTS' text-to-video retrieval).

    Args:
        system: What to measure.
        data: As of `evaluate`; every picture must be readable.
        ks: Cut-offs of hit@k.
        tie_rule: What to assume of items with equal scores.
        batch_size: Pictures or texts a step.
        frames: Taken of each clip, spread evenly over it.
        progress: As of `evaluate`.

    Returns:
        As of `evaluate`; what is measured also tells the methods.

    Raises:
        ConfigError: When a cut-off, the tie rule, the batch size or `frames` is not usable.
        DataError: When the data is absent, a sample has no caption, or a picture or video is
            broken.
        NumericalError: When a score is not finite.
    """
    check_tie_rule(tie_rule)
    definitions = define(ks, tie_rule)
    dataset = read_if_path(data)
    whole, is_of_videos = needs_tokens(system), dataset.shows == "video"
    seen = encode_media(
        system.model,
        dataset.samples,
        tokens=whole,
        batch_size=batch_size,
        frames=frames,
        progress=progress,
    )
    texts = [text for sample in dataset.samples for text in _captions(sample, dataset.name)]
    unique = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(unique)}
    columns = np.array([place[text] for text in texts])
    read = encode_captions(
        system.model, unique, tokens=whole, batch_size=batch_size, progress=progress
    )
    counts = [len(sample.slots["text"]) for sample in dataset.samples]
    _, groups = np.unique([sample.group for sample in dataset.samples], return_inverse=True)
    metrics = evaluate_scores(
        SystemScores(system, seen, read, columns=columns),
        SystemScores(system, read, seen, rows=columns),
        np.repeat(np.arange(len(counts)), counts),
        ks=ks,
        tie_rule=tie_rule,
        image_groups=groups,
        names=Names(images=[printable(sample.id) for sample in dataset.samples], texts=texts),
    )
    return Report(
        metrics=metrics,
        definitions=definitions,
        data=describe_data(dataset, ()) | ({"frames": frames} if is_of_videos else {}),
        model=describe_system(system),
        tie_rule=tie_rule,
    )


def describe_system(system: System) -> dict[str, Any]:
    """What was measured: the model, its methods, and how it scores."""
    parts = system.parts
    described = describe_model(system.model)
    methods = (*system.model.config.methods, *system.beside)
    if methods:
        described["methods"] = list(methods)
    if parts.scorer is not None:
        described["scorer"] = type(parts.scorer).__name__
    if parts.rank:
        described["rank"] = [type(step).__name__ for step in parts.rank]
    return described


def needs_tokens(system: System) -> bool:
    """Whether a system's scores need more than the vectors of the whole."""
    return system.parts.scorer is not None and system.parts.scorer.needs == "tokens"


def encode_captions(
    model: DualEncoder,
    texts: Sequence[str],
    *,
    tokens: bool = True,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Features:
    """Features of texts, with those of their tokens or without."""
    if tokens:
        return model.text_features(texts, batch_size=batch_size, progress=progress)
    import torch

    vectors = model.encode_texts(texts, batch_size=batch_size, progress=progress)
    return Features(pooled=torch.from_numpy(vectors), modality="text")


def encode_media(
    model: DualEncoder,
    samples: Sequence[Sample],
    *,
    tokens: bool = True,
    batch_size: int = 32,
    frames: int = 12,
    progress: Callable[[int], None] | None = None,
) -> Features:
    """Features of the pictures, or videos, of samples; with those of patches or without.

    Raises:
        ConfigError: When `frames`, which are taken of each video, is below 1.
        DataError: When there are no samples, one has neither a picture nor a video, or one of these
            is broken.
    """
    if are_videos(samples):
        return _encode_videos(model, samples, frames, progress)
    if not samples:
        raise DataError("the data set has no picture, expected one", hint="give captioned pictures")
    images = [picture_of(sample) for sample in samples]
    if tokens:
        return model.image_features(images, batch_size=batch_size, progress=progress)
    import torch

    vectors = model.encode_images(images, batch_size=batch_size, progress=progress)
    return Features(pooled=torch.from_numpy(vectors), modality="image")


def _encode_videos(
    model: DualEncoder,
    samples: Sequence[Sample],
    frames: int,
    progress: Callable[[int], None] | None,
) -> Features:
    """Features of videos, a few of which are decoded at a time; all frames where they are given."""
    from costream.encoders.in_batches import in_batches, join_features

    side = model.config.image_preprocess.decoded_px

    def frames_of(video: Any) -> Sequence[Any]:
        if isinstance(video, list | tuple):
            return video
        return even_frames(video, frames, smallest_side=side)

    parts = [
        model.video_features([frames_of(one.slots["video"]) for one in some], progress=progress)
        for some in in_batches(samples, _VIDEOS_AT_ONCE)
    ]
    return join_features(parts)


class SystemScores:
    """Scores of a system, a few queries at a time.

    Args:
        system: Its scorer and rank steps, or the dot product.
        queries: Features of Q queries.
        items: Features of G items.
        rows: Which queries are asked, with repetitions; all when None.
        columns: Which items are in the gallery, with repetitions; all when None.
    """

    def __init__(
        self,
        system: System,
        queries: Features,
        items: Features,
        *,
        rows: NDArray[np.int64] | None = None,
        columns: NDArray[np.int64] | None = None,
    ) -> None:
        self._scorer, self._steps = system.parts.scorer, system.parts.rank
        self._queries, self._items = queries, items
        self._rows = np.arange(len(queries.pooled)) if rows is None else rows
        self._columns = np.arange(len(items.pooled)) if columns is None else columns

    @property
    def num_queries(self) -> int:
        """Number of rows."""
        return len(self._rows)

    @property
    def num_items(self) -> int:
        """Number of columns."""
        return len(self._columns)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Scores float32 (stop - start, G) of the queries from `start` up to `stop`."""
        wanted, place = np.unique(self._rows[start:stop], return_inverse=True)
        queries = take(self._queries, wanted)
        scores = score_all(self._scorer, queries, self._items)
        return rescore_all(self._steps, scores, queries, self._items)[place][:, self._columns]


def score_all(scorer: Scorer | None, queries: Features, items: Features) -> NDArray[np.float32]:
    """Scores float32 (Q, G) of all pairs, in blocks; dot products of pooled vectors by default."""
    if scorer is None:
        # Exact sums: a pair's score must not depend on its block.
        from costream.evaluate.scores import DotScores

        dots = DotScores(queries.pooled.numpy(), items.pooled.numpy())
        return dots.rows(0, dots.num_queries)
    at_once = max(1, int(_PAIRS_AT_ONCE**0.5))
    rows = []
    for first in range(0, len(queries.pooled), at_once):
        some = take(queries, np.arange(first, min(first + at_once, len(queries.pooled))))
        blocks = [
            scorer.score(some, take(items, np.arange(at, min(at + at_once, len(items.pooled)))))
            for at in range(0, len(items.pooled), at_once)
        ]
        rows.append(np.concatenate([block.float().numpy() for block in blocks], axis=1))
    return np.concatenate(rows)


def rescore_all(
    steps: Sequence[RankStep], scores: NDArray[np.float32], queries: Features, items: Features
) -> NDArray[np.float32]:
    """Scores after all rank steps, one after the other."""
    context = RankContext(
        queries=queries.pooled.numpy(),
        items=items.pooled.numpy(),
        modality=queries.modality,
        item_modality=items.modality,
    )
    for step in steps:
        scores = step.rescore(scores, context)
    return scores


def take(features: Features, rows: NDArray[np.int64]) -> Features:
    """Features of some items, in this order."""
    return replace(
        features,
        pooled=features.pooled[rows],
        tokens=None if features.tokens is None else features.tokens[rows],
        mask=None if features.mask is None else features.mask[rows],
        extras={name: value[rows] for name, value in features.extras.items()},
    )


def _captions(sample: Sample, name: str) -> tuple[str, ...]:
    texts: tuple[str, ...] = sample.slots.get("text") or ()
    if not texts:
        raise DataError(
            f"{printable(sample.id)} in {name!r} has no caption, expected at least one",
            hint="evaluation needs to know what is right: give captioned pictures",
        )
    return texts
