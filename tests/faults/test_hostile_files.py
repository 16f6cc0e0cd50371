"""Law: a file that is made to do harm is refused quickly, in little memory, and is never executed.

Pictures that announce more than they hold, formats that nobody asked for, archives that expand
without end, and pickles under every name under which they might be read.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from costream.data import open_image, read_data
from costream.errors import CostreamError, DataError

# --- pictures that announce too much ---


def encoded(form: str, size: tuple[int, int] = (16, 16), **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, form, **options)
    return stream.getvalue()


def jpeg(side: int) -> bytes:
    content = bytearray(encoded("JPEG"))
    start = content.index(b"\xff\xc0") + 5  # after marker, length and precision
    content[start : start + 4] = struct.pack(">HH", side, side)
    return bytes(content)


def png(side: int) -> bytes:
    content = bytearray(encoded("PNG"))
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def gif(side: int) -> bytes:
    content = bytearray(encoded("GIF"))
    content[6:10] = struct.pack("<HH", side, side)
    return bytes(content)


def bmp(side: int) -> bytes:
    content = bytearray(encoded("BMP"))
    content[18:26] = struct.pack("<ii", side, side)
    return bytes(content)


def tiff(side: int) -> bytes:
    content = bytearray(encoded("TIFF"))
    for tag in (256, 257):
        place = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
        content[place : place + 4] = struct.pack("<I", side)
    return bytes(content)


def webp(side: int) -> bytes:
    """An extended header with a canvas of its own, which may have 2^24 pixels a side."""
    content = bytearray(encoded("WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"))
    place = content.index(b"VP8X") + 12
    content[place : place + 6] = (side - 1).to_bytes(3, "little") * 2
    return bytes(content)


def ppm(side: int) -> bytes:
    return f"P6 {side} {side} 255\n".encode() + bytes(1000)


FORMS: list[Callable[[int], bytes]] = [jpeg, png, gif, bmp, tiff, webp, ppm]

# In a fresh process, for the question is how much memory it needs at most.
DECODE = """
import json, resource, sys, time
from costream.data import open_image
from costream.errors import DataError
import PIL.Image
open_image(PIL.Image.new("RGB", (8, 8)))
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
answers = {}
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        open_image(path)
        answers[path] = ["decoded"]
    except DataError as error:
        answers[path] = [str(error), time.process_time() - start]
answers["kB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most
print(json.dumps(answers))
"""


def test_what_announces_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    """30,000 x 30,000 pixels would need 2.7 GB as RGB, and take seconds."""
    paths = []
    for make in FORMS:
        paths.append(tmp_path / f"bomb.{make.__name__}")
        paths[-1].write_bytes(make(30_000))
        assert open_image(make(16)).size == (16, 16)  # the announcement alone makes it a bomb
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DECODE, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    answers = json.loads(done.stdout)
    assert answers.pop("kB") < 20_000
    assert len(answers) == len(FORMS)
    for path, (words, seconds) in answers.items():
        assert words.startswith(f"{path}: "), words
        assert seconds < 0.5, path


def test_a_text_that_expands_without_end_is_not_kept(tmp_path: Path) -> None:
    """A compressed comment or profile inside of a PNG, of 200 MB in 200 kB."""
    whole = encoded("PNG")
    body = zlib.compress(bytes(200 << 20), 9)
    for kind, head in ((b"zTXt", b"Comment\0\0"), (b"iCCP", b"icc\0\0")):
        chunk = kind + head + body
        bad = struct.pack(">I", len(head + body)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        (tmp_path / f"{kind.decode()}.png").write_bytes(whole[:33] + bad + whole[33:])
    paths = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(
        [sys.executable, "-c", DECODE, *paths], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["kB"] < 50_000


# --- formats that nobody asked for ---


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "DDS", "JPEG2000"])
def test_only_listed_formats_are_decoded(form: str, tmp_path: Path) -> None:
    """Even when a program has loaded every decoder that Pillow has."""
    Image.init()
    file = tmp_path / "a.png"
    file.write_bytes(encoded(form))
    with pytest.raises(DataError, match=r"a\.png: .*expected a picture"):
        open_image(file)


def test_a_fits_file_is_refused(tmp_path: Path) -> None:
    """Its decompression had no bound once."""
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8", "END"]
    (tmp_path / "a.png").write_bytes("".join(card.ljust(80) for card in cards).encode().ljust(2880))
    with pytest.raises(DataError, match="expected a picture"):
        open_image(tmp_path / "a.png")


# --- archives ---


def big_member(kind: bytes) -> bytes:
    """A tar whose first member announces 2 GB of zeros; these follow in compressed form."""
    info = tarfile.TarInfo("a" if kind == tarfile.REGTYPE else "././@LongLink")
    info.type = kind
    info.size = 2 << 30
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_compressed_tar_that_expands_too_far_is_refused(
    kind: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long name is taken into memory by `tarfile` itself, before anybody sees its size."""
    monkeypatch.setattr("costream.data.webdataset.MAX_COMPRESSED_BYTES", 8 << 20)
    good = io.BytesIO()
    with tarfile.open(fileobj=good, mode="w") as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"a dog"))
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=1) as stream:
        stream.write(good.getvalue()[:1024] + big_member(kind))
        for _ in range(64):
            stream.write(bytes(1 << 20))
    with pytest.raises(DataError, match=r"bomb\.tar\.gz: expands to more than 8 MB"):
        read_data(tmp_path / "bomb.tar.gz")


