"""Rules that a reader of one file cannot see broken: checked on the syntax tree of every file.

- Nothing but the methods themselves knows a method's name.
- The library does not print, and catches no exception that it does not name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from costream.card import find_methods

SOURCE = Path(__file__).parents[2] / "src" / "costream"
# Where our own models are defined, which are called after the method they were trained with.
NAMED_MODELS = ("encoders/presets.py", "encoders/starting_weights.py")


def library_files(*folders: str) -> list[Path]:
    roots = [SOURCE / folder for folder in folders] if folders else [SOURCE]
    return sorted(path for root in roots if root.exists() for path in root.rglob("*.py"))


def nameless_files() -> list[Path]:
    """All that is no method's own."""
    return [
        path
        for path in library_files()
        if "methods" not in path.relative_to(SOURCE).parts and label(path) not in NAMED_MODELS
    ]


def label(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def docstrings(tree: ast.AST) -> set[int]:
    """Ids of the nodes that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.add(id(node.value))
    return found


def constants_of_the_default_model(tree: ast.AST) -> set[int]:
    """Ids of the values of `DEFAULT_... = "..."`: the one place where a model is named."""
    found = set()
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(t, ast.Name) and t.id.lstrip("_").startswith("DEFAULT") for t in targets):
            found.update(id(child) for child in ast.walk(node))
    return found


def words_of(node: ast.AST) -> Iterator[str]:
    """Identifiers, module names and strings without blanks (prose for people may name a method)."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.keyword | ast.arg):
        yield node.arg or ""
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if not re.search(r"\s", node.value):
            yield node.value


def names_method(word: str, names: set[str]) -> bool:
    parts = set(re.split(r"[^0-9A-Za-z]+", word.lower())) | {word.lower()}
    parts |= {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]+", word)}
    return bool(parts & names) or any("_" in name and name in word.lower() for name in names)


def sniffed(source: str, names: set[str]) -> list[str]:
    """Words of a file that name a method."""
    tree = ast.parse(source)
    allowed = docstrings(tree) | constants_of_the_default_model(tree)
    return [
        f"line {getattr(node, 'lineno', '?')}: {word}"
        for node in ast.walk(tree)
        if id(node) not in allowed
        for word in words_of(node)
        if names_method(word, names)
    ]


def method_names() -> set[str]:
    found = {"cots"} | set(find_methods())
    return found | {name.replace("-", "_") for name in found}


@pytest.mark.parametrize("path", nameless_files(), ids=label)
def test_no_code_depends_on_the_name_of_a_method(path: Path) -> None:
    assert sniffed(path.read_text(encoding="utf-8"), method_names()) == []


@pytest.mark.parametrize(
    "source",
    [
        "if name == 'cots': pass",
        "from costream.methods import cots",
        "import costream.methods.cots",
        "import_module('costream.methods.cots')",
        "x = CotsObjective()",
        "x = {'cots-mini': 1}",
        "def run_cots(): pass",
    ],
)
def test_the_check_finds_names_in_code(source: str) -> None:
    assert sniffed(source, {"cots"})


@pytest.mark.parametrize(
    "source",
    [
        "DEFAULT_MODEL = 'cots-mini'",
        '"""For example `cots`."""',
        "help('as in: train cots --data DIR')",
        "scots = 1",
    ],
)
def test_the_check_leaves_prose_and_the_default_model_alone(source: str) -> None:
    assert not sniffed(source, {"cots"})


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


@pytest.mark.parametrize(
    "path", library_files("train", "index", "evaluate", "serve", "cli"), ids=label
)
def test_no_code_asks_a_model_what_it_has(path: Path) -> None:
    """`hasattr(model, "audio")` is a branch on a name in disguise."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asked = [ast.unparse(call.args[0]) for call in calls(tree, "hasattr") if call.args]
    assert not [word for word in asked if re.search(r"model|encoder|method|objective", word)]


@pytest.mark.parametrize("path", library_files(), ids=label)
def test_no_print_no_bare_except_no_star_import(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not calls(tree, "print")
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except on line {node.lineno}"
            swallowed = all(isinstance(step, ast.Pass) for step in node.body)
            broad = ast.unparse(node.type) in ("Exception", "BaseException")
            assert not (swallowed and broad), f"swallowed exception on line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names)


PICKLING = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


@pytest.mark.parametrize("path", library_files(), ids=label)
def test_nothing_is_unpickled_unpacked_or_run_that_came_from_outside(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = names if isinstance(node, ast.Import) else [node.module or ""]
            assert not {name.partition(".")[0] for name in modules} & PICKLING
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert called != "torch.load" or given.get("weights_only") == "True"
            assert given.get("allow_pickle", "False") == "False"
            assert given.get("trust_remote_code", "False") == "False"
            assert called.rpartition(".")[2] not in {
                "extractall",
                "eval",
                "exec",
                "unpack_archive",
            } or (
                called.endswith(".eval") and not node.args  # a model is told not to train
            )
