"""`Searcher`: questions to answers. Whatever searches (program, service, adapters) asks it.

Shape letters: T terms, N items, D dimensions.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from costream.data.perceptual import HASH_KEY
from costream.errors import ConfigError
from costream.index.forms import ItemForm
from costream.search import duplicates
from costream.search.algebra import combine, multiply
from costream.search.asked import Asked, OneVector, SeveralVectors
from costream.search.background import SAMPLE, without
from costream.search.candidates import Candidate, GoneError, look_up
from costream.search.names import KnownNames
from costream.search.query import Like, Picture, Query, Region, Term, Words
from costream.search.rank import Ranked, rank
from costream.search.records import Answer, Result
from costream.search.relevance import Judge, Unknown, judge_of, kind_of
from costream.search.steps import RankSteps

if TYPE_CHECKING:
    from PIL.Image import Image

    from costream.data.picture import PictureSource
    from costream.index.protocol import SearchIndex
    from costream.records import Space
    from costream.scoring.protocol import RankStep, Scorer

_SEED = 0
# Times to answer when items are removed while the answer is put together.
_TRIES = 3


class TextEncoder(Protocol):
    """What a question in words needs of a model."""

    @property
    def space(self) -> Space:
        """The space of the vectors."""

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Strings to vectors float32 (N, D)."""


@runtime_checkable
class PictureEncoder(Protocol):
    """What a question with pictures needs of a model besides."""

    def encode_images(self, images: Sequence[PictureSource]) -> NDArray[np.float32]:
        """Pictures to vectors float32 (N, D)."""