@pytest.mark.soak
def test_a_tar_of_a_million_members_is_read(tmp_path: Path) -> None:
    picture = encoded("PNG")
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        for number in range(500_000):
            for name, content in ((f"{number}.png", picture), (f"{number}.txt", b"a red square")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert read_data(tmp_path / "many.tar").num_images == 500_000


# --- pickles and code ---


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_in_a_tar_are_left_alone(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    array = io.BytesIO()
    np.save(array, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    bad = {"npy": array.getvalue()} | dict.fromkeys(
        ("pyd", "pickle", "pkl", "pth", "pt"), pickle.dumps(Bomb(mark))
    )
    members = {"a.png": encoded("PNG"), "a.txt": b"a red square"}
    members |= {f"a.{suffix}": content for suffix, content in bad.items()}
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert read_data(tmp_path / "s.tar").num_captions == 1
    assert not mark.exists()


@pytest.mark.parametrize("name", ["a.jpg", "data.jsonl", "data.json", "data.tar", "data.txt"])
def test_a_pickle_is_never_taken_for_data(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(CostreamError):
        open_image(tmp_path / name) if name == "a.jpg" else read_data(tmp_path / name)
    assert not mark.exists()


def test_every_file_of_an_index_may_be_a_pickle(tmp_path: Path) -> None:
    from index_worker import ColourHistogram

    from costream.index import Index, update_index

    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    with Index.open(tmp_path / "index", create=True) as index:
        update_index(index, ColourHistogram(), tmp_path / "a.png")
    mark = tmp_path / "it-ran"
    for file in sorted((tmp_path / "index").iterdir()):
        kept = file.read_bytes()
        file.write_bytes(pickle.dumps(Bomb(mark)))
        try:
            with Index.open(tmp_path / "index") as index:
                index.search(np.ones((1, 27), np.float32), ColourHistogram.space, 1)
        except CostreamError:
            pass  # the truth itself is gone
        file.write_bytes(kept)
    assert not mark.exists()


def test_code_beside_a_model_is_never_run(tmp_path: Path) -> None:
    """What `trust_remote_code` would import."""
    import costream

    mark = tmp_path / "it-ran"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    model = tmp_path / "model"
    model.mkdir()
    names = {"AutoConfig": "odd.OddConfig", "AutoModel": "odd.OddModel"}
    config = {"model_type": "odd", "auto_map": names, "trust_remote_code": True}
    (model / "config.json").write_text(json.dumps(config))
    for name in ("odd", "__init__", "modeling_odd", "setup"):
        (model / f"{name}.py").write_text(code)
    with pytest.raises(CostreamError):
        costream.load(model)
    assert not mark.exists()
