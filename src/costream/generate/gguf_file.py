"""Reads language models in GGUF files: settings, vocabulary and weights, whatever their precision.

The layout is that of the GGUF specification, versions 2 and 3, little-endian. `gguf`'s own reader
takes seconds for the vocabulary of a small model; only its conversion of weights is used.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from costream.errors import WeightsError

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_ALIGNMENT: Final = 32
_STRING: Final = 8
_ARRAY: Final = 9
# Type number to its letter for `struct`.
_NUMBERS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Tensor:
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GgufFile:
    """A language model in one file.

    Attributes:
        path: Where it is.
        settings: Name to number, text, or list of them.
        digest: sha256 of the file.
    """

    path: Path
    settings: dict[str, Any]
    digest: bytes
    _tensors: dict[str, _Tensor]
    _raw: NDArray[np.uint8]

    @property
    def names(self) -> list[str]:
        """Names of all weights."""
        return list(self._tensors)

    def weight(self, name: str) -> NDArray[np.float32]:
        """A weight in float32, its last dimension the one that is summed over.

        Raises:
            WeightsError: When there is none of this name, it is of an unknown precision, or the
                file is cut off.
        """
        if name not in self._tensors:
            raise WeightsError(
                f"{self.path} has no weight {name!r}", hint="it is of another kind of model"
            )
        try:
            from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
            from gguf.quants import dequantize
        except ImportError as error:
            raise WeightsError(
                "reading a language model needs the package gguf",
                hint="pip install 'costream[caption]'",
            ) from error
        tensor = self._tensors[name]
        try:
            kind = GGMLQuantizationType(tensor.kind)
            block, size = GGML_QUANT_SIZES[kind]
            rows = int(np.prod(tensor.shape[:-1]))
            width = tensor.shape[-1] // block * size
            raw = self._raw[tensor.offset : tensor.offset + rows * width]
            values = dequantize(raw.reshape(rows, width), kind)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise WeightsError(
                f"cannot read the weight {name!r} of {self.path}: {error}",
                hint="the file is damaged or of a precision that is not known",
            ) from error
        return np.array(values, dtype=np.float32).reshape(tensor.shape)


def read_gguf(path: Path) -> GgufFile:
    """Open a file; its weights are read when they are asked for.

    Args:
        path: Of the file.

    Returns:
        Settings and weights.

    Raises:
        WeightsError: When there is no such file, or it is no GGUF file, or damaged.
    """
    if not path.is_file():
        raise WeightsError(f"there is no language model {path}", hint="name a GGUF file")
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    reader = _Reader(raw.data)
    try:
        if bytes(raw[:4]) != _MAGIC:
            raise WeightsError(f"{path} is no GGUF file", hint="name a GGUF file")
        reader.place = 4
        version = reader.number("I")
        if version not in _VERSIONS:
            raise WeightsError(
                f"{path} is of GGUF version {version}, expected {_VERSIONS}",
                hint="convert it again, little-endian",
            )
        num_tensors, num_settings = reader.number("Q"), reader.number("Q")
        settings = {}
        for _ in range(num_settings):
            name = reader.text()
            settings[name] = reader.value(reader.number("I"))
        described = [_tensor(reader) for _ in range(num_tensors)]
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is damaged: {error}", hint="get it again") from error
    alignment = int(settings.get("general.alignment", _ALIGNMENT))
    start = -(-reader.place // alignment) * alignment
    tensors = {
        name: _Tensor(shape=each.shape, kind=each.kind, offset=start + each.offset)
        for name, each in described
    }
    digest = hashlib.sha256(raw.data).digest()
    return GgufFile(path=path, settings=settings, digest=digest, _tensors=tensors, _raw=raw)


def _tensor(reader: _Reader) -> tuple[str, _Tensor]:
    name = reader.text()
    sides = [reader.number("Q") for _ in range(reader.number("I"))]
    kind, offset = reader.number("I"), reader.number("Q")
    # The file names the side that lies together in memory first, numpy last.
    return name, _Tensor(shape=tuple(reversed(sides)), kind=kind, offset=offset)


class _Reader:
    def __init__(self, raw: memoryview) -> None:
        self.raw = raw
        self.place = 0

    def number(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self.raw, self.place)
        self.place += struct.calcsize(f"<{letter}")
        return value

    def text(self) -> str:
        length = self.number("Q")
        stop = self.place + length
        if stop > len(self.raw):
            raise IndexError("a text reaches beyond the end")
        text = bytes(self.raw[self.place : stop]).decode()
        self.place = stop
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        inner, count = self.number("I"), self.number("Q")
        if inner in (_STRING, _ARRAY):
            return [self.value(inner) for _ in range(count)]
        letter = _NUMBERS[inner]
        values = struct.unpack_from(f"<{count}{letter}", self.raw, self.place)
        self.place += struct.calcsize(f"<{count}{letter}")
        return list(values)
