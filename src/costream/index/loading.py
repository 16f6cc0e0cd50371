"""Where the vectors of an index come from when it is opened: its derived files, or the database.

A kernel that scans codes needs no vectors in memory. If there is no file that they could stay in,
one is written while the database is read, block by block.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from costream.index import codes, resident, vector_rows
from costream.index.held import Held
from costream.index.resident import Resident
from costream.index.schema import SpaceRow, State
from costream.records import Space
from costream.scoring.kernels import choose


def nothing(space: Space) -> Resident:
    """The vectors of an empty index, to be searched only."""
    return begun(None, SpaceRow(number=0, space=space, role="active"), b"")


def begun(
    directory: Path | None, entry: SpaceRow, token: bytes, kernel: str | None = None
) -> Resident:
    """The vectors of a state that has none, to take in what follows.

    Args:
        directory: Folder of the index; None to write no files.
        entry: The active space.
        token: The state.
        kernel: As of `load`.
    """
    return Resident(
        directory=directory,
        entry=entry,
        token=token,
        generation=0,
        held=Held(entry.space.dim),
        wanted=kernel,
    )


def load(
    connection: sqlite3.Connection,
    state: State,
    entry: SpaceRow,
    directory: Path,
    *,
    read_only: bool,
    kernel: str | None = None,
    use_files: bool = True,
) -> Resident:
    """Have the vectors of the active space at hand.

    Args:
        connection: In the transaction that `state` and `entry` were read in.
        state: The present state.
        entry: The active space.
        directory: Folder of the index.
        read_only: Whether no files may be written there.
        kernel: Name of the kernel that is wanted; None to go by size.
        use_files: Whether files that there are may be read.

    Raises:
        DamageError: A row of the database is not what was written.
    """
    writable = None if read_only else directory
    dim = entry.space.dim
    name = choose(entry.num_vectors, dim) if kernel is None else kernel
    in_files = name == "four_bit"
    if use_files:
        found = _from_files(directory, writable, entry, in_files=in_files)
        if found is not None and found.catch_up(connection, state, entry):
            found.wanted = kernel
            return found
        found = None  # its memory first
    is_worth_it = entry.num_vectors * dim * 2 >= resident.WORTH_A_FILE_BYTES
    if in_files and is_worth_it and writable is not None:
        found = _through_file(connection, state, entry, writable)
        if found is not None:
            found.wanted = kernel
            return found
    held = Held(dim)
    vector_rows.read_all(connection, entry, held.add_room(entry.num_vectors))
    return Resident(
        directory=writable,
        entry=entry,
        token=state.token,
        generation=state.generation,
        held=held,
        wanted=kernel,
        largest_key=state.next_key,
    )


def _from_files(
    directory: Path, writable: Path | None, entry: SpaceRow, *, in_files: bool
) -> Resident | None:
    """The latest state that the files hold whole, if any."""
    headers = codes.chain(directory, entry.space.dim)
    return _of_headers(headers, writable, entry, in_files=in_files) if headers else None


def _of_headers(
    headers: list[codes.Header], writable: Path | None, entry: SpaceRow, *, in_files: bool
) -> Resident | None:
    found = Resident(
        directory=writable,
        entry=entry,
        token=headers[-1].token,
        generation=headers[-1].generation,
        held=Held(entry.space.dim),
        files=headers,
        base_rows=headers[0].num_vectors,
        largest_key=vector_rows.MAX_KEY,
    )
    if not all(found.read_file(header, in_files=in_files) for header in headers):
        return None
    found.know_keys()
    return found


def _through_file(
    connection: sqlite3.Connection, state: State, entry: SpaceRow, directory: Path
) -> Resident | None:
    """Copy the vectors from the database into a file and leave them there; None if it cannot be."""
    dim = entry.space.dim
    segment = codes.Segment(
        before=codes.NOTHING,
        token=state.token,
        generations=(0, state.generation),
        dim=dim,
        blocks=vector_rows.read_blocks(connection, entry, codes.block_rows(dim)),
    )
    header = codes.write_segment(directory, segment)
    return None if header is None else _of_headers([header], directory, entry, in_files=True)
