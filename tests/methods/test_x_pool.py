"""X-Pool: the formula as a plain loop, its laws, what it reduces to, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from costream.data import DataSet, make_scenes
from costream.encoders.storage import save_model
from costream.errors import ConfigError
from costream.index import Index, Item
from costream.method import apply_methods, read_method
from costream.methods._x_pool.claim import (
    clips,
    hits,
    mean_scores,
    noisy_views,
    pooled_scores,
    train_pooling,
)
from costream.methods.x_pool import (
    Config,
    FramePooling,
    PooledContrast,
    PooledScorer,
    parts,
    pooling_of,
)
from costream.parts import Base
from costream.records import Batch, Features, Sample
from costream.system import load_system
from costream.train import train
from tiny_world import tiny_model

SMALL = {"scale": "10.0"}
"""Settings for the contract of all methods."""

Array = NDArray[np.float64]


def random_pooling(dim: int = 8, heads: int = 1, seed: int = 0) -> FramePooling:
    torch.manual_seed(seed)
    pooling = FramePooling(dim, heads=heads).double().eval()
    with torch.no_grad():
        for weight in pooling.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return pooling


def numbers(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def array(value: Tensor) -> Array:
    found: Array = value.detach().double().numpy()
    return found


def layer_norm(x: Array, module: nn.LayerNorm) -> Array:
    centred = x - x.mean()
    scaled = centred / np.sqrt((centred**2).mean() + module.eps)
    return scaled * array(module.weight) + array(module.bias)


def linear(x: Array, module: nn.Linear) -> Array:
    return array(module.weight) @ x + array(module.bias)


def pooled_by_loop(pooling: FramePooling, text: Array, frames: Array) -> Array:
    """p(t, v) of the module's docstring, head by head, frame by frame."""
    heads, width = pooling.heads, len(text) // pooling.heads
    query = linear(layer_norm(text, pooling.norm_in), pooling.query)
    seen = [layer_norm(frame, pooling.norm_in) for frame in frames]
    mixed = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = np.array([linear(v, pooling.key)[part] @ query[part] for v in seen])
        weights = np.exp(logits / np.sqrt(width))
        weights /= weights.sum()
        mixed.append(
            sum(w * linear(v, pooling.value)[part] for w, v in zip(weights, seen, strict=True))
        )
    attended = layer_norm(linear(np.concatenate(mixed), pooling.out), pooling.norm_attended)
    return layer_norm(attended + linear(attended, pooling.linear), pooling.norm_out)


@pytest.mark.parametrize("heads", [1, 2])
def test_pooling_is_that_of_the_formula(heads: int) -> None:
    pooling, text, frames = random_pooling(heads=heads), numbers(3, 8), numbers(2, 5, 8, seed=2)
    found = array(pooling(text, frames))
    for q in range(3):
        for g in range(2):
            expected = pooled_by_loop(pooling, array(text[q]), array(frames[g]))
            assert found[g, q] == pytest.approx(expected, abs=1e-9)


def test_scores_are_cosines_with_the_text_as_it_came() -> None:
    pooling, text, frames = (
        random_pooling().float(),
        numbers(3, 8).float(),
        numbers(2, 5, 8).float(),
    )
    scores = pooling.scores(text, frames)
    assert scores.shape == (3, 2)
    pooled = pooling(text, frames)
    expected = functional.cosine_similarity(text[1], pooled[0, 1], dim=0)
    assert float(scores[1, 0]) == pytest.approx(float(expected), abs=1e-6)


def test_attention_sums_to_1_over_the_frames() -> None:
    weights = random_pooling(heads=2).weights(numbers(3, 8), numbers(2, 5, 8))
    assert weights.shape == (2, 2, 3, 5)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 2, 3, dtype=torch.float64))


def test_one_frame_is_pooled_whatever_the_text_says() -> None:
    pooled = random_pooling()(numbers(3, 8), numbers(2, 1, 8))
    assert torch.allclose(pooled[:, 0], pooled[:, 1])
    assert torch.allclose(pooled[:, 0], pooled[:, 2])


