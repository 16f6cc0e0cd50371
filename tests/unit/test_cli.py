"""The program as people and scripts use it: real processes on real files.

Laws: exactly the promised JSON; exit codes 0 done, 1 done with failures, 2 refused; one clean
message instead of a traceback; results to stdout and everything else to stderr.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Program = Any  # of tests/conftest.py, which cannot be imported


@pytest.fixture
def costream(costream_program: Program) -> Program:
    return costream_program


@pytest.fixture
def indexed(
    tmp_path: Path, tiny_model_dir: Path, three_pictures: list[Path], costream_program: Program
) -> Path:
    """A folder with three pictures in `pictures` and an index of them."""
    costream_program.here("index", "pictures", "--model", tiny_model_dir, cwd=tmp_path)
    return tmp_path


# --- index ---


def test_index_is_incremental(
    tmp_path: Path, tiny_model_dir: Path, three_pictures: list[Path], costream: Program
) -> None:
    words = ("index", "pictures", "--json")
    first = costream(*words, "--model", tiny_model_dir, cwd=tmp_path).json
    assert (first["added"], first["unchanged"], first["pictures"]) == (3, 0, 3)
    assert first["failures"] == []
    # The second run needs no --model: the index knows its own.
    again = costream.here(*words, cwd=tmp_path).json
    assert (again["added"], again["unchanged"], again["embedded"]) == (0, 3, 0)

    Image.new("RGB", (40, 40), "white").save(three_pictures[0])
    three_pictures[2].unlink()
    changed = costream.here(*words, cwd=tmp_path).json
    assert (changed["changed"], changed["removed"], changed["pictures"]) == (1, 0, 3)
    pruned = costream.here(*words, "--prune", cwd=tmp_path).json
    assert (pruned["removed"], pruned["pictures"]) == (1, 2)


def test_broken_files_are_listed_and_do_not_stop_the_run(
    tmp_path: Path, tiny_model_dir: Path, three_pictures: list[Path], costream: Program
) -> None:
    (tmp_path / "pictures" / "notes.jpg").write_text("no picture at all")
    (tmp_path / "pictures" / "empty.jpg").touch()
    done = costream("index", "pictures", "--model", tiny_model_dir, cwd=tmp_path, code=1)
    assert "3 added, 2 failed; 3 pictures in .costream" in done.stdout
    assert "2 not indexed:" in done.stderr
    assert "pictures/empty.jpg: " in done.stderr
    assert "pictures/notes.jpg: " in done.stderr
    report = costream.here("index", "pictures", "--json", cwd=tmp_path, code=1).json
    assert {Path(each["path"]).name for each in report["failures"]} == {"empty.jpg", "notes.jpg"}
    assert all(each["reason"] for each in report["failures"])


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_nothing_to_index_is_refused_and_makes_no_index(
    tmp_path: Path, folder: str, costream: Program
) -> None:
    (tmp_path / "empty").mkdir()
    done = costream("index", folder, cwd=tmp_path, code=2)
    assert folder in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / ".costream").exists()


def test_prune_may_empty_an_index(
    indexed: Path, three_pictures: list[Path], costream: Program
) -> None:
    for picture in three_pictures:
        picture.unlink()
    report = costream.here("index", "pictures", "--prune", "--json", cwd=indexed).json
    assert (report["removed"], report["pictures"]) == (3, 0)


def test_another_model_is_refused(indexed: Path, other_model_dir: Path, costream: Program) -> None:
    other = ("--model", other_model_dir, "--json")
    for words in (("index", "pictures"), ("search", "red")):
        error = costream.here(*words, *other, cwd=indexed, code=2).json["error"]
        assert error["kind"] == "SpaceMismatch"
    # The refused model must not have become the one of the index.
    assert len(costream("search", "red", "--json", cwd=indexed).json["results"]) == 3


# --- search ---


def test_search_json_has_the_promised_form(indexed: Path, costream: Program) -> None:
    found = costream("search", "red", "--top", "2", "--json", cwd=indexed).json
    assert list(found) == [
        *("query", "results", "exact", "recall", "kernel", "total", "nothing_relevant", "unjudged")
    ]
    assert found["query"] == "red"
    fields = ["rank", "id", "path", "score", "relevance", "modality", "span", "reasons"]
    assert [list(each) for each in found["results"]] == [[*fields, "duplicates"]] * 2
    assert [each["rank"] for each in found["results"]] == [1, 2]
    assert all(Path(each["path"]).is_file() for each in found["results"])


def test_search_by_words_equals_the_library(
    indexed: Path, tiny_model_dir: Path, three_pictures: list[Path], costream: Program
) -> None:
    """The cold start's numpy tower and the full model must rank alike."""
    from costream.encoders.storage import load

    full = load(tiny_model_dir, device="cpu")
    scores = full.encode_texts(["blue and red"]) @ full.encode_images(three_pictures).T
    expected = dict(zip(map(os.path.realpath, three_pictures), scores[0].tolist(), strict=True))
    found = costream("search", "blue and red", "--json", cwd=indexed).json["results"]
    got = [each["score"] for each in found]
    assert got == sorted(got, reverse=True)
    for each in found:
        # Vectors are stored as float16: 11 bits.
        assert each["score"] == pytest.approx(expected[os.path.realpath(each["path"])], abs=2e-3)


