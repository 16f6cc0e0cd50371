"""The transformer layers: the formula, what a mask means, and what is off outside training."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from costream.encoders.blocks import Attention, Layer, Transformer, TransformerConfig, activate

WIDTH, HEADS, TOKENS = 12, 3, 5
Array = NDArray[np.float64]
M = TypeVar("M", bound=torch.nn.Module)


def config(**changes: Any) -> TransformerConfig:
    sizes: dict[str, Any] = {"width": WIDTH, "depth": 3, "heads": HEADS, "mlp_width": 20}
    return TransformerConfig(**{**sizes, **changes})


def randomised(module: M, seed: int = 0) -> M:
    """Every weight random: fresh ones are zero or one where a mistake would not show."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn_like(weight) * 0.4 + (0.5 if weight.ndim == 1 else 0.0))
    return module.eval()


def tokens(batch: int, count: int = TOKENS, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def weights(module: torch.nn.Module) -> dict[str, Array]:
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


# --- the formulas, in numpy float64 ---


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def attention_formula(x_TD: Array, w: dict[str, Array], allowed_TT: NDArray[np.bool_]) -> Array:
    """One item: softmax(q k' / sqrt(width of a head)) v for each head, then the output layer."""
    query, key, value = np.split(x_TD @ w["qkv.weight"].T + w["qkv.bias"], 3, axis=-1)
    side = WIDTH // HEADS
    heads = []
    for start in range(0, WIDTH, side):
        part = slice(start, start + side)
        scores = query[:, part] @ key[:, part].T / np.sqrt(side)
        heads.append(softmax(np.where(allowed_TT, scores, -np.inf)) @ value[:, part])
    return np.concatenate(heads, axis=-1) @ w["out.weight"].T + w["out.bias"]


def norm_formula(x: Array, w: dict[str, Array], name: str, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def quick_gelu(x: Array) -> Array:
    return x / (1 + np.exp(-1.702 * x))


def mlp_formula(x: Array, w: dict[str, Array]) -> Array:
    inner = quick_gelu(x @ w["mlp_in.weight"].T + w["mlp_in.bias"])
    return inner @ w["mlp_out.weight"].T + w["mlp_out.bias"]


def layer_formula(x_TD: Array, layer: Layer) -> Array:
    w, eps = weights(layer), layer.config.norm_eps
    inner = {name.removeprefix("attention."): value for name, value in w.items()}
    all_allowed = np.ones((len(x_TD), len(x_TD)), dtype=bool)
    scale_1, scale_2 = w.get("attention_scale", 1.0), w.get("mlp_scale", 1.0)
    if layer.config.norm == "pre":
        normed = norm_formula(x_TD, w, "attention_norm", eps)
        x_TD = x_TD + attention_formula(normed, inner, all_allowed) * scale_1
        return x_TD + mlp_formula(norm_formula(x_TD, w, "mlp_norm", eps), w) * scale_2
    x_TD = x_TD + attention_formula(x_TD, inner, all_allowed) * scale_1
    x_TD = norm_formula(x_TD, w, "attention_norm", eps)
    return norm_formula(x_TD + mlp_formula(x_TD, w) * scale_2, w, "mlp_norm", eps)


# --- golden ---


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_formula(causal: bool, masked: bool) -> None:
    attention = randomised(Attention(WIDTH, HEADS))
    x = tokens(2)
    real = np.array([[True] * TOKENS, [True] * 3 + [False] * 2])
    with torch.no_grad():
        found = attention(x, torch.from_numpy(real) if masked else None, causal=causal)
    for item in range(2):
        allowed = np.tri(TOKENS, dtype=bool) if causal else np.ones((TOKENS, TOKENS), dtype=bool)
        if masked:
            allowed = allowed & real[item]
        expected = attention_formula(x[item].double().numpy(), weights(attention), allowed)
        np.testing.assert_allclose(found[item].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("layer_scale", [False, True])
def test_a_layer_is_the_formula(norm: str, layer_scale: bool) -> None:
    form = config(norm=norm, layer_scale=layer_scale, activation="quick_gelu", norm_eps=0.01)
    layer = randomised(Layer(form))
    x = tokens(1)
    with torch.no_grad():
        found = layer(x, None, causal=False)[0].numpy()
    np.testing.assert_allclose(found, layer_formula(x[0].double().numpy(), layer), atol=1e-5)


def test_activations_are_their_formulas() -> None:
    x = np.array([-9.0, -2.0, -0.5, 0.0, 1.0, 3.0])
    cubic = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    formulas = {
        "gelu": [each * (1 + math.erf(each / math.sqrt(2))) / 2 for each in x],
        "gelu_tanh": x * (1 + np.tanh(cubic)) / 2,
        "quick_gelu": quick_gelu(x),
    }
    for name, expected in formulas.items():
        found = activate(torch.from_numpy(x), name)  # type: ignore[arg-type] # a literal from above
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12, err_msg=name)


# --- laws of masks ---


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("causal", [False, True])
def test_an_item_alone_is_the_item_in_any_padded_batch(norm: str, causal: bool) -> None:
    stack = randomised(Transformer(config(norm=norm), causal=causal))
    alone = tokens(1, 3)
    batch = tokens(4, 9, seed=2) * 50  # what stands in the padding must not matter
    batch[2, :3] = alone[0]
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[2, 3:] = False
    with torch.no_grad():
        expected = stack(alone, torch.ones(1, 3, dtype=torch.bool))
        found = stack(batch, mask)
    torch.testing.assert_close(found[2, :3], expected[0], atol=1e-5, rtol=1e-5)


def test_a_full_mask_is_no_mask() -> None:
    stack = randomised(Transformer(config()))
    x = tokens(2)
    full = torch.ones(2, TOKENS, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(stack(x, full), stack(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_a_causal_token_does_not_see_later_ones(masked: bool) -> None:
    stack = randomised(Transformer(config(), causal=True))
    x, changed = tokens(1), tokens(1)
    changed[0, 3:] += 10
    mask = torch.ones(1, TOKENS, dtype=torch.bool) if masked else None
    with torch.no_grad():
        before, after = stack(x, mask), stack(changed, mask)
    assert torch.equal(before[0, :3], after[0, :3])
    assert not torch.allclose(before[0, 3:], after[0, 3:])


def test_an_item_without_any_real_token_spoils_nothing() -> None:
    """An empty text of a tokenizer without special tokens: no NaN that training would spread."""
    stack = randomised(Transformer(config()))
    mask = torch.ones(2, TOKENS, dtype=torch.bool)
    mask[1] = False
    x = tokens(2).requires_grad_()
    found = stack(x, mask)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


# --- training only ---


def test_dropout_and_drop_path_are_off_outside_training() -> None:
    wild = Transformer(config(dropout=0.5, drop_path=0.9))
    plain = Transformer(config())
    plain.load_state_dict(randomised(wild).state_dict())
    x = tokens(2)
    with torch.no_grad():
        assert torch.equal(wild.eval()(x), plain.eval()(x))
        assert not torch.equal(wild.train()(x), plain(x))


def test_drop_path_skips_whole_items_and_keeps_the_mean() -> None:
    """Each item's part is either skipped or divided by the rate of keeping."""
    layer = randomised(Layer(config(), drop_path=0.25)).train()
    same = torch.ones(4000, 1, WIDTH)
    torch.manual_seed(3)
    dropped = layer._drop(same)
    assert set(np.unique(dropped.numpy().round(5))) == {0.0, np.float32(1 / 0.75).round(5)}
    assert torch.equal(dropped.amin(dim=(1, 2)), dropped.amax(dim=(1, 2)))
    assert abs(float(dropped.mean()) - 1.0) < 0.03


def test_drop_path_grows_from_nothing_to_the_rate() -> None:
    rates = [layer.drop_path for layer in Transformer(config(depth=5, drop_path=0.4)).layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert [layer.drop_path for layer in Transformer(config(depth=1, drop_path=0.4)).layers] == [0]


# --- hooks ---


def test_a_hook_enters_each_layer_in_order() -> None:
    stack = randomised(Transformer(config()))
    x = tokens(2)
    seen: list[tuple[int, torch.Tensor]] = []

    def read(number: int, now: torch.Tensor) -> torch.Tensor:
        seen.append((number, now))
        return now

    with torch.no_grad():
        assert torch.equal(stack(x, None, read), stack(x))
        assert [number for number, _ in seen] == [0, 1, 2]
        assert torch.equal(seen[0][1], x)
        assert torch.equal(seen[1][1], stack.layers[0](x, None, causal=False))


def test_what_a_hook_returns_is_what_the_layer_gets() -> None:
    stack = randomised(Transformer(config()))
    x, other = tokens(1), tokens(1, seed=9)
    with torch.no_grad():
        found = stack(x, None, lambda number, now: other if number == 2 else now)
        assert torch.equal(found, stack.layers[2](other, None, causal=False))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width=12 and heads=5"):
        Attention(12, 5)
