"""Read WebDataset tars: members are read in place, nothing is ever extracted."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from costream.data.captions import CAPTION_FIELDS, clean_translations, find_field
from costream.data.dataset import DataSet
from costream.data.failures import printable
from costream.data.gather import Gatherer, ReadOptions, source_name
from costream.data.picture import PictureSource
from costream.data.walk import IMAGE_SUFFIXES
from costream.errors import DataError

MAX_TEXT_BYTES = 16 << 20
MAX_PICTURE_BYTES = 1 << 30
MAX_COMPRESSED_BYTES = 1 << 30
"""Most bytes that a compressed tar may expand to: it cannot be read in place."""

_TEXT_SUFFIXES = frozenset({".txt", ".json", ".cls"})


@dataclass(frozen=True, kw_only=True, slots=True)
class TarPicture:
    """A picture inside an uncompressed tar, read when it is needed.

    Attributes:
        tar: The archive.
        member: Name of the picture in it.
        offset_bytes: Where its bytes begin.
        size_bytes: How many there are.
    """

    tar: Path
    member: str
    offset_bytes: int
    size_bytes: int

    @property
    def name(self) -> str:
        """Archive and member, for messages."""
        return f"{self.tar}:{self.member}"

    def read(self) -> bytes:
        """Return the encoded picture.

        Returns:
            The bytes of the member.

        Raises:
            DataError: The archive is gone or has become shorter.
        """
        try:
            with self.tar.open("rb") as stream:
                stream.seek(self.offset_bytes)
                content = stream.read(self.size_bytes)
        except OSError as error:
            raise DataError(
                f"{printable(self.name)}: cannot be read ({error.strerror or error}), expected a "
                "picture",
                hint="check that the tar is still there",
            ) from error
        if len(content) != self.size_bytes:
            raise DataError(
                f"{printable(self.name)}: got {len(content)} bytes, expected {self.size_bytes}",
                hint="the tar was changed or cut off since it was opened",
            )
        return content


@dataclass(kw_only=True, slots=True)
class _Parts:
    where: str
    images: list[PictureSource] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    document: Any = None
    meta: dict[str, Any] = field(default_factory=dict)
    broken: bool = False


def read_webdataset(tars: Iterable[Path], name: Path, options: ReadOptions) -> DataSet:
    """Read one data set from one or several tars.

    Members with the same name up to the first dot of their last part are one sample: a picture
    (`.jpg`, `.png`, ...), captions (`.txt`, one caption; or the caption field of `.json`), and
    `meta` (other fields of `.json`; `.cls`). Other members are ignored.

    Args:
        tars: The archives, read in this order.
        name: What the data set is called after.
        options: `caption_field` and `allow_missing` apply. When no sample has a caption, the
            tars count as pictures only.

    Returns:
        One sample a key; pictures of uncompressed tars stay in the tar until they are opened.

    Raises:
        DataError: A tar is damaged beyond its first member, a key occurs in two places, or more
            samples than allowed are unusable. Links, devices and names that would leave the
            archive are unusable.
    """
    samples: dict[str, _Parts] = {}
    gatherer = Gatherer(name=source_name(name))
    for tar in tars:
        seen_before = frozenset(samples)
        for key, suffix, where, content in _members(tar, gatherer):
            if key in seen_before:
                raise DataError(
                    f"{where}: the key {key!r} occurs in an earlier tar too, expected unique keys",
                    hint="rename the samples of one tar",
                )
            _put(samples.setdefault(key, _Parts(where=where)), suffix, where, content, gatherer)
    gatherer.need_captions = any(
        parts.texts or _json_captions(parts, options) is not None for parts in samples.values()
    )
    for key, parts in samples.items():
        _add(gatherer, key, parts, options)
    return gatherer.finish(options.allow_missing)


def _members(tar: Path, gatherer: Gatherer) -> Iterator[tuple[str, str, str, PictureSource]]:
    """Yield key, suffix, place and content of every usable member; the rest become failures."""
    shown = printable(tar)
    try:
        with _open_stream(tar) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            in_place = not isinstance(stream, _Expanded)
            tar_bytes = tar.stat().st_size if in_place else None
            for member in archive:
                key, suffix = _key_and_suffix(member.name)
                if member.isdir():
                    continue
                where = f"{shown}:{printable(member.name)}"
                if refusal := _refusal(member, suffix, tar_bytes):
                    gatherer.fail(where, refusal)
                elif posixpath.basename(member.name).startswith("."):
                    continue  # "._a.jpg" and the like, which macOS adds
                elif suffix in IMAGE_SUFFIXES and in_place:
                    yield key, suffix, where, _in_place(tar, member)
                elif suffix in IMAGE_SUFFIXES | _TEXT_SUFFIXES:
                    content = archive.extractfile(member)
                    yield key, suffix, where, content.read() if content is not None else b""
            if cut := _cut_off(archive):
                gatherer.fail(shown, cut)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error) as error:
        gatherer.fail(shown, f"is damaged or cut off ({error}), expected a whole tar")
    except lzma.LZMAError as error:
        gatherer.fail(shown, f"is damaged or cut off ({error}), expected a whole tar")


def _in_place(tar: Path, member: tarfile.TarInfo) -> TarPicture:
    offset_bytes = member.offset_data
    return TarPicture(
        tar=tar, member=member.name, offset_bytes=offset_bytes, size_bytes=member.size
    )


class _Expanded(io.RawIOBase):
    """A compressed tar as it expands, refused when it expands too far.

    Everything counts: `tarfile` takes long names and extended headers into memory whole, and reads
    through members that nobody wants.
    """

    def __init__(self, stream: io.BufferedIOBase, shown: str) -> None:
        self._stream, self._shown = stream, shown

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is, backwards by starting again."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        self._check(self.tell() + max(size, 0))
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._check(offset)
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Where it stands."""
        return self._stream.tell()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()

    def _check(self, place: int) -> None:
        # What looks for one more block than there is has not read too much.
        if place > MAX_COMPRESSED_BYTES + tarfile.BLOCKSIZE:
            raise DataError(
                f"{self._shown}: expands to more than {MAX_COMPRESSED_BYTES >> 20} MB, expected an "
                "uncompressed tar, which is read in place",
                hint=f"decompress it first, for example with gunzip {self._shown}",
            )


