"""Find pictures and clips below folders, in a stable order, whatever file systems hold."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from costream.data.failures import Failure, printable
from costream.errors import DataError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .webp .avif .heic .heif .hif .tif .tiff .bmp "
    ".ppm .pgm .pbm .pnm .mpo".split()
)

# No ".ts": most files of that name are programs (TypeScript).
VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .qt .mkv .webm .avi .mpg .mpeg .mpe .vob .mts .m2ts .flv .f4v .wmv .asf "
    ".3gp .3g2 .ogv".split()
)
AUDIO_SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .m4a .m4b .aac .aif .aiff .aifc .caf .wma .mka .weba".split()
)

_USE_EFFECTIVE_IDS = os.access in os.supports_effective_ids


def find_images(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> tuple[list[Path], list[Failure]]:
    """List the pictures that paths name or hold.

    Folders are walked to the bottom. Pictures are told by the suffix of their name, in any case;
    a file named directly is taken whatever its name is. Hidden files and folders are skipped. A
    link to a folder is followed only when nothing else reaches that folder, so that loops end and
    no picture is listed twice. A file that vanishes meanwhile is left out without a word.

    Args:
        paths: One path or several; folders or files.

    Returns:
        The pictures (sorted within each given path, each once), beginning with the path as it was
        given; and, sorted by path, what could not be read: folders and files without permission,
        links to nothing, pipes and devices with the name of a picture.

    Raises:
        DataError: No path was given, or a given path is absent.

    Example:
        >>> find_images("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        costream.errors.DataError: no/such/folder: is not there, expected ...
    """
    return _find(paths, IMAGE_SUFFIXES)


def find_media(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> tuple[list[Path], list[Failure]]:
    """List the pictures, videos and sounds that paths name or hold.

    Args:
        paths: As for `find_images`.

    Returns:
        As `find_images`.

    Raises:
        DataError: As for `find_images`.

    Example:
        >>> find_media("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        costream.errors.DataError: no/such/folder: is not there, expected ...
    """
    return _find(paths, IMAGE_SUFFIXES | VIDEO_SUFFIXES | AUDIO_SUFFIXES)


def _find(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], suffixes: frozenset[str]
) -> tuple[list[Path], list[Failure]]:
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise DataError("got no path, expected at least one", hint="name a folder of pictures")
    failures: list[Failure] = []
    found: dict[str, Path] = {}
    seen_folders: set[tuple[int, int]] = set()
    for path in given:
        for file in _below(os.fspath(path), suffixes, failures, seen_folders):
            found.setdefault(os.path.abspath(file), Path(file))  # noqa: PTH100  keeps links
    return list(found.values()), sorted(failures, key=lambda failure: failure.path)


def _below(
    path: str, suffixes: frozenset[str], failures: list[Failure], seen: set[tuple[int, int]]
) -> list[str]:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise DataError(
            f"{printable(path)}: {_why_absent(path, error)}, expected a folder or a picture",
            hint="check the path",
        ) from error
    except ValueError as error:  # a NUL letter
        raise DataError(
            f"{printable(path)}: cannot be a path ({error})", hint="check the path"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        failure = _unusable(path, status.st_mode)
        if failure is not None:
            failures.append(failure)
            return []
        return [path]
    return sorted(_walk(path, suffixes, failures, seen))


def _why_absent(path: str, error: OSError) -> str:
    if os.path.islink(path):  # noqa: PTH114
        return "is a link to nothing or to itself"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "is not there"
    return f"cannot be opened ({error.strerror or error})"


def _walk(
    root: str, suffixes: frozenset[str], failures: list[Failure], seen: set[tuple[int, int]]
) -> Iterator[str]:
    # Real folders first, links to folders when all of those are done: a folder that has a place
    # of its own is listed under that place, whatever links to it there are.
    folders, links = [root], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                visible = sorted(
                    (entry for entry in entries if not entry.name.startswith(".")),
                    key=lambda entry: entry.name,
                    reverse=True,
                )
        except FileNotFoundError:
            continue
        except OSError as error:
            reason = f"cannot be listed ({error.strerror or error}), expected a readable folder"
            failures.append(Failure(path=folder, reason=reason))
            continue
        for entry in visible:
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in suffixes:  # noqa: PTH122
                yield from _picture(entry, failures)
        links.sort(reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _picture(entry: os.DirEntry[str], failures: list[Failure]) -> Iterator[str]:
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if entry.is_symlink():
            reason = "is a link to nothing or to itself, expected a picture"
            failures.append(Failure(path=entry.path, reason=reason))
        elif not isinstance(error, FileNotFoundError):
            reason = f"cannot be opened ({error.strerror or error}), expected a picture"
            failures.append(Failure(path=entry.path, reason=reason))
        return
    failure = _unusable(entry.path, mode)
    if failure is None:
        yield entry.path
    else:
        failures.append(failure)


def _unusable(path: str, mode: int) -> Failure | None:
    if not stat.S_ISREG(mode):
        reason = "is a pipe, socket or device, expected a picture"
        return Failure(path=path, reason=reason)
    if not os.access(path, os.R_OK, effective_ids=_USE_EFFECTIVE_IDS):
        if not os.path.lexists(path):
            return None  # it vanished; whoever opens it next will say so
        reason = "may not be read (permission denied), expected a readable picture"
        return Failure(path=path, reason=reason)
    return None
