"""Law: training may go on for ever: its loader takes no more memory from epoch to epoch.

Measured in a process of its own, after some epochs in which caches and allocators fill up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PICTURES, WARM_UP, EPOCHS = 32, 4, 10
# What ten epochs may add: 2 % of what a process with torch takes, and less than a tenth of what it
# would be to keep the pictures of these epochs.
SHARE = 0.02

PROGRAM = """
import json, os, sys
sys.path.insert(0, sys.argv[2])
from tiny_world import tiny_model
from costream.data import read_data
from costream.train.config import TrainConfig
from costream.train.loader import Loader

data = read_data(sys.argv[1])
per_epoch, epochs = 4, int(sys.argv[3])
config = TrainConfig(steps=per_epoch * epochs, batch_size=len(data) // per_epoch, threads=2)
seen = []
leak = []
for step, batches in enumerate(Loader(data, tiny_model(), config).batches(0), start=1):
    if len(sys.argv) > 4:
        leak.append(bytearray(b"x" * int(sys.argv[4])))
    if step % per_epoch == 0:
        pages = int(open("/proc/self/statm").read().split()[1])
        seen.append(pages * os.sysconf("SC_PAGE_SIZE"))
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 640 x 480 with two captions each."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for seed in range(PICTURES):
        pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(folder / f"{seed}.jpg")
        lines.append(json.dumps({"image": f"{seed}.jpg", "captions": ["a red circle", "a square"]}))
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder / "train.jsonl"


def resident_bytes(manifest: Path, *leak: str) -> list[int]:
    """Memory of the process at the end of each epoch after the warm-up."""
    here = str(Path(__file__).parents[1])
    epochs = str(WARM_UP + EPOCHS)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(manifest), here, epochs, *leak],
        capture_output=True,
        text=True,
        check=True,
    )
    seen: list[int] = json.loads(done.stdout)
    return seen[WARM_UP - 1 :]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to see memory in")
def test_memory_is_flat_over_ten_epochs(manifest: Path) -> None:
    seen = resident_bytes(manifest)
    assert max(seen) - seen[0] < SHARE * seen[0], seen


@pytest.mark.soak
def test_a_leak_of_one_picture_a_step_would_be_seen(manifest: Path) -> None:
    seen = resident_bytes(manifest, str(320 * 240 * 3))
    assert max(seen) - seen[0] > SHARE * seen[0], seen
