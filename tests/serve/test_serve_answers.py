"""Over HTTP a question gets the answer that it gets everywhere, and the reason for it."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import GALLERY, encoded, serving

import costream
from clip_maker import cuts, write_clip
from costream.encoders.dual import DualEncoder
from costream.index import Index, Item, parse_filter, update_index
from costream.search import Like, Picture, Query, Searcher, Words

Program = Any  # of tests/conftest.py, which cannot be imported
WORDS = "a dog outside"


def ask(client: httpx.Client, *terms: dict[str, Any], **others: Any) -> dict[str, Any]:
    answer = client.post("search", json={"terms": list(terms), **others})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def names(answer: dict[str, Any]) -> list[str]:
    return [result["name"] for result in answer["results"]]


@pytest.fixture(scope="module")
def ids(service: httpx.Client) -> dict[str, str]:
    return {item["name"]: item["id"] for item in service.get("items").json()["items"]}


# --- the same as everywhere ---


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (["a dog outside"], {"q": "a dog outside"}),
        (["red car", "--no-names"], {"q": "red car", "hybrid": "false"}),
        (["dog", "--plus", "snow", "--minus", "a drawing"], {"q": "dog", "plus": "snow"}),
        (["a sunset", "--offset", "2", "--top", "4"], {"q": "a sunset", "offset": 2, "top": 4}),
        (["a horse", "--where", "after=2001"], {"q": "a horse", "where": "after=2001"}),
        (
            ["a submarine", "--min-relevance", "0.2", "--collapse-duplicates"],
            {"q": "a submarine", "min_relevance": 0.2, "collapse_duplicates": True},
        ),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_the_program_and_the_service_answer_alike(
    service: httpx.Client,
    gallery_dir: Path,
    costream_program: Program,
    words: list[str],
    parameters: dict[str, Any],
) -> None:
    if "--minus" in words:
        parameters = parameters | {"minus": words[words.index("--minus") + 1]}
    ran = costream_program.here(
        "search", *words, "--index", gallery_dir, "--json", cwd=gallery_dir, code=0
    )
    told = ran.json
    got = service.get("search", params=parameters).json()
    shown = ("rank", "path", "modality", "span")
    for one, other in zip(told["results"], got["results"], strict=True):
        assert {name: one[name] for name in shown} == {name: other[name] for name in shown}
        for name in ("score", "relevance"):
            assert one[name] == pytest.approx(other[name], abs=1e-5)
        assert one["reasons"] == pytest.approx(other["reasons"], abs=1e-5)
    for name in ("exact", "recall", "kernel", "total", "nothing_relevant", "unjudged"):
        assert told[name] == got[name]


def test_a_searcher_and_the_service_answer_alike(
    service: httpx.Client, gallery_dir: Path, ids: dict[str, str]
) -> None:
    """Everything at once: weights, a picture, a part of one, an item, conditions, a second page."""
    husky = (GALLERY / "husky.jpg").read_bytes()
    path = str(GALLERY / "kitten.jpg")
    query = Query(
        terms=(
            Words(WORDS, weight=0.7),
            Words("a drawing", weight=-0.4),
            Picture(husky, weight=0.5),
            Picture(husky, region=(0.25, 0.0, 1.0, 0.5)),
            Like(path, weight=-0.3),
        ),
        where=parse_filter(["modality=image", "after=2000"]),
        top=5,
        offset=2,
        collapse_duplicates=True,
    )
    picture = base64.b64encode(husky).decode()
    got = ask(
        service,
        {"text": WORDS, "weight": 0.7},
        {"text": "a drawing", "weight": -0.4},
        {"image": picture, "weight": 0.5},
        {"image": picture, "region": [0.25, 0, 1, 0.5]},
        {"like": ids["kitten.jpg"], "weight": -0.3},
        where=["modality=image", "after=2000"],
        top=5,
        offset=2,
        collapse_duplicates=True,
    )
    with Index.open(gallery_dir) as index:
        answer = Searcher(index, costream.load("cots-mini")).answer(query)
    assert [result["path"] for result in got["results"]] == [each.path for each in answer.results]
    assert [result["rank"] for result in got["results"]] == [3, 4, 5, 6, 7]
    for one, other in zip(got["results"], answer.results, strict=True):
        assert one["score"] == pytest.approx(other.score, abs=1e-3)  # other arithmetic
        assert one["relevance"] == pytest.approx(other.relevance, abs=5e-3)
    assert set(got["seconds"]) == {"encode", "judge", "search", "sift", "look up"}


def test_what_fits_nothing_is_said_to(service: httpx.Client) -> None:
    assert not ask(service, {"text": "a husky dog"})["nothing_relevant"]
    answer = ask(service, {"text": "people in an office"})
    assert answer["nothing_relevant"]
    assert len(answer["results"]) == 10
    least = max(result["relevance"] for result in answer["results"]) + 0.01
    cut = ask(service, {"text": "people in an office"}, min_relevance=least)
    assert cut["nothing_relevant"]
    assert cut["results"] == []


def test_the_least_relevance_is_kept_to(service: httpx.Client) -> None:
    whole = ask(service, {"text": WORDS}, top=24)["results"]
    middle = whole[3]["relevance"]
    kept = ask(service, {"text": WORDS}, top=24, min_relevance=middle - 1e-6)["results"]
    assert [each["id"] for each in kept] == [
        each["id"] for each in whole if each["relevance"] >= middle
    ]
    assert 0 < len(kept) < len(whole)


def test_names_count_unless_they_are_not_to(service: httpx.Client) -> None:
    """The picture's name has the words; nothing else does."""
    by_name = ask(service, {"text": "black dog in woods"})["results"][0]
    assert by_name["name"] == "black_dog_in_woods.jpg"
    assert by_name["reasons"]["named"] == 1.0
    assert by_name["relevance"] == 1.0
    seen = ask(service, {"text": "black dog in woods"}, hybrid=False)["results"][0]
    assert set(seen["reasons"]) == {"vectors"}


