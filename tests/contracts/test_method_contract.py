"""The contract of every method that is found: what it says and what it brings go together."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from every_method import METHODS, batch_of, small_method, trained_with
from torch import nn

from costream.card import find_method
from costream.encoders.storage import load, save_model
from costream.evaluate.claims import ClaimOptions
from costream.evaluate.systems import encode_captions, encode_media, needs_tokens, score_all, take
from costream.method import Method, read_method
from costream.parts import Base, Parts
from costream.records import Batch
from costream.scoring.protocol import ItemBias, RankContext
from costream.system import load_system

every_method = pytest.mark.parametrize("name", METHODS)


def with_slot(slot: str) -> pytest.MarkDecorator:
    having = [name for name in METHODS if slot in find_method(name).slots]
    return pytest.mark.parametrize("name", having)


# --- the file ---


@every_method
def test_the_file_says_what_it_does(name: str) -> None:
    method = small_method(name)
    text = str(method.module.__doc__)
    for heading in ("Idea:", "Equations", "Shapes:", "Source:", "Index impact", "Claim:"):
        assert heading.lower() in text.lower(), f"{name} has no {heading!r} in its docstring"
    assert callable(method.module.parts)
    assert callable(method.module.claim)
    lines = Path(str(method.module.__file__)).read_text(encoding="utf-8").splitlines()
    assert len(lines) < 700


@every_method
def test_words_of_a_method_are_read_again(name: str) -> None:
    method = small_method(name)
    assert read_method(method.words) == method
    assert read_method(name).words == name


def test_listing_does_not_import_the_methods() -> None:
    program = "from costream.card import find_methods; find_methods(); import sys; print([m for m in sys.modules if m == 'torch' or m.startswith('costream.methods')])"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


# --- what it brings ---


@every_method
def test_parts_fill_the_slots_of_the_card(name: str, tmp_path: Path) -> None:
    system, _ = trained_with([name], tmp_path)
    method = small_method(name)
    base = Base(model=trained_with([], tmp_path)[0].model)
    given = [system.parts, method.module.parts(method.config, base)]
    filled = {f.name for f in fields(Parts) for parts in given if getattr(parts, f.name)}
    assert filled - {"reads"} == set(method.card.slots)
    assert ("objective" in filled) == bool(system.parts.reads)


@every_method
def test_a_model_keeps_its_methods(name: str, tmp_path: Path) -> None:
    """Saved and loaded: the same weights, vectors, space and parts."""
    system, data = trained_with([name], tmp_path / "run")
    model = system.model.half().float().eval()  # weights are stored in float16
    directory = save_model(model, tmp_path / "model")
    again = load(directory)
    assert again.space == model.space
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    pictures = [sample.slots["image"] for sample in data.samples[:3]]
    texts = [sample.slots["text"][0] for sample in data.samples[:3]]
    assert np.array_equal(model.encode_images(pictures), again.encode_images(pictures))
    assert np.array_equal(model.encode_texts(texts), again.encode_texts(texts))
    stays = load_system(directory).parts
    for slot in ("scorer", "index", "generator"):
        assert (getattr(stays, slot) is None) == (getattr(system.parts, slot) is None)
    assert len(stays.rank) == len(system.parts.rank)


@with_slot("surgery")
def test_surgery_makes_another_space(name: str, tmp_path: Path) -> None:
    """Or a model that was changed could be asked of an index of the unchanged one."""
    plain = trained_with([], tmp_path)[0].model.space
    assert trained_with([name], tmp_path)[0].model.space != plain


# --- objectives ---


def losses_of(name: str, folder: Path, change: object = None) -> float:
    system, data = trained_with([name], folder)
    system.model.eval()
    batch = batch_of(system.model, data, system.parts.reads)
    if callable(change):
        batch = change(batch)
    total = torch.zeros(())
    torch.manual_seed(0)
    for weight, objective in system.parts.objective:
        assert isinstance(objective, nn.Module) or not hasattr(objective, "parameters")
        state = objective.init_state(system.model)
        features = system.model.features(batch)
        total = total + weight * objective.loss(system.model, batch, features, state).total
        objective.after_step(system.model, state)
    return float(total.detach())


def reordered(batch: Batch, order: list[int]) -> Batch:
    return Batch(
        ids=tuple(batch.ids[row] for row in order),
        groups=batch.groups[order],
        slots={name: value[order] for name, value in batch.slots.items()},
        weight=batch.weight[order],
        seeds=batch.seeds[order],
    )


@with_slot("objective")
def test_the_order_of_a_batch_does_not_matter(name: str, tmp_path: Path) -> None:
    """But for what is drawn by the batch, there is one loss a batch."""
    order = [3, 1, 5, 0, 4, 2]
    there = losses_of(name, tmp_path, lambda batch: reordered(batch, order))
    assert there == pytest.approx(losses_of(name, tmp_path), rel=1e-4)


@with_slot("objective")
def test_the_same_batch_gives_the_same_loss(name: str, tmp_path: Path) -> None:
    first, second = (losses_of(name, tmp_path) for _ in range(2))
    assert np.isfinite(first)
    assert first == second


@with_slot("objective")
def test_a_row_of_weight_0_changes_nothing(name: str, tmp_path: Path) -> None:
    """Whatever its picture shows: a broken file is such a row."""

    def without(batch: Batch, seen: int) -> Batch:
        weight = batch.weight.clone()
        weight[2] = 0.0
        slots = dict(batch.slots)
        for slot in ("image", "video"):
            if slot in slots:
                slots[slot] = slots[slot].clone()
                slots[slot][2] = seen
        return replace(batch, weight=weight, slots=slots)

    dark = losses_of(name, tmp_path, lambda batch: without(batch, 0))
    assert dark == pytest.approx(losses_of(name, tmp_path, lambda batch: without(batch, 200)))


@with_slot("objective")
def test_a_batch_of_weight_0_has_no_loss(name: str, tmp_path: Path) -> None:
    def nothing(batch: Batch) -> Batch:
        return replace(batch, weight=torch.zeros_like(batch.weight))

    assert losses_of(name, tmp_path, nothing) == 0.0


# --- scorers and rank steps ---


@with_slot("scorer")
def test_scores_depend_on_their_pair_alone(name: str, tmp_path: Path) -> None:
    system, data = trained_with([name], tmp_path)
    scorer = system.parts.scorer
    assert scorer is not None
    assert scorer.cost in ("dot", "late", "pair")
    whole = needs_tokens(system)
    seen = encode_media(system.model, data.samples, tokens=whole)
    texts = [text for sample in data.samples for text in sample.slots["text"]]
    read = encode_captions(system.model, texts, tokens=whole)
    for queries, items in ((read, seen), (seen, read)):
        scores = score_all(scorer, queries, items)
        assert scores.shape == (len(queries.pooled), len(items.pooled))
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()
        for row, column in ((0, 0), (3, 5), (len(scores) - 1, scores.shape[1] - 1)):
            alone = scorer.score(take(queries, np.array([row])), take(items, np.array([column])))
            assert float(alone) == pytest.approx(scores[row, column], abs=2e-5)


@with_slot("rank")
def test_a_rank_step_rescores_the_pairs_that_it_gets(name: str, tmp_path: Path) -> None:
    system, _ = trained_with([name], tmp_path)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((9, system.model.config.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for step in system.parts.rank:
        assert step.needs in ("topk", "all")
        scores = vectors[:2] @ vectors[2:].T
        before = scores.copy()
        context = RankContext(queries=vectors[:2], items=vectors[2:], modality="text")
        found = step.rescore(scores, context)
        assert found.shape == scores.shape
        assert np.isfinite(found).all()
        assert np.array_equal(scores, before), "the scores that were given are changed"
        nobody = RankContext(queries=vectors[:2], items=vectors[:0], modality="text")
        assert step.rescore(scores[:, :0], nobody).shape == (2, 0)
        if isinstance(step, ItemBias):
            bias = step.bias(vectors[2:], "text", "image")
            assert np.allclose(scores - bias, found, atol=1e-5)


# --- claims ---


@every_method
def test_the_claim_runs(name: str, tmp_path: Path) -> None:
    """At the size that proves nothing, with two seeds."""
    method: Method = small_method(name)
    options = ClaimOptions(seeds=2, fast=True, out=tmp_path)
    tables = method.module.claim(options)
    assert tables
    assert tables[0].settings
    for table in tables:
        assert table.rows
        for row in table.rows:
            assert len(row.method) >= 2
            assert re.search(r"\w", row.name)
