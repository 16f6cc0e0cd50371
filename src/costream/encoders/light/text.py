"""The text tower in numpy: BERT and its kin (mean or first token).

Shape letters: T tokens, D width, N texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from costream.encoders.light.layers import (
    LAYERS,
    Array,
    Weights,
    linear,
    normalise,
    transform,
    unit,
)
from costream.encoders.light.model_files import (
    Choices,
    covers,
    is_known,
    read_options,
    read_weights,
    space_of,
)
from costream.encoders.locate import (
    DEFAULT_MODEL,
    check_tokenizer,
    field_of,
    locate_model,
    read_description,
)
from costream.encoders.preprocess import TextPreprocess, check_list, load_tokenizer, tokenize
from costream.records import Space

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TABLE: Final = "text.token_embedding.weight"
# Texts that go through the tower at once: enough for the matrix products to be quick, and few
# enough for their results to stay in the processor's cache.
_TOGETHER: Final = 16
_TOWER: Final[Choices] = {
    "vocab_size": None,
    "context": None,
    "transformer": None,
    "causal": (False,),
    "embedding_norm": (True,),
    "final_norm": (False,),
    "pooling": ("mean", "first"),
    "eot_id": None,
}


class TextEncoder(Protocol):
    """What a search by words needs of a model."""

    @property
    def space(self) -> Space:
        """The space of the vectors."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Array:
        """Strings to unit vectors float32 (N, D)."""
        ...


class LightTextEncoder:
    """A text tower that needs numpy only.

    Args:
        description: The decoded `config.json` of a model.
        settings: What happens to a text first.
        weights: Text weights by name, float32 or as stored.
        tokenizer: The model's.
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        settings: TextPreprocess,
        weights: Weights,
        tokenizer: Tokenizer,
    ) -> None:
        self.space = space_of(description)
        self._tower: Mapping[str, Any] = description["config"]["text"]
        self._settings = settings
        self._weights = weights
        self._tokenizer = tokenizer

    def encode_texts(self, texts: Sequence[str]) -> Array:
        """Strings to unit vectors.

        Args:
            texts: Any number of strings.

        Returns:
            float32 (N, D), equal to the full model's to about 1e-5.

        Raises:
            DataError: When an item is not a string, or one string is given instead of a list.
        """
        check_list(texts, "texts")
        rows = [np.zeros((0, self.space.dim), dtype=np.float32)]
        rows += [
            self._encode(texts[first : first + _TOGETHER])
            for first in range(0, len(texts), _TOGETHER)
        ]
        return np.concatenate(rows)

    def _encode(self, texts: Sequence[str]) -> Array:
        ids_BT, mask_BT = tokenize(self._tokenizer, texts, self._settings)
        weights, layers = self._weights, self._tower["transformer"]
        lengths = mask_BT.sum(axis=1).tolist()
        x = weights[_TABLE][ids_BT].astype(np.float32)
        x = x + weights["text.position_embedding"][: ids_BT.shape[1]]
        x = normalise(x[mask_BT == 1], weights, "text.embedding_norm", float(layers["norm_eps"]))
        x = transform(x, weights, "text.transformer", layers, lengths=lengths)
        items = np.split(x, np.cumsum(lengths)[:-1])
        is_mean = self._tower["pooling"] == "mean"
        pooled = np.stack([item.mean(axis=0) if is_mean else item[0] for item in items])
        return np.stack([unit(row) for row in linear(pooled, weights, "text_projection")])


def _is_light(description: Mapping[str, Any], source: Path) -> bool:
    """Whether the text tower of a model is of the kind that is implemented here."""
    if not is_known(description, source):
        return False
    tower = field_of(description["config"], "text", source, dict)
    return covers(_TOWER, tower) and covers(LAYERS, field_of(tower, "transformer", source, dict))


def load_text_encoder(name_or_dir: str | Path = DEFAULT_MODEL) -> TextEncoder:
    """Load what a search by words needs, without torch where the model allows it.

    Args:
        name_or_dir: As for `costream.load`.

    Returns:
        An object with `space` and `encode_texts`.

    Raises:
        WeightsError: When there is no such model, or what a search by words reads of it is damaged.

    Example:
        >>> load_text_encoder("cots-mini").encode_texts(["a dog on a beach"]).shape
        (1, 256)
    """
    directory = locate_model(name_or_dir)
    description = read_description(directory, ours=False)
    source = directory / "config.json"
    if not _is_light(description, source):
        from costream.encoders.storage import load

        return load(directory)
    settings = read_options(TextPreprocess, description, "text_preprocess", source)
    stored = read_weights(directory, description, "text")
    check_tokenizer(directory, description)
    weights = {
        # Only the rows of a query's tokens are ever needed as float32.
        name: values if name == _TABLE else values.astype(np.float32)
        for name, values in stored.items()
    }
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    return LightTextEncoder(description, settings, weights, tokenizer)
