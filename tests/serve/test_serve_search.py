"""Searching over HTTP gives what searching the index gives, and refuses what makes no sense."""

from __future__ import annotations

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import encoded, picture_bytes, serving

from costream.encoders.storage import load
from costream.index import Index, Item
from costream.index.reembedding import migrate_index
from costream.index.thumbnails import thumbnail_folder


def search(client: httpx.Client, *terms: dict[str, Any], **others: Any) -> httpx.Response:
    return client.post("search", json={"terms": list(terms), **others})


def names(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [result["name"] for result in answer.json()["results"]]


def test_words_find_what_the_index_finds(
    client: httpx.Client, shared_index_dir: Path, tiny_model_dir: Path
) -> None:
    model = load(tiny_model_dir)
    with Index.open(shared_index_dir) as index:
        for text in ("red", "a green field", "日本語", "x' OR 1=1; --", "\x00\x01"):
            ranking = index.search(model.encode_texts([text]), model.space, 10)
            got = search(client, {"text": text}, hybrid=False).json()["results"]
            assert [result["path"] for result in got] == list(ranking.ids[0])
            assert [result["rank"] for result in got] == [1, 2, 3]
            np.testing.assert_allclose(
                [result["reasons"]["vectors"] for result in got], ranking.scores[0], atol=1e-4
            )


def test_a_url_asks_the_same_as_a_body(client: httpx.Client, items: dict[str, Any]) -> None:
    token = items["blue.png"]["id"]
    by_url = client.get(
        "search",
        params={"q": "red", "plus": ["a", "b"], "minus": "green", "like": token, "top": 2},
    )
    by_body = search(
        client,
        *({"text": text} for text in ("red", "a", "b")),
        {"text": "green", "weight": -1.0},
        {"like": token},
        top=2,
    )
    assert names(by_url) == names(by_body)
    assert [r["score"] for r in by_url.json()["results"]] == [
        r["score"] for r in by_body.json()["results"]
    ]


def test_an_indexed_picture_finds_itself_first(client: httpx.Client, items: dict[str, Any]) -> None:
    for name, item in items.items():
        content = base64.b64encode(Path(item["path"]).read_bytes()).decode()
        first = search(client, {"image": content}).json()["results"][0]
        assert first["name"] == name
        assert first["score"] == pytest.approx(1.0, abs=2e-3)


def test_similar_leaves_the_item_itself_out(client: httpx.Client, items: dict[str, Any]) -> None:
    for name, item in items.items():
        similar = client.post("similar", json={"id": item["id"], "top": 2})
        assert sorted(names(similar)) == sorted(set(items) - {name})
        assert names(similar) == names(search(client, {"like": item["id"]}))[:2]


def test_a_region_is_what_counts(client: httpx.Client, items: dict[str, Any]) -> None:
    """Half red, half green: the halves find red and green, not the same."""
    halves = Image.new("RGB", (640, 480))
    for number, name in enumerate(("red.png", "green.png")):
        halves.paste(Image.open(items[name]["path"]).crop((0, 0, 320, 480)), (320 * number, 0))
    left = search(client, {"image": encoded(halves), "region": [0, 0, 0.5, 1]})
    right = search(client, {"image": encoded(halves), "region": [0.5, 0, 1, 1]})
    assert names(left)[0] == "red.png"
    assert names(right)[0] == "green.png"


def test_pages_of_results_fit_together(client: httpx.Client) -> None:
    whole = search(client, {"text": "red"}, top=3).json()["results"]
    pages = [search(client, {"text": "red"}, top=1, offset=n).json()["results"] for n in range(4)]
    assert [page[0] for page in pages[:3]] == whole
    assert pages[3] == []


def test_filters_hold(client: httpx.Client, items: dict[str, Any]) -> None:
    path = items["red.png"]["path"]
    assert names(search(client, {"text": "green"}, where=[f"path={path}"])) == ["red.png"]
    token = items["blue.png"]["id"]
    assert names(search(client, {"text": "green"}, where=[f"id={token}"])) == ["blue.png"]
    assert names(search(client, {"text": "green"}, where=["id=nothing"])) == []
    assert names(search(client, {"text": "green"}, where=["modality=video"])) == []
    assert client.get("items", params={"where": f"id={token}"}).json()["total"] == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "terms: Field required"),
        ({"terms": []}, "at least 1 item"),
        ({"terms": [{}]}, "one of text, image, url, like"),
        ({"terms": ["a dog"]}, "one of text, image, url, like"),
        ({"terms": [{"text": ""}]}, "at least 1 character"),
        ({"terms": [{"text": "  \n"}]}, "pattern"),
        ({"terms": [{"text": "x" * 4001}]}, "at most 4000"),
        ({"terms": [{"text": 3}]}, "valid string"),
        ({"terms": [{"text": "a", "image": "b"}]}, "not permitted"),
        ({"terms": [{"text": "a", "weight": 0}]}, "weight 0"),
        ({"terms": [{"text": "a", "weight": 1e9}]}, "less than or equal to 100"),
        ({"terms": [{"text": "a", "weight": "1"}]}, "valid number"),
        ({"terms": [{"text": "a"}] * 17}, "at most 16"),
        ({"terms": [{"text": "a"}, {"text": "a", "weight": -1}]}, "cancel"),
        ({"terms": [{"text": "a"}], "top": 0}, "greater than or equal to 1"),
        ({"terms": [{"text": "a"}], "top": 10**9}, "less than or equal to 1000"),
        ({"terms": [{"text": "a"}], "top": 10**30}, "valid integer"),
        ({"terms": [{"text": "a"}], "top": 1.5}, "valid integer"),
        ({"terms": [{"text": "a"}], "top": True}, "valid integer"),
        ({"terms": [{"text": "a"}], "offset": -1}, "greater than or equal to 0"),
        ({"terms": [{"text": "a"}], "min_relevance": 2}, "less than or equal to 1"),
        ({"terms": [{"text": "a"}], "wehre": []}, "not permitted"),
        ({"terms": [{"text": "a"}], "where": ["nonsense"]}, "KEY=VALUE"),
        ({"terms": [{"text": "a"}], "where": ["after=yesterday"]}, "date"),
        ({"terms": [{"text": "a"}], "where": ["modality=smell"]}, "modality"),
        ({"terms": [{"image": "no base64!"}]}, "base64"),
        ({"terms": [{"image": "data:image/png;base64,AAAA"}]}, "base64"),
        ({"terms": [{"image": "AAAA"}]}, "expected a picture"),
        ({"terms": [{"image": "AAAA", "region": [0, 0, 1]}]}, "at least 4"),
        ({"terms": [{"like": "../../etc/passwd"}]}, "pattern"),
        ({"terms": [{"url": "http://localhost/a.png"}]}, "fetches nothing"),
        (["a"], "valid dictionary"),
        ("a", "valid dictionary"),
        (None, "required"),
    ],
)
def test_nonsense_is_refused_in_words(client: httpx.Client, body: Any, words: str) -> None:
    answer = client.post("search", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    told = " ".join([problem["detail"], problem.get("hint", ""), *problem.get("errors", [])])
    assert words in told
    assert problem["status"] == 422


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"terms":[{"text":"a","weight":NaN}]}',
        b'{"terms":[{"text":"a","weight":Infinity}]}',
        b'{"terms":[{"text":"a","weight":1e999}]}',
        b'{"terms":[{"text":"\\ud800"}]}',
        b"[" * 100_000,
        b'{"terms":' * 5000 + b"1" + b"}" * 5000,
        b'{"terms":[{"text":"a"}],"top":' + b"9" * 5000 + b"}",
        b'{"terms":[{"text":"a"}],"min_relevance":' + b"9" * 400 + b"}",
        b'{"terms":[{"text":"a"}]}{',
        b"1",
        b"null",
    ],
)
def test_broken_json_is_no_defect(client: httpx.Client, body: bytes) -> None:
    answer = client.post("search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text[:300]
    assert answer.json()["detail"]
    assert len(answer.content) < 10_000


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE items; --",
        '" OR name MATCH "*',
        "NEAR(a b, 2)",
        "a AND NOT",
        "name:*",
        '"""',
        "(((((",
        "^a -b +c *",
        "%s %n {0} ${x} `id`",
        "../../../etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "<script>alert(1)</script>",
        "\u202e\u0000\ufffd" * 50,
        "🦊" * 1000,
    ],
)
def test_whatever_people_type_is_words(client: httpx.Client, text: str) -> None:
    for answer in (search(client, {"text": text}), client.get("search", params={"q": text})):
        assert len(names(answer)) == 3
    for condition in (f"tag={text}", f"camera.model={text}", f"{text}=1"):
        answer = search(client, {"text": "red"}, where=[condition[:900]])
        assert answer.status_code in (200, 422)


