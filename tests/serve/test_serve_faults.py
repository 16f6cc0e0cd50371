"""The service as a process: it says when it is ready, tells when it is not, and ends well."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from serving import KEY, encoded, serving

from costream.data import decode_apart
from costream.serve import service
from costream.serve.models import ModelParts
from costream.serve.settings import Limits, ServeSettings

Program = Any  # of tests/conftest.py, which cannot be imported


@contextlib.contextmanager
def program(
    index: Path | str, model: Path | None, *words: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`costream serve` as a process, and its URL."""
    command = [sys.executable, "-m", "costream", "serve", "--index", str(index)]
    named = [] if model is None else ["--model", str(model)]
    process = subprocess.Popen(
        [*command, *named, "--port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), process.communicate()[1]
        yield process, url
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_begun_is_finished_before_the_end(
    shared_index_dir: Path, tiny_model_dir: Path, number: signal.Signals
) -> None:
    """A signal under load: no request that was taken is lost, and none is taken after."""
    with program(shared_index_dir, tiny_model_dir) as (process, url):
        answered: list[int] = []
        refused: list[float] = []
        signalled = threading.Event()

        def ask(worker: int) -> None:
            with httpx.Client(base_url=url, timeout=60) as client:
                for n in range(10_000):
                    asked = signalled.is_set()
                    try:
                        answered.append(client.get(f"search?q=w{worker}+{n}").status_code)
                    except httpx.ConnectError:
                        refused.append(time.monotonic())
                        return
                    except httpx.TransportError as error:
                        # A connection kept open may be closed just when the next request is sent
                        # on it; before the signal nothing may be lost.
                        assert asked or signalled.is_set(), error
                        return

        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(ask, worker) for worker in range(8)]
            while len(answered) < 50 and process.poll() is None:
                time.sleep(0.01)
            signalled.set()
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
            for each in asking:
                each.result()
        assert set(answered) == {200}
        assert process.returncode == 0, errors
        assert "Traceback" not in errors


def test_a_long_request_outlives_the_signal(shared_index_dir: Path, tiny_model_dir: Path) -> None:
    """Many large pictures take long enough to be hit by the signal."""
    body = {"images": [encoded(Image.new("L", (2500, 2500)))] * 8}
    with program(shared_index_dir, tiny_model_dir) as (process, url):
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx.post, f"{url}embed", json=body, timeout=60)
            while "costream_in_flight 1.0" not in httpx.get(f"{url}metrics", timeout=60).text:
                assert not asked.done()
            process.send_signal(signal.SIGTERM)
            answer = asked.result()
            assert answer.status_code == 200, answer.text
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors


def test_nothing_is_listened_at_that_is_taken(
    client: httpx.Client, shared_index_dir: Path, tiny_model_dir: Path, costream_program: Program
) -> None:
    ran = costream_program.here(
        "serve",
        "--index",
        shared_index_dir,
        "--model",
        tiny_model_dir,
        "--port",
        str(client.base_url.port),
        cwd=shared_index_dir,
        code=2,
    )
    assert "another --port" in ran.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--index", "absent"], "absent"),
        (["--host", "0.0.0.0"], "API keys"),  # noqa: S104
        (["--host", "0.0.0.0", "--api-key-file", "absent"], "cannot be read"),  # noqa: S104
        (["--host", "no-such-host.invalid", "--api-key-file", "keys"], "cannot listen"),
        (["--host", "no..name", "--api-key-file", "keys"], "cannot listen"),
    ],
)
def test_what_cannot_be_served_is_refused(
    index_dir: Path,
    tiny_model_dir: Path,
    costream_program: Program,
    words: list[str],
    told: str,
) -> None:
    folder = index_dir.parent
    (folder / "keys").write_text(KEY)
    words = words if "--index" in words else ["--index", "index", *words]
    ran = costream_program.here("serve", "--model", tiny_model_dir, *words, cwd=folder, code=2)
    assert told in ran.stderr