def test_search_by_example_finds_the_example(
    indexed: Path, three_pictures: list[Path], costream: Program
) -> None:
    for picture in three_pictures:
        words = ("search", "--image", f"pictures/{picture.name}", "--json")
        found = costream.here(*words, cwd=indexed).json
        assert found["query"] == {"image": f"pictures/{picture.name}"}
        assert Path(found["results"][0]["path"]).name == picture.name
        assert found["results"][0]["score"] == pytest.approx(1.0, abs=2e-3)


def test_words_and_pictures_add_up_in_any_order(indexed: Path, costream: Program) -> None:
    words = ("search", "--image", "pictures/blue.png", "--plus", "red", "--minus", "green")
    found = costream.here(*words, "--json", cwd=indexed).json
    again = costream.here(
        *("search", "red", "--minus", "green", "--image", "pictures/blue.png", "--json"),
        cwd=indexed,
    ).json
    assert found["results"] == again["results"]
    assert found["query"] == {
        "terms": [
            {"text": "red", "weight": 1.0},
            {"text": "green", "weight": -1.0},
            {"image": "pictures/blue.png", "weight": 1.0},
        ]
    }


def test_more_like_an_item_are_the_others(indexed: Path, costream: Program) -> None:
    found = costream("search", "--like", "pictures/red.png", "--json", cwd=indexed).json["results"]
    assert {Path(each["path"]).name for each in found} == {"blue.png", "green.png"}


def test_conditions_and_pages(indexed: Path, costream: Program) -> None:
    where = ("--where", f"path={os.path.realpath(indexed / 'pictures' / 'g')}")
    found = costream.here("search", "red", *where, "--json", cwd=indexed).json
    assert [Path(each["path"]).name for each in found["results"]] == ["green.png"]
    assert found["total"] == 1
    whole = costream.here("search", "red", "--json", cwd=indexed).json["results"]
    page = ("search", "red", "--top", "1", "--offset", "1", "--json")
    assert costream.here(*page, cwd=indexed).json["results"] == whole[1:2]


def test_names_can_be_left_out_of_it(indexed: Path, costream: Program) -> None:
    named = costream.here("search", "GREEN", "--json", cwd=indexed).json["results"][0]
    assert (Path(named["path"]).name, named["relevance"]) == ("green.png", 1.0)
    plain = costream.here("search", "GREEN", "--no-names", "--json", cwd=indexed).json["results"]
    assert all(list(each["reasons"]) == ["vectors"] for each in plain)
    scores = [each["score"] for each in plain]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    "words",
    [
        ("search",),
        ("search", ""),
        ("search", "red", "--plus", " "),
        ("search", "red", "--minus", "red"),
        ("search", "--like", "absent.png"),
        ("search", "red", "--region", "0,0,1,1"),
        ("search", "--image", "pictures/red.png", "--region", "0,0,1"),
        ("search", "--image", "pictures/red.png", "--region", "1,0,0,1"),
        ("search", "red", "--where", "tag"),
        ("search", "red", "--where", "modality=smell"),
        ("search", "red", "--min-relevance", "2"),
        ("search", "red", "--offset", "-1"),
        ("search", "  \n"),
        ("search", "red", "--top", "0"),
        ("search", "red", "--top", "many"),
        ("search", "--image", "pictures/absent.png"),
        ("search", "--image", "notes.jpg"),
        ("search", "red", "--index", "absent"),
        ("search", "red", "--model", "absent"),
        ("search", "red", "--colour", "blue"),
        ("search", "red", "--html", "notes.jpg/page.html"),
        ("serch", "red"),
        ("evaluate", "--data", "absent.jsonl"),
        ("evaluate",),
        ("train", "cots", "--data", "absent.jsonl", "--out", "run"),
        ("train", "no-such-method", "--data", "pictures", "--out", "run"),
        ("train", "cots", "--data", "pictures", "--out", "run", "--set", "steps"),
        ("reproduce", "no-such-method"),
        ("caption", "pictures"),
        ("caption", "notes.jpg", "--model", "cots-mini"),
        ("index",),
        ("demo", "--pictures", "absent"),
    ],
)
def test_what_cannot_be_done_is_refused(
    indexed: Path, words: tuple[str, ...], costream: Program
) -> None:
    (indexed / "notes.jpg").write_text("no picture")
    done = costream(*words, "--json", cwd=indexed, code=2)
    assert done.stderr.startswith("costream: ")
    error = done.json["error"]
    assert set(error) == {"kind", "message", "hint"}
    assert error["message"]


