"""Two worlds of three modalities, each with linear towers, trained by Symile and by pairs.

In the first, a and b are random bits, and c is their exclusive or with probability p, else a: at
p = 1 every pair is independent. In the second (a small M3), sound tells a language, the text holds
a word in each language, and the picture shows what the word in that language means.

Shape letters: N tuples, D dimensions, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.evaluate import ClaimOptions, ClaimRow, ClaimTable, compare_seeds
from costream.evaluate.run_log import RunLog
from costream.methods.symile import anchor_scores

_DIM = 16
_LANGUAGES, _CLASSES = 5, 20
_LEAST_GAIN = 10.0
_LEAK = -2.0

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Three modalities.

    Attributes:
        draw: N tuples (a, b, c), each float (N, size).
        candidates: All that the wanted modality can be, float (C, size).
        wanted: Which of the three is found from the two others.
        chance: Share of right answers of one who guesses.
        can_be_won: Whether the two others tell anything about the wanted one.
    """

    draw: Draw
    candidates: Tensor
    wanted: int
    chance: float
    can_be_won: bool = True


def xor_world(probability: float, *, bits: int = 5) -> World:
    """Bits a, b, and c = a xor b with this probability (one draw a tuple), else c = a."""
    codes = torch.arange(2**bits)
    candidates = ((codes[:, None] >> torch.arange(bits)) & 1).float() * 2 - 1

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        a, b = (torch.randint(2, (count, bits), generator=generator) for _ in range(2))
        mixed = torch.rand(count, 1, generator=generator) < probability
        c = torch.where(mixed, a ^ b, a)
        return a.float() * 2 - 1, b.float() * 2 - 1, c.float() * 2 - 1

    return World(
        draw=draw,
        candidates=candidates,
        wanted=1,
        chance=2.0**-bits,
        can_be_won=probability > 0,
    )


def language_world() -> World:
    """Sound: a language. Text: a word of another class in each language. Picture: the class."""
    eye = torch.eye(_CLASSES)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        language = torch.randint(_LANGUAGES, (count,), generator=generator)
        order = torch.rand(count, _CLASSES, generator=generator).argsort(dim=1)[:, :_LANGUAGES]
        text = functional.one_hot(order, _CLASSES).float().flatten(1)
        meant = order.gather(1, language[:, None])[:, 0]
        noise = 0.1 * torch.randn(count, _CLASSES, generator=generator)
        return functional.one_hot(language, _LANGUAGES).float(), text, eye[meant] + noise

    return World(draw=draw, candidates=eye, wanted=2, chance=1.0 / _CLASSES)


class Towers(nn.Module):
    """A linear tower a modality, unit vectors."""

    def __init__(self, sizes: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, dim) for size in sizes)
        self.log_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, number: int, values: Tensor) -> Tensor:
        """Values (N, size) of a modality to (N, D)."""
        return functional.normalize(self.layers[number](values), dim=-1)


def symile_loss(vectors: list[Tensor], scale: Tensor, generator: torch.Generator) -> Tensor:
    """Mean over the anchors, a new permutation for each other modality."""
    count = len(vectors[0])
    own = torch.arange(count)
    terms = []
    for number, anchor in enumerate(vectors):
        others = [each for k, each in enumerate(vectors) if k != number]
        orders = [torch.randperm(count, generator=generator) for _ in others]
        terms.append(
            functional.cross_entropy(anchor_scores(anchor, others, orders, own) * scale, own)
        )
    return torch.stack(terms).mean()


def pairwise_loss(vectors: list[Tensor], scale: Tensor, generator: torch.Generator) -> Tensor:
    """Sum over the three pairs of symmetric contrast."""
    del generator
    own = torch.arange(len(vectors[0]))
    terms = []
    for first, second in ((0, 1), (0, 2), (1, 2)):
        scores = vectors[first] @ vectors[second].T * scale
        terms.append(
            functional.cross_entropy(scores, own) / 2 + functional.cross_entropy(scores.T, own) / 2
        )
    return torch.stack(terms).sum()


