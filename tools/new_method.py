"""Begin a new method: writes its file and its test, which is all that a method is.

    python tools/new_method.py NAME [--title TITLE] [--year YEAR]

Both are small and work: the test passes, `costream methods` lists the method, `costream train NAME`
trains with it and `costream reproduce NAME` runs its experiment. Then make them the paper's.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
METHODS, TESTS = Path("src/costream/methods"), Path("tests/methods")

METHOD = '''"""{title}: plain contrast within the batch, to begin from.

Idea: a picture is nearer to its own caption than to those of the others of the batch.

Equations: -log softmax([v_i . t_j / tau])[i], and the same with v and t swapped.

Shapes: B pictures, K captions a picture, N = B * K pairs, D dimensions.

Source: say what was read, and what is from memory.

Differs: say what differs from the paper, and why.

Costs: nothing beside the towers. Index impact: reencode.

Claim: say what it is better than, at equal compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from costream.config import Range
from costream.encoders.dual import DualEncoder
from costream.objectives import Losses, Objective
from costream.objectives.contrast import contrast_rows
from costream.parts import Base, Parts
from costream.records import Batch, Features

if TYPE_CHECKING:
    from costream.evaluate import ClaimOptions, ClaimTable

CARD = {{
    "name": "{name}",
    "title": "{title}",
    "paper": "where it was published",
    "year": {year},
    "kind": "objective",
    "slots": ("objective",),
    "index_impact": "reencode",
    "losses": ("contrast",),
    "summary": "Contrast within the batch.",
    "scale": "Published with what data and models; what its claim needs to show.",
}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings.

    Attributes:
        temperature: Divides the similarities.
    """

    temperature: Annotated[float, Range(0, low_included=False)] = 0.07


def contrast(image_ND: Tensor, text_ND: Tensor, related_NN: Tensor, weight_N: Tensor) -> Tensor:
    """Mean of both directions' losses over pairs of some weight; 0 where all weigh nothing."""
    own_N = torch.arange(len(image_ND), device=image_ND.device)
    absent = (weight_N == 0)[None, :] & (own_N[None, :] != own_N[:, None])
    rows = [
        contrast_rows(scores.masked_fill(absent, -torch.inf), own_N, related_NN, "remove")
        for scores in (image_ND @ text_ND.T, text_ND @ image_ND.T)
    ]
    both = torch.where(weight_N > 0, rows[0] + rows[1], torch.zeros_like(rows[0]))
    return (both * weight_N).sum() / weight_N.sum().clamp_min(1e-12) / 2


class PairContrast(Objective):
    """The loss of a batch."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """As of `costream.objectives.Objective`."""
        del model, state
        captions = batch.slots["text.ids"].shape[1]
        groups = batch.groups.repeat_interleave(captions)
        image = features["image"].pooled.repeat_interleave(captions, dim=0)
        scale = self.config.temperature**-0.5
        value = contrast(
            image.float() * scale,
            features["text"].pooled.float() * scale,
            groups[:, None] == groups[None, :],
            batch.weight.repeat_interleave(captions),
        )
        return Losses(total=value, parts={{"contrast": value.detach()}})


def parts(config: Config, base: Base) -> Parts:
    """What it puts into a system.

    Args:
        config: Settings.
        base: The model and its training.

    Returns:
        One objective.
    """
    if base.training is None:
        return Parts()
    return Parts(objective=((1.0, PairContrast(config)),), reads=("image", "text"))


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """The paper's claim as an experiment: training against no training, to begin from.

    Args:
        options: Seeds and sizes.

    Returns:
        One table.
    """
    from costream.evaluate import ClaimTable, compare_seeds
    from costream.train.config import TrainConfig
    from costream.train.short import train_short
    from costream.train.worlds import retrieval_hits, scenes

    sizes = (24, 12) if options.fast else (2000, 200)
    world = scenes(num_train=sizes[0], num_dev=sizes[1], say=options.say)
    steps = 2 if options.fast else 100
    trained, untrained = [], []
    for seed in range(options.seeds):
        model = world.make(seed)
        untrained.append(retrieval_hits(model, world.dev)["hit@1"])
        loop = TrainConfig(steps=steps, batch_size=12, warmup_steps=1, seed=seed)
        train_short(model, PairContrast(Config()), world.train, loop)
        trained.append(retrieval_hits(model, world.dev)["hit@1"])
        options.say(f"seed {{seed}}: {{untrained[-1]:.1f}} to {{trained[-1]:.1f}} % hit@1")
    row = compare_seeds("training over none", trained, untrained, threshold=1.0, unit="%")
    settings = {{**world.facts, "steps": str(steps)}}
    return [ClaimTable(title="It learns", rows=(row,), settings=settings)]
'''

TEST = '''"""{title}: the formula, its laws, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from costream.methods.{name} import contrast

SMALL: dict[str, str] = {{}}
"""Settings for the contract of all methods."""


def test_the_loss_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, 5, 4))
    scores = image @ text.T
    expected = []
    for table in (scores, scores.T):
        log_p = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
        expected.append(-np.diag(log_p).mean())
    found = contrast(
        torch.tensor(image), torch.tensor(text), torch.eye(5, dtype=torch.bool), torch.ones(5)
    )
    assert float(found) == pytest.approx(np.mean(expected), abs=1e-6)


def test_rows_without_weight_are_absent() -> None:
    rng = np.random.default_rng(0)
    image, text = (torch.tensor(each) for each in rng.standard_normal((2, 5, 4)))
    related, weight = torch.eye(5, dtype=torch.bool), torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    rows = [0, 1, 3, 4]
    fewer = contrast(image[rows], text[rows], torch.eye(4, dtype=torch.bool), torch.ones(4))
    assert float(contrast(image, text, related, weight)) == pytest.approx(float(fewer))
    assert float(contrast(image, text, related, torch.zeros(5))) == 0.0
'''


def main(words: list[str] | None = None) -> int:
    """Write both files; 2 when the name will not do or is taken."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("name", metavar="NAME", help="small letters, digits, underscores")
    parser.add_argument("--title", help="default: the name")
    parser.add_argument("--year", type=int, default=2026)
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    name, title = options.name, options.title or options.name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        print(f"{name!r} is no name for a method: small letters, digits and underscores, please")
        return 2
    files = {
        options.root / METHODS / f"{name}.py": METHOD,
        options.root / TESTS / f"test_{name}.py": TEST,
    }
    taken = [path for path in files if path.exists()]
    if taken:
        print(f"{taken[0]} is there already; choose another name")
        return 2
    for path, template in files.items():
        path.write_text(template.format(name=name, title=title, year=options.year), "utf-8")
        print(f"wrote {path.relative_to(options.root)}")
    print(f"now: costream reproduce {name} --fast; pytest {TESTS}/test_{name}.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
