"""The towers: how pictures and texts become tokens, and tokens one vector."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from costream.encoders.blocks import TransformerConfig
from costream.encoders.efficientnet import EfficientNetConfig
from costream.encoders.text import TextConfig, TextTower
from costream.encoders.vision import AttentionPool, VisionConfig, VisionTower

WIDTH = 16
LAYERS = TransformerConfig(width=WIDTH, depth=2, heads=4, mlp_width=24)
SMALL_STEM = EfficientNetConfig(width_factor=0.25, depth_factor=0.5)
M = TypeVar("M", bound=torch.nn.Module)


def randomised(module: M) -> M:
    """Every weight random: fresh ones are zero or one where a mistake would not show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3 + (0.5 if weight.ndim == 1 else 0.0))
    return module.eval()


def text_tower(**changes: Any) -> TextTower:
    form: dict[str, Any] = {"vocab_size": 30, "context": 12, "transformer": LAYERS}
    return randomised(TextTower(TextConfig(**{**form, **changes})))


def vision_tower(**changes: Any) -> VisionTower:
    form: dict[str, Any] = {"image_px": 32, "patch_px": 8, "transformer": LAYERS}
    return randomised(VisionTower(VisionConfig(**{**form, **changes})))


def conv_tower(**changes: Any) -> VisionTower:
    return vision_tower(image_px=64, patch_px=32, stem="conv", conv=SMALL_STEM, **changes)


def pictures(rows: int = 32, columns: int = 32, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, rows, columns, generator=generator)


