"""Law: many clients at once get what each would get alone, and nobody gets an error."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import httpx

CLIENTS, EACH = 16, 25


def requests_of(number: int, ids: list[str], picture: str) -> list[dict[str, Any]]:
    """What one client asks: words of its own, words that others ask too, pictures, items."""
    asked: list[dict[str, Any]] = []
    for turn in range(EACH):
        own = {"text": f"red {chr(97 + number)} {chr(97 + turn)}"}
        shared = {"text": f"blue {chr(97 + turn)}"}
        terms = [[own], [shared], [own, shared | {"weight": -0.5}], [{"like": ids[turn % 3]}]]
        chosen = [{"image": picture}, own] if turn == number else terms[(number + turn) % 4]
        asked.append({"terms": chosen, "top": 1 + turn % 3})
    return asked


def test_many_clients_get_what_each_gets_alone(
    client: httpx.Client, items: dict[str, dict[str, Any]], shared_index_dir: Path
) -> None:
    file = shared_index_dir.parent / "pictures" / "green.png"
    picture = base64.b64encode(file.read_bytes()).decode()
    ids = [item["id"] for item in items.values()]
    asked = [requests_of(number, ids, picture) for number in range(CLIENTS)]
    answers: list[list[httpx.Response]] = [[] for _ in range(CLIENTS)]

    def ask(number: int) -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            answers[number] = [own.post("search", json=one) for one in asked[number]]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(each) for each in answers] == [EACH] * CLIENTS
    alone: dict[str, list[tuple[str, float]]] = {}
    for mine, questions in zip(answers, asked, strict=True):
        for together, question in zip(mine, questions, strict=True):
            name = json.dumps(question)
            if name not in alone:
                alone[name] = found(client.post("search", json=question))
            assert found(together) == alone[name]


def found(response: httpx.Response) -> list[tuple[str, float]]:
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert results
    # A vector made in a batch may differ in its last bits.
    return [(result["id"], round(result["score"], 4)) for result in results]
