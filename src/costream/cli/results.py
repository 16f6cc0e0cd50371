"""How an answer is told: as a table for people, as JSON for programs."""

from __future__ import annotations

from typing import Any

from costream.cli.output import json_path, json_text, note, say, say_table, shown_path
from costream.data.picture import picture_name
from costream.search.query import Like, Picture, Query, Term, Words
from costream.search.records import Answer, Result

_DIGITS = 6
_NOTHING = "nothing relevant found"


def say_answer(answer: Answer, *, title: str = "", min_relevance: float | None = None) -> None:
    """Print an answer as a table, and say so when nothing in it is relevant.

    Args:
        answer: What was found.
        title: Above the table.
        min_relevance: What was asked for; None when results of any relevance were.
    """
    if not answer.total:
        say("nothing meets the conditions (--where)")
        return
    if answer.nothing_relevant:
        is_shown = bool(answer.results) and min_relevance is None
        say(f"{_NOTHING}; what comes nearest, marked ~:" if is_shown else _NOTHING)
        if not is_shown:
            return
    if not answer.results:
        say("no results: --offset or --min-relevance left out all")
        return
    headers, numbers = ["#", "score", "file"], [0, 1]
    rows = [_row(result, is_near=answer.nothing_relevant) for result in answer.results]
    if any(result.relevance is not None for result in answer.results):
        headers.insert(2, "relevance")
        numbers.append(2)
        for row, result in zip(rows, answer.results, strict=True):
            row.insert(2, "" if result.relevance is None else f"{result.relevance:.0%}")
    say_table(headers, rows, numbers=numbers, title=title)
    if not answer.exact:
        known = "not measured yet" if answer.recall is None else f"measured as {answer.recall:.1%}"
        note(f"approximate ({answer.kernel}); the share of the true best that is found: {known}")


def answer_to_json(query: Query, answer: Answer) -> dict[str, Any]:
    """An answer as plain values.

    Args:
        query: What was asked.
        answer: What was found.

    Returns:
        `{"query", "results": [{"rank", "id", "path", "score", "relevance", ...}], "exact",
        "recall", "kernel", "total", "nothing_relevant", "unjudged"}`. The query is a string for
        words, and `{"image": path}` for a picture; else `{"terms": [...]}`.
    """
    return {
        "query": query_to_json(query),
        "results": [_result_to_json(result) for result in answer.results],
        "exact": answer.exact,
        "recall": answer.recall,
        "kernel": answer.kernel,
        "total": answer.total,
        "nothing_relevant": answer.nothing_relevant,
        "unjudged": answer.unjudged,
    }


def query_to_json(query: Query) -> Any:
    """What was asked as plain values.

    Args:
        query: Of any terms.

    Returns:
        A string for words, `{"image": path}` for a picture, else `{"terms": [...]}`.

    Example:
        >>> query_to_json(Query(terms=(Words("a dog"),)))
        'a dog'
        >>> query_to_json(Query(terms=(Words("a dog"), Words("snow", weight=-0.5))))
        {'terms': [{'text': 'a dog', 'weight': 1.0}, {'text': 'snow', 'weight': -0.5}]}
    """
    if len(query.terms) == 1 and query.terms[0].weight == 1:
        (term,) = query.terms
        if isinstance(term, Words):
            return json_text(term.text)
        if isinstance(term, Picture) and term.region is None:
            return {"image": json_text(picture_name(term.source))}
    return {"terms": [_term_to_json(term) for term in query.terms]}


def query_in_words(query: Query) -> str:
    """What was asked on one line.

    Args:
        query: Of any terms.

    Example:
        >>> query_in_words(Query(terms=(Words("a dog"), Words("snow", weight=-0.5))))
        'a dog - 0.5 snow'
    """
    parts: list[str] = []
    for term in query.terms:
        sign = "-" if term.weight < 0 else "+" if parts else ""
        size = "" if abs(term.weight) == 1 else f"{abs(term.weight):g}"
        parts.extend(part for part in (sign, size, _name_of(term)) if part)
    return " ".join(parts)


def shown_span(span: tuple[float, float]) -> str:
    """A part of a clip as players show times.

    Args:
        span: Begin and end in seconds.

    Example:
        >>> shown_span((59.5, 61.0)), shown_span((3600.0, 3725.0))
        ('0:59.5-1:01', '1:00:00-1:02:05')
    """
    return "-".join(_clock(seconds) for seconds in span)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    front = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{front}:{rest:04.1f}".removesuffix(".0")


def _name_of(term: Term) -> str:
    if isinstance(term, Words):
        return term.text
    if isinstance(term, Like):
        return shown_path(term.id)
    return picture_name(term.source)


def _term_to_json(term: Term) -> dict[str, Any]:
    if isinstance(term, Words):
        return {"text": json_text(term.text), "weight": term.weight}
    if isinstance(term, Like):
        return {"like": json_text(term.id), "weight": term.weight}
    region = {} if term.region is None else {"region": list(term.region)}
    return {"image": json_text(picture_name(term.source)), "weight": term.weight} | region


def _result_to_json(result: Result) -> dict[str, Any]:
    path = {"path": None} if result.path is None else json_path(result.path)
    relevance = None if result.relevance is None else round(result.relevance, _DIGITS)
    return (
        {"rank": result.rank, "id": json_text(result.id)}
        | path
        | {
            "score": round(result.score, _DIGITS),
            "relevance": relevance,
            "modality": result.modality,
            "span": None if result.span is None else list(result.span),
            "reasons": {stage: round(score, _DIGITS) for stage, score in result.reasons.items()},
            "duplicates": [json_text(item_id) for item_id in result.duplicates],
        }
    )


def _row(result: Result, *, is_near: bool) -> list[str]:
    name = shown_path(result.path or result.id)
    if result.span is not None:
        name += f" at {shown_span(result.span)}"
    if result.duplicates:
        name += f" (and {len(result.duplicates)} like it)"
    return [f"~{result.rank}" if is_near else str(result.rank), f"{result.score:.3f}", name]
