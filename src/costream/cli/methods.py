"""List the methods that can train a model or change how it is used, and what their claims show."""

from __future__ import annotations

from dataclasses import asdict

from costream.cli.options import AsJson
from costream.cli.output import say_json, say_table


def run(as_json: AsJson = False) -> int:
    """List methods."""
    from costream.card import find_methods
    from costream.evaluate.claim_results import shipped_results

    cards, results = find_methods(), shipped_results()
    claims = {name: results[name].in_words() if name in results else "not run" for name in cards}
    if as_json:
        methods = [asdict(card) | {"claim": claims[name]} for name, card in cards.items()]
        say_json({"methods": methods})
        return 0
    rows = [
        (card.name, str(card.year), card.kind, card.index_impact, claims[name], card.summary)
        for name, card in cards.items()
    ]
    headers = ("method", "year", "kind", "index", "claim", "what it does")
    say_table(headers, rows, numbers=(1,))
    return 0
