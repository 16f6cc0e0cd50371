"""1-to-K contrast: the formula, its golden values and reductions; MRV; that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from costream.data import DataSet, make_scenes
from costream.data.scenes import made_up_language
from costream.errors import ConfigError, DataError
from costream.methods._one_to_k.claim import ManyLanguages, Pivot
from costream.methods._one_to_k.consistency import measure_consistency
from costream.methods.one_to_k import (
    Config,
    InEveryLanguage,
    OneToK,
    mean_rank_deviation,
    mean_rank_variance,
    parts,
)
from costream.parts import Base, System
from costream.records import Batch, Features
from costream.train import train
from costream.train.loader import draws_of_step
from costream.train.short import cache_pairs, cache_texts
from costream.train.worlds import retrieval_hits, scenes
from tiny_world import tiny_model

SMALL = {"languages": "text,text.de,text.fr"}
"""Settings for the contract of all methods."""

Array = NDArray[np.float64]


def unit(rng: np.random.Generator, *shape: int) -> Array:
    vectors = rng.standard_normal(shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def batch_of(
    count: int, weight: list[float] | None = None, groups: list[int] | None = None
) -> Batch:
    return Batch(
        ids=tuple(map(str, range(count))),
        groups=torch.arange(count) if groups is None else torch.tensor(groups),
        slots={},
        weight=torch.ones(count) if weight is None else torch.tensor(weight),
        seeds=torch.arange(count),
    )


def loss_of(
    image: Array, texts: list[Array], config: Config, batch: Batch | None = None
) -> tuple[float, dict[str, float]]:
    """The loss of pictures (B, D) and captions (B, D) of each language."""
    names = ("text", "text.de", "text.fr", "text.cs")[: len(texts)]
    features = {"image": Features(pooled=torch.tensor(image, dtype=torch.float32))}
    for name, each in zip(names, texts, strict=True):
        features[name] = Features(pooled=torch.tensor(each, dtype=torch.float32))
    objective = OneToK(replace(config, languages=names))
    found = objective.loss(tiny_model(), batch or batch_of(len(image)), features, nn.Module())
    return float(found.total), {name: float(value) for name, value in found.parts.items()}


def expected(image: Array, texts: list[Array], tau: float) -> tuple[float, float]:
    """Both halves as plain loops: A / K and C of the module's docstring."""
    count, languages = len(image), len(texts)
    captions = [texts[k][i] for i in range(count) for k in range(languages)]
    scores = np.array([[v @ t for t in captions] for v in image]) / tau
    forward = 0.0
    for i in range(count):
        for k in range(languages):
            forward += np.log(np.exp(scores[i]).sum()) - scores[i, i * languages + k]
    backward = 0.0
    for j in range(len(captions)):
        backward += np.log(np.exp(scores[:, j]).sum()) - scores[j // languages, j]
    return forward / count / languages, backward / len(captions)


@pytest.mark.parametrize("weight", ["balanced", "released"])
def test_the_loss_is_that_of_the_formula(weight: str) -> None:
    rng = np.random.default_rng(0)
    image, texts = unit(rng, 4, 6), [unit(rng, 4, 6) for _ in range(3)]
    config = Config(temperature=0.3, text_weight=weight)  # type: ignore[arg-type]
    total, halves = loss_of(image, texts, config)
    forward, backward = expected(image, texts, 0.3)
    assert halves == pytest.approx({"image_to_text": forward, "text_to_image": backward}, rel=1e-5)
    share = 1.0 if weight == "balanced" else 1 / 3
    assert total == pytest.approx((forward + share * backward) / 2, rel=1e-5)


def test_golden_values_of_uniform_scores() -> None:
    """K = 3, B = 4: (log 12 + log 4) / 2 balanced, (log 12 + log(4) / 3) / 2 as released."""
    same = np.tile([1.0, 0.0], (4, 1))
    assert loss_of(same, [same] * 3, Config())[0] == pytest.approx(1.93560, abs=1e-5)
    released = Config(text_weight="released")
    assert loss_of(same, [same] * 3, released)[0] == pytest.approx(1.47350, abs=1e-5)


def test_one_language_is_symmetric_contrast() -> None:
    rng = np.random.default_rng(1)
    image, text = unit(rng, 5, 8), unit(rng, 5, 8)
    scores = torch.tensor(image @ text.T / 0.07)
    own = torch.arange(5)
    both = nn.functional.cross_entropy(scores, own) + nn.functional.cross_entropy(scores.T, own)
    assert loss_of(image, [text], Config())[0] == pytest.approx(float(both) / 2, rel=1e-5)


def test_the_order_of_languages_and_of_pictures_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    image, texts = unit(rng, 5, 8), [unit(rng, 5, 8) for _ in range(3)]
    value = loss_of(image, texts, Config())[0]
    assert loss_of(image, texts[::-1], Config())[0] == pytest.approx(value, rel=1e-5)
    order = [3, 1, 4, 0, 2]
    moved = loss_of(image[order], [each[order] for each in texts], Config())[0]
    assert moved == pytest.approx(value, rel=1e-5)


def test_the_positives_of_a_picture_share_its_softmax() -> None:
    """However good the model is, the half from the picture stays above log K."""
    perfect = np.eye(4)
    _, halves = loss_of(perfect, [perfect] * 3, Config(temperature=0.01))
    assert halves["image_to_text"] == pytest.approx(np.log(3), abs=1e-4)
    assert halves["text_to_image"] == pytest.approx(0.0, abs=1e-4)


def test_rows_without_weight_and_copies_are_no_negatives() -> None:
    rng = np.random.default_rng(3)
    image, texts = unit(rng, 4, 6), [unit(rng, 4, 6) for _ in range(2)]
    fewer = loss_of(image[:3], [each[:3] for each in texts], Config())[0]
    without = batch_of(4, weight=[1.0, 1.0, 1.0, 0.0])
    assert loss_of(image, texts, Config(), without)[0] == pytest.approx(fewer, rel=1e-5)
    twins = loss_of(image, texts, Config(), batch_of(4, groups=[0, 1, 2, 2]))[0]
    assert twins < loss_of(image, texts, Config())[0]


def test_the_temperature_stays_in_its_range() -> None:
    objective = OneToK(Config(temperature=0.001))
    for value, end in ((-20.0, 0.001), (3.0, 0.5)):
        with torch.no_grad():
            objective.temperature.log.fill_(value)
        objective.after_step(tiny_model(), nn.Module())
        assert float(objective.temperature.value()) == pytest.approx(end, rel=1e-5)


# --- mean rank variance ---


def test_golden_values_of_mean_rank_variance() -> None:
    assert mean_rank_variance([[1, 5], [2, 2]]) == 2.0
    assert mean_rank_deviation([[1, 5], [2, 2]]) == 1.0


def test_mean_rank_variance_is_0_only_where_all_languages_agree() -> None:
    assert mean_rank_variance([[7, 7, 7], [900, 900, 900]]) == 0.0
    assert mean_rank_variance([[7, 7, 8]]) > 0


def test_a_constant_model_is_consistent_and_at_chance() -> None:
    """Which is why hits are printed beside the variance."""
    model = tiny_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.image_projection = nn.Linear(16, 8)
        model.text_projection = nn.Linear(16, 8)
        for head in (model.image_projection, model.text_projection):
            head.weight.zero_()
            head.bias.fill_(1.0)
    data = spoken(12)
    report = measure_consistency(System(model=model), data, ("text", "text.x"))
    for way in ("image_to_text", "text_to_image"):
        assert report.metrics[way]["hit@1"] == pytest.approx(100 / 12)
        assert report.metrics[way]["mean rank variance"] == 0.0


def spoken(count: int) -> DataSet:
    samples = make_scenes(count, size_px=24, detail="full").samples
    rng = np.random.default_rng(0)
    return DataSet(
        name="spoken",
        samples=tuple(
            replace(
                s,
                slots=dict(s.slots)
                | {"text.x": tuple(made_up_language(t, "x", rng) for t in s.slots["text"])},
            )
            for s in samples
        ),
    )


def test_samples_that_lack_a_language_are_left_out_of_training_and_measuring() -> None:
    data = spoken(6)
    silent = replace(data.samples[0], slots={**data.samples[0].slots, "text.x": ()})
    mixed = DataSet(name="mixed", samples=(silent, *data.samples[1:]))
    languages = ("text", "text.x")
    kept = InEveryLanguage(languages=languages)(mixed.samples, np.random.default_rng(0))
    assert list(kept) == list(mixed.samples[1:])
    report = measure_consistency(System(model=tiny_model()), mixed, languages)
    assert report.data["left_out"] == 1
    with pytest.raises(DataError, match=r"none of 6 samples.*text\.de"):
        InEveryLanguage(languages=("text", "text.de"))(data.samples, np.random.default_rng(0))


def test_what_is_no_slot_of_texts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"languages are text,?.*image"):
        parts(Config(languages=("text", "image")), Base(model=tiny_model()))


