"""The text tower in numpy: a search by words answers before torch would have been imported.

Only the kind of tower that our default model has (BERT: normalisation after each part, exact GELU,
mean or first token) is here; `load_text_encoder` hands any other model to the full implementation.
Equality with the full tower is tested.

Shape letters: T tokens, D width, H heads, N texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from costream.encoders.fingerprint import digest_arrays, is_text_weight, join_digests
from costream.encoders.locate import (
    FORMAT,
    check_tokenizer,
    field_of,
    locate_model,
    read_description,
)
from costream.encoders.preprocess import TextPreprocess, load_tokenizer, tokenize
from costream.errors import DataError, WeightsError
from costream.records import Space

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Array = NDArray[np.float32]


class TextEncoder(Protocol):
    """What a search by words needs of a model."""

    @property
    def space(self) -> Space:
        """The space of the vectors."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Array:
        """Strings to unit vectors float32 (N, D)."""
        ...


def erf(x: Array) -> Array:
    """The error function to 1.5e-7, 5e-7 in float32 (Abramowitz and Stegun 7.1.26).

    Example:
        >>> round(float(erf(np.float32([0.5]))[0]), 5)
        0.5205
    """
    t = 1.0 / (1.0 + 0.3275911 * np.abs(x))
    series = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    result: Array = (np.sign(x) * (1.0 - series * np.exp(-x * x))).astype(np.float32)
    return result


