"""Text recognition: what is written is read, what is not written is not invented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from costream.data.ocr import has_ocr, read_text
from costream.errors import ConfigError, DataError

needs_tesseract = pytest.mark.skipif(not has_ocr(), reason="tesseract is not installed")


def page(text: str) -> Image.Image:
    image = Image.new("RGB", (600, 200), "white")
    ImageDraw.Draw(image).text((30, 60), text, fill="black", font=ImageFont.load_default(48))
    return image


@needs_tesseract
def test_what_is_written_is_read() -> None:
    assert read_text(page("Invoice 2041")) == "Invoice 2041"


@needs_tesseract
def test_a_picture_without_text_has_none() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    assert read_text(Image.fromarray(noise)) == ""
    assert read_text(Image.new("RGB", (1, 1))) == ""


@needs_tesseract
def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ConfigError, match="tesseract failed"):
        read_text(page("hello"), languages="xxx")


@needs_tesseract
def test_a_broken_picture_is_refused() -> None:
    with pytest.raises(DataError):
        read_text(b"no picture")


def test_without_the_program_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert not has_ocr()
    with pytest.raises(ConfigError, match="apt-get install tesseract-ocr"):
        read_text(page("hello"))


@needs_tesseract
def test_a_picture_is_found_by_the_words_in_it(
    tmp_path: Path, tiny_model_dir: Path, costream_program: Any
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2040, 2043):
        page(f"Invoice {number}").save(folder / f"scan-{number % 7}.png")
    words = ("index", "pictures", "--model", tiny_model_dir, "--ocr")
    costream_program.here(*words, cwd=tmp_path)
    for number in range(2040, 2043):
        found = costream_program.here("search", str(number), "--json", cwd=tmp_path).json
        first = found["results"][0]
        assert Path(first["path"]).name == f"scan-{number % 7}.png"
        assert first["reasons"]["named"] == 1


def test_indexing_with_text_recognition_needs_the_program(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, costream_program: Any
) -> None:
    page("hello").save(tmp_path / "a.png")
    monkeypatch.setenv("PATH", "")
    words = ("index", "a.png", "--model", tiny_model_dir, "--ocr")
    assert "tesseract" in costream_program.here(*words, cwd=tmp_path, code=2).stderr
    assert not (tmp_path / ".costream").exists()