LOSSES = {"symile": symile_loss, "pairwise": pairwise_loss}


def train_towers(world: World, loss: str, *, seed: int, steps: int, count: int = 256) -> Towers:
    """Train towers on new tuples every step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    sizes = tuple(each.shape[1] for each in world.draw(1, generator))
    towers = Towers(sizes, _DIM)
    optimiser = torch.optim.Adam(towers.parameters(), lr=0.02)
    for _ in range(steps):
        values = world.draw(count, generator)
        vectors = [towers(number, each) for number, each in enumerate(values)]
        total = LOSSES[loss](vectors, towers.log_scale.exp(), generator)
        optimiser.zero_grad()
        torch.autograd.backward(total)
        optimiser.step()
        with torch.no_grad():
            towers.log_scale.clamp_(max=4.6)
    return towers


@torch.no_grad()
def accuracy(world: World, towers: Towers, loss: str, *, seed: int, count: int = 2000) -> float:
    """Share of tuples, in percent, whose wanted modality is found first by the two others."""
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    values = world.draw(count, generator)
    asked = [towers(k, each) for k, each in enumerate(values) if k != world.wanted]
    candidates = towers(world.wanted, world.candidates)
    if loss == "symile":
        scores = (asked[0] * asked[1]) @ candidates.T
    else:
        scores = (asked[0] + asked[1]) @ candidates.T
    right = (values[world.wanted] @ world.candidates.T).argmax(dim=1)
    best = scores == scores.max(dim=1, keepdim=True).values
    # Equal scores share the hit.
    hits = best.gather(1, right[:, None])[:, 0].double() / best.sum(dim=1)
    return 100.0 * float(hits.mean())


def _row(name: str, world: World, found: Mapping[str, list[float]]) -> ClaimRow:
    chance = 100 * world.chance
    if world.can_be_won:
        return compare_seeds(
            f"{name} (chance {chance:.1f} %)",
            found["symile"],
            found["pairwise"],
            threshold=_LEAST_GAIN,
            unit="%",
        )
    # More than chance would mean that the answer leaks into the question.
    return compare_seeds(
        f"{name} (control: at most {-_LEAK:g} above chance)",
        found["symile"],
        [chance] * len(found["symile"]),
        more_is_better=False,
        threshold=_LEAK,
        unit="%",
    )


def reproduce(options: ClaimOptions) -> list[ClaimTable]:
    """Train both kinds in all worlds with every seed."""
    steps = 5 if options.fast else 1500
    worlds: Mapping[str, World] = {
        "exclusive or always (p = 1): no pair tells anything": xor_world(1.0),
        "exclusive or half the time (p = 0.5)": xor_world(0.5),
        "never (p = 0): b is independent": xor_world(0.0),
        "sound of a language, words, picture": language_world(),
    }
    log = RunLog(None if options.out is None else options.out / "symile_runs.jsonl")
    rows = []
    for name, world in worlds.items():
        found: dict[str, list[float]] = {loss: [] for loss in LOSSES}
        for seed in range(options.seeds):
            for loss in LOSSES:
                key = {"world": name, "loss": loss, "seed": seed, "steps": steps}
                values = log.get(key)
                if values is None:
                    towers = train_towers(world, loss, seed=seed, steps=steps)
                    values = {"accuracy": accuracy(world, towers, loss, seed=seed)}
                    log.add(key, values)
                found[loss].append(values["accuracy"])
                options.say(f"{name}, {loss}, seed {seed}: {values['accuracy']:.1f} %")
        rows.append(_row(name, world, found))
    settings = {
        "data": "drawn anew every step; measured on 2,000 tuples of another seed",
        "towers": f"one linear layer to {_DIM} dimensions a modality, unit vectors",
        "steps": f"{steps} of 256 tuples, Adam, rate 0.02, both kinds alike",
        "selection": "none: the last step is measured",
    }
    title = "Symile finds what no pair of modalities carries (accuracy over pairwise contrast)"
    return [ClaimTable(title=title, rows=tuple(rows), settings=settings)]
