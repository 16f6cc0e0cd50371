"""The single-stream peer: masks, chunks, what it can tell apart, and that it learns."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from costream.encoders.blocks import TransformerConfig
from costream.encoders.cross import (
    CrossConfig,
    CrossEncoder,
    cross_encoder_beside,
    score_matrix,
    tokens_of_pixels,
    tokens_of_texts,
)
from costream.encoders.cross_training import (
    PairTokens,
    draw_negatives,
    matching_loss,
    train_cross_encoder,
)
from costream.encoders.dual import DualConfig, DualEncoder
from costream.encoders.preprocess import ImagePreprocess, TextPreprocess
from costream.encoders.text import TextConfig
from costream.encoders.vision import VisionConfig
from costream.errors import ConfigError, DataError, NumericalError

LAYERS = TransformerConfig(width=16, depth=2, heads=2, mlp_width=32)
WORDS = ("red", "green", "blue", "square", "disc", "a")


def small_cross(**sizes: int) -> CrossEncoder:
    torch.manual_seed(0)
    given = {"image_width": 12, "text_width": 16, "max_image_tokens": 4, "max_text_tokens": 6}
    return CrossEncoder(CrossConfig(transformer=LAYERS, **(given | sizes))).eval()


def small_dual() -> DualEncoder:
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(("?", *WORDS))}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = TextConfig(vocab_size=7, context=6, transformer=LAYERS, embedding_norm=True)
    config = DualConfig(
        name="small",
        dim=8,
        vision=VisionConfig(image_px=16, patch_px=8, transformer=LAYERS),
        text=text,
        image_preprocess=ImagePreprocess(size_px=16),
        text_preprocess=TextPreprocess(max_tokens=6),
    )
    return DualEncoder(config, tokenizer).eval()


def random_pairs(images: int = 5, texts: int = 7) -> PairTokens:
    torch.manual_seed(1)
    mask = torch.arange(6)[None] < torch.tensor([6, 1, 3, 2, 5, 6, 4])[:texts, None]
    return PairTokens(
        images=torch.randn(images, 4, 12),
        texts=torch.randn(texts, 6, 16),
        mask=mask,
        image_of_text=torch.arange(texts) % images,
    )


def test_padding_never_changes_a_score() -> None:
    cross, data = small_cross(), random_pairs()
    images = data.images[:1].expand(7, -1, -1)
    expected = cross.score(images, data.texts, data.mask)
    noisy = torch.where(data.mask[..., None], data.texts, 1e3)
    assert torch.allclose(cross.score(images, noisy, data.mask), expected, atol=1e-6)
    for row in range(7):
        length = int(data.mask[row].sum())
        alone = cross.score(
            images[row : row + 1], data.texts[row : row + 1, :length], torch.ones(1, length)
        )
        assert torch.allclose(alone[0], expected[row], atol=1e-5)


def test_matrix_is_every_pair_scored_alone_at_any_chunk_size() -> None:
    cross, data = small_cross(), random_pairs()
    expected = torch.stack(
        [
            torch.stack(
                [
                    cross.score(data.images[i][None], data.texts[t][None], data.mask[t][None])[0]
                    for t in range(7)
                ]
            )
            for i in range(5)
        ]
    ).detach()
    for chunk in (1, 2, 5, 100):
        matrix = score_matrix(cross, data.images, data.texts, data.mask, pairs_at_once=chunk)
        assert matrix.shape == (5, 7) and matrix.dtype == torch.float32
        assert torch.allclose(matrix, expected, atol=1e-5)


def test_matrix_restores_the_mode_and_survives_nothing() -> None:
    cross, data = small_cross().train(), random_pairs()
    none = score_matrix(cross, data.images[:0], data.texts, data.mask)
    assert none.shape == (0, 7) and cross.training
    assert score_matrix(cross, data.images, data.texts[:0], data.mask[:0]).shape == (5, 0)
    empty_text = torch.zeros_like(data.mask)
    assert torch.isfinite(score_matrix(cross, data.images, data.texts, empty_text)).all()
    with pytest.raises(ConfigError, match="pairs_at_once"):
        score_matrix(cross, data.images, data.texts, data.mask, pairs_at_once=0)


def test_score_depends_on_both_sides_on_order_and_on_segment() -> None:
    cross, data = small_cross(text_width=12), random_pairs()
    image, text = data.images[:1], torch.randn(1, 4, 12)
    full = torch.ones(1, 4)
    score = cross.score(image, text, full)
    for other in (
        cross.score(image.flip(1), text, full),
        cross.score(image, text.flip(1), full),
        cross.score(data.images[1:2], text, full),
        cross.score(text, image, full),
    ):
        assert not torch.allclose(score, other, atol=1e-5)


def test_score_is_not_a_sum_of_two_one_sided_scores() -> None:
    """The double difference s11 - s12 - s21 + s22 of a sum is zero; a joint model's is not."""
    data = random_pairs()
    matrix = score_matrix(small_cross(), data.images, data.texts, data.mask)
    assert abs(float(matrix[0, 0] - matrix[0, 2] - matrix[1, 0] + matrix[1, 2])) > 1e-4


