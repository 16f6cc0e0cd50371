"""The page, in a real browser on a real service with the shipped model and pictures of the gallery.

Laws: what is shown is what the service answers; the URL holds the question; everything works by
keyboard; nothing comes from outside; no text becomes markup.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsing import Watched, browser, watched
from playwright.sync_api import Browser, expect
from serving import GALLERY


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(chromium: Browser, service: httpx.Client) -> Iterator[Watched]:
    """A page that must have complained about nothing at the end."""
    made = watched(chromium, str(service.base_url))
    yield made
    made.page.context.close()
    assert made.complaints == []


def answered(client: httpx.Client, *terms: dict[str, Any], **others: Any) -> list[str]:
    """What the service itself says."""
    answer = client.post("search", json={"terms": list(terms), **others})
    assert answer.status_code == 200, answer.text
    return [result["name"] for result in answer.json()["results"]]


# --- searching ---


def test_everything_is_shown_before_anything_is_asked(page: Watched, service: httpx.Client) -> None:
    page.open()
    expect(page.page.locator(".summary")).to_have_text("24 items")
    newest = [item["name"] for item in service.get("items").json()["items"]]
    assert page.names(24) == newest
    expect(page.page.locator(".tile.shown")).to_have_count(24)


def test_words_are_searched_while_they_are_typed(page: Watched, service: httpx.Client) -> None:
    page.open()
    page.search("a red flower")
    assert page.names() == answered(service, {"text": "a red flower"})[:5]
    page.search("a dog")
    assert page.names() == answered(service, {"text": "a dog"})[:5]
    asked = [url for url in page.requests if url.endswith("/search")]
    assert 2 <= len(asked) < len("a red flower" + "a dog")


def test_an_answer_that_comes_late_is_not_shown(page: Watched, service: httpx.Client) -> None:
    """The first question is answered after the second."""
    page.open()
    held: list[Any] = []

    def hold(route: Any) -> None:
        if "castle" in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    page.page.route("**/search", hold)
    page.page.locator("#query").fill("a castle")
    page.page.wait_for_timeout(500)
    assert held
    page.page.locator("#query").fill("a cat")
    expect(page.page.locator(".tile .name").first).to_be_attached()
    page.settled()
    for route in held:
        route.continue_()
    page.page.wait_for_timeout(500)
    assert page.names() == answered(service, {"text": "a cat"})[:5]


def test_parts_are_added_turned_around_and_removed(page: Watched, service: httpx.Client) -> None:
    page.open()
    page.search("an animal")
    page.page.get_by_role("button", name="also").click()
    page.page.keyboard.type("stripes")
    page.page.keyboard.press("Enter")
    page.settled()
    both = [{"text": "an animal"}, {"text": "stripes"}]
    assert page.names() == answered(service, *both)[:5]
    page.page.get_by_role("button", name="without").click()
    page.page.keyboard.type("a cat")
    page.page.keyboard.press("Enter")
    page.settled()
    minus = {"text": "a cat", "weight": -1}
    assert page.names() == answered(service, *both, minus)[:5]
    page.page.get_by_role("button", name="Also stripes; turn around").click()
    page.settled()
    turned = [{"text": "an animal"}, {"text": "stripes", "weight": -1}, minus]
    assert page.names() == answered(service, *turned)[:5]
    page.page.get_by_role("button", name="Remove stripes").click()
    page.settled()
    assert page.names() == answered(service, {"text": "an animal"}, minus)[:5]
    page.page.locator("#query").fill("")
    page.page.locator("#query").press("Backspace")
    page.settled()
    expect(page.page.locator(".chip")).to_have_count(0)


def picture_of(name: str) -> str:
    return base64.b64encode((GALLERY / f"{name}.jpg").read_bytes()).decode()


def hand_over(page: Watched, name: str, how: str) -> None:
    """Drop or paste a file, as the browser hands it to a page."""
    page.page.evaluate(
        """async ([content, how]) => {
          const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "a.jpg", { type: "image/jpeg" }));
          if (how === "paste") {
            dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
          } else {
            for (const kind of ["dragenter", "dragover", "drop"]) {
              dispatchEvent(new DragEvent(kind, { dataTransfer: data, cancelable: true }));
            }
          }
        }""",
        [picture_of(name), how],
    )


@pytest.mark.parametrize("how", ["drop", "paste", "choose"])
def test_a_picture_finds_itself_and_its_like(page: Watched, how: str) -> None:
    page.open()
    if how == "choose":
        page.page.locator("#file").set_input_files(GALLERY / "zebra.jpg")
    else:
        hand_over(page, "zebra", how)
    expect(page.page.locator(".chip img")).to_be_visible()
    page.settled()
    assert page.names(1) == ["zebra.jpg"]
    found = page.names(24)
    # The URL holds the picture itself: opened again, it finds the same.
    again = page.page.url
    page.page.goto("about:blank")
    page.page.goto(again)
    page.settled()
    assert page.names(24) == found


def test_what_is_no_picture_is_told_so(page: Watched, tmp_path: Path) -> None:
    page.open()
    (tmp_path / "a.jpg").write_text("no picture")
    page.page.locator("#file").set_input_files(tmp_path / "a.jpg")
    expect(page.page.get_by_role("alert")).to_contain_text("no picture")


def test_more_like_this_from_a_tile(page: Watched, service: httpx.Client) -> None:
    page.open()
    page.search("a red car")
    first = page.page.locator(".tile[aria-posinset='1']")
    first.hover()
    first.get_by_title("More like this").click()
    page.settled()
    items = {item["name"]: item for item in service.get("items").json()["items"]}
    name = answered(service, {"text": "a red car"})[0]
    assert page.names() == answered(service, {"like": items[name]["id"]})[:5]
    expect(page.page.locator("#query")).to_have_value("")


# --- the URL ---


def test_the_url_holds_the_question(page: Watched, service: httpx.Client) -> None:
    page.open()
    page.search("an animal")
    page.page.get_by_role("button", name="without").click()
    page.page.keyboard.type("a dog")
    page.page.keyboard.press("Enter")
    page.page.get_by_label("Order").select_option("name-ascending")
    page.settled()
    shown, url = page.names(24), page.page.url
    assert shown == sorted(shown)
    other = watched(page.page.context.browser, page.base)  # type: ignore[arg-type]
    other.page.goto(url)
    other.settled()
    assert other.names(24) == shown
    expect(other.page.locator("#query")).to_have_value("an animal")
    expect(other.page.locator(".chip.minus")).to_have_text("a dog")
    other.page.context.close()
    page.page.go_back()
    page.settled()
    assert (
        page.names()
        == answered(service, {"text": "an animal"}, {"text": "a dog", "weight": -1})[:5]
    )
    page.page.go_back()
    page.settled()
    expect(page.page.locator(".chip")).to_have_count(0)
    assert page.names() == answered(service, {"text": "an animal"})[:5]


@pytest.mark.parametrize(
    "fragment",
    [
        "#q=%ff%fe&plus=&minus=&like=&image=!!!&where=&sort=nonsense&relevance=NaN&open=../../x",
        "#" + "&".join(f"plus={n}" for n in range(40)),
        "#like=AAAA",
        "#open=AAAA",
        "#image=AAAA",
        "#where=nonsense",
        "#q=" + "x" * 5000,
    ],
)
def test_a_broken_url_is_told_and_breaks_nothing(
    chromium: Browser, service: httpx.Client, fragment: str
) -> None:
    made = watched(chromium, str(service.base_url))
    made.open(fragment)
    made.page.wait_for_timeout(300)
    assert not [each for each in made.complaints if not each.startswith("Failed to load resource")]
    made.page.locator(".brand").click()
    made.settled()
    expect(made.page.locator(".summary")).to_have_text("24 items")
    made.page.context.close()


# --- filters, order, sizes ---


def test_filters_hold_and_can_be_taken_back(page: Watched) -> None:
    page.open("#q=a+dog")
    page.page.get_by_role("button", name="Filters").click()
    page.page.get_by_role("radio", name="Clips").check()
    page.settled()
    expect(page.page.locator(".notice")).to_contain_text("Nothing passes the filters")
    expect(page.page.locator(".condition")).to_have_text("clips")
    page.page.get_by_role("button", name="Search without filters").click()
    page.settled()
    expect(page.page.locator(".condition")).to_have_count(0)
    assert len(page.names()) == 5


def test_a_range_of_days_includes_its_last_day(page: Watched) -> None:
    page.open()
    page.page.get_by_role("button", name="Filters").click()
    page.page.get_by_label("from", exact=True).fill("2020-01-01")
    page.page.get_by_label("to", exact=True).fill("2020-12-31")
    page.settled()
    assert "where=after%3D2020-01-01&where=before%3D2021-01-01" in page.page.url
    texts = page.page.locator(".condition span").all_inner_texts()
    assert texts == ["from 2020-01-01", "to 2020-12-31"]
    expect(page.page.locator(".notice")).to_contain_text("Nothing passes the filters")


def test_results_are_put_in_order(page: Watched) -> None:
    page.open()
    page.page.get_by_label("Order").select_option("name-descending")
    page.settled()
    names = page.names(24)
    assert names == sorted(names, reverse=True)
    page.page.locator("#query").fill("a dog")
    page.page.get_by_label("Order").select_option("name-ascending")
    page.settled()
    names = page.names(24)
    assert names == sorted(names)


def test_sizes_change_and_are_remembered(page: Watched) -> None:
    page.open()
    tile = page.page.locator(".tile").first
    before = tile.bounding_box()
    page.page.locator("#size").fill("95")
    page.page.wait_for_timeout(200)
    after = tile.bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] > 1.5 * before["width"]
    page.open("#q=a+dog")
    again = page.page.locator(".tile").first.bounding_box()
    assert again is not None
    assert again["width"] == pytest.approx(after["width"], rel=0.05)


# --- one result ---


def test_a_result_is_looked_at_closely(page: Watched, service: httpx.Client) -> None:
    page.open("#q=a+dog")
    names = answered(service, {"text": "a dog"})
    page.page.locator(".tile[aria-posinset='2'] .open").click()
    detail = page.page.locator(".detail[open]")
    expect(detail.get_by_role("heading", level=2)).to_have_text(names[1])
    expect(detail).to_contain_text("Why it is here: number 2")
    expect(detail.locator(".reason")).not_to_have_count(0)
    expect(detail.get_by_label("Open the file")).to_have_attribute(
        "href", re.compile("^items/.*/original$")
    )
    assert "open=" in page.page.url
    # A link to it shows it again.
    page.page.goto("about:blank")
    page.page.go_back()
    expect(detail.get_by_role("heading", level=2)).to_have_text(names[1])
    page.page.keyboard.press("ArrowRight")
    expect(detail.get_by_role("heading", level=2)).to_have_text(names[2])
    page.page.keyboard.press("Escape")
    expect(detail).to_have_count(0)
    assert "open=" not in page.page.url


def test_where_it_matches_is_laid_over_the_whole_picture(page: Watched) -> None:
    page.open("#q=an+animal+with+stripes")
    page.page.locator(".tile .open").first.click()
    page.page.keyboard.press("w")
    shade = page.page.locator("canvas.shade")
    expect(shade).to_be_visible()
    covered, picture = shade.bounding_box(), page.page.locator(".large").bounding_box()
    assert covered == picture
    lightest, darkest = page.page.evaluate(
        """() => { const shade = document.querySelector("canvas.shade");
        const pixels = shade.getContext("2d").getImageData(0, 0, shade.width, shade.height).data;
        const alphas = pixels.filter((_, number) => number % 4 === 3);
        return [Math.min(...alphas), Math.max(...alphas)]; }"""
    )
    assert lightest < 40
    assert darkest > 120
    page.page.keyboard.press("w")
    expect(shade).to_have_count(0)


def test_a_part_of_a_picture_is_searched(page: Watched) -> None:
    page.open("#q=a+zebra")
    page.page.locator(".tile .open").first.click()
    box = page.page.locator(".large").bounding_box()
    assert box is not None
    page.page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"], steps=5)
    page.page.mouse.up()
    page.page.get_by_role("button", name="Search this part").click()
    expect(page.page.locator(".chip img")).to_be_visible()
    expect(page.page.locator(".detail[open]")).to_have_count(0)
    page.settled()
    assert len(page.names()) == 5


# --- keyboard ---


def test_everything_works_by_keyboard(page: Watched, service: httpx.Client) -> None:
    page.open("#q=a+dog")
    names = answered(service, {"text": "a dog"})
    press = page.page.keyboard.press
    focused = page.page.locator(".tile:focus-within .name")
    page.page.locator("#query").focus()
    press("ArrowDown")
    expect(focused).to_have_text(names[0])
    press("ArrowRight")
    expect(focused).to_have_text(names[1])
    columns = page.page.evaluate(
        """new Set([...document.querySelectorAll(".tile")]
        .map((tile) => tile.getBoundingClientRect().left)).size"""
    )
    press("ArrowDown")
    expect(focused).to_have_text(names[1 + columns])
    press("ArrowUp")
    press("ArrowLeft")
    expect(focused).to_have_text(names[0])
    press("Enter")
    expect(page.page.locator(".detail[open] h2")).to_have_text(names[0])
    press("ArrowRight")
    expect(page.page.locator(".detail[open] h2")).to_have_text(names[1])
    press("Escape")
    expect(focused).to_have_text(names[1])  # where one was
    press("m")
    page.settled()
    items = {item["name"]: item["id"] for item in service.get("items").json()["items"]}
    assert page.names() == answered(service, {"like": items[names[1]]})[:5]
    press("?")
    expect(page.page.get_by_role("dialog")).to_contain_text("How to search")
    press("Escape")
    press("/")
    expect(page.page.locator("#query")).to_be_focused()
    page.page.keyboard.type("a cat")
    page.settled()
    press("Escape")
    page.settled()
    expect(page.page.locator(".summary")).to_have_text("24 items")


def test_letters_in_the_box_are_letters(page: Watched) -> None:
    page.open()
    page.page.locator("#query").focus()
    page.page.keyboard.type("mow?+-/")
    expect(page.page.locator("#query")).to_have_value("mow?+-/")
    expect(page.page.locator("dialog[open]")).to_have_count(0)
    page.settled()


# --- looks ---


def test_dark_and_light_are_chosen_and_remembered(page: Watched) -> None:
    page.open()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.page.evaluate(ground)
    page.page.get_by_label("Light or dark").click()
    dark = page.page.evaluate(ground)
    assert light != dark
    page.open()
    assert page.page.evaluate(ground) == dark


PAIRS = [
    "--ink on --ground",
    "--soft on --ground",
    "--soft on --surface",
    "--soft on --well",
    "--accent on --tint",
    "--on-accent on --accent",
    "--plus on --plus-tint",
    "--minus on --minus-tint",
]
CONTRAST = """(PAIRS) => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgb = (name) => {
    canvas.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name);
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return PAIRS.map((pair) => {
    const [one, other] = pair.split(" on ").map((name) => light(rgb(name)));
    return [pair, (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(chromium: Browser, service: httpx.Client, scheme: str) -> None:
    """Contrast of at least 4.5, as WCAG 2 asks for."""
    made = watched(chromium, str(service.base_url), color_scheme=scheme)
    made.open()
    for pair, ratio in made.page.evaluate(CONTRAST, PAIRS):
        assert ratio >= 4.5, pair
    made.page.context.close()


def test_every_control_has_a_name(page: Watched) -> None:
    page.open("#q=a+dog&minus=a+cat&where=modality%3Dimage")
    page.page.get_by_role("button", name="Filters").click()
    nameless = """() => [...document.querySelectorAll("button, input, select, a[href]")]
      .filter((each) => each.checkVisibility() && !each.closest("[aria-hidden=true]"))
      .filter((each) => !each.getAttribute("aria-label") && !each.title)
      .filter((each) => !each.innerText?.trim() && !each.labels?.length)
      .map((each) => each.outerHTML.slice(0, 120))"""
    assert page.page.evaluate(nameless) == []
    page.page.locator(".brand").press("Escape")
    page.page.locator(".tile .open").first.click()
    expect(page.page.locator(".detail[open]")).to_be_visible()
    assert page.page.evaluate(nameless) == []


@pytest.mark.parametrize("width", [320, 390, 820])
def test_a_phone_shows_everything(chromium: Browser, service: httpx.Client, width: int) -> None:
    phone = watched(
        chromium,
        str(service.base_url),
        viewport={"width": width, "height": 700},
        has_touch=True,
        is_mobile=True,
    )
    phone.open("#q=a+dog&plus=snow&minus=a+very+long+part+of+a+question&where=modality%3Dimage")
    box, pick = (phone.page.locator(each).bounding_box() for each in ("#query", "[data-do=pick]"))
    assert box is not None and pick is not None
    assert abs(box["y"] - pick["y"]) < box["height"]  # beside each other
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert phone.page.evaluate(wide) <= 0
    assert len(phone.names()) == 5
    phone.page.locator(".tile .open").first.tap()
    expect(phone.page.locator(".detail[open] h2")).to_be_visible()
    assert phone.page.evaluate(wide) <= 0
    phone.page.locator(".detail[open]").get_by_role("button", name="More like this").tap()
    phone.settled()
    expect(phone.page.locator(".chip")).to_have_count(1)
    assert phone.complaints == []
    phone.page.context.close()


def test_nothing_comes_from_outside(page: Watched) -> None:
    page.open("#q=a+dog")
    page.page.locator(".tile .open").first.click()
    expect(page.page.locator(".detail[open]")).to_be_visible()
    page.page.wait_for_timeout(300)
    assert len(page.requests) > 10
    for url in page.requests:
        assert url.startswith((page.base, "about:", "data:", "blob:")), url