def test_a_misspelt_verb_gets_a_suggestion(tmp_path: Path, costream: Program) -> None:
    assert "did you mean 'search'?" in costream("serch", "x", cwd=tmp_path, code=2).stderr


@pytest.mark.parametrize(
    "text",
    [
        "ein roter Kreis",
        "赤い丸",
        "دائرة حمراء",
        "🎈👩🏽\u200d🚀",
        "\u202eright to left",
        "word " * 10_000,
        "'; DROP TABLE items; --",
        "--index",
    ],
)
def test_any_text_can_be_searched(indexed: Path, text: str, costream: Program) -> None:
    found = costream("search", "--json", "--", text, cwd=indexed).json
    assert found["query"] == text
    assert len(found["results"]) == 3


def test_words_that_are_not_utf8_are_searched_all_the_same(
    indexed: Path, costream: Program
) -> None:
    found = costream("search", b"caf\xe9", "--json", cwd=indexed).json
    assert found["query"] == "caf\N{REPLACEMENT CHARACTER}"


def test_a_table_goes_to_stdout_and_nothing_to_stderr(indexed: Path, costream: Program) -> None:
    done = costream("search", "red", cwd=indexed)
    lines = done.stdout.splitlines()
    # Three pictures are too few to judge, but one has the very name.
    assert lines[0].split() == ["#", "score", "relevance", "file"]
    assert lines[1].split()[::3] == ["1", "pictures/red.png"]
    assert [len(line.split()) for line in lines[2:]] == [3, 3]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("red", "--where", "path=/nowhere"), "nothing meets the conditions (--where)\n"),
        (("red", "--offset", "100"), "no results: --offset or --min-relevance left out all\n"),
    ],
)
def test_an_empty_answer_says_why_it_is_empty(
    indexed: Path, words: tuple[str, ...], said: str, costream: Program
) -> None:
    assert costream("search", *words, cwd=indexed).stdout == said


def test_an_example_that_is_not_in_the_index_is_named(indexed: Path, costream: Program) -> None:
    done = costream("search", "--like", "absent.png", cwd=indexed, code=2)
    assert "--like absent.png is not in the index" in done.stderr
    assert "--image" in done.stderr


def test_a_least_relevance_that_cannot_be_kept_to_is_said(indexed: Path, costream: Program) -> None:
    words = ("search", "--minus", "red", "--min-relevance", "0.9")
    done = costream(*words, cwd=indexed)
    assert len(done.stdout.splitlines()) == 4
    assert "relevance is not known: a question that only subtracts" in done.stderr


@pytest.mark.parametrize("env", [{}, {"FORCE_COLOR": "1"}, {"NO_COLOR": "1"}])
def test_no_colour_codes_reach_a_pipe(
    indexed: Path, env: dict[str, str], costream: Program
) -> None:
    done = costream("search", "red", cwd=indexed, env=env)
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
def test_a_terminal_gets_a_table_and_obeys_no_color(indexed: Path, env: dict[str, str]) -> None:
    import pty

    master, slave = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "costream", "search", "red"],
        cwd=indexed,
        stdout=slave,
        check=True,
        env=os.environ | {"TERM": "xterm-256color"} | env,
    )
    os.close(slave)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert "pictures/red.png" in shown
    assert "─" in shown
    colours = [code for code in ("\x1b[3", "\x1b[9") if code in shown]
    assert not (env and colours)


