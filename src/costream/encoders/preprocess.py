"""What happens to a picture or a text before a tower sees it; part of a model's `Space`.

Shape letters: B items, H rows, W columns, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from costream.config import Range
from costream.errors import DataError, WeightsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from costream.data.picture import PictureSource

T = TypeVar("T")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_STRIP = 100  # times longer than wide


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePreprocess:
    """How a picture becomes pixels.

    Attributes:
        size_px: Side of the square that the tower gets.
        fit: `crop` scales the short side to `size_px / crop_share` and cuts the centre; `squash`
            scales both sides to `size_px`; `crop_whole` is `crop` on whole pixels, as published
            models were trained: the scaled long side and the place of the cut are rounded down.
        crop_share: Side of the cut as a share of the scaled short side, in (0, 1].
        resample: Filter of the scaling.
        mean: Subtracted from each channel in [0, 1].
        std: Then divides each channel.
    """

    size_px: Annotated[int, Range(1)]
    fit: Literal["crop", "crop_whole", "squash"] = "crop"
    crop_share: Annotated[float, Range(0, 1, low_included=False)] = 1.0
    resample: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def decoded_px(self) -> int:
        """Shortest side that a picture is decoded with: more would be scaled away."""
        return 2 * self.size_px

    def read(self, picture: PictureSource) -> NDArray[np.uint8]:
        """A picture of any kind to uint8 (3, size_px, size_px).

        Raises:
            DataError: When it is absent or broken (names it).
        """
        from costream.data.decode import open_image  # a search by words decodes nothing

        return self.pixels(open_image(picture, smallest_side=self.decoded_px))

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """An upright RGB picture to uint8 (3, size_px, size_px)."""
        filter_ = _RESAMPLING[self.resample]
        # Scaling the whole of a thin strip first would take gigabytes.
        is_strip = max(image.size) > _STRIP * min(image.size)
        if self.fit == "squash":
            fitted = image.resize((self.size_px, self.size_px), filter_)
        elif self.fit == "crop_whole" and not is_strip:
            fitted = self._cut_on_whole_pixels(image, filter_)
        else:
            # One resize from the box of the cut: the same picture as scaling and cutting, without
            # making the parts that would be thrown away.
            side = min(image.size) * self.crop_share
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (left, top, left + side, top + side)
            fitted = image.resize((self.size_px, self.size_px), filter_, box=box)
        return np.asarray(fitted, dtype=np.uint8).transpose(2, 0, 1)

    def _cut_on_whole_pixels(self, image: Image.Image, filter_: Image.Resampling) -> Image.Image:
        short = round(self.size_px / self.crop_share)
        width, height = (int(short * side / min(image.size)) for side in image.size)
        left, top = (width - self.size_px) // 2, (height - self.size_px) // 2
        scaled = image.resize((width, height), filter_)
        return scaled.crop((left, top, left + self.size_px, top + self.size_px))


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPreprocess:
    """How a text becomes token ids.

    Attributes:
        max_tokens: Longest sequence, special tokens included; longer texts are cut.
        pad_id: Token id that fills shorter texts.
        pad_to_max: Whether every text is padded to `max_tokens` (SigLIP) and no mask is used.
        prefix_ids: Token ids put before the words of every text, after an opening special token:
            an instruction, or places that a method fills with what it learned.
    """

    max_tokens: Annotated[int, Range(1)]
    pad_id: int = 0
    pad_to_max: bool = False
    prefix_ids: tuple[int, ...] = ()


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        WeightsError: When the file is absent or damaged.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise WeightsError(
            f"no tokenizer at {path}", hint="the model directory needs tokenizer.json"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception for every kind of damage
        raise WeightsError(
            f"cannot read the tokenizer {path}: {error}",
            hint="the file is damaged; copy the model directory again",
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], settings: TextPreprocess
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Texts to token ids and mask, both int64 (B, T), T the longest text's length.

    A text longer than `max_tokens` is cut and keeps its closing special token. What is no character
    (half of a surrogate pair, as file names that are not UTF-8 become) is read as U+FFFD.

    Args:
        tokenizer: Without padding and truncation, as `load_tokenizer` gives it.
        texts: Strings.
        settings: Longest sequence and padding.

    Returns:
        Token ids, padded on the right, and a mask that is 1 where a token is real (everywhere with
        `pad_to_max`).

    Raises:
        DataError: When an item is not a string.
    """
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"text {number} is a {type(text).__name__}, expected a str",
                hint="pass a list of strings",
            )
    rows: list[list[int]] = []
    readable = [_LONE_SURROGATE.sub("\ufffd", text) for text in texts]
    opening = opening_tokens(tokenizer) if settings.prefix_ids else 0
    for encoding in tokenizer.encode_batch(readable):
        ids = [*encoding.ids[:opening], *settings.prefix_ids, *encoding.ids[opening:]]
        if len(ids) > settings.max_tokens:
            closing = ids[-1:] if encoding.special_tokens_mask[-1] else []
            ids = ids[: settings.max_tokens - len(closing)] + closing
        rows.append(ids)
    longest = settings.max_tokens if settings.pad_to_max else max(map(len, rows), default=0)
    ids_BT = np.full((len(rows), longest), settings.pad_id, dtype=np.int64)
    mask_BT = np.zeros((len(rows), longest), dtype=np.int64)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row)] = row
        mask_BT[number, : len(row)] = 1
    if settings.pad_to_max:
        mask_BT[:] = 1
    return ids_BT, mask_BT


def opening_tokens(tokenizer: Tokenizer) -> int:
    """Special tokens that a tokenizer puts before every text: 1 for BERT and CLIP, 0 for SigLIP."""
    return int(tokenizer.encode("a").special_tokens_mask[0])


def check_list(items: Sequence[T], what: str) -> Sequence[T]:
    """Refuse one item where a list is expected: a string would be taken for its letters.

    Raises:
        DataError: When `items` is one string or has no length.
    """
    if isinstance(items, str | bytes) or not hasattr(items, "__len__"):
        raise DataError(
            f"got one {type(items).__name__}, expected a list of {what}",
            hint="pass [x] instead of x, or list(x)",
        )
    return items
