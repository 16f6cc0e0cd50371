"""The pages of the methods say what their files and stored results say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from costream.card import find_methods
from costream.evaluate.claim_results import read_results, shipped_results

ROOT = Path(__file__).parents[2]
CLAIMS = ROOT / "src" / "costream" / "assets" / "claims"


def test_the_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "method_pages.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\nrun python tools/method_pages.py"


def test_stored_results_are_of_methods_and_were_run_in_full() -> None:
    for name, result in shipped_results().items():
        assert name in find_methods()
        assert not result.fast
        assert result.seconds > 0


def test_a_verdict_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    from costream.errors import DataError

    path = next(CLAIMS.glob("*.json"))
    stored = json.loads(path.read_text())
    row = stored["claims"][0]["rows"][0]
    row["verdict"] = "shown" if row["verdict"] != "shown" else "contradicted"
    (tmp_path / path.name).write_text(json.dumps(stored))
    with pytest.raises(DataError, match="its numbers say"):
        read_results(tmp_path)
