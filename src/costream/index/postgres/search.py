"""Nearest vectors in PostgreSQL: exactly by default, and how a filtered search is planned.

pgvector's own planning loses results: with a graph over the vectors and a filter that few rows
pass, the graph's first candidates are filtered away and next to nothing is left. So matches are
counted first. Few are scored one by one, exactly; many are looked for in the graph with iterative
scans, which go on until enough have passed.

Shape letters: M moments, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import sql

from costream.errors import DataError, NumericalError
from costream.index import check
from costream.index.filters import Filter
from costream.index.postgres import rows, schema
from costream.index.postgres.schema import Connection
from costream.records import Ranking, Space
from costream.scoring.dot import error_bound, pair_scores

# Up to so many matching rows are scored one by one: some 50 ms.
_FEW_MATCHES = 50_000
# How many rows a graph looks at before it gives up, and candidates that it keeps.
_MOST_SCANNED = 200_000
_CANDIDATES = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The best moments of one query, best first.

    Attributes:
        ids: Of their items.
        scores: float32 (M,).
        spans: (start, end) in seconds, None for a picture.
    """

    ids: tuple[str, ...]
    scores: NDArray[np.float32]
    spans: tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where one search looks.

    Attributes:
        table: Of the vectors.
        dim: Their dimensions.
        longest: Length of the longest, at most.
        condition: On items, None for all of them.
        values: Of the condition.
        graph: Whether the table has a graph that may be used.
    """

    table: sql.Identifier
    dim: int
    longest: float
    condition: sql.Composed | None
    values: Sequence[Any]
    graph: bool


def target_of(
    connection: Connection, active: tuple[int, Space], where: Filter | None, *, exact: bool
) -> Target:
    """Plan a search.

    Args:
        connection: Within a transaction.
        active: Key and record of the space that is searched.
        where: What the items have to be.
        exact: Whether every vector is to be looked at, even where there is a graph.
    """
    key, space = active
    has_graph = not exact and bool(
        schema.one(
            connection,
            sql.SQL("SELECT to_regclass(%s) IS NOT NULL"),
            [f"costream.{schema.moments_name(key)}_graph"],
        )
    )
    test, values = rows.condition(where)
    if where is not None and has_graph:
        few = sql.SQL(
            "SELECT count(*) FROM (SELECT 1 FROM costream.items WHERE {} LIMIT %s) AS matching"
        ).format(test)
        has_graph = schema.one(connection, few, [*values, _FEW_MATCHES + 1]) > _FEW_MATCHES
    return Target(
        table=schema.moments_table(key),
        dim=space.dim,
        longest=1.02 if space.normalised else _longest(connection, key),
        condition=None if where is None else test,
        values=values,
        graph=has_graph,
    )


def by_words(connection: Connection, words: str, top: int, where: Filter | None) -> Ranking:
    """Items that have any of some words, as the ranking of one query."""
    test, values = rows.condition(where)
    query = sql.SQL(
        "WITH query AS (SELECT replace(plainto_tsquery('simple', %s)::text, '&', '|')::tsquery "
        "AS words) SELECT id, ts_rank_cd(to_tsvector('simple', searchable), words, 2) AS score "
        "FROM costream.items, query WHERE to_tsvector('simple', searchable) @@ words AND {} "
        "ORDER BY score DESC, id LIMIT %s"
    ).format(test)
    found = connection.execute(query, [words.replace("\0", " "), *values, top]).fetchall()
    ids = tuple(check.decoded_id(bytes(row[0])) for row in found)
    return Ranking(
        ids=(ids,),
        scores=(np.array([row[1] for row in found], dtype=np.float32),),
        stage="text",
        spans=((None,) * len(ids),),
    )


def nearest(
    connection: Connection, target: Target, query_D: NDArray[np.float32], top: int, *, group: bool
) -> Found:
    """The best moments for a query.

    Args:
        connection: Within a transaction.
        target: Where to look.
        query_D: float32 (D,), of any length but zero.
        top: How many are wanted, at least 1.
        group: Whether only the best moment of each item counts.

    Returns:
        Fewer than `top` when fewer match. Of equal scores the smaller id comes first.
    """
    _set_plan(connection, graph=target.graph)
    # pgvector takes the query in half precision; what that changes is known and allowed for.
    narrow_D = query_D.astype(np.float16)
    lost = float(np.linalg.norm(query_D.astype(np.float64) - narrow_D.astype(np.float64)))
    length = float(np.linalg.norm(query_D.astype(np.float64)))
    margin = 2 * target.longest * (lost + length * error_bound(target.dim, 1.0))
    wanted = max(2 * top, 64)
    while True:
        candidates = _candidates(connection, target, narrow_D, wanted)
        if len(candidates) < wanted:
            break
        safe = candidates[-1].distance - margin
        sure = [each.id for each in candidates if each.distance < safe]
        if len(set(sure) if group else sure) >= top:
            break
        wanted *= 4
    return _scored(candidates, query_D, top, target.dim, group=group)


def checked_queries(vectors: NDArray[Any], space: Space) -> NDArray[np.float32]:
    """Queries as float32 (Q, D).

    Raises:
        DataError: They are not floating point (Q, D).
        NumericalError: One is not finite, or zero.
    """
    queries_QD = np.asarray(vectors)
    if queries_QD.ndim != 2 or queries_QD.dtype.kind != "f" or queries_QD.shape[1] != space.dim:
        raise DataError(
            f"got queries of type {queries_QD.dtype} and shape {queries_QD.shape}, "
            f"expected float32 (Q, {space.dim})",
            hint="pass one query as vector[None]",
        )
    narrow_QD = queries_QD.astype(np.float32)
    lengths_Q = np.linalg.norm(narrow_QD.astype(np.float64), axis=1)
    if not (np.isfinite(lengths_Q) & (lengths_Q > 0)).all():
        raise NumericalError(
            "a query is zero or has a value that is not finite",
            hint="check what the query was made of",
        )
    return narrow_QD


def _longest(connection: Connection, key: int) -> float:
    query = sql.SQL("SELECT max(l2_norm(vector)) FROM {}").format(schema.moments_table(key))
    return 1.01 * float(schema.one(connection, query) or 0.0)


@dataclass(frozen=True, slots=True)
class _Candidate:
    id: bytes
    start: float | None
    end: float | None
    vector: HalfVector
    distance: float


def _candidates(
    connection: Connection,
    target: Target,
    query_D: NDArray[np.float16],
    wanted: int,
) -> list[_Candidate]:
    given = HalfVector(query_D)
    source = sql.SQL("{} AS moment").format(target.table)
    values: list[Any] = []
    if target.condition is not None and target.graph:
        source = sql.SQL("{} JOIN costream.items AS item USING (id) WHERE {}").format(
            source, target.condition
        )
        values = list(target.values)
    elif target.condition is not None:
        # Materialised, so that no other plan can be taken.
        source = sql.SQL(
            "(WITH matching AS MATERIALIZED (SELECT id FROM costream.items WHERE {}) "
            "SELECT moment.* FROM matching JOIN {} USING (id)) AS moment"
        ).format(target.condition, source)
        values = list(target.values)
    # <#> is the negative inner product.
    statement = sql.SQL(
        "SELECT id, t_start, t_end, vector, vector <#> %s AS distance FROM {} "
        "ORDER BY distance LIMIT %s"
    ).format(source)
    cursor = connection.cursor(binary=True)
    found = cursor.execute(statement, [given, *values, wanted]).fetchall()
    return [_Candidate(bytes(row[0]), *row[1:]) for row in found]


def _scored(
    candidates: Sequence[_Candidate],
    query_D: NDArray[np.float32],
    top: int,
    dim: int,
    *,
    group: bool,
) -> Found:
    vectors_MD = rows.matrix((each.vector for each in candidates), dim)
    scores_M = pair_scores(query_D, vectors_MD)
    order = sorted(
        range(len(candidates)),
        key=lambda row: (-scores_M[row], candidates[row].id, candidates[row].start or 0.0),
    )
    if group:
        first: dict[bytes, int] = {}
        for row in order:
            first.setdefault(candidates[row].id, row)
        order = list(first.values())
    best = order[:top]
    return Found(
        ids=tuple(check.decoded_id(candidates[row].id) for row in best),
        scores=scores_M[best],
        spans=tuple(_span(candidates[row]) for row in best),
    )


def _span(candidate: _Candidate) -> tuple[float, float] | None:
    if candidate.start is None or candidate.end is None:
        return None
    return candidate.start, candidate.end


def _set_plan(connection: Connection, *, graph: bool) -> None:
    """How this transaction's search is planned."""
    connection.execute("SET LOCAL enable_partitionwise_join = on")
    if graph:
        connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        connection.execute(sql.SQL("SET LOCAL hnsw.ef_search = {}").format(_CANDIDATES))
        connection.execute(sql.SQL("SET LOCAL hnsw.max_scan_tuples = {}").format(_MOST_SCANNED))
    else:
        # An ordered scan of the graph would be taken for exact otherwise.
        connection.execute("SET LOCAL enable_indexscan = off")
