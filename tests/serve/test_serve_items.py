"""Thumbnails and files: of items of the index, and of nothing else."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import get, picture_bytes, raw, serving

from costream.encoders.storage import load
from costream.index import Index, Item, update_index
from costream.index.thumbnails import thumbnail_folder
from costream.serve.problems import Problem
from costream.serve.thumbnails import Size, ThumbnailStore

SECRET = b"what-must-not-be-read"


@pytest.fixture
def own(index_dir: Path, tiny_model_dir: Path) -> Iterator[httpx.Client]:
    """A service of an index that the test may change."""
    with serving(index_dir, tiny_model_dir) as client:
        yield client


def named(client: httpx.Client, name: str) -> dict[str, Any]:
    items = client.get("items").json()["items"]
    found: dict[str, Any] = next(item for item in items if item["name"] == name)
    return found


def token(item_id: str) -> str:
    return base64.urlsafe_b64encode(item_id.encode()).rstrip(b"=").decode()


# --- listing ---


def test_items_come_in_pages_and_orders(client: httpx.Client) -> None:
    by_name = client.get("items?sort=name&order=ascending").json()
    assert [item["name"] for item in by_name["items"]] == ["blue.png", "green.png", "red.png"]
    assert by_name["total"] == 3
    for order in ("ascending", "descending"):
        for sort in ("name", "date"):
            whole = client.get(f"items?sort={sort}&order={order}").json()["items"]
            pages = [
                client.get(f"items?sort={sort}&order={order}&limit=1&offset={n}").json()["items"]
                for n in range(4)
            ]
            assert [page[0] for page in pages[:3]] == whole
            assert pages[3] == []
    dates: list[float] = [item["date"] for item in client.get("items?sort=date").json()["items"]]
    assert dates == sorted(dates, reverse=True)


def test_one_item(client: httpx.Client, items: dict[str, Any]) -> None:
    for item in items.values():
        assert client.get(f"items/{item['id']}").json() == item


# --- thumbnails ---


@pytest.mark.parametrize("size", [320, 640, 1600])
def test_a_thumbnail_is_a_small_jpeg(
    client: httpx.Client, items: dict[str, Any], size: int
) -> None:
    item = items["red.png"]
    answer = client.get(f"{item['thumbnail']}&size={size}")
    assert answer.headers["content-type"] == "image/jpeg"
    assert "immutable" in answer.headers["cache-control"]
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.format == "JPEG"
        assert max(picture.size) == min(size, 640)
        assert picture.width * 3 == picture.height * 4
    again = client.get(
        f"items/{item['id']}/thumbnail?size={size}",
        headers={"If-None-Match": answer.headers["etag"]},
    )
    assert again.status_code == 304


def test_a_thumbnail_is_made_once_and_named_by_content(own: httpx.Client, index_dir: Path) -> None:
    item = named(own, "red.png")
    digest = hashlib.sha256(Path(item["path"]).read_bytes()).hexdigest()
    with ThreadPoolExecutor(8) as pool:
        contents = {answer.content for answer in pool.map(own.get, [item["thumbnail"]] * 20)}
    assert len(contents) == 1
    files = [path for path in thumbnail_folder(index_dir).rglob("*") if path.is_file()]
    assert [path.name for path in files] == [f"{digest}-320.jpg"]
    # From now on the file is not needed.
    Path(item["path"]).unlink()
    assert own.get(item["thumbnail"]).content in contents


@pytest.mark.parametrize("damage", [b"", b"\xff\xd8\xff", b"nonsense" * 100])
def test_a_damaged_thumbnail_is_made_again(
    own: httpx.Client, index_dir: Path, damage: bytes
) -> None:
    item = named(own, "red.png")
    good = own.get(item["thumbnail"]).content
    (file,) = (path for path in thumbnail_folder(index_dir).rglob("*.jpg"))
    file.write_bytes(damage)
    assert own.get(item["thumbnail"]).content == good
    assert file.read_bytes() == good


def test_a_changed_file_is_shown_as_it_is_and_not_kept(own: httpx.Client, index_dir: Path) -> None:
    item = named(own, "red.png")
    Image.new("RGB", (100, 50), "white").save(item["path"])
    answer = own.get(item["thumbnail"])
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (100, 50)
    assert answer.headers["cache-control"] == "private, no-cache"
    assert not list(thumbnail_folder(index_dir).rglob("*.jpg"))


def test_thumbnails_of_what_was_removed_are_removed(own: httpx.Client, index_dir: Path) -> None:
    for name in ("red.png", "blue.png"):
        own.get(named(own, name)["thumbnail"])
    with Index.open(index_dir) as index:
        (gone,) = (item for item in index.items() if item.id.endswith("red.png"))
        index.remove([gone.id])
    store = ThumbnailStore(thumbnail_folder(index_dir), max_bytes=10**8)
    with Index.open(index_dir) as index:
        store.remove_others({item.content_hash for item in index.items()})
    left = [path.name for path in thumbnail_folder(index_dir).rglob("*.jpg")]
    assert len(left) == 1
    assert not left[0].startswith(gone.content_hash)


def test_thumbnails_are_no_pictures_of_the_folder_that_the_index_lies_in(
    own: httpx.Client, index_dir: Path, tiny_model_dir: Path
) -> None:
    assert own.get(named(own, "red.png")["thumbnail"]).status_code == 200
    with Index.open(index_dir) as index:
        report = update_index(index, load(tiny_model_dir), index_dir.parent)
    assert (report.added, report.unchanged) == (0, 3)


def test_a_folder_that_cannot_be_written_costs_time_only(
    own: httpx.Client, index_dir: Path
) -> None:
    thumbnail_folder(index_dir).write_text("a file where the folder should be")
    assert own.get(named(own, "red.png")["thumbnail"]).status_code == 200


@pytest.mark.parametrize(
    "query",
    ["size=0", "size=321", "size=-1", "size=99999999", "size=../../x", "size=NaN", "size="],
)
def test_sizes_are_ours_to_choose(client: httpx.Client, items: dict[str, Any], query: str) -> None:
    answer = client.get(f"items/{items['red.png']['id']}/thumbnail?{query}")
    assert answer.status_code == 422


def test_nothing_of_a_request_becomes_the_name_of_a_file(
    own: httpx.Client, index_dir: Path
) -> None:
    before = set(index_dir.parent.rglob("*"))
    item = named(own, "red.png")
    for v in ("../../../x", "/etc/passwd", "%00", "a" * 64, "\u0000"):
        assert own.get(f"items/{item['id']}/thumbnail", params={"v": v}).status_code == 200
    new = {path for path in set(index_dir.parent.rglob("*")) - before if path.is_file()}
    assert {path.suffix for path in new} <= {".jpg", ".sqlite-wal", ".sqlite-shm"}
    assert all(index_dir in path.parents for path in new)


def test_a_half_written_thumbnail_is_never_seen(tmp_path: Path) -> None:
    """Writers and readers at once: everything read is whole."""
    Image.effect_noise((900, 900), 90).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    item = Item(id="a", path=str(tmp_path / "a.png"), content_hash=digest)
    stores = [ThumbnailStore(tmp_path / "t", max_bytes=10**8) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: stores[n % 4].get(item, Size.TILE).jpeg, range(40)))
    assert len(set(found)) == 1
    assert not list((tmp_path / "t").rglob("*.tmp"))


# --- files ---


def test_an_original_is_the_file(client: httpx.Client, items: dict[str, Any]) -> None:
    for item in items.values():
        answer = client.get(item["original"])
        assert answer.content == Path(item["path"]).read_bytes()
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert answer.headers["content-disposition"].startswith("inline; filename*=UTF-8''")


@pytest.mark.parametrize(
    ("wanted", "part", "status"),
    [
        ("bytes=0-9", slice(0, 10), 206),
        ("bytes=10-", slice(10, None), 206),
        ("bytes=-7", slice(-7, None), 206),
        ("bytes=0-99999999999", slice(None), 200),
        ("bytes=5-5", slice(5, 6), 206),
        ("bytes=0-1,3-4", slice(None), 200),
        ("bytes=-", slice(None), 200),
        ("lines=1-2", slice(None), 200),
        ("bytes=99999999-", None, 416),
        ("bytes=9-3", None, 416),
        ("bytes=-0", None, 416),
    ],
)
def test_a_player_gets_the_part_it_asks_for(
    client: httpx.Client, items: dict[str, Any], wanted: str, part: slice | None, status: int
) -> None:
    item = items["red.png"]
    content = Path(item["path"]).read_bytes()
    answer = client.get(item["original"], headers={"Range": wanted})
    assert answer.status_code == status
    if part is None:
        assert answer.headers["content-range"] == f"bytes */{len(content)}"
    else:
        assert answer.content == content[part]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', None),
        (b"<!doctype html><script>alert(1)</script>", None),
        (b"GIF89a<script>alert(1)</script>", "image/gif"),
        (b"%PDF-1.7", None),
        (b"\x89PNG\r\n\x1a\n<html>", "image/png"),
        (b"", None),
    ],
)
def test_a_file_is_what_its_bytes_say_and_runs_nothing(
    own: httpx.Client, content: bytes, kind: str | None
) -> None:
    """Also one that was put in a picture's place after it was indexed."""
    item = named(own, "red.png")
    Path(item["path"]).write_bytes(content)
    answer = own.get(item["original"])
    assert answer.content == content
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert answer.headers["content-type"] == (kind or "application/octet-stream")
    if kind is None:
        assert answer.headers["content-disposition"].startswith("attachment")
    assert own.get(item["thumbnail"]).status_code == 415


