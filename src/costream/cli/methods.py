"""List the methods that can train a model or change how it is used."""

from __future__ import annotations

from dataclasses import asdict

from costream.cli.options import AsJson
from costream.cli.output import say_json, say_table


def run(as_json: AsJson = False) -> int:
    """List methods."""
    from costream.card import find_methods

    cards = find_methods()
    if as_json:
        say_json({"methods": [asdict(card) for card in cards.values()]})
        return 0
    rows = [(card.name, str(card.year), card.kind, card.summary) for card in cards.values()]
    say_table(("method", "year", "kind", "what it does"), rows, numbers=(1,))
    return 0
