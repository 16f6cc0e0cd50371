"""Words in pictures, read by the program `tesseract` where it is installed.

Made for screenshots, scans and slides. Of words in street photographs it finds few: on 25 pictures
of ICDAR 2015 it found 3 of 97 words. What it is not sure of is left out, for a picture without
text gives noise otherwise.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from typing import Final

from costream.data.decode import open_image
from costream.data.picture import PictureSource, picture_name
from costream.errors import ConfigError, DataError

# Least confidence of a word in percent: at 60, 15 photographs without text gave one word,
# without a limit 17.
_SURE: Final = 60.0
_LONGEST_SIDE_PX: Final = 4000
_TIMEOUT_S: Final = 60.0
# Sparse text: words wherever they are, in no order.
_LAYOUT: Final = "11"
_COLUMNS: Final = 12


def has_ocr() -> bool:
    """Whether `tesseract` is installed."""
    return shutil.which("tesseract") is not None


def check_ocr() -> str:
    """Refuse to go on without `tesseract`.

    Returns:
        Where the program is.

    Raises:
        ConfigError: It is not installed.
    """
    program = shutil.which("tesseract")
    if program is None:
        raise ConfigError(
            "reading text in pictures needs the program tesseract, which is not installed",
            hint="apt-get install tesseract-ocr, or brew install tesseract",
        )
    return program


def read_text(picture: PictureSource, *, languages: str = "eng") -> str:
    """The words in a picture.

    Args:
        picture: Path, encoded bytes, PIL image or stored picture.
        languages: What `tesseract --list-langs` has, joined by `+`.

    Returns:
        The words, blanks between them; empty when there are none.

    Raises:
        ConfigError: `tesseract` is not installed, or has no such language.
        DataError: The picture is absent or broken, or took longer than a minute.
    """
    program = check_ocr()
    image = open_image(picture)
    image.thumbnail((_LONGEST_SIDE_PX, _LONGEST_SIDE_PX))
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    command = [program, "stdin", "stdout", "-l", languages, "--psm", _LAYOUT, "tsv"]
    try:
        done = subprocess.run(  # noqa: S603  a list of words, no shell
            command,
            input=stream.getvalue(),
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            # Its threads slow each other down; who wants speed reads several pictures at once.
            env=os.environ | {"OMP_THREAD_LIMIT": "1"},
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"{picture_name(picture)}: reading its text took longer than {_TIMEOUT_S:.0f} s",
            hint="leave text recognition out for this picture",
        ) from error
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ConfigError(
            f"tesseract failed: {reason[0] if reason else f'exit code {done.returncode}'}",
            hint=f"is the language {languages!r} in `tesseract --list-langs`?",
        )
    return " ".join(_sure_words(done.stdout.decode("utf-8", "replace")))


def _sure_words(table: str) -> list[str]:
    """The words of tesseract's table that it is sure of."""
    words = []
    for line in table.splitlines()[1:]:
        cells = line.split("\t")
        if len(cells) == _COLUMNS and float(cells[10]) >= _SURE:
            word = cells[11].strip()
            if sum(letter.isalnum() for letter in word) > 1:
                words.append(word)
    return words
