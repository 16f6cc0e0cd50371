"""Law: when the power fails, what no fsync had reached may be lost in any mixture, but the index
opens, every acknowledged change is there, and a change that was under way is there whole or not.

A real writer runs under strace; what it wrote and synced is replayed up to a moment, and of the
writes that no fsync had reached by then none, some or all are kept.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from power_loss_worker import CHANGES, ITEMS

from costream.index import Index

CALLS = "openat,write,pwrite64,ftruncate,fsync,fdatasync,unlink,unlinkat,rename"
LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
UNFINISHED = " <unfinished ...>"
RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>(.*)$")


@dataclass(frozen=True)
class Call:
    """A system call that changed a file, made it safe, or said that a change is acknowledged."""

    kind: str
    name: str
    offset: int = 0
    data: bytes = b""


@dataclass
class Disk:
    """Files as they were synced last, and what was done to them since."""

    safe: dict[str, bytes]
    pending: dict[str, list[Call]] = field(default_factory=dict)

    def do(self, call: Call) -> None:
        if call.kind == "sync":
            content = apply(self.safe.get(call.name), self.pending.pop(call.name, []))
            if content is not None:
                self.safe[call.name] = content
        else:
            self.pending.setdefault(call.name, []).append(call)

    def after_power_loss(self, kept: float, rng: random.Random) -> dict[str, bytes]:
        """The files with a share of what was not safe, of each file in any mixture."""
        files = dict(self.safe)
        for name, calls in self.pending.items():
            survived = [call for call in calls if rng.random() < kept]
            content = apply(files.pop(name, None), survived)
            if content is not None:
                files[name] = content
        return files


def apply(content: bytes | None, calls: list[Call]) -> bytes | None:
    """A file after some calls; None when it is not there."""
    for call in calls:
        if call.kind == "unlink":
            content = None
            continue
        content = content or b""
        if call.kind == "truncate":
            content = content[: call.offset].ljust(call.offset, b"\0")
        elif call.kind == "write":
            end = call.offset + len(call.data)
            content = content.ljust(end, b"\0")
            content = content[: call.offset] + call.data + content[end:]
    return content


def calls_of(log: Path, folder: Path) -> Iterator[Call]:
    """What a trace says of the files below a folder, and of standard output."""
    appended: dict[str, int] = {}
    for line in whole_lines(log):
        found = LINE.match(line)
        if found is None or int(found[3]) < 0:
            continue
        kind, arguments = found[1], found[2]
        if kind == "write" and arguments.startswith("1<"):
            yield Call("said", text_of(arguments)[0].decode().strip())
            continue
        name = name_of(kind, arguments, folder)
        if name is None or name.endswith("-shm"):
            continue
        if kind == "openat":
            if "O_TRUNC" in arguments:
                yield Call("truncate", name)
            appended[name] = 0
        elif kind == "pwrite64":
            yield Call("write", name, int(arguments.rsplit(", ", 1)[1]), text_of(arguments)[-1])
        elif kind == "write":
            data = text_of(arguments)[-1]
            yield Call("write", name, appended[name], data)
            appended[name] += len(data)
        elif kind == "ftruncate":
            yield Call("truncate", name, int(arguments.rsplit(", ", 1)[1]))
        elif kind in ("fsync", "fdatasync"):
            yield Call("sync", name)
        elif kind in ("unlink", "unlinkat"):
            yield Call("unlink", name)
        else:
            raise AssertionError(f"the replay does not know {kind}")


def whole_lines(log: Path) -> Iterator[str]:
    """Lines of a trace; a call that another thread came in between of counts where it ended."""
    begun: dict[str, str] = {}
    for line in log.read_text().splitlines():
        resumed = RESUMED.match(line)
        if line.endswith(UNFINISHED):
            begun[line.split()[0]] = line.removesuffix(UNFINISHED)
        elif resumed is None:
            yield line
        elif resumed[1] in begun:
            yield begun.pop(resumed[1]) + resumed[2]


def text_of(arguments: str) -> list[bytes]:
    return [
        bytes.fromhex(text.replace("\\x", "")) for text in re.findall(r'"((?:\\x..)*)"', arguments)
    ]


def name_of(kind: str, arguments: str, folder: Path) -> str | None:
    """Name of the file of a call, below the folder; None when it is elsewhere or a folder."""
    if kind in ("openat", "unlink", "unlinkat", "rename"):
        path = Path(text_of(arguments)[0].decode())
    else:
        shown = re.match(r"\d+<([^>]*)>", arguments)
        if shown is None:
            return None
        # Strings are in hexadecimal, and so are paths.
        path = Path(bytes.fromhex(shown[1].replace("\\x", "")).decode())
    if folder not in path.parents or path.is_dir():
        return None
    return str(path.relative_to(folder))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def restore(files: dict[str, bytes], folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def state(folder: Path) -> tuple[Any, ...]:
    with Index.open(folder) as index:
        ids = index.ids()
        stored = index.all_vectors(ids).tobytes() if ids else b""
        words = [index.search_text(item.caption.split()[0], 99).ids for item in ITEMS[::7]]
        if ids:
            queries = index.all_vectors(ids[:1])
            found = index.search(queries, index.space, 3)
            assert np.isfinite(found.scores[0]).all()
        return sorted(index.items(), key=lambda item: item.id), ids, stored, words


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[Call]]:
    """Files at the start, and what a writer did to them."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt-get install strace")
    folder = tmp_path_factory.mktemp("power") / "index"
    Index.open(folder, create=True).close()
    before = contents(folder)
    log = folder.parent / "log"
    worker = Path(__file__).with_name("power_loss_worker.py")
    trace = ["strace", "-f", "-y", "-xx", "-s", "10000000", "-e", f"trace={CALLS}", "-o", str(log)]
    subprocess.run([*trace, sys.executable, str(worker), str(folder)], check=True)
    calls = list(calls_of(log, folder))
    disk = Disk(safe=dict(before))
    for call in calls:
        disk.do(call)
    replayed = {
        name: data for name, data in disk.after_power_loss(1.0, random.Random(0)).items() if data
    }
    # The replay is complete: with nothing lost it gives what the writer left.
    real = {name: data for name, data in contents(folder).items() if not name.endswith("-shm")}
    assert replayed == {name: data for name, data in real.items() if data}
    return before, calls


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The state before the first change and after each."""
    folder = tmp_path_factory.mktemp("states") / "index"
    with Index.open(folder, create=True):
        pass
    found = [state(folder)]
    for change in CHANGES:
        with Index.open(folder) as index:
            change(index)
        found.append(state(folder))
    return found


def lose_power(
    recorded: tuple[dict[str, bytes], list[Call]],
    states: list[tuple[Any, ...]],
    folder: Path,
    step: int,
) -> int:
    """Let the power fail after each `step`-th call; returns how often it did."""
    before, calls = recorded
    disk, acknowledged, num_losses = Disk(safe=dict(before)), 0, 0
    for number, call in enumerate(calls):
        if call.kind == "said":
            acknowledged += call.name.count("acknowledged")
            continue
        disk.do(call)
        if number % step:
            continue
        for kept in (0.0, 0.5, 1.0):
            rng = random.Random(number)
            got = state(restore(disk.after_power_loss(kept, rng), folder))
            assert got in states[acknowledged : acknowledged + 2], (number, call.kind, kept)
            num_losses += 1
    assert acknowledged == len(CHANGES)
    return num_losses


def test_power_loss_at_some_calls(
    recorded: tuple[dict[str, bytes], list[Call]],
    states: list[tuple[Any, ...]],
    tmp_path: Path,
) -> None:
    assert lose_power(recorded, states, tmp_path / "index", 17) > 20


@pytest.mark.soak
def test_power_loss_at_every_call(
    recorded: tuple[dict[str, bytes], list[Call]],
    states: list[tuple[Any, ...]],
    tmp_path: Path,
) -> None:
    assert lose_power(recorded, states, tmp_path / "index", 1) > 300


def test_a_writer_that_syncs_nothing_would_be_found_out(
    recorded: tuple[dict[str, bytes], list[Call]],
    states: list[tuple[Any, ...]],
    tmp_path: Path,
) -> None:
    """The law can fail: without its syncs the same writer loses what it acknowledged."""
    before, calls = recorded
    unsynced = [call for call in calls if call.kind != "sync"]
    with pytest.raises(AssertionError):
        lose_power((before, unsynced), states, tmp_path / "index", 17)
