"""What happens to pictures and texts first, read from the files beside the weights."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from costream.encoders.preprocess import ImagePreprocess, TextPreprocess, load_tokenizer
from costream.encoders.pretrained.settings import Settings, read_optional, read_settings
from costream.errors import WeightsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PICTURES: Final = "preprocessor_config.json"
_HALF: Final = (0.5, 0.5, 0.5)
_RESAMPLING: Final[dict[object, Literal["bilinear", "bicubic"]]] = {2: "bilinear", 3: "bicubic"}
# Pillow's numbers; 1 / 255 is written with more or fewer digits.
_RESCALE_TOLERANCE: Final = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class _Defaults:
    """What a class of image processors does where its file is silent.

    Attributes:
        crops: Whether it scales the short side and cuts the centre, rather than scaling both.
        resample: Pillow's number of the filter.
        mean: Subtracted from each channel.
        std: Divides each channel.
    """

    crops: bool
    resample: int
    mean: tuple[float, float, float] = _HALF
    std: tuple[float, float, float] = _HALF


_CLIP: Final = _Defaults(
    crops=True,
    resample=3,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
# Beginning of the class's name in the file, or model type where the file names no class.
_DEFAULTS: Final = {
    "clip": _CLIP,
    "bit": _CLIP,
    "dinov2": _CLIP,
    "siglip": _Defaults(crops=False, resample=3),
    "vit": _Defaults(crops=False, resample=2),
}


def read_image_preprocess(directory: str | Path) -> ImagePreprocess:
    """What a Hugging Face directory says about its pictures.

    Args:
        directory: With `preprocessor_config.json`, or `processor_config.json` with the same inside.

    Raises:
        WeightsError: When the file is absent or damaged, or asks for what is not supported: a
            picture that is not square, values that are not scaled by 1/255, another filter than
            bilinear or bicubic.
    """
    directory = Path(directory)
    settings = _image_settings(directory)
    kind = read_settings(directory / "config.json").text("model_type", "")
    defaults = _defaults_of(settings, kind)
    settings.require("do_resize", True, True)
    settings.require("do_rescale", True, True)
    if abs(settings.number("rescale_factor", 1 / 255) - 1 / 255) > _RESCALE_TOLERANCE:
        raise settings.problem("rescale_factor", "1/255")
    resample = settings.raw("resample") if settings.has("resample") else defaults.resample
    if isinstance(resample, bool) or resample not in _RESAMPLING:
        raise settings.problem("resample", "2 (bilinear) or 3 (bicubic)")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if settings.flag("do_normalize", default=True):
        mean = settings.colours("image_mean") if settings.has("image_mean") else defaults.mean
        std = settings.colours("image_std") if settings.has("image_std") else defaults.std
    if min(std) <= 0:
        raise settings.problem("image_std", "three numbers above 0")
    size_px, fit, share = _fit(settings, crops=defaults.crops)
    return ImagePreprocess(
        size_px=size_px,
        fit=fit,
        crop_share=share,
        resample=_RESAMPLING[resample],
        mean=mean,
        std=std,
    )


def _image_settings(directory: Path) -> Settings:
    if not (directory / _PICTURES).is_file():
        both = read_optional(directory / "processor_config.json")
        if both.has("image_processor"):
            return both.inner("image_processor")
        raise WeightsError(
            f"{directory} has no {_PICTURES}",
            hint="copy it too: with other preprocessing the vectors mean something else",
        )
    return read_settings(directory / _PICTURES)


def _defaults_of(settings: Settings, kind: str) -> _Defaults:
    name = settings.text("image_processor_type", settings.text("feature_extractor_type", ""))
    for start, defaults in _DEFAULTS.items():
        if name.lower().startswith(start):
            return defaults
    if kind not in _DEFAULTS:
        raise WeightsError(
            f"{settings.path} is of a model of type {kind!r}, expected one of {sorted(_DEFAULTS)}",
            hint="models of this type are not supported",
        )
    return _DEFAULTS[kind]


def _fit(settings: Settings, *, crops: bool) -> tuple[int, Literal["crop_whole", "squash"], float]:
    """Side of the result, way of making it square, and share of the short side that is kept."""
    size = settings.raw("size")
    whole = size if isinstance(size, dict) else None
    side = _side(settings, "size")
    scales_short = "shortest_edge" in whole if whole is not None else crops
    if not settings.flag("do_center_crop", default=crops):
        if scales_short:
            raise settings.problem("do_center_crop", "true, or a size of height and width")
        return side, "squash", 1.0
    cut = _side(settings, "crop_size") if settings.has("crop_size") else side
    if cut > side or (cut < side and not scales_short):
        raise settings.problem("crop_size", f"at most the scaled short side, {side}")
    return cut, ("crop_whole" if scales_short else "squash"), cut / side


def _side(settings: Settings, key: str) -> int:
    """A size written as a number, as its shortest edge, or as equal height and width."""
    size = settings.raw(key)
    if isinstance(size, dict):
        if set(size) == {"shortest_edge"}:
            size = size["shortest_edge"]
        elif set(size) == {"height", "width"} and size["height"] == size["width"]:
            size = size["height"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise settings.problem(key, "a number, a shortest_edge, or equal height and width")
    return size


def read_tokenizer(
    directory: Path, *, context: int, pads_to_max: bool, pad_id: int
) -> tuple[Tokenizer, TextPreprocess]:
    """The tokenizer of a Hugging Face directory, and what else happens to its texts.

    Args:
        directory: With `tokenizer.json`; `tokenizer_config.json` says which token pads, the longest
            text, and whether letters are made small (SigLIP 2 says it there only).
        context: Most tokens that the tower takes.
        pads_to_max: Whether the tower was trained on texts padded to the context, without a mask.
        pad_id: Padding token where `tokenizer_config.json` names none.

    Raises:
        WeightsError: When a file is absent or damaged, or asks for padding on the left where
            padding matters.
    """
    tokenizer = _existing_tokenizer(directory)
    settings = read_optional(directory / "tokenizer_config.json")
    if pads_to_max:
        settings.require("padding_side", "right", "right")
    _canonicalise(tokenizer, settings)
    longest = settings.raw("model_max_length")
    stated = isinstance(longest, int | float) and not isinstance(longest, bool) and longest >= 1
    named = _token_id(tokenizer, settings, "pad_token")
    return tokenizer, TextPreprocess(
        max_tokens=min(context, int(longest)) if stated else context,
        pad_id=pad_id if named is None else named,
        pad_to_max=pads_to_max,
    )


def _existing_tokenizer(directory: Path) -> Tokenizer:
    others = ("spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")
    found = [name for name in others if (directory / name).is_file()]
    if found and not (directory / "tokenizer.json").is_file():
        load = f"AutoTokenizer.from_pretrained({str(directory)!r})"
        raise WeightsError(
            f"{directory} has a tokenizer as {', '.join(found)}, expected tokenizer.json",
            hint="pip install transformers sentencepiece protobuf and run: python -c "
            f'"from transformers import AutoTokenizer; {load}.save_pretrained({str(directory)!r})"',
        )
    return load_tokenizer(directory / "tokenizer.json")


def _token_id(tokenizer: Tokenizer, settings: Settings, key: str) -> int | None:
    """Id of a special token, written as a string or as an object with `content`."""
    token = settings.raw(key)
    content = token.get("content") if isinstance(token, dict) else token
    if content is None:
        return None
    found = tokenizer.token_to_id(content) if isinstance(content, str) else None
    if found is None:
        raise settings.problem(key, "a token of tokenizer.json")
    return found


def _canonicalise(tokenizer: Tokenizer, settings: Settings) -> None:
    """Add what `tokenizer_config.json` asks for and `tokenizer.json` does not do itself."""
    from tokenizers import Regex, normalizers

    now = tokenizer.normalizer
    shown = "Aa, b" if now is None else now.normalize_str("Aa, b")
    # The class with its own rules: small letters, no punctuation, single spaces.
    siglip = settings.text("tokenizer_class", "").startswith("SiglipTokenizer")
    small = siglip or settings.text("tokenizer_class", "").startswith("Siglip2Tokenizer")
    added: list[normalizers.Normalizer] = []
    if settings.flag("do_lower_case", default=small) and "A" in shown:
        added.append(normalizers.Lowercase())
    if siglip and "," in shown:
        added += [
            normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    if added:
        tokenizer.normalizer = normalizers.Sequence([*added, *([] if now is None else [now])])
