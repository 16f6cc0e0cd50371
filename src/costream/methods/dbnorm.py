"""DBNorm: scores normalised by a bank of queries and a bank of items, against hubs.

Idea: in a space of many dimensions some items (hubs) are near to almost every query and push the
right ones down. How near an item is to queries that do not mean it (a query bank), and to other
items (a gallery bank), says how much of a hub it is; that much is taken off its score.

Equations, with S the scores, B a bank's similarities with the gallery, b an inverse temperature:

    IS(S, B, b)_ij     = exp(b S_ij) / sum_m exp(b B_mj)
    DualIS(S)          = IS(S, BQ, b1) * IS(S, BG, b2)
    log DualIS(S)_ij   = (b1 + b2) S_ij - c_j,  c_j = LSE_m(b1 BQ_mj) + LSE_m(b2 BG_mj)
    DualDIS            as DualIS, but a query takes a bank's part only if its best item by raw score
                       is an activated one: among the k best of some row of that bank

For one query the order is that of S_ij - c_j / (b1 + b2): one number an item, computed before any
query comes. `is` and `dis` are the forms with the query bank only (QB-Norm).

Shapes: Q queries, G items of the gallery, M rows of a bank, D dimensions.

Source: Wang, Jian, Xue, "Balance Act: Mitigating Hubness in Cross-Modal Retrieval with Query and
Gallery Banks" (EMNLP 2023), and QB-Norm: Bogolin et al., "Cross Modal Retrieval with Querybank
Normalisation" (CVPR 2022). Read: abstract, released code of both. From memory: k of DualDIS, and
that both banks use the same one.

Differs: everything is in logarithms and divided by b1 + b2, so that scores stay on the scale of
cosines, and rows that are not normalised compare with those that are. The sum over a bank is its
mean, so that constant banks change nothing. The released function ranks by the bank in place of the
scores; this does not. The released b1 = 1/1.99 and b2 = 3 are for scores times CLIP's scale; here
scores are cosines. b = 0 leaves a bank out; a b towards 0 does not: it subtracts the mean of the
bank's similarities.

Costs: one pass over the bank for each item, once. Index impact: per_item_bias; with DualDIS every
query needs all scores.

Claim: the second bank helps where the query bank is small or of another domain; hubs get fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costream.config import Range
from costream.errors import ConfigError, DataError
from costream.parts import Base, Parts
from costream.scoring.protocol import RankContext, RankStep, Scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from costream.data import DataSet
    from costream.encoders.dual import DualEncoder
    from costream.evaluate import ClaimOptions, ClaimTable
    from costream.records import Sample

CARD = {
    "name": "dbnorm",
    "title": "DBNorm: Balance Act, Mitigating Hubness with Query and Gallery Banks",
    "paper": "Wang et al., EMNLP 2023",
    "year": 2023,
    "kind": "score normalisation",
    "slots": ("rank",),
    "index_impact": "per_item_bias",
    "summary": "Takes off each score how near the item is to a bank of queries and one of items: "
    "hubs no longer stand before what is meant.",
    "scale": "Published with models that were trained on millions of pairs, on retrieval by text "
    "of pictures, clips and sounds. Hubs take more places the larger the gallery and the narrower "
    "the cone of its vectors, so galleries of some hundreds have little to mend.",
}

Vectors = NDArray[np.float32]
Form = Literal["is", "dual_is", "dis", "dual_dis"]

# Similarities of bank rows and items that are held at once: 32 MB.
_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of DBNorm.

    Attributes:
        bank: Captioned pictures that are not searched (training data), in any form that
            `costream.read_data` takes. Must be given.
        form: `is` (query bank), `dual_is` (both), and the dynamic ones `dis`, `dual_dis`.
        b1: Inverse temperature of the query bank, for cosines; 0 leaves it out.
        b2: Inverse temperature of the gallery bank; 0 leaves it out.
        num_queries: Rows of the query bank, drawn from the data.
        num_items: Rows of the gallery bank.
        k: With `dis` and `dual_dis`: items of each bank row that are activated.
        vectors: File (`.npz`) that keeps the vectors of the bank, so that they are computed once;
            computed anew each time when None.
    """

    bank: str = ""
    form: Form = "dual_is"
    b1: Annotated[float, Range(0)] = 20.0
    b2: Annotated[float, Range(0)] = 5.0
    num_queries: Annotated[int, Range(1)] = 2000
    num_items: Annotated[int, Range(1)] = 1000
    k: Annotated[int, Range(1)] = 1
    vectors: str | None = None


# --- the equations, on similarities ---


def log_mean_exp(bank_MG: ArrayLike, b: float) -> NDArray[np.float64]:
    """Log of the mean over a bank's rows of exp(b * similarity).

    Args:
        bank_MG: Similarities of M bank rows and G items.
        b: Inverse temperature.

    Returns:
        float64 (G,).

    Example:
        >>> log_mean_exp([[0.5, 0.0], [0.5, 0.0]], 10.0)
        array([5., 0.])
    """
    scaled = b * np.asarray(bank_MG, dtype=np.float64)
    top = scaled.max(axis=0)
    return np.asarray(top + np.log(np.exp(scaled - top).mean(axis=0)))