# --- the experiment ---


def test_the_arms_read_the_languages_that_they_say() -> None:
    world = scenes(num_train=12, num_dev=6, say=lambda _: None)
    captions = [s.slots["text"] for s in world.train_data.samples]
    foreign = [tuple(reversed(each)) for each in captions]
    model = world.make(0)
    by = {"text": world.train, "text.x": cache_texts(model, world.train, foreign)}
    draws = draws_of_step(0, 12, 6, 0)
    batch, _ = ManyLanguages(by=by).batch(draws, range(12), [1.0] * 12)
    assert set(batch.slots) == {"image", "text.ids", "text.mask", "text.x.ids", "text.x.mask"}
    single, _ = ManyLanguages(by=by, one=True).batch(draws, range(12), [1.0] * 12)
    assert set(single.slots) == {"image", "text.ids", "text.mask"}


def test_the_pivot_never_shows_other_languages_a_picture() -> None:
    rng = np.random.default_rng(5)

    def features(image: Array) -> dict[str, Features]:
        return {
            "image": Features(pooled=torch.tensor(image, dtype=torch.float32)),
            "text": Features(pooled=vectors[0]),
            "text.de": Features(pooled=vectors[1].requires_grad_()),
        }

    vectors: list[Tensor] = [torch.tensor(unit(rng, 4, 6), dtype=torch.float32) for _ in range(2)]
    gradients = []
    for _ in range(2):
        objective = Pivot(("text", "text.de"))
        image = unit(rng, 4, 6)
        found = objective.loss(tiny_model(), batch_of(4), features(image), nn.Module())
        vectors[1].grad = None
        torch.autograd.backward(found.total)
        assert vectors[1].grad is not None
        gradients.append(vectors[1].grad.clone())
    assert torch.equal(gradients[0], gradients[1])


def test_it_learns_two_languages(tmp_path: Path) -> None:
    data = spoken(48)
    settings = {"start": "random", "preset": "tiny", "steps": "150", "batch_size": "24"}
    loop = {"learning_rate": "3e-3", "warmup_steps": "5", "crop_area": "1.0", "mirror": "no"}
    own = {"languages": "text,text.x"}
    model_dir = train("one_to_k", data, tmp_path / "run", settings | loop | own)
    from costream.encoders.storage import load

    model = load(model_dir)
    chance = 100 / 48
    german = DataSet(
        name="x",
        samples=tuple(
            replace(s, slots={**s.slots, "text": s.slots["text.x"]}) for s in data.samples
        ),
    )
    for each in (data, german):
        assert retrieval_hits(model, cache_pairs(model, each))["hit@1"] > 4 * chance
