"""A browser for tests, and what they look at in the page."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

TIMEOUT_MS = 30_000  # machines that test are slow and shared


def browser_path() -> str | None:
    """A Chromium of the system."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium, or a skipped test where there is none."""
    path = browser_path()
    if path is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]  # tests run as root in containers
        opened = playwright.chromium.launch(executable_path=path, args=options)
        yield opened
        opened.close()


class Watched:
    """A page, with everything that it complained about or asked others for."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(TIMEOUT_MS)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, fragment: str = "") -> Watched:
        """Open the page, and wait until it shows something."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.base}{fragment}")
        self.settled()
        return self

    def settled(self) -> None:
        """Wait until nothing is being searched."""
        self.page.wait_for_timeout(200)  # more than it waits for another letter
        expect(self.page.locator(".progress")).to_be_hidden()

    def names(self, count: int = 5) -> list[str]:
        """Names of the first results, in the order in which they stand."""
        tiles = self.page.locator(".tile[aria-posinset]").evaluate_all(
            """tiles => tiles.map(tile => [Number(tile.getAttribute("aria-posinset")),
            tile.querySelector(".name")?.textContent ?? ""])"""
        )
        return [name for _, name in sorted(tiles)][:count]

    def search(self, words: str) -> None:
        """Type words into the box."""
        self.page.locator("#query").fill("")
        self.page.locator("#query").press_sequentially(words)
        self.settled()


def watched(browser: Browser, base: str, **options: Any) -> Watched:
    """A new page with cookies and storage of its own."""
    options.setdefault("viewport", {"width": 1280, "height": 800})
    context = browser.new_context(**options)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=base.rstrip("/"))
    return Watched(context.new_page(), base)
