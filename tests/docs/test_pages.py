"""Commands and programs in README and docs work as written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from costream.cli import _application

ROOT = Path(__file__).parents[2]
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(languages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        if page.exists():
            for language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
                if language in languages:
                    yield str(page.relative_to(ROOT)), text


def commands(program: str) -> list[tuple[str, str]]:
    found = []
    for page, text in blocks(("", "sh", "bash", "console", "shell", "text")):
        for written in text.replace("\\\n", " ").splitlines():
            line = written.strip().removeprefix("$ ")
            if line.startswith(f"{program} "):
                found.append((page, line.split(" | ")[0].split(" > ")[0]))
    return found


def parse(words: list[str]) -> None:
    """Parse without running; typer raises on what it does not know."""
    application: Any = _application()
    context = application.make_context("costream", list(words[:1]), resilient_parsing=True)
    verb = application.get_command(context, words[0])
    assert verb is not None, f"there is no verb {words[0]}"
    try:
        verb.make_context(words[0], list(words[1:]))
    except typer.Exit:
        pass  # --help


@pytest.mark.parametrize(("page", "line"), commands("costream"))
def test_a_command_line_is_understood(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    # What a reader fills in, as in a synopsis.
    if not {"[", "|", "..."} & {word[0] for word in words if word} and words:
        parse(words)


@pytest.mark.parametrize(("page", "line"), commands("make"))
def test_a_make_target_exists(page: str, line: str) -> None:
    target = shlex.split(line, comments=True)[1]
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(target)}:", rules, re.MULTILINE), f"{page}: {line}"


@pytest.mark.parametrize(("page", "text"), list(blocks(("python", "py"))))
def test_a_python_example_compiles(page: str, text: str) -> None:
    if ">>>" not in text:
        compile(text, page, "exec")


def test_unknown_options_would_be_noticed() -> None:
    """The check can fail."""
    with pytest.raises(Exception, match="No such option"):
        parse(["search", "x", "--no-such-option"])
