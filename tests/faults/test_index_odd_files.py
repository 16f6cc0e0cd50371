"""Law: names, clocks and changes of files, however odd, are a matter of that file only."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_worker import ColourHistogram
from numpy.typing import NDArray
from PIL import Image

from costream.errors import DataError
from costream.index import Index, UpdateReport, files, update_index

LONG_AGO_NS = 10**18
YEAR_NS = 365 * 86_400 * 10**9


def draw(path: Path, seed: int, mtime_ns: int = LONG_AGO_NS) -> Path:
    """Eight by eight pixels; as BMP, all such files have the same size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "index", create=True) as opened:
        yield opened


def update(index: Index, *paths: Path, model: Any = None, **options: Any) -> UpdateReport:
    return update_index(index, model or ColourHistogram(), paths, **options)


# --- clocks ---


@pytest.mark.parametrize(
    "mtime_ns", [-YEAR_NS, 0, 1, LONG_AGO_NS, LONG_AGO_NS * 2 + 50 * YEAR_NS], ids=str
)
def test_a_file_of_any_age_is_embedded_once_and_again_when_it_changes(
    mtime_ns: int, index: Index, tmp_path: Path
) -> None:
    file = draw(tmp_path / "pictures" / "a.bmp", 1, mtime_ns)
    assert update(index, file) == UpdateReport(added=1, embedded=1)
    assert update(index, file) == UpdateReport(unchanged=1)
    draw(file, 2, mtime_ns + 1)
    assert update(index, file) == UpdateReport(changed=1, embedded=1)


def test_a_clock_that_was_set_back_hides_no_change(index: Index, tmp_path: Path) -> None:
    file = draw(tmp_path / "pictures" / "a.bmp", 1, LONG_AGO_NS)
    update(index, file)
    draw(file, 2, LONG_AGO_NS - 10 * YEAR_NS)
    assert update(index, file) == UpdateReport(changed=1, embedded=1)


def test_a_file_from_the_future_that_changes_in_place_is_noticed(
    index: Index, tmp_path: Path
) -> None:
    """Its time vouches for nothing: size and time are as they were."""
    future_ns = LONG_AGO_NS * 2 + 50 * YEAR_NS
    file = draw(tmp_path / "pictures" / "a.bmp", 1, future_ns)
    update(index, file)
    draw(file, 2, future_ns)
    assert update(index, file) == UpdateReport(changed=1, embedded=1)


# --- names ---


def test_names_that_look_the_same_are_two_files(index: Index, tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "é.bmp")
    decomposed = unicodedata.normalize("NFD", "é.bmp")
    files = [draw(tmp_path / "p" / name, seed) for seed, name in enumerate((composed, decomposed))]
    if len(list((tmp_path / "p").iterdir())) == 1:
        pytest.skip("this file system takes both names for one")
    assert update(index, tmp_path / "p").added == 2
    assert set(index.ids()) == set(map(str, files))
    files[0].unlink()
    assert update(index, tmp_path / "p", prune=True) == UpdateReport(removed=1, unchanged=1)


def test_a_file_renamed_to_its_other_normal_form_is_moved(index: Index, tmp_path: Path) -> None:
    file = draw(tmp_path / "p" / unicodedata.normalize("NFC", "é.bmp"), 1)
    update(index, tmp_path / "p")
    other = file.rename(tmp_path / "p" / unicodedata.normalize("NFD", "é.bmp"))
    assert update(index, tmp_path / "p").embedded == 0
    assert index.ids() == [str(other)]


def test_the_longest_names_there_can_be(index: Index, tmp_path: Path) -> None:
    draw(tmp_path / "p" / ("x" * 251 + ".bmp"), 1)
    draw(tmp_path / "p" / "b.bmp", 2).rename(tmp_path / "p" / ".bmp")  # only a suffix: hidden
    assert update(index, tmp_path / "p").added == 1
    # A folder so deep that its path is longer than the system takes.
    here = os.open(tmp_path / "p", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("y" * 250, dir_fd=here)
        below = os.open("y" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    report = update(index, tmp_path / "p")
    assert report.unchanged == 1
    assert ["File name too long" in failure.reason for failure in report.failures] == [True]


# --- changes at the worst moment ---


class Meddling(ColourHistogram):
    """A model during whose work something happens to the files."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        super().__init__()
        self.meddle = meddle

    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        self.meddle()
        return super().encode_images(images, batch_size=batch_size)


def test_a_file_changed_while_it_is_embedded_is_embedded_again(
    index: Index, tmp_path: Path
) -> None:
    file = draw(tmp_path / "p" / "a.bmp", 1)
    update(index, file, model=Meddling(lambda: draw(file, 2, LONG_AGO_NS + 1)))
    assert update(index, file) == UpdateReport(changed=1, embedded=1)
    want = ColourHistogram().encode_images([Image.open(file)]).astype(np.float16)
    assert (index.vectors([str(file)]) == want).all()


def test_a_file_that_vanishes_while_it_is_embedded_is_forgotten_by_prune(
    index: Index, tmp_path: Path
) -> None:
    file, other = draw(tmp_path / "p" / "a.bmp", 1), draw(tmp_path / "p" / "b.bmp", 2)
    report = update(index, tmp_path / "p", model=Meddling(lambda: file.unlink(missing_ok=True)))
    assert report.failures == ()
    update(index, tmp_path / "p", prune=True)
    assert index.ids() == [str(other)]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_file_that_becomes_a_pipe_or_device_is_not_read(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    """It would be waited for, or read, for ever."""
    make(tmp_path / "a.bmp")
    with pytest.raises(DataError, match=r"a\.bmp: is a pipe, socket or device, .*leave it out"):
        files.read_content(str(tmp_path / "a.bmp"))


def test_a_file_that_becomes_a_folder_is_a_failure_of_that_file(
    index: Index, tmp_path: Path
) -> None:
    file, other = draw(tmp_path / "p" / "a.bmp", 1), draw(tmp_path / "p" / "b.bmp", 2)
    update(index, tmp_path / "p")
    file.unlink()
    file.mkdir()
    draw(other, 3, LONG_AGO_NS + 1)
    assert update(index, file, other).changed == 1
    assert update(index, tmp_path / "p", prune=True).removed == 1
    assert index.ids() == [str(other)]