def test_order_and_repetition_of_frames_do_not_matter() -> None:
    pooling, text, frames = random_pooling(), numbers(3, 8), numbers(2, 5, 8, seed=2)
    pooled = pooling(text, frames)
    assert torch.allclose(pooling(text, frames[:, [3, 0, 4, 1, 2]]), pooled)
    assert torch.allclose(pooling(text, frames.repeat(1, 3, 1)), pooled)


def test_the_length_of_frames_does_not_matter() -> None:
    """So an index that keeps frames at unit length can be asked (epsilon of the norm aside)."""
    pooling, text, frames = random_pooling(), numbers(3, 8), 30 * numbers(2, 5, 8, seed=2)
    unit = functional.normalize(frames, dim=-1) * 8
    assert torch.allclose(pooling(text, unit), pooling(text, frames), atol=1e-4)


def test_without_a_query_all_frames_count_alike() -> None:
    pooling = random_pooling()
    with torch.no_grad():
        pooling.query.weight.zero_()
        pooling.query.bias.zero_()
    weights = pooling.weights(numbers(3, 8), numbers(2, 5, 8))
    assert torch.allclose(weights, torch.full_like(weights, 0.2))


def test_it_starts_as_attention_without_parameters() -> None:
    pooling = FramePooling(8).double().eval()
    text, frames = numbers(2, 8), numbers(3, 5, 8, seed=2)
    seen = functional.layer_norm(frames, (8,))
    asked = functional.layer_norm(text, (8,))
    weights = torch.softmax(torch.einsum("qd,gfd->gqf", asked, seen) / 8**0.5, dim=-1)
    attended = functional.layer_norm(weights @ seen, (8,))
    assert torch.allclose(pooling(text, frames), functional.layer_norm(2 * attended, (8,)))


def test_vectors_that_are_too_long_are_refused_before_they_fill_the_memory() -> None:
    """A space of all words of a vocabulary has some 28,000 dimensions."""
    with pytest.raises(ConfigError, match="have 28,000 dimensions, expected at most 4,096"):
        FramePooling(28_000)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads is 3, expected a divisor of 8"):
        parts(Config(heads=3), Base(model=tiny_model()))


# --- the loss ---


def batch_of(count: int, weight: list[float] | None = None) -> Batch:
    return Batch(
        ids=tuple(map(str, range(count))),
        groups=torch.arange(count),
        slots={},
        weight=torch.ones(count) if weight is None else torch.tensor(weight),
        seeds=torch.arange(count),
    )


def loss_of(text: Tensor, frames: Tensor, batch: Batch) -> float:
    model = tiny_model()
    model.add_module("frame_pooling", random_pooling().float())
    features = {
        "video": Features(pooled=frames[:, 0], tokens=frames, modality="video"),
        "text": Features(pooled=text, modality="text"),
    }
    objective = PooledContrast(Config(scale=5.0))
    return float(objective.loss(model, batch, features, nn.Module()).total)


def test_the_loss_is_contrast_in_both_directions() -> None:
    text, frames = numbers(4, 8).float(), numbers(4, 5, 8, seed=2).float()
    scores, own = 5.0 * random_pooling().float().scores(text, frames), torch.arange(4)
    both = functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)
    assert loss_of(text, frames, batch_of(4)) == pytest.approx(float(both) / 2, rel=1e-5)


def test_videos_without_weight_are_absent() -> None:
    text, frames = numbers(4, 8).float(), numbers(4, 5, 8, seed=2).float()
    fewer = loss_of(text[:3], frames[:3], batch_of(3))
    without = loss_of(text, frames, batch_of(4, [1.0, 1.0, 1.0, 0.0]))
    assert without == pytest.approx(fewer, rel=1e-5)


# --- in use ---