def test_a_reader_that_stops_early_is_no_error(indexed: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "costream", "search", "red", "--json"],
        cwd=indexed,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout is not None
    program.stdout.close()  # before anything was written: what `| head` does, without the race
    _, errors = program.communicate(timeout=600)
    assert (program.returncode, errors) == (0, b"")


def test_names_of_any_bytes_are_shown_escaped_and_are_valid_json(
    tmp_path: Path, tiny_model_dir: Path, three_pictures: list[Path], costream: Program
) -> None:
    folder = os.fsencode(tmp_path / "odd")
    (tmp_path / "odd").mkdir()
    content = three_pictures[0].read_bytes()
    names = [b"two\nlines.png", b"caf\xe9.png", "emoji 🎈.png".encode(), b"<b>&\"'.png"]
    for number, name in enumerate(names):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(content + bytes(number))
    costream.here("index", "odd", "--model", tiny_model_dir, cwd=tmp_path)
    shown = costream("search", "red", cwd=tmp_path).stdout
    for name in (r"two\nlines.png", r"caf\xe9.png", "emoji 🎈.png"):
        assert name in shown
    assert len(shown.splitlines()) == 1 + len(names)
    results = costream("search", "red", "--json", cwd=tmp_path).json["results"]
    found = [
        base64.b64decode(r["path_base64"]) if "path_base64" in r else os.fsencode(r["path"])
        for r in results
    ]
    assert {path.rpartition(b"/")[2] for path in found} == set(names)
    assert all(Path(os.fsdecode(path)).is_file() for path in found)
    # No lone surrogates: parsers that are stricter than Python's take it too.
    json.dumps(results, ensure_ascii=False).encode("utf-8")