def _open_stream(tar: Path) -> IO[bytes] | _Expanded:
    with tar.open("rb") as file:
        magic = file.read(2)
    shown = printable(tar)
    if magic == b"\x1f\x8b":
        return _Expanded(gzip.open(tar), shown)
    if magic == b"BZ":
        return _Expanded(bz2.open(tar), shown)
    if magic == b"\xfd7":
        return _Expanded(lzma.open(tar), shown)
    return tar.open("rb")


def _cut_off(archive: tarfile.TarFile) -> str:
    """Notice a tar that ends early: `tarfile` takes a damaged header for the end of the archive."""
    stream = archive.fileobj
    if stream is None:
        return ""
    # `offset` stands at the header that ended the reading; a whole tar has a block of zeros there.
    stream.seek(archive.offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if not block:
        return "has no end mark, expected a whole tar (it was cut off or never closed)"
    if block.strip(b"\0"):
        return f"has a damaged member header at byte {archive.offset}, expected a whole tar"
    return ""


def _key_and_suffix(name: str) -> tuple[str, str]:
    folder, base = posixpath.split(posixpath.normpath(name))
    stem, _, rest = base.partition(".")
    return posixpath.join(folder, stem), "." + rest.rpartition(".")[2].lower()


def _refusal(member: tarfile.TarInfo, suffix: str, tar_bytes: int | None) -> str:
    parts = member.name.replace("\\", "/").split("/")
    if member.name.startswith(("/", "\\")) or ".." in parts or "\0" in member.name:
        return "has a name that leaves the archive, expected a relative name"
    if not member.isreg() or member.issparse():
        return "is a link, device or sparse file, expected a plain file"
    limit_bytes = MAX_PICTURE_BYTES if suffix in IMAGE_SUFFIXES else MAX_TEXT_BYTES
    if suffix in _TEXT_SUFFIXES | IMAGE_SUFFIXES and member.size > limit_bytes:
        return f"has {member.size:,} bytes, expected at most {limit_bytes:,}"
    if tar_bytes is not None and member.offset_data + member.size > tar_bytes:
        return f"is cut off: it has {member.size:,} bytes and the tar ends before them"
    return ""


def _put(
    parts: _Parts, suffix: str, where: str, content: PictureSource, gatherer: Gatherer
) -> None:
    if suffix in IMAGE_SUFFIXES:
        parts.images.append(content)
        return
    if not isinstance(content, bytes):
        raise TypeError("text members are bytes")
    try:
        text = content.decode("utf-8-sig")
        if suffix == ".txt":
            parts.texts.append(text)
        elif suffix == ".cls":
            parts.meta["cls"] = text.strip()
        else:
            parts.document = json.loads(text)
    except (ValueError, RecursionError) as error:
        parts.broken = True
        gatherer.fail(where, f"is not {'JSON' if suffix == '.json' else 'text'} ({error})")


def _json_captions(parts: _Parts, options: ReadOptions) -> str | None:
    if not isinstance(parts.document, dict):
        return None
    return find_field(parts.document, options.caption_field, CAPTION_FIELDS)


def _add(gatherer: Gatherer, key: str, parts: _Parts, options: ReadOptions) -> None:
    if parts.broken:
        return  # told already
    if len(parts.images) != 1:
        gatherer.fail(parts.where, f"has {len(parts.images)} pictures, expected one a key")
        return
    captions: Any = parts.texts
    document = dict(parts.document) if isinstance(parts.document, dict) else {}
    caption_field = _json_captions(parts, options)
    if caption_field is not None and (not parts.texts or options.caption_field is not None):
        captions = document.pop(caption_field)
    translations = clean_translations(document.pop("translations", None), parts.where)
    gatherer.add(
        key,
        parts.images[0],
        where=parts.where,
        captions=captions,
        translations=translations,
        meta={**document, **parts.meta},
    )
