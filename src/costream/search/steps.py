"""Scores of pairs and rank steps over an index: after the first stage, as exact as they can be.

- Steps at the front that are a bias an item are exact over the whole index: the first stage is
  asked for more and more, until nothing that it has not given can come in. What it has not given
  has no cosine above the last one's, and no bias below the least of all.
- A step that needs all items gets them all.
- A step that needs the best candidates gets so many of them; the others stay behind.
- A scorer of pairs scores the best candidates anew, from the vectors of their moments; all steps
  come after it and none is exact any more.

Shape letters: N items, M vectors of items, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from costream.errors import DataError
from costream.scoring.protocol import ItemBias, RankContext, RankStep, Scorer
from costream.search.asked import Asked, OneVector
from costream.search.candidates import Candidate, GoneError, by_vectors, look_up

if TYPE_CHECKING:
    from costream.index.filters import Filter
    from costream.index.protocol import SearchIndex
    from costream.records import Ranking

Span = tuple[float, float] | None

# Places that a step gets which needs the best candidates only.
_BEST = 200
# What two ways to compute a cosine may differ by.
_ROUNDING = 1e-6
# Items whose vectors are in memory at once while biases are computed.
_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped:
    """Candidates after all steps.

    Attributes:
        candidates: By id, best first; their order does not depend on how many were asked for.
        found: What the first stage gave.
        is_whole: Whether every item that can be found is among them.
        unseen: No item that is not among them has a greater cosine.
        is_exact: Whether no item that a scorer or step has passed over can belong before one that
            it was given.
    """

    candidates: Mapping[str, Candidate]
    found: Ranking
    is_whole: bool
    unseen: float
    is_exact: bool = True


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Vectors:
    """Every vector of some items.

    Attributes:
        vectors_MD: float32, as stored: of unit length but for rounding.
        parents_M: Which of the items each belongs to.
        spans: Of the moment each stands for.
        modalities: Of the items, one each.
    """

    vectors_MD: NDArray[np.float32]
    parents_M: NDArray[np.int64]
    spans: tuple[Span, ...]
    modalities: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Biases:
    """Biases of all vectors of an index in one state.

    Attributes:
        token: Of the state.
        of: Item to the bias of each of its vectors.
        least: Of all.
    """

    token: str
    of: Mapping[str, NDArray[np.float32]]
    least: float


class RankSteps:
    """Rank steps over an index; biases of its items are kept in memory until it changes.

    Args:
        index: Where items are found.
        steps: In order.
        scorer: Scores words and items as pairs, before the steps.
    """

    def __init__(
        self, index: SearchIndex, steps: Sequence[RankStep], scorer: Scorer | None = None
    ) -> None:
        self._index, self._scorer = index, scorer
        ahead = () if scorer is not None else takewhile(_is_bias, steps)
        self._biases = [each for each in ahead if isinstance(each, ItemBias)]
        self._others = tuple(steps[len(self._biases) :])
        self._tables: dict[str, _Biases] = {}

    def rank(
        self,
        asked: Asked,
        *,
        modality: str,
        wanted: int,
        where: Filter | None = None,
    ) -> Stepped:
        """Rank the items of the index.

        Args:
            asked: The question; with steps it has one vector.
            modality: Of the question.
            wanted: How many candidates at least.
            where: Conditions on the items.

        Returns:
            At least the best items wanted, or all there are.

        Raises:
            GoneError: The index was changed meanwhile.
        """
        sees_all = self._sees_all(modality)
        # One more than are scored anew tells whether there are more.
        wanted = max(wanted, _BEST if sees_all else _BEST + 1)
        if not isinstance(asked, OneVector):
            return _unstepped(asked.search(self._index, wanted, where), wanted)
        asked_D = asked.vector
        if any(step.needs == "all" for step in self._others):
            wanted = self._index.count(where) + 1
        table = self._table(modality) if self._biases else None
        depth = wanted
        while True:
            found = asked.search(self._index, depth, where)
            is_whole = len(found.ids[0]) < depth
            last = float(found.scores[0][-1]) if len(found.ids[0]) else 0.0
            seen = by_vectors(found)
            moved = seen if table is None else self._less(table, seen, asked_D)
            known = moved
            if table is not None and not is_whole:
                known = _above(moved, last - table.least)
            if is_whole or len(known) >= wanted:
                break
            depth *= 4
        passed = [each.score or 0.0 for item_id, each in seen.items() if item_id not in known]
        return Stepped(
            candidates=self._with_others(known, table, asked_D, modality),
            found=found,
            is_whole=is_whole,
            unseen=max([last, *passed]),
            is_exact=sees_all or (is_whole and len(known) <= _BEST),
        )

    def _sees_all(self, modality: str) -> bool:
        """Whether for such questions nothing is scored anew that needs the best items only."""
        if any(step.needs == "all" for step in self._others):
            return True
        return not self._others and self._scorer_for(modality) is None

    def _scorer_for(self, modality: str) -> Scorer | None:
        """The scorer, for words: it is one of a text and moments."""
        return self._scorer if modality == "text" else None

    # --- biases ---

    def _table(self, modality: str) -> _Biases:
        """The biases of all items for questions of a modality, computed once a state."""
        token = self._index.token()
        known = self._tables.get(modality)
        if known is not None and known.token == token:
            return known
        of: dict[str, NDArray[np.float32]] = {}
        ids = self._index.ids()
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            held = self._vectors(some)
            biases = self._bias(held, modality)
            ends = np.searchsorted(held.parents_M, np.arange(len(some) + 1))
            for place, item_id in enumerate(some):
                of[item_id] = biases[ends[place] : ends[place + 1]]
        if self._index.token() != token:
            raise GoneError
        least = min((float(each.min()) for each in of.values() if len(each)), default=0.0)
        made = _Biases(token=token, of=of, least=least)
        self._tables[modality] = made
        return made

    def _bias(self, held: _Vectors, modality: str) -> NDArray[np.float32]:
        """The sum of all biases of vectors, by the modality of their items."""
        kinds = np.array([_kind(name) for name in held.modalities])[held.parents_M]
        total = np.zeros(len(held.vectors_MD), dtype=np.float32)
        for kind in sorted(set(kinds.tolist())):
            rows = kinds == kind
            for step in self._biases:
                total[rows] += step.bias(held.vectors_MD[rows], modality, kind)
        return total

    def _less(
        self, table: _Biases, seen: Mapping[str, Candidate], asked_D: NDArray[np.float32]
    ) -> dict[str, Candidate]:
        """Candidates by cosine less bias; of an item with moments the best of the differences."""
        if not all(item_id in table.of for item_id in seen):
            raise GoneError
        moved = {}
        several = [item_id for item_id in seen if len(table.of[item_id]) > 1]
        held = self._vectors(several) if several else None
        for item_id, one in seen.items():
            if held is None or len(table.of[item_id]) == 1:
                moved[item_id] = _moved(one, (one.score or 0.0) - float(table.of[item_id][0]))
        if held is not None:
            differences = held.vectors_MD @ asked_D - np.concatenate(
                [table.of[item_id] for item_id in several]
            )
            moved |= _best_moments(seen, several, held, differences)
        return _sorted(moved)

    # --- other steps ---

    def _with_others(
        self,
        known: Mapping[str, Candidate],
        table: _Biases | None,
        asked_D: NDArray[np.float32],
        modality: str,
    ) -> dict[str, Candidate]:
        """The candidates after the steps that look at their vectors."""
        scorer = self._scorer_for(modality)
        if scorer is not None:
            return self._with_pairs(scorer, known, asked_D)
        if not self._others or not known:
            return dict(known)
        everything = any(step.needs == "all" for step in self._others)
        ids = list(known) if everything else list(known)[:_BEST]
        held = self._vectors(ids)
        scores = held.vectors_MD @ asked_D
        if table is not None:
            scores = scores - np.concatenate([table.of[item_id] for item_id in ids])
        kinds = {_kind(name) for name in held.modalities}
        context = RankContext(
            queries=asked_D[None],
            items=held.vectors_MD,
            modality=modality,
            item_modality=kinds.pop() if len(kinds) == 1 else "image",
        )
        rows = scores[None].astype(np.float32)
        for step in self._others:
            rows = step.rescore(rows, context)
        moved = _sorted(_best_moments(known, ids, held, rows[0]))
        return {**moved, **{item_id: one for item_id, one in known.items() if item_id not in moved}}

    def _with_pairs(
        self, scorer: Scorer, known: Mapping[str, Candidate], asked_D: NDArray[np.float32]
    ) -> dict[str, Candidate]:
        """The best candidates by a scorer of pairs and the steps after it; the others behind."""
        everything = any(step.needs == "all" for step in self._others)
        ids = list(known) if everything else list(known)[:_BEST]
        if not ids:
            return {}
        held = self._vectors(ids)
        rows, means_ND = score_pairs(scorer, asked_D, held.vectors_MD, held.parents_M)
        context = RankContext(queries=asked_D[None], items=means_ND, modality="text")
        for step in self._others:
            rows = step.rescore(rows, context)
        scored = zip(ids, rows[0].tolist(), strict=True)
        moved = _sorted({item_id: _moved(known[item_id], score) for item_id, score in scored})
        return {**moved, **{item_id: one for item_id, one in known.items() if item_id not in moved}}

    def _vectors(self, ids: Sequence[str]) -> _Vectors:
        items = look_up(self._index, ids)
        try:
            vectors, moments = self._index.all_vectors(ids), self._index.moments(ids)
        except DataError as error:
            look_up(self._index, ids)
            raise GoneError from error
        counts = [len(some) for some in moments]
        if sum(counts) != len(vectors):
            raise GoneError
        return _Vectors(
            vectors_MD=vectors,
            parents_M=np.repeat(np.arange(len(ids)), counts),
            spans=tuple(_span(one.t_start, one.t_end) for some in moments for one in some),
            modalities=tuple(item.modality for item in items),
        )


def score_pairs(
    scorer: Scorer,
    query_D: NDArray[np.float32],
    vectors_MD: NDArray[np.float32],
    parents_M: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores of a query and items as a scorer of pairs sees them, by their moments' vectors.

    Args:
        scorer: Of pairs.
        query_D: The vector of the words.
        vectors_MD: Of the moments, those of an item next to each other.
        parents_M: Which item each belongs to: 0, 1, ... in order.

    Returns:
        Scores float32 (1, N); the items' pooled vectors float32 (N, D), of unit length.
    """
    import torch

    from costream.records import Features

    num_items = int(parents_M[-1]) + 1
    counts_N = np.bincount(parents_M, minlength=num_items)
    starts_N = np.concatenate([[0], np.cumsum(counts_N)[:-1]])
    means_ND = np.add.reduceat(vectors_MD, starts_N, axis=0)
    means_ND /= np.maximum(np.linalg.norm(means_ND, axis=1, keepdims=True), 1e-12)
    query = Features(pooled=torch.from_numpy(query_D[None]), modality="text")
    scores = np.empty((1, num_items), dtype=np.float32)
    for count in np.unique(counts_N).tolist():
        some = np.flatnonzero(counts_N == count)
        moments = vectors_MD[starts_N[some, None] + np.arange(count)]
        gallery = Features(
            pooled=torch.from_numpy(means_ND[some]),
            tokens=torch.from_numpy(moments),
            modality="video",
        )
        scores[0, some] = scorer.score(query, gallery)[0].float().cpu().numpy()
    return scores, means_ND


