"""Repair of a damaged index: what is whole is put into a new database, which takes its place.

The damaged files are kept beside it. An item whose vector is lost stays and counts as changed, so
that the next indexing of its file embeds it again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from costream.errors import DataError
from costream.index import backup, database, integrity, rows, schema, vector_rows, words
from costream.index.check import Batch
from costream.index.database import FILE_NAME
from costream.index.records import Item
from costream.index.salvage import Salvage, salvage
from costream.index.schema import SpaceRow, State
from costream.index.session import Session

_UNFINISHED = "repairing"
_CHUNK = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairReport:
    """What a repair did.

    Attributes:
        was_damaged: Whether there was anything to repair.
        kept: Items that are there now.
        without_vector: Of these, such as lost their vector in the active space.
        lost: Items that are gone; None when it is not known how many there were.
        aside: Where the damaged files are.
    """

    was_damaged: bool
    kept: int
    without_vector: int = 0
    lost: int | None = 0
    aside: Path | None = None


def repair_index(directory: Path) -> RepairReport:
    """Bring a damaged index into order with what is whole of it.

    Stopped at any moment, it is run again. End other processes that use the index before.

    Args:
        directory: Of the index.

    Returns:
        What was done.

    Raises:
        DataError: There is no index, nothing of it is whole, or a file cannot be written.
    """
    if not directory.is_dir() or not any(directory.glob(f"{FILE_NAME}*")):
        raise DataError(
            f"no index in {directory}, expected {FILE_NAME} there",
            hint="--index names the folder of an index",
        )
    copy = directory / _UNFINISHED
    with database.explained(directory / FILE_NAME, "repair"):
        was_stopped = copy.exists()
        if not was_stopped:
            # Before SQLite opens it, which may write its log back.
            _copy_aside(directory, copy)
        num_items = _num_items_if_sound(directory)
        if num_items is not None and was_stopped:
            backup.clear_drafts(directory)
            return RepairReport(was_damaged=False, kept=num_items, aside=_keep_aside(copy))
        if num_items is not None:
            shutil.rmtree(copy)
            return RepairReport(was_damaged=False, kept=num_items)
        found = salvage(copy)
        if not found.items:
            if not was_stopped:
                shutil.rmtree(copy)
            raise DataError(
                f"nothing of the index {directory} is whole",
                hint="costream index restore BACKUP --replace, or index the files again into "
                "another folder",
            )
        with backup.drafted(directory) as draft:
            lacking = _write(draft / FILE_NAME, found)
            kept = backup.check_copy(draft, directory)
            backup.put_in_place(draft / FILE_NAME, directory)
        aside = _keep_aside(copy)
    lost = None if found.num_items is None else max(found.num_items - kept, 0)
    return RepairReport(was_damaged=True, kept=kept, without_vector=lacking, lost=lost, aside=aside)


def _num_items_if_sound(directory: Path) -> int | None:
    try:
        session = Session(directory, create=False)
    except DataError:
        return None
    with contextlib.closing(session):
        session.refuse_read_only()
        if integrity.problems(session):
            return None
        with session.reading() as connection:
            return schema.read_state(connection).num_items


def _copy_aside(directory: Path, copy: Path) -> None:
    """Copy the files of an index; the copy has its name only when it is whole."""
    draft = directory / f"{_UNFINISHED}.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for name in (FILE_NAME, f"{FILE_NAME}-wal"):
        if (directory / name).exists():
            shutil.copy2(directory / name, draft / name)
            with (draft / name).open("rb") as stream:
                os.fsync(stream.fileno())
    draft.rename(copy)
    database.sync_directory(directory)


def _keep_aside(copy: Path) -> Path:
    aside = copy.with_name(f"damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    for number in range(1, 100):
        if not aside.exists():
            break
        aside = copy.with_name(f"damaged-{time.strftime('%Y%m%d-%H%M%S')}-{number}")
    copy.rename(aside)
    return aside


def _write(path: Path, found: Salvage) -> int:
    """Make a database of what was found; gives the number of items without an active vector."""
    by_place = _vectors_by_item(found)
    active = next((entry.number for entry in found.spaces if entry.role == "active"), None)
    keyed: list[tuple[int, Item]] = []
    lacking = 0
    for key, item in sorted(_each_once(found.items).items()):
        if active is not None and (active, key) in by_place:
            keyed.append((key, item))
        else:
            # Of other content than its file, it will be embedded again.
            keyed.append((key, replace(item, content_hash="", mtime_ns=0)))
            lacking += 1
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        database.make_tables(connection)
        connection.execute("BEGIN")
        keys = [key for key, _ in keyed]
        rows.write(connection, keys, rows.encoded([item for _, item in keyed]))
        words.add(connection, keyed)
        for entry in found.spaces:
            _write_space(connection, entry, found, by_place, keys)
        last = max(keys)
        state = State(num_items=len(keys), next_key=last + 1)
        connection.executemany(
            "INSERT INTO free_keys (key) VALUES (?)",
            ([key] for key in sorted(set(range(1, last + 1)) - set(keys))),
        )
        schema.begin_history(connection, state)
        connection.execute("COMMIT")
    return lacking


def _each_once(items: dict[int, Item]) -> dict[int, Item]:
    """Items by key, none of which has the id of another."""
    by_id = {item.id: key for key, item in items.items()}
    return {key: items[key] for key in by_id.values()}


def _vectors_by_item(found: Salvage) -> dict[tuple[int, int], list[int]]:
    """Places by space and item, of the items of which no vector is missing before the last."""
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place in sorted(found.vectors):
        places[vector_rows.number_of(place), vector_rows.key_of(place)].append(place)
    sizes = {entry.number: 2 * entry.space.dim for entry in found.spaces}
    return {
        (number, key): held
        for (number, key), held in places.items()
        if held == list(range(held[0], held[0] + len(held)))
        and held[0] == vector_rows.place_of(number, key)
        and all(len(found.vectors[place][2]) == sizes.get(number) for place in held)
    }


def _write_space(
    connection: sqlite3.Connection,
    entry: SpaceRow,
    found: Salvage,
    by_place: dict[tuple[int, int], list[int]],
    keys: Sequence[int],
) -> None:
    counts = [0, 0, 0]
    there = [key for key in keys if (entry.number, key) in by_place]
    for start in range(0, len(there), _CHUNK):
        part = there[start : start + _CHUNK]
        batch = _batch(entry, found, [by_place[entry.number, key] for key in part])
        vector_rows.insert(connection, entry.number, part, batch)
        num_spans = 0 if batch.spans is None else int((~np.isnan(batch.spans[:, 0])).sum())
        for row, count in enumerate((len(part), len(batch.parents), num_spans)):
            counts[row] += count
    schema.write_space(
        connection,
        replace(entry, num_items=counts[0], num_vectors=counts[1], num_spans=counts[2]),
    )


def _batch(entry: SpaceRow, found: Salvage, places: Sequence[Sequence[int]]) -> Batch:
    flat = [found.vectors[place] for held in places for place in held]
    none = (np.nan, np.nan)
    spans = [none if start is None or end is None else (start, end) for start, end, _ in flat]
    joined = b"".join(vector for *_, vector in flat)
    return Batch(
        np.frombuffer(joined, dtype="<f2").reshape(len(flat), entry.space.dim),
        np.repeat(np.arange(len(places)), [len(held) for held in places]),
        np.array(spans, dtype=np.float64).reshape(len(flat), 2),
    )
