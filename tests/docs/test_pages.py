"""Law: every command and program in README and docs runs as written, or says why it is not run.

A block is run in the world of `pages.make_world`, page by page, from the top, without a network:
what a command needs was made by the world or by a command before it. A block that cannot be run
here has `<!-- not run: the reason -->` before it; its commands are understood at least.

Training is shortened: a few steps of a few pictures show that the command works.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from pages import PAGES, PYTHON, ROOT, SHELL, Block, blocks_of, inline_code, make_world

from costream.cli import VERBS, _application
from costream.encoders.locate import shipped_models

Program = Any  # of tests/conftest.py, which cannot be imported

# What every training command gets, whatever it says itself.
SHORT = {"steps": "2", "batch_size": "4"}
# Of the methods that have these options.
SHORT_CODES = {"visual_tokenizer": "kmeans", "visual_codes": "16"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def all_blocks() -> list[Block]:
    return [b for page in PAGES for b in blocks_of(page.read_text("utf-8"), name_of(page))]


# --- running ---


class Runner:
    """Runs the blocks of one page, one after the other, in one world.

    The first command runs as the installed program in a real shell, the second as
    `python -m costream`, all others in this process.
    """

    def __init__(self, program: Program, world: Path, home: Path) -> None:
        self.program, self.world = program, world
        self.environment = os.environ | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self.names: dict[str, Any] = {"__name__": "page"}
        self.ran = 0

    def run(self, block: Block) -> None:
        """Run a block, or fail."""
        if block.language in SHELL:
            for line in block.commands:
                self.line(line, block.place)
        elif block.language in PYTHON:
            with contextlib.chdir(self.world), contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.text, block.place, "exec"), self.names)  # noqa: S102
        else:
            pytest.fail(f"{block.place}: a block of {block.language} is not run and has no reason")

    def line(self, line: str, place: str) -> None:
        words = shlex.split(line, comments=True)
        assert words[0] == "costream", f"{place}: {line!r} is neither run nor has a reason"
        assert not re.search(r"[|><;&$*]", re.sub(r"\"[^\"]*\"|'[^']*'|#.*", "", line)), line
        self.ran += 1
        said = self.output(line, words[1:], place)
        if "--json" in words:
            json.loads(said)

    def output(self, line: str, words: list[str], place: str) -> str:
        if self.ran == 1:
            done = subprocess.run(
                ["sh", "-c", line],
                cwd=self.world,
                env=self.environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{place}: {line}\n{done.stderr}"
            return done.stdout
        words = [re.sub(r"^~(?=/|$)", self.environment["HOME"], word) for word in words]
        if words[0] == "train":
            words = shortened(words)
        run = self.program if self.ran == 2 else self.program.here
        return str(run(*words, cwd=self.world).stdout)


def shortened(words: list[str]) -> list[str]:
    """A training command with the settings of `SHORT` in place of its own."""
    settings = SHORT | SHORT_CODES if "cots" in words[1].split(",") else SHORT
    kept = [word for word in words if word.partition("=")[0] not in settings]
    if kept[-1] == "--set":
        kept.pop()
    return [*kept, "--set", *(f"{key}={value}" for key, value in settings.items())]


@pytest.fixture
def runner(costream_program: Program, tmp_path: Path) -> Iterator[Runner]:
    home = make_world(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        # No name of a command may be fetched: what needs a network has to say so.
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HOME", str(home))
        yield Runner(costream_program, tmp_path, home)


@pytest.mark.skipif(not shipped_models(), reason="the default model is not in this checkout")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_runs_or_says_why_not(page: Path, runner: Runner) -> None:
    blocks = blocks_of(page.read_text("utf-8"), name_of(page))
    for block in blocks:
        if block.reason is None:
            runner.run(block)


# --- what is not run is understood ---


def parse(words: list[str]) -> None:
    """Parse without running; typer raises on what it does not know."""
    application: Any = _application()
    context = application.make_context("costream", list(words[:1]), resilient_parsing=True)
    verb = application.get_command(context, words[0])
    assert verb is not None, f"there is no verb {words[0]}"
    with contextlib.suppress(typer.Exit):  # --help
        verb.make_context(words[0], list(words[1:]))


def not_run(program: str) -> list[tuple[str, str]]:
    return [
        (block.place, line)
        for block in all_blocks()
        if block.reason is not None and block.language in SHELL
        for line in block.commands
        if line.startswith(f"{program} ")
    ]


def inline(program: str) -> list[tuple[str, str]]:
    return [
        (name_of(page), code)
        for page in PAGES
        for code in inline_code(page.read_text("utf-8"))
        if code.startswith(f"{program} ")
    ]


@pytest.mark.parametrize(("place", "line"), not_run("costream"))
def test_a_command_that_is_not_run_is_understood(place: str, line: str) -> None:
    parse(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize(("place", "line"), inline("costream"))
def test_a_verb_in_a_sentence_exists(place: str, line: str) -> None:
    assert line.split()[1] in VERBS, f"{place}: {line}"


@pytest.mark.parametrize(("place", "line"), not_run("make") + inline("make"))
def test_a_make_target_exists(place: str, line: str) -> None:
    target = shlex.split(line, comments=True)[1]
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(target)}:", rules, re.MULTILINE), f"{place}: {line}"


# --- the checks can fail ---


def page_of(text: str, language: str = "", before: str = "") -> list[Block]:
    return blocks_of(f"# A page\n\n{before}```{language}\n{text}\n```\n", "page.md")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("pip install something", ""),
        ("costream methods\nls", "sh"),
        ("costream methods | head", ""),
        ("costream methods --no-such-option", ""),
        ("costream serch x", ""),
        ("raise ValueError", "python"),
        ("x = ", "python"),
        ("{}", "json"),
    ],
)
def test_a_block_that_does_not_run_fails(text: str, language: str, runner: Runner) -> None:
    runner.ran = 2
    with pytest.raises((AssertionError, Exception, pytest.fail.Exception)):
        runner.run(page_of(text, language)[0])


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("<!-- not run: needs a network -->\n", "needs a network"),
        ("<!-- not run: needs a network -->\n\n", "needs a network"),
        ("<!-- not run: needs a network -->\n\nSome words.\n\n", None),
        ("<!-- not run -->\n", None),
    ],
)
def test_a_reason_stands_right_before_its_block(before: str, reason: str | None) -> None:
    assert page_of("costream methods", before=before)[0].reason == reason


def test_a_training_command_is_shortened_in_place() -> None:
    words = ["train", "x", "--set", "steps=500", "learning_rate=1"]
    assert shortened(words)[:4] == ["train", "x", "--set", "learning_rate=1"]
    assert shortened(["train", "--set", "steps=5"])[:2] == ["train", "--set"]
    assert "steps=2" in shortened(words)


def test_unknown_options_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["search", "x", "--no-such-option"])


def test_the_world_is_what_the_pages_need(tmp_path: Path) -> None:
    home = make_world(tmp_path)
    lines: list[Mapping[str, Any]] = [
        json.loads(line) for line in (tmp_path / "captions.jsonl").read_text("utf-8").splitlines()
    ]
    assert len(lines) == len(list((home / "Pictures").iterdir())) == 6
    assert all((tmp_path / line["image"]).is_file() for line in lines)
