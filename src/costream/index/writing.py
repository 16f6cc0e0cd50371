"""Changes of an index: items, words and vectors together, within one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count

import numpy as np
from numpy.typing import NDArray

from costream.index import check, rows, schema, vector_rows, words
from costream.index.check import Batch
from costream.index.records import Item
from costream.index.rows import Encoded
from costream.index.schema import SpaceRow, State
from costream.records import Space


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a change led to.

    Attributes:
        before: Token of the state before it.
        state: The state after it.
        active: The active space after it, if there is one.
        changed: int64 (K,): keys of the items whose vectors changed, came or went.
        places: int64 (M,): places of the new vectors of the active space.
        vectors: float16 (M, D): these vectors, or None when there are none.
    """

    before: bytes
    state: State
    active: SpaceRow | None
    changed: NDArray[np.int64]
    places: NDArray[np.int64]
    vectors: NDArray[np.float16] | None


def active_number(connection: sqlite3.Connection, state: State, space: Space, where: str) -> int:
    """The number of the active space, which must be this one; an empty index takes any.

    Raises:
        SpaceMismatch: The index holds vectors of another space.
    """
    entries = schema.read_spaces(connection)
    active = entries[0].space if entries else None
    if state.num_items:
        check.check_same(active, space, where)
    if active == space:
        return entries[0].number
    connection.execute("DELETE FROM spaces")
    schema.write_space(connection, SpaceRow(number=0, space=space, role="active"))
    return 0


def put(
    connection: sqlite3.Connection,
    state: State,
    added: Encoded,
    batches: Mapping[int, Batch],
) -> Change:
    """Add items with their vectors, replacing those with the same ids.

    Args:
        connection: In a transaction.
        state: The present state.
        added: The items.
        batches: Vectors by number of the space. In a space that is not named an item keeps those
            that it has if its content is the same.
    """
    ids = added.columns[0]
    olds = rows.select_by_id(connection, rows.not_beyond(connection, ids))
    known = dict(zip(rows.ids_of(olds.values()), olds, strict=True))
    num_new = len(ids) - len(known)
    freed = rows.take_free_keys(connection, num_new)
    fresh = chain(freed, count(state.next_key))
    keys = [known[item_id] if item_id in known else next(fresh) for item_id in ids]
    words.remove(connection, olds.items())
    rows.write(connection, keys, added, olds)
    if not added.is_bare:
        words.add(connection, zip(keys, added.items, strict=True))
    others = [
        key
        for key, item in zip(keys, added.items, strict=True)
        if key in olds and not _same_content(olds[key], item)
    ]
    active = None
    for before in schema.read_spaces(connection):
        batch = batches.get(before.number)
        entry = _without(connection, before, others if batch is None else olds)
        entry = entry if batch is None else _with(entry, batch)
        schema.write_space(connection, entry)
        active = entry if entry.role == "active" else active
    following = schema.advance(
        connection,
        state,
        keys,
        num_items=state.num_items + num_new,
        next_key=state.next_key + num_new - len(freed),
    )
    places = {
        number: vector_rows.insert(connection, number, keys, batch)
        for number, batch in batches.items()
    }
    mine = None if active is None else batches.get(active.number)
    return Change(
        before=state.token,
        state=following,
        active=active,
        changed=np.array(keys, dtype=np.int64),
        places=np.empty(0, np.int64) if active is None or mine is None else places[active.number],
        vectors=None if mine is None else mine.vectors,
    )


def take_out(connection: sqlite3.Connection, state: State, ids: Iterable[bytes]) -> Change:
    """Remove items; ids that are not there are ignored."""
    olds = rows.select_by_id(connection, ids)
    keys = olds.keys()
    words.remove(connection, olds.items())
    rows.delete(connection, keys)
    active = None
    for before in schema.read_spaces(connection):
        entry = _without(connection, before, keys)
        schema.write_space(connection, entry)
        active = entry if entry.role == "active" else active
    following = state
    if keys:
        total = state.num_items - len(keys)
        following = schema.advance(connection, state, list(keys), num_items=total)
    return Change(
        before=state.token,
        state=following,
        active=active,
        changed=np.array(list(keys), dtype=np.int64),
        places=np.empty(0, np.int64),
        vectors=None,
    )