def test_keys_of_a_file_open_the_door(
    index_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# for the phone\n{KEY}\n")
    words = ("--host", "0.0.0.0", "--api-key-file", str(keys), "--verbose")  # noqa: S104
    with program(index_dir, tiny_model_dir, *words) as (process, url):
        port = httpx.URL(url).port
        base = f"http://127.0.0.1:{port}/"
        assert httpx.get(f"{base}items").status_code == 401
        found = httpx.get(f"{base}items", headers={"Authorization": f"Bearer {KEY}"})
        assert found.status_code == 200
        assert str(tmp_path) not in found.text
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert "GET /items 401" in errors
        assert KEY not in errors
        assert os.fspath(tmp_path / "pictures") not in errors


# --- readiness ---


class Faulty:
    """A tower that works until it is told not to."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.space = inner.space
        self.fault = ""
        self.released = threading.Event()

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        if self.fault == "raises":
            raise RuntimeError("out of order")
        if self.fault == "hangs":
            self.released.wait(60)
        if self.fault == "exits":
            raise SystemExit
        found: NDArray[np.float32] = self._inner.encode_texts(texts)
        return found * np.nan if self.fault == "gives NaN" else found


@pytest.mark.parametrize("fault", ["raises", "hangs", "exits", "gives NaN"])
def test_a_model_that_does_not_work_is_not_ready(
    shared_index_dir: Path,
    tiny_model_dir: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "_READY_S", 0.0)
    monkeypatch.setattr(service, "_READY_TIMEOUT_S", 5.0)
    faulty: list[Faulty] = []

    def change(parts: ModelParts) -> ModelParts:
        faulty.append(Faulty(parts.words))
        return replace(parts, words=faulty[0])

    with serving(shared_index_dir, tiny_model_dir, change=change) as client:
        assert client.get("ready").json() == {"status": "ready"}
        faulty[0].fault = fault
        monkeypatch.setattr(service, "_READY_TIMEOUT_S", 0.5)
        answer = client.get("ready")
        assert answer.status_code == 503
        assert answer.json()["detail"]
        # The process lives, and what needs no model works.
        assert client.get("health").status_code == 200
        assert client.get("items").status_code == 200
        faulty[0].fault = ""
        faulty[0].released.set()
        monkeypatch.setattr(service, "_READY_TIMEOUT_S", 5.0)
        assert client.get("ready").status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_thread_that_is_dead_is_not_ready(
    shared_index_dir: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_READY_S", 0.0)
    started: list[threading.Thread] = []
    before = set(threading.enumerate())
    with serving(shared_index_dir, tiny_model_dir) as client:
        assert client.get("ready").status_code == 200
        started += [t for t in set(threading.enumerate()) - before if t.name == "costream-words"]
        assert len(started) == 1

        kill(started[0])
        begin = time.monotonic()
        # The one that it dies with, and those after.
        for number in range(3):
            answer = client.get(f"search?q=red{number}")
            assert answer.status_code == 503
            assert "ended" in answer.json()["detail"]
        assert client.get("ready").status_code == 503
        assert client.get("items").status_code == 200
        assert time.monotonic() - begin < 10


def kill(thread: threading.Thread) -> None:
    """End a thread by an exception that comes from nowhere, as a fault in a library would."""
    import ctypes

    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(MemoryError)
    )


def test_being_ready_is_tried_once_a_second(shared_index_dir: Path, tiny_model_dir: Path) -> None:
    calls: list[int] = []

    class Counting(Faulty):
        def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
            calls.append(len(texts))
            return super().encode_texts(texts)

    def change(parts: ModelParts) -> ModelParts:
        return replace(parts, words=Counting(parts.words))

    with (
        serving(shared_index_dir, tiny_model_dir, change=change) as client,
        ThreadPoolExecutor(10) as pool,
    ):
        begin = time.monotonic()
        answers = list(pool.map(lambda _: client.get("ready").status_code, range(50)))
        assert set(answers) == {200}
        assert len(calls) <= time.monotonic() - begin + 2


def test_metrics_count_what_happened(client: httpx.Client) -> None:
    def counted(line: str) -> float:
        for each in client.get("metrics").text.splitlines():
            if each.startswith(line + " "):
                return float(each.split()[-1])
        return 0.0

    good = 'costream_requests_total{method="GET",route="/search",status="200"}'
    bad = 'costream_requests_total{method="POST",route="/search",status="422"}'
    other = 'costream_requests_total{method="GET",route="other",status="404"}'
    before = [counted(line) for line in (good, bad, other)]
    client.get("search?q=red")
    client.post("search", json={})
    client.get("no/such/place")
    client.get("another")
    assert [counted(line) for line in (good, bad, other)] == [
        before[0] + 1,
        before[1] + 1,
        before[2] + 2,
    ]
    assert counted("costream_in_flight") == 0
    text = client.get("metrics").text
    assert 'route="/items/{id}/thumbnail"' in text or "no/such" not in text
    json.dumps(text)


def test_every_fault_of_the_table_has_its_tests() -> None:
    """FAULTS.md names tests that are there."""
    folder = Path(__file__).parent
    named = re.findall(r"`(\w+): (\w+)`", (folder / "FAULTS.md").read_text(encoding="utf-8"))
    assert len(named) > 25
    for file, name in named:
        if name == "name":
            continue
        source = (folder / f"test_serve_{file}.py").read_text(encoding="utf-8")
        assert f"def test_{name}(" in source, (file, name)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("segfault", "crashed its decoder (SIGSEGV)"),
        ("abort", "crashed its decoder (SIGABRT)"),
        ("spin", "kept its decoder busy"),
        ("nonsense", "made its decoder answer nonsense"),
    ],
)
def test_a_picture_that_breaks_its_decoder_is_refused_and_the_next_is_answered(
    what: str,
    words: str,
    shared_index_dir: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pictures that are sent are decoded in a process of their own."""
    bad = Path(__file__).parents[1] / "faults" / "bad_decoder.py"
    monkeypatch.setattr(decode_apart, "_COMMAND", (sys.executable, "-P", str(bad)))
    seconds = 2.0 if what == "spin" else 60.0
    settings = ServeSettings(port=0, limits=Limits(answer_s=seconds))
    sent = base64.b64encode(b"P6 bad: " + what.encode()).decode()
    with serving(shared_index_dir, tiny_model_dir, settings) as client:
        refused = client.post("/search", json={"terms": [{"image": sent}]})
        assert refused.status_code == 422, refused.text
        assert words in refused.text
        good = encoded(Image.new("RGB", (50, 40), "red"))
        for _ in range(20):
            # The decoder that takes the place of the lost one may take longer than `spin` leaves.
            answer = client.post("/search", json={"terms": [{"image": good}]})
            if answer.status_code == 200:
                break
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"]