def test_an_ascii_terminal_is_enough(
    tmp_path: Path, tiny_model_dir: Path, three_pictures: list[Path], costream: Program
) -> None:
    three_pictures[0].rename(tmp_path / "pictures" / "rot-grün-🎈.png")
    costream.here("index", "pictures", "--model", tiny_model_dir, cwd=tmp_path)
    shown = costream("search", "x", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"}).stdout
    assert r"rot-gr\xfcn-\U0001f388.png" in shown


# --- the page ---


def test_html_has_every_result_and_needs_nothing_from_outside(
    indexed: Path, costream: Program
) -> None:
    costream("search", "<red> & blue", "--html", "out/page.html", cwd=indexed)
    page = (indexed / "out" / "page.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 3
    assert page.count("data:image/jpeg;base64,") == 3
    assert "&lt;red&gt; &amp; blue" in page
    assert "<red>" not in page
    for outside in ("http://", "https://", "<script", "@import", "<link"):
        assert outside not in page


def test_html_names_a_picture_that_is_gone(
    indexed: Path, three_pictures: list[Path], costream: Program
) -> None:
    three_pictures[0].unlink()
    costream("search", "red", "--html", "page.html", cwd=indexed)
    page = (indexed / "page.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 3
    assert page.count("data:image/jpeg") == 2
    assert "is not there" in page


def test_html_shows_the_example_picture(
    indexed: Path, three_pictures: list[Path], costream: Program
) -> None:
    words = ("search", "--image", "pictures/red.png", "--html", "page.html")
    costream.here(*words, cwd=indexed)
    page = (indexed / "page.html").read_text(encoding="utf-8")
    assert "pictures like red.png" in page
    assert page.count("data:image/jpeg") == 4


# --- evaluate, train and lists ---


@pytest.fixture
def manifest(tmp_path: Path, three_pictures: list[Path]) -> Path:
    """Three pictures with two captions each."""
    lines = [
        {"image": f"pictures/{p.name}", "captions": [f"a {p.stem} one", f"{p.stem} again"]}
        for p in three_pictures
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_evaluate_json_has_the_promised_form(
    manifest: Path, tiny_model_dir: Path, costream: Program
) -> None:
    words = ("evaluate", "--model", tiny_model_dir, "--data", manifest, "--save", "report.json")
    report = costream(*words, "--json", cwd=manifest.parent).json
    for direction in ("image_to_text", "text_to_image"):
        assert {"hit@1", "hit@5", "hit@10", "median_rank"} <= set(report[direction])
        assert report[direction]["hit@10"] == 100.0
    assert set(report["data"]) >= {"hash", "images", "captions"}
    assert (report["data"]["images"], report["data"]["captions"]) == (3, 6)
    assert report["model"]["name"] == "tiny"
    assert report["definitions"]
    assert json.loads((manifest.parent / "report.json").read_text()) == report


def test_evaluate_refuses_missing_pictures_unless_allowed(
    manifest: Path, tiny_model_dir: Path, three_pictures: list[Path], costream: Program
) -> None:
    three_pictures[0].unlink()
    words = ("evaluate", "--model", tiny_model_dir, "--data", manifest)
    assert "red.png" in costream.here(*words, cwd=manifest.parent, code=2).stderr
    allowed = ("--allow-broken", "1", "--json")
    report = costream.here(*words, *allowed, cwd=manifest.parent, code=1).json
    assert report["data"]["images"] == 2
    assert "red.png" in json.dumps(report["data"]["missing"])


def test_methods_and_models_are_listed(tmp_path: Path, costream: Program) -> None:
    methods = costream("methods", "--json", cwd=tmp_path).json["methods"]
    assert "cots" in {method["name"] for method in methods}
    assert "cots" in costream.here("methods", cwd=tmp_path).stdout
    assert isinstance(costream.here("models", "--json", cwd=tmp_path).json["models"], list)
    assert "NAME_OR_DIR" in costream("models", cwd=tmp_path).stdout


def test_doctor_says_what_is_there() -> None:
    from costream.cli.doctor import diagnose

    found = diagnose()
    json.dumps(found, allow_nan=False)
    assert found["machine"]["cores"] >= 1
    assert found["compute"]["gigaflops"]["float32"] > 0
    assert found["packages"]["numpy"] == np.__version__
    for missing in found["missing"]:
        assert missing["install"].startswith("pip install")


VERBS = (
    "index",
    "search",
    "caption",
    "train",
    "evaluate",
    "reproduce",
    "models",
    "methods",
    "doctor",
    "demo",
)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_takes_json(
    tmp_path: Path, verb: str, costream: Program
) -> None:
    assert "--json" in costream.here(verb, "--help", cwd=tmp_path).stdout


def test_help_lists_every_verb_and_the_exit_codes(tmp_path: Path, costream: Program) -> None:
    shown = costream("--help", cwd=tmp_path).stdout
    assert all(verb in shown for verb in VERBS)
    assert "0 done" in shown
    costream(cwd=tmp_path, code=2)


# --- what a search loads ---


def lean_search(*words: str, cwd: Path) -> str:
    """Output of a search in a process of its own, which must load nothing heavy."""
    program = (
        "import sys\n"
        "from costream.cli import run\n"
        f"code = run(['search', *{words!r}, '--json'])\n"
        "heavy = {'torch', 'rich', 'transformers', 'matplotlib', 'datasets'} & set(sys.modules)\n"
        "sys.exit(code or ' '.join(sorted(heavy)) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_search_by_words_loads_no_torch_and_no_rich(indexed: Path) -> None:
    """The cold start stays fast only while nobody imports more than a search needs."""
    lean_search("red", cwd=indexed)


def test_a_search_by_example_with_the_default_model_loads_no_torch_and_no_rich(
    tmp_path: Path, three_pictures: list[Path]
) -> None:
    from costream.cli.options import DEFAULT_INDEX, DEFAULT_MODEL
    from costream.encoders.light.vision import load_image_encoder
    from costream.index import Index, Item

    encoder = load_image_encoder(DEFAULT_MODEL)
    items = [Item(id=picture.stem) for picture in three_pictures]
    with Index.open(tmp_path / DEFAULT_INDEX, create=True) as index:
        index.add(items, encoder.encode_images(three_pictures), encoder.space)
    found = lean_search("--image", str(three_pictures[1]), cwd=tmp_path)
    first = json.loads(found)["results"][0]
    assert (first["id"], first["score"]) == (three_pictures[1].stem, pytest.approx(1.0, abs=2e-3))


# --- demo ---


def test_demo_on_own_pictures(
    tmp_path: Path,
    tiny_model_dir: Path,
    three_pictures: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    costream: Program,
) -> None:
    """Here with a tiny default model; with the shipped one in tests/docs."""
    from costream.cli import index

    monkeypatch.setattr(index, "DEFAULT_MODEL", str(tiny_model_dir))
    shown = costream.here("demo", "--pictures", "pictures", cwd=tmp_path).stdout
    assert "3 pictures indexed from pictures" in shown
    page = (tmp_path / "demo" / "results.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 3
    assert page.count("<figure") == 9
    again = costream.here("demo", "--pictures", "pictures", "--json", cwd=tmp_path).json
    assert [len(each["results"]) for each in again] == [3, 3, 3]


# --- progress ---

SLOW = """
import time
from costream.cli import output
output._QUIET_S = {quiet}
with output.progress_bar("Working") as advance:
    for done in range(1, 6):
        time.sleep(0.02)
        advance(done, 5)
    advance(1, 9, "Resting")
"""


@pytest.mark.parametrize(("quiet", "terminal"), [(0.0, True), (60.0, True), (0.0, False)])
def test_a_bar_is_shown_on_a_terminal_when_it_takes_long(quiet: float, terminal: bool) -> None:
    import pty

    master, slave = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", SLOW.format(quiet=quiet)],
        stdout=subprocess.PIPE,
        stderr=slave if terminal else subprocess.PIPE,
        env=os.environ | {"TERM": "xterm"},
        check=True,
    )
    os.write(slave, b"end")
    os.close(slave)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert done.stdout == b""
    assert ("Working" in shown) == (terminal and quiet == 0)
    assert ("Resting" in shown) == (terminal and quiet == 0)
    assert not done.stderr


# --- train ---


def test_training_makes_a_model_that_can_be_used_and_resumed(
    manifest: Path, tiny_model_dir: Path, costream: Program
) -> None:
    words = ["train", "cots", "--data", manifest, "--out", "run", "--json"]
    words += ["--set", f"start={tiny_model_dir}", "--set", "mvm=0", "mlm=0", "queue_size=6"]
    words += ["batch_size=3", "steps=2", "checkpoint_every=1"]
    made = costream.here(*words, cwd=manifest.parent).json
    assert made["method"] == "cots"
    # A run that is there is not written over ...
    costream.here(*words, cwd=manifest.parent, code=2)
    # ... but a finished one can be taken up again.
    resumed = costream.here(*words, "--resume", cwd=manifest.parent).json
    assert resumed["model"] == made["model"]
    measure = ("evaluate", "--model", made["model"], "--data", manifest, "--json")
    assert costream.here(*measure, cwd=manifest.parent).json["data"]["images"] == 3


def test_what_a_method_prepares_is_told(
    manifest: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fitting a visual tokenizer takes a minute or more, in which training has no steps to show."""
    import costream
    from costream.methods import cots

    monkeypatch.setattr(cots, "_TOKENIZER_STEPS", 3)
    told: list[tuple[str, int, int]] = []
    settings = {"start": str(tiny_model_dir), "mlm": "0", "queue_size": "6", "visual_codes": "4"}
    costream.train(
        "cots",
        manifest,
        manifest.parent / "run",
        settings | {"batch_size": "3", "steps": "1"},
        preparing=lambda *each: told.append(each),
    )
    reading, fitting = "Reading pictures for the visual tokenizer", "Fitting the visual tokenizer"
    assert told == [(what, n, 3) for what in (reading, fitting) for n in (1, 2, 3)]


def test_under_torchrun_one_process_speaks(
    manifest: Path, tiny_model_dir: Path, costream: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    words = ["train", "cots", "--data", manifest, "--out", "run", "--json"]
    words += ["--set", f"start={tiny_model_dir}", "mvm=0", "mlm=0", "queue_size=6"]
    assert costream.here(*words, "batch_size=3", "steps=1", cwd=manifest.parent).stdout == ""


def test_an_unknown_setting_is_refused_with_a_suggestion(
    manifest: Path, tiny_model_dir: Path, costream: Program
) -> None:
    words = ("train", "cots", "--data", manifest, "--out", "run", "--set", "bach_size=3")
    done = costream.here(*words, cwd=manifest.parent, code=2)
    assert "batch_size" in done.stderr
    assert not (manifest.parent / "run").exists()
