"""The engines that `vector_search.py` compares, ours and others', behind one form.

Each is built from a float16 matrix and answers float32 queries with row numbers. Peers run with the
settings that their documentation gives for good recall, and without compression, unless their name
says otherwise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Rows = list[NDArray[np.int64]]
ADDED_ROWS = 10_000


class Engine(Protocol):
    """Something that finds rows."""

    def top(self, queries_QD: NDArray[np.float32], top: int) -> Rows:
        """Best rows of each query."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of the table.

    Attributes:
        name: As printed.
        package: What has to be installed.
        make: Builds it.
        is_slow: Whether building takes minutes a million rows; left out unless asked for.
    """

    name: str
    package: str
    make: Callable[[NDArray[np.float16]], Engine]
    is_slow: bool = False

    @property
    def version(self) -> str | None:
        """Version of the package; None when it is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


class Ours:
    """A kernel of costream."""

    def __init__(self, vectors_ND: NDArray[np.float16], kernel: str | None) -> None:
        from costream.scoring.kernels import build

        if kernel == "exact":
            # As in a process that has loaded a model.
            import torch  # noqa: F401
        self.kernel = build(vectors_ND, kernel=kernel)
        # The exact kernel makes its integer codes with the second search.
        for _ in range(2):
            self.kernel.top(vectors_ND[:1].astype(np.float32), 1)

    def top(self, queries_QD: NDArray[np.float32], top: int) -> Rows:
        """Best rows of each query."""
        return self.kernel.top(queries_QD, top)[0]


class BruteForce:
    """A float32 product and a partial sort in numpy."""

    def __init__(self, vectors_ND: NDArray[np.float16]) -> None:
        self.vectors_ND = vectors_ND.astype(np.float32)

    def top(self, queries_QD: NDArray[np.float32], top: int) -> Rows:
        """Best rows of each query."""
        scores_QN = queries_QD @ self.vectors_ND.T
        best_QK = np.argpartition(scores_QN, -top, axis=1)[:, -top:]
        return list(best_QK)


class Faiss:
    """faiss `IndexFlatIP`."""

    def __init__(self, vectors_ND: NDArray[np.float16]) -> None:
        import faiss

        self.index = faiss.IndexFlatIP(vectors_ND.shape[1])
        for start in range(0, len(vectors_ND), ADDED_ROWS):
            self.index.add(vectors_ND[start : start + ADDED_ROWS].astype(np.float32))

    def top(self, queries_QD: NDArray[np.float32], top: int) -> Rows:
        """Best rows of each query."""
        return list(self.index.search(queries_QD, top)[1])


class Usearch:
    """usearch, walking its graph or scanning all rows."""

    def __init__(self, vectors_ND: NDArray[np.float16], *, exact: bool) -> None:
        from usearch.index import Index

        self.exact = exact
        self.vectors_ND = vectors_ND.astype(np.float32) if exact else None
        if not exact:
            self.index = Index(
                ndim=vectors_ND.shape[1],
                metric="ip",
                dtype="bf16",
                connectivity=16,
                expansion_add=128,
                expansion_search=256,
            )
            for start in range(0, len(vectors_ND), ADDED_ROWS):
                part = vectors_ND[start : start + ADDED_ROWS].astype(np.float32)
                self.index.add(np.arange(start, start + len(part)), part)

    def top(self, queries_QD: NDArray[np.float32], top: int) -> Rows:
        """Best rows of each query."""
        from usearch.index import search

        if self.exact:
            found = search(self.vectors_ND, queries_QD, top, "ip", exact=True)
        else:
            found = self.index.search(queries_QD, top)
        return list(np.atleast_2d(found.keys).astype(np.int64))


