"""Who may ask, and from where."""

from __future__ import annotations

import logging
import statistics
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import KEY, get, raw, serving

from costream.errors import ConfigError
from costream.serve.ids import PublicIds
from costream.serve.keys import KeyRing, Sessions, read_keys
from costream.serve.security import check_host
from costream.serve.settings import ServeSettings

# --- names: against DNS rebinding ---


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"localhost", 200),
        (b"LOCALHOST:1234", 200),
        (b"127.0.0.1", 200),
        (b"[::1]:80", 200),
        (b"attacker.example", 421),
        (b"localhost.attacker.example", 421),
        (b"192.168.1.5", 421),
        (b"", 400),
        (b"local host", 400),
        (b"localhost\x00", 400),
        (b"a@localhost", 400),
    ],
)
def test_only_calls_by_our_own_name_are_answered(
    client: httpx.Client, host: bytes, status: int
) -> None:
    answer = raw(client, get(b"/about", host=host))
    assert int(answer.split(b" ")[1]) == status


def test_two_host_headers_are_refused(client: httpx.Client) -> None:
    answer = raw(client, get(b"/about", b"Host: attacker.example"))
    assert b" 400 " in answer.split(b"\r\n")[0]


def test_a_name_can_be_allowed_and_addresses_are_known_beyond_this_machine() -> None:
    outside = ServeSettings(host="0.0.0.0", keys=KeyRing([KEY]), allowed_hosts=("Photos.example",))  # noqa: S104
    for host in ("photos.example", "photos.example:8443", "10.0.0.7", "[2001:db8::1]:80"):
        check_host({"host": [host]}, outside)
    with pytest.raises(Exception, match=r"attacker\.example"):
        check_host({"host": ["attacker.example"]}, outside)


# --- origins: against forged requests ---


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "{own}"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
    ],
)
def test_pages_of_other_sites_can_ask_for_nothing(
    client: httpx.Client, headers: dict[str, str], status: int
) -> None:
    own = str(client.base_url).rstrip("/")
    sent = {name: value.format(own=own) for name, value in headers.items()}
    assert client.get("about", headers=sent).status_code == status
    search = client.post("search", json={"terms": [{"text": "red"}]}, headers=sent)
    assert search.status_code == status