@pytest.mark.parametrize("where", ["the file", "its folder", "a folder above"])
def test_a_link_in_the_place_of_an_indexed_file_is_not_followed(
    tmp_path: Path, index_dir: Path, tiny_model_dir: Path, where: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    pictures = tmp_path / "pictures"
    (outside / "red.png").write_bytes(SECRET)
    if where == "the file":
        (pictures / "red.png").unlink()
        (pictures / "red.png").symlink_to(outside / "red.png")
    elif where == "its folder":
        shutil.rmtree(pictures)
        pictures.symlink_to(outside)
    else:
        (outside / "pictures").mkdir()
        (outside / "pictures" / "red.png").write_bytes(SECRET)
        real = tmp_path.with_name(tmp_path.name + "-real")
        shutil.copytree(tmp_path, real, symlinks=True)
        shutil.rmtree(pictures)
        pictures.symlink_to(real / "outside" / "pictures")
    with serving(index_dir, tiny_model_dir) as client:
        item = named(client, "red.png")
        for path in (item["original"], item["thumbnail"]):
            answer = client.get(path)
            assert answer.status_code == 404
            assert SECRET not in answer.content
            assert str(tmp_path) not in answer.text


@pytest.mark.parametrize("kind", ["pipe", "folder", "gone", "no permission"])
def test_what_is_no_file_any_more_is_not_waited_for(own: httpx.Client, kind: str) -> None:
    item = named(own, "red.png")
    path = Path(item["path"])
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "no permission":
        path.write_bytes(SECRET)
        path.chmod(0)
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
    for part in (item["original"], item["thumbnail"]):
        assert own.get(part).status_code == 404


ATTACKS = [
    "../../../../../../etc/passwd",
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "..%5c..%5cetc%5cpasswd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "file:%2f%2f%2fetc%2fpasswd",
    "....//....//etc/passwd",
    "%252e%252e%252fetc%252fpasswd",
    "etc/passwd%00.png",
    "%00",
    "%ff%fe",
    "..",
    ".",
    "~",
    "-",
    "_" * 20_000,
    token("/etc/passwd"),
    token("../../etc/passwd"),
    token("/proc/self/environ"),
    token("/etc/passwd\x00.png"),
    "AAAA====",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_path_is_reached_by_any_address(
    client: httpx.Client, shared_index_dir: Path, attack: str
) -> None:
    """Raw bytes on the wire: a client library would tidy the dots away."""
    folder = str(shared_index_dir).encode()
    places = ["/items/{}", "/items/{}/thumbnail", "/items/{}/original", "/web/{}", "/{}"]
    for place in places:
        path = place.format(attack)[:30_000].encode()
        answer = raw(client, get(path))
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        assert status in (400, 404, 422, 431), (path, head)
        for forbidden in (b"root:", SECRET, folder, b"/etc/passwd\x00", b"Traceback"):
            assert forbidden not in body, path


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if len(attack) < 1000])
def test_no_path_is_reached_by_any_parameter(client: httpx.Client, attack: str) -> None:
    for plain in (attack, quote(attack, safe=""), "/etc/passwd"):
        asked = [
            client.get("search", params={"q": plain}),
            client.get("search", params={"like": plain}),
            client.get("search", params={"q": "a", "where": f"path={plain}"}),
            client.get("search", params={"q": "a", "where": f"id={plain}"}),
            client.get("items", params={"where": plain}),
            client.get("items", params={"sort": plain}),
            client.post("similar", json={"id": plain}),
            client.post("search", json={"terms": [{"image": plain}]}),
            client.post("search", json={"terms": [{"text": plain}]}),
            client.post("search", json={"terms": [{"url": f"file://{plain}"}]}),
            client.post("embed", json={"texts": [plain]}),
            client.post("embed", json={"images": [plain]}),
            client.post("v1/embeddings", json={"input": plain, "model": plain}),
        ]
        for answer in asked:
            assert answer.status_code in (200, 404, 422), answer.text
            assert "root:" not in answer.text


