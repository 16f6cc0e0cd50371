"""Proof that items are forgotten: what gives them away is looked for in every file of the index.

What a remaining item holds rightly (a copy of the same picture, say) proves nothing and is passed
over, and so are texts that are too short to mean anything. Not looked for are single words of file
names and captions, of which the inverted lists are built anew.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from costream.index import check, codes
from costream.index.database import FILE_NAME
from costream.index.records import Item
from costream.index.store import Index
from costream.index.thumbnails import thumbnail_files, thumbnail_folder

_LEAST_BYTES = 8
# Each trace is looked for in each file: of more items than this, some are taken.
_MOST_ITEMS = 50
_MOST_VECTORS = 8
_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Something that gives an item away.

    Attributes:
        what: "path", say.
        item_id: Of the item.
        content: The bytes as they would be in a file.
    """

    what: str
    item_id: str
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A trace that is there still."""

    trace: Trace
    file: Path


def traces_of(index: Index, ids: Sequence[str]) -> list[Trace]:
    """What gives some items away; to be asked for while they are there.

    Args:
        index: That holds them.
        ids: Of the items; of many, some are taken.
    """
    step = max(1, -(-len(ids) // _MOST_ITEMS))
    return [trace for item in index.get(ids[::step]) for trace in _traces(index, item)]


def traces_of_name(name: str) -> list[Trace]:
    """What gives away an item of which only the id or path is known any more."""
    return [Trace(what="path", item_id=name, content=os.fsencode(name))]


def find_traces(index: Index, traces: Iterable[Trace]) -> list[Finding]:
    """Look for traces in every file of an index.

    Args:
        index: The index.
        traces: Of items that should be forgotten.

    Returns:
        Those that were found, except for what a remaining item holds, too.

    Raises:
        DataError: The index is closed or damaged.
        OSError: A file cannot be read.
    """
    there = b"\0".join(text for item in index.items() for _, text in _texts(item))
    wanted = [t for t in traces if len(t.content) >= _LEAST_BYTES and t.content not in there]
    found = [
        Finding(trace=trace, file=file)
        for file in _own_files(index.directory)
        for trace in _in_file(file, wanted)
    ]
    rightly = _vectors_of_others(index, {f.trace.content for f in found if _is_vector(f.trace)})
    return [finding for finding in found if finding.trace.content not in rightly]


def _traces(index: Index, item: Item) -> Iterator[Trace]:
    for what, content in _texts(item):
        yield Trace(what=what, item_id=item.id, content=content)
    for vector in index.all_vectors([item.id])[:_MOST_VECTORS]:
        content = vector.astype("<f2").tobytes()
        yield Trace(what="vector", item_id=item.id, content=content)


def _texts(item: Item) -> Iterator[tuple[str, bytes]]:
    yield "id", check.encoded_id(item.id)
    if item.path is not None:
        yield "path", os.fsencode(item.path)
    yield "content hash", item.content_hash.encode()
    yield "caption", item.caption.encode()
    yield "text", item.text.encode()
    for tag in item.tags:
        yield "tag", tag.encode()
    if item.meta:
        meta = json.dumps(dict(item.meta), sort_keys=True, ensure_ascii=False)
        yield "meta", meta.encode("utf-8", "surrogatepass")


def _is_vector(trace: Trace) -> bool:
    return trace.what == "vector"


def _own_files(directory: Path) -> Iterator[Path]:
    """The files that costream keeps in the folder of an index, which may hold others beside."""
    yield from directory.glob(f"{FILE_NAME}*")
    yield from codes.files(directory)
    yield from thumbnail_files(thumbnail_folder(directory))
    yield from directory.glob("damaged-*/*")


def _in_file(file: Path, traces: Sequence[Trace]) -> list[Trace]:
    name = os.fsencode(file.name)
    with file.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return []
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return [t for t in traces if t.content in name or content.find(t.content) >= 0]


def _vectors_of_others(index: Index, wanted: set[bytes]) -> set[bytes]:
    """Those of some vectors that items of the index have."""
    if not wanted:
        return set()
    found: set[bytes] = set()
    ids = index.ids()
    for start in range(0, len(ids), _AT_ONCE):
        vectors = index.all_vectors(ids[start : start + _AT_ONCE]).astype("<f2")
        found |= wanted & {vector.tobytes() for vector in vectors}
    return found
