"""Laws: only what is new is embedded; what is broken is told; nothing outside is touched."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from costream.data import open_image
from costream.errors import ConfigError, DataError, NumericalError, SpaceMismatch
from costream.index import (
    Filter,
    Index,
    Item,
    UpdateReport,
    embedding,
    files,
    update,
    update_index,
)
from costream.records import Space

LONG_AGO_NS = 10**18


class MeanColours:
    """A small real encoder: mean colour of each quarter and a constant, unit length."""

    def __init__(self, weights_hash: str = "w") -> None:
        self.space = Space(
            encoder="mean colours", weights_hash=weights_hash, preprocessing_hash="p", dim=13
        )
        self.num_seen = 0

    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        rows = [self.one(np.asarray(open_image(image), dtype=np.float64)) for image in images]
        self.num_seen += len(rows)
        return np.array(rows, dtype=np.float32).reshape(len(rows), 13)

    def one(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        rows, columns = max(pixels.shape[0] // 2, 1), max(pixels.shape[1] // 2, 1)
        quarters = [pixels[r : r + rows, c : c + columns] for r in (0, rows) for c in (0, columns)]
        means = [q.mean(axis=(0, 1)) if q.size else np.zeros(3) for q in quarters]
        vector = np.concatenate([*means, [255.0]])
        return vector / np.linalg.norm(vector)


def draw(path: Path, seed: int, *, old: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((8, 8), Image.Resampling.NEAREST).save(path)
    if old:
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for seed in range(10):
        draw(folder / f"{seed % 2}" / f"{seed}.png", seed)
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "index", create=True) as opened:
        yield opened


def run(index: Index, paths: Any, model: MeanColours | None = None, **options: Any) -> UpdateReport:
    return update_index(index, model or MeanColours(), paths, **options)


def assert_equals_files(index: Index, folder: Path) -> None:
    """Every picture is there with the vector that the encoder gives for it alone."""
    paths = sorted(str(path) for path in folder.rglob("*.png"))
    assert index.ids() == paths
    want = MeanColours().encode_images([Path(path) for path in paths])
    assert (index.vectors(paths) == want.astype(np.float16)).all()
    assert [item.path for item in index.get(paths)] == paths
    assert index.check() == ()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_first_run_adds_all_and_the_second_reads_nothing(
    index: Index, pictures: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(index, pictures, batch_size=batch_size) == UpdateReport(added=10, embedded=10)
    assert_equals_files(index, pictures)
    before = index.items()

    def forbidden(path: str) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(files, "read_content", forbidden)
    assert run(index, pictures) == UpdateReport(unchanged=10)
    assert index.items() == before


def test_only_what_changed_is_embedded(index: Index, pictures: Path) -> None:
    run(index, pictures)
    draw(pictures / "0" / "0.png", 100)  # other content, same time: the size may be equal too
    os.utime(pictures / "0" / "0.png", ns=(LONG_AGO_NS + 1, LONG_AGO_NS + 1))
    draw(pictures / "new.png", 101)
    assert run(index, pictures) == UpdateReport(added=1, changed=1, unchanged=9, embedded=2)
    assert_equals_files(index, pictures)


def test_a_touched_file_is_read_but_not_embedded(index: Index, pictures: Path) -> None:
    run(index, pictures)
    os.utime(pictures / "0" / "2.png", ns=(LONG_AGO_NS + 5, LONG_AGO_NS + 5))
    assert run(index, pictures) == UpdateReport(unchanged=10)
    (item,) = index.get([str(pictures / "0" / "2.png")])
    assert item.mtime_ns == LONG_AGO_NS + 5


def test_a_moved_file_keeps_its_vector_and_meta(index: Index, pictures: Path) -> None:
    run(index, pictures)
    old = pictures / "0" / "2.png"
    (item,) = index.get([str(old)])
    index.reuse([Item(**{**{f: getattr(item, f) for f in item.__slots__}, "meta": {"stars": 5}})])
    old.rename(pictures / "moved.png")
    assert run(index, pictures) == UpdateReport(moved=1, unchanged=9)
    assert_equals_files(index, pictures)
    assert index.get([str(pictures / "moved.png")])[0].meta == {"stars": 5}


@pytest.mark.parametrize("batch_size", [1, 64])
def test_two_files_that_swap_their_names(index: Index, pictures: Path, batch_size: int) -> None:
    """One at a time, the first overwrites what the second would have taken its vector from."""
    run(index, pictures)
    first, second = pictures / "0" / "0.png", pictures / "0" / "2.png"
    first.rename(pictures / "aside")
    second.rename(first)
    (pictures / "aside").rename(second)
    for file in (first, second):
        os.utime(file, ns=(LONG_AGO_NS + 9, LONG_AGO_NS + 9))
    report = run(index, pictures, batch_size=batch_size)
    assert (report.changed, report.unchanged, report.failures) == (2, 8, ())
    assert report.embedded == (1 if batch_size == 1 else 0)
    assert_equals_files(index, pictures)


def test_a_copy_is_not_embedded(index: Index, pictures: Path) -> None:
    run(index, pictures)
    (pictures / "copy.png").write_bytes((pictures / "0" / "2.png").read_bytes())
    assert run(index, pictures) == UpdateReport(added=1, unchanged=10)
    assert_equals_files(index, pictures)


def test_a_file_away_outside_the_given_paths_is_not_taken_for_moved(
    index: Index, pictures: Path, tmp_path: Path
) -> None:
    """The same picture on a disk that is not mounted now stays indexed."""
    draw(tmp_path / "disk" / "a.png", 7)
    run(index, tmp_path / "disk")
    (tmp_path / "disk" / "a.png").rename(tmp_path / "elsewhere")
    assert run(index, pictures).added == 10
    assert str(tmp_path / "disk" / "a.png") in index.ids()


def test_prune_removes_what_is_gone_below_the_given_paths_only(
    index: Index, pictures: Path, tmp_path: Path
) -> None:
    draw(tmp_path / "pictures too" / "a.png", 50)  # a name that begins like the other folder's
    run(index, [pictures, tmp_path / "pictures too"])
    index.add(
        [Item(id="no file")],
        MeanColours().encode_images([pictures / "0" / "0.png"]),
        MeanColours().space,
    )
    (pictures / "0" / "2.png").unlink()
    (tmp_path / "pictures too" / "a.png").unlink()
    assert run(index, pictures).removed == 0
    assert run(index, pictures, prune=True).removed == 1
    assert str(pictures / "0" / "2.png") not in index.ids()
    assert str(tmp_path / "pictures too" / "a.png") in index.ids()
    assert "no file" in index.ids()


def test_broken_files_are_listed_and_keep_their_last_good_vector(
    index: Index, pictures: Path
) -> None:
    run(index, pictures)
    known, fresh = pictures / "0" / "2.png", pictures / "fresh.png"
    vector = index.vectors([str(known)])
    known.write_bytes(known.read_bytes()[:40])
    fresh.write_bytes(b"")
    for _ in range(2):  # tried again by every run
        report = run(index, pictures, prune=True)
        assert [failure.path for failure in report.failures] == [str(known), str(fresh)]
        assert "damaged" in report.failures[0].reason
        assert "empty" in report.failures[1].reason
        assert (report.unchanged, report.embedded, report.removed) == (9, 0, 0)
    assert (index.vectors([str(known)]) == vector).all()
    draw(known, 77)
    os.utime(known, ns=(LONG_AGO_NS + 3, LONG_AGO_NS + 3))
    assert run(index, pictures).changed == 1


def test_a_file_fresh_from_its_writer_is_compared_by_content(index: Index, tmp_path: Path) -> None:
    """A change within the same tick of the clock leaves size and time as they were."""
    file = tmp_path / "fresh" / "a.bmp"  # uncompressed: every picture has the same size
    draw(file, 1, old=False)
    run(index, file)
    status = file.stat()
    draw(file, 2, old=False)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert run(index, file) == UpdateReport(changed=1, embedded=1)


def test_a_file_changed_while_it_is_read_is_read_again(
    index: Index, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stamps before and after the reading differ: once, then for ever."""
    real, calls = files.stamp, dict.fromkeys(map(str, pictures.rglob("*.png")), 0)
    restless = str(pictures / "0" / "2.png")
    once = str(pictures / "0" / "4.png")

    def moving(path: str) -> files.Stamp:
        calls[path] += 1
        shift = calls[path] if path == restless or (path == once and calls[path] < 3) else 0
        found = real(path)
        return files.Stamp(size=found.size, mtime_ns=found.mtime_ns + shift)

    monkeypatch.setattr(files, "stamp", moving)
    report = run(index, pictures)
    assert report.added == 9
    assert [failure.path for failure in report.failures] == [restless]
    assert "was changed while it was read" in report.failures[0].reason