@pytest.mark.parametrize(
    ("images", "texts"),
    [((1, 5, 12), (1, 6, 16)), ((1, 4, 11), (1, 6, 16)), ((1, 4, 12), (1, 7, 16))],
)
def test_tokens_that_do_not_fit_are_refused(
    images: tuple[int, ...], texts: tuple[int, ...]
) -> None:
    with pytest.raises(DataError, match="expected"):
        small_cross().score(torch.zeros(images), torch.zeros(texts), torch.ones(texts[:2]))


def test_matching_losses_in_float64() -> None:
    """softmax: mean of the two -log p(true); binary: mean cross entropy of all logits."""
    rng = np.random.default_rng(0)
    own, images, texts = rng.normal(size=3), rng.normal(size=(3, 2)), rng.normal(size=(3, 2))
    rows = [
        np.mean(np.log(np.exp(own) + np.exp(other).sum(axis=1)) - own) for other in (images, texts)
    ]
    flat = np.concatenate([-own, images.ravel(), texts.ravel()])
    tensors = [torch.from_numpy(part) for part in (own, images, texts)]
    assert float(matching_loss(*tensors)) == pytest.approx(np.mean(rows), rel=1e-9)
    assert float(matching_loss(*tensors, "binary")) == pytest.approx(
        np.log1p(np.exp(flat)).mean(), rel=1e-9
    )
    zeros = (torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 2))
    assert float(matching_loss(*zeros)) == pytest.approx(math.log(3))
    assert float(matching_loss(*zeros, "binary")) == pytest.approx(math.log(2))


def test_negatives_are_others_all_different_and_mostly_the_hard_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.zeros(6, 6)
    scores[:, 3] = 3.0
    counts = torch.zeros(6, 6)
    for _ in range(400):
        drawn = draw_negatives(scores, 2, generator)
        assert all(len(set(row)) == 2 and i not in row for i, row in enumerate(drawn.tolist()))
        counts += torch.nn.functional.one_hot(drawn, 6).sum(dim=1)
    assert counts[0, 3] / 400 > 0.85
    # Of 400 x 2 draws of row 3, which cannot draw itself, each of the five others gets a fifth.
    assert torch.allclose(counts[3, [0, 1, 2, 4, 5]] / 800, torch.tensor(0.2), atol=0.06)
    assert torch.equal(
        draw_negatives(scores, 5, generator).sort(dim=1).values[0], torch.arange(1, 6)
    )


def scene_pairs(count: int = 64) -> PairTokens:
    """Pictures of 4 tokens that hold a colour and a form; texts that name both; one pair each.

    12 kinds of colour and form; a match needs both right.
    """
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(0, 12, (count,), generator=generator)
    colour, form = kinds % 4, kinds // 4
    images = torch.randn(count, 4, 12, generator=generator) * 0.1
    images[torch.arange(count), 1, colour] += 2.0
    images[torch.arange(count), 2, 4 + form] += 2.0
    words = torch.randn(7, 16, generator=generator)
    texts = torch.stack([words[colour], words[4 + form]], dim=1)
    return PairTokens(
        images=images,
        texts=texts,
        mask=torch.ones(count, 2, dtype=torch.bool),
        image_of_text=torch.arange(count),
    )


