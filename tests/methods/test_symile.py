"""Symile: the formula, golden values, what it reduces to; products as questions; that it learns."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.errors import ConfigError
from costream.index import Index, Item
from costream.methods._symile.claim import accuracy, train_towers, xor_world
from costream.methods.symile import (
    ArrayTower,
    Config,
    Symile,
    all_products,
    anchor_scores,
    multilinear,
    parts,
    permutation,
)
from costream.parts import Base
from costream.records import Batch, Features
from costream.search import Query, Searcher, Words
from costream.search.algebra import multiply
from tiny_world import tiny_model

SMALL = {"modalities": "image,text,audio"}
"""Settings for the contract of all methods."""


def unit(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def batch_of(count: int, weight: list[float] | None = None) -> Batch:
    return Batch(
        ids=tuple(map(str, range(count))),
        groups=torch.arange(count),
        slots={},
        weight=torch.ones(count) if weight is None else torch.tensor(weight),
        seeds=torch.arange(count) + 7,
    )


def loss_of(vectors: list[Tensor], config: Config, batch: Batch | None = None) -> float:
    slots = ("image", "text", "text.de", "text.fr")[: len(vectors)]
    features = {slot: Features(pooled=each) for slot, each in zip(slots, vectors, strict=True)}
    objective = Symile(replace(config, modalities=slots))
    batch = batch_of(len(vectors[0])) if batch is None else batch
    return float(objective.loss(tiny_model(), batch, features, nn.Module()).total)


def test_all_combinations_are_those_of_plain_loops() -> None:
    """Mean over anchors and rows of log sum_(j, k) exp(s MIP(r_i, p_j, q_k)) - s MIP(true)."""
    vectors, scale = [unit(seed, 4, 6) for seed in range(3)], 3.0
    expected = []
    for number in range(3):
        others = [vectors[k] for k in range(3) if k != number]
        for i in range(4):
            scores = [
                scale * float(multilinear([vectors[number][i], others[0][j], others[1][k]]))
                for j, k in itertools.product(range(4), repeat=2)
            ]
            true = scale * float(multilinear([vectors[number][i], others[0][i], others[1][i]]))
            expected.append(np.log(np.exp(scores).sum()) - true)
    config = Config(negatives="n_squared", scale=scale)
    assert loss_of(vectors, config) == pytest.approx(np.mean(expected), rel=1e-5)


def test_golden_values_of_three_identity_matrices() -> None:
    """n_squared: log(1 + 3 exp(-s)); n with permutations that move nothing: log(1 + exp(-s))."""
    vectors = [torch.eye(2)] * 3
    config = Config(negatives="n_squared", scale=2.0)
    assert loss_of(vectors, config) == pytest.approx(0.34075, abs=1e-5)
    own = torch.arange(2)
    scores = anchor_scores(torch.eye(2), [torch.eye(2)] * 2, [own, own], own)
    assert float(functional.cross_entropy(2 * scores, own)) == pytest.approx(0.12693, abs=1e-5)


def test_the_aligned_combinations_come_first_and_each_one_comes_once() -> None:
    first, second, third = (unit(seed, 3, 5) for seed in range(3))
    products = all_products([first, second, third])
    assert torch.allclose(products[:3], first * second * third)
    every = torch.stack([a * b * c for a, b, c in itertools.product(first, second, third)])
    distances = torch.cdist(products.double(), every.double())
    assert len(products) == 27
    assert sorted(distances.argmin(dim=1).tolist()) == list(range(27))
    assert float(distances.min(dim=1).values.max()) < 1e-6


@pytest.mark.parametrize("negatives", ["n", "n_squared"])
def test_two_modalities_are_plain_contrast(negatives: str) -> None:
    image, text = unit(0, 5, 6), unit(1, 5, 6)
    own, scores = torch.arange(5), 4.0 * image @ text.T
    plain = functional.cross_entropy(scores, own) / 2 + functional.cross_entropy(scores.T, own) / 2
    found = loss_of([image, text], Config(negatives="n_squared", scale=4.0))
    assert found == pytest.approx(float(plain), rel=1e-5)
    if negatives == "n":
        # Drawn with an order, a column may be missing or twice, but the true one never.
        order = torch.tensor([1, 0, 3, 2, 4])
        drawn = anchor_scores(image, [text], [order], own)
        assert torch.allclose(drawn.diagonal(), (image * text).sum(dim=1))


def test_ones_leave_the_product_of_the_others() -> None:
    image, text, ones = unit(0, 4, 6), unit(1, 4, 6), torch.ones(4, 6)
    own = torch.arange(4)
    scores = anchor_scores(image, [text, ones], None, own)
    assert torch.allclose(scores, (image @ text.T).repeat(1, 4), atol=1e-6)


def test_the_order_of_modalities_and_of_rows_does_not_matter() -> None:
    vectors, config = [unit(seed, 5, 6) for seed in range(3)], Config(negatives="n_squared")
    value = loss_of(vectors, config)
    assert loss_of(vectors[::-1], config) == pytest.approx(value, rel=1e-5)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert loss_of([each[order] for each in vectors], config) == pytest.approx(value, rel=1e-5)


def test_a_permutation_goes_with_the_seeds() -> None:
    """Whatever the order of the batch, the same rows come together."""
    seeds = torch.tensor([11, 5, 8, 2, 9])
    order = permutation(seeds, (0, 1))
    assert sorted(order.tolist()) == list(range(5))
    moved = torch.tensor([4, 2, 0, 1, 3])
    again = permutation(seeds[moved], (0, 1))
    before = {int(seeds[i]): int(seeds[order[i]]) for i in range(5)}
    after = {int(seeds[moved][i]): int(seeds[moved][again[i]]) for i in range(5)}
    assert before == after
    assert permutation(seeds, (0, 2)).tolist() != order.tolist()


@pytest.mark.parametrize("negatives", ["n", "n_squared"])
def test_rows_without_weight_are_absent(negatives: str) -> None:
    vectors = [unit(seed, 5, 6) for seed in range(3)]
    config = Config(negatives=negatives)  # type: ignore[arg-type]
    weight = [1.0, 1.0, 0.0, 1.0, 1.0]
    rows = torch.tensor([0, 1, 3, 4])
    kept = replace(batch_of(4), seeds=batch_of(5).seeds[rows])
    fewer = loss_of([each[rows] for each in vectors], config, kept)
    assert loss_of(vectors, config, batch_of(5, weight)) == pytest.approx(fewer, rel=1e-5)


def test_arrays_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"arrays of 7 numbers, expected 64.*array_size=7"):
        ArrayTower(64, 8)(torch.zeros(2, 7))


def test_one_modality_or_one_twice_is_refused() -> None:
    for names in (("image",), ("image", "image")):
        with pytest.raises(ConfigError, match="expected two or more different"):
            parts(Config(modalities=names), Base(model=tiny_model()))


# --- questions ---


def test_an_index_serves_the_product_of_two_terms() -> None:
    """<q1 * q2, c>, by the same inner-product index; nothing is stored for it."""
    items = unit(5, 20, 8).numpy().astype(np.float16).astype(np.float32)
    asked = unit(6, 2, 8).numpy()

    class Given:
        space = tiny_model().space

        def encode_texts(self, texts: list[str]) -> np.ndarray:  # type: ignore[type-arg]
            return asked[[int(text) for text in texts]]

    import tempfile

    with tempfile.TemporaryDirectory() as folder, Index.open(folder, create=True) as index:
        index.add([Item(id=str(n)) for n in range(20)], items, Given.space)
        query = Query(terms=(Words("0"), Words("1")), top=20, product=True, hybrid=False)
        answer = Searcher(index, Given()).answer(query)  # type: ignore[arg-type]
    expected = (asked[0] * asked[1]) @ items.T
    assert [int(result.id) for result in answer.results] == np.argsort(-expected).tolist()


def test_products_of_weighted_terms_and_of_strangers_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected 1 each"):
        Query(terms=(Words("a"), Words("b", weight=-1.0)), product=True)
    with pytest.raises(ConfigError, match="the product of the terms"):
        multiply(np.float32([[1, 0], [0, 1]]))


# --- what it is for ---


def test_it_finds_the_bit_that_no_pair_tells() -> None:
    """Accuracy 1 of c = a xor b, where pairs stay at 1/2; and the loss falls to log N - log 2."""
    world = xor_world(1.0, bits=1)
    towers = train_towers(world, "symile", seed=0, steps=200)
    assert accuracy(world, towers, "symile", seed=0) == 100.0
    pairs = train_towers(world, "pairwise", seed=0, steps=200)
    assert accuracy(world, pairs, "pairwise", seed=0) < 60.0
    generator = torch.Generator().manual_seed(3)
    values = world.draw(256, generator)
    vectors = [towers(number, each).detach() for number, each in enumerate(values)]
    found = loss_of(vectors, Config(scale=float(towers.log_scale.exp())))
    assert found == pytest.approx(math.log(256) - math.log(2), abs=0.15)


def test_a_constant_scorer_is_at_chance() -> None:
    world = xor_world(0.0, bits=1)
    towers = train_towers(world, "symile", seed=0, steps=0)
    with torch.no_grad():
        for layer in towers.layers:
            layer.weight.zero_()  # type: ignore[union-attr, operator]
            layer.bias.fill_(1.0)  # type: ignore[union-attr, operator]
    assert accuracy(world, towers, "symile", seed=0) == pytest.approx(50.0)