def test_a_link_on_another_site_may_open_the_page_only(client: httpx.Client) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200
    assert client.get("items", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_bodies_that_a_foreign_form_can_send_are_refused(client: httpx.Client, kind: str) -> None:
    answer = client.post("search", content=b'{"terms":[]}', headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


def test_no_answer_allows_other_origins(client: httpx.Client) -> None:
    asked = client.options(
        "search",
        headers={"Origin": str(client.base_url), "Access-Control-Request-Method": "POST"},
    )
    for answer in (asked, client.get("about"), client.get("nowhere")):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_every_answer_has_the_headers_that_keep_browsers_safe(client: httpx.Client) -> None:
    for path in ("/", "about", "nowhere", "items/AAAA", "metrics", "web/none.js"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "unsafe" not in policy, path
        assert "server" not in headers, path


# --- keys ---


def test_other_machines_need_keys() -> None:
    for host in ("0.0.0.0", "192.168.1.5", "photos.example", "::"):  # noqa: S104
        with pytest.raises(ConfigError, match="API keys"):
            ServeSettings(host=host)
        assert not ServeSettings(host=host, keys=KeyRing([KEY])).shows_paths
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"):
        assert ServeSettings(host=host).shows_paths
        assert not ServeSettings(host=host, keys=KeyRing([KEY])).shows_paths


def test_a_key_file_has_one_key_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# mine\n\n  {KEY}  \nanother-key-of-some-length\n")
    ring = read_keys(path)
    assert len(ring) == 2
    assert ring.matches(KEY)
    assert ring.matches("another-key-of-some-length")
    assert not ring.matches("# mine")
    assert not ring.matches("")
    for content, words in (("", "no key"), ("short\n", "at least 16"), ("# none\n", "no key")):
        path.write_text(content)
        with pytest.raises(ConfigError, match=words):
            read_keys(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_keys(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "absent")


@given(st.text(min_size=1), st.text())
def test_only_the_very_key_matches(one: str, other: str) -> None:
    ring = KeyRing([KEY + one])
    assert ring.matches(KEY + one)
    assert ring.matches(KEY + other) == (one == other)
    assert KEY not in repr(ring)


def test_the_time_of_a_refusal_does_not_tell_how_near_a_key_was() -> None:
    """A comparison that stops at the first wrong letter tells the key letter by letter."""
    key = "k" * 4096
    ring = KeyRing([key, *(f"{n}-{'x' * 30}" for n in range(50))])
    wrong = {"first letter": "x" + key[1:], "last letter": key[:-1] + "x"}
    times: dict[str, list[float]] = {name: [] for name in wrong}
    for _ in range(300):
        for name, guess in wrong.items():  # in turn, so that the machine's moods hit both alike
            begin = time.perf_counter()
            assert not ring.matches(guess)
            times[name].append(time.perf_counter() - begin)
    first, last = (statistics.median(each) for each in times.values())
    assert abs(first - last) < 0.1 * min(first, last)


@pytest.fixture(scope="module")
def guarded(shared_index_dir: Path, tiny_model_dir: Path) -> object:
    settings = ServeSettings(port=0, keys=KeyRing([KEY]))
    with serving(shared_index_dir, tiny_model_dir, settings) as client:
        yield client


def test_without_a_key_nothing_of_the_collection_is_seen(guarded: httpx.Client) -> None:
    item = guarded.get("items", headers={"X-API-Key": KEY}).json()["items"][0]
    closed = ["items", "search?q=red", "about", "metrics", "v1/models", "items/AAAA"]
    closed += [item["thumbnail"], item["original"], f"items/{item['id']}"]
    for path in closed:
        for headers in ({}, {"Authorization": "Bearer wrong-wrong-wrong"}, {"X-API-Key": ""}):
            answer = guarded.get(path, headers=headers)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer" in answer.json()["hint"]
        assert guarded.get(path, headers={"Authorization": f"Bearer {KEY}"}).status_code in (
            200,
            404,
        )
    for path in ("search", "similar", "embed", "v1/embeddings"):
        assert guarded.post(path, json={}).status_code == 401
    for path in ("/", "health", "ready", "openapi.json"):
        assert guarded.get(path).status_code == 200


def test_a_browser_gets_a_session_for_its_key(guarded: httpx.Client) -> None:
    with httpx.Client(base_url=guarded.base_url) as browser:
        assert browser.post("session", json={"key": "wrong-wrong-wrong"}).status_code == 401
        begun = browser.post("session", json={"key": KEY})
        assert begun.status_code == 204
        cookie = begun.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert KEY not in cookie
        item = browser.get("items").json()["items"][0]
        assert browser.get(item["thumbnail"]).status_code == 200
        assert browser.delete("session").status_code == 204
        browser.cookies.set("costream_session", cookie.split("=")[1].split(";")[0])
        assert browser.get("items").status_code == 401


def test_sessions_are_forgotten_and_bounded() -> None:
    sessions = Sessions()
    first = sessions.begin("me")
    assert sessions.owner(first) == "me"
    for _ in range(1000):
        last = sessions.begin("you")
    assert sessions.owner(first) is None
    assert sessions.owner(last) == "you"
    sessions.end(last)
    assert sessions.owner(last) is None


def test_paths_are_for_the_owner_only(
    guarded: httpx.Client, client: httpx.Client, shared_index_dir: Path
) -> None:
    folder = str(shared_index_dir.parent)
    asked = guarded.get("search?q=red", headers={"X-API-Key": KEY})
    assert asked.status_code == 200
    assert folder not in asked.text
    own = client.get("search?q=red").json()["results"][0]
    other = asked.json()["results"][0]
    assert own["path"].startswith(folder)
    assert other["path"] is None
    # Nor in the ids, which are paths when they are readable.
    for token in (other["id"], other["thumbnail"].split("/")[1]):
        assert PublicIds(None).id(token) not in (None, own["path"])
        assert folder not in (PublicIds(None).id(token) or "")
    refused = guarded.get(
        "search", params={"q": "red", "where": "path=/"}, headers={"X-API-Key": KEY}
    )
    assert refused.status_code == 422


def test_ids_stay_the_same_over_a_restart(index_dir: Path, tiny_model_dir: Path) -> None:
    settings = ServeSettings(port=0, keys=KeyRing([KEY]))
    seen = []
    for _ in range(2):
        with serving(index_dir, tiny_model_dir, settings) as client:
            seen.append(client.get("items", headers={"X-API-Key": KEY}).json()["items"])
    assert seen[0] == seen[1]
    assert (index_dir / "serve.secret").stat().st_mode & 0o077 == 0


@given(st.text(min_size=1, max_size=50), st.one_of(st.none(), st.binary(min_size=32, max_size=32)))
def test_ids_come_back_from_their_tokens(text: str, secret: bytes | None) -> None:
    item_id = text.encode("utf-8", "replace").decode("utf-8") + "\udcff"
    ids = PublicIds(secret)
    token = ids.token(item_id)
    assert token == ids.token(item_id)
    assert token.replace("-", "").replace("_", "").isalnum()
    assert ids.id(token) == item_id


@given(st.text(), st.binary())
def test_no_other_token_is_an_id_when_sealed(text: str, noise: bytes) -> None:
    ids = PublicIds(b"s" * 32)
    assert ids.id(text) is None
    assert ids.id(PublicIds(None).token(text + "x")) is None
    assert ids.id(PublicIds(noise + b"t").token("/a/path.jpg")) is None


def test_the_log_has_no_keys_cookies_bodies_or_query_strings(
    guarded: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "the-secret-that-must-not-be-logged"  # noqa: S105
    with caplog.at_level(logging.DEBUG):
        guarded.get(f"search?q={secret}", headers={"Authorization": f"Bearer {secret}"})
        guarded.get(f"items?api_key={KEY}", headers={"X-API-Key": KEY})
        guarded.get("items", headers={"Cookie": f"costream_session={secret}"})
        guarded.post("search", json={"terms": [{"text": secret}]}, headers={"X-API-Key": KEY})
        guarded.post("session", json={"key": secret})
        raw(guarded, b"GET /?" + secret.encode() + b" HTTP/1.1\r\nX: \x00\r\n\r\n")
    ours = [
        record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    ]
    assert ours
    for record in ours:
        assert secret not in record.getMessage()
        assert KEY not in record.getMessage()