@pytest.mark.parametrize("form", ["softmax", "binary"])
def test_it_learns_to_tell_a_match(form: Literal["softmax", "binary"]) -> None:
    """The best picture of a text is of its kind far more often than by chance (1 in 12)."""
    cross, data = small_cross(max_text_tokens=2), scene_pairs()
    losses = train_cross_encoder(
        cross, data, steps=200, batch_size=24, negatives=2, form=form, learning_rate=5e-3
    )
    assert len(losses) == 200 and not cross.training
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:3])
    matrix = score_matrix(cross, data.images, data.texts, data.mask)
    kinds = data.images[:, 1, :4].argmax(dim=1) + 4 * data.images[:, 2, 4:7].argmax(dim=1)
    assert float((kinds[matrix.argmax(dim=0)] == kinds).float().mean()) > 0.4


def test_training_is_deterministic_and_hard_negatives_change_it() -> None:
    data = random_pairs()
    runs = [train_cross_encoder(small_cross(), data, steps=3, batch_size=4) for _ in range(2)]
    assert runs[0] == runs[1]
    vectors = torch.nn.functional.normalize(torch.randn(7, 3), dim=1)
    hard = PairTokens(
        images=data.images,
        texts=data.texts,
        mask=data.mask,
        image_of_text=data.image_of_text,
        image_vectors=vectors[:5],
        text_vectors=vectors,
    )
    assert train_cross_encoder(small_cross(), hard, steps=3, batch_size=4) != runs[0]


def test_training_refuses_what_cannot_work() -> None:
    data = random_pairs()
    with pytest.raises(ConfigError, match="larger than the negatives"):
        train_cross_encoder(small_cross(), data, batch_size=2, negatives=2)
    alike = PairTokens(
        images=data.images,
        texts=data.texts,
        mask=data.mask,
        image_of_text=torch.zeros(7, dtype=torch.int64),
    )
    with pytest.raises(DataError, match="got 1 pictures"):
        train_cross_encoder(small_cross(), alike)
    uneven = PairTokens(
        images=data.images,
        texts=data.texts,
        mask=data.mask[:3],
        image_of_text=data.image_of_text,
    )
    with pytest.raises(DataError, match="equal numbers"):
        train_cross_encoder(small_cross(), uneven)
    broken = PairTokens(
        images=data.images * float("nan"),
        texts=data.texts,
        mask=data.mask,
        image_of_text=data.image_of_text,
    )
    with pytest.raises(NumericalError, match="at step 0"):
        train_cross_encoder(small_cross(), broken, steps=2)


def test_a_peer_reads_its_models_tokens_and_never_changes_the_model() -> None:
    model = small_dual()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cross = cross_encoder_beside(model)
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    images = tokens_of_pixels(model, pixels, batch_size=2)
    texts, mask = tokens_of_texts(model, ["red square", "a green disc", "blue", "a", "disc"])
    assert images.shape == (5, 4, 16) and texts.shape == (5, 3, 16)
    assert mask.sum(dim=1).tolist() == [2, 3, 1, 1, 1]
    assert len(cross.transformer.layers) == len(model.text.transformer.layers)
    data = PairTokens(images=images, texts=texts, mask=mask, image_of_text=torch.arange(5))
    train_cross_encoder(cross, data, steps=2, batch_size=4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_peer_starts_from_the_text_towers_weights() -> None:
    model = small_dual()
    cross = cross_encoder_beside(model)
    for name, value in model.text.transformer.state_dict().items():
        assert torch.equal(cross.transformer.state_dict()[name], value)
    assert torch.equal(cross.text_positions, model.text.position_embedding)
