"""VDR: pictures and texts as weights of words, so that a bag of words is a query.

Idea: instead of a space whose dimensions mean nothing, both towers give one weight for each word of
the vocabulary. Then the bag of words of a text is a vector of the same space without any encoder;
training against it as well ties each dimension to its word. An index can be inverted, as for text,
and says which words made a score.

Equations, with h the tokens or patches of an item, W_v the row of word v, elu1p(x) = x + 1 for
x >= 0 and e^x below, and B(q) the binary bag of words of text q:

    s_v  = max over tokens of elu1p(LN(h) . W_v), then unit length
    S(q) = s where s is among the k largest or v is in B(q), else 0
    L    = 1/2 [ sym(S(q), p) + sym(B(q), p) ]            p dense, S(q) and B(q) sparse
    sym(a, p) = 1/2 [ CE over items of a p^T / tau + CE over queries of p a^T / tau ]

The second term sends no gradient to the query tower: the picture must have weight on the words of
its own caption. The contrastive mask gives each word v that is in no bag of the batch to sample
v mod N: on in its bag, off in its own positive, so that dead words get a gradient.

Shapes: N pairs, T tokens or patches, W width, V words; weights float32 (N, V), above 0.

Source: Zhou et al., "Retrieval-based Disentangled Representation Learning with Natural Language
Supervision" (ICLR 2024); its code jzhoubu/VDR and jzhoubu/vsearch (MIT) as described by those who
read it: heads, sparsification, the two terms, the mask. It has no code for training pictures with
texts: the temperature and the start of the codebook of pictures are our choice.

Differs: padding takes no part in the maximum (the codes have no mask there); the bag has unit
length in training, as pictures have; words are pieces of the model's own tokenizer that are made of
Latin letters, digits or ASCII signs; the codebook of pictures starts as the text tower's embeddings
where widths agree (`own_codebook`).

Costs: N T V W products a tower in training; V weights an item, of which an index needs the `k`
largest. Index impact: sparse. `costream index` keeps all V weights of a picture as one dense
vector; `costream.index.sparse.SparseIndex` is the inverted one.

Claim: training against bags of words makes bags of words find pictures without a text encoder, and
the words of largest weight true of the picture, while the text encoder finds no worse. With the
words of the bags permuted, bags still find, but the words are no longer true: the tie is to the
identity of words.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from costream.config import Range
from costream.encoders.blocks import Encoded
from costream.encoders.dual import DualEncoder
from costream.encoders.preprocess import tokenize
from costream.errors import ConfigError
from costream.objectives import Losses, Objective
from costream.objectives.gather import (
    gather_rows,
    gather_rows_with_gradient,
    mean_across,
    rank,
    world_size,
)
from costream.objectives.temperature import Temperature
from costream.parts import Base, Parts
from costream.records import Batch, Features, Report, Space

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from costream.data import DataSet
    from costream.evaluate import ClaimOptions, ClaimTable
    from costream.parts import System

CARD = {
    "name": "vdr",
    "title": "VDR: Retrieval-based Disentangled Representation Learning",
    "paper": "Zhou et al., ICLR 2024",
    "year": 2024,
    "kind": "sparse vectors over the vocabulary, training objective, evaluation",
    "slots": ("surgery", "objective", "evaluation"),
    "index_impact": "sparse",
    "losses": ("encoder", "bag"),
    "summary": "Pictures and texts become weights of words; a bag of words is a query without an "
    "encoder, and a score says which words made it.",
    "scale": "Published with BERT, ViT-B/32, a vocabulary of 27,623 words and the 15 million "
    "pictures of YFCC15M. There most words are rare, and bags meet words that training hardly saw, "
    "which a world of some tens of words does not have.",
}

Terms = Literal["both", "encoder", "bag"]
_LEAST, _GREATEST = 0.005, 1.0
_SPECIAL = re.compile(r"\[.*\]|<.*>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of VDR.

    Attributes:
        k: Words of largest weight that a sparse vector keeps.
        terms: Which queries train: those of the text `encoder`, the `bag` of words, or `both`.
        activation: What makes weights positive: `elu1p`, or `relu`, which leaves dead words dead.
        mask: Whether words that are in no bag of the batch count as negatives of one sample each.
        temperature: Divides the scores at first; it trains, within [0.005, 1].
        own_codebook: Whether pictures have rows of words of their own; otherwise they share those
            of the text tower, which then must have the same width.
    """

    k: Annotated[int, Range(1)] = 768
    terms: Terms = "both"
    activation: Literal["elu1p", "relu"] = "elu1p"
    mask: bool = False
    temperature: Annotated[float, Range(_LEAST, _GREATEST)] = 0.05
    own_codebook: bool = True