def bias_of(parts: Sequence[tuple[ArrayLike, float]]) -> NDArray[np.float64]:
    """What DualIS subtracts of scores: c_j / (b1 + b2).

    Args:
        parts: Similarities (M, G) and inverse temperature of each bank; a bank of temperature 0
            counts for nothing.

    Returns:
        float64 (G,).

    Example:
        >>> bias_of([([[0.5, 0.0]], 20.0), ([[0.25, 0.25]], 20.0)])
        array([0.375, 0.125])
    """
    total = sum(b for _, b in parts)
    logs = [log_mean_exp(bank, b) for bank, b in parts if b > 0]
    if not logs:
        return np.zeros(np.asarray(parts[0][0]).shape[1])
    return np.asarray(np.sum(logs, axis=0) / total)


def activated(bank_MG: ArrayLike, k: int) -> NDArray[np.bool_]:
    """Items that are among the k best of some row of a bank, bool (G,).

    Example:
        >>> activated([[0.9, 0.1, 0.0], [0.8, 0.2, 0.3]], 1)
        array([ True, False, False])
    """
    bank = np.asarray(bank_MG)
    found = np.zeros(bank.shape[1], dtype=np.bool_)
    best = np.argpartition(-bank, min(k, bank.shape[1]) - 1, axis=1)[:, :k]
    found[best] = True
    return found


# --- banks and rank steps ---


class Bank:
    """Vectors of data that is not searched, each kind encoded when it is first asked for.

    Args:
        model: Encodes it.
        config: Which data, how many rows, and where they are kept.
        seed: Of the choice of rows.
    """

    def __init__(self, model: DualEncoder, config: Config, seed: int = 0) -> None:
        self._model, self._config, self._seed = model, config, seed
        self._data: DataSet | None = None
        self._known: dict[str, Vectors] = {}

    def rows(self, modality: str, count: int) -> Vectors:
        """Unit vectors float32 (M, D) of a modality: `text`, or pictures (videos) for any other.

        Args:
            modality: Of the rows.
            count: How many; fewer come when the data has fewer.

        Raises:
            DataError: When the data is absent or broken, or has no captions.
        """
        kind = "text" if modality == "text" else "media"
        name = f"{kind} {count}"
        if name not in self._known:
            self._known[name] = self._kept(name, kind, count)
        return self._known[name]

    def _kept(self, name: str, kind: str, count: int) -> Vectors:
        """Rows from the file that keeps them, or computed and kept there."""
        if self._config.vectors is None:
            return self._encode(kind, count)
        path = Path(self._config.vectors)
        space = self._model.own_space
        key = f"{name} {self._seed} {self._fingerprint(kind, count)} "
        key += f"{space.weights_hash} {space.preprocessing_hash}"
        kept = _read_kept(path)
        if key not in kept:
            kept[key] = self._encode(kind, count)
            with path.open("wb") as file:
                np.savez(file, **kept)  # type: ignore[arg-type]
        return kept[key]

    def _fingerprint(self, kind: str, count: int) -> str:
        chosen = self._texts(count) if kind == "text" else [s.id for s in self._samples(count)]
        return blake2b("\0".join(chosen).encode("utf-8", "replace"), digest_size=8).hexdigest()

    def _encode(self, kind: str, count: int) -> Vectors:
        from costream.evaluate.systems import encode_captions, encode_media

        if kind == "text":
            found = encode_captions(self._model, self._texts(count), tokens=False)
        else:
            found = encode_media(self._model, self._samples(count), tokens=False)
        return np.asarray(found.pooled.numpy(), dtype=np.float32)

    def _texts(self, count: int) -> list[str]:
        samples = self._read().samples
        texts = sorted({text for sample in samples for text in sample.slots.get("text", ())})
        if not texts:
            raise DataError(
                f"the bank {self._config.bank} has no captions, expected some",
                hint="name a data set of captioned pictures",
            )
        return [texts[row] for row in self._draw(len(texts), count)]

    def _samples(self, count: int) -> list[Sample]:
        samples = self._read().samples
        return [samples[row] for row in self._draw(len(samples), count)]

    def _draw(self, number: int, count: int) -> list[int]:
        drawn = np.random.default_rng(self._seed).permutation(number)[:count]
        return [int(row) for row in drawn]

    def _read(self) -> DataSet:
        if self._data is None:
            from costream.data import read_data

            self._data = read_data(self._config.bank)
        return self._data