def _normalise(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    result: Array = (centred / np.sqrt(variance + eps) * weight + bias).astype(np.float32)
    return result


class LightTextEncoder:
    """A text tower that needs numpy only.

    Args:
        description: The decoded `config.json` of a model.
        weights: Text weights by name, float32.
        tokenizer: The model's.
    """

    def __init__(
        self, description: Mapping[str, Any], weights: Mapping[str, Array], tokenizer: Tokenizer
    ) -> None:
        self._weights = weights
        self._tokenizer = tokenizer
        self._text: Mapping[str, Any] = description["config"]["text"]
        self._settings = TextPreprocess(**description["config"]["text_preprocess"])
        self.space = Space(
            encoder=description["config"]["name"],
            weights_hash=description["weights_hash"],
            preprocessing_hash=description["settings_hash"],
            dim=description["config"]["dim"],
        )

    def encode_texts(self, texts: Sequence[str]) -> Array:
        """Strings to unit vectors.

        Args:
            texts: Any number of strings.

        Returns:
            float32 (N, D), equal to the full model's to about 1e-5.

        Raises:
            DataError: When an item is not a string, or one string is given instead of a list.
        """
        if isinstance(texts, str):
            raise DataError("got one str, expected a list of texts", hint="pass [x] instead of x")
        rows = [self._encode(text) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.space.dim), dtype=np.float32)

    def _encode(self, text: str) -> Array:
        ids, _ = tokenize(self._tokenizer, [text], self._settings)
        weights, eps = self._weights, float(self._text["transformer"]["norm_eps"])
        x = weights["text.token_embedding.weight"][ids[0]].astype(np.float32)
        x = x + weights["text.position_embedding"][: len(x)]
        x = self._norm(x, "text.embedding_norm", eps)
        for number in range(self._text["transformer"]["depth"]):
            layer = f"text.transformer.layers.{number}"
            mixed = self._attend(x, f"{layer}.attention")
            x = self._norm(x + mixed, f"{layer}.attention_norm", eps)
            inner = self._linear(x, f"{layer}.mlp_in")
            inner = 0.5 * inner * (1.0 + erf(inner * np.float32(0.5**0.5)))
            x = self._norm(x + self._linear(inner, f"{layer}.mlp_out"), f"{layer}.mlp_norm", eps)
        pooled = x.mean(axis=0) if self._text["pooling"] == "mean" else x[0]
        vector = self._linear(pooled, "text_projection")
        unit: Array = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
        return unit

    def _linear(self, x: Array, name: str) -> Array:
        result: Array = x @ self._weights[f"{name}.weight"].T
        bias = self._weights.get(f"{name}.bias")
        return result if bias is None else result + bias

    def _norm(self, x: Array, name: str, eps: float) -> Array:
        return _normalise(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], eps)

    def _attend(self, x: Array, name: str) -> Array:
        tokens, width = x.shape
        heads = int(self._text["transformer"]["heads"])
        qkv = self._linear(x, f"{name}.qkv").reshape(tokens, 3, heads, width // heads)
        query, key, value = qkv.transpose(1, 2, 0, 3)
        scores = query @ key.transpose(0, 2, 1) / np.float32((width // heads) ** 0.5)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares = scores / scores.sum(axis=-1, keepdims=True)
        mixed = (shares @ value).transpose(1, 0, 2).reshape(tokens, width)
        return self._linear(mixed, f"{name}.out")


# Every option of a text tower, with the values that are implemented here; None is any value. A
# tower with an option that is not listed, or with another value, is for the full implementation.
_TOWER: Final[Mapping[str, tuple[object, ...] | None]] = {
    "vocab_size": None,
    "context": None,
    "transformer": None,
    "causal": (False,),
    "embedding_norm": (True,),
    "final_norm": (False,),
    "pooling": ("mean", "first"),
    "eot_id": None,
}
_LAYERS: Final[Mapping[str, tuple[object, ...] | None]] = {
    "width": None,
    "depth": None,
    "heads": None,
    "mlp_width": None,
    "norm": ("post",),
    "activation": ("gelu",),
    "norm_eps": None,
    "dropout": None,
    "drop_path": None,
    "layer_scale": (False,),
}


def _covers(known: Mapping[str, tuple[object, ...] | None], found: Mapping[str, Any]) -> bool:
    return set(found) == set(known) and all(
        allowed is None or found[key] in allowed for key, allowed in known.items()
    )


def _is_light(description: Mapping[str, Any], source: Path) -> bool:
    """Whether the text tower of a description is of the kind that is implemented here."""
    config = field_of(description, "config", source, dict)
    text = field_of(config, "text", source, dict)
    layers = field_of(text, "transformer", source, dict)
    return "settings_hash" in description and _covers(_TOWER, text) and _covers(_LAYERS, layers)


def _read_text_weights(directory: Path, description: Mapping[str, Any]) -> dict[str, Array]:
    path = directory / "model.safetensors"
    try:
        with safe_open(path, framework="np") as file:
            stored = {name: file.get_tensor(name) for name in file.keys() if is_text_weight(name)}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"cannot read {path}: {error}", hint="copy the whole model directory again"
        ) from error
    found = digest_arrays((name, values.data) for name, values in stored.items())
    if found != field_of(description, "text_digest", directory / "config.json", str):
        raise WeightsError(
            f"the text weights in {path} do not match the checksum in config.json",
            hint="the file is damaged or of another model; copy the directory again",
        )
    table = "text.token_embedding.weight"
    return {
        # Only the rows of a query's tokens are ever needed as float32.
        name: values if name == table else values.astype(np.float32)
        for name, values in stored.items()
    }


def load_text_encoder(name_or_dir: str | Path = "cots-mini") -> TextEncoder:
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
    if description.get("format") != FORMAT or not _is_light(description, source):
        from costream.encoders.storage import load

        return load(directory)
    image, text, joined = (
        field_of(description, key, source, str)
        for key in ("image_digest", "text_digest", "weights_hash")
    )
    if join_digests(image, text) != joined:
        raise WeightsError(
            f"the checksums in {source} contradict each other",
            hint="the file is damaged; copy the model directory again",
        )
    check_tokenizer(directory, description)
    weights = _read_text_weights(directory, description)
    return LightTextEncoder(description, weights, load_tokenizer(directory / "tokenizer.json"))
