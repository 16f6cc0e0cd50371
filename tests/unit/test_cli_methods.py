"""`train`, `evaluate` and `reproduce` under users in a hurry.

Laws: methods go together by their names with commas between; a method that cannot do what it is
asked for says so, and is not silently left out; what was made is not replaced by what says less;
work is not begun whose result could not be kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from costream.system import load_system

Program = Any  # of tests/conftest.py, which cannot be imported


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


def training(manifest: Path, model: Path, method: str, *settings: str) -> list[str | Path]:
    words: list[str | Path] = ["train", method, "--data", manifest, "--out", "run", "--json"]
    return [*words, "--set", f"start={model}", "batch_size=3", *settings]


# --- train ---

COTS = ("mvm=0", "mlm=0", "queue_size=6", "steps=1")


def test_methods_with_commas_between_are_trained_together(
    manifest: Path, tiny_model_dir: Path, costream: Program
) -> None:
    words = training(manifest, tiny_model_dir, "cots, filip", *COTS, "filip.temperature=0.1")
    made = costream.here(*words, cwd=manifest.parent).json
    assert made["method"] == "cots,filip"
    model = load_system(made["model"]).model
    assert model.config.methods == ("filip temperature=0.1",)
    assert (manifest.parent / "run" / "model" / "card.md").read_text().count("cots,filip") == 1


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("cots,flip", "did you mean 'filip'?"),
        ("cots,", "there is no method ''"),
        ("cots,cots", "got the method 'cots' 2 times"),
    ],
)
def test_wrong_names_among_several_are_told(
    method: str, told: str, manifest: Path, tiny_model_dir: Path, costream: Program
) -> None:
    words = training(manifest, tiny_model_dir, method, *COTS)
    assert told in costream.here(*words, cwd=manifest.parent, code=2).json["error"]["message"]
    assert not (manifest.parent / "run").exists()


@pytest.mark.parametrize("out", ["data.jsonl", "data.jsonl/run"])
def test_a_run_that_could_not_be_kept_is_not_begun(
    out: str, manifest: Path, costream: Program
) -> None:
    # The data that does not exist would be noticed later.
    words = ("train", "cots", "--data", "absent.jsonl", "--out", out, "--json")
    error = costream.here(*words, cwd=manifest.parent, code=2).json["error"]
    assert error["message"].endswith("data.jsonl is a file, expected a folder")
    assert "--out" in error["hint"]


def test_a_model_made_without_steps_is_not_replaced(
    manifest: Path, tiny_model_dir: Path, costream: Program
) -> None:
    words = training(manifest, tiny_model_dir, "filip", "steps=0")
    costream.here(*words, cwd=manifest.parent)
    card = (manifest.parent / "run" / "model" / "config.json").stat().st_mtime_ns
    refused = costream.here(*words, cwd=manifest.parent, code=2).json["error"]
    assert "holds a run already" in refused["message"]
    assert (manifest.parent / "run" / "model" / "config.json").stat().st_mtime_ns == card


# --- rank steps and protocols ---


@pytest.mark.parametrize("method", ["cots", "maple", "xmai", "x_pool"])
def test_what_brings_no_rank_step_is_not_put_beside_a_model(
    method: str, manifest: Path, tiny_model_dir: Path, costream: Program
) -> None:
    """A method with surgery would measure a model with random weights in it."""
    words = ("evaluate", "--model", tiny_model_dir, "--data", manifest, "--rank", method, "--json")
    error = costream.here(*words, cwd=manifest.parent, code=2).json["error"]
    assert error["message"] == f"method {method} brings no rank step, expected one that does"
    assert "dbnorm" in error["hint"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("dbnorm bank", "got 'bank', expected key=value"),
        ("dbnorm b1=1 b1=2", "got b1=1 and b1=2"),
        ("dbnorm bnak=x", "did you mean 'bank'?"),
        ("dbnorm b1=nan", "expected a number at least 0"),
        ("dbnrom", "did you mean 'dbnorm'?"),
    ],
)
def test_wrong_settings_of_a_rank_step_are_told(
    words: str, told: str, manifest: Path, tiny_model_dir: Path, costream: Program
) -> None:
    ask = ("evaluate", "--model", tiny_model_dir, "--data", manifest, "--rank", words, "--json")
    error = costream.here(*ask, cwd=manifest.parent, code=2).json["error"]
    assert told in error["message"]


# --- reproduce ---

FAST = ("reproduce", "dbnorm", "--fast", "--seeds", "2", "--json")


def test_an_experiment_whose_result_could_not_be_kept_is_not_begun(
    tmp_path: Path, costream: Program
) -> None:
    (tmp_path / "file").touch()
    error = costream.here(*FAST, "--out", "file", cwd=tmp_path, code=2).json["error"]
    assert error["message"].startswith("file/dbnorm.json: cannot be written")


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_result_is_told_before_the_experiment(
    content: str, tmp_path: Path, costream: Program
) -> None:
    (tmp_path / "dbnorm.json").write_text(content, encoding="latin-1")
    ran = costream.here(*FAST, "--out", ".", cwd=tmp_path, code=2)
    assert "dbnorm.json is no" in ran.json["error"]["message"]
    assert "remove it" in ran.json["error"]["hint"]
    assert "toy space" not in ran.stderr


def test_a_result_in_full_is_not_replaced_by_one_that_proves_nothing(
    tmp_path: Path, costream: Program
) -> None:
    costream.here(*FAST, "--out", ".", cwd=tmp_path)
    stored = json.loads((tmp_path / "dbnorm.json").read_text()) | {"fast": False}
    (tmp_path / "dbnorm.json").write_text(json.dumps(stored))
    error = costream.here(*FAST, "--out", ".", cwd=tmp_path, code=2).json["error"]
    assert "--fast would replace" in error["message"]
    assert json.loads((tmp_path / "dbnorm.json").read_text()) == stored


def test_numbers_that_were_found_again_keep_the_time_that_they_took(
    tmp_path: Path, costream: Program
) -> None:
    """Of a finished experiment every run is in its log: asked again it takes no time."""
    costream.here(*FAST, "--out", ".", cwd=tmp_path)
    path = tmp_path / "dbnorm.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 4321.0}))
    costream.here(*FAST, "--out", ".", cwd=tmp_path)
    assert json.loads(path.read_text())["seconds"] == 4321.0


def test_a_folder_without_the_data_that_is_wanted_is_told(
    tmp_path: Path, costream: Program
) -> None:
    ran = costream.here(*FAST, "--data-root", ".", cwd=tmp_path)
    assert "has no flickr8k/train.jsonl" in ran.stderr


def test_a_report_of_results_that_are_not_there_is_refused(
    tmp_path: Path, costream: Program
) -> None:
    error = costream.here("reproduce", "--report", "--json", cwd=tmp_path, code=2).json["error"]
    assert error["message"] == "there is no folder reproduced with results to report"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", ['{"claims": []}', '{"method": "a", "claims": [1]}', '{"method": 1, "claims": 1}']
)
def test_a_report_names_the_file_that_is_no_result(
    content: str, tmp_path: Path, costream: Program
) -> None:
    (tmp_path / "other.json").write_text(content)
    words = ("reproduce", "--report", "--out", ".", "--json")
    error = costream.here(*words, cwd=tmp_path, code=2).json["error"]
    assert error["message"] == "other.json is no result of a claim"