class Banks:
    """Similarities of items with both banks, the last ones remembered.

    Args:
        bank: Where the rows come from.
        config: Temperatures and sizes.
    """

    def __init__(self, bank: Bank, config: Config) -> None:
        self._bank, self._config = bank, config
        self.b1 = config.b1
        self.b2 = 0.0 if config.form in ("is", "dis") else config.b2

    def sides(self, modality: str, item_modality: str) -> list[tuple[Vectors, float]]:
        """Vectors and temperature of each bank that counts."""
        sides = []
        if self.b1 > 0:
            sides.append((self._bank.rows(modality, self._config.num_queries), self.b1))
        if self.b2 > 0:
            sides.append((self._bank.rows(item_modality, self._config.num_items), self.b2))
        return sides


class ItemNormaliser:
    """IS and DualIS: a number an item (an `ItemBias`).

    Args:
        banks: What hubs are told by.
    """

    needs: Literal["topk", "all"] = "all"

    def __init__(self, banks: Banks) -> None:
        self._banks = banks
        self._last: tuple[str, Scores] | None = None

    def bias(self, items: Vectors, modality: str, item_modality: str) -> Scores:
        """How much of a hub each item is, float32 (C,), on the scale of cosines."""
        # An evaluation asks for the same gallery with every block of queries.
        key = _key_of(items, modality, item_modality)
        if self._last is None or self._last[0] != key:
            self._last = key, self._compute(items, modality, item_modality)
        return self._last[1]

    def _compute(self, items: Vectors, modality: str, item_modality: str) -> Scores:
        sides = self._banks.sides(modality, item_modality)
        if not sides:
            return np.zeros(len(items), dtype=np.float32)
        columns = max(1, _AT_ONCE // max(len(rows) for rows, _ in sides))
        found = [
            bias_of([(rows @ some.T, b) for rows, b in sides]) for some in _blocks(items, columns)
        ]
        return np.concatenate([np.zeros(0), *found]).astype(np.float32)

    def rescore(self, scores: Scores, context: RankContext) -> Scores:
        """Scores less the bias of each item."""
        return scores - self.bias(context.items, context.modality, context.item_modality)


class DynamicNormaliser:
    """DIS and DualDIS: a bank counts for queries whose best item is one that the bank activates.

    Args:
        banks: What hubs are told by.
        k: Items of each bank row that are activated.
    """

    needs: Literal["topk", "all"] = "all"

    def __init__(self, banks: Banks, k: int) -> None:
        self._banks, self._k = banks, k

    def rescore(self, scores: Scores, context: RankContext) -> Scores:
        """Scores less what the banks that count for a query take off."""
        if not scores.size:
            return scores
        sides = self._banks.sides(context.modality, context.item_modality)
        bank_parts = [(rows @ context.items.T, b) for rows, b in sides]
        return dynamic(scores, bank_parts, self._k)


def dynamic(scores_QG: Scores, parts: Sequence[tuple[ArrayLike, float]], k: int) -> Scores:
    """DualDIS in logarithms, divided by b1 + b2.

    Args:
        scores_QG: Raw scores.
        parts: Similarities (M, G) and inverse temperature of each bank.
        k: Items of each bank row that are activated.

    Returns:
        float32 (Q, G).

    Example:
        >>> bank = [[0.9, 0.0]]
        >>> dynamic(np.array([[0.8, 0.7], [0.1, 0.2]], dtype=np.float32), [(bank, 1.0)], 1).round(2)
        array([[-0.1,  0.7],
               [ 0.1,  0.2]], dtype=float32)
    """
    total = sum(b for _, b in parts)
    best = scores_QG.argmax(axis=1)
    result = scores_QG.astype(np.float64)
    for bank, b in parts:
        if b > 0:
            counts = activated(bank, k)[best]
            result -= np.where(counts[:, None], log_mean_exp(bank, b) / total, 0.0)
    return result.astype(np.float32)


def parts(config: Config, base: Base) -> Parts:
    """The rank step.

    Args:
        config: Settings.
        base: Its model encodes the bank, when the first scores come.

    Raises:
        ConfigError: When there is no such bank.
    """
    if not config.bank or not Path(config.bank).exists():
        got = f"no file or folder {config.bank}" if config.bank else "no bank"
        raise ConfigError(
            f"got {got}, expected captioned pictures that are not searched",
            hint="dbnorm bank=train.jsonl",
        )
    banks = Banks(Bank(base.model, config, base.seed), config)
    step: RankStep = (
        DynamicNormaliser(banks, config.k)
        if config.form in ("dis", "dual_dis")
        else ItemNormaliser(banks)
    )
    return Parts(rank=(step,))


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """What both banks do to recall and to hubs, in a world of vectors and on photographs."""
    from costream.methods._dbnorm.claim import reproduce

    return reproduce(options)


def _key_of(items: Vectors, *words: str) -> str:
    content = np.ascontiguousarray(items)
    return " ".join((*words, str(items.shape), blake2b(content.data).hexdigest()))


def _blocks(items: Vectors, size: int) -> list[Vectors]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _read_kept(path: Path) -> dict[str, Vectors]:
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{path} holds no vectors of a bank ({error})", hint="remove it, or name another file"
        ) from error
