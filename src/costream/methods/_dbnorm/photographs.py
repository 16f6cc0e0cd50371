"""Photographs with captions as vectors of the shipped model, kept between runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from costream.evaluate import ClaimOptions

Array = NDArray[np.float64]

_DEFAULT_MODEL = "cots-mini"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """Unit vectors of a data set and of banks from another split.

    Attributes:
        pictures: (N, D), what is measured on.
        captions: (M, D), the same number for every picture.
        picture_of: int (M,).
        bank_pictures: (B, D), of the training split.
        bank_captions: (C, D), of the training split.
        foreign_captions: (F, D), of another domain; None where there is none.
        facts: What was encoded, by which model.
    """

    pictures: Array
    captions: Array
    picture_of: NDArray[np.int64]
    bank_pictures: Array
    bank_captions: Array
    foreign_captions: Array | None
    facts: Mapping[str, str]


def encode_photographs(options: ClaimOptions) -> Encoded | None:
    """Encode the dev split and pools for banks; None where the data root has no `flickr8k`."""
    folder = options.folder("flickr8k")
    if folder is None or options.data_root is None:
        return None
    import costream
    from costream.encoders.storage import load

    measured, bank = 1000, 1500
    if options.fast:
        measured, bank = 12, 18
    data = costream.read_data(folder / "dev.jsonl")
    dev = data.samples[:measured]
    train = costream.read_data(folder / "train.jsonl").samples[:bank]
    foreign_file = options.data_root / "rsicd" / "train.jsonl"
    foreign: list[str] = []
    if foreign_file.is_file():
        samples = costream.read_data(foreign_file).samples
        foreign = sorted({text for sample in samples for text in sample.slots["text"]})
        foreign = [foreign[row] for row in _evenly(len(foreign), bank)]
    model = load(_DEFAULT_MODEL)
    fewest = min(len(sample.slots["text"]) for sample in dev)
    texts = [text for sample in dev for text in sample.slots["text"][:fewest]]
    bank_texts = [text for sample in train for text in sample.slots["text"][:2]]
    kept = _Kept(options.out, [model.space.weights_hash, *texts, *bank_texts, *foreign])
    options.say(f"vectors of {len(dev) + len(train):,} photographs and their captions")
    return Encoded(
        pictures=kept("pictures", lambda: model.encode_images([s.slots["image"] for s in dev])),
        captions=kept("captions", lambda: model.encode_texts(texts)),
        picture_of=np.repeat(np.arange(len(dev)), fewest),
        bank_pictures=kept(
            "bank pictures", lambda: model.encode_images([s.slots["image"] for s in train])
        ),
        bank_captions=kept("bank captions", lambda: model.encode_texts(bank_texts)),
        foreign_captions=kept("foreign", lambda: model.encode_texts(foreign)) if foreign else None,
        facts={
            "model": f"{_DEFAULT_MODEL}, weights {model.space.weights_hash}; it was trained on the "
            "training split, of which the banks are",
            "data": f"{folder.name} dev, {len(dev):,} pictures, {len(texts):,} captions, "
            f"hash {data.hash[:16]}",
            "banks": f"two thirds, drawn by seed, of {len(train):,} training pictures and "
            f"{len(bank_texts):,} training captions",
            "other domain": f"{len(foreign):,} captions of aerial views" if foreign else "none",
        },
    )


class _Kept:
    """Vectors in a folder, found again by what they were made of."""

    def __init__(self, folder: Path | None, made_of: Sequence[str]) -> None:
        self._folder = folder
        self._key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]

    def __call__(self, name: str, encode: Callable[[], NDArray[np.float32]]) -> Array:
        if self._folder is None:
            return encode().astype(np.float64)
        path = self._folder / "dbnorm_vectors" / f"{self._key} {name}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, encode())
        return np.asarray(np.load(path), dtype=np.float64)


def _evenly(number: int, count: int) -> list[int]:
    return [int(row) for row in np.linspace(0, number - 1, min(number, count)).round()]