def restamp(connection: sqlite3.Connection, state: State, items: Sequence[Item]) -> None:
    """Set size, time and date of items that are known by id and content hash."""
    given = {item.id: item for item in items}
    changed = []
    for key, old in rows.select_by_id(connection, rows.ids_of(items)).items():
        item = given[old.id]
        if old.content_hash == item.content_hash:
            stamp = replace(old, size=item.size, mtime_ns=item.mtime_ns, date=item.date)
            changed.append((key, stamp))
    keys_of_changed = [key for key, _ in changed]
    stamped = rows.encoded([item for _, item in changed])
    rows.write(connection, keys_of_changed, stamped, set(keys_of_changed))
    schema.advance(connection, state, [])


def vectors_by_content(
    connection: sqlite3.Connection, items: Sequence[Item]
) -> tuple[list[Item], dict[int, Batch]]:
    """The items whose content has a vector in the active space, and all its vectors by space.

    Raises:
        DamageError: A row is not what was written.
    """
    holders: dict[str, list[int]] = {}
    for key, item in rows.select(connection, "content_hash", (i.content_hash for i in items)):
        holders.setdefault(item.content_hash, []).append(key)
    entries = schema.read_spaces(connection)
    known: list[Item] = []
    found: dict[int, list[list[vector_rows.StoredVector]]] = {e.number: [] for e in entries}
    for item in items:
        for key in holders.get(item.content_hash, ()):
            held = [list(vector_rows.select(connection, entry, [key])) for entry in entries]
            if held and held[0]:
                known.append(item)
                for entry, stored in zip(entries, held, strict=True):
                    found[entry.number].append(stored)
                break
    return known, {e.number: _batch(found[e.number], e.space.dim) for e in entries}


def fill(
    connection: sqlite3.Connection, entry: SpaceRow, items: Sequence[Item], batch: Batch
) -> int:
    """Store vectors, in a space that is not active, of the items that are still the same.

    Returns:
        How many items that were.
    """
    stored = rows.select_by_id(connection, rows.ids_of(items))
    known = {item.id: key for key, item in stored.items()}
    keys = [known.get(item.id, 0) for item in items]
    same = [
        row
        for row, (key, item) in enumerate(zip(keys, items, strict=True))
        if key in stored and (stored[key] == item or _same_content(stored[key], item))
    ]
    entry = _without(connection, entry, [keys[row] for row in same])
    part = batch.of(same)
    vector_rows.insert(connection, entry.number, [keys[row] for row in same], part)
    schema.write_space(connection, _with(entry, part))
    return len(same)


def _same_content(old: Item, new: Item) -> bool:
    return bool(old.content_hash) and old.content_hash == new.content_hash


def _without(connection: sqlite3.Connection, entry: SpaceRow, keys: Collection[int]) -> SpaceRow:
    removed = vector_rows.delete(connection, entry.number, keys)
    return replace(
        entry,
        num_items=entry.num_items - removed.num_items,
        num_vectors=entry.num_vectors - removed.num_vectors,
        num_spans=entry.num_spans - removed.num_spans,
    )


def _with(entry: SpaceRow, batch: Batch) -> SpaceRow:
    spans = 0 if batch.spans is None else int((~np.isnan(batch.spans[:, 0])).sum())
    return replace(
        entry,
        num_items=entry.num_items + int((np.diff(batch.parents, prepend=-1) != 0).sum()),
        num_vectors=entry.num_vectors + len(batch.parents),
        num_spans=entry.num_spans + spans,
    )


def _batch(stored: Sequence[Sequence[vector_rows.StoredVector]], dim: int) -> Batch:
    """Vectors of items, one sequence an item, which may be empty."""
    flat = [one for each in stored for one in each]
    none = (np.nan, np.nan)
    joined = b"".join(one.vector for one in flat)
    return Batch(
        np.frombuffer(joined, dtype="<f2").reshape(len(flat), dim),
        np.repeat(np.arange(len(stored)), [len(each) for each in stored]),
        np.array([one.span or none for one in flat], dtype=np.float64).reshape(len(flat), 2),
    )