# --- words ---


def word_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the pieces that stand for words: no special ones, Latin letters, digits, ASCII signs.

    Args:
        tokenizer: With pieces as of WordPiece or of whole words.

    Returns:
        Rising.
    """
    vocabulary = tokenizer.get_vocab()
    return tuple(sorted(number for piece, number in vocabulary.items() if _is_word(piece)))


def _is_word(piece: str) -> bool:
    text = piece.removeprefix("##")
    if not text or _SPECIAL.fullmatch(text):
        return False
    return all(letter.isascii() or _is_latin(letter) for letter in text)


def _is_latin(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith("LATIN")


def bags_of(ids: Tensor, mask: Tensor, columns: Tensor, count: int) -> Tensor:
    """Binary bags of words.

    Args:
        ids: int64 (N, T).
        mask: bool (N, T), True where a token is real.
        columns: int64 (ids of the tokenizer,), the column of each id, -1 where it is no word.
        count: Number of words.

    Returns:
        float32 (N, V): order and repetition are lost.

    Example:
        >>> columns = torch.tensor([-1, 0, 1])
        >>> bags_of(torch.tensor([[2, 0, 2]]), torch.ones(1, 3).bool(), columns, 2).tolist()
        [[0.0, 1.0]]
    """
    places = columns[ids].masked_fill(~mask, -1)
    bags = torch.zeros(len(ids), count + 1, device=ids.device)
    # What is no word falls into a column of its own, which is cut off.
    bags.scatter_(1, places.where(places >= 0, count), 1.0)
    return bags[:, :count]


# --- weights ---


def elu1p(x: Tensor) -> Tensor:
    """Positive everywhere, x + 1 from 0 on.

    Example:
        >>> elu1p(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0.3679, 1.0000, 3.0000])
    """
    return functional.elu(x) + 1.0


def keep_top(weights: Tensor, k: int, also: Tensor | None = None) -> Tensor:
    """The k largest weights of each row, and those of the words in `also`; the others become 0.

    Args:
        weights: float (N, V).
        k: How many; all when it is V or more.
        also: (N, V), above 0 where a weight stays in any case; or None.

    Returns:
        float (N, V).
    """
    if k >= weights.shape[1]:
        return weights
    kept = torch.zeros_like(weights, dtype=torch.bool)
    kept.scatter_(1, weights.topk(k, dim=1).indices, True)
    if also is not None:
        kept = kept | (also > 0)
    return weights * kept


class WordHead(nn.Module):
    """Tokens of a tower to weights of words.

    Args:
        width: Of the tokens.
        words: Ids of the words.
        num_ids: Ids of the tokenizer.
        table: Embeddings of all ids, whose rows of words are used and trained; an own codebook is
            made when None.
        skip: Tokens in front that take no part (a class token).
        activation: As of `Config`.
    """

    columns: Tensor
    ids: Tensor

    def __init__(
        self,
        width: int,
        words: Sequence[int],
        num_ids: int,
        *,
        table: nn.Embedding | None = None,
        skip: int = 0,
        activation: Literal["elu1p", "relu"] = "elu1p",
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.skip, self.activation = skip, activation
        # In a list, so that weights of the tower are not saved twice.
        self._tied = [] if table is None else [table]
        self.codebook: nn.Parameter | None = None
        if table is None:
            self.codebook = nn.Parameter(torch.randn(len(words), width) * width**-0.5)
        ids = torch.tensor(list(words), dtype=torch.int64)
        columns = torch.full((num_ids,), -1)
        columns[ids] = torch.arange(len(words))
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, encoded: Encoded) -> Tensor:
        """Unit vectors float32 (N, V)."""
        rows = self._tied[0].weight[self.ids] if self.codebook is None else self.codebook
        products = self.norm(encoded.tokens[:, self.skip :]) @ rows.T
        if encoded.mask is not None:
            products = products.masked_fill(~encoded.mask[:, self.skip :, None], -math.inf)
        # The activation rises, so that it may come after the maximum.
        best = products.amax(dim=1).float()
        weights = elu1p(best) if self.activation == "elu1p" else functional.relu(best)
        return functional.normalize(weights, dim=-1)


def with_words(model: DualEncoder, config: Config, *, seed: int = 0) -> DualEncoder:
    """Put heads over words on both towers.

    Args:
        model: Changed in place.
        config: Settings.
        seed: Of a codebook that cannot start from the text tower's embeddings.

    Returns:
        The model.

    Raises:
        ConfigError: The tokenizer has no words, or the codebook cannot be shared.
    """
    words = word_ids(model.tokenizer)
    if not words:
        raise ConfigError(f"the tokenizer of {model.name} has no piece that is a word")
    if not config.own_codebook and model.vision.width != model.text.width:
        raise ConfigError(
            f"the towers are {model.vision.width} and {model.text.width} wide, expected the same",
            hint="set own_codebook=true",
        )
    num_ids = model.config.text.vocab_size
    table = model.text.token_embedding
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shared = None if config.own_codebook else table
        front = int(model.vision.class_token is not None)
        seen = WordHead(
            model.vision.width,
            words,
            num_ids,
            table=shared,
            skip=front,
            activation=config.activation,
        )
    if seen.codebook is not None and model.vision.width == model.text.width:
        with torch.no_grad():
            seen.codebook.copy_(table.weight[list(words)])
    read = WordHead(model.text.width, words, num_ids, table=table, activation=config.activation)
    model.image_head, model.text_head = seen.to(model.device), read.to(model.device)
    model.config = replace(model.config, dim=len(words))
    return model


def head_of(model: DualEncoder) -> WordHead:
    """The head of the text tower.

    Raises:
        ConfigError: The model has none.
    """
    if not isinstance(model.text_head, WordHead):
        raise ConfigError(
            f"model {model.name} has no head over words", hint="train it with this method"
        )
    return model.text_head


def encode_bags(model: DualEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Bags of words of texts, without any tower: float32 (N, V) of zeros and ones.

    Raises:
        ConfigError: The model has no head over words.
    """
    head = head_of(model)
    ids, mask = tokenize(model.tokenizer, texts, model.config.text_preprocess)
    count = model.config.dim
    on = head.columns.device
    bags = bags_of(
        torch.from_numpy(ids).to(on), torch.from_numpy(mask).bool().to(on), head.columns, count
    )
    return bags.cpu().numpy()


