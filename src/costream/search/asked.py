"""What a question asks an index with: one vector, or several of which each finds items.

Shape letters: V vectors of a query, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from costream.errors import ConfigError
from costream.index.check import encoded_id
from costream.records import Ranking, Space

if TYPE_CHECKING:
    from costream.index.filters import Filter
    from costream.index.forms import ItemForm, Vectors
    from costream.index.protocol import SearchIndex

Span = tuple[float, float]

# How often the first stage looks four times deeper before an answer counts as inexact.
_DEEPER = 3
# Items whose vectors are read at once.
_AT_ONCE = 128
# A score from all vectors and one from a scan may differ by rounding.
_SLACK = 1e-5


class Asked(Protocol):
    """A question that an index can be asked."""

    def search(self, index: SearchIndex, top: int, where: Filter | None) -> Ranking:
        """The best items for which the conditions hold, as the ranking of one query."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OneVector:
    """A question of one vector.

    Attributes:
        vector: float32 (D,).
        space: Where it lives.
    """

    vector: NDArray[np.float32]
    space: Space

    def search(self, index: SearchIndex, top: int, where: Filter | None) -> Ranking:
        """As of `Asked`."""
        return index.search(self.vector[None], self.space, top, where=where)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SeveralVectors:
    """A question of several vectors, of terms with weights.

    The first stage finds for each vector the items with the best vectors; the second computes the
    scores of what was found from all that is stored. Every item that was not found is below a bound
    for each vector, hence its score is bounded: the answer is exact when enough scores are above
    that. Otherwise the first stage is asked for more.

    Attributes:
        form: How scores are computed.
        terms: Weight and vectors float32 (V, D) of each term. The score is the weighted sum divided
            by the sum of the absolute weights.
    """

    form: ItemForm
    terms: Sequence[tuple[float, Vectors]]

    def search(self, index: SearchIndex, top: int, where: Filter | None) -> Ranking:
        """As of `Asked`; a clip counts by its best moment.

        Raises:
            ConfigError: No term is added.
        """
        if not any(weight > 0 for weight, _ in self.terms):
            raise ConfigError(
                "got only terms to subtract, expected one to add",
                hint="the form of this model finds by what is asked for",
            )
        known: dict[str, tuple[float, Span | None]] = {}
        depth = top
        for _ in range(_DEEPER):
            ids, bound = self._first_stage(index, depth, where)
            known |= self._scores(index, [one for one in ids if one not in known])
            best = sorted(known, key=lambda one: (-known[one][0], encoded_id(one)))
            exact = bound is None or (len(best) >= top and known[best[top - 1]][0] > bound + _SLACK)
            if exact:
                break
            depth *= 4
        found = best[:top]
        return Ranking(
            ids=(tuple(found),),
            scores=(np.array([known[one][0] for one in found], np.float32),),
            stage="several vectors",
            spans=(tuple(known[one][1] for one in found),),
            exact=exact,
        )

    def _first_stage(
        self, index: SearchIndex, depth: int, where: Filter | None
    ) -> tuple[list[str], float | None]:
        """What some vector of a term that is added finds, and what the rest cannot exceed.

        None when there is no rest.
        """
        ids: dict[str, None] = {}
        bound, is_whole = 0.0, False
        for weight, asked_VD in self.terms:
            if weight < 0:
                bound -= weight  # a product of unit vectors is at least -1
                continue
            found = index.search(asked_VD, self.form.space, depth, where=where)
            ids |= dict.fromkeys(one for some in found.ids for one in some)
            is_whole = is_whole or any(len(some) < depth for some in found.ids)
            if not is_whole:
                last_V = np.array([scores[-1] for scores in found.scores], np.float32)
                bound += weight * self.form.bound(last_V)
        return list(ids), None if is_whole else bound / self._total

    @property
    def _total(self) -> float:
        return sum(abs(weight) for weight, _ in self.terms)

    def _scores(
        self, index: SearchIndex, ids: Sequence[str]
    ) -> Mapping[str, tuple[float, Span | None]]:
        """Score and span of the best moment of each item."""
        scores: dict[str, tuple[float, Span | None]] = {}
        for first in range(0, len(ids), _AT_ONCE):
            some = ids[first : first + _AT_ONCE]
            for item_id, span, vectors in _stored(index, some):
                score = self._score(vectors)
                if item_id not in scores or score > scores[item_id][0]:
                    scores[item_id] = score, span
        return scores

    def _score(self, item: Vectors) -> float:
        scores = (weight * self.form.score(asked, item) for weight, asked in self.terms)
        return sum(scores) / self._total


def _stored(index: SearchIndex, ids: Sequence[str]) -> Iterator[tuple[str, Span | None, Vectors]]:
    """Id, span and vectors of each moment of some items; a picture is one moment."""
    vectors, at = index.all_vectors(ids), 0
    for item_id, moments in zip(ids, index.moments(ids), strict=True):
        for moment, same in groupby(moments):
            count = len(list(same))
            span = None
            if moment.t_start is not None and moment.t_end is not None:
                span = (moment.t_start, moment.t_end)
            yield item_id, span, vectors[at : at + count]
            at += count
