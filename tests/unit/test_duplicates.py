"""Near-duplicates: fingerprints of versions agree, and how close is close is learned."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from costream.cli.demo import GALLERY
from costream.data.decode import open_image
from costream.data.perceptual import difference_hash, hash_bits
from costream.search.duplicates import Likeness, collapse, learn_likeness

PICTURES = sorted(GALLERY.glob("*.jpg"))[:40]


def distance(one: str, other: str) -> int:
    first, second = hash_bits(one), hash_bits(other)
    assert first is not None
    assert second is not None
    return int((first != second).sum())


def recompressed(picture: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=30)
    return Image.open(io.BytesIO(stream.getvalue()))


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# --- fingerprints ---


def test_versions_of_a_picture_have_nearly_the_same_fingerprint_and_others_have_not() -> None:
    pictures = [open_image(path) for path in PICTURES]
    hashes = [difference_hash(picture) for picture in pictures]
    for picture, digest in zip(pictures, hashes, strict=True):
        half = picture.resize((picture.width // 2, picture.height // 2))
        for version in (recompressed(picture), half, picture.convert("L")):
            assert distance(difference_hash(version), digest) <= 8
    apart = [distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 8


@given(raw=st.binary(min_size=8, max_size=8))
@settings(max_examples=30, deadline=None)
def test_a_fingerprint_is_its_64_bits(raw: bytes) -> None:
    bits = hash_bits(raw.hex())
    assert bits is not None
    assert np.packbits(bits).tobytes() == raw


@pytest.mark.parametrize("digest", ["", "12", "zz" * 8, "00" * 9])
def test_what_is_no_fingerprint_has_no_bits(digest: str) -> None:
    assert hash_bits(digest) is None


# --- learning ---


def clusters(count: int, width: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, 24))
    return unit(centres[rng.integers(20, size=count)] + width * rng.standard_normal((count, 24)))


def test_the_closer_a_collection_lies_the_closer_duplicates_must_be() -> None:
    wide, narrow = learn_likeness(clusters(600, 0.8)), learn_likeness(clusters(600, 0.4))
    assert wide.alike < wide.same < narrow.same <= Likeness().same


def test_hardly_any_pair_of_others_counts_as_the_same() -> None:
    learned = learn_likeness(clusters(1000, 0.6))
    others = clusters(1000, 0.6, seed=1)
    cosines = (others @ others.T)[np.triu_indices(1000, 1)]
    assert (cosines >= learned.same).mean() < 1e-3


def test_a_few_duplicates_in_the_sample_hardly_change_what_is_learned() -> None:
    plain = clusters(600, 0.8)
    with_copies = np.concatenate([plain, plain[:60]])
    assert learn_likeness(with_copies).same == pytest.approx(learn_likeness(plain).same, abs=0.02)


@pytest.mark.parametrize("vectors", [np.eye(5, 24), np.ones((300, 24)), np.zeros((0, 24))])
def test_what_cannot_be_learned_from_gives_the_usual(vectors: np.ndarray) -> None:
    assert learn_likeness(vectors.astype(np.float32)) == Likeness()


# --- collapsing ---


def test_the_best_of_each_group_stays_in_place() -> None:
    vectors = unit(np.eye(3, 24)[[0, 1, 0, 2, 1, 0]] + 1e-3)
    ids = [f"i{n}" for n in range(6)]
    groups = collapse(ids, vectors, [""] * 6, Likeness())
    assert list(groups.items()) == [("i0", ("i2", "i5")), ("i1", ("i4",)), ("i3", ())]


def test_fingerprints_count_only_where_vectors_are_not_far() -> None:
    base = np.eye(2, 24)
    near = unit(np.stack([base[0], base[0] + 0.5 * base[1]]))  # cosine 0.89
    assert list(collapse(["a", "b"], near, ["00" * 8] * 2, Likeness())) == ["a"]
    assert list(collapse(["a", "b"], near, ["00" * 8, "ff" * 8], Likeness())) == ["a", "b"]
    assert list(collapse(["a", "b"], near, ["", ""], Likeness())) == ["a", "b"]
    # Pictures without any structure all have the same fingerprint.
    far = base.astype(np.float32)
    assert list(collapse(["a", "b"], far, ["00" * 8] * 2, Likeness())) == ["a", "b"]


@given(seed=st.integers(0, 1000), count=st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_every_id_is_kept_or_left_out_once(seed: int, count: int) -> None:
    vectors = clusters(count, 0.1, seed) if count else np.zeros((0, 24), np.float32)
    ids = [f"i{n}" for n in range(count)]
    groups = collapse(ids, vectors, [""] * count, Likeness())
    assert sorted([*groups, *(one for rest in groups.values() for one in rest)]) == sorted(ids)
    assert list(groups) == [one for one in ids if one in groups]
