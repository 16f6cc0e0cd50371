"""Files are embedded by the workers of a real Ray cluster, of which one machine is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import costream
from clip_maker import cuts, write_clip
from costream.index import Index, update_index
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
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 300 pictures, the gallery's and copies with a few bytes more; clips; broken files."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(6):
        clip = folder / f"clip{number}.mp4"
        write_clip(clip, cuts(("airplane", "cat_face", "broccoli")[: 1 + number % 3], 1.0))
        with clip.open("ab") as stream:
            stream.write(b"\0\0\0\x08free" * number)
        os.utime(clip, (1e9, 1e9))
    for number, source in enumerate(sorted(GALLERY.rglob("*.jpg"))[:150]):
        for copy in range(2):
            target = folder / f"{number:03d}_{copy}.jpg"
            shutil.copy(source, target)
            with target.open("ab") as stream:
                stream.write(b" " * copy)
            os.utime(target, (1e9, 1e9))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 no more")
    return folder


@pytest.mark.soak  # starts nine processes that each load torch: two minutes on two cores
def test_a_node_is_lost_and_everything_is_there_once(
    nodes: object, media: Path, tmp_path: Path
) -> None:
    """The index is the one that is made without a cluster."""
    model = costream.load("cots-mini")
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 2:
            nodes.remove_node(nodes.others[0], allow_graceful=False)  # type: ignore[attr-defined]

    config = ClusterConfig(workers=2, cores=1.0)
    with (
        Index.open(tmp_path / "index", create=True) as index,
        Index.open(tmp_path / "here", create=True) as here,
    ):
        report = update_with_cluster(index, model, "cots-mini", [media], config, progress=progress)
        side = model.config.image_preprocess.decoded_px
        want = update_index(here, model, media, smallest_side=side)
        assert (report.added, report.embedded) == (want.added, want.embedded)
        assert sorted(map(str, report.failures)) == sorted(map(str, want.failures))
        assert len(report.failures) == 2
        assert seen[-1] == len(here) + 2
        assert index.items() == here.items()
        ids = here.ids()
        assert index.moments(ids) == here.moments(ids)
        assert max(len(moments) for moments in here.moments(ids)) == 3
        np.testing.assert_allclose(index.all_vectors(ids), here.all_vectors(ids), atol=2e-3)
        again = update_with_cluster(index, model, "cots-mini", [media], config)
        assert (again.unchanged, again.embedded) == (len(ids), 0)
