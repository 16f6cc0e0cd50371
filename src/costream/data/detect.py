"""Recognise what a source is by its content, and read it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from costream.data.dataset import DataSet
from costream.data.failures import printable
from costream.data.gather import ReadOptions
from costream.data.hf import is_hf, read_hf
from costream.data.sniff import HEAD_BYTES, describe
from costream.data.walk import IMAGE_SUFFIXES
from costream.errors import ConfigError, DataError

FORMATS = (
    "a folder of pictures, a JSONL manifest, COCO captions JSON, Karpathy's JSON, a Flickr token "
    "file, a WebDataset tar (or a folder of them), or a datasets.Dataset"
)

# Options besides allow_missing that mean something for each format.
_USES: Mapping[str, frozenset[str]] = {
    "folder": frozenset(),
    "webdataset": frozenset({"caption_field"}),
    "jsonl": frozenset({"split", "images", "image_field", "caption_field"}),
    "json list": frozenset({"split", "images", "image_field", "caption_field"}),
    "coco": frozenset({"images"}),
    "karpathy": frozenset({"split", "images"}),
    "flickr tokens": frozenset({"images"}),
    "datasets object": frozenset({"split", "image_field", "caption_field"}),
}

_MANIFEST_SUFFIXES = frozenset({".jsonl", ".json", ".txt", ".csv", ".token", ".tsv"})
_COMPRESSIONS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")


def read_data(
    source: object,
    *,
    split: str | None = None,
    images: str | os.PathLike[str] | None = None,
    image_field: str | None = None,
    caption_field: str | None = None,
    allow_missing: int = 0,
) -> DataSet:
    """Read captioned pictures (or pictures alone) from any of seven forms, told by content.

    Pictures are not decoded here; that they exist is checked. Empty captions are dropped and
    counted (`num_dropped_captions`); a record without any other caption, a picture that is
    absent and a damaged archive member count as missing.

    Args:
        source: Path of a folder of pictures (no captions); of a JSONL manifest or JSON list
            (`image` or `file_name`, and `captions`, `caption`, `text`, `sentences`, `sentence` or
            `title`; a string or a list; optional `translations`, `split`); of COCO captions JSON;
            of Karpathy's `dataset_*.json`; of a Flickr token file; of a WebDataset tar or a
            folder of tars; or a Hugging Face `datasets.Dataset`. A folder with exactly one
            manifest in it means that manifest.
        split: Which part to read, where a source has several; "all" for everything.
        images: Folder that picture names are relative to; default the manifest's, for COCO,
            Karpathy and Flickr files also the usual folders near it.
        image_field: Field or column that holds the picture, when it has an unusual name.
        caption_field: Field or column that holds the captions, when it has an unusual name.
        allow_missing: Most records that may be left out; they are listed in `missing`.

    Returns:
        The data set, one sample a picture, in the order of the source.

    Raises:
        DataError: The source is absent or of no known form, a record is malformed, or more
            records than allowed are missing.
        ConfigError: An option means nothing for the form that was found, or `allow_missing` is
            negative.

    Example:
        >>> read_data("no/such/manifest.jsonl")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        costream.errors.DataError: no/such/manifest.jsonl: is not there, expected ...
    """
    if allow_missing < 0:
        raise ConfigError(f"got allow_missing={allow_missing}, expected a number of at least 0")
    options = ReadOptions(
        split=split,
        images=None if images is None else Path(images),
        image_field=image_field,
        caption_field=caption_field,
        allow_missing=allow_missing,
    )
    if is_hf(source):
        _check_options(options, "datasets object")
        return read_hf(source, options)
    if not isinstance(source, str | os.PathLike):
        raise DataError(
            f"got a source of type {type(source).__name__}, expected the path of {FORMATS}",
            hint="pass a path or a datasets.Dataset",
        )
    return _read_path(Path(os.fsdecode(source)), options)


def _read_path(path: Path, options: ReadOptions) -> DataSet:
    try:
        if path.is_dir():
            return _read_folder(path, options)
        if path.is_file():
            return _read_file(path, options)
        exists = path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        culprit = getattr(error, "filename", None) or path
        raise DataError(
            f"{printable(culprit)}: cannot be read ({reason}), expected {FORMATS}",
            hint="check the path and that you may read it",
        ) from error
    reason = "is a pipe, socket or device" if exists else "is not there"
    raise DataError(f"{printable(path)}: {reason}, expected {FORMATS}", hint="check the path")


def _read_folder(path: Path, options: ReadOptions) -> DataSet:
    files = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    if any(file.name in {"dataset_info.json", "dataset_dict.json"} for file in files):
        raise DataError(
            f"{printable(path)}: is a data set saved by the datasets library, expected {FORMATS}",
            hint="pass the object: read_data(datasets.load_from_disk(folder))",
        )
    manifests = [file for file in files if _looks_like_manifest(file)]
    if len(manifests) == 1:
        return _read_file(manifests[0], options)
    if manifests:
        names = ", ".join(printable(file.name) for file in manifests[:5])
        raise DataError(
            f"{printable(path)}: holds {len(manifests)} manifests ({names}), expected to be told "
            "which one to read",
            hint="name the manifest, or the folder below that holds the pictures",
        )
    # Pictures are not opened to see whether they are archives: there may be millions.
    others = [file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]
    tars = [file for file in others if file.is_file() and _is_tar(file)]
    if tars:
        from costream.data.webdataset import read_webdataset

        _check_options(options, "webdataset")
        return read_webdataset(tars, path, options)
    from costream.data.folder import read_folder

    _check_options(options, "folder")
    return read_folder(path, options)


def _read_file(path: Path, options: ReadOptions) -> DataSet:
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if _is_tar(path):
        from costream.data.webdataset import read_webdataset

        _check_options(options, "webdataset")
        return read_webdataset([path], path, options)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] in (b"{", b"["):
        return _read_json(path, options)
    first_line = start.split(b"\n")[0].decode("utf-8", "replace").rstrip("\r")
    from costream.data.flickr_tokens import is_flickr_tokens, read_flickr_tokens

    if is_flickr_tokens(first_line):
        _check_options(options, "flickr tokens")
        return read_flickr_tokens(path, options)
    raise _unknown(path, head)


def _unknown(path: Path, head: bytes) -> DataError:
    kind = describe(head)
    hint = "name the data set, not one of its files"
    if kind.endswith("picture"):
        hint = "name the folder that holds the picture"
    elif "table" in kind:
        hint = "load it with the datasets library and pass the object"
    elif "archive" in kind or "compressed" in kind:
        hint = "unpack it first"
    return DataError(f"{printable(path)}: is {kind}, expected {FORMATS}", hint=hint)


def _read_json(path: Path, options: ReadOptions) -> DataSet:
    from costream.data.jsonl import parse_json, read_jsonl, read_records

    if _is_jsonl(path):
        _check_options(options, "jsonl")
        return read_jsonl(path, options)
    shown = printable(path)
    document = parse_json(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), shown)
    if isinstance(document, list):
        _check_options(options, "json list")
        records: Iterable[tuple[str, Any]] = (
            (f"{shown} record {number}", record) for number, record in enumerate(document)
        )
        return read_records(path, records, options)
    return _read_document(path, document, options)


def _read_document(path: Path, document: Mapping[str, Any], options: ReadOptions) -> DataSet:
    pictures = document.get("images")
    if isinstance(pictures, list) and "annotations" in document:
        from costream.data.coco import read_coco

        _check_options(options, "coco")
        return read_coco(path, document, options)
    if isinstance(pictures, list) and pictures and _has(pictures[0], "sentences"):
        from costream.data.karpathy import read_karpathy

        _check_options(options, "karpathy")
        return read_karpathy(path, document, options)
    keys = ", ".join(map(repr, list(document)[:8])) or "no keys"
    raise DataError(
        f"{printable(path)}: is a JSON object with {keys}; expected 'images' and 'annotations' "
        "(COCO captions), 'images' with 'sentences' (Karpathy), or one record a line (JSONL)",
        hint="name a captions file",
    )


def _has(record: object, key: str) -> bool:
    return isinstance(record, dict) and key in record


def _is_jsonl(path: Path) -> bool:
    """Whether the first line is a record by itself, so that the file is no single document."""
    from costream.data.jsonl import IMAGE_FIELDS, parse_json

    with path.open("rb") as stream:
        first = b""
        while not first.strip() and (line := stream.readline()):
            first = line.removeprefix(b"\xef\xbb\xbf")
        more = any(line.strip() for line in _some_lines(stream))
    try:
        value = parse_json(first, printable(path))
    except DataError:
        # A document spread over lines begins with a line that is no JSON; so does a damaged
        # manifest, whose name then says what it was meant to be.
        return path.suffix.lower() in {".jsonl", ".ndjson"}
    if not isinstance(value, dict):
        return False
    # One object alone may be either; only a picture's name makes it a record.
    named = any(field in value for field in IMAGE_FIELDS)
    return more or named or path.suffix.lower() in {".jsonl", ".ndjson"}


def _some_lines(stream: Iterable[bytes]) -> Iterable[bytes]:
    return (line for _, line in zip(range(100), stream, strict=False))


def _is_tar(path: Path) -> bool:
    import tarfile

    with path.open("rb") as stream:
        head = stream.read(512)
    if head[257:262] == b"ustar":
        return True
    try:
        # Old tars have no mark and compressed ones hide it; only for these is the header parsed.
        return (
            path.suffix.lower() == ".tar" or head.startswith(_COMPRESSIONS)
        ) and tarfile.is_tarfile(path)
    except (EOFError, OSError):  # is_tarfile opens the file again and reads on: a damaged archive
        return False


def _looks_like_manifest(path: Path) -> bool:
    """Whether a file in a folder is a captions file; reads its head only."""
    if path.suffix.lower() not in _MANIFEST_SUFFIXES or not path.is_file():
        return False
    from costream.data.captions import CAPTION_FIELDS
    from costream.data.flickr_tokens import is_flickr_tokens
    from costream.data.jsonl import IMAGE_FIELDS

    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:1] not in (b"{", b"["):
        return is_flickr_tokens(head.split(b"\n")[0].decode("utf-8", "replace").rstrip("\r"))

    def names_one_of(fields: tuple[str, ...]) -> bool:
        return any(f'"{field}"'.encode() in head for field in fields)

    return names_one_of(("images",)) or (
        names_one_of(IMAGE_FIELDS) and names_one_of(CAPTION_FIELDS)
    )


def _check_options(options: ReadOptions, form: str) -> None:
    given = {
        name
        for name in ("split", "images", "image_field", "caption_field")
        if getattr(options, name) is not None
    }
    useless = sorted(given - _USES[form])
    if useless:
        allowed = ", ".join([*sorted(_USES[form]), "allow_missing"])
        raise ConfigError(
            f"got {', '.join(f'{name}=' for name in useless)} for a source of the form {form!r}, "
            f"which takes only {allowed}",
            hint="leave it out",
        )
