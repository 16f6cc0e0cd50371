"""Read Flickr8k and Flickr30k caption files: tokens, and the two tables in circulation."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from costream.data.dataset import DataSet
from costream.data.failures import printable
from costream.data.gather import (
    Gatherer,
    ReadOptions,
    find_picture_folder,
    picture_key,
    source_name,
)
from costream.errors import DataError

_TOKEN = re.compile(r"(?P<name>[^\t]+?)#(?P<number>\d+)\t(?P<caption>.*)")
_BAR = re.compile(r"(?P<name>[^|]+?)\|\s*(?P<number>\d+)\s*\|(?P<caption>.*)")
_COMMA_HEADER = "image,caption"
_BAR_HEADER = re.compile(r"image_name\s*\|\s*comment_number\s*\|\s*comment")


def is_flickr_tokens(first_line: str) -> bool:
    r"""Whether a text file is of one of the three forms, by its first line.

    Args:
        first_line: The line without its end.

    Returns:
        True for `a.jpg#0<tab>A dog`, and for the headers `image,caption` and
        `image_name| comment_number| comment`.

    Example:
        >>> is_flickr_tokens("a.jpg#0\tA dog"), is_flickr_tokens("A dog")
        (True, False)
    """
    return (
        _TOKEN.fullmatch(first_line) is not None
        or first_line.strip().lower() == _COMMA_HEADER
        or _BAR_HEADER.fullmatch(first_line.strip().lower()) is not None
    )


def read_flickr_tokens(path: Path, options: ReadOptions) -> DataSet:
    """Read a caption file of Flickr8k or Flickr30k.

    Args:
        path: The file, UTF-8.
        options: `images` and `allow_missing` apply.

    Returns:
        One sample a picture, captions in the order of the lines; ids are file names.

    Raises:
        DataError: A line has another form, or too many pictures are missing.
    """
    rows = list(_rows(path))
    folder = find_picture_folder(path, list(dict.fromkeys(name for _, name, _ in rows)), options)
    gatherer = Gatherer(name=source_name(path))
    for where, name, caption in rows:
        gatherer.add(name, folder / name, where=where, captions=caption)
    return gatherer.finish(options.allow_missing)


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    shown = printable(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown}: is not UTF-8 (byte {error.start}), expected a caption file in UTF-8",
            hint="convert it, for example with iconv",
        ) from error
    header = text.split("\n", 1)[0].strip().lower()
    if header == _COMMA_HEADER:
        yield from _comma_rows(text, shown)
        return
    pattern = _BAR if _BAR_HEADER.fullmatch(header) else _TOKEN
    # split("\n"), not splitlines(): captions may hold other line separators of Unicode.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or (number == 1 and pattern is _BAR):
            continue
        where = f"{shown} line {number}"
        match = pattern.fullmatch(line.rstrip("\r"))
        if match is None:
            form = "'a.jpg#0<tab>A dog'" if pattern is _TOKEN else "'a.jpg| 0| A dog'"
            raise DataError(
                f"{where}: got {line!r:.60}, expected a line like {form}", hint="repair the line"
            )
        yield where, picture_key(match["name"].strip(), where), match["caption"]


def _comma_rows(text: str, shown: str) -> Iterator[tuple[str, str, str]]:
    rows = csv.reader(text.splitlines(keepends=True))
    next(rows)
    for row in rows:
        where = f"{shown} line {rows.line_num}"
        if not row:
            continue
        if len(row) < 2:
            raise DataError(
                f"{where}: got {row!r:.60}, expected 'picture,caption'", hint="repair the line"
            )
        # Captions with commas are not always quoted in the files in circulation.
        yield where, picture_key(row[0].strip(), where), ",".join(row[1:])
