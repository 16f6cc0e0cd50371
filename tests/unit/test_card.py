"""Method cards are found and read without running a method, and a wrong card is loud."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from costream.card import METHODS_FOLDER, Card, find_method, find_methods, read_card
from costream.errors import ConfigError

FIELDS = """
    name="{name}",
    title="A Method",
    paper="On Methods (CONF 2024)",
    year=2024,
    kind="training objective",
    slots=("objective", "data"),
    index_impact="reencode",
    losses=("contrast",),
    summary="It aligns " "things.",
    scale="Published with many pairs.",
"""


def write(folder: Path, name: str, *, card: str | None = None) -> Path:
    path = folder / f"{name}.py"
    body = card if card is not None else f"CARD = Card({FIELDS.format(name=name)})"
    # A file that cannot be imported: reading the card must not need it.
    path.write_text(f"import no_such_package\n\n{body}\n\nraise SystemExit('was run')\n")
    return path


def test_cards_are_read_without_running_the_file(tmp_path: Path) -> None:
    write(tmp_path, "zeta")
    write(tmp_path, "alpha")
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "_shared.py").write_text("x = 1\n")
    cards = find_methods(tmp_path)
    assert list(cards) == ["alpha", "zeta"]
    assert cards["alpha"] == Card(
        name="alpha",
        title="A Method",
        paper="On Methods (CONF 2024)",
        year=2024,
        kind="training objective",
        slots=("objective", "data"),
        index_impact="reencode",
        losses=("contrast",),
        summary="It aligns things.",
        scale="Published with many pairs.",
    )


@pytest.mark.parametrize(
    "form",
    ["CARD = card.Card({})", "CARD: Card = Card({})", "CARD: Final = dict_of({})"],
)
def test_forms_of_a_card(tmp_path: Path, form: str) -> None:
    card = form.format(FIELDS.format(name="m"))
    if "dict_of" in form:
        with pytest.raises(ConfigError, match="not literal"):
            read_card(write(tmp_path, "m", card=card))
    else:
        assert read_card(write(tmp_path, "m", card=card)).name == "m"


def test_a_dict_is_a_card_too_and_hyphens_are_underscores_in_files(tmp_path: Path) -> None:
    card = (
        'CARD = {"name": "a-b", "title": "t", "paper": "p", "year": 2020, "kind": "k",'
        ' "slots": ["rank"], "index_impact": "none", "summary": "s", "scale": "large"}'
    )
    made = read_card(write(tmp_path, "a_b", card=card))
    assert (made.name, made.slots, made.losses) == ("a-b", ("rank",), ())


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("x = 1", "0 assignments to CARD"),
        ("CARD = Card(name='m')\nCARD = Card(name='m')", "2 assignments"),
        ("CARD = Card(name=NAME)", "line 3. is not literal"),
        ("CARD = Card('m')", "not literal"),
        ("CARD = Card(**values)", "not literal"),
        ("CARD = make()", "not literal"),
        ("CARD = 5", "not literal"),
        ("CARD = {1: 2}", "not literal"),
        ("CARD = Card(name='m')", "title has no value"),
        (f"CARD = Card({FIELDS.format(name='other')})", "called 'other'"),
        (f"CARD = Card({FIELDS.format(name='m')} colour='red')", "no option 'colour'"),
        (f"CARD = Card({FIELDS.format(name='m')})".replace("2024,", "'2024',"), "year is '2024'"),
        (f"CARD = Card({FIELDS.format(name='m')})".replace("2024,", "3000,"), "year is 3000"),
        (f"CARD = Card({FIELDS.format(name='m')})".replace("reencode", "redo"), "index_impact is"),
        (f"CARD = Card({FIELDS.format(name='m')})".replace('"data"', '"dta"'), "'dta'"),
        (f"CARD = Card({FIELDS.format(name='m')})".replace("A Method", ""), "title of the card"),
        (
            f"CARD = Card({FIELDS.format(name='m')})".replace('("objective", "data")', "()"),
            "slots of the card",
        ),
        ("CARD = (", "is not Python"),
    ],
)
def test_a_wrong_card_is_refused_and_names_its_file(
    tmp_path: Path, card: str, message: str
) -> None:
    path = write(tmp_path, "m", card=card)
    with pytest.raises(ConfigError, match=rf"m\.py: .*{message}"):
        read_card(path)


def test_all_wrong_files_are_named_at_once(tmp_path: Path) -> None:
    write(tmp_path, "good")
    write(tmp_path, "one", card="CARD = 1")
    write(tmp_path, "two", card="pass")
    with pytest.raises(ConfigError, match=r"one\.py.*two\.py"):
        find_methods(tmp_path)


def test_lookup_of_an_unknown_method_suggests_and_lists(tmp_path: Path) -> None:
    write(tmp_path, "cots_like")
    write(tmp_path, "filip")
    assert find_method("filip", tmp_path).name == "filip"
    with pytest.raises(ConfigError, match=r"'filp' \(did you mean 'filip'\?\).*cots_like, filip"):
        find_method("filp", tmp_path)


def test_an_absent_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder of methods"):
        find_methods(tmp_path / "absent")


def test_every_method_of_the_library_has_a_card() -> None:
    files = [path for path in METHODS_FOLDER.glob("*.py") if not path.name.startswith("_")]
    assert len(find_methods()) == len(files)


def test_the_first_lookup_of_a_fresh_process_works_without_torch() -> None:
    program = (
        "import sys; from costream.card import find_methods; find_methods();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
