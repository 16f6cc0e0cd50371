"""The 4-bit codes of an index on disk: derived, sealed by checksums, and never trusted.

Coding ten million vectors takes a minute, reading their codes a second. The codes lie beside the
file of vectors that they were made of, in the format of their package, with a seal: whose they are,
their checksum, and what else a kernel needs. Codes that are absent, damaged or of other vectors are
made anew.

Shape letters: N rows, D dimensions, W dimensions of codes.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from costream.index.codes import CODES, SEAL, Header

if TYPE_CHECKING:
    from costream.scoring.kernels import Kernel
    from costream.scoring.kernels.four_bit import FourBitKernel
    from costream.scoring.matrix import Matrix

# Magic, version, token of the vectors, rows, dimensions, W, rows averaged, error, longest vector,
# size and checksum of the codes; then the mean, float32 (W,), and the checksum of all this.
_FORM = struct.Struct("<8sI16sQIIQddQI")
_MAGIC = b"4bitcode"
_VERSION = 1
_BLOCK_BYTES = 2**22
_CRC_BYTES = 4


def four_bit(header: Header, vectors_ND: Matrix, *, write: bool) -> FourBitKernel:
    """The kernel over the vectors of a file, from its codes if there are any that fit.

    Args:
        header: The beginning of that file.
        vectors_ND: What is in it.
        write: Whether to keep codes that had to be made.
    """
    kernel = _read(header, vectors_ND)
    if kernel is None:
        from costream.scoring.kernels.four_bit import FourBitKernel

        kernel = FourBitKernel(vectors_ND)
        if write:
            _write(header, kernel)
    return kernel


def write(header: Header, kernel: Kernel) -> None:
    """Keep the codes of the vectors in a file, if a kernel has any; failing is no error.

    Args:
        header: The beginning of that file.
        kernel: Over exactly those vectors.
    """
    if kernel.name != "four_bit":
        return  # before anything is imported
    from costream.scoring.kernels.four_bit import FourBitKernel

    if isinstance(kernel, FourBitKernel):
        _write(header, kernel)


def _write(header: Header, kernel: FourBitKernel) -> None:
    codes, seal = _paths(header)
    draft = codes.with_name(f"{codes.name}.{os.getpid()}-{os.urandom(4).hex()}.new")
    state = kernel.codes
    try:
        state.index.write(str(draft), durable=False)
        size, crc = _checksum(draft)
        mean = np.ascontiguousarray(state.mean_W, dtype="<f4").tobytes()
        body = mean + _FORM.pack(
            *(_MAGIC, _VERSION, header.token, len(kernel), header.dim, len(state.mean_W)),
            *(state.num_averaged, state.error, state.longest, size, crc),
        )
        seal.unlink(missing_ok=True)
        draft.replace(codes)
        sealed = seal.with_name(draft.name.replace(CODES, SEAL))
        sealed.write_bytes(body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little"))
        sealed.replace(seal)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _read(header: Header, vectors_ND: Matrix) -> FourBitKernel | None:
    """The kernel; None when there are no codes of these vectors, or they are damaged."""
    from costream.scoring.kernels.four_bit import Codes, FourBitKernel

    codes, seal = _paths(header)
    try:
        sealed = seal.read_bytes()
        body, crc = sealed[:-_CRC_BYTES], sealed[-_CRC_BYTES:]
        if len(body) < _FORM.size or zlib.crc32(body).to_bytes(_CRC_BYTES, "little") != crc:
            return None
        mean, form = body[: -_FORM.size], _FORM.unpack(body[-_FORM.size :])
        magic, version, token, num_rows, dim, width, num_averaged, *rest = form
        error, longest, size, crc_of_codes = rest
        expected = (_MAGIC, _VERSION, header.token, *vectors_ND.shape, 4 * width)
        if (magic, version, token, num_rows, dim, len(mean)) != expected:
            return None
        if _checksum(codes) != (size, crc_of_codes):
            return None
        state = Codes.read(
            codes, np.frombuffer(mean, dtype="<f4"), num_averaged, error=error, longest=longest
        )
    except (OSError, ValueError):
        return None
    if len(state.index) != num_rows or state.index.dim != width:
        return None
    return FourBitKernel(vectors_ND, codes=state)


def _paths(header: Header) -> tuple[Path, Path]:
    return header.path.with_suffix(CODES), header.path.with_suffix(SEAL)


def _checksum(path: Path) -> tuple[int, int]:
    """Size and checksum of a file."""
    size = crc = 0
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK_BYTES):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc
