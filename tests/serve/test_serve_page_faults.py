"""The page with hostile names, with very many items, with keys, and when the service fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import browser, watched
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, expect
from serving import KEY, serving

from costream.encoders.dual import DualEncoder
from costream.index import Index, Item
from costream.serve.keys import KeyRing
from costream.serve.models import ModelParts
from costream.serve.settings import ServeSettings

MANY = 100_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def unit(count: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


HOSTILE = (
    "\"><img src=x onerror=\"document.title='caught'\"><script>document.title='caught'</script>"
)


def test_names_captions_and_fields_are_text_and_never_markup(
    chromium: Browser, tmp_path: Path, tiny_model: DualEncoder, tiny_model_dir: Path
) -> None:
    names = [
        "<script>document.title='caught'<.png",
        "\"onmouseover='x' a='.png",
        "javascript:x.png",
    ]
    items = []
    for number, name in enumerate(names):
        path = tmp_path / name.replace("/", "")
        Image.new("RGB", (60, 40), (80 * number, 60, 60)).save(path)
        items.append(
            Item(
                id=str(path),
                path=str(path),
                caption=HOSTILE,
                tags=(HOSTILE, "javascript:alert(1)"),
                meta={HOSTILE: HOSTILE, "deep": {"a": HOSTILE}},
            )
        )
    with Index.open(tmp_path / "index", create=True) as index:
        index.add(items, unit(3, tiny_model.space.dim), tiny_model.space)
    with serving(tmp_path / "index", tiny_model_dir) as client:
        page = watched(chromium, str(client.base_url))
        page.open("#q=red&minus=%3Cscript%3Ealert(1)%3C/script%3E")
        assert sorted(page.names()) == sorted(
            item["name"] for item in client.get("items").json()["items"]
        )
        for number in range(3):
            page.page.locator(f".tile[aria-posinset='{number + 1}'] .open").click()
            detail = page.page.locator(".detail[open]")
            expect(detail.locator(".caption")).to_have_text(HOSTILE)
            expect(detail.locator(".tag").first).to_have_text(HOSTILE)
            page.page.keyboard.press("Escape")
        assert page.page.title() == "red · costream"
        assert page.page.locator("script").count() == 1
        assert page.complaints == []
        page.page.context.close()


def test_a_hundred_thousand_items_scroll_like_a_hundred(
    chromium: Browser, tmp_path: Path, tiny_model: DualEncoder, tiny_model_dir: Path
) -> None:
    """Only what is on the screen is in the page, and only what is looked at is fetched."""
    path = tmp_path / "one.png"
    Image.new("RGB", (60, 40), "red").save(path)
    items = [Item(id=f"{n:06}", path=str(path), mtime_ns=10**18 + n * 10**9) for n in range(MANY)]
    with Index.open(tmp_path / "index", create=True) as index:
        index.add(items, unit(MANY, tiny_model.space.dim), tiny_model.space)
    with serving(tmp_path / "index", tiny_model_dir) as client:
        page = watched(chromium, str(client.base_url))
        begin = time.monotonic()
        page.open()
        expect(page.page.locator(".summary")).to_have_text("100,000 items")
        first = time.monotonic() - begin
        tiles = page.page.locator(".tile")
        assert tiles.count() < 150
        expect(page.page.locator(".tile.shown").first).to_be_visible()
        assert len([url for url in page.requests if "/items?" in url]) <= 2
        # From the top to the end, past everything.
        page.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        last = page.page.locator(f".tile[aria-posinset='{MANY}']")
        expect(last).to_be_visible()
        expect(last.locator("img")).to_be_attached()
        assert tiles.count() < 150
        for step in range(20):
            page.page.evaluate(f"scrollTo(0, document.body.scrollHeight * {step} / 20)")
            page.page.wait_for_timeout(20)
        page.page.wait_for_timeout(500)
        fetched = [url for url in page.requests if "/items?" in url]
        assert len(fetched) < 50  # two a stop, of a thousand pages
        # A search brings a thousand at most, page by page.
        page.search("red")
        page.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.page.wait_for_timeout(1500)
        page.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.page.wait_for_timeout(500)
        assert tiles.count() < 150
        assert first < 30
        assert page.complaints == []
        page.page.context.close()


def test_a_closed_collection_asks_for_its_key(
    chromium: Browser, shared_index_dir: Path, tiny_model_dir: Path
) -> None:
    settings = ServeSettings(port=0, keys=KeyRing([KEY]))
    with serving(shared_index_dir, tiny_model_dir, settings) as client:
        page = watched(chromium, str(client.base_url))
        page.page.goto(f"{page.base}#q=red")
        dialog = page.page.get_by_role("dialog")
        expect(dialog).to_contain_text("needs a key")
        page.page.get_by_label("API key").fill("wrong-wrong-wrong")
        page.page.get_by_role("button", name="Open").click()
        expect(dialog).to_contain_text("unknown API key")
        page.page.keyboard.press("Escape")
        expect(dialog).to_be_visible()
        page.page.get_by_label("API key").fill(KEY)
        page.page.get_by_role("button", name="Open").click()
        expect(page.page.locator(".tile.shown")).to_have_count(3)
        assert KEY not in page.page.url
        expect(page.page.locator("#query")).to_have_value("red")
        page.page.context.close()


def test_a_service_that_fails_is_told_and_tried_again(
    chromium: Browser, shared_index_dir: Path, tiny_model_dir: Path
) -> None:
    broken: list[str] = []

    class Breaking:
        def __init__(self, inner: Any) -> None:
            self._inner, self.space = inner, inner.space

        def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
            if broken:
                raise RuntimeError(broken[0])
            found: NDArray[np.float32] = self._inner.encode_texts(texts)
            return found

    def change(parts: ModelParts) -> ModelParts:
        return replace(parts, words=Breaking(parts.words))

    with serving(shared_index_dir, tiny_model_dir, change=change) as client:
        page = watched(chromium, str(client.base_url))
        page.open()
        broken.append("out of order")
        page.page.locator("#query").fill("red")
        alert = page.page.get_by_role("alert").first
        expect(alert).to_contain_text("the model failed")
        assert len(page.names()) == 3  # what was there stays there
        broken.clear()
        page.page.get_by_role("button", name="Try again").click()
        page.settled()
        expect(page.page.locator(".message")).to_be_hidden()
        expect(page.page.locator(".summary")).to_contain_text("3 items in")
    page.page.locator("#query").fill("green")
    expect(page.page.get_by_role("alert").first).to_contain_text("does not answer")
    page.page.context.close()


def test_an_empty_index_says_how_to_fill_it(
    chromium: Browser, tmp_path: Path, tiny_model_dir: Path
) -> None:
    with Index.open(tmp_path / "index", create=True):
        pass
    with serving(tmp_path / "index", tiny_model_dir) as client:
        page = watched(chromium, str(client.base_url))
        page.open()
        expect(page.page.locator(".notice")).to_contain_text("costream index")
        page.search("red")
        expect(page.page.locator(".notice")).to_contain_text("Nothing found")
        assert page.complaints == []
        page.page.context.close()


def test_files_that_are_gone_are_named(
    chromium: Browser, index_dir: Path, tiny_model_dir: Path
) -> None:
    (index_dir.parent / "pictures" / "red.png").unlink()
    with serving(index_dir, tiny_model_dir) as client:
        page = watched(chromium, str(client.base_url))
        page.open("#q=red")
        expect(page.page.locator(".tile.gone")).to_have_count(1)
        expect(page.page.locator(".tile.gone .name")).to_have_text("red.png")
        page.page.locator(".tile.gone .open").click()
        expect(page.page.locator(".detail[open]")).to_contain_text("The file is gone")
        page.page.context.close()


def webm(path: Path, seconds: int) -> None:
    """A clip whose colour changes each second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(10 * seconds):
            colour = (25 * (number // 10) % 256, 90, 200)
            frame = av.VideoFrame.from_image(Image.new("RGB", (160, 120), colour))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_clip_opens_at_its_moment(
    chromium: Browser, tmp_path: Path, tiny_model: DualEncoder, tiny_model_dir: Path
) -> None:
    path = tmp_path / "clip.webm"
    webm(path, 8)
    space = tiny_model.space
    vectors = unit(3, space.dim)
    vectors[1] = tiny_model.encode_texts(["red"])[0]
    spans = np.array([[0.0, 2.0], [4.0, 6.0], [6.0, 8.0]])
    clip = Item(id="clip", path=str(path), modality="video", size=path.stat().st_size)
    with Index.open(tmp_path / "index", create=True) as index:
        index.add_moments([clip], vectors, np.zeros(3, np.int64), spans, space)
    with serving(tmp_path / "index", tiny_model_dir) as client:
        (result,) = client.get("search?q=red").json()["results"]
        assert result["span"] == [4.0, 6.0]
        page = watched(chromium, str(client.base_url))
        page.open("#q=red")
        expect(page.page.locator(".tile .kind")).to_contain_text("0:04")
        page.page.locator(".tile .open").click()
        expect(page.page.locator(".detail[open]")).to_contain_text("0:04 to 0:06")
        video = page.page.locator("video")
        video.evaluate("v => v.readyState >= 1 || new Promise(done => v.onloadedmetadata = done)")
        for _ in range(100):
            if video.evaluate("v => v.currentTime") >= 4:
                break
            page.page.wait_for_timeout(100)
        assert video.evaluate("v => v.currentTime") >= 4
        page.page.context.close()


def test_moved_past_while_the_index_grows(
    chromium: Browser, index_dir: Path, tiny_model: DualEncoder, tiny_model_dir: Path
) -> None:
    with serving(index_dir, tiny_model_dir) as client:
        page = watched(chromium, str(client.base_url))
        page.open()
        expect(page.page.locator(".tile")).to_have_count(3)
        with Index.open(index_dir) as index:
            index.add([Item(id="new")], unit(1, tiny_model.space.dim), tiny_model.space)
        for _ in range(50):
            if client.get("items").json()["total"] == 4:
                break
            time.sleep(0.2)
        page.page.locator(".brand").click()
        page.page.reload()
        page.settled()
        expect(page.page.locator(".tile")).to_have_count(4)
        page.page.context.close()
