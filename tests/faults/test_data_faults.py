"""Law: what a reader cannot use is named with place and reason; nothing is left out silently, and
nothing in a file can reach outside it.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from costream.data import find_images, open_image, read_data
from costream.data.webdataset import TarPicture
from costream.errors import DataError


def png(colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(stream, "PNG")
    return stream.getvalue()


def manifest(folder: Path, lines: list[Any], present: tuple[str, ...] = ()) -> Path:
    for name in present:
        (folder / name).write_bytes(png())
    file = folder / "m.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    file.write_text("\n".join(texts), encoding="utf-8")
    return file


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def good_members(*keys: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [
        pair
        for key in keys
        for pair in ((member(f"{key}.png"), png()), (member(f"{key}.txt"), b"a caption"))
    ]


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder that everybody may enter, and a user to whom permissions apply."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        uid = os.geteuid()
        if uid == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(uid)


# --- walking ------------------------------------------------------------------------------------


def test_symlink_loops_end(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.jpg").touch()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "a" / "one.jpg").symlink_to("two.jpg")
    (tmp_path / "a" / "two.jpg").symlink_to("one.jpg")
    found, failures = find_images(tmp_path)
    assert found == [tmp_path / "a/b/x.jpg"]
    assert sorted(failure.path for failure in failures) == [
        str(tmp_path / "a/one.jpg"),
        str(tmp_path / "a/two.jpg"),
    ]
    with pytest.raises(DataError, match="is a link to nothing or to itself"):
        find_images(tmp_path / "a" / "self")


def test_link_to_nothing_and_special_files(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    found, failures = find_images(tmp_path)
    assert found == []
    assert [(Path(f.path).name, f.reason.split(",")[0]) for f in failures] == [
        ("gone.jpg", "is a link to nothing or to itself"),
        ("pipe.jpg", "is a pipe"),
    ]
    assert find_images(tmp_path / "pipe.jpg")[1][0].path == str(tmp_path / "pipe.jpg")


def test_no_permission() -> None:
    with unprivileged() as folder:
        (folder / "closed").mkdir()
        (folder / "closed" / "x.jpg").touch()
        (folder / "secret.jpg").touch()
        (folder / "open.jpg").write_bytes(png())
        (folder / "secret.jpg").chmod(0)
        (folder / "closed").chmod(0)
        try:
            found, failures = find_images(folder)
            assert found == [folder / "open.jpg"]
            assert {Path(f.path).name: f.reason.split(",")[0] for f in failures} == {
                "closed": "cannot be listed (Permission denied)",
                "secret.jpg": "may not be read (permission denied)",
            }
            with pytest.raises(DataError, match=r"2 of 3 records cannot be used"):
                read_data(folder)
            assert read_data(folder, allow_missing=2).num_images == 1
            (folder / "m.jsonl").touch()
            (folder / "m.jsonl").chmod(0)
            for source in (folder / "m.jsonl", folder):  # not silently a folder without captions
                with pytest.raises(DataError, match=r"m\.jsonl: cannot be read \(Permission den"):
                    read_data(source)
        finally:
            (folder / "closed").chmod(0o700)


def test_names_with_newline_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    names = [b"a\nb.jpg", b"caf\xe9.jpg", b"\xff\xfe.jpg", "日本.jpg".encode(), b" .jpg", b"-.jpg"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(png())
    found, failures = find_images(tmp_path)
    assert sorted(os.fsencode(path.name) for path in found) == sorted(names)
    assert failures == []
    data = read_data(tmp_path)
    assert [open_image(sample.slots["image"]).size for sample in data.samples] == [(8, 6)] * 6
    assert len(data.hash) == 64


def test_files_that_vanish_and_appear_while_walking(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"d{number}").mkdir()
        (tmp_path / f"d{number}" / "stay.jpg").touch()
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(20):
                folder = tmp_path / f"d{number}" / "temporary"
                folder.mkdir()
                (folder / "t.jpg").touch()
                (folder / "t.jpg").unlink()
                folder.rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(50):
            found, failures = find_images(tmp_path)
            assert sum(path.name == "stay.jpg" for path in found) == 20
            assert failures == []
    finally:
        stop.set()
        thread.join()


# --- manifests ----------------------------------------------------------------------------------


def test_captions_that_name_missing_pictures(tmp_path: Path) -> None:
    lines = [{"image": f"p{number}.png", "captions": ["x"]} for number in range(10)]
    file = manifest(tmp_path, lines, present=("p0.png", "p1.png"))
    with pytest.raises(DataError) as caught:
        read_data(file)
    text = str(caught.value)
    assert "8 of 10 records cannot be used, expected at most 0" in text
    assert f"{tmp_path}/p2.png is not there, named by {file} line 3" in text
    assert "and 3 more" in text
    assert "p7.png" not in text
    assert "allow_missing=8" in text
    with pytest.raises(DataError, match="expected at most 7"):
        read_data(file, allow_missing=7)
    data = read_data(file, allow_missing=8)
    assert data.num_images == 2
    assert [Path(failure.path).name for failure in data.missing] == [
        f"p{n}.png" for n in range(2, 10)
    ]


def test_nothing_left_is_an_error_whatever_is_allowed(tmp_path: Path) -> None:
    file = manifest(tmp_path, [{"image": "gone.png", "captions": ["x"]}])
    with pytest.raises(DataError, match="got no usable record"):
        read_data(file, allow_missing=100)


@pytest.mark.parametrize("empty", ["", " \n", None, [], ["", None]])
def test_a_record_without_any_caption_is_missing(tmp_path: Path, empty: Any) -> None:
    lines = [{"image": "a.png", "captions": empty}, {"image": "b.png", "captions": ["x"]}]
    file = manifest(tmp_path, lines, present=("a.png", "b.png"))
    with pytest.raises(DataError, match=r"a\.png has no caption that is not empty .*line 1"):
        read_data(file)
    data = read_data(file, allow_missing=1)
    assert [sample.id for sample in data.samples] == ["b.png"]
    assert data.missing[0].path == "a.png"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": "a.png", "captions": ["x"]', "line 2: is not JSON"),
        ("hello", "line 2: is not JSON"),
        ("3", "line 2: got int 3, expected a JSON object"),
        ('["a.png", "x"]', "line 2: got list"),
        ('{"captions": ["x"]}', "line 2: has 'captions'; expected one of the fields 'image'"),
        ('{"image": "a.png"}', "line 2: has 'image'; expected one of the fields 'captions'"),
        ("{}", "line 2: has no fields"),
        ('{"image": 3, "captions": ["x"]}', "line 2: got 3 as the picture's name"),
        ('{"image": "", "captions": ["x"]}', "line 2: got '' as the picture's name"),
        ('{"image": "a.png", "captions": [3]}', "line 2: got a caption of type int"),
        ('{"image": "a.png", "captions": {"en": "x"}}', "line 2: got a caption of type dict"),
        ('{"image": "a.png", "captions": ["\\ud83d"]}', "line 2: got half of a surrogate pair"),
        ('{"image": "a.png", "caption": "x", "translations": ["y"]}', "translations of type list"),
        ('{"image": "a.png", "caption": "x", "translations": {"de": 1}}', "language 'de': got"),
        ("[" * 100_000, "line 2: is nested too deeply"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: str, words: str) -> None:
    good = {"image": "a.png", "captions": ["x"]}
    file = manifest(tmp_path, [good, line], present=("a.png",))
    with pytest.raises(DataError) as caught:
        read_data(file)
    assert words in str(caught.value)


def test_the_first_line_may_be_the_broken_one(tmp_path: Path) -> None:
    file = manifest(tmp_path, ['{"image": "a.png", ', {"image": "a.png", "captions": ["x"]}])
    with pytest.raises(DataError, match="line 1: is not JSON"):
        read_data(file)


def test_manifest_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_bytes('{"image": "a.png", "caption": "café"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"line 1: is not UTF-8 \(byte 0xe9 at "):
        read_data(file)
    (tmp_path / "t.txt").write_bytes(b"a.png#0\tcaf\xe9\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_data(tmp_path / "t.txt")


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "nul\0.png", "../" * 50 + "nowhere.png"])
def test_impossible_picture_names_are_missing_pictures(tmp_path: Path, name: str) -> None:
    lines = [{"image": name, "captions": ["x"]}, {"image": "a.png", "captions": ["x"]}]
    file = manifest(tmp_path, lines, present=("a.png",))
    assert len(read_data(file, allow_missing=1).missing) == 1


# --- wrong forms --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty (0 bytes), expected a folder of pictures, a JSONL manifest"),
        (b"once upon a time\n", "is text beginning 'once upon a time'"),
        (png(), "is a PNG picture"),
        (b"PAR1\x15\x04", "is a Parquet table"),
        (b"PK\x03\x04", "is a ZIP archive"),
        (b"SQLite format 3\0", "is an SQLite database"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01\0", "is gzip-compressed data"),
        (b'{"a": 1, "b": 2}', "is a JSON object with 'a', 'b'; expected 'images' and"),
        (b"{\n}", "is a JSON object with no keys"),
        (b'{\n"images": [], "x": 1}', "is a JSON object with 'images', 'x'"),
        (b'{\n"images": [{"file_name": "a"}]\n}', "is a JSON object with 'images'"),
        (b"{ not json", "is not JSON"),
        (b"[1, 2]", "record 0: got int 1"),
        (b"[]", "got no usable record"),
        (b"image,caption\n", "names pictures (first: 'none')"),
        (b"a.png#0\tx\na line\n", "line 2: got 'a line', expected a line like 'a.jpg#0<tab>A dog'"),
        (b"image_name| comment_number| comment\nx\n", "line 2: got 'x'"),
    ],
)
def test_wrong_files_are_named_for_what_they_are(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_data(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value) or tmp_path.name in str(caught.value)


def test_absent_empty_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: is not there, expected a folder of pictures"):
        read_data(tmp_path / "gone")
    with pytest.raises(DataError, match=r"holds no picture \(it is empty\)"):
        read_data(tmp_path)
    for name in ("a.mp3", "b.mp3", "c.pdf", "README"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"\(2 x \.mp3, 1 x \.pdf, 1 x no suffix\)"):
        read_data(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is a pipe"):
        read_data(tmp_path / "pipe")
    with pytest.raises(DataError, match="type list"):
        read_data(["a.png"])


COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "annotations": [{"image_id": 1, "caption": "x"}, {"image_id": 2, "caption": "y"}],
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"annotations": [{"image_id": 1, "bbox": []}]}, "annotations[0] has 'image_id', 'bbox'"),
        ({"images": [{"id": 1}]}, "images[0] has 'id'; expected 'file_name'"),
        ({"annotations": {"1": "x"}}, "got 'annotations' that is no list of objects"),
        ({"images": [{"id": 1, "file_name": "a.png"}] * 2}, "2 images share 1 ids"),
        ({"annotations": []}, "2 of 2 records cannot be used"),
        ({"annotations": [*COCO["annotations"], {"image_id": 9, "caption": "z"}]}, "image_id 9"),
        ({"images": [{"id": 1, "file_name": "zz.png"}]}, "names pictures (first: 'zz.png')"),
    ],
)
def test_coco_of_another_task_or_damaged(tmp_path: Path, change: Any, words: str) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / "c.json").write_text(json.dumps({**COCO, **change}))
    with pytest.raises(DataError) as caught:
        read_data(tmp_path / "c.json")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "second", [{}, {"filename": "b.png"}, {"filename": "b.png", "sentences": [1]}, 3]
)
def test_karpathy_with_a_damaged_record(tmp_path: Path, second: Any) -> None:
    first = {"filename": "a.png", "split": "val", "sentences": [{"raw": "x"}]}
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "k.json").write_text(json.dumps({"images": [first, second]}))
    with pytest.raises(DataError, match=r"image 1: got .* expected 'filename' and 'sentences'"):
        read_data(tmp_path / "k.json")


def test_given_folder_of_pictures_must_exist(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(COCO))
    with pytest.raises(DataError, match="is not a folder"):
        read_data(tmp_path / "c.json", images=tmp_path / "gone")


# --- tars ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "\\evil.png"]
)
def test_names_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    tar = write_tar(inside / "s.tar", *good_members("a"), (member(name), png()))
    with pytest.raises(DataError, match="has a name that leaves the archive"):
        read_data(tar)
    data = read_data(tar, allow_missing=1)
    assert [sample.id for sample in data.samples] == ["a"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "s.tar"]  # nothing was extracted


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    bad = member("b.png", type=kind, linkname="/etc/passwd")
    tar = write_tar(tmp_path / "s.tar", *good_members("a"), (bad, b""))
    with pytest.raises(DataError, match=r"b\.png is a link, device or sparse file"):
        read_data(tar)
    assert read_data(tar, allow_missing=1).num_images == 1


@pytest.mark.parametrize("kept", [0.3, 0.55, 0.8])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_cut_off_tars_are_noticed(tmp_path: Path, kept: float, suffix: str) -> None:
    mode = "w:gz" if suffix == "tar.gz" else "w"
    members = [
        (info, content + os.urandom(3000) if info.name.endswith("png") else content)
        for info, content in good_members(*"abcdefgh")
    ]
    whole = write_tar(tmp_path / f"s.{suffix}", *members, mode=mode)
    assert read_data(whole).num_images == 8
    content = whole.read_bytes()
    if suffix == "tar":
        content = content.rstrip(b"\0")
    whole.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match="cut off"):
        read_data(whole)
    rest = read_data(whole, allow_missing=4)
    assert 0 < rest.num_images < 8
    assert all(open_image(sample.slots["image"]).size == (8, 6) for sample in rest.samples)


def test_every_cut_of_a_tar_is_noticed(tmp_path: Path) -> None:
    """`tarfile` itself ends quietly at a cut between members and at a damaged header."""
    whole = write_tar(tmp_path / "s.tar", *good_members("a", "b")).read_bytes()
    end = len(whole.rstrip(b"\0"))
    end += -end % 512
    for size in range(512, end + 1, 256):
        (tmp_path / "s.tar").write_bytes(whole[:size])
        with pytest.raises(DataError):
            read_data(tmp_path / "s.tar")
    damaged = bytearray(whole)
    third_header = damaged.index(b"b.png")
    damaged[third_header : third_header + 512] = b"\xaa" * 512
    (tmp_path / "s.tar").write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        read_data(tmp_path / "s.tar")
    (tmp_path / "s.tar").write_bytes(whole[: end + 512])  # one block of zeros will do
    assert read_data(tmp_path / "s.tar").num_images == 2


def test_a_damaged_tar_among_good_ones(tmp_path: Path) -> None:
    for key in "ab":
        write_tar(tmp_path / f"{key}.tar", *good_members(key))
    content = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(content[:600])
    with pytest.raises(DataError, match=r"b\.tar.* is (damaged or )?cut off"):
        read_data(tmp_path)
    assert read_data(tmp_path, allow_missing=2).num_images == 1


def test_keys_without_picture_or_with_two_or_in_two_shards(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "s.tar",
        *good_members("a"),
        (member("b.txt"), b"no picture"),
        (member("c.png"), png()),
        (member("c.jpg"), png()),
        (member("d.png"), png()),
        (member("e.png"), png()),
        (member("e.json"), b"{broken"),
        (member("f.png"), png()),
        (member("f.txt"), b"\xff\xfe\xff"),
    )
    reasons = {Path(f.path).name: f.reason for f in read_data(tar, allow_missing=5).missing}
    assert "has 0 pictures" in reasons["s.tar:b.txt"]
    assert "has 2 pictures" in reasons["s.tar:c.png"]
    assert "has no caption" in reasons["d"]
    assert "is not JSON" in reasons["s.tar:e.json"]
    assert "is not text" in reasons["s.tar:f.txt"]
    with pytest.raises(DataError, match="5 of 6 records"):
        read_data(tar, allow_missing=4)
    write_tar(tmp_path / "t.tar", *good_members("a"))
    with pytest.raises(DataError, match="the key 'a' occurs in an earlier tar too"):
        read_data(tmp_path)


def test_tars_without_captions_are_pictures_only(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "s.tar", (member("a.png"), png()), (member("b.png"), png()))
    data = read_data(tar)
    assert (data.num_images, data.num_captions) == (2, 0)


def test_members_that_announce_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("costream.data.webdataset.MAX_TEXT_BYTES", 10)
    tar = write_tar(tmp_path / "s.tar", *good_members("a"), (member("b.txt"), b"x" * 11))
    with pytest.raises(DataError, match=r"b\.txt has 11 bytes, expected at most 10"):
        read_data(tar)
    monkeypatch.undo()
    monkeypatch.setattr("costream.data.webdataset.MAX_COMPRESSED_BYTES", 50)
    with pytest.raises(DataError, match="decompress it first"):
        read_data(write_tar(tmp_path / "s.tgz", *good_members("a", "b"), mode="w:gz"))


def test_a_tar_that_changes_after_it_was_read(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "s.tar", *good_members("a"))
    image = read_data(tar).samples[0].slots["image"]
    assert isinstance(image, TarPicture)
    tar.write_bytes(tar.read_bytes()[:540])
    with pytest.raises(DataError, match=r"s\.tar:a\.png: got 28 bytes, expected"):
        open_image(image)
    tar.unlink()
    with pytest.raises(DataError, match="check that the tar is still there"):
        open_image(image)
