"""Answers with the bytes of a file, whole or the part that a player asks for."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from io import FileIO
from urllib.parse import quote

from anyio import to_thread
from starlette.responses import Response, StreamingResponse

from costream.serve.files import DOWNLOAD, OpenFile
from costream.serve.problems import Problem

_CHUNK_BYTES = 1 << 18
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")


def original_response(file: OpenFile, name: str, *, wanted: str | None) -> Response:
    """A file as an answer; closes the file when done.

    Args:
        file: Open.
        name: For saving it.
        wanted: The header `Range`.

    Returns:
        200 with all, or 206 with a part.

    Raises:
        Problem: 416 when the file has no such part.
    """
    try:
        start, stop = _part(wanted, file.size_bytes)
    except Problem:
        os.close(file.descriptor)
        raise
    disposition = "attachment" if file.media_type == DOWNLOAD else "inline"
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(stop - start),
        "Content-Disposition": f"{disposition}; filename*=UTF-8''{_quoted(name)}",
        # Whatever the bytes are taken for, they run nothing and reach nothing.
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-cache",
        "ETag": f'"{file.size_bytes:x}-{file.mtime_ns:x}"',
    }
    part = wanted is not None and (start, stop) != (0, file.size_bytes)
    if part:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size_bytes}"
    return StreamingResponse(
        # As a file object, which closes itself even when the answer never begins.
        _bytes(os.fdopen(file.descriptor, "rb", buffering=0), start, stop),
        status_code=206 if part else 200,
        headers=headers,
        media_type=file.media_type,
    )


def _part(wanted: str | None, size: int) -> tuple[int, int]:
    """First byte, and the one after the last."""
    match = None if wanted is None else _RANGE.match(wanted)
    if match is None:
        return 0, size  # several parts, or other units: the whole file is a right answer
    first, last = match[1], match[2]
    if not first and not last:
        return 0, size
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
    if start >= stop:
        raise Problem(
            416,
            f"the file has {size} bytes, none of them in {wanted}",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, stop


async def _bytes(stream: FileIO, start: int, stop: int) -> AsyncIterator[bytes]:
    with stream:
        while start < stop:
            size = min(_CHUNK_BYTES, stop - start)
            part = await to_thread.run_sync(os.pread, stream.fileno(), size, start)
            if not part:
                raise ConnectionResetError("the file became shorter")
            start += len(part)
            yield part


def _quoted(name: str) -> str:
    return quote(name.encode("utf-8", "surrogateescape"), safe="")