def test_a_file_that_vanishes_after_the_walk_is_a_failure(
    index: Index, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = update.find_media
    victim = pictures / "0" / "2.png"

    def find_then_lose(paths: Any) -> Any:
        found = real(paths)
        victim.unlink()
        return found

    monkeypatch.setattr(update, "find_media", find_then_lose)
    report = run(index, pictures)
    assert report.added == 9
    assert [failure.path for failure in report.failures] == [str(victim)]
    assert "vanished" in report.failures[0].reason


def test_symbolic_links_lead_to_one_item(index: Index, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pictures)
    (pictures / "again.png").symlink_to(pictures / "0" / "0.png")
    (pictures / "loop").symlink_to(pictures)
    report = run(index, [tmp_path / "link", pictures])
    assert report == UpdateReport(added=10, embedded=10)
    assert index.ids() == sorted(str(path) for path in pictures.glob("[01]/*.png"))


def test_relative_paths_become_absolute(
    index: Index, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    run(index, "0")
    assert index.ids() == [str(pictures / "0" / f"{seed}.png") for seed in range(0, 10, 2)]


def test_names_of_any_bytes(index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    names = ["two\nlines.png", os.fsdecode(b"caf\xe9.png"), "🦊 ünï.png", " .png", "a'; --.png"]
    for seed, name in enumerate(names):
        draw(folder / name, seed)
    run(index, folder)
    assert set(index.ids()) == {str(folder / name) for name in names}
    assert all(Path(item.path or "").exists() for item in index.items())
    assert run(index, folder) == UpdateReport(unchanged=5)


def test_another_models_index_is_refused_before_any_work(index: Index, pictures: Path) -> None:
    run(index, pictures)
    other = MeanColours("other")
    with pytest.raises(SpaceMismatch, match=r"weights w,.* got .*weights other"):
        run(index, pictures, other)
    assert other.num_seen == 0
    assert len(index) == 10


def test_absent_paths_and_senseless_options_are_refused(index: Index, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        run(index, tmp_path / "absent", prune=True)
    with pytest.raises(ConfigError, match="batch_size=0"):
        run(index, tmp_path, batch_size=0)


class Spoilt(MeanColours):
    """Gives nothing usable for pictures whose first pixel is black, as broken models do."""

    def one(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        return super().one(pixels) * (np.nan if pixels[0, 0].sum() == 0 else 1)


def test_one_picture_without_a_vector_does_not_stop_the_run(index: Index, pictures: Path) -> None:
    Image.new("RGB", (4, 4)).save(pictures / "black.png")
    report = run(index, pictures, Spoilt())
    assert report.added == 10
    assert [failure.path for failure in report.failures] == [str(pictures / "black.png")]
    assert "not finite" in report.failures[0].reason


def test_a_model_without_any_usable_vector_stops_the_run(index: Index, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "black").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4 + number)).save(tmp_path / "black" / f"{number}.png")
    with pytest.raises(NumericalError, match=r"no usable vector for 3 pictures.*check the model"):
        run(index, tmp_path / "black", Spoilt())
    assert len(index) == 0


class Interrupted(MeanColours):
    """Raises in the third batch."""

    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        if self.num_seen >= 4:
            raise KeyboardInterrupt
        return super().encode_images(images, batch_size=batch_size)


def test_an_interrupted_run_keeps_its_batches_and_leaves_no_thread(
    index: Index, pictures: Path
) -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(index, pictures, Interrupted(), batch_size=2)
    assert threading.active_count() == before
    assert len(index) == 4
    assert index.check() == ()
    model = MeanColours()
    assert run(index, pictures, model).added == 6
    assert model.num_seen == 6
    assert_equals_files(index, pictures)


def test_progress_ends_at_the_total(index: Index, pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"x")
    calls: list[tuple[int, int]] = []
    run(index, pictures, batch_size=3, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (11, 11)
    assert calls == sorted(calls)
    run(index, pictures, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (11, 11)


def test_large_pictures_make_smaller_batches(
    index: Index, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "_BATCH_PIXELS", 3 * 64)  # three of 8 x 8
    sizes: list[int] = []

    class Noting(MeanColours):
        def encode_images(
            self, images: Sequence[Any], *, batch_size: int = 32
        ) -> NDArray[np.float32]:
            sizes.append(len(images))
            return super().encode_images(images, batch_size=batch_size)

    run(index, pictures, Noting())
    assert sizes == [3, 3, 3, 1]


def test_dates_come_from_the_picture_else_from_its_file(index: Index, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:01:02 03:04:05"
    for name, more in (("taken.jpg", {"exif": exif}), ("old.jpg", {}), ("fresh.jpg", {})):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name, **more)
        if name != "fresh.jpg":
            os.utime(tmp_path / name, ns=(LONG_AGO_NS, LONG_AGO_NS))
    run(index, tmp_path)
    taken, old, fresh = (str(tmp_path / f"{name}.jpg") for name in ("taken", "old", "fresh"))
    assert index.matches(Filter(after=1577934245, before=1577934246)) == {taken}
    assert index.matches(Filter(after=LONG_AGO_NS / 1e9, before=LONG_AGO_NS / 1e9 + 1)) == {old}
    assert index.matches(Filter(after=time.time() - 3600)) == {fresh}
    os.utime(tmp_path / "fresh.jpg", ns=(LONG_AGO_NS, LONG_AGO_NS))
    run(index, tmp_path)
    assert index.matches(Filter(before=LONG_AGO_NS / 1e9 + 1)) == {old, fresh}


def test_what_people_wrote_about_a_picture_stays_when_it_is_moved_or_touched(
    index: Index, pictures: Path
) -> None:
    run(index, pictures)
    first = index.items()[0]
    noted = replace(first, caption="a red door", tags=("door",), text="12", meta={"stars": 5})
    index.add([noted], index.vectors([first.id]), MeanColours().space)
    os.utime(first.id)
    run(index, pictures)
    assert index.get([first.id])[0].text == "12"
    moved = pictures / "moved.png"
    Path(first.id).rename(moved)
    assert run(index, pictures).moved == 1
    (item,) = index.get([str(moved)])
    assert (item.caption, item.tags, item.text) == ("a red door", ("door",), "12")
    assert item.meta == {"stars": 5}
    assert index.search_text("door", 3).ids == ((str(moved),),)
    draw(moved, 77)
    run(index, pictures)
    (item,) = index.get([str(moved)])
    assert (item.caption, item.text) == ("a red door", "")  # words found in it are gone with it
