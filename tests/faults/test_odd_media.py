"""Odd files get the vectors of plain ones; very long clips and huge headers stay cheap."""

from __future__ import annotations

import io
import json
import struct
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from clip_maker import clip_bytes, cuts, gallery, still
from costream.data import open_image, sample_frames
from costream.encoders.pretrained import load_pretrained
from costream.errors import WeightsError
from costream.index import Index, update_index
from costream.records import Space

# --- pictures ---


class SmallPictures:
    """A small real encoder: four by four pixels and a constant, unit length."""

    space = Space(encoder="small pictures", weights_hash="w", preprocessing_hash="p", dim=49)

    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        small = [open_image(image).resize((4, 4), Image.Resampling.BOX) for image in images]
        rows = [np.append(np.asarray(image, dtype=np.float64), 128.0) for image in small]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


PLAIN = gallery("crab")
GRAY = PLAIN.convert("L")


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # shown turned by 90 degrees to the right
    return encoded(PLAIN.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def clear() -> bytes:
    layer = PLAIN.convert("RGBA")
    layer.putalpha(Image.new("L", PLAIN.size, 255))
    return encoded(layer, "PNG")


def sixteen_bits() -> bytes:
    return encoded(Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 257), "PNG")


def pages(form: str) -> bytes:
    others = [gallery("bison"), gallery("airplane")]
    return encoded(PLAIN, form, save_all=True, append_images=others)


FEW = PLAIN.quantize(64)
ODD: dict[str, tuple[Callable[[], bytes], Image.Image]] = {
    "turned by EXIF": (turned, PLAIN),
    "with an alpha channel": (clear, PLAIN),
    "of 16 bits": (sixteen_bits, GRAY),
    "a palette": (lambda: encoded(FEW, "PNG"), FEW),
    "an animation": (lambda: encoded(FEW, "GIF", save_all=True, append_images=[FEW]), FEW),
    "an animated WebP": (
        lambda: encoded(
            PLAIN, "WEBP", save_all=True, append_images=[gallery("bison")], lossless=True
        ),
        PLAIN,
    ),
    "several pages": (lambda: pages("TIFF"), PLAIN),
    "inks": (lambda: encoded(PLAIN.convert("CMYK"), "TIFF"), PLAIN),
}


THIN = ((1, 1), (1, 300), (300, 1))


def test_odd_files_are_indexed_with_the_vectors_of_plain_ones(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for what, (make, plain) in ODD.items():
        (folder / f"{what}.jpg").write_bytes(make())  # whatever it is called
        plain.convert("RGB").save(folder / f"{what}.plain.png")
    for size in THIN:
        Image.new("RGB", size, "red").save(folder / f"{size}.jpg", "PNG")
        Image.new("RGB", (9, 9), "red").save(folder / f"{size}.plain.png")
    with Index.open(tmp_path / "index", create=True) as index:
        report = update_index(index, SmallPictures(), folder)
        assert report.failures == ()
        for path in folder.glob("*.jpg"):
            odd, plain = index.vectors([str(path), str(path.with_suffix(".plain.png"))])
            np.testing.assert_allclose(odd, plain, atol=2e-3, err_msg=path.stem)


# --- clips ---


def test_pictures_at_uneven_times_stand_for_the_time_they_are_shown() -> None:
    """Ten a second, then one every second and a half, as screen recorders write."""
    dense = still(gallery("airplane"), 2.0)
    sparse = cuts(["broccoli", "crab"], 0.2)
    times = [number / 10 for number in range(20)] + [2.0, 3.5, 5.0, 6.5]
    frames = list(sample_frames(clip_bytes([*dense, *sparse], times=times)))
    assert frames[0].t_start == 0
    assert all(a.t_end == b.t_start for a, b in pairwise(frames))
    for frame in frames:
        assert min(abs(frame.t - at) for at in times) < 0.002
        shown = max(number for number, at in enumerate(times) if at <= frame.t + 0.002)
        want = "airplane" if shown < 20 else "broccoli" if shown < 22 else "crab"
        gap = np.abs(np.asarray(frame.image, float) - np.asarray(gallery(want), float)).mean()
        assert gap < 25, (frame.t, want)


def test_a_clip_of_ten_hours_gets_bounded_moments_in_bounded_time() -> None:
    hours, every_s = 10, 60
    count = hours * 3600 // every_s
    two = [gallery("airplane"), gallery("crab")]
    clip = clip_bytes(
        [two[number // 100 % 2] for number in range(count)],
        "mkv",
        times=[number * every_s for number in range(count)],
    )
    started = time.monotonic()
    frames = list(sample_frames(clip))
    assert time.monotonic() - started < 30
    assert 300 <= len(frames) <= 600
    assert frames[-1].t_end == pytest.approx(hours * 3600, abs=2 * every_s)


# --- headers ---


def test_a_header_of_very_many_tensors_is_refused_in_bounded_time_and_words(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"weight.{number}": empty for number in range(50_000)}).encode()
    settings = {"model_type": "clip", "projection_dim": 4, "text_config": {}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    content = struct.pack("<Q", len(header)) + header
    (tmp_path / "model.safetensors").write_bytes(content)
    started = time.monotonic()
    with pytest.raises(WeightsError) as told:
        load_pretrained(tmp_path)
    assert time.monotonic() - started < 30
    assert len(str(told.value)) < 10_000
