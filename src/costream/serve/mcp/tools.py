"""The tools: each takes checked arguments and tells what it found. None has search logic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from costream.errors import DataError
from costream.index import Filter, Item, SearchIndex, parse_filter
from costream.search import Like, Query, Searcher, Term, Words
from costream.serve.mcp import arguments as given
from costream.serve.mcp.facts import all_facts, answer_facts, index_facts, item_facts, shown_id
from costream.serve.mcp.library import Library
from costream.serve.mcp.pictures import small_jpeg

_SMALL_PX, _ONE_PX = 256, 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A picture in an answer.

    Attributes:
        label: What is said above it.
        jpeg: Its bytes; empty when there is none to show, and then the label says why.
    """

    label: str
    jpeg: bytes = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What a tool answers.

    Attributes:
        facts: Plain values.
        pictures: To look at.
    """

    facts: dict[str, Any]
    pictures: tuple[Shown, ...] = ()


@dataclass(frozen=True, slots=True)
class Tools:
    """What a model can do with an index.

    Args:
        library: The index and its model.
    """

    library: Library
    # Ids that are no text, by what was shown in their place.
    _odd_ids: dict[str, str] = field(default_factory=dict, init=False)

    def search(self, asked: given.SearchArguments) -> Told:
        """Find items by words and by items, added and subtracted."""
        texts = ([] if asked.words is None else [asked.words]) + asked.plus
        terms: list[Term] = [Words(text) for text in texts]
        terms += [Words(text, weight=-1.0) for text in asked.minus]
        terms += [Like(self._id(one)) for one in asked.like]
        terms += [Like(self._id(one), weight=-1.0) for one in asked.minus_like]
        if not terms:
            raise DataError(
                "got nothing to search for", hint='give words, such as "a dog on a beach", or like'
            )
        return self._answer(terms, asked)

    def find_similar(self, asked: given.SimilarArguments) -> Told:
        """Find items like one of the index."""
        return self._answer([Like(self._id(asked.id))], asked)

    def get_item(self, asked: given.GetArguments) -> Told:
        """Tell everything about one item."""
        (item,) = self._items([asked.id])
        pictures = self._pictures([(item, "", None)], _ONE_PX) if asked.with_picture else ()
        return Told(facts=self._noted(all_facts(item), [item.id]), pictures=pictures)

    def show_pictures(self, asked: given.ShowArguments) -> Told:
        """Show items."""
        items = self._items(asked.ids)
        pictures = self._pictures([(item, "", asked.at_s) for item in items], asked.longest_side)
        shown = sum(1 for picture in pictures if picture.jpeg)
        return Told(facts={"shown": shown, "asked_for": len(items)}, pictures=pictures)

    def list_items(self, asked: given.ListArguments) -> Told:
        """Tell what is in the index, newest first."""
        where = _filter(asked.where)

        def listed(searcher: Searcher) -> tuple[list[Item], int]:
            index = searcher.index
            items = index.items() if where is None else index.get(sorted(index.matches(where)))
            newest = sorted(items, key=lambda item: -(item.when or 0.0))
            return newest[asked.offset : asked.offset + asked.top], len(items)

        items, total = self.library.call(listed)
        facts = {"items": [item_facts(item) for item in items], "total": total}
        return Told(facts=self._noted(facts, [item.id for item in items]))

    def describe_index(self, _: given.NoArguments) -> Told:
        """Tell what the index holds as a whole."""
        return Told(facts=self.library.call(lambda searcher: index_facts(searcher.index)))

    # --- parts ---

    def _answer(self, terms: Sequence[Term], cut: given.Cut) -> Told:
        query = Query(
            terms=tuple(terms),
            where=_filter(cut.where),
            top=cut.top,
            offset=cut.offset,
            min_relevance=cut.min_relevance,
            collapse_duplicates=cut.collapse_duplicates,
        )

        def answered(searcher: Searcher) -> tuple[Any, Mapping[str, Item]]:
            index = searcher.index
            if not len(index):
                raise DataError(
                    f"the index {index.location} is empty, expected at least one item",
                    hint=f"somebody has to run: costream index PICTURES --index {index.location}",
                )
            _check_known(index, [term.id for term in terms if isinstance(term, Like)])
            answer = searcher.answer(query)
            return answer, _still_there(index, [result.id for result in answer.results])

        answer, items = self.library.call(answered)
        pictures: tuple[Shown, ...] = ()
        if cut.with_pictures:
            first = [one for one in answer.results if one.id in items][: given.MAX_SHOWN]
            wanted = [(items[one.id], f"#{one.rank} ", _middle(one.span)) for one in first]
            pictures = self._pictures(wanted, _SMALL_PX)
        return Told(facts=self._noted(answer_facts(answer, items), items), pictures=pictures)

    def _items(self, ids: Iterable[str]) -> list[Item]:
        wanted = [self._id(one) for one in ids]

        def got(searcher: Searcher) -> list[Item]:
            _check_known(searcher.index, wanted)
            return searcher.index.get(wanted)

        return self.library.call(got)

    def _pictures(
        self, wanted: Iterable[tuple[Item, str, float | None]], longest_side: int
    ) -> tuple[Shown, ...]:
        shown = []
        for item, prefix, at_s in wanted:
            label = f"{prefix}{shown_id(item.id)}"
            try:
                shown.append(Shown(label=label, jpeg=small_jpeg(item, longest_side, at_s)))
            except DataError as error:
                # The others can still be shown.
                shown.append(Shown(label=f"{label}: no picture: {error}"))
        return tuple(shown)

    def _id(self, shown: str) -> str:
        return self._odd_ids.get(shown, shown)

    def _noted(self, facts: dict[str, Any], ids: Iterable[str]) -> dict[str, Any]:
        """Remember ids that are shown as something else."""
        self._odd_ids.update({shown_id(one): one for one in ids if shown_id(one) != one})
        return facts


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """One tool as clients see it.

    Attributes:
        name: Of the tool.
        about: What a model is told of it.
        arguments: Their check, and their schema.
        call: What it does.
    """

    name: str
    about: str
    arguments: type[given.Arguments]
    call: Callable[[Any], Told]


def all_tools(library: Library) -> tuple[Tool, ...]:
    """Every tool for an index."""
    tools = Tools(library)
    return (
        Tool(
            name="search",
            about=(
                "Search pictures (and videos and sounds, where indexed) by meaning: say what they "
                "show, in plain words. Words and items can be added and subtracted. Names, "
                "captions and tags count too. Results have ids for the other tools, a relevance "
                "from 0 to 1, and for videos the best moment."
            ),
            arguments=given.SearchArguments,
            call=tools.search,
        ),
        Tool(
            name="find_similar",
            about="Find items like a given one. It is not among its own results.",
            arguments=given.SimilarArguments,
            call=tools.find_similar,
        ),
        Tool(
            name="show_pictures",
            about=f"Look at up to {given.MAX_SHOWN} items: returns JPEG pictures.",
            arguments=given.ShowArguments,
            call=tools.show_pictures,
        ),
        Tool(
            name="get_item",
            about="Everything known about one item: file, date, tags, caption, text, metadata.",
            arguments=given.GetArguments,
            call=tools.get_item,
        ),
        Tool(
            name="list_items",
            about="List items, newest first, a page at a time; conditions narrow it down.",
            arguments=given.ListArguments,
            call=tools.list_items,
        ),
        Tool(
            name="describe_index",
            about=(
                "What the index holds: number of items, kinds, dates, folders, tags and names of "
                "metadata fields to use in conditions."
            ),
            arguments=given.NoArguments,
            call=tools.describe_index,
        ),
    )


def _filter(conditions: Sequence[str]) -> Filter | None:
    return parse_filter(conditions) if conditions else None


def _middle(span: tuple[float, float] | None) -> float | None:
    return None if span is None else (span[0] + span[1]) / 2


def _check_known(index: SearchIndex, ids: Iterable[str]) -> None:
    wanted = frozenset(ids)
    unknown = wanted - index.matches(Filter(ids=wanted)) if wanted else wanted
    if unknown:
        named = ", ".join(repr(shown_id(one)[:200]) for one in sorted(unknown)[:3])
        raise DataError(
            f"there is no item {named} in the index",
            hint="take ids from the answers of search or list_items",
        )


def _still_there(index: SearchIndex, ids: Sequence[str]) -> dict[str, Item]:
    """Items that were found a moment ago, without those that were removed since."""
    there = index.matches(Filter(ids=frozenset(ids))) if ids else set()
    return {item.id: item for item in index.get([one for one in ids if one in there])}