def test_near_duplicates_are_shown_once(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("husky", "kitten", "red_car"):
        shutil.copy(GALLERY / f"{name}.jpg", pictures)
    with Image.open(GALLERY / "husky.jpg") as husky:
        husky.resize((husky.width // 2, husky.height // 2)).save(pictures / "again.jpg")
    with Index.open(tmp_path / "index", create=True) as index:
        update_index(index, costream.load("cots-mini"), [pictures])
    with serving(tmp_path / "index", Path("cots-mini")) as client:
        assert len(ask(client, {"text": WORDS})["results"]) == 4
        answer = ask(client, {"text": WORDS}, collapse_duplicates=True)
        assert len(answer["results"]) == 3
        first = answer["results"][0]
        assert {first["name"]} < {"husky.jpg", "again.jpg"}
        (other,) = (client.get(f"items/{token}").json() for token in first["duplicates"])
        assert {first["name"], other["name"]} == {"husky.jpg", "again.jpg"}


# --- why ---


def explained(client: httpx.Client, token: str, *terms: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("explain", json={"id": token, "terms": list(terms)})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_the_parts_that_match_are_where_the_thing_is(tmp_path: Path) -> None:
    """A cat and a car side by side: each question rests on its own half."""
    both = Image.new("RGB", (480, 240))
    for number, name in enumerate(("cat_face", "red_car")):
        with Image.open(GALLERY / f"{name}.jpg") as picture:
            both.paste(picture.convert("RGB").resize((240, 240)), (240 * number, 0))
    both.save(tmp_path / "both.jpg")
    with Index.open(tmp_path / "index", create=True) as index:
        update_index(index, costream.load("cots-mini"), [tmp_path / "both.jpg"])
    with serving(tmp_path / "index", Path("cots-mini")) as client:
        assert client.get("about").json()["explains"]
        (item,) = client.get("items").json()["items"]
        for text, half in (("a cat", 0), ("a red car", 1)):
            found = explained(client, item["id"], {"text": text})
            grid = np.maximum(found["grid"], 0)
            middle = grid.shape[1] // 2
            halves = grid[:, :middle].sum(), grid[:, -middle:].sum()
            assert halves[half] > halves[1 - half]
            left, top, right, bottom = found["region"]
            assert 0 <= left < right <= 1
            assert 0 <= top < bottom <= 1
            (result,) = ask(client, {"text": text})["results"]
            assert found["score"] == pytest.approx(result["score"], abs=2e-2)
            assert found["reasons"]["vectors"] == pytest.approx(result["score"], abs=1e-5)


def test_an_item_of_the_question_is_explained_too(
    service: httpx.Client, ids: dict[str, str]
) -> None:
    found = explained(service, ids["husky.jpg"], {"like": ids["husky.jpg"]})
    assert found["reasons"] == {}
    assert found["score"] == pytest.approx(1, abs=2e-2)


def test_a_changed_file_is_not_explained_as_what_it_was(
    index_dir: Path, tiny_model_dir: Path
) -> None:
    with serving(index_dir, tiny_model_dir) as client:
        item = client.get("items").json()["items"][0]
        Image.new("RGB", (50, 50)).save(item["path"])
        answer = client.post("explain", json={"id": item["id"], "terms": [{"text": "red"}]})
        assert answer.status_code == 409
        Path(item["path"]).unlink()
        answer = client.post("explain", json={"id": item["id"], "terms": [{"text": "red"}]})
        assert answer.status_code == 404
        unknown = client.post("explain", json={"id": "bm8", "terms": [{"text": "red"}]})
        assert unknown.status_code == 404


# --- clips ---


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service of one clip: two seconds of a cat, then two of a car."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "clip.mp4", cuts(["cat_face", "red_car"], 2.0))
    with Index.open(folder / "index", create=True) as index:
        update_index(index, costream.load("cots-mini"), [folder / "clip.mp4"])
    with serving(folder / "index", Path("cots-mini")) as client:
        yield client


def opened(client: httpx.Client, address: str) -> Image.Image:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content)).convert("RGB")


def distance(one: Image.Image, name: str) -> float:
    with Image.open(GALLERY / f"{name}.jpg") as picture:
        other = picture.convert("RGB").resize(one.size)
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def test_a_clip_is_shown_at_the_moment_that_was_found(clips: httpx.Client) -> None:
    for text, name, other in (("a cat", "cat_face", "red_car"), ("a car", "red_car", "cat_face")):
        (result,) = ask(clips, {"text": text})["results"]
        picture = opened(clips, result["thumbnail"])
        assert distance(picture, name) < 0.5 * distance(picture, other)
        start, end = result["span"]
        assert (end <= 2.01) if name == "cat_face" else (start >= 1.99)
        assert opened(clips, f"{result['thumbnail']}&size=320").size == picture.size


def test_a_clip_without_a_moment_is_shown_at_its_begin(clips: httpx.Client) -> None:
    (item,) = clips.get("items").json()["items"]
    picture = opened(clips, item["thumbnail"])
    assert distance(picture, "cat_face") < 0.5 * distance(picture, "red_car")


def test_asking_for_any_moment_fills_no_disk(clips: httpx.Client) -> None:
    """There are no more thumbnails than moments, whatever numbers clients think of."""
    (item,) = clips.get("items").json()["items"]
    tags = set()
    for number in range(40):
        answer = clips.get(item["thumbnail"], params={"at": number / 7})
        assert answer.status_code == 200
        tags.add(answer.headers["etag"])
    assert len(tags) <= 4
    for wrong in ("-1", "nan", "inf", "x", "1e99"):
        assert clips.get(item["thumbnail"], params={"at": wrong}).status_code == 422


def test_a_clip_is_explained_at_its_moment(clips: httpx.Client) -> None:
    (item,) = clips.get("items").json()["items"]
    found = explained(clips, item["id"], {"text": "a car"})
    assert found["span"][0] >= 1.99
    assert found["grid"] is not None


def test_a_broken_clip_harms_nothing(
    tmp_path: Path, tiny_model: DualEncoder, tiny_model_dir: Path
) -> None:
    """A file that is no clip any more, in a process of its own, is a problem with words."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(5000))
    item = Item(id="clip", path=str(path), modality="video", size=path.stat().st_size)
    vectors = tiny_model.encode_texts(["red"])
    with Index.open(tmp_path / "index", create=True) as index:
        index.add_moments(
            [item], vectors, np.zeros(1, np.int64), np.array([[0.0, 1.0]]), tiny_model.space
        )
    with serving(tmp_path / "index", tiny_model_dir) as client:
        (result,) = ask(client, {"text": "red"})["results"]
        answer = client.get(result["thumbnail"])
        assert answer.status_code == 415
        assert str(tmp_path) not in answer.text
        assert "/proc/" not in answer.text
        assert ask(client, {"image": encoded(Image.new("RGB", (9, 9)))})["results"]
