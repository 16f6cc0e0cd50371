"""A process for the fault tests to kill, starve and lock out: `python index_worker.py VERB ...`.

It acknowledges work on its standard output, one line a step, and only after the library returned.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from costream.data.decode_apart import Decoders
from costream.errors import CostreamError
from costream.index import Index, Item, ingest, update, update_index
from costream.index import copy as copying
from costream.index.backup import backup_index, restore_index
from costream.index.copy import copy_index
from costream.index.repair import repair_index
from costream.records import Space

DIM = 27
NOBODY = 65534
# Large enough that a few hundred items outgrow the limits that the tests set.
WIDE = Space(encoder="wide", weights_hash="w", preprocessing_hash="p", dim=512)


class ColourHistogram:
    """A small real encoder: how many pixels are in each of 3 x 3 x 3 cells of colour."""

    space = Space(encoder="histogram", weights_hash="w", preprocessing_hash="p", dim=DIM)

    def __init__(self, log: Path | None = None, pause_s: float = 0.0) -> None:
        self.log = log
        self.pause_s = pause_s
        self.num_seen = 0

    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Turn pictures into unit vectors float32 (N, 27)."""
        rows = []
        for image in images:
            cells = np.asarray(image).reshape(-1, 3).astype(np.int64) // 86
            counts = np.bincount(cells @ [9, 3, 1], minlength=DIM) + 1.0
            rows.append(counts / np.linalg.norm(counts))
        time.sleep(self.pause_s)
        self.num_seen += len(rows)
        if self.log is not None:
            with self.log.open("a") as stream:
                stream.write("x" * len(rows))
        return np.array(rows, dtype=np.float32)


def unit(rng: np.random.Generator, rows: int, dim: int) -> NDArray[np.float32]:
    """Random unit vectors float32 (rows, dim)."""
    values = rng.standard_normal((rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def steps(seed: int) -> Any:
    """Endless changes, fixed by the seed: ("add", ids, vectors) or ("remove", ids, None)."""
    rng = np.random.default_rng(seed)
    while True:
        ids = [f"item{number}" for number in rng.permutation(60)[:8]]
        if rng.random() < 0.3:
            yield "remove", ids, None
        else:
            yield "add", ids, unit(rng, 8, DIM)


def churn(directory: str, seed: str) -> None:
    """Change an index for ever."""
    with Index.open(directory, create=True) as index:
        for number, (verb, ids, vectors) in enumerate(steps(int(seed)), 1):
            if verb == "add":
                index.add([Item(id=i) for i in ids], vectors, ColourHistogram.space)
            else:
                index.remove(ids)
            say(number)


def update_pictures(directory: str, pictures: str, log: str, pause_s: str) -> None:
    """Index pictures in batches of four, saying how many files are dealt with."""
    ingest._PROGRESS_S = 0.0
    model = ColourHistogram(Path(log), float(pause_s))
    with Index.open(directory, create=True) as index:
        say("go")
        update_index(
            index, model, pictures, batch_size=4, progress=lambda done, total: say(f"{done}")
        )
    say("end")


def just_open(directory: str) -> None:
    """Open an index, which converts one of an earlier format."""
    say("go")
    Index.open(directory).close()
    say("end")


def back_up(directory: str, target: str) -> None:
    """Back an index up."""
    say("go")
    backup_index(Path(directory), Path(target))
    say("end")


def restore(source: str, directory: str) -> None:
    """Put a backup in the place of an index."""
    say("go")
    restore_index(Path(source), Path(directory), replace=True)
    say("end")


def repair(directory: str) -> None:
    """Repair an index."""
    say("go")
    repair_index(Path(directory))
    say("end")


def copy(source: str, target: str) -> None:
    """Copy an index in steps of twenty items, saying how many are done."""
    copying._AT_ONCE = 20
    with Index.open(source) as held, Index.open(target, create=True) as made:
        say("go")
        copy_index(held, made, progress=say)
    say("end")


def fill(directory: str, most_bytes: str) -> None:
    """Add until the disk is full, then say how."""
    with Index.open(directory, create=True) as index:
        if int(most_bytes):
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(most_bytes), resource.RLIM_INFINITY))
        rng = np.random.default_rng(0)
        added = 0
        try:
            for added in range(0, 10**6, 8):
                names = [f"{number:08d}" for number in range(added, added + 8)]
                index.add([Item(id=name) for name in names], unit(rng, 8, WIDE.dim), WIDE)
        except CostreamError as error:
            # Reading goes on in the process that was refused.
            found = index.search(unit(rng, 1, WIDE.dim), WIDE, 3).ids[0]
            say(json.dumps([added, type(error).__name__, str(error), len(index), len(found)]))


def as_nobody(directory: str, pictures: str, wanted: str) -> None:
    """Without privileges: index pictures (`index`), or search and try to write (`search`)."""
    with tempfile.TemporaryDirectory() as warm:  # imports what is imported late
        Image.new("RGB", (2, 2)).save(Path(warm, "a.png"))
        with Index.open(Path(warm, "index"), create=True) as index:
            update_index(index, ColourHistogram(), warm)
    decoders = RootsDecoders()
    update.Decoders = lambda: decoders
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    answer: list[Any] = []
    try:
        with Index.open(directory, create=wanted == "index") as index:
            if wanted == "index":
                report = update_index(index, ColourHistogram(), pictures)
                answer = [report.added, [[f.path, f.reason] for f in report.failures]]
            else:
                query = np.ones((1, DIM), np.float32)
                answer = [len(index.search(query, ColourHistogram.space, 99).ids[0])]
                index.add([Item(id="x")], query / np.float32(DIM**0.5), ColourHistogram.space)
    except CostreamError as error:
        answer += [type(error).__name__, str(error)]
    say(json.dumps(answer))


class RootsDecoders(Decoders):
    """As many processes as an update has threads, started by root and ended by the end of this one.

    Nobody may be unable to start an interpreter that is in the home of root, and to end it.
    """

    def __init__(self) -> None:
        super().__init__()
        for process in [self._take() for _ in range(ingest._THREADS)]:
            self._give_back(process)

    def close(self) -> None:
        """Nothing: they end when nobody talks to them any more."""


def say(what: object) -> None:
    """One line, out of this process before anything else happens."""
    os.write(1, f"{what}\n".encode())


if __name__ == "__main__":
    verbs = {"churn": churn, "update": update_pictures, "fill": fill}
    verbs |= {"as_nobody": as_nobody, "open": just_open}
    verbs |= {"repair": repair, "backup": back_up, "restore": restore, "copy": copy}
    verbs[sys.argv[1]](*sys.argv[2:])