class Searcher:
    """Answers questions from an index.

    May be used from several threads if the index and the encoder may.

    Args:
        index: Where to search; not closed by this object.
        encoder: The model that the index was made with, or its form where the index holds several
            vectors an item: then results have no relevance. For questions in words a model that
            reads texts is enough.
        steps: Rank steps, in order: what is done to the ranking by vectors; for indexes of one
            vector an item.
        scorer: Scores a question in words and the best items again as pairs, from the vectors of
            their moments; before the steps.

    Raises:
        ConfigError: There are steps or a scorer and the encoder is the form of an index of several
            vectors an item, or the scorer is not one of pairs.

    Example:
        >>> import costream, tempfile
        >>> model = costream.load("cots-mini")
        >>> items = [costream.Item(id="car"), costream.Item(id="dogs")]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with costream.Index.open(folder, create=True) as index:
        ...         index.add(items, model.encode_texts(["a red car", "two dogs"]), model.space)
        ...         answer = Searcher(index, model).answer(Query(terms=(Words("puppies"),)))
        >>> answer.results[0].id
        'dogs'
    """

    def __init__(
        self,
        index: SearchIndex,
        encoder: TextEncoder | ItemForm,
        *,
        steps: Sequence[RankStep] = (),
        scorer: Scorer | None = None,
    ) -> None:
        if (steps or scorer) and isinstance(encoder, ItemForm):
            raise ConfigError(
                "got rank steps or a scorer, which are for indexes of one vector an item",
                hint="leave them out",
            )
        if scorer is not None and scorer.cost != "pair":
            raise ConfigError(f"got a scorer of cost {scorer.cost!r}, expected 'pair'")
        self.index = index
        self.encoder = encoder
        self._steps = RankSteps(index, steps, scorer)
        self._names = KnownNames()

    def answer(self, query: Query) -> Answer:
        """Answer a question.

        Args:
            query: What is asked.

        Returns:
            Results, best first; fewer than asked for only when fewer are there.

        Raises:
            ConfigError: The terms cancel each other, or there is a picture and the encoder reads
                texts only, or with several vectors an item relevance or duplicates are asked for.
            DataError: A picture is absent or broken, the item of a `Like` is not in the index, or
                the index is closed or damaged.
            SpaceMismatch: The index was made with another model.
        """
        for _ in range(_TRIES - 1):
            with contextlib.suppress(GoneError):
                return self._answer(query)
        return self._answer(query)

    def embed(self, terms: Sequence[Term], *, product: bool = False) -> NDArray[np.float32]:
        """The vector of a question: the sum of weight times unit vector of its terms, unit length.

        Args:
            terms: At least one; their order does not matter.
            product: Whether the vectors are multiplied element by element instead.

        Returns:
            float32 (D,).

        Raises:
            ConfigError: As of `answer`.
            DataError: As of `answer`.
        """
        encoder = self.encoder
        if isinstance(encoder, ItemForm):
            raise ConfigError("a question to this index has several vectors, not one")
        texts = [term for term in terms if isinstance(term, Words)]
        pictures = [term for term in terms if isinstance(term, Picture)]
        likes = [term for term in terms if isinstance(term, Like)]
        vectors: list[NDArray[np.float32]] = []
        if texts:
            vectors.extend(encoder.encode_texts([term.text for term in texts]))
        if pictures:
            vectors.extend(self._see(pictures))
        if likes:
            vectors.extend(self.index.vectors([term.id for term in likes]))
        ordered: tuple[Term, ...] = (*texts, *pictures, *likes)
        if product:
            return multiply(np.stack(vectors))
        return combine(np.stack(vectors), [term.weight for term in ordered])

    def _see(self, terms: Sequence[Picture]) -> NDArray[np.float32]:
        if not isinstance(self.encoder, PictureEncoder):
            raise ConfigError(
                "got a picture, but the encoder reads texts only",
                hint="give the Searcher a whole model: costream.load(...)",
            )
        return self.encoder.encode_images([_source(term) for term in terms])

    def _ask(self, query: Query) -> Asked:
        """The question as the index is asked it."""
        form = self.encoder
        if not isinstance(form, ItemForm):
            vector_D = self.embed(query.terms, product=query.product)
            return OneVector(vector=vector_D, space=form.space)
        if query.min_relevance is not None or query.collapse_duplicates or query.product:
            raise ConfigError(
                "got a least relevance, duplicates to collapse or terms to multiply, which is for "
                "indexes of one vector an item",
                hint="leave these options out",
            )
        return SeveralVectors(
            form=form, terms=[(term.weight, self._vectors(form, term)) for term in query.terms]
        )

    def _vectors(self, form: ItemForm, term: Term) -> NDArray[np.float32]:
        if isinstance(term, Words):
            return form.of_texts([term.text])[0]
        if isinstance(term, Picture):
            return form.of_images([_source(term)])[0]
        return self.index.all_vectors([term.id])

    def _answer(self, query: Query) -> Answer:
        clock = _Clock()
        with clock("encode"):
            asked = self._ask(query)
        with clock("judge"):
            total = self.index.count(query.where)
            judged = self._judge(query, asked, total)
        judge = judged if isinstance(judged, Judge) else None
        hidden = _liked(query.terms)
        needed = query.offset + query.top
        depth = needed + len(hidden)
        while True:
            with clock("search"):
                ranked = rank(
                    self.index,
                    asked,
                    query,
                    depth=depth,
                    total=total,
                    steps=self._steps,
                    names=self._names,
                )
            seen = [_judged(one, judge) for one in ranked.candidates if one.id not in hidden]
            with clock("sift"):
                kept = self._sift(query, seen)
            if len(kept) >= needed or ranked.is_whole or _rest_is_below(query, ranked, judge):
                break
            depth *= 4
        with clock("look up"):
            shown = self._with_files(kept[query.offset : needed], query.offset)
        return Answer(
            results=shown,
            total=total,
            nothing_relevant=_is_nothing(seen, judge),
            unjudged=judged.why if isinstance(judged, Unknown) else "",
            exact=ranked.is_exact,
            recall=ranked.by_vectors.recall,
            kernel=ranked.by_vectors.kernel,
            seconds=clock.seconds,
        )

    def _judge(self, query: Query, asked: Asked, total: int) -> Judge | Unknown:
        if not isinstance(asked, OneVector):
            return Unknown(why="the index has several vectors an item")
        kind = kind_of(query)
        if isinstance(kind, Unknown):
            return kind
        sample_ND = self.index.sample_vectors(SAMPLE, _SEED, asked.space)
        hidden = sorted(_liked(query.terms))
        if hidden:
            sample_ND = without(sample_ND, self.index.vectors(hidden))
        num_items = max(total - len(hidden), 0)
        return judge_of(asked.vector, sample_ND, num_items, space=asked.space, kind=kind)

    def _sift(self, query: Query, seen: Sequence[_Judged]) -> list[_Judged]:
        """Leave out what is below the least relevance, and all but the best of duplicates."""
        least = query.min_relevance
        if least is not None:
            seen = [one for one in seen if one.relevance is None or one.relevance >= least]
        return self._collapsed(seen) if query.collapse_duplicates else list(seen)

    def _collapsed(self, seen: Sequence[_Judged]) -> list[_Judged]:
        # What has no vector in this space is like nothing.
        by_id = {one.candidate.id: one for one in seen if one.candidate.score is not None}
        ids = list(by_id)
        items = look_up(self.index, ids)
        hashes = [str(item.meta.get(HASH_KEY, "")) for item in items]
        sample_ND = self.index.sample_vectors(duplicates.SAMPLE, _SEED, self.encoder.space)
        likeness = duplicates.learn_likeness(sample_ND)
        groups = duplicates.collapse(ids, self.index.vectors(ids), hashes, likeness)
        return [
            replace(one, same=groups.get(one.candidate.id, ()))
            for one in seen
            if one.candidate.id in groups or one.candidate.score is None
        ]

    def _with_files(self, kept: Sequence[_Judged], offset: int) -> tuple[Result, ...]:
        items = look_up(self.index, [one.candidate.id for one in kept])
        return tuple(
            Result(
                rank=place,
                id=item.id,
                path=item.path,
                score=one.candidate.score or 0.0,
                relevance=one.relevance,
                span=one.candidate.span,
                modality=item.modality,
                reasons=one.candidate.reasons,
                duplicates=one.same,
            )
            for place, (one, item) in enumerate(zip(kept, items, strict=True), start=offset + 1)
        )