@pytest.mark.parametrize("kind", ["1x1", "1xN", "animated", "16 bit", "CMYK", "polyglot"])
def test_odd_pictures_are_pictures(client: httpx.Client, kind: str) -> None:
    content = base64.b64encode(picture_bytes(kind)).decode()
    assert len(names(search(client, {"image": content}))) == 3


@pytest.mark.parametrize("kind", ["bomb", "svg", "truncated", "pdf", "eps", "nothing"])
def test_what_is_no_picture_is_refused_and_harms_nobody(client: httpx.Client, kind: str) -> None:
    content = base64.b64encode(picture_bytes(kind) or b"\0").decode()
    good = encoded(Image.new("RGB", (64, 64), "red"))
    with ThreadPoolExecutor(8) as pool:
        asked = [content if n % 4 == 0 else good for n in range(16)]
        answers = list(pool.map(lambda image: search(client, {"image": image}), asked))
    for number, answer in enumerate(answers):
        assert answer.status_code == (422 if number % 4 == 0 else 200), answer.text
    assert "costream" not in answers[0].json()["detail"]


def test_concurrent_answers_equal_those_one_at_a_time(client: httpx.Client) -> None:
    """Nobody gets the answer to another's question."""
    texts = [f"red {n} green {n * n}" for n in range(60)]
    alone = {text: names(search(client, {"text": text})) for text in texts}
    scores = {text: search(client, {"text": text}).json()["results"][0]["score"] for text in texts}
    fresh = [f"{text} " for text in texts]  # not in the cache, and the same to the tokenizer
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda text: search(client, {"text": text}), fresh))
    for text, answer in zip(texts, answers, strict=True):
        assert names(answer) == alone[text]
        assert answer.json()["results"][0]["score"] == pytest.approx(scores[text], abs=1e-5)


