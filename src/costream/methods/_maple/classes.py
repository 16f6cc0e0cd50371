"""Classes of pictures: their texts, base and novel ones, few pictures of each, and how well told.

Shape letters: B pictures, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from costream.errors import DataError
from costream.evaluate.retrieval import describe_data
from costream.evaluate.systems import (
    describe_system,
    encode_captions,
    encode_media,
    needs_tokens,
    rescore_all,
    score_all,
    take,
)
from costream.records import Features, Report, Sample

if TYPE_CHECKING:
    from costream.data import DataSet
    from costream.encoders.dual import DualEncoder
    from costream.parts import System

TEMPLATE = ("a", "photo", "of", "a")
"""Words before a class name; the first ones hold the places of the prompts."""


def class_text(name: str, model: DualEncoder) -> str:
    """The text of a class; a model with prompts puts its prefix before it by itself.

    Args:
        name: Of the class.
        model: Reads the text.
    """
    words = TEMPLATE[len(model.config.text_preprocess.prefix_ids) :]
    return " ".join([*words, f"{name}."])


def class_of(sample: Sample, label: str) -> str:
    """The class of a picture.

    Args:
        sample: A picture.
        label: As of the method's settings.

    Raises:
        DataError: When it has no class, or several texts and no named field.
    """
    if label:
        found = str(sample.meta.get(label) or "")
        if not found:
            raise DataError(
                f"{sample.id!r} has no field {label!r}, expected the name of its class",
                hint=f"its fields are {', '.join(sample.meta) or 'none'}",
            )
        return found
    texts = set(sample.slots.get("text") or ())
    if len(texts) != 1:
        raise DataError(
            f"{sample.id!r} has {len(texts)} different texts, expected one, its class",
            hint="name the field with the class by label=, or learn from texts=captions",
        )
    return str(texts.pop())


def base_and_novel(classes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Base and novel classes, each sorted; about half of them each.

    A class is of the same side whatever other classes there are: by the hash of its name. So what
    was trained on is known for any other data of the same classes.

    Example:
        >>> base_and_novel(["dog", "cat", "cow", "hen"])
        (('cat', 'dog', 'hen'), ('cow',))
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for name in sorted(set(classes)):
        sides[hashlib.sha256(name.encode()).digest()[-1] % 2].append(name)
    return tuple(sides[0]), tuple(sides[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class FewShots:
    """Leaves a few pictures a class, and classes that are trained on, to train with.

    Attributes:
        classes: Those that are trained on.
        label: As of the method's settings.
        shots: Pictures a class; all when 0.
    """

    classes: tuple[str, ...]
    label: str
    shots: int

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
        """Samples to some of them, in their order."""
        names = np.array([class_of(sample, self.label) for sample in samples])
        chosen: list[int] = []
        for name in self.classes:
            rows = np.flatnonzero(names == name)
            chosen.extend(rng.permutation(rows)[: self.shots or len(rows)].tolist())
        return [samples[row] for row in sorted(chosen)]


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseToNovel:
    """Accuracy on base classes among themselves, on novel ones among themselves, and their mean.

    Attributes:
        label: As of the method's settings.
    """

    label: str = ""

    def run(self, system: System, data: DataSet) -> Report:
        """Classify every picture by the text that fits it best.

        Args:
            system: What to measure.
            data: Pictures with classes, at least two on each side.

        Returns:
            `base accuracy`, `novel accuracy` and `harmonic mean` in percent.

        Raises:
            DataError: When a picture has no class, or there are fewer than two on a side.
        """
        names = [class_of(sample, self.label) for sample in data.samples]
        base, novel = base_and_novel(names)
        if min(len(base), len(novel)) < 2:
            raise DataError(
                f"{data.name!r} has {len(base)} base and {len(novel)} novel classes, expected at "
                "least 2 of each",
                hint="give pictures of more classes",
            )
        media = encode_media(system.model, data.samples, tokens=needs_tokens(system))
        shares = [_accuracy(system, media, names, part) for part in (base, novel)]
        values = dict(zip(("base accuracy", "novel accuracy"), shares, strict=True))
        values["harmonic mean"] = harmonic_mean(*shares)
        return Report(
            metrics={"image_to_class": values},
            definitions={
                "base accuracy": f"Share of the pictures of the {len(base)} base classes whose "
                "class scores best among them, in percent; of equal scores, the share of the right "
                "one. Base classes are those whose names have an even sha256.",
                "novel accuracy": f"The same of the {len(novel)} other classes among themselves.",
                "harmonic mean": "Of both accuracies.",
            },
            data=describe_data(data, ()),
            model=describe_system(system),
        )


def _accuracy(
    system: System, media: Features, names: Sequence[str], classes: Sequence[str]
) -> float:
    model = system.model
    known = set(classes)
    rows = np.array([row for row, name in enumerate(names) if name in known])
    own = np.array([classes.index(names[row]) for row in rows])
    texts = encode_captions(
        model, [class_text(name, model) for name in classes], tokens=needs_tokens(system)
    )
    images = take(media, rows)
    scores = score_all(system.parts.scorer, images, texts)
    return accuracy(rescore_all(system.parts.rank, scores, images, texts), own)


def accuracy(scores_BC: np.ndarray, own_B: np.ndarray) -> float:
    """Share of rows in percent whose own column is the best; one of m equal best ones counts 1/m.

    Example:
        >>> accuracy(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([0, 1]))
        75.0
    """
    best = scores_BC == scores_BC.max(axis=1, keepdims=True)
    return 100.0 * float((best[np.arange(len(own_B)), own_B] / best.sum(axis=1)).mean())


def harmonic_mean(first: float, second: float) -> float:
    """2 a b / (a + b); 0 when both are.

    Example:
        >>> round(harmonic_mean(82.28, 75.14), 2)
        78.55
    """
    return 2 * first * second / (first + second) if first + second else 0.0