def _source(term: Picture) -> PictureSource:
    return term.source if term.region is None else cut_region(term.source, term.region)


def cut_region(source: PictureSource, region: Region) -> Image:
    """A part of a picture as a picture.

    Args:
        source: Path, encoded bytes, PIL image or stored picture.
        region: Left, top, right, bottom as shares of the upright picture.

    Returns:
        RGB, at least one pixel wide and high.

    Raises:
        DataError: The picture is absent or broken.

    Example:
        >>> from PIL import Image
        >>> cut_region(Image.new("RGB", (200, 100)), (0.5, 0, 1, 1)).size
        (100, 100)
    """
    from costream.data.decode import open_image

    picture = open_image(source)
    width, height = picture.size
    left = min(int(region[0] * width), width - 1)
    top = min(int(region[1] * height), height - 1)
    right = max(round(region[2] * width), left + 1)
    bottom = max(round(region[3] * height), top + 1)
    return picture.crop((left, top, right, bottom))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """A candidate, how relevant it is, and which ones are nearly the same."""

    candidate: Candidate
    relevance: float | None
    same: tuple[str, ...] = ()


class _Clock:
    """Adds up the time of stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def _liked(terms: Sequence[Term]) -> frozenset[str]:
    """Items that were given as examples, unless they were taken back: they are no finds."""
    weights: dict[str, float] = {}
    for term in terms:
        if isinstance(term, Like):
            weights[term.id] = weights.get(term.id, 0.0) + term.weight
    return frozenset(item_id for item_id, weight in weights.items() if weight > 0)


def _judged(candidate: Candidate, judge: Judge | None) -> _Judged:
    relevance: float | None = None
    if candidate.is_named:
        relevance = 1.0
    elif judge is not None and candidate.score is not None:
        relevance = judge.relevance(candidate.score)
    return _Judged(candidate=candidate, relevance=relevance)


def _rest_is_below(query: Query, ranked: Ranked, judge: Judge | None) -> bool:
    """Whether all that was not looked at is below the least relevance asked for."""
    if judge is None or query.min_relevance is None:
        return False
    return judge.relevance(ranked.unseen) < query.min_relevance


def _is_nothing(seen: Sequence[_Judged], judge: Judge | None) -> bool:
    """Whether nothing that was found is more than the best of chance."""
    if judge is None:
        return not seen
    return all(one.relevance is None or one.relevance < judge.threshold for one in seen)
