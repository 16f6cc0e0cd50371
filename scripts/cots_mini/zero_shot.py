"""How often the default model finds the right name for pictures that it was not trained on.

    python scripts/cots_mini/zero_shot.py [--model cots-mini]

The pictures are those of the sample gallery that are not in the training data (Tux Paint's stamps
are); the candidate names are those of all of these pictures, from their file
names. Printed as JSON: top-1 and top-5 in percent, chance, and the count.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from importlib import resources
from pathlib import Path

import numpy as np

import costream
from costream.evaluate import evaluate_vectors


def zero_shot(name_or_dir: str) -> dict[str, float]:
    """Top-1 and top-5 of naming the gallery's pictures, in percent, with chance and the count."""
    folder = Path(str(resources.files("costream") / "assets" / "gallery"))
    with (folder / "CREDITS.tsv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file, delimiter="\t") if "tuxpaint" not in r["package"]]
    pictures = [folder / row["file"] for row in rows]
    names = [picture.stem.replace("_", " ") for picture in pictures]
    model = costream.load(name_or_dir)
    images = model.encode_images(pictures)
    # The mean over phrasings is the usual text side of zero-shot classification.
    phrasings = ("{}", "a photo of a {}", "a picture of the {}")
    texts = np.mean([model.encode_texts([p.format(n) for n in names]) for p in phrasings], axis=0)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    metrics = evaluate_vectors(images, texts, np.arange(len(names)), ks=(1, 5))
    return {
        "pictures": len(names),
        "chance_top1": round(100 / len(names), 2),
        "top1": round(metrics["image_to_text"]["hit@1"], 1),
        "top5": round(metrics["image_to_text"]["hit@5"], 1),
    }


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="cots-mini")
    options = parser.parse_args()
    print(json.dumps(zero_shot(options.model)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
