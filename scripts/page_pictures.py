"""Take pictures of the page, on a wide screen and a phone, light and dark.

    python scripts/page_pictures.py [--out docs/images]

Indexes the pictures of the gallery and a clip made of some of them, serves them, and looks at the
page with a Chromium of the system. Needs `pip install -e .[dev]`.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import costream
from costream.index import Index, update_index
from costream.serve.models import load_parts
from costream.serve.server import Server
from costream.serve.service import Service
from costream.serve.settings import ServeSettings

GALLERY = Path(costream.__file__).parent / "assets" / "gallery"
CLIP = ("sunset_lake", "horses", "boats_at_sunset", "elephant")
FIRST = 1_715_000_000  # when the first picture was taken, as far as the page knows
DESKTOP = (1280, 800)
PHONE = (390, 780)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture of the page."""

    name: str
    fragment: str
    size: tuple[int, int]
    scheme: str = "light"
    press: tuple[str, ...] = ()
    """Keys, once the page shows something."""


SHOTS = (
    Shot(name="page", fragment="#q=an+animal&plus=stripes", size=DESKTOP),
    Shot(name="page-dark", fragment="#q=a+boat+at+sunset", size=DESKTOP, scheme="dark"),
    Shot(
        name="page-detail", fragment="#q=an+animal+with+stripes", size=DESKTOP, press=("Enter", "w")
    ),
    Shot(name="page-phone", fragment="#q=a+red+car", size=PHONE),
    Shot(name="page-phone-dark", fragment="#q=a+yellow+flower", size=PHONE, scheme="dark"),
)
MORE = (
    Shot(name="everything", fragment="", size=DESKTOP),
    Shot(name="nothing", fragment="#q=people+playing+football", size=DESKTOP),
    Shot(name="filters", fragment="#q=a+cat&where=modality%3Dimage", size=DESKTOP),
    Shot(name="detail-dark", fragment="#q=a+guitar", size=DESKTOP, scheme="dark", press=("Enter",)),
    Shot(
        name="clip",
        fragment="#q=horses+running&where=modality%3Dvideo",
        size=DESKTOP,
        press=("Enter",),
    ),
    Shot(name="phone-detail", fragment="#q=a+zebra", size=PHONE, press=("Enter", "w")),
    Shot(
        name="phone-320",
        fragment="#q=a+dog&plus=snow&minus=a+very+long+part+of+a+question&where=modality%3Dimage",
        size=(320, 640),
    ),
    Shot(name="help", fragment="#q=a+dog", size=PHONE, press=("?",)),
)


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--more", type=Path, help="folder for views that are not in the docs")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="costream-") as folder, served(Path(folder)) as url:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            for shot in SHOTS:
                save(take(browser, url, shot), options.out / f"{shot.name}.png")
            for shot in MORE if options.more else ():
                save(take(browser, url, shot), options.more / f"{shot.name}.png")
            browser.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a service of the gallery and a clip."""
    pictures = folder / "Pictures"
    shutil.copytree(GALLERY, pictures)
    write_clip(pictures / "animals at dusk.mp4")
    for number, path in enumerate(sorted(pictures.iterdir())):
        os.utime(path, (FIRST + 86_400 * number,) * 2)
    with Index.open(folder / "index", create=True) as index:
        update_index(index, costream.load("cots-mini"), [pictures])
    started = threading.Event()
    service = Service(folder / "index", ServeSettings(port=0), lambda _: load_parts("cots-mini"))
    server = Server(service, started=lambda _: started.set())
    thread = threading.Thread(target=server.answer)
    thread.start()
    started.wait()
    try:
        yield server.url
    finally:
        server.stop()
        thread.join()


def write_clip(path: Path) -> None:
    """A clip of four seconds: a picture of the gallery each second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 480, 320, "yuv420p"
        for number in range(10 * len(CLIP)):
            with Image.open(GALLERY / f"{CLIP[number // 10]}.jpg") as picture:
                frame = av.VideoFrame.from_image(picture.convert("RGB").resize((480, 320)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def take(browser: Browser, url: str, shot: Shot) -> bytes:
    """A picture of the page as it is after everything has come."""
    width, height = shot.size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if shot.scheme == "dark" else "light",
        is_mobile=width < 600,
        has_touch=width < 600,
    )
    page = context.new_page()
    page.goto(f"{url}{shot.fragment}")
    settle(page)
    page.reload()  # the first question waits for much that is loaded once
    settle(page)
    for key in shot.press:
        page.locator("body").press(key) if key == "?" else press(page, key)
        settle(page)
    taken = page.screenshot()
    context.close()
    return taken


def press(page: Page, key: str) -> None:
    """Enter opens the first result, as a click does; other keys go to what has the focus."""
    if key == "Enter":
        page.locator(".tile .open").first.click()
    else:
        page.keyboard.press(key)
        page.wait_for_selector("canvas.shade", timeout=60_000)


def settle(page: Page) -> None:
    """Wait until nothing moves."""
    page.wait_for_timeout(400)
    page.locator(".progress").wait_for(state="hidden", timeout=60_000)
    for _ in range(600):
        if page.evaluate("[...document.images].every(each => each.complete && each.naturalWidth)"):
            break
        page.wait_for_timeout(100)
    page.wait_for_timeout(700)


def save(taken: bytes, path: Path) -> None:
    """Store a picture with 256 colours, which is a third of the size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(taken)) as picture:
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
        small.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