def _unstepped(found: Ranking, wanted: int) -> Stepped:
    scores = found.scores[0]
    return Stepped(
        candidates=by_vectors(found),
        found=found,
        is_whole=len(scores) < wanted,
        unseen=float(scores[-1]) if len(scores) else 0.0,
    )


def _is_bias(step: RankStep) -> bool:
    return isinstance(step, ItemBias)


def _kind(modality: str) -> str:
    """What the vectors of an item are: a moment of a video is a picture."""
    return "image" if modality == "video" else modality


def _span(start: float | None, end: float | None) -> Span:
    return None if start is None or end is None else (start, end)


def _score(candidate: Candidate) -> float:
    return candidate.reasons.get("steps", candidate.score or 0.0)


def _moved(candidate: Candidate, score: float) -> Candidate:
    return replace(candidate, reasons={**candidate.reasons, "steps": score})


def _best_moments(
    known: Mapping[str, Candidate],
    ids: Sequence[str],
    held: _Vectors,
    scores_M: NDArray[np.float32],
) -> dict[str, Candidate]:
    """Each item with its best vector by new scores."""
    moved: dict[str, Candidate] = {}
    for parent, span, score in zip(
        held.parents_M.tolist(), held.spans, scores_M.tolist(), strict=True
    ):
        item_id = ids[parent]
        if item_id not in moved or score > _score(moved[item_id]):
            moved[item_id] = _moved(replace(known[item_id], span=span), score)
    return moved


def _above(candidates: Mapping[str, Candidate], bound: float) -> dict[str, Candidate]:
    """Those before which nothing unseen can belong."""
    return {item_id: one for item_id, one in candidates.items() if _score(one) > bound + _ROUNDING}


def _sorted(candidates: Mapping[str, Candidate]) -> dict[str, Candidate]:
    """Best first; equal ones by the bytes of their ids, as an index ranks them."""

    def place(item_id: str) -> tuple[float, bytes]:
        return -_score(candidates[item_id]), item_id.encode("utf-8", "surrogateescape")

    return {item_id: candidates[item_id] for item_id in sorted(candidates, key=place)}
