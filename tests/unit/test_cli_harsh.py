"""The program under users in a hurry: wrong words, closed streams, folders that are gone.

Laws: a refusal says what to do; work is not begun whose result could not be kept; nothing that is
left out goes without a word and exit code 1.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Program = Any  # of tests/conftest.py, which cannot be imported

COSTREAM = f"{sys.executable} -m costream"


@pytest.fixture
def costream(costream_program: Program) -> Program:
    return costream_program


@pytest.fixture
def manifest(tmp_path: Path, three_pictures: list[Path]) -> Path:
    """Three pictures with a caption each."""
    lines = [
        {"image": f"pictures/{picture.name}", "captions": [f"a {picture.stem} one"]}
        for picture in three_pictures
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# --- words ---


@pytest.mark.parametrize(
    "words",
    [
        ("index", ""),
        ("index", "pictures", "--index", ""),
        ("index", "pictures", "--model", ""),
        ("search", "red", "--html", ""),
        ("demo", "--query", ""),
        ("train", "cots", "--data", "data.jsonl", "--out", ""),
    ],
)
def test_an_empty_argument_is_refused(
    words: tuple[str, ...], tmp_path: Path, three_pictures: list[Path], costream: Program
) -> None:
    """As a path it would be the current folder, and `$UNSET` is one."""
    error = costream.here(*words, "--json", cwd=tmp_path, code=2).json["error"]
    assert f"argument {words.index('') + 1} is empty" in error["message"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("search", "red", "car"), "quotes; see costream search --help"),
        (("index", "pictures", "--nope"), "see costream index --help"),
        (("--nope",), "see costream --help"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_help(
    words: tuple[str, ...], hint: str, tmp_path: Path, costream: Program
) -> None:
    assert hint in costream.here(*words, cwd=tmp_path, code=2).stderr


@pytest.mark.parametrize("words", [("-h",), ("search", "-h")])
def test_the_short_word_for_help(words: tuple[str, ...], tmp_path: Path, costream: Program) -> None:
    assert "Usage: costream" in costream.here(*words, cwd=tmp_path).stdout


def test_the_list_of_verbs_is_not_cut_off(tmp_path: Path, costream: Program) -> None:
    assert "..." not in costream.here("--help", cwd=tmp_path).stdout.partition("Commands:")[2]


def test_a_run_given_for_its_model_gets_a_suggestion(tmp_path: Path, costream: Program) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    stderr = costream.here("search", "red", "--index", "x", cwd=tmp_path, code=2).stderr
    assert "make one: costream index" in stderr
    words = ("evaluate", "--data", "x.jsonl", "--model", "run")
    (tmp_path / "a.png").touch()
    (tmp_path / "x.jsonl").write_text('{"image": "a.png", "caption": "a"}\n')
    assert "did you mean run/model?" in costream.here(*words, cwd=tmp_path, code=2).stderr


# --- results that could not be kept ---


@pytest.mark.parametrize("target", ["pictures", "data.jsonl/report.json", "/proc/nope/report.json"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    target: str, manifest: Path, costream: Program
) -> None:
    # The model that does not exist would be noticed later.
    words = ("evaluate", "--data", manifest, "--model", "absent", "--save", target, "--json")
    message = costream.here(*words, cwd=manifest.parent, code=2).json["error"]["message"]
    assert message.startswith(f"{target}: ")


def test_the_folder_of_a_report_is_made(
    manifest: Path, tiny_model_dir: Path, costream: Program
) -> None:
    words = ("evaluate", "--data", manifest, "--model", tiny_model_dir, "--save", "new/report.json")
    shown = costream.here(*words, cwd=manifest.parent).stdout
    assert "hit@1" in shown
    assert json.loads((manifest.parent / "new" / "report.json").read_text())["data"]["images"] == 3


# --- what is left out ---


def test_training_lists_what_it_leaves_out(
    manifest: Path, three_pictures: list[Path], tiny_model_dir: Path, costream: Program
) -> None:
    three_pictures[0].unlink()
    three_pictures[1].write_text("no picture")
    words = ["train", "cots", "--data", manifest, "--out", "run", "--json"]
    short = ["--set", f"start={tiny_model_dir}", "mvm=0", "mlm=0", "queue_size=4", "batch_size=2"]
    refused = costream.here(*words, *short, "steps=1", cwd=manifest.parent, code=2)
    assert "--allow-broken 1" in refused.json["error"]["hint"]
    allowed = ("--allow-broken", "1")
    done = costream.here(*words, *allowed, *short, "steps=1", cwd=manifest.parent, code=1)
    assert [name in " ".join(done.json["warnings"]) for name in ("red.png", "green.png")] == [
        True,
        True,
    ]
    assert "red.png" in done.stderr
    assert "green.png" in done.stderr


# --- streams and signals ---


@pytest.mark.parametrize("words", ["methods", "--help", "search -h", "--version", "models --json"])
def test_a_reader_that_stops_early_is_no_error(words: str, tmp_path: Path) -> None:
    program = subprocess.Popen(
        [*COSTREAM.split(), *words.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout is not None
    program.stdout.close()
    _, errors = program.communicate(timeout=600)
    assert (program.returncode, errors) == (0, b"")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&- <&-"])
def test_closed_streams_do_no_harm(
    closed: str, tmp_path: Path, tiny_model_dir: Path, three_pictures: list[Path], costream: Program
) -> None:
    """A file of the index must not become the place where messages go."""
    line = f"{COSTREAM} index pictures --model {tiny_model_dir} {closed}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    again = costream.here("index", "pictures", "--json", cwd=tmp_path).json
    assert (again["unchanged"], again["pictures"]) == (3, 3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", ["methods --json", "--help", "models"])
def test_a_full_disk_behind_stdout_is_refused_in_every_form(words: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COSTREAM.split(), *words.split()],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert done.stderr.startswith("costream: ")


def test_a_current_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    line = f"cd gone && rmdir ../gone && {COSTREAM} methods"
    done = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("costream: the current folder is not there any more")


INTERRUPTED = """
import os, signal, sys
# A shell starts background jobs with the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupting:
    def find_spec(self, name, *rest):
        if name == os.environ["INTERRUPTED_AT"]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from costream.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "module",
    [
        "costream.cli",  # before anything was begun
        "torch._C",  # in whose C++ an error of Python would be the end, with words of its own
    ],
)
def test_an_interrupt_while_programs_are_loaded_leaves_no_words_of_theirs(
    module: str, tmp_path: Path, three_pictures: list[Path], tiny_model_dir: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "index", "pictures", "--model", tiny_model_dir],
        cwd=tmp_path,
        env=os.environ | {"INTERRUPTED_AT": module},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")
