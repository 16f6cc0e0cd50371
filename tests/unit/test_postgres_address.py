"""Addresses of databases in messages: without the password, and still the same database."""

from __future__ import annotations

import pytest

from costream.errors import ConfigError

psycopg = pytest.importorskip("psycopg")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:sesame@db.example:5433/pictures",
        "postgresql://db.example/pictures",
        "postgresql://me:sesame@[::1]:5433/pictures",
        "postgresql://one.example:1,two.example:2/pictures",
        "postgresql://one.example,two.example/pictures?port=5433",
        "postgres://me%40home:sesame@/my%20pictures?host=/run/postgresql&port=77",
        "postgresql://",
    ],
)
def test_it_names_the_same_database_without_the_password(url: str) -> None:
    from costream.index.postgres import public_url

    def known(address: str) -> dict[str, list[str]]:
        found = psycopg.conninfo.conninfo_to_dict(address)
        # One port is that of every host.
        return {k: sorted(set(str(v).split(","))) for k, v in found.items() if k != "password"}

    assert "sesame" not in public_url(url)
    assert known(public_url(url)) == known(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:sesame%zz@db.example/pictures",
        "postgresql://me:sesame@[::1/pictures",
        "postgresql://me:sesame@[::1]x/pictures",
        "postgresql://me:sesame@db.example/pictures?colour=blue",
        "postgresql://me:sesame@db example/pictures",
    ],
)
def test_what_is_no_address_is_refused_without_telling_the_password(url: str) -> None:
    from costream.index import open_index

    with pytest.raises(ConfigError, match="expected postgresql://USER@HOST:PORT/DATABASE") as told:
        open_index(url)
    assert "sesame" not in str(told.value)
    assert told.value.hint
