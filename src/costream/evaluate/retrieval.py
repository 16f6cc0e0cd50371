"""Measure a two-stream model on captioned pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from costream.data.dataset import DataSet
from costream.data.decode import open_image
from costream.data.failures import Failure, printable
from costream.errors import ConfigError, DataError
from costream.evaluate.ranks import TieRule, check_tie_rule
from costream.evaluate.vectors import Names, define, evaluate_vectors
from costream.records import Report, Sample, Space

Progress = Callable[[int], None]

# Pictures handed to the model at once; small enough that one broken file costs little to find.
_BATCHES_AT_ONCE = 8


class RetrievalModel(Protocol):
    """What evaluation needs of a model: vectors of pictures and of texts, in one space."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def space(self) -> Space:
        """Where its vectors live."""

    def encode_images(
        self, images: Sequence[Any], *, batch_size: int = ..., progress: Progress | None = ...
    ) -> NDArray[np.float32]:
        """Pictures to float32 (N, D)."""

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int = ..., progress: Progress | None = ...
    ) -> NDArray[np.float32]:
        """Texts to float32 (N, D)."""


def evaluate(
    model: RetrievalModel,
    data: DataSet | str | Path,
    *,
    ks: Sequence[int] = (1, 5, 10),
    tie_rule: TieRule = "expected",
    batch_size: int = 32,
    allow_broken: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Measure retrieval in both directions.

    Each picture's captions are its truth; of several, any one counts for image-to-text. Pictures of
    the same `group` count for each other's captions. A text that occurs more than once is encoded
    once, so that all its copies score exactly alike; where they belong to different pictures they
    tie, and the tie rule applies.

    Args:
        model: What to measure.
        data: A data set, or the path of one in any form that `costream.data.read_data` takes.
        ks: Cut-offs of hit@k.
        tie_rule: What to assume of items with equal scores.
        batch_size: Pictures or texts a step.
        allow_broken: Pictures that may be unreadable before the evaluation is refused. Those that
            are left out are listed in the report, because the numbers are not of the same data any
            more.
        progress: Called with the number of pictures and captions done since the last call; sums to
            all pictures and captions of the data.

    Returns:
        Metrics in percent with their definitions, what was measured, and on what.

    Raises:
        ConfigError: When a cut-off, the tie rule, the batch size or `allow_broken` is not usable.
        DataError: When the data is absent, has no caption, or has more broken pictures than
            allowed.
        NumericalError: When a vector or score is not finite; names the picture or caption.

    Example:
        >>> import costream
        >>> report = costream.evaluate(  # doctest: +SKIP
        ...     costream.load("cots-mini"), "captions.jsonl"
        ... )
        >>> report.metrics["image_to_text"]["hit@1"]  # doctest: +SKIP
        39.0
    """
    check_tie_rule(tie_rule)
    definitions = define(ks, tie_rule)
    _check_counts(batch_size=batch_size, allow_broken=allow_broken)
    dataset = read_if_path(data)
    pictures = _Pictures(model, batch_size, allow_broken, progress)
    images = pictures.encode(_captioned(dataset))
    samples = pictures.samples
    captions = [sample.slots["text"] for sample in samples]
    texts = [text for each in captions for text in each]
    _, groups = np.unique([sample.group for sample in samples], return_inverse=True)
    metrics = evaluate_vectors(
        images,
        _encode_texts(model, texts, batch_size, progress),
        np.repeat(np.arange(len(samples)), [len(each) for each in captions]),
        ks=ks,
        tie_rule=tie_rule,
        image_groups=groups,
        names=Names(images=[printable(sample.id) for sample in samples], texts=texts),
    )
    return Report(
        metrics=metrics,
        definitions=definitions,
        data=describe_data(replace(dataset, samples=tuple(samples), _hash=[]), pictures.broken),
        model=describe_model(model),
        tie_rule=tie_rule,
    )


class _Pictures:
    """Encodes pictures, and keeps count of those that cannot be read."""

    def __init__(
        self, model: RetrievalModel, batch_size: int, allowed: int, progress: Progress | None
    ) -> None:
        self.samples: list[Sample] = []
        self.broken: list[Failure] = []
        self._model = model
        self._batch_size = batch_size
        self._allowed = allowed
        self._progress = progress

    def encode(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        """Vectors float32 (N, D) of the readable ones, which `samples` then lists."""
        step = self._batch_size * _BATCHES_AT_ONCE
        parts = []
        for start in range(0, len(samples), step):
            some = samples[start : start + step]
            good, vectors = self._encode_some(some)
            self.samples.extend(good)
            parts.append(vectors)
            if self._progress is not None:
                # Captions of pictures that were left out will not be encoded: count them here.
                lost = _count_captions(some) - _count_captions(good)
                self._progress(len(some) + lost)
        readable = [part for part in parts if len(part)]
        if not readable:
            raise DataError(
                f"none of {len(samples)} pictures could be read, the first is "
                f"{printable(self.broken[0].path)}: {self.broken[0].reason}",
                hint="repair the files",
            )
        return np.concatenate(readable)

    def _encode_some(
        self, samples: Sequence[Sample]
    ) -> tuple[Sequence[Sample], NDArray[np.float32]]:
        good = list(samples)
        try:
            vectors = self._run(good)
        except DataError:
            good = self._leave_out_broken(good)
            if len(good) == len(samples):
                raise
            vectors = self._run(good) if good else np.zeros((0, 0), dtype=np.float32)
        return good, vectors

    def _run(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        sources = [sample.slots["image"] for sample in samples]
        return self._model.encode_images(sources, batch_size=self._batch_size)

    def _leave_out_broken(self, samples: Sequence[Sample]) -> list[Sample]:
        good = []
        for sample in samples:
            try:
                open_image(sample.slots["image"])
            except DataError as error:
                self.broken.append(Failure.of(sample.id, error))
            else:
                good.append(sample)
        if len(self.broken) > self._allowed:
            worst = self.broken[0]
            raise DataError(
                f"got at least {len(self.broken)} broken pictures, expected at most "
                f"{self._allowed}; the first is {printable(worst.path)}: {worst.reason}",
                hint="repair or remove them, or say how many may be left out (allow_broken=, "
                "--allow-broken)",
            )
        return good


def _count_captions(samples: Sequence[Sample]) -> int:
    return sum(len(sample.slots["text"]) for sample in samples)


def _encode_texts(
    model: RetrievalModel, texts: Sequence[str], batch_size: int, progress: Progress | None
) -> NDArray[np.float32]:
    """Vectors float32 (M, D), each different text encoded once."""
    unique = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(unique)}
    vectors = model.encode_texts(unique, batch_size=batch_size, progress=progress)
    if progress is not None and len(texts) > len(unique):
        progress(len(texts) - len(unique))
    if len(vectors) != len(unique):
        raise DataError(
            f"the model gave {len(vectors)} vectors for {len(unique)} texts",
            hint="encode_texts must return one row a text",
        )
    return np.asarray(vectors)[[place[text] for text in texts]]


def read_if_path(data: DataSet | str | Path) -> DataSet:
    """The data set, read where it is a path."""
    if isinstance(data, DataSet):
        return data
    # The readers load more than a data set in memory needs.
    from costream.data import read_data

    return read_data(data)


def _captioned(dataset: DataSet) -> Sequence[Sample]:
    """The samples, all of which have a picture and at least one caption."""
    for sample in dataset.samples:
        if sample.slots.get("image") is None or not sample.slots.get("text"):
            lacks = "no caption" if sample.slots.get("image") is not None else "no picture"
            raise DataError(
                f"{printable(sample.id)} in {dataset.name!r} has {lacks}, expected a picture and "
                "at least one caption",
                hint="evaluation needs to know what is right: give captioned pictures",
            )
        if not all(text.strip() for text in sample.slots["text"]):
            raise DataError(
                f"{printable(sample.id)} in {dataset.name!r} has an empty caption, expected words",
                hint="remove the empty caption: nothing can be found by it",
            )
    if not dataset.samples:
        raise DataError(f"{dataset.name!r} has 0 pictures, expected at least 1", hint="add some")
    return dataset.samples


def describe_data(measured: DataSet, broken: Sequence[Failure]) -> dict[str, Any]:
    """What was measured on, for a report."""
    described: dict[str, Any] = {
        "hash": measured.hash,
        f"{measured.shows}s": measured.num_images,
        "captions": measured.num_captions,
    }
    for key, failures in (("broken", broken), ("missing", measured.missing)):
        if failures:
            described[key] = [
                {"path": printable(each.path), "reason": each.reason} for each in failures
            ]
    return described


def describe_model(model: RetrievalModel) -> dict[str, Any]:
    """What was measured, for a report."""
    # A model that asks in another one's space is still itself.
    space = getattr(model, "own_space", model.space)
    return {
        "name": model.name,
        "weights_hash": space.weights_hash,
        "preprocessing_hash": space.preprocessing_hash,
        "dim": space.dim,
    }


def _check_counts(*, batch_size: int, allow_broken: int) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("allow_broken", allow_broken, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(
                f"{name} is {value!r}, expected a whole number of at least {least}",
                hint="leave it out for the default",
            )
