"""Every example in the code runs as written."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import costream
from costream.encoders.locate import shipped_models

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(costream.__path__, "costream.")
    if not module.name.endswith("__main__")
)
_NEEDS_MODEL = ("load(", "cots-mini")


class _Finder(doctest.DocTestFinder):
    """Leaves out examples of the default model while it has not been made."""

    def find(self, *args: object, **words: object) -> list[doctest.DocTest]:
        tests = super().find(*args, **words)  # type: ignore[arg-type]
        if shipped_models():
            return tests
        return [test for test in tests if not any(word in test.docstring for word in _NEEDS_MODEL)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path_factory.mktemp("doctest"))
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False
    )
    said: list[str] = []
    for test in _Finder().find(module, name):
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
