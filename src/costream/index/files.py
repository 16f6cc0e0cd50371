"""Files as an index sees them: where they are, whether they changed, what they hold."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from costream.data.failures import printable
from costream.data.sniff import HEAD_BYTES, modality
from costream.errors import DataError
from costream.index.records import Modality

# More than any picture that the decoder would accept; keeps a disk image out of the memory.
MAX_BYTES = 2**30
# A file modified this shortly before it was read may change again without its time changing: file
# systems count in steps of up to 2 s.
_SETTLED_NS = 2_000_000_000
_TRIES = 3
_CHUNK_BYTES = 1 << 20
_MODALITIES: Mapping[str, Modality] = {"video": "video", "audio": "audio"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """What tells without reading that a file is unchanged.

    Attributes:
        size: Bytes.
        mtime_ns: When it was modified.
    """

    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """A file read at one moment.

    Attributes:
        path: Where it is.
        modality: What it is, by its first bytes; a picture if they say nothing.
        encoded: Its bytes; none of a clip, which may be larger than the memory.
        content_hash: sha256 (hex) of them.
        stamp: Of the moment of reading; its `mtime_ns` is 0 when the file is too fresh for its
            time to vouch for it.
        modified_ns: When it was modified, fresh or not.
    """

    path: str
    modality: Modality
    encoded: bytes
    content_hash: str
    stamp: Stamp
    modified_ns: int

    @property
    def name(self) -> str:
        """What messages call it."""
        return printable(self.path)


def stamp(path: str) -> Stamp:
    """Look at a file without reading it.

    Raises:
        DataError: It is not there or may not be seen.
    """
    try:
        status = os.stat(path)  # noqa: PTH116  undecodable names are plain strings here
    except OSError as error:
        raise _unreadable(path, error) from error
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        # A pipe would block for ever on open, a device might never end.
        raise DataError(
            f"{printable(path)}: is a pipe, socket or device, expected a file",
            hint="remove it, or leave it out",
        )
    return Stamp(size=status.st_size, mtime_ns=status.st_mtime_ns)


def read_content(path: str) -> Content:
    """Read a file that nobody changes meanwhile; a clip is read through, but not kept.

    Raises:
        DataError: It is absent, unreadable or (unless it is a clip) larger than `MAX_BYTES`, or it
            changed during each of several readings.
    """
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(0.05 * attempt)
        before = stamp(path)
        started_ns = time.time_ns()
        try:
            with open(path, "rb") as stream:  # noqa: PTH123
                kind, encoded, content_hash, num_bytes = _read(stream, path)
        except OSError as error:
            raise _unreadable(path, error) from error
        if stamp(path) == before and num_bytes == before.size:
            settled = started_ns - before.mtime_ns > _SETTLED_NS
            return Content(
                path=path,
                modality=kind,
                encoded=encoded,
                content_hash=content_hash,
                stamp=before if settled else Stamp(size=before.size, mtime_ns=0),
                modified_ns=before.mtime_ns,
            )
    raise _changed(path)


def check_unchanged(content: Content) -> None:
    """Make sure that a file is still the one that was read.

    Raises:
        DataError: It was changed meanwhile, or is gone.
    """
    if stamp(content.path) != Stamp(size=content.stamp.size, mtime_ns=content.modified_ns):
        raise _changed(content.path)


def _read(stream: BinaryIO, path: str) -> tuple[Modality, bytes, str, int]:
    """What it is, its bytes (of a picture), their sha256 and their number."""
    head = stream.read(HEAD_BYTES)
    kind = _MODALITIES.get(modality(head), "image")
    if kind == "image":
        encoded = head + stream.read(MAX_BYTES + 1 - len(head))
        if len(encoded) > MAX_BYTES:
            raise DataError(
                f"{printable(path)}: has more than {MAX_BYTES:,} bytes, expected at most that",
                hint="make it smaller or leave it out",
            )
        return kind, encoded, hashlib.sha256(encoded).hexdigest(), len(encoded)
    digest, num_bytes = hashlib.sha256(head), len(head)
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
        num_bytes += len(chunk)
    return kind, b"", digest.hexdigest(), num_bytes


def _changed(path: str) -> DataError:
    return DataError(
        f"{printable(path)}: was changed while it was read, expected a file at rest",
        hint="run again when its writer has finished",
    )


def _unreadable(path: str, error: OSError) -> DataError:
    name = printable(path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return DataError(f"{name}: vanished after it was found", hint="nothing to do if it is gone")
    if error.errno in (errno.EACCES, errno.EPERM):
        return DataError(f"{name}: may not be read (permission denied)", hint=f"chmod +r {name}")
    reason = error.strerror or str(error)
    return DataError(f"{name}: cannot be read ({reason})", hint="check the disk or the network")


def real_paths(paths: Iterable[Path]) -> list[str]:
    """Absolute paths without symbolic links, each once, in the order given."""
    folders: dict[str, str] = {}
    found: dict[str, None] = {}
    for path in paths:
        # Links in folders are followed once a folder, not once a file.
        folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        whole = os.path.join(folders[folder], name)  # noqa: PTH118
        is_link = os.path.islink(whole)  # noqa: PTH114
        found[os.path.realpath(whole) if is_link else whole] = None
    return list(found)


def is_gone(path: str) -> bool:
    """Whether a path certainly leads to no file; one that may not be looked at is not gone."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def is_below(path: str, roots: Iterable[str]) -> bool:
    """Whether a path is one of the roots or inside one."""
    return any(path == root or path.startswith(root.rstrip(os.sep) + os.sep) for root in roots)
