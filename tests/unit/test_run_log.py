"""A run that was logged is never made again, and a run that was cut off counts as not done."""

from __future__ import annotations

from pathlib import Path

import pytest

from costream.errors import DataError
from costream.evaluate.run_log import RunLog, run_key


def test_runs_are_found_again_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "made" / "runs.jsonl"
    first = RunLog(path)
    first.add({"seed": 0, "sizes": (1, 2)}, {"hit@1": 0.1 + 0.2})
    first.add({"seed": 1, "sizes": (1, 2)}, {"hit@1": 1e-300})
    again = RunLog(path)
    assert len(again) == 2
    # Bit for bit, whatever the order of the settings.
    assert again.get({"sizes": [1, 2], "seed": 0}) == {"hit@1": 0.1 + 0.2}
    assert again.get({"seed": 1, "sizes": (1, 2)}) == first.get({"seed": 1, "sizes": (1, 2)})


def test_other_settings_are_another_run() -> None:
    log = RunLog(None)
    log.add({"seed": 0, "k": 1.0}, {"hit@1": 1.0})
    for other in (
        {"seed": 0},
        {"seed": 0, "k": 2.0},
        {"seed": 0, "k": None},
        {"seed": 0, "j": 1.0},
    ):
        assert log.get(other) is None


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_cut_off_by_a_hard_stop_is_made_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "runs.jsonl"
    log = RunLog(path)
    log.add({"seed": 0}, {"hit@1": 1.0})
    log.add({"seed": 1}, {"hit@1": 2.0})
    path.write_bytes(path.read_bytes()[:-cut])
    again = RunLog(path)
    assert again.get({"seed": 0}) == {"hit@1": 1.0}
    assert again.get({"seed": 1}) is None
    again.add({"seed": 2}, {"hit@1": 3.0})
    assert len(RunLog(path)) == 2


@pytest.mark.parametrize("line", ["{", "[]", '{"settings": {}}', "seed 0"])
def test_a_line_that_is_no_run_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "runs.jsonl"
    RunLog(path).add({"seed": 0}, {"hit@1": 1.0})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        RunLog(path)


def test_keys_do_not_depend_on_order_or_on_tuple_or_list() -> None:
    assert run_key({"a": 1, "b": (2, 3)}) == run_key({"b": [2, 3], "a": 1})
    assert run_key({"a": 1}) != run_key({"a": 1.5})
