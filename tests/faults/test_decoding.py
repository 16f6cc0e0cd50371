"""Law: a broken, hostile or foreign file is refused with its name and the reason, never decoded
halfway, and costs neither memory nor time.
"""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from costream.data import Failure, open_image
from costream.errors import DataError


def photo(width: int = 160, height: int = 120) -> Image.Image:
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_zeros(width: int, height: int) -> bytes:
    """A valid PNG of black pixels, made row by row: small on disk whatever its size."""
    press = zlib.compressobj(9)
    row = b"\0" * (1 + width // 8)  # filter byte and 1-bit pixels
    body = b"".join(press.compress(row) for _ in range(height)) + press.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder that everybody may enter, and a user to whom permissions apply."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        uid = os.geteuid()
        if uid == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(uid)


def test_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.touch()
    with pytest.raises(DataError, match=r"a\.jpg: is empty \(0 bytes\), expected a picture"):
        open_image(file)
    with pytest.raises(DataError, match="is empty"):
        open_image(b"")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9])
def test_truncated_file(form: str, kept: float, tmp_path: Path) -> None:
    whole = encoded(photo(), form)
    file = tmp_path / f"cut.{form.lower()}"
    file.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=r"cut\..*expected a picture"):
        open_image(file)


def test_truncated_jpeg_in_draft_mode() -> None:
    whole = encoded(photo(800, 600), "JPEG", progressive=True)
    with pytest.raises(DataError, match="damaged or cut off"):
        open_image(whole[: len(whole) // 2], smallest_side=64)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_flipped_bytes_give_a_picture_or_a_data_error(form: str) -> None:
    whole = encoded(photo(40, 30), form)
    rng = np.random.default_rng(3)
    for _ in range(60):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 4):
            damaged[position] = rng.integers(0, 256)
        try:
            seen = open_image(bytes(damaged), max_pixels=1_000_000)
        except DataError:
            continue
        assert seen.mode == "RGB"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is a letter, not a picture\n", "is text beginning 'this is a letter"),
        ("Привет, мир! 你好".encode(), "is text beginning 'Привет"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript document"),
        (b"PK\x03\x04 and so on", "a ZIP archive"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "an MP4 video"),
        (b"\xff\xd8\xff\xe0 no more", "has a damaged header"),
        (b"GIF89a", "begins like a GIF picture but its header is damaged"),
        (bytes(range(128, 256)), "data of an unknown kind"),
    ],
)
def test_foreign_files_are_named_for_what_they_are(
    content: bytes, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg: ") as caught:
        open_image(file)
    assert words in str(caught.value)
    assert "expected a picture" in str(caught.value)


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    file = tmp_path / "really_png.jpg"
    file.write_bytes(encoded(photo(), "PNG"))
    assert open_image(file).size == (160, 120)


def test_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(png_of_zeros(20_000, 20_000))
    assert file.stat().st_size < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"bomb\.png: .*too large|bomb\.png: has 20000 x 20000"):
        open_image(file)
    assert time.perf_counter() - start < 1.0
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    )  # kB; it needs 1.2 GB


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_between_the_limits_of_pillow_ours_decides() -> None:
    with pytest.raises(DataError, match=r"10000 x 10000 pixels \(100,000,000\), .* 89,478,485"):
        open_image(png_of_zeros(10_000, 10_000))


def test_pixel_limit_is_exact() -> None:
    data = encoded(photo(10, 10), "PNG")
    assert open_image(data, max_pixels=100).size == (10, 10)
    for source in (data, Image.open(io.BytesIO(data))):
        with pytest.raises(DataError, match="expected at most 99"):
            open_image(source, max_pixels=99)


def test_no_pixels() -> None:
    gif = bytearray(encoded(photo(4, 4), "GIF"))
    gif[6:8] = b"\0\0"  # logical width
    png = bytearray(png_of_zeros(8, 8))
    png[16:20] = b"\0\0\0\0"
    png[29:33] = struct.pack(">I", zlib.crc32(bytes(png[12:29])))
    for data in (png, b"P6 0 7 255\n"):
        with pytest.raises(DataError, match="expected a picture"):
            open_image(bytes(data))
    with pytest.raises(DataError, match="has 0 x 7 pixels"):
        open_image(Image.new("RGB", (0, 7)))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage that is no TIFF header",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\x01",
        # one entry: orientation, type SHORT, value 99
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
        # orientation as text
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0x\0\0\0\0\0\0\0",
    ],
)
def test_corrupt_exif_is_no_reason_to_lose_the_picture(exif: bytes) -> None:
    for form in ("JPEG", "PNG", "WEBP"):
        body = exif if form == "JPEG" else exif.removeprefix(b"Exif\0\0")
        if body:
            assert open_image(encoded(photo(), form, exif=body)).size == (160, 120)


def test_absent_folder_pipe_and_odd_names(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match=r"absent\.jpg: is not there"):
        open_image(tmp_path / "absent.jpg")
    with pytest.raises(DataError, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(DataError, match=r"pipe\.jpg: is a pipe"):
        open_image(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match="cannot be opened"):
        open_image("nul\0letter.jpg")
    with pytest.raises(DataError, match="cannot be opened"):
        open_image(tmp_path / ("x" * 300))


def test_names_that_are_no_text_can_be_opened_and_printed(tmp_path: Path) -> None:
    good = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n.png"))
    good.write_bytes(encoded(photo(), "PNG"))
    assert open_image(good).size == (160, 120)
    good.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_image(good)
    text = str(caught.value)
    assert r"caf\xe9\n.png: is empty" in text
    text.encode("utf-8")  # strictly: it can be printed
    failure = Failure.of(good, caught.value)
    assert failure.path == str(good)
    assert failure.reason.startswith("is empty")


def test_no_permission() -> None:
    with unprivileged() as folder:
        file = folder / "a.png"
        file.write_bytes(encoded(photo(), "PNG"))
        file.chmod(0)
        with pytest.raises(DataError, match=r"a\.png: may not be read \(permission denied\)"):
            open_image(file)


def test_heic_without_its_codec_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from costream.data import open_image\n"
        "open_image(b'\\0\\0\\0\\x18ftypheic\\0\\0\\0\\0' + b'mif1heic' + bytes(64))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DataError" in done.stderr
    assert "pip install costream[heif]" in done.stderr


def test_heic_codec_is_registered_when_it_is_needed() -> None:
    heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    heif.from_pillow(photo()).save(stream, format="HEIF")
    code = (
        "import sys, io\n"
        "from costream.data import open_image\n"
        "assert 'pillow_heif' not in sys.modules\n"
        "print(open_image(sys.stdin.buffer.read()).size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=stream.getvalue(), capture_output=True, check=True
    )
    assert done.stdout.strip() == b"(160, 120)"


@pytest.mark.filterwarnings("error")
def test_warnings_turned_into_errors_stay_data_errors() -> None:
    with pytest.raises(DataError, match="expected a picture"):
        open_image(png_of_zeros(10_000, 10_000))
    exif = b"Exif\0\0II*\0\xff\xff\xff\x7f"
    with pytest.raises(DataError, match="Corrupt EXIF"):  # as asked: the warning is an error
        open_image(encoded(photo(), "JPEG", exif=exif))


def test_not_a_finite_number() -> None:
    image = Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32))
    with pytest.raises(DataError, match="not a finite number"):
        open_image(encoded(image, "TIFF"))
