"""A new method is two files: in a fresh copy the tool writes them, and it appears everywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "scratch_method"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with a fourteenth method, written by the tool and nothing else."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("src", "tests", "tools"):
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    before = files_of(copy)
    done = run(copy, "tools/new_method.py", NAME)
    assert done.returncode == 0, done.stderr
    added = {str(path.relative_to(copy)) for path in files_of(copy) - before}
    assert added == {f"src/costream/methods/{NAME}.py", f"tests/methods/test_{NAME}.py"}
    return copy


def files_of(folder: Path) -> set[Path]:
    return {p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def run(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_listed(checkout: Path) -> None:
    done = run(checkout, "-m", "costream", "methods", "--json")
    (card,) = [m for m in json.loads(done.stdout)["methods"] if m["name"] == NAME]
    assert (card["index_impact"], card["claim"]) == ("reencode", "not run")


def test_it_trains(checkout: Path, tmp_path: Path) -> None:
    program = (
        "import costream; from costream.data import make_scenes; "
        f"costream.train({NAME!r}, make_scenes(8), {str(tmp_path / 'run')!r}, "
        "{'start': 'random', 'preset': 'tiny', 'steps': '2', 'batch_size': '4'})"
    )
    done = run(checkout, "-c", program)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_its_claim_runs_and_is_in_the_report(checkout: Path, tmp_path: Path) -> None:
    words = ["-m", "costream", "reproduce", NAME, "--fast", "--seeds", "2", "--report"]
    done = run(checkout, *words, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f'<section id="{NAME}">' in (tmp_path / "report.html").read_text()


def test_its_tests_and_contracts_pass(checkout: Path) -> None:
    chosen = [f"tests/methods/test_{NAME}.py", "tests/contracts/test_method_contract.py"]
    done = run(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", NAME, *chosen)
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_name_that_is_taken_or_no_name_is_refused(checkout: Path) -> None:
    for name in (NAME, "two-words", "class", "Big"):
        done = run(checkout, "tools/new_method.py", name)
        assert done.returncode == 2
        assert done.stdout.strip()
