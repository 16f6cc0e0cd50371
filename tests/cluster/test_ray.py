"""Pictures are embedded by the workers of a real Ray cluster, of which one machine is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import costream
from costream.index import Index
from costream.index.cluster import ClusterConfig, update_with_cluster

GALLERY = Path(costream.__file__).parent / "assets" / "gallery"


@pytest.fixture(scope="module")
def nodes() -> Iterator[object]:
    """A head and two more nodes, each a raylet with workers of its own."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    import ray

    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.others = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 300 different files: the gallery's, and copies with a few bytes more."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, source in enumerate(sorted(GALLERY.rglob("*.jpg"))[:150]):
        for copy in range(2):
            target = folder / f"{number:03d}_{copy}.jpg"
            shutil.copy(source, target)
            with target.open("ab") as stream:
                stream.write(b" " * copy)
            os.utime(target, (1e9, 1e9))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    return folder


@pytest.mark.soak  # starts nine processes that each load torch: two minutes on two cores
def test_a_node_is_lost_and_every_picture_is_there_once(
    nodes: object, pictures: Path, tmp_path: Path
) -> None:
    model = costream.load("cots-mini")
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 2:
            nodes.remove_node(nodes.others[0], allow_graceful=False)  # type: ignore[attr-defined]

    with Index.open(tmp_path / "index", create=True) as index:
        config = ClusterConfig(workers=2, cores=1.0)
        report = update_with_cluster(
            index, model, "cots-mini", [pictures], config, progress=progress
        )
        files = sorted(str(path) for path in pictures.glob("[0-9]*.jpg"))
        assert index.ids() == files
        assert (report.added, report.embedded) == (len(files), len(files))
        assert [Path(failure.path).name for failure in report.failures] == ["broken.jpg"]
        some = files[::37]
        here = model.encode_images(some)
        np.testing.assert_allclose(index.vectors(some), here, atol=2e-3)
        again = update_with_cluster(index, model, "cots-mini", [pictures], config)
        assert (again.unchanged, again.embedded) == (len(files), 0)
