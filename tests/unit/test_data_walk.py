"""Law: the walk finds every picture once, in an order that does not depend on the file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from costream.data import find_images
from costream.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(found: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


def test_pictures_are_told_by_suffix_in_any_case(tmp_path: Path) -> None:
    touch(tmp_path, "a.JPG", "b.jpeg", "c.PnG", "d.heic", "e.avif", "f.tiff", "g.txt", "h", "i.mp4")
    found, failures = find_images(tmp_path)
    assert names(found, tmp_path) == ["a.JPG", "b.jpeg", "c.PnG", "d.heic", "e.avif", "f.tiff"]
    assert failures == []


def test_order_is_stable_and_hidden_things_are_skipped(tmp_path: Path) -> None:
    wanted = ["a/z.jpg", "a/b/c.jpg", "b.jpg", "Z.jpg", "ü.jpg", "日本/猫.jpg", "🐈.jpg"]
    touch(tmp_path, *reversed(wanted), ".hidden.jpg", ".cache/x.jpg", "a/.thumb/y.jpg")
    found, _ = find_images(tmp_path)
    assert names(found, tmp_path) == sorted(wanted)


def test_a_file_named_directly_needs_no_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "scan", ".hidden.jpg", "a.jpg")
    found, _ = find_images([tmp_path / "scan", tmp_path / ".hidden.jpg", tmp_path])
    assert names(found, tmp_path) == ["scan", ".hidden.jpg", "a.jpg"]


def test_a_picture_reached_twice_is_listed_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg", "y.jpg")
    found, _ = find_images([tmp_path, tmp_path / "a", tmp_path / "a" / "x.jpg", tmp_path])
    assert names(found, tmp_path) == ["a/x.jpg", "y.jpg"]


def test_relative_paths_stay_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/x.jpg")
    monkeypatch.chdir(tmp_path)
    assert find_images("a")[0] == [Path("a/x.jpg")]
    assert find_images(".")[0] == [Path("a/x.jpg")]


def test_links_to_folders_are_followed_when_nothing_else_gets_there(tmp_path: Path) -> None:
    touch(tmp_path, "real/in/x.jpg", "elsewhere/y.jpg")
    (tmp_path / "real" / "a_link").symlink_to(tmp_path / "real" / "in")
    (tmp_path / "real" / "out").symlink_to(tmp_path / "elsewhere")
    found, failures = find_images(tmp_path / "real")
    assert names(found, tmp_path / "real") == ["in/x.jpg", "out/y.jpg"]
    assert failures == []


def test_empty_folder_is_no_error_for_the_walk(tmp_path: Path) -> None:
    assert find_images(tmp_path) == ([], [])


def test_absent_path_and_no_path_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: is not there, expected a folder or a picture"):
        find_images([tmp_path, tmp_path / "gone"])
    with pytest.raises(DataError, match="got no path"):
        find_images([])
    with pytest.raises(DataError, match="cannot be a path"):
        find_images("nul\0letter")


def test_a_folder_with_ten_thousand_levels_of_links_ends(tmp_path: Path) -> None:
    folders = [tmp_path / f"d{number:02d}" for number in range(12)]
    for folder in folders:
        touch(folder, "x.jpg")
    for folder in folders:  # every folder links to every other: 12! ways through
        for other in folders:
            (folder / f"to_{other.name}").symlink_to(other)
    found, failures = find_images(tmp_path)
    assert names(found, tmp_path) == [f"d{number:02d}/x.jpg" for number in range(12)]
    assert failures == []
    assert os.path.commonpath(found) == str(tmp_path)
