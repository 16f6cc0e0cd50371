"""Law: every example of docs/service.md runs as written against a real service.

In a shell and with curl, as people paste them; every route of the description has an example.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from serving import GALLERY, KEY, PATIENT, serving

from costream.serve.keys import KeyRing

PAGE = Path(__file__).parents[2] / "docs" / "service.md"
ADDRESS = "http://127.0.0.1:8080"
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str, *, keyed: bool) -> list[str]:
    page = PAGE.read_text(encoding="utf-8")
    found = [text for kind, text in _BLOCK.findall(page) if kind == language]
    assert found
    return [text for text in found if ("$KEY" in text) == keyed]


def run_shell(script: str, folder: Path) -> str:
    # Errors of HTTP are errors of the script.
    whole = f'curl() {{ command curl --fail-with-body -sS "$@"; echo; }}\n{script}'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", whole],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout[-2000:]}"
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_examples_run(service: httpx.Client, tmp_path: Path) -> None:
    shutil.copy(GALLERY / "husky.jpg", tmp_path)
    url = str(service.base_url).rstrip("/")
    said = run_shell("\n".join(blocks("bash", keyed=False)).replace(ADDRESS, url), tmp_path)
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    searches = [answer["results"] for answer in answers if "results" in answer]
    assert len(searches) == 4
    assert searches[2][0]["name"] == "husky.jpg"
    for name in ("thumbnail.jpg", "original.jpg"):
        assert (tmp_path / name).read_bytes().startswith(b"\xff\xd8")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_examples_of_keys_run(gallery_dir: Path, tmp_path: Path) -> None:
    settings = replace(PATIENT, keys=KeyRing([KEY]))
    with serving(gallery_dir, Path("cots-mini"), settings) as client:
        begin = f"U={str(client.base_url).rstrip('/')}\nKEY={KEY}\n"
        said = run_shell(begin + "\n".join(blocks("bash", keyed=True)), tmp_path)
        assert said.count('"total":24') == 2


def test_the_example_of_openais_client_runs(service: httpx.Client, tmp_path: Path) -> None:
    (text,) = blocks("python", keyed=False)
    program = text.replace(f"{ADDRESS}/", str(service.base_url))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "256", done.stderr


def test_every_route_has_an_example(service: httpx.Client) -> None:
    script = "\n".join(blocks("bash", keyed=False) + blocks("bash", keyed=True))
    asked = {address.partition("?")[0] for address in re.findall(r'"\$U(/[^"]*)"', script)}
    routes = {path.replace("{id}", "$ID") for path in service.get("openapi.json").json()["paths"]}
    assert asked - {"/openapi.json"} == routes