def encode_sparse(
    weights: NDArray[np.float32], k: int, also: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """What an inverted index stores of weights (N, V): the k largest and the words of `also`."""
    more = None if also is None else torch.from_numpy(also)
    return keep_top(torch.from_numpy(weights), k, more).numpy()


def sparse_space(model: DualEncoder) -> Space:
    """The space of a model's weights in an inverted index."""
    return replace(model.own_space, kind="sparse")


def words_of(model: DualEncoder) -> tuple[str, ...]:
    """What the columns of a model's vectors are called."""
    pieces = (model.tokenizer.id_to_token(number) for number in head_of(model).ids.tolist())
    return tuple(piece or "" for piece in pieces)


# --- objective ---


def symmetric(scores: Tensor, own: Tensor, columns: Tensor) -> Tensor:
    """Mean of both directions' cross-entropies, row by row.

    Args:
        scores: Queries against items (N, M), already divided by the temperature; M may hold further
            negatives, which are no rows of the other direction.
        own: int64 (N,), the column of each query's own item.
        columns: Items against queries (N, N'), row i the item of query i.

    Returns:
        float32 (N,).
    """
    rows = functional.cross_entropy(scores.float(), own, reduction="none")
    return (rows + functional.cross_entropy(columns.float(), own, reduction="none")) / 2


def contrastive_mask(bags: Tensor) -> Tensor:
    """Words that are in no bag, each given to one sample: bool (N, V), word v to v mod N.

    Example:
        >>> bags = torch.zeros(2, 6).scatter(1, torch.tensor([[0], [3]]), 1.0)
        >>> contrastive_mask(bags).int().tolist()
        [[0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 1]]
    """
    count, num_words = bags.shape
    number = torch.arange(num_words, device=bags.device)
    mine = number % count == torch.arange(count, device=bags.device)[:, None]
    return mine & ~(bags > 0).any(dim=0)


class VdrObjective(nn.Module, Objective):
    """Contrast of sparse texts, and of bags of words, with dense pictures.

    Args:
        config: Settings.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.temperature = Temperature(config.temperature, least=_LEAST, greatest=_GREATEST)

    def after_step(self, model: DualEncoder, state: nn.Module) -> None:
        """Keep the temperature in its range."""
        self.temperature.clamp()

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """The loss of one batch; row b * K + k is picture b with its caption k."""
        image, text = features["image"].pooled, features["text"]
        if text.mask is None:
            raise ValueError("features of text have no mask, expected one")
        captions = len(text.pooled) // len(image)
        weight = batch.weight.repeat_interleave(captions)
        images = image.repeat_interleave(captions, dim=0)
        head = head_of(model)
        bags = self.bags(text.extras["ids"], text.mask, head.columns, images.shape[1])
        parts: dict[str, Tensor] = {}
        if self.config.terms != "bag":
            sparse = keep_top(text.pooled, self.config.k, bags)
            parts["encoder"] = self._contrast(sparse, images, batch.groups, weight)
        if self.config.terms != "encoder":
            parts["bag"] = self._bag_contrast(bags, images, batch.groups, weight)
        total = sum(parts.values(), weight.new_zeros(())) / len(parts)
        log = {name: value.detach() for name, value in parts.items()}
        log["temperature"] = self.temperature.value()
        return Losses(total=total, parts=log)

    def bags(self, ids: Tensor, mask: Tensor, columns: Tensor, count: int) -> Tensor:
        """Bags of words (N, V); an experiment may put others in their place."""
        return bags_of(ids, mask, columns, count)

    def _bag_contrast(self, bags: Tensor, images: Tensor, groups: Tensor, weight: Tensor) -> Tensor:
        # A bag of many words must not weigh more than one of few.
        if not self.config.mask:
            return self._contrast(functional.normalize(bags, dim=-1), images, groups, weight)
        mine = contrastive_mask(bags * (weight > 0)[:, None]) & (weight > 0)[:, None]
        length = bags.sum(dim=1, keepdim=True).clamp_min(1.0).sqrt()
        on = (bags + mine) / length
        own = (images * mine / length).sum(dim=1)
        return self._contrast(on, images, groups, weight, less_own=own)

    def _contrast(
        self,
        queries: Tensor,
        items: Tensor,
        groups: Tensor,
        weight: Tensor,
        less_own: Tensor | None = None,
    ) -> Tensor:
        """`symmetric` over the batches of all processes; pairs of weight 0 are absent."""
        captions = len(queries) // len(groups)
        mine = groups.repeat_interleave(captions)
        count = len(mine)
        own = torch.arange(count, device=mine.device) + rank() * count
        at_own = functional.one_hot(own, count * world_size()).bool()
        related = mine[:, None] == gather_rows(mine)[None, :]
        absent = (related | (gather_rows(weight) <= 0)) & ~at_own
        scale = self.temperature.inverse()
        forward = queries @ gather_rows_with_gradient(items).T
        backward = items @ gather_rows_with_gradient(queries).T
        if less_own is not None:
            forward = forward - at_own * less_own[:, None]
            backward = backward - at_own * less_own[:, None]
        rows = symmetric(
            (forward * scale).masked_fill(absent, -math.inf),
            own,
            (backward * scale).masked_fill(absent, -math.inf),
        )
        return mean_across(rows, weight)


# --- evaluation ---


class BagEvaluation:
    """What texts find through the text tower, and what their bags of words find without it.

    Args:
        k: Words of largest weight that a picture keeps.
    """

    def __init__(self, k: int) -> None:
        self._k = k

    def run(self, system: System, data: DataSet) -> Report:
        """Measure both ways from texts to sparse pictures.

        Raises:
            ConfigError: The model has no head over words.
            DataError: A sample has no picture or no caption.
        """
        from costream.evaluate.retrieval import describe_data
        from costream.evaluate.systems import describe_system
        from costream.evaluate.vectors import define, evaluate_vectors
        from costream.train.short import check_captions

        model = system.model
        head_of(model)
        check_captions(data)
        texts = [text for sample in data.samples for text in sample.slots["text"]]
        owner = np.repeat(
            np.arange(len(data.samples)), [len(sample.slots["text"]) for sample in data.samples]
        )
        seen = encode_sparse(
            model.encode_images([sample.slots["image"] for sample in data.samples]), self._k
        )
        bags = encode_bags(model, texts)
        read = encode_sparse(model.encode_texts(texts), self._k, bags)
        metrics = {
            name: evaluate_vectors(seen, vectors, owner)["text_to_image"]
            for name, vectors in (("text_to_image", read), ("bag_of_words_to_image", bags))
        }
        return Report(
            metrics=metrics,
            definitions=define((1, 5, 10), "expected"),
            data=describe_data(data, ()),
            model=describe_system(system),
        )


def parts(config: Config, base: Base) -> Parts:
    """VDR on a model.

    Args:
        config: Settings.
        base: The model.

    Returns:
        Heads over words and an evaluation; an objective when something is trained.
    """
    trained = base.training is not None
    return Parts(
        surgery=(lambda model: with_words(model, config, seed=base.seed),),
        objective=((1.0, VdrObjective(config)),) if trained else (),
        reads=("image", "text") if trained else (),
        evaluation=(BagEvaluation(config.k),),
    )


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """What training against bags of words does to queries, and to the words of pictures.

    Args:
        options: The world is one of scenes, whatever data there is.

    Returns:
        One table.
    """
    from costream.methods._vdr.claim import reproduce

    return reproduce(options)
