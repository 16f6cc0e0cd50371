"""Train the visual tokenizer that masked vision modelling takes its targets from.

    python scripts/train_visual_tokenizer.py --data MANIFEST_OR_FOLDER --out DIR

Writes into DIR the tokenizer (`visual_tokenizer.json`, `.safetensors`), `training.json` with what
was measured on held-out pictures, and `reconstructions.png`: rows of pictures above what their
codes paint. Takes about a minute and a half on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from costream.data import open_image, read_data
from costream.encoders.device import default_device
from costream.encoders.preprocess import ImagePreprocess
from costream.encoders.visual_tokenizer import (
    CodeUsage,
    DiscreteVae,
    DiscreteVaeConfig,
    KMeansTokenizer,
    VaeLoss,
    code_usage,
    fit_discrete_vae,
    save_tokenizer,
)
from costream.errors import CostreamError, DataError


def read_arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, help="manifest or folder of pictures")
    parser.add_argument("--out", required=True, type=Path, help="directory to write")
    parser.add_argument("--kind", choices=("dvae", "kmeans"), default="dvae")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of the dvae")
    parser.add_argument("--codes", type=int, default=512, help="size of the vocabulary")
    parser.add_argument("--width", type=int, default=64, help="channels of the dvae")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--picture-px", type=int, default=64, help="side that pictures are read at")
    parser.add_argument("--side-px", type=int, default=48, help="side of the cuts trained on")
    parser.add_argument("--most", type=int, default=20_000, help="most pictures to read")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=str(default_device()))
    return parser.parse_args(given)


def read_pictures(source: str, side_px: int, most: int, seed: int) -> torch.Tensor:
    """Pictures of a data set, cut square: uint8 (N, 3, side, side), in random order."""
    samples = read_data(source, allow_missing=1_000_000).samples
    order = np.random.default_rng(seed).permutation(len(samples))[:most]
    settings = ImagePreprocess(size_px=side_px)
    pixels, broken = [], []
    for number in order:
        picture = samples[number].slots["image"]
        try:
            pixels.append(settings.pixels(open_image(picture, smallest_side=2 * side_px)))
        except DataError as error:
            broken.append(str(error))
    for message in broken:
        print(f"left out: {message}", file=sys.stderr)
    if len(pixels) < 2:
        raise DataError(
            f"got {len(pixels)} readable pictures from {source}, expected at least 2",
            hint="one is held out",
        )
    return torch.from_numpy(np.stack(pixels))


def measure(
    tokenizer: DiscreteVae | KMeansTokenizer, pictures: torch.Tensor
) -> tuple[CodeUsage, float, torch.Tensor]:
    """Usage of the codes, mean squared error in [0, 1] and what the codes paint."""
    codes = torch.cat([tokenizer.encode(part) for part in torch.split(pictures, 64)])
    painted = torch.cat([tokenizer.decode(part) for part in torch.split(codes, 64)])
    error = ((painted.float() - pictures.float()) / 255).square().mean()
    return code_usage(codes, tokenizer.vocab_size), float(error), painted


def draw_sheet(
    pictures: torch.Tensor, painted: torch.Tensor, path: Path, columns: int = 12
) -> None:
    """Two rows of pictures above two rows of what their codes paint, enlarged twice."""
    columns = 12
    rows = []
    for start in (0, columns):
        for images in (pictures, painted):
            row = images[start : start + columns].cpu().numpy().transpose(2, 0, 3, 1)
            rows.append(row.reshape(row.shape[0], -1, 3))
    widest = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 2), (0, widest - row.shape[1]), (0, 0))) for row in rows]
    sheet = Image.fromarray(np.concatenate(padded))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(path)


def train(arguments: argparse.Namespace) -> None:
    """Read, train, measure, write."""
    start = time.perf_counter()
    pictures = read_pictures(arguments.data, arguments.picture_px, arguments.most, arguments.seed)
    read_s = time.perf_counter() - start
    held_out = pictures[: max(min(len(pictures) // 20, 512), 1)]
    rest = pictures[len(held_out) :]
    print(f"{len(rest)} pictures to train on, {len(held_out)} held out, {arguments.device}")

    def on_step(step: int, loss: VaeLoss) -> None:
        if step % 100 == 0 or step + 1 == arguments.steps:
            print(f"step {step}: error {float(loss.error):.4f}, usage gap {float(loss.usage):.2f}")

    start = time.perf_counter()
    errors: tuple[float, ...] = ()
    tokenizer: DiscreteVae | KMeansTokenizer
    if arguments.kind == "kmeans":
        tokenizer = KMeansTokenizer.fit(rest, vocab_size=arguments.codes, seed=arguments.seed)
    else:
        result = fit_discrete_vae(
            rest,
            DiscreteVaeConfig(vocab_size=arguments.codes, width=arguments.width),
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            side_px=arguments.side_px,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed,
            device=arguments.device,
            on_step=on_step,
        )
        tokenizer, errors = result.tokenizer.cpu(), result.errors
    train_s = time.perf_counter() - start
    usage, error, painted = measure(tokenizer, held_out)
    # Painting every picture as the mean picture: what codes must beat by far.
    variance = float((held_out.float() / 255 - rest.float().mean(dim=0) / 255).square().mean())
    save_tokenizer(tokenizer, arguments.out)
    draw_sheet(held_out, painted, arguments.out / "reconstructions.png")
    measured = {
        "kind": arguments.kind,
        "pictures": len(rest),
        "held_out": len(held_out),
        "held_out_error": error,
        "held_out_error_of_mean_picture": variance,
        "perplexity": usage.perplexity,
        "codes_used": usage.used,
        "codes": tokenizer.vocab_size,
        "read_s": round(read_s, 1),
        "train_s": round(train_s, 1),
        "seed": arguments.seed,
        "errors": [round(value, 6) for value in errors],
    }
    (arguments.out / "training.json").write_text(json.dumps(measured, indent=1))
    print(
        f"held out: error {error:.4f} (mean picture {variance:.4f}), "
        f"{usage.used} of {tokenizer.vocab_size} codes used, perplexity {usage.perplexity:.0f}; "
        f"{train_s:.0f} s; written to {arguments.out}"
    )


def main(given: Sequence[str] | None = None) -> int:
    """Exit code 0 when done, 2 when the arguments or the data are refused."""
    try:
        train(read_arguments(given))
    except CostreamError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
