"""Write the documentation of the methods: a page each, the table of all, and the report of claims.

    python tools/method_pages.py [--check]

Everything on the pages comes from the method's file (card, docstring, Config) and from the stored
result of its experiment. `--check` writes nothing and ends with 1 when a page is out of date.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from costream.card import METHODS_FOLDER, Card, find_methods  # noqa: E402
from costream.config import describe_settings  # noqa: E402
from costream.evaluate.claim_results import (  # noqa: E402
    HOW_TO_READ,
    ClaimResult,
    report_page,
    shipped_results,
)
from costream.evaluate.claims import render_claim  # noqa: E402
from costream.method import find_module  # noqa: E402

PAGES = ROOT / "docs" / "methods"
_IMPACT = {
    "none": "nothing changes",
    "query_only": "only queries change; an index that exists stays",
    "per_item_bias": "one number an item is added; the vectors stay",
    "reencode": "all items are encoded again",
    "multi_vector": "several vectors an item are stored",
    "sparse": "sparse vectors are stored",
    "pairwise": "the index is a first stage; pairs are scored after it",
}
_SLOTS = (
    "What a method fills: `surgery` changes the model, `objective` is what training minimises, "
    "`data` what happens to the samples before it, `scorer` how a question is compared with an "
    "item, `index` how an item is kept, `rank` what is done to scores afterwards, `generator` what "
    "writes captions, `evaluation` what `costream evaluate --protocol` measures."
)


def main(words: list[str] | None = None) -> int:
    """Write all pages, or check them."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(words).check
    cards, results = find_methods(), shipped_results()
    pages = {"README.md": overview(cards, results), "report.html": report_page(results, cards)}
    pages |= {f"{name}.md": page(card, results.get(name)) for name, card in cards.items()}
    PAGES.mkdir(parents=True, exist_ok=True)
    old = []
    for name, text in pages.items():
        path = PAGES / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        old.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    for path in PAGES.iterdir():
        if path.suffix == ".md" and path.name not in pages:
            old.append(path.name)
            if not check:
                path.unlink()
    print(
        f"{len(pages)} pages, {'out of date' if check else 'written'}: {', '.join(old) or 'none'}"
    )
    return 1 if check and old else 0


def overview(cards: Mapping[str, Card], results: Mapping[str, ClaimResult]) -> str:
    """The table of all methods."""
    lines = [
        "# Methods",
        "",
        "Written by `tools/method_pages.py`. What a claim shows is counted over its comparisons; "
        "[report.html](report.html) has every effect with its interval.",
        "",
        HOW_TO_READ,
        "",
        _SLOTS,
        "",
        "| method | year | what it is | fills | an index that exists | claim |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, card in cards.items():
        claim = results[name].in_words() if name in results else "not run"
        cells = (
            f"[`{name}`]({name}.md)",
            str(card.year),
            card.summary,
            ", ".join(card.slots),
            _IMPACT[card.index_impact],
            claim,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def page(card: Card, result: ClaimResult | None) -> str:
    """The page of one method."""
    _, module = find_module(card.name)
    source = METHODS_FOLDER / f"{card.name.replace('-', '_')}.py"
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    meanings = _meanings(module.Config)
    settings = [
        f"| `{each.key}` | {each.type.replace('|', ' or ')} | {_default(each.default)} | "
        f"{meanings.get(each.key, '').replace('|', ' or ')} |"
        for each in describe_settings(module.Config)
    ]
    year = "" if str(card.year) in card.paper else f" ({card.year})"
    parts = [
        f"# {card.title}",
        f"{card.paper}{year}. {card.summary}",
        f"Fills: {', '.join(card.slots)}. In an index: {_IMPACT[card.index_impact]}.",
        text,
        "## Settings",
        "| option | value | default | what it is |\n| --- | --- | --- | --- |\n"
        + "\n".join(settings)
        if settings
        else "It has none.",
        "## What its claim shows here",
        *_claims(card, result),
    ]
    return "\n\n".join(parts) + "\n"


def _meanings(config: type) -> dict[str, str]:
    """What the docstring of a configuration says of each of its options."""
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(config) or "").partition("Attributes:\n")[2].splitlines():
        begun = re.match(r"    (\w+): (.*)", line)
        if begun:
            name, found[begun[1]] = begun[1], begun[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def _default(text: str | None) -> str:
    return "must be given" if text is None else f"`{text}`" if text else "empty"


def _claims(card: Card, result: ClaimResult | None) -> list[str]:
    command = f"`costream reproduce {card.name}`"
    if result is None:
        return [f"{command} runs its experiment; no result is stored yet."]
    took = f"{command} took {result.took()}."
    scale = [] if result.shows_all() else [f"Scale: {card.scale}"]
    return [
        took,
        HOW_TO_READ,
        *scale,
        *(render_claim(table, "markdown") for table in result.tables),
    ]


if __name__ == "__main__":
    sys.exit(main())
