"""The contract of every index: filters, moments, words and spaces, against the obvious code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_oracle import DIM, OTHER, SPACE, Oracle, answers, unit

from costream.errors import ConfigError, DataError, SpaceMismatch
from costream.index import Filter, Index, Item, Moment, SearchIndex, open_index

IMPLEMENTATIONS = [Index]


@pytest.fixture(params=IMPLEMENTATIONS)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SearchIndex]:
    with request.param.open(tmp_path / "index", create=True) as opened:
        yield opened


# --- filters ---

NUM_ITEMS = 2000


def collection() -> tuple[list[Item], Oracle]:
    """Items of which 50, 10, 1, 0.1 and 0 % are found by each kind of condition."""
    oracle = Oracle()
    vectors = unit(0, NUM_ITEMS)
    vectors[::11] = vectors[0]  # equal scores on both sides of every border
    for row in range(NUM_ITEMS):
        share = row * 7919 % NUM_ITEMS / NUM_ITEMS
        kinds = [name for name, limit in SHARES.items() if share < limit]
        item = Item(
            id=f"item{row}",
            path="".join(f"/{name}" for name in reversed(kinds)) + f"/{row}.jpg",
            mtime_ns=10**9,
            date=share * 1e6 if row % 3 else None,
            modality="video" if share < 0.01 else "image",
            tags=tuple(kinds),
            meta={"share": {name: name in kinds for name in SHARES}, "number": row},
        )
        oracle.put(item, vectors[row : row + 1], [None])
    return list(oracle.items.values()), oracle


SHARES = {"half": 0.5, "tenth": 0.1, "hundredth": 0.01, "thousandth": 0.001, "none": 0.0}


def test_filters_of_every_selectivity_give_all_that_match_best_first(index: SearchIndex) -> None:
    items, oracle = collection()
    index.add(items, np.concatenate([oracle.vectors[i.id] for i in items]).astype("f4"), SPACE)
    queries = unit(1, 3)
    for name, limit in SHARES.items():
        ids = frozenset(oracle.matches(Filter(tags=(name,))))
        assert len(ids) == NUM_ITEMS * limit
        for where in (
            Filter(tags=(name,)),
            Filter(fields={f"share.{name}": True}),
            Filter(ids=ids),
            Filter(before=limit * 1e6),
            Filter(path_prefix=f"/{name}/"),
            Filter(tags=(name,), modality=("video",), after=2),
        ):
            found = oracle.matches(where)
            assert index.matches(where) == found
            assert index.count(where) == len(found)
            got = answers(index.search(queries, SPACE, 20, where=where))
            assert got == [oracle.search(query, 20, where, group=True) for query in queries]
            assert [len(one) for one in got] == [min(20, len(found))] * 3


values = st.one_of(
    st.text(max_size=4),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.sampled_from([0, 1, -1, 400, 0.5, -2.5, 1e10, True, False]),
    st.sampled_from(["1", "400", "4e2", "true", "false", "null", "0.5", "é", "北", "", "-0"]),
)
names = st.sampled_from(["a", "b c", "ü", "a'b", "$", "0"])
metas = st.dictionaries(names, st.one_of(values, st.none(), st.dictionaries(names, values)))
tags = st.lists(st.sampled_from(["x", "y", "x y", "É", "%", "_", "\x1e"]), max_size=3).map(tuple)
seconds = st.sampled_from([None, -5.0, 0.0, 1.0, 1.5, 2e9])
paths = st.sampled_from([None, "/", "/a", "/a/b", "/a%", "/é", "/\udce9", "/a\udcff", "/a\udcffz"])


@st.composite
def some_items(draw: st.DrawFn) -> list[Item]:
    number = draw(st.integers(1, 8))
    return [
        Item(
            id=str(row),
            path=draw(paths),
            modality=draw(st.sampled_from(["image", "video", "text"])),
            date=draw(seconds),
            mtime_ns=draw(st.sampled_from([0, 1, 10**9, -(10**9)])),
            tags=draw(tags),
            meta=draw(metas),
        )
        for row in range(number)
    ]


@st.composite
def some_filter(draw: st.DrawFn) -> Filter:
    steps = draw(st.lists(names, min_size=1, max_size=2))
    chosen = draw(st.sampled_from(["path", "modality", "tags", "when", "fields", "fields", "ids"]))
    return {
        "path": lambda: Filter(path_prefix=draw(paths) or ""),
        "modality": lambda: Filter(modality=draw(st.sampled_from([("image",), ("text", "video")]))),
        "tags": lambda: Filter(tags=draw(tags)),
        "when": lambda: Filter(after=draw(seconds), before=draw(seconds)),
        "fields": lambda: Filter(fields={".".join(steps): draw(values)}),
        "ids": lambda: Filter(ids=frozenset(draw(st.sets(st.sampled_from("0123x"))))),
    }[chosen]()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SearchIndex]:
    with Index.open(tmp_path_factory.mktemp("scratch"), create=True) as opened:
        yield opened


# Few collections, because storing one waits for the disk, and many filters of each.
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(items=some_items(), wheres=st.lists(some_filter(), min_size=20, max_size=40))
def test_what_an_index_finds_is_what_the_filter_says(
    scratch: SearchIndex, items: list[Item], wheres: list[Filter]
) -> None:
    scratch.add(items, unit(0, len(items)), SPACE)
    scratch.remove(set(scratch.ids()) - {item.id for item in items})
    for where in wheres:
        want = {item.id for item in items if where.matches(item)}
        assert scratch.matches(where) == want, where
        assert scratch.count(where) == len(want)


# --- moments ---


def clips(seed: int, number: int) -> tuple[Oracle, list[Item], tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(seed)
    oracle = Oracle()
    items, vectors, parents, spans = [], [], [], []
    for row in rng.permutation(number).tolist():
        parts = int(rng.integers(1, 9))
        rows = unit(row, parts)
        rows[parts // 2 :] = rows[0]  # equally good moments
        times = [(float(part), part + 1.5) for part in range(parts)]
        if row % 4 == 0:
            rows, times = unit(3, 1), [None]  # pictures, all of them equal
        item = Item(id=f"clip{row}", modality="video" if row % 4 else "image")
        oracle.put(item, rows, times)
        parents += [len(items)] * len(rows)
        items.append(item)
        vectors.append(rows)
        spans += [time or (np.nan, np.nan) for time in times]
    order = rng.permutation(len(parents)) if seed % 2 else np.arange(len(parents))
    if seed % 2:  # vectors may come in any order of their items, in order within an item
        order = np.argsort(np.array(parents) % 3, kind="stable")
    arrays = (np.concatenate(vectors)[order], np.array(parents)[order], np.array(spans)[order])
    return oracle, items, arrays


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("top", [1, 7, 1000])
def test_clips_are_found_by_their_best_moment(index: SearchIndex, seed: int, top: int) -> None:
    oracle, items, (vectors, parents, spans) = clips(seed, 60)
    index.add_moments(items, vectors, parents, spans, SPACE)
    queries = np.concatenate([unit(9, 3), unit(3, 1), vectors[:2]])
    for where in (None, Filter(modality=("video",)), Filter(ids=frozenset({"clip8", "clip9"}))):
        for group in (True, False):
            got = index.search(queries, SPACE, top, where=where, group=group)
            want = [oracle.search(query, top, where, group) for query in queries]
            assert answers(got) == want
    ids = [item.id for item in items]
    assert index.moments(ids) == [
        tuple(Moment(t_start=s and s[0], t_end=s and s[1]) for s in oracle.spans[i]) for i in ids
    ]
    every = np.concatenate([oracle.vectors[item_id] for item_id in ids])
    assert (index.all_vectors(ids) == every).all()
    assert (index.vectors(ids) == np.stack([oracle.vectors[i][0] for i in ids])).all()


def test_one_clip_that_holds_all_the_best_moments_does_not_hide_the_others(
    index: SearchIndex,
) -> None:
    query = unit(0, 1)
    vectors = np.concatenate([np.tile(query, (500, 1)), -query, unit(1, 1)])
    parents = np.array([0] * 500 + [1, 2])
    spans = np.stack([np.arange(502.0), np.arange(502.0) + 1], axis=1)
    index.add_moments([Item(id=i) for i in "abc"], vectors, parents, spans, SPACE)
    found = index.search(query, SPACE, 3)
    assert set(found.ids[0]) == {"a", "b", "c"}
    assert found.spans[0][0] == (0.0, 1.0)
    assert found.ids[0][2] == "b"


def test_replacing_a_clip_by_a_shorter_one_leaves_no_moment(index: SearchIndex) -> None:
    item = Item(id="a", modality="video")
    spans = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
    index.add_moments([item], unit(0, 3), np.zeros(3, int), spans, SPACE)
    index.add_moments([item], unit(1, 1), np.zeros(1, int), spans[:1], SPACE)
    assert index.search(unit(0, 1), SPACE, 9, group=False).ids == (("a",),)
    index.remove(["a"])
    assert index.search(unit(0, 1), SPACE, 9, group=False).ids == ((),)
    assert index.check() == ()


@pytest.mark.parametrize(
    ("parents", "spans", "message"),
    [
        ([0, 0, 0], [[0, 1]] * 3, "item 'b' has 0 vectors"),
        ([0, 1, 2], [[0, 1]] * 3, "parents from 0 to 2"),
        ([0, 1, -1], [[0, 1]] * 3, "parents from -1 to 1"),
        ([0, 1], [[0, 1]] * 3, r"parents .* expected integers \(3,\)"),
        ([0.0, 1.0, 1.0], [[0, 1]] * 3, "float64"),
        ([0, 1, 1], [[0, 1]] * 2, r"expected floating point \(3, 2\)"),
        ([0, 1, 1], [[0, 1], [2, 1], [0, 1]], "item 'b' has a moment from 2.0 to 1.0"),
        ([0, 1, 1], [[0, 1], [0, np.nan], [0, 1]], "item 'b' has a moment from 0.0 to nan"),
        ([0, 1, 1], [[0, 1], [-np.inf, 1], [0, 1]], "expected finite seconds"),
    ],
)
def test_moments_that_fit_nothing_are_refused(
    index: SearchIndex, parents: list[int], spans: list[list[float]], message: str
) -> None:
    items = [Item(id="a"), Item(id="b")]
    with pytest.raises(DataError, match=message):
        index.add_moments(items, unit(0, 3), np.array(parents), np.array(spans, float), SPACE)
    assert len(index) == 0


# --- words ---

LIBRARY = [
    Item(id="1", path="/pictures/Beach_day-2.JPG", caption="Two dogs run"),
    Item(id="2", path="/pictures/img.jpg", tags=("beach", "São Paulo"), text="no parking"),
    Item(id="3", caption="a dog at the beach", modality="video"),
    Item(id="4", caption="北京市的狗"),
    Item(id="5", meta={"beach": "only in meta"}),
]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("beach", {"1", "2", "3"}),
        ("BEACH dog", {"1", "2", "3"}),
        ("day", {"1"}),
        ("sao", {"2"}),
        ("parking jpg", {"1", "2"}),
        ("京市", {"4"}),
        ("市京", set()),
        ("beach-day", {"1"}),
        ("meta", set()),
        ("", set()),
        ('"', set()),
        ("!!! --- ''", set()),
        ("beach OR NOT (", {"1", "2", "3"}),
        ("caption:dog*", set()),
        ("NEAR(dog, 5)", set()),
        ("\0", set()),
        ("\udce9 beach", {"1", "2", "3"}),
        ("x " * 3000 + "beach", {"1", "2", "3"}),
    ],
)
def test_words_find_names_captions_tags_and_texts(
    index: SearchIndex, asked: str, found: set[str]
) -> None:
    index.add(LIBRARY, unit(0, len(LIBRARY)), SPACE)
    ranking = index.search_text(asked, 10)
    assert set(ranking.ids[0]) == found
    assert ranking.stage == "text"
    assert sorted(ranking.scores[0].tolist(), reverse=True) == ranking.scores[0].tolist()
    assert (ranking.scores[0] > 0).all()


def test_words_follow_every_change(index: SearchIndex) -> None:
    index.add(LIBRARY, unit(0, len(LIBRARY)), SPACE)
    index.add([replace(LIBRARY[0], caption="cats sleep")], unit(1, 1), SPACE)
    index.remove(["3"])
    assert index.search_text("dogs run at", 9).ids == ((),)
    assert index.search_text("cats", 9).ids == (("1",),)
    assert set(index.search_text("beach", 9).ids[0]) == {"1", "2"}
    assert index.check() == ()


def test_words_and_filters_and_equal_scores(index: SearchIndex) -> None:
    items = [
        Item(id=f"item{row}", caption="the same words", tags=("odd",) if row % 2 else ("even",))
        for row in range(40)
    ]
    index.add(items, unit(0, 40), SPACE)
    want = sorted(item.id for item in items)
    assert list(index.search_text("words", 7).ids[0]) == want[:7]
    odd = [item.id for item in items if "odd" in item.tags]
    for where in (Filter(tags=("odd",)), Filter(ids=frozenset(odd))):
        assert list(index.search_text("words", 30, where=where).ids[0]) == sorted(odd)
    with pytest.raises(ConfigError, match="top=0"):
        index.search_text("words", 0)


# --- spaces ---


def test_a_second_space_is_filled_beside_the_first_switched_to_and_back(
    index: SearchIndex,
) -> None:
    items = [Item(id=f"{row:02d}", content_hash=f"hash{row}") for row in range(10)]
    index.add(items, unit(0, 10), SPACE)
    index.begin_space(OTHER)
    index.begin_space(OTHER)
    assert [(e.space, e.role, e.num_items) for e in index.spaces()] == [
        (SPACE, "active", 10),
        (OTHER, "building", 0),
    ]
    assert index.missing(OTHER, 3) == items[:3]
    assert index.missing(OTHER, 3, after="07") == items[8:]
    assert index.fill_space(items[:6], unit(1, 6, OTHER.dim), OTHER) == 6
    # Meanwhile the index lives on in the first space, and the second is refused.
    for _ in range(2):
        with pytest.raises(SpaceMismatch):
            index.search(unit(2, 1, OTHER.dim), OTHER, 3)
        with pytest.raises(SpaceMismatch):
            index.add([Item(id="x")], unit(2, 1, OTHER.dim), OTHER)
    changed = replace(items[1], content_hash="new")
    index.add([changed, Item(id="10", content_hash="hash10")], unit(3, 2), SPACE)
    index.remove(["02"])
    assert [item.id for item in index.missing(OTHER, 99)] == ["01", "06", "07", "08", "09", "10"]
    # What was embedded before a change or removal is not stored.
    assert index.fill_space(items[1:3], unit(4, 2, OTHER.dim), OTHER) == 0
    with pytest.raises(DataError, match="6 of 10 items have no vector"):
        index.switch_space(OTHER)
    rest = index.missing(OTHER, 99)
    assert index.fill_space(rest, unit(5, 6, OTHER.dim), OTHER) == 6
    index.switch_space(OTHER)
    assert index.space == OTHER
    assert [(e.space, e.role) for e in index.spaces()] == [(OTHER, "active"), (SPACE, "retired")]
    (found,) = index.search(unit(5, 1, OTHER.dim), OTHER, 1).ids
    assert found == (rest[0].id,)
    with pytest.raises(SpaceMismatch):
        index.search(unit(0, 1), SPACE, 3)
    index.switch_space(SPACE)
    assert index.search(unit(0, 1), SPACE, 1).ids == (("00",),)
    index.drop_space(OTHER)
    assert [e.space for e in index.spaces()] == [SPACE]
    assert index.check() == ()


def test_items_without_a_vector_are_found_by_words_only(index: SearchIndex) -> None:
    items = [Item(id="a", caption="dog", content_hash="a"), Item(id="b", caption="dog")]
    index.add(items, unit(0, 2), SPACE)
    index.begin_space(OTHER)
    index.fill_space(items[:1], unit(1, 1, OTHER.dim), OTHER)
    index.switch_space(OTHER, allow_missing=True)
    assert index.search(unit(1, 1, OTHER.dim), OTHER, 9).ids == (("a",),)
    assert set(index.search_text("dog", 9).ids[0]) == {"a", "b"}
    assert len(index) == 2
    assert index.moments(["a", "b"]) == [(Moment(),), ()]
    with pytest.raises(DataError, match="item 'b' has no vector"):
        index.vectors(["a", "b"])
    assert index.check() == ()


def test_misuse_of_spaces_is_told(index: SearchIndex) -> None:
    index.add([Item(id="a")], unit(0, 1), SPACE)
    for misuse in (index.switch_space, index.drop_space):
        with pytest.raises(SpaceMismatch, match=r"weights w0.*got .*weights w1"):
            misuse(OTHER)
    with pytest.raises(SpaceMismatch):
        index.missing(OTHER, 1)
    with pytest.raises(ConfigError, match="is the active space"):
        index.drop_space(SPACE)
    with pytest.raises(ConfigError, match="is the active space"):
        index.fill_space([Item(id="a")], unit(0, 1), SPACE)
    with pytest.raises(ConfigError, match="sparse"):
        index.begin_space(replace(SPACE, kind="sparse"))


# --- samples, forgetting ---


def test_a_sample_depends_on_the_state_and_the_seed_only(index: SearchIndex) -> None:
    vectors = unit(0, 50)
    index.add([Item(id=f"{row}") for row in range(50)], vectors, SPACE)
    sample = index.sample_vectors(20, 1, SPACE)
    assert sample.dtype == np.float32
    assert sample.shape == (20, DIM)
    assert len(np.unique(sample, axis=0)) == 20
    stored = vectors.astype(np.float16).astype(np.float32)
    assert {row.tobytes() for row in sample} <= {row.tobytes() for row in stored}
    assert (index.sample_vectors(20, 1, SPACE) == sample).all()
    assert (index.sample_vectors(20, 2, SPACE) != sample).any()
    assert index.sample_vectors(99, 1, SPACE).shape == (50, DIM)
    with pytest.raises(SpaceMismatch):
        index.sample_vectors(1, 1, OTHER)
    index.remove(index.ids())
    assert index.sample_vectors(5, 1, SPACE).shape == (0, DIM)


def test_forgetting_removes(index: SearchIndex) -> None:
    index.add(LIBRARY, unit(0, len(LIBRARY)), SPACE)
    assert index.forget(["3", "nobody"]) == 1
    assert set(index.search_text("beach", 9).ids[0]) == {"1", "2"}
    assert len(index.search(unit(0, 1), SPACE, 9).ids[0]) == 4
    assert index.check() == ()


# --- noticing changes ---


def test_every_change_gives_the_index_another_token(index: SearchIndex) -> None:
    items = [Item(id=i, content_hash=i) for i in ("a", "b")]
    changes = [
        lambda: index.add(items, unit(0, 2), SPACE),
        lambda: index.add(items, unit(0, 2), SPACE),
        lambda: index.touch([replace(items[0], mtime_ns=1)]),
        lambda: index.reuse([Item(id="c", content_hash="a")]),
        lambda: index.remove(["a"]),
        lambda: index.forget(["b"]),
        lambda: index.begin_space(OTHER),
        lambda: index.fill_space(index.missing(OTHER, 9), unit(1, 1, OTHER.dim), OTHER),
        lambda: index.switch_space(OTHER),
        lambda: index.switch_space(SPACE),
        lambda: index.drop_space(OTHER),
    ]
    with open_index(index.location) as watcher:
        seen = [watcher.token()]
        for change in changes:
            change()
            seen.append(watcher.token())
            assert index.token() == seen[-1]
    assert len(set(seen)) == len(changes) + 1


def test_what_changes_nothing_leaves_the_token(index: SearchIndex) -> None:
    index.add([Item(id="a")], unit(0, 1), SPACE)
    before = index.token()
    index.search(unit(0, 1), SPACE, 1)
    index.load()
    index.check()
    index.remove(["nobody"])
    with pytest.raises(DataError):
        index.add([Item(id="")], unit(0, 1), SPACE)
    assert index.token() == before
    index.close()
    with open_index(index.location) as again:
        assert again.token() == before
