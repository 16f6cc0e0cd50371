"""Bring many pictures into an index with the workers of a Ray cluster; clips are left out.

Workers read, decode and embed; this process alone writes the index, so that one database stays the
truth. When a worker or its machine is lost, Ray gives its files to another. A file may then be
embedded twice, and is stored once.

Paths, and a model that is a directory, must mean the same on every machine: use a shared file
system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costream.data.failures import Failure
from costream.data.walk import find_media
from costream.errors import ConfigError, DataError
from costream.index import check, files
from costream.index.left_out import leave_out_clips
from costream.index.records import Item, UpdateReport

if TYPE_CHECKING:
    from costream.encoders.dual import DualEncoder
    from costream.index.protocol import SearchIndex

_FILES_A_TASK = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """How a cluster is used.

    Attributes:
        address: Of the cluster's head; None for the one that the environment names, or else for
            one of this machine's cores.
        workers: Copies of the model; None for as many as there are cores for.
        cores: Cores of one copy.
        gpus: GPUs of one copy.
    """

    address: str | None = None
    workers: int | None = None
    cores: float = 1.0
    gpus: float = 0.0


def update_with_cluster(
    index: SearchIndex,
    model: DualEncoder,
    model_name: str,
    paths: Iterable[str | os.PathLike[str]],
    config: ClusterConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> UpdateReport:
    """Bring the pictures below some folders into an index, embedding what is new on a cluster.

    As `update_index`, with three differences: a file that was moved is embedded again, nothing is
    pruned, and clips below the given folders are left out, which the report says.

    Args:
        index: Where to.
        model: As loaded here; its space must be that of the index, unless that is empty.
        model_name: What the workers load: a name, or a directory that all machines see.
        paths: Folders or files that all machines see.
        config: How the cluster is used.
        progress: Called with the number of files dealt with and their total.

    Returns:
        What was done, with the failures and what was left out.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at the address, or the model only
            asks what another one has embedded.
        SpaceMismatch: The index holds vectors of another model.
        DataError: A path is absent, the index cannot be written, or a worker loaded another model.
    """
    config = ClusterConfig() if config is None else config
    if len(index):
        check.check_same(index.space, model.space, index.location)
    check.refuse_query_only(model)
    given = list(paths)
    found, failures = find_media(given)
    found, left_out = leave_out_clips(found, given)
    names = files.real_paths(found)
    known = {item.path: item for item in index.items() if item.path is not None}
    wanted = [name for name in names if not _is_unchanged(known.get(name), name)]
    counts = {"added": 0, "changed": 0, "unchanged": len(names) - len(wanted), "embedded": 0}
    done = counts["unchanged"]
    if progress is not None:
        progress(done, len(names))
    for block in _embedded(wanted, model, model_name, config):
        failures += block.failures
        index.add(block.items, block.vectors, model.space)
        for item in block.items:
            old = known.get(item.id)
            same = old is not None and old.content_hash == item.content_hash
            counts["unchanged" if same else "changed" if old else "added"] += 1
        counts["embedded"] += len(block.items)
        done += len(block.items) + len(block.failures)
        if progress is not None:
            progress(done, len(names))
    index.load()
    return UpdateReport(
        added=counts["added"],
        changed=counts["changed"],
        unchanged=counts["unchanged"],
        embedded=counts["embedded"],
        failures=tuple(failures),
        left_out=left_out,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """What a worker made of some files."""

    items: list[Item]
    vectors: NDArray[np.float32]
    failures: list[Failure]


class _Worker:
    """Reads, decodes and embeds files; lives in a process of the cluster."""

    def __init__(self, model_name: str, weights_hash: str) -> None:
        from costream.encoders.storage import load

        self.model = load(model_name)
        if self.model.space.weights_hash != weights_hash:
            raise DataError(
                f"a worker loaded another model as {model_name!r} "
                f"(weights {self.model.space.weights_hash}, expected {weights_hash})",
                hint="name a directory that is the same on every machine",
            )

    def __call__(self, block: Mapping[str, Any]) -> dict[str, Any]:
        from costream.data.decode import open_image

        rows = []
        pictures = []
        for encoded in block["name"]:
            name = os.fsdecode(bytes(encoded))
            try:
                content = files.read_content(name)
                smallest = 2 * self.model.config.image_preprocess.size_px
                pictures.append(open_image(content.encoded, smallest_side=smallest))
                rows.append((encoded, content.content_hash, content.stamp, ""))
            except DataError as error:
                rows.append((encoded, "", files.Stamp(size=0, mtime_ns=0), str(error)))
        vectors = iter(self.model.encode_images(pictures))
        empty = np.zeros(self.model.config.dim, dtype=np.float32)
        return {
            "name": np.array([bytes(row[0]) for row in rows], dtype=object),
            "content_hash": np.array([row[1] for row in rows], dtype=object),
            "size": np.array([row[2].size for row in rows], dtype=np.int64),
            "mtime_ns": np.array([row[2].mtime_ns for row in rows], dtype=np.int64),
            "failure": np.array([row[3] for row in rows], dtype=object),
            "vector": np.stack([empty if row[3] else next(vectors) for row in rows]),
        }


def _embedded(
    names: Sequence[str], model: DualEncoder, model_name: str, config: ClusterConfig
) -> Iterable[_Block]:
    if not names:
        return
    ray = _connected(config.address)
    tasks = -(-len(names) // _FILES_A_TASK)
    data = ray.data.from_items(
        [{"name": os.fsencode(name)} for name in names], override_num_blocks=tasks
    ).map_batches(
        _Worker,
        fn_constructor_args=(model_name, model.space.weights_hash),
        batch_size=_FILES_A_TASK,
        compute=ray.data.ActorPoolStrategy(size=config.workers or _num_workers(ray, config)),
        num_cpus=config.cores,
        num_gpus=config.gpus or None,
    )
    for block in data.iter_batches(batch_size=_FILES_A_TASK, batch_format="numpy"):
        yield _to_block(block)


def _to_block(columns: Mapping[str, NDArray[Any]]) -> _Block:
    items, rows, failures = [], [], []
    for row, encoded in enumerate(columns["name"]):
        name = os.fsdecode(bytes(encoded))
        if reason := str(columns["failure"][row]):
            failures.append(Failure(path=name, reason=reason))
            continue
        rows.append(row)
        items.append(
            Item(
                id=name,
                path=name,
                content_hash=str(columns["content_hash"][row]),
                size=int(columns["size"][row]),
                mtime_ns=int(columns["mtime_ns"][row]),
            )
        )
    vectors = np.stack(list(columns["vector"]))[rows].astype(np.float32)
    return _Block(items=items, vectors=vectors, failures=failures)


def _connected(address: str | None) -> Any:
    try:
        ray = import_module("ray")
        import_module("ray.data")
    except ImportError as error:
        raise ConfigError(
            "Ray is not installed, expected it for --engine ray",
            hint="pip install 'costream[ray]'",
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise ConfigError(
                f"there is no Ray cluster at {address!r}: {error}",
                hint="ray start --head on one machine, ray start --address=HEAD:6379 on the others",
            ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def _num_workers(ray: Any, config: ClusterConfig) -> int:
    """As many as there are cores for, less one that is left for the rest."""
    cores = float(ray.cluster_resources().get("CPU", 1.0))
    return max(1, int((cores - 1) / config.cores))


def _is_unchanged(item: Item | None, name: str) -> bool:
    if item is None or not item.mtime_ns:
        return False
    try:
        return files.stamp(name) == files.Stamp(size=item.size, mtime_ns=item.mtime_ns)
    except DataError:
        return False