def test_a_picture_is_a_video_of_one_frame() -> None:
    scorer = PooledScorer(pooling=random_pooling().float())
    text = Features(pooled=numbers(3, 8).float(), modality="text")
    pictures = Features(pooled=numbers(2, 8, seed=2).float(), modality="image")
    videos = Features(pooled=pictures.pooled, tokens=pictures.pooled[:, None], modality="video")
    assert torch.equal(scorer.score(text, pictures), scorer.score(text, videos))
    assert torch.equal(scorer.score(text, videos), scorer.score(videos, text).T)


def test_it_finds_the_frame_that_shows_it_where_the_mean_does_not() -> None:
    """Two of twelve frames: above the mean of the frames without, and more with training."""
    dev = noisy_views(100, 1)
    frames = clips(dev, 2, 0)
    mean = hits(mean_scores(dev.texts, frames))
    untrained = hits(pooled_scores(FramePooling(64), dev.texts, frames))
    trained = train_pooling(noisy_views(300, 0), seed=0, steps=60)
    assert mean + 5 < untrained
    assert hits(pooled_scores(trained, dev.texts, frames)) >= untrained - 3


def test_clips_show_their_own_picture_as_often_as_said() -> None:
    views = noisy_views(10, 0)
    for shown in (1, 4, 12):
        frames = clips(views, shown, 0)
        own = (frames[:, :, None] == views.images[:, None]).all(dim=-1).any(dim=-1)
        assert (own.sum(dim=1) == shown).all()


def test_training_and_evaluation_by_their_commands(tmp_path: Path) -> None:
    from costream.evaluate.systems import evaluate_system

    scenes = make_scenes(16, size_px=24, detail="full").samples
    others = scenes[1:] + scenes[:1]
    data = DataSet(
        name="clips",
        samples=tuple(
            Sample(
                id=s.id,
                group=s.group,
                slots={
                    "video": (s.slots["image"], other.slots["image"]),
                    "text": s.slots["text"],
                },
            )
            for s, other in zip(scenes, others, strict=True)
        ),
    )
    loop = {"start": "random", "preset": "tiny", "steps": "2", "batch_size": "8", "frames": "2"}
    model = train("x_pool", data, tmp_path / "run", loop)
    system = load_system(model)
    assert system.parts.scorer is not None
    assert pooling_of(system.model) is system.parts.scorer.pooling  # type: ignore[attr-defined]
    report = evaluate_system(system, data)
    assert report.model["scorer"] == "PooledScorer"
    assert report.metrics["text_to_image"]["hit@10"] >= report.metrics["text_to_image"]["hit@1"]


def test_a_search_by_words_scores_pairs(tmp_path: Path, costream_program: Any) -> None:
    """The program's new scores are those of the scorer, over the stored moments."""
    system = apply_methods(tiny_model(), [read_method("x_pool")])
    with torch.no_grad():
        for weight in pooling_of(system.model).parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    save_model(system.model, tmp_path / "model")
    model = load_system(tmp_path / "model").model
    frames = torch.nn.functional.normalize(numbers(6, 3, model.config.dim), dim=-1).numpy()
    with Index.open(tmp_path / ".costream", create=True) as index:
        items = [Item(id=f"clip{n}", modality="video") for n in range(6)]
        spans = np.tile([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]], (6, 1))
        rows = frames.reshape(18, -1)
        index.add_moments(items, rows, np.repeat(np.arange(6), 3), spans, model.space)
        stored = torch.from_numpy(index.all_vectors(index.ids())).unflatten(0, (6, 3))
    ask = ("search", "a red circle", "--model", tmp_path / "model", "--no-names", "--json")
    found = costream_program.here(*ask, cwd=tmp_path).json["results"]
    text = torch.from_numpy(model.encode_texts(["a red circle"]))
    want = pooling_of(model).eval().scores(text, stored)[0].detach()
    got = {one["id"]: one["reasons"]["steps"] for one in found}
    assert list(got) == [f"clip{n}" for n in want.argsort(descending=True).tolist()]
    assert [got[f"clip{n}"] for n in range(6)] == pytest.approx(want.tolist(), abs=2e-3)