def test_names_that_are_no_text_are_served(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Bytes that are not UTF-8, quotes, newlines, right-to-left marks."""
    names = [b"caf\xe9.png", b"a\nb.png", b'"><script>.png', "\u202egnp.exe".encode(), b" .png"]
    pictures = []
    for number, name in enumerate(names):
        path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118
        with open(path, "wb") as stream:  # noqa: PTH123
            Image.new("RGB", (20 + number, 20)).save(stream, "PNG")
        pictures.append(Item(id=os.fsdecode(path), path=os.fsdecode(path)))
    space = load(tiny_model_dir).space
    vectors = np.eye(len(pictures), space.dim, dtype=np.float32)
    with Index.open(tmp_path / "index", create=True) as index:
        index.add(pictures, vectors, space)
    with serving(tmp_path / "index", tiny_model_dir) as client:
        found = client.get("items?sort=name&order=ascending").json()["items"]
        assert len(found) == len(names)
        for item in found:
            assert item["name"].isprintable()
            assert client.get(item["original"]).status_code == 200
            assert client.get(item["thumbnail"]).status_code == 200
            disposition = client.get(item["original"]).headers["content-disposition"]
            assert "\n" not in disposition
            assert '"' not in disposition


def test_an_item_without_a_file_has_no_pictures(tmp_path: Path, tiny_model_dir: Path) -> None:
    space = load(tiny_model_dir).space
    with Index.open(tmp_path / "index", create=True) as index:
        index.add([Item(id="vector only")], np.eye(1, space.dim, dtype=np.float32), space)
    with serving(tmp_path / "index", tiny_model_dir) as client:
        (item,) = client.get("items").json()["items"]
        assert item["thumbnail"] is None
        assert item["original"] is None
        for part in ("thumbnail", "original"):
            assert client.get(f"items/{item['id']}/{part}").status_code == 404


def test_a_file_too_large_to_look_at_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bytes(2000))
    store = ThumbnailStore(tmp_path / "t", max_bytes=1000)
    with pytest.raises(Problem) as refused:
        store.get(Item(id="a", path=str(tmp_path / "a.png")), Size.TILE)
    assert refused.value.status == 413
    store.close()


@pytest.mark.parametrize("kind", ["bomb", "svg", "truncated", "pdf", "eps", "nothing"])
def test_an_indexed_file_that_became_something_else_harms_nothing(
    own: httpx.Client, kind: str
) -> None:
    item, other = named(own, "red.png"), named(own, "blue.png")
    Path(item["path"]).write_bytes(picture_bytes(kind))
    answer = own.get(item["thumbnail"])
    assert answer.status_code == 415
    assert answer.json()["detail"].startswith("the file ")
    assert item["path"] not in answer.text
    assert own.get(other["thumbnail"]).status_code == 200


@pytest.mark.parametrize("kind", ["1x1", "1xN", "animated", "16 bit", "CMYK", "polyglot"])
def test_an_odd_picture_is_shown(own: httpx.Client, kind: str) -> None:
    item = named(own, "red.png")
    Path(item["path"]).write_bytes(picture_bytes(kind))
    answer = own.get(item["thumbnail"])
    assert answer.status_code == 200
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert (picture.format, picture.mode) == ("JPEG", "RGB")
    assert b"<script" not in answer.content


def test_a_decoder_that_crashes_costs_one_picture(own: httpx.Client) -> None:
    """Files are decoded in other processes: when those end, nothing else does."""
    one, other = named(own, "red.png"), named(own, "blue.png")
    assert own.get(one["thumbnail"]).status_code == 200
    for decoder in children("costream.data.decode_process"):
        os.kill(decoder, signal.SIGSEGV)
    answer = own.get(f"{one['thumbnail']}&size=640")
    assert answer.status_code in (200, 415)
    assert own.get(other["thumbnail"]).status_code == 200
    assert own.get(f"{other['thumbnail']}&size=640").status_code == 200


def children(name: str) -> list[int]:
    """Processes that this one has started, by what is in their command."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and name in (process / "cmdline").read_text():
                found.append(int(process.name))
    return found
