"""What importing costream costs: nothing that is not needed is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "matplotlib", "typer", "rich", "transformers", "datasets", "tokenizers")
HEAVY += ("numpy", "PIL")


def loaded_by(statement: str) -> set[str]:
    """Heavy packages that a fresh process has loaded after a statement."""
    program = f"{statement}\nimport sys\nfor name in sys.modules: sys.stdout.write(name + '\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return set(HEAVY) & set(done.stdout.split())


def test_import_costream_loads_nothing_heavy() -> None:
    assert loaded_by("import costream") == set()


@pytest.mark.parametrize(
    "module", ["evaluate", "config", "card", "records", "errors", "index", "data"]
)
def test_parts_that_need_no_tensor_do_not_load_torch(module: str) -> None:
    loaded = loaded_by(f"import costream.{module}")
    assert not loaded & {"torch", "matplotlib", "typer", "transformers", "datasets"}


def test_naming_a_failure_does_not_load_the_decoders() -> None:
    """A cold search by words prints names, and decodes nothing."""
    assert loaded_by("import costream.data, costream.data.failures, costream.cli.output") <= {
        "typer"
    }
