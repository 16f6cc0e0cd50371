"""A VSE++-style model on frozen features: a linear map of pictures, a GRU over words.

Shape letters: N pictures, M captions, B pairs of a batch, T words, F features, D dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from costream.encoders.dual import DualEncoder
    from costream.records import Sample

Loss = Literal["sum", "max", "info_nce"]
WordStart = Literal["pretrained", "random"]

_DIM = 256
_MOST_WORDS = 20
_MARGIN, _TEMPERATURE = 0.2, 0.05


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Captioned:
    """Pictures as features and captions as word numbers.

    Attributes:
        features: float32 (N, F).
        words: int64 (M, T), 0 where a caption has ended.
        picture_of: int64 (M,), rising.
    """

    features: Tensor
    words: Tensor
    picture_of: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frozen:
    """What all runs share.

    Attributes:
        train: What models are trained on.
        dev: What checkpoints are picked by.
        held: What is reported.
        word_vectors: float32 (V, W), of a pretrained text tower, row 0 of no word.
    """

    train: Captioned
    dev: Captioned
    held: Captioned
    word_vectors: Tensor


def freeze(
    model: DualEncoder, train: Sequence[Sample], dev: Sequence[Sample], held: Sequence[Sample]
) -> Frozen:
    """Features of the frozen layers of a model, and its vectors of single words.

    Args:
        model: Where it has a convolutional stem, its map's mean is the feature; else its vector.
        train: Their words are the vocabulary.
        dev: Others.
        held: Others.

    Raises:
        DataError: A picture is broken.
    """
    vocabulary = sorted(
        {word for each in train for text in each.slots["text"] for word in words_of(text)}
    )
    number = {word: place for place, word in enumerate(vocabulary, start=1)}
    vectors = torch.from_numpy(model.encode_texts(vocabulary))
    parts = [
        Captioned(features=_features(model, part), words=words, picture_of=owners)
        for part in (train, dev, held)
        for words, owners in [_numbered(part, number)]
    ]
    # Of one scale, so that one learning rate fits every model.
    mean, spread = parts[0].features.mean(dim=0), parts[0].features.std() + 1e-6
    scaled = [
        Captioned(
            features=(each.features - mean) / spread, words=each.words, picture_of=each.picture_of
        )
        for each in parts
    ]
    none = torch.zeros(1, vectors.shape[1])
    return Frozen(
        train=scaled[0], dev=scaled[1], held=scaled[2], word_vectors=torch.cat([none, vectors])
    )


@torch.inference_mode()
def _features(model: DualEncoder, samples: Sequence[Sample]) -> Tensor:
    images = [sample.slots["image"] for sample in samples]
    if model.vision.stem is None:
        return torch.from_numpy(model.encode_images(images)).clone()
    read, found = model.config.image_preprocess.read, []
    for start in range(0, len(images), 32):
        pixels = np.stack([read(image) for image in images[start : start + 32]])
        seen = model.vision.frozen_part(model.normalise_pixels(torch.from_numpy(pixels)))
        found.append(seen.float().mean(dim=(2, 3)))
    return torch.cat(found).clone()


def words_of(text: str) -> list[str]:
    """Words and numbers of a text in lower case.

    Example:
        >>> words_of("Two dogs, running.")
        ['two', 'dogs', 'running']
    """
    return re.findall(r"\w+", text.lower())


def _numbered(
    samples: Sequence[Sample], number: Mapping[str, int]
) -> tuple[Tensor, NDArray[np.int64]]:
    rows, owners = [], []
    for place, sample in enumerate(samples):
        for text in sample.slots["text"]:
            known = [number[word] for word in words_of(text) if word in number][:_MOST_WORDS]
            rows.append(known + [0] * (_MOST_WORDS - len(known)))
            owners.append(place)
    return torch.tensor(rows), np.array(owners, dtype=np.int64)


# --- losses ---


def hinge(scores: Tensor, kind: Literal["sum", "max"], margin: float = _MARGIN) -> Tensor:
    """Triplet hinge over a batch: of all negatives (SH), or of the hardest a row and column (MH).

    Args:
        scores: float (B, B), the diagonal of pairs that belong together.
        kind: `sum` or `max`.
        margin: By which a pair has to be better.

    Returns:
        A scalar: a sum over the batch.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8], [0.85, 0.7]])
        >>> round(float(hinge(scores, "sum")), 4), round(float(hinge(scores, "max")), 4)
        (0.9, 0.9)
    """
    own = scores.diagonal()
    others = ~torch.eye(len(scores), dtype=torch.bool)
    by_row = (margin + scores - own[:, None]).clamp(min=0) * others
    by_column = (margin + scores - own[None, :]).clamp(min=0) * others
    if kind == "sum":
        return by_row.sum() + by_column.sum()
    return by_row.amax(dim=1).sum() + by_column.amax(dim=0).sum()


def loss_of(scores: Tensor, kind: Loss) -> Tensor:
    """The loss of a batch by name."""
    if kind != "info_nce":
        return hinge(scores, kind)
    own = torch.arange(len(scores))
    both = scores / _TEMPERATURE, scores.T / _TEMPERATURE
    return sum((functional.cross_entropy(each, own) for each in both), torch.zeros(()))


# --- the model ---


class SmallModel(nn.Module):
    """Pictures by one linear map, captions by a GRU over word vectors; both of unit length.

    Args:
        frozen: Sizes and word vectors.
        start: Whether words start from the pretrained vectors.
        dim: Of the shared space.
    """

    def __init__(self, frozen: Frozen, start: WordStart, dim: int = _DIM) -> None:
        super().__init__()
        count, width = frozen.word_vectors.shape
        self.words = nn.Embedding(count, width, padding_idx=0)
        if start == "pretrained":
            self.words.weight.data.copy_(frozen.word_vectors)
        else:
            # As long as the pretrained ones, so that only what they know differs.
            nn.init.normal_(self.words.weight, std=width**-0.5)
        self.read = nn.GRU(width, dim, batch_first=True)
        self.see = nn.Linear(frozen.train.features.shape[1], dim)

    def pictures(self, features: Tensor) -> Tensor:
        """Features (B, F) to (B, D)."""
        return functional.normalize(self.see(features), dim=-1)

    def captions(self, words: Tensor) -> Tensor:
        """Word numbers (B, T) to (B, D): the state after the last word."""
        lengths = (words > 0).sum(dim=1).clamp(min=1)
        longest = int(lengths.max())
        states, _ = self.read(self.words(words[:, :longest]))
        return functional.normalize(states[torch.arange(len(words)), lengths - 1], dim=-1)

    @torch.inference_mode()
    def scores(self, data: Captioned) -> NDArray[np.float32]:
        """Cosines (N, M) of all pictures and captions."""
        texts = torch.cat([self.captions(some) for some in data.words.split(512)])
        return np.asarray((self.pictures(data.features) @ texts.T).numpy())


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """One cell of the grid.

    Attributes:
        loss: `sum` and `max` of hinges, or `info_nce`.
        words: Where word vectors start from.
        batch: Pairs a step.
        seed: Of weights and of the order of pairs.
    """

    loss: Loss = "max"
    words: WordStart = "pretrained"
    batch: int = 128
    seed: int = 0


def train(
    frozen: Frozen, setup: Setup, *, pairs: int, checkpoints: int, rate: float = 1e-3
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Train a small model and keep what it scores along the way.

    Args:
        frozen: What all runs share.
        setup: The cell.
        pairs: Pairs seen in all, whatever the batch.
        checkpoints: How often it is measured, the last time at the end.
        rate: Of Adam, a tenth of it in the last third.

    Returns:
        For each checkpoint the scores of dev and held.
    """
    torch.manual_seed(setup.seed)
    rng = np.random.default_rng((setup.seed, 1))
    model = SmallModel(frozen, setup.words)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    steps = max(1, pairs // setup.batch)
    ends = {round(steps * part / checkpoints) for part in range(1, checkpoints + 1)}
    counts = np.bincount(frozen.train.picture_of)
    firsts = np.array([0, *accumulate(counts.tolist())])[:-1]
    kept = []
    for step in range(1, steps + 1):
        if step > 2 * steps // 3:
            optimiser.param_groups[0]["lr"] = rate / 10
        # Different pictures, so that no true pair is a negative.
        size = min(setup.batch, len(counts))
        chosen = rng.permutation(len(counts))[:size]
        captions = firsts[chosen] + rng.integers(0, counts[chosen])
        seen = model.pictures(frozen.train.features[torch.from_numpy(chosen)])
        read = model.captions(frozen.train.words[torch.from_numpy(captions)])
        torch.autograd.backward(loss_of(seen @ read.T, setup.loss))
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step in ends:
            kept.append((model.scores(frozen.dev), model.scores(frozen.held)))
    return kept