IDS = torch.tensor([[3, 7, 9, 5, 0, 0], [4, 5, 8, 5, 6, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()


# --- texts ---


@torch.no_grad()
@pytest.mark.parametrize(
    ("pooling", "positions"), [("first", [0, 0]), ("eot", [3, 1]), ("last", [5, 5])]
)
def test_one_token_is_the_vector(pooling: str, positions: list[int]) -> None:
    """`eot` takes the first end-of-text token: later ones may be padding."""
    found = text_tower(pooling=pooling, eot_id=5)(IDS, MASK)
    assert torch.equal(found.pooled, found.tokens[torch.arange(2), torch.tensor(positions)])


@torch.no_grad()
def test_the_mean_is_over_real_tokens() -> None:
    found = text_tower(pooling="mean")(IDS, MASK)
    tokens = found.tokens.double().numpy()
    expected = np.stack([tokens[0, :4].mean(axis=0), tokens[1].mean(axis=0)])
    np.testing.assert_allclose(found.pooled.numpy(), expected, atol=1e-6)


@torch.no_grad()
def test_the_dense_pooler_is_a_layer_and_a_tanh() -> None:
    tower = text_tower(pooling="first_dense")
    found = tower(IDS, MASK)
    assert tower.pooler is not None
    weight, bias = tower.pooler.weight.double().numpy(), tower.pooler.bias.double().numpy()
    expected = np.tanh(found.tokens[:, 0].double().numpy() @ weight.T + bias)
    np.testing.assert_allclose(found.pooled.numpy(), expected, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "first", "first_dense", "eot"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_text_alone_is_the_text_in_any_padded_batch(pooling: str, causal: bool) -> None:
    tower = text_tower(pooling=pooling, causal=causal, eot_id=5, final_norm=True)
    alone = tower(IDS[:1, :4], MASK[:1, :4])
    torch.testing.assert_close(tower(IDS, MASK).pooled[:1], alone.pooled, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("embedding_norm", [False, True])
@pytest.mark.parametrize("final_norm", [False, True])
def test_tokens_are_embeddings_and_positions_through_the_layers(
    embedding_norm: bool, final_norm: bool
) -> None:
    tower = text_tower(embedding_norm=embedding_norm, final_norm=final_norm)
    expected = tower.token_embedding.weight[IDS] + tower.position_embedding[:6]
    if tower.embedding_norm is not None:
        expected = tower.embedding_norm(expected)
    expected = tower.transformer(expected, MASK)
    if tower.final_norm is not None:
        expected = tower.final_norm(expected)
    assert (tower.embedding_norm is not None, tower.final_norm is not None) == (
        embedding_norm,
        final_norm,
    )
    torch.testing.assert_close(tower(IDS, MASK).tokens, expected)


@torch.no_grad()
def test_a_text_tower_can_be_entered_at_the_embeddings() -> None:
    tower = text_tower()
    embedded = tower.embed(IDS)
    assert torch.equal(tower.encode(embedded, IDS, MASK).pooled, tower(IDS, MASK).pooled)
    seen: list[int] = []
    prompt = torch.full((WIDTH,), 3.0)

    def put_prompt(number: int, tokens: torch.Tensor) -> torch.Tensor:
        seen.append(number)
        return torch.cat([prompt.expand(2, 1, -1), tokens[:, 1:]], dim=1)

    changed = tower.encode(embedded, IDS, MASK, put_prompt)
    assert seen == [0, 1]
    assert not torch.allclose(changed.pooled, tower(IDS, MASK).pooled)


# --- pictures ---


def cut(picture: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Patches of a picture (3, H, W), row by row, each flattened as (channel, row, column)."""
    rows, columns = picture.shape[1] // side, picture.shape[2] // side
    return np.stack(
        [
            picture[:, r * side : (r + 1) * side, c * side : (c + 1) * side].ravel()
            for r in range(rows)
            for c in range(columns)
        ]
    )


@torch.no_grad()
@pytest.mark.parametrize("shape", [(32, 32), (16, 40), (39, 33)])
def test_patches_are_cut_row_by_row_and_projected(shape: tuple[int, int]) -> None:
    tower = vision_tower()
    images = pictures(*shape)
    weight = tower.project.weight.double().numpy().reshape(WIDTH, -1)  # type: ignore[union-attr] # a Conv2d
    bias = tower.project.bias.double().numpy()  # type: ignore[union-attr] # a Conv2d
    expected = [cut(image, 8) @ weight.T + bias for image in images.double().numpy()]
    np.testing.assert_allclose(tower.patches(images).numpy(), np.stack(expected), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("make", [vision_tower, conv_tower])
@pytest.mark.parametrize("shape", [(64, 64), (64, 96)])
def test_a_vision_tower_can_be_entered_at_each_step(make: Any, shape: tuple[int, int]) -> None:
    tower = make(pooling="mean")
    images = pictures(*shape)
    expected = tower(images)
    stem_map = tower.trained_part(tower.frozen_part(images))
    rows, columns = tower.grid_of(stem_map)
    patches = tower.patches(images)
    assert patches.shape == (2, rows * columns, WIDTH)
    assert torch.equal(tower.encode_map(stem_map).pooled, expected.pooled)
    assert torch.equal(tower.encode_map(stem_map, patches).pooled, expected.pooled)
    assert torch.equal(tower.encode(patches, rows=rows).pooled, expected.pooled)
    seen: list[int] = []
    tower.encode_map(stem_map, on_layer=lambda number, now: seen.append(number) or now)
    assert seen == [0, 1]


@torch.no_grad()
def test_a_picture_alone_is_the_picture_in_any_batch() -> None:
    for tower in (vision_tower(), conv_tower(stem_residual=True)):
        images = pictures(64, 64, 5)
        together = tower(images).pooled
        torch.testing.assert_close(together[3:4], tower(images[3:4]).pooled, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_stem_goes_round_the_layers_where_asked() -> None:
    """`stem_residual` adds the linearly projected mean of the stem's map to the pooled vector."""
    tower = conv_tower(stem_residual=True)
    stem_map = tower.stem_map(pictures(64, 64))
    assert tower.residual is not None
    with_it = tower.encode_map(stem_map).pooled
    without = tower.encode(tower.patches_of_map(stem_map)).pooled
    mean = stem_map.double().numpy().mean(axis=(2, 3))
    weight, bias = tower.residual.weight.double().numpy(), tower.residual.bias.double().numpy()
    np.testing.assert_allclose((with_it - without).numpy(), mean @ weight.T + bias, atol=1e-4)


@torch.no_grad()
def test_positions_stay_where_the_grid_is_the_one_they_were_made_for() -> None:
    tower = vision_tower()
    assert torch.equal(tower.positions(4, 4), tower.position_embedding)
    with torch.no_grad():
        tower.position_embedding[1:] = tower.position_embedding[1]
    stretched = tower.positions(3, 7)
    assert stretched.shape == (1 + 21, WIDTH)
    assert torch.equal(stretched[0], tower.position_embedding[0])
    torch.testing.assert_close(stretched[1:], tower.position_embedding[1].expand(21, -1))


@torch.no_grad()
def test_rows_and_columns_of_positions_are_not_swapped() -> None:
    """Positions that grow along rows only must do so on every other grid."""
    tower = vision_tower(class_token=False)
    grid = torch.arange(4.0).repeat_interleave(4)
    tower.position_embedding.copy_(grid[:, None].expand(-1, WIDTH))
    stretched = tower.positions(2, 8)[:, 0].view(2, 8)
    assert torch.allclose(stretched, stretched[:, :1].expand(-1, 8), atol=1e-5)
    assert float(stretched[1, 0] - stretched[0, 0]) > 1


@torch.no_grad()
def test_where_the_last_normalisation_stands() -> None:
    images = pictures()
    raw, pooled, tokens = (
        vision_tower(final_norm=where)(images) for where in ("none", "pooled", "tokens")
    )
    norm = vision_tower(final_norm="tokens").final_norm
    assert norm is not None
    # The towers differ in how many random weights come before: the norms are compared as written.
    assert pooled.tokens.shape == raw.tokens.shape == tokens.tokens.shape == (2, 17, WIDTH)
    assert torch.equal(tokens.pooled, tokens.tokens[:, 0])
    assert torch.equal(raw.pooled, raw.tokens[:, 0])
    assert not torch.allclose(pooled.pooled, pooled.tokens[:, 0])


@torch.no_grad()
def test_the_class_token_is_no_part_of_the_mean() -> None:
    with_token = vision_tower(pooling="mean")(pictures())
    assert torch.allclose(with_token.pooled, with_token.tokens[:, 1:].mean(dim=1))
    without = vision_tower(pooling="mean", class_token=False)(pictures())
    assert torch.allclose(without.pooled, without.tokens.mean(dim=1))


@torch.no_grad()
def test_attention_pooling_is_the_formula() -> None:
    """softmax(probe q (tokens k)' / sqrt(width of a head)) tokens v, then a residual MLP."""
    form = TransformerConfig(width=8, depth=1, heads=2, mlp_width=12, activation="quick_gelu")
    pool = randomised(AttentionPool(form))
    tokens = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(2))
    w = {name: value.double().numpy() for name, value in pool.state_dict().items()}
    x = tokens[0].double().numpy()
    parts = zip(
        np.split(w["attention.in_proj_weight"], 3),
        np.split(w["attention.in_proj_bias"], 3),
        strict=True,
    )
    (q_w, q_b), (k_w, k_b), (v_w, v_b) = parts
    query, key, value = w["probe"][0] @ q_w.T + q_b, x @ k_w.T + k_b, x @ v_w.T + v_b
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = query[:, part] @ key[:, part].T / 2.0
        powers = np.exp(scores - scores.max())
        heads.append(powers / powers.sum() @ value[:, part])
    mixed = np.concatenate(heads, axis=-1)
    mixed = mixed @ w["attention.out_proj.weight"].T + w["attention.out_proj.bias"]
    centred = mixed - mixed.mean()
    normed = centred / np.sqrt((centred**2).mean() + form.norm_eps)
    inner = (normed * w["norm.weight"] + w["norm.bias"]) @ w["mlp_in.weight"].T + w["mlp_in.bias"]
    inner = inner / (1 + np.exp(-1.702 * inner))
    expected = mixed + inner @ w["mlp_out.weight"].T + w["mlp_out.bias"]
    np.testing.assert_allclose(pool(tokens).numpy(), expected, atol=1e-5)


def test_a_convolutional_stem_needs_its_size() -> None:
    with pytest.raises(ValueError, match="needs conv="):
        VisionTower(VisionConfig(image_px=64, patch_px=32, transformer=LAYERS, stem="conv"))