def test_another_process_changes_the_index_and_the_service_follows(
    index_dir: Path, tiny_model_dir: Path
) -> None:
    with serving(index_dir, tiny_model_dir) as client:
        assert len(names(search(client, {"text": "red"}))) == 3
        assert client.get("items").json()["total"] == 3
        model = load(tiny_model_dir)
        with Index.open(index_dir) as index:
            index.add([Item(id="new")], model.encode_texts(["red"]), model.space)
            assert "new" in names(search(client, {"text": "red"}))
            index.remove(index.ids())
        assert names(search(client, {"text": "red"})) == []


def test_another_model_of_the_index_is_loaded(
    index_dir: Path, tiny_model_dir: Path, other_model_dir: Path
) -> None:
    """The index is emptied and filled with the vectors of another model while it is served."""
    other = load(other_model_dir)
    served = [tiny_model_dir]
    with serving(index_dir, served) as client:
        assert client.get("about").json()["model"] == "tiny"
        with Index.open(index_dir) as index:
            index.remove(index.ids())
            served[0] = other_model_dir
            index.add([Item(id="new")], other.encode_texts(["red"]), other.space)
        for _ in range(100):
            answer = search(client, {"text": "red"})
            if answer.status_code == 200:
                break
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            time.sleep(0.1)
        assert names(answer) == ["new"]
        assert client.get("about").json()["model"] == "other"


def test_a_model_that_comes_back_is_answered_with(
    index_dir: Path, tiny_model_dir: Path, other_model_dir: Path
) -> None:
    """The service has one model only; the index is moved to another one, and back."""
    with serving(index_dir, tiny_model_dir) as client, Index.open(index_dir) as index:
        before = index.space
        assert before is not None
        migrate_index(index, load(other_model_dir))
        until(client, 503, "start it again without --model")
        index.switch_space(before)
        assert len(names(until(client, 200))) == 3


def test_a_thumbnail_that_cannot_be_removed_keeps_the_service_from_nothing(
    index_dir: Path, tiny_model_dir: Path, other_model_dir: Path
) -> None:
    (thumbnail_folder(index_dir) / "ab" / "a folder in its place").mkdir(parents=True)
    served = [tiny_model_dir]
    with serving(index_dir, served) as client, Index.open(index_dir) as index:
        assert len(names(search(client, {"text": "red"}))) == 3
        served[0] = other_model_dir
        migrate_index(index, load(other_model_dir))
        assert len(names(until(client, 200))) == 3
        assert client.get("about").json()["model"] == "other"


def until(client: httpx.Client, status: int, words: str = "") -> httpx.Response:
    """The first such answer, which comes when the service has noticed what changed."""
    for _ in range(150):
        answer = search(client, {"text": "red"})
        if answer.status_code == status and words in answer.text:
            return answer
        time.sleep(0.1)
    raise AssertionError(answer.text)


def test_an_index_that_is_gone_is_a_problem_and_no_defect(
    index_dir: Path, tiny_model_dir: Path
) -> None:
    with serving(index_dir, tiny_model_dir) as client:
        database = index_dir / "index.sqlite"
        database.rename(index_dir / "elsewhere")
        (index_dir / "index.sqlite").write_bytes(b"this is no database" * 1000)
        answer = search(client, {"text": "red"})
        assert answer.status_code == 503
        assert str(index_dir) not in answer.text
        assert client.get("ready").status_code == 503
        assert client.get("health").status_code == 200
        (index_dir / "elsewhere").replace(database)
        assert len(names(search(client, {"text": "red"}))) == 3


def test_an_empty_index_answers(tmp_path: Path, tiny_model_dir: Path) -> None:
    with Index.open(tmp_path / "index", create=True):
        pass
    with serving(tmp_path / "index", tiny_model_dir) as client:
        assert search(client, {"text": "red"}).json()["results"] == []
        assert client.get("items").json() == {"items": [], "total": 0}
        assert client.get("ready").status_code == 200


def test_answers_hold_json_only(client: httpx.Client) -> None:
    """No NaN, which json.dumps would write and no browser reads."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(search(client, {"text": "red"}).content, parse_constant=refuse)