class Lance:
    """LanceDB without an index, as it searches before one is made."""

    def __init__(self, vectors_ND: NDArray[np.float16]) -> None:
        import lancedb
        import pyarrow

        self.folder = tempfile.TemporaryDirectory()
        dim = vectors_ND.shape[1]
        schema = pyarrow.schema(
            [
                pyarrow.field("row", pyarrow.int64()),
                pyarrow.field("vector", pyarrow.list_(pyarrow.float32(), dim)),
            ]
        )

        def batches() -> Any:
            for start in range(0, len(vectors_ND), ADDED_ROWS):
                part = vectors_ND[start : start + ADDED_ROWS].astype(np.float32)
                flat = pyarrow.array(part.reshape(-1))
                yield pyarrow.RecordBatch.from_arrays(
                    [
                        pyarrow.array(np.arange(start, start + len(part))),
                        pyarrow.FixedSizeListArray.from_arrays(flat, dim),
                    ],
                    schema=schema,
                )

        self.table = lancedb.connect(self.folder.name).create_table(
            "vectors", batches(), schema=schema
        )

    def top(self, queries_QD: NDArray[np.float32], top: int) -> Rows:
        """Best rows of each query."""
        return [
            self.table.search(query_D)
            .distance_type("dot")
            .limit(top)
            .select(["row"])
            .to_arrow()["row"]
            .to_numpy()
            for query_D in queries_QD
        ]


class Qdrant:
    """Qdrant Edge with its graph, or scanning all rows."""

    def __init__(self, vectors_ND: NDArray[np.float16], *, exact: bool) -> None:
        import qdrant_edge as edge

        self.folder = tempfile.TemporaryDirectory()
        config = edge.EdgeConfig(
            vectors={
                "v": edge.EdgeVectorParams(size=vectors_ND.shape[1], distance=edge.Distance.Dot)
            }
        )
        self.shard = edge.EdgeShard.create(str(Path(self.folder.name)), config)
        for start in range(0, len(vectors_ND), ADDED_ROWS):
            part = vectors_ND[start : start + ADDED_ROWS].astype(np.float32)
            points = [
                edge.Point(id=start + row, vector={"v": vector.tolist()})
                for row, vector in enumerate(part)
            ]
            self.shard.update(edge.UpdateOperation.upsert_points(points))
        self.shard.flush()
        if not exact:
            self.shard.optimize()
        self.params = edge.SearchParams(exact=exact, hnsw_ef=None if exact else 256)

    def top(self, queries_QD: NDArray[np.float32], top: int) -> Rows:
        """Best rows of each query."""
        import qdrant_edge as edge

        found = []
        for query_D in queries_QD:
            request = edge.SearchRequest(
                query=edge.Query.Nearest(query_D.tolist(), using="v"),
                limit=top,
                params=self.params,
            )
            found.append(np.array([point.id for point in self.shard.search(request)]))
        return found


ENGINES = {
    "exact": Entry(
        name="costream exact", package="costream", make=lambda vectors: Ours(vectors, "exact")
    ),
    "four_bit": Entry(
        name="costream four_bit", package="turbovec", make=lambda vectors: Ours(vectors, "four_bit")
    ),
    "graph": Entry(
        name="costream graph",
        package="usearch",
        make=lambda vectors: Ours(vectors, "graph"),
        is_slow=True,
    ),
    "numpy": Entry(name="numpy float32", package="numpy", make=BruteForce),
    "faiss": Entry(name="faiss IndexFlatIP", package="faiss-cpu", make=Faiss),
    "usearch-exact": Entry(
        name="usearch exact", package="usearch", make=lambda vectors: Usearch(vectors, exact=True)
    ),
    "lance": Entry(name="LanceDB flat", package="lancedb", make=Lance),
    "qdrant-exact": Entry(
        name="Qdrant Edge exact",
        package="qdrant-edge-py",
        make=lambda vectors: Qdrant(vectors, exact=True),
    ),
    "usearch": Entry(
        name="usearch HNSW",
        package="usearch",
        make=lambda vectors: Usearch(vectors, exact=False),
        is_slow=True,
    ),
    "qdrant": Entry(
        name="Qdrant Edge HNSW",
        package="qdrant-edge-py",
        make=lambda vectors: Qdrant(vectors, exact=False),
        is_slow=True,
    ),
}
