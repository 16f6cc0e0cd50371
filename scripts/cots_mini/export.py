"""Put a trained `cots-mini` into the package: smaller vocabulary, measured card.

    python scripts/cots_mini/export.py --run runs/cots-mini --prepared prepared

MiniLM's vocabulary has 994 entries that no text can produce ("[unused0]", ...); without them the
weights fit into 64 MB. Every number in the card is measured here, on the shipped weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from zero_shot import zero_shot

from costream.data import read_data
from costream.encoders.dual import DualEncoder
from costream.encoders.storage import load, save_model
from costream.evaluate import evaluate, report_to_json
from costream.records import Report

PROBES = ["A dog runs along the beach.", "two children on a swing", "", "naïve café ☕ 狗"]


def without_unused(model: DualEncoder) -> DualEncoder:
    """The same model without the vocabulary's placeholders; every text keeps its vector."""
    settings: dict[str, Any] = json.loads(model.tokenizer.to_str())
    vocabulary: dict[str, int] = settings["model"]["vocab"]
    kept = [
        (token, number)
        for token, number in sorted(vocabulary.items(), key=lambda pair: pair[1])
        if not token.startswith("[unused")
    ]
    new = {token: number for number, (token, _) in enumerate(kept)}
    settings["model"]["vocab"] = new
    for token in settings.get("added_tokens", []):
        token["id"] = new[token["content"]]
    for token in settings["post_processor"]["special_tokens"].values():
        token["ids"] = [new[each] for each in token["tokens"]]
    form = replace(model.config, text=replace(model.config.text, vocab_size=len(kept)))
    smaller = DualEncoder(form, Tokenizer.from_str(json.dumps(settings)))
    state = model.state_dict()
    table = "text.token_embedding.weight"
    state[table] = state[table][torch.tensor([number for _, number in kept])]
    smaller.load_state_dict(state)
    gap = np.abs(smaller.encode_texts(PROBES) - model.encode_texts(PROBES)).max()
    if gap > 1e-5:
        raise SystemExit(f"the smaller vocabulary changed a vector by {gap}")
    return smaller.eval()


def row(name: str, report: Report) -> str:
    """One line of the card's table."""
    to_text, to_image = report.metrics["image_to_text"], report.metrics["text_to_image"]
    return (
        f"| {name} | {report.data['images']} | {report.data['captions']} "
        f"| {to_text['hit@1']:.1f} / {to_text['hit@5']:.1f} / {to_text['hit@10']:.1f} "
        f"| {to_image['hit@1']:.1f} / {to_image['hit@5']:.1f} / {to_image['hit@10']:.1f} "
        f"| `{report.data['hash'][:12]}` |"
    )


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    options = parser.parse_args()
    target = Path(str(resources.files("costream") / "assets" / "models" / "cots-mini"))
    save_model(without_unused(load(options.run / "model")), target)
    model = load(target)
    reports = {
        manifest.parent.name: evaluate(model, read_data(manifest))
        for manifest in sorted(options.prepared.glob("*/dev.jsonl"))
    }
    names = zero_shot("cots-mini")
    lines = [json.loads(text) for text in (options.run / "dev.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: sum(line["hit@1"]["flickr8k"].values()))
    template = Path(__file__).with_name("card.md").read_text()
    card = template.format(
        rows="\n".join(row(name, report) for name, report in reports.items()),
        bytes=(target / "model.safetensors").stat().st_size,
        weights=sum(weight.numel() for weight in model.parameters()),
        weights_hash=model.space.weights_hash,
        step=best["step"],
        **names,
    )
    (target / "card.md").write_text(card)
    numbers = {name: report_to_json(report) for name, report in reports.items()}
    Path("docs/results").mkdir(parents=True, exist_ok=True)
    Path("docs/results/cots_mini_dev.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(card)
    return 0


if __name__ == "__main__":
    sys.exit(main())
