"""Laws: the date is what Pillow wrote, in every form of file; nonsense is no date and no error."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from costream.data.taken import date_taken

NOON = datetime(2024, 6, 30, 12, tzinfo=UTC).timestamp()


def picture(form: str, taken: str | None, *, offset: str = "", tag: int = 0x9003) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Toy"
    exif[ExifTags.Base.DateTime] = "1999:01:01 00:00:00"  # when it was edited: of no interest
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    if taken is not None:
        inner[tag] = taken
    if offset:
        inner[{0x9003: 0x9011, 0x9004: 0x9012}[tag]] = offset
    if form == "TIFF":  # the block is one; Pillow does not write this part into pictures
        return exif.tobytes().removeprefix(b"Exif\0\0")
    out = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(out, form, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_date_taken_is_read_from_every_form(form: str) -> None:
    assert date_taken(picture(form, "2024:06:30 12:00:00")) == NOON
    assert date_taken(picture(form, None)) is None


def test_an_offset_from_utc_counts() -> None:
    assert date_taken(picture("JPEG", "2024:06:30 14:00:00", offset="+02:00")) == NOON
    assert date_taken(picture("JPEG", "2024:06:30 06:30:00", offset="-05:30")) == NOON
    assert date_taken(picture("JPEG", "2024:06:30 12:00:00", offset="   :  ")) == NOON


def test_the_date_of_scanning_is_second_choice() -> None:
    assert date_taken(picture("JPEG", "2024:06:30 12:00:00", tag=0x9004)) == NOON


@pytest.mark.parametrize("text", ["", "0000:00:00 00:00:00", "    :  :     :  :  ", "yesterday"])
def test_nonsense_is_no_date(text: str) -> None:
    assert date_taken(picture("JPEG", text)) is None


def test_a_damaged_block_is_no_error() -> None:
    whole = picture("TIFF", "2024:06:30 12:00:00")
    for place in range(len(whole)):
        date_taken(whole[:place])
        date_taken(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])


@given(st.binary(max_size=200))
def test_no_bytes_are_an_error(tail: bytes) -> None:
    for start in (b"Exif\0\0II*\0", b"MM\0*", b"eXIfII*\0\x08\0\0\0"):
        date_taken(start + tail)
