"""Bring many pictures and clips into an index with the workers of a Ray cluster.

Workers read, decode and embed; this process alone writes the index, so that one database stays the
truth. When a worker or its machine is lost, Ray gives its files to another. A file may then be
embedded twice, and is stored once.

Paths, and a model that is a directory, must mean the same on every machine: use a shared file
system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from costream.data.decode_apart import Decoders
from costream.data.failures import Failure
from costream.data.video import DEFAULT_SAMPLING, Sampling
from costream.data.walk import find_media
from costream.errors import ConfigError, DataError
from costream.index import check, files
from costream.index.embed_apart import Made, add_made, embed_apart
from costream.index.forms import ItemForm
from costream.index.left_out import leave_out
from costream.index.models import ImageEncoder, SoundEncoder
from costream.index.records import Item, UpdateReport

if TYPE_CHECKING:
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
    model: ImageEncoder | ItemForm,
    model_name: str,
    paths: Iterable[str | os.PathLike[str]],
    config: ClusterConfig | None = None,
    *,
    sampling: Sampling = DEFAULT_SAMPLING,
    progress: Callable[[int, int], None] | None = None,
) -> UpdateReport:
    """Bring the pictures and clips below some folders into an index, embedding on a cluster.

    As `update_index`, with two differences: a file that was moved, or holds the bytes of another
    one, is embedded again, and nothing is pruned.

    Args:
        index: Where to.
        model: What makes the vectors, as loaded here; its space must be that of the index, unless
            that is empty.
        model_name: What the workers load: a name, or a directory that all machines see.
        paths: Folders or files that all machines see.
        config: How the cluster is used.
        sampling: Which pictures of a clip are taken.
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
    found, left_out = leave_out(found, given, has_ears=isinstance(model, SoundEncoder))
    names = files.real_paths(found)
    known = {item.path: item for item in index.items() if item.path is not None}
    asked = (_Asked(name=name, item=known.get(name)) for name in names)
    wanted = [one for one in asked if not _is_unchanged(one.item, one.name)]
    counts = {"added": 0, "changed": 0, "unchanged": len(names) - len(wanted), "embedded": 0}
    done = counts["unchanged"]
    if progress is not None:
        progress(done, len(names))
    worker = _WorkerSettings(
        model_name=model_name, weights_hash=model.space.weights_hash, sampling=sampling
    )
    for made, failed in _embedded(wanted, worker, config):
        add_made(index, made, model.space)
        failures += failed
        for one in made:
            is_known = one.item.path in known
            same = one.vectors_VD is None
            counts["unchanged" if same else "changed" if is_known else "added"] += 1
            counts["embedded"] += not same
        done += len(made) + len(failed)
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
class _WorkerSettings:
    """What a worker has to know."""

    model_name: str
    weights_hash: str
    sampling: Sampling
    threads: int = 1


class _Worker:
    """Reads, decodes and embeds files; lives in a process of the cluster."""

    def __init__(self, settings: _WorkerSettings) -> None:
        from costream.system import load_system

        name = settings.model_name
        system = load_system(name)
        self._settings = settings
        form = system.parts.index
        self._maker: ImageEncoder | ItemForm = system.model if form is None else form
        self._smallest_side = system.model.config.image_preprocess.decoded_px
        self._decoders = Decoders()
        found = self._maker.space.weights_hash
        if found != settings.weights_hash:
            raise DataError(
                f"a worker loaded another model as {name!r} "
                f"(weights {found}, expected {settings.weights_hash})",
                hint="name a directory that is the same on every machine",
            )

    def __call__(self, block: Mapping[str, Any]) -> dict[str, Any]:
        asked: list[_Asked] = list(block["asked"])
        made, failures = embed_apart(
            self._maker,
            [one.name for one in asked],
            [one.item for one in asked if one.item is not None],
            decoders=self._decoders,
            sampling=self._settings.sampling,
            smallest_side=self._smallest_side,
            threads=self._settings.threads,
        )
        rows = np.empty(len(made) + len(failures), dtype=object)
        rows[:] = [*made, *failures]
        return {"came": rows}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A file, and the item that the index has of it."""

    name: str
    item: Item | None


def _embedded(
    wanted: Sequence[_Asked], settings: _WorkerSettings, config: ClusterConfig
) -> Iterator[tuple[list[Made], list[Failure]]]:
    if not wanted:
        return
    ray = _connected(config.address)
    tasks = -(-len(wanted) // _FILES_A_TASK)
    data = ray.data.from_items(
        [{"asked": one} for one in wanted], override_num_blocks=tasks
    ).map_batches(
        _Worker,
        fn_constructor_args=(replace(settings, threads=max(1, round(config.cores))),),
        batch_size=_FILES_A_TASK,
        compute=ray.data.ActorPoolStrategy(size=config.workers or _num_workers(ray, config)),
        num_cpus=config.cores,
        num_gpus=config.gpus or None,
    )
    for block in data.iter_batches(batch_size=_FILES_A_TASK, batch_format="numpy"):
        came = list(block["came"])
        yield (
            [one for one in came if isinstance(one, Made)],
            [one for one in came if isinstance(one, Failure)],
        )


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
