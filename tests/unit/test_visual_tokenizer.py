"""Visual tokenizers: codes of the right form, used, stable, and weights all or error."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from costream.encoders.visual_tokenizer import (
    AnyTokenizer,
    DiscreteVae,
    DiscreteVaeConfig,
    KMeansTokenizer,
    PublishedDvae,
    PublishedDvaeConfig,
    VisualTokenizer,
    code_usage,
    fit_discrete_vae,
    load_published_dvae,
    load_tokenizer_model,
    save_tokenizer,
)
from costream.errors import ConfigError, DataError, NumericalError, WeightsError

TINY = DiscreteVaeConfig(vocab_size=32, width=16, code_dim=8)
TINY_PUBLISHED = PublishedDvaeConfig(vocab_size=24, hidden=8)


def pictures(count: int = 64, side: int = 32, seed: int = 0) -> torch.Tensor:
    """Coloured squares on coloured grounds: few kinds of patches, many colours."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (6, 3, 1, 1))
    images = np.zeros((count, 3, side, side), dtype=np.uint8)
    for image in images:
        ground, colour = rng.choice(6, 2, replace=False)
        image[:] = palette[ground]
        top, left = rng.integers(0, side // 2, 2)
        image[:, top : top + side // 2, left : left + side // 2] = palette[colour]
    return torch.from_numpy(images)


def tokenizers() -> dict[str, AnyTokenizer]:
    torch.manual_seed(0)
    return {
        "dvae": DiscreteVae(TINY).eval(),
        "published": PublishedDvae(TINY_PUBLISHED).eval(),
        "kmeans": KMeansTokenizer.fit(pictures(), vocab_size=16),
    }


@pytest.fixture(params=["dvae", "published", "kmeans"])
def tokenizer(request: pytest.FixtureRequest) -> AnyTokenizer:
    return tokenizers()[request.param]


def test_codes_have_the_form_of_the_grid(tokenizer: AnyTokenizer) -> None:
    assert isinstance(tokenizer, VisualTokenizer) and tokenizer.pixels_per_token == 8
    codes = tokenizer.encode(pictures(5)[:, :, :, :24])
    assert codes.shape == (5, 4, 3) and codes.dtype == torch.int64
    assert 0 <= int(codes.min()) and int(codes.max()) < tokenizer.vocab_size
    assert not codes.requires_grad
    assert tokenizer.encode(pictures(0)).shape == (0, 4, 4)


def test_a_picture_alone_has_the_codes_it_has_in_a_batch(tokenizer: AnyTokenizer) -> None:
    images = pictures(9)
    together = tokenizer.encode(images)
    assert torch.equal(together, torch.cat([tokenizer.encode(image[None]) for image in images]))


def test_codes_do_not_depend_on_autocast(tokenizer: AnyTokenizer) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = tokenizer.encode(pictures(8))
    assert torch.equal(inside, tokenizer.encode(pictures(8)))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 16, 16),
        torch.zeros(1, 1, 16, 16, dtype=torch.uint8),
        torch.zeros(3, 16, 16, dtype=torch.uint8),
        torch.zeros(1, 3, 16, 20, dtype=torch.uint8),
        torch.zeros(1, 3, 0, 16, dtype=torch.uint8),
    ],
)
def test_other_forms_are_refused(tokenizer: AnyTokenizer, images: torch.Tensor) -> None:
    with pytest.raises(DataError, match="expected"):
        tokenizer.encode(images)


def test_saved_is_loaded_bit_for_bit(tokenizer: AnyTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path / "new" / "folder")
    loaded = load_tokenizer_model(tmp_path / "new" / "folder")
    assert type(loaded) is type(tokenizer) and not loaded.training
    assert loaded.vocab_size == tokenizer.vocab_size
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert torch.equal(loaded.encode(pictures()), tokenizer.encode(pictures()))
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert sorted(path.suffix for path in (tmp_path / "new" / "folder").iterdir()) == [
        ".json",
        ".safetensors",
    ]


def test_damage_is_an_error_not_a_random_tokenizer(tokenizer: AnyTokenizer, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no visual tokenizer"):
        load_tokenizer_model(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    weights, settings = (tmp_path / f"visual_tokenizer.{end}" for end in ("safetensors", "json"))
    whole, told = weights.read_bytes(), json.loads(settings.read_text())
    weights.write_bytes(whole[:-5] + b"\x00\x01\x02\x03\x04")
    with pytest.raises(WeightsError, match="sha256"):
        load_tokenizer_model(tmp_path)
    weights.unlink()
    with pytest.raises(WeightsError, match="no weights"):
        load_tokenizer_model(tmp_path)
    weights.write_bytes(whole)
    for change in ({"format": "other"}, {"kind": "other"}, {"config": {"other": 1}}):
        settings.write_text(json.dumps(told | change))
        with pytest.raises(WeightsError):
            load_tokenizer_model(tmp_path)
    settings.write_text("{")
    with pytest.raises(WeightsError, match="JSON"):
        load_tokenizer_model(tmp_path)


def test_perplexity_is_exp_of_entropy() -> None:
    """One code: 1; all equal: V; else exp(-sum p log p) in float64."""
    assert code_usage(torch.zeros(7, 2, dtype=torch.int64), 8).perplexity == pytest.approx(1.0)
    assert code_usage(torch.arange(8), 8).perplexity == pytest.approx(8.0)
    p = np.array([0.5, 0.25, 0.25])
    usage = code_usage(torch.tensor([5, 5, 1, 2]), 8)
    assert usage.perplexity == pytest.approx(float(np.exp(-(p * np.log(p)).sum())))
    assert (usage.used, usage.tokens) == (3, 4)
    with pytest.raises(DataError, match="no codes"):
        code_usage(torch.zeros(0, dtype=torch.int64), 8)


# --- the discrete variational auto-encoder ---


def test_kl_terms_in_float64() -> None:
    """kl = mean_positions KL(p || 1/V), usage = KL(mean p || 1/V), from the logits."""
    vae = tokenizers()["dvae"]
    assert isinstance(vae, DiscreteVae)
    images = pictures(6)
    loss = vae.loss(images, generator=torch.Generator().manual_seed(0))
    logits = vae.logits(images).detach().double().numpy().transpose(0, 2, 3, 1).reshape(-1, 32)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    mean = p.mean(axis=0)
    assert float(loss.kl) == pytest.approx((p * np.log(p * 32)).sum(axis=1).mean(), rel=1e-4)
    assert float(loss.usage) == pytest.approx((mean * np.log(mean * 32)).sum(), rel=1e-3)
    expected = loss.error + vae.config.usage_weight * loss.usage
    assert float(loss.total.detach()) == pytest.approx(float(expected), rel=1e-6)


def test_kl_is_zero_for_undecided_and_log_v_for_certain_codes() -> None:
    vae = DiscreteVae(DiscreteVaeConfig(vocab_size=16, width=8, code_dim=4, kl_weight=1.0))
    torch.nn.init.zeros_(vae.codebook)
    undecided = vae.loss(pictures(2))
    assert float(undecided.kl) == pytest.approx(0.0, abs=1e-6)
    assert float(undecided.usage) == pytest.approx(0.0, abs=1e-6)
    vae.look.load_state_dict(
        {"weight": torch.zeros_like(vae.look.weight), "bias": torch.full((4,), 100.0)}
    )
    vae.codebook.data[3] = 1.0
    certain = vae.loss(pictures(2))
    assert float(certain.kl) == pytest.approx(math.log(16), rel=1e-5)
    assert float(certain.usage) == pytest.approx(math.log(16), rel=1e-5)
    assert float(certain.total.detach()) > float(certain.kl)
    assert (vae.encode(pictures(2)) == 3).all()


def test_codes_that_nothing_is_near_leave_the_gradient_finite() -> None:
    """Their probability is exactly 0, where the slope of p log p is infinite."""
    vae = DiscreteVae(TINY)
    vae.codebook.data[5:] = 1e3
    torch.autograd.backward(vae.loss(pictures(2)).total)
    assert all(
        weight.grad is not None and torch.isfinite(weight.grad).all() for weight in vae.parameters()
    )


def test_the_code_is_the_nearest_one() -> None:
    """argmax of 2 z.c - c.c is argmin of |z - c|^2, in float64."""
    vae = DiscreteVae(TINY)
    z = vae.vectors(pictures(4)).detach().double().numpy().transpose(0, 2, 3, 1)
    c = vae.codebook.detach().double().numpy()
    distance = ((z[..., None, :] - c) ** 2).sum(axis=-1)
    assert np.array_equal(vae.encode(pictures(4)).numpy(), distance.argmin(axis=-1))


def test_a_cold_sample_of_certain_codes_paints_what_decode_paints() -> None:
    """At low temperature the relaxed path ends in the path through single codes."""
    vae = tokenizers()["dvae"]
    assert isinstance(vae, DiscreteVae)
    vae.log_sharpness.data.fill_(12.0)
    images = pictures(4)
    squared = (vae.decode(vae.encode(images)).double() - images.double()).square().mean() / 255**2
    assert float(vae.loss(images, temperature=1e-3).error) == pytest.approx(
        float(squared), rel=0.02
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        DiscreteVae(TINY).loss(pictures(1), temperature=temperature)


def test_every_weight_takes_part() -> None:
    vae = DiscreteVae(TINY)
    torch.autograd.backward(vae.loss(pictures(4)).total)
    assert all(weight.grad is not None for weight in vae.parameters())


def test_codes_of_another_tokenizer_are_refused() -> None:
    with pytest.raises(DataError, match="expected 0 to 31"):
        DiscreteVae(TINY).decode(torch.full((1, 2, 2), 32))


@pytest.mark.parametrize("sizes", [{"vocab_size": 1}, {"width": 0}, {"blocks": -1}])
def test_impossible_sizes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        DiscreteVae(DiscreteVaeConfig(**sizes))


def test_training_learns_to_paint_and_uses_its_codes() -> None:
    """Reconstruction through single codes beats one mean picture, with a living codebook."""
    images = pictures(200)
    result = fit_discrete_vae(images, TINY, steps=60, batch_size=16, side_px=32)
    variance = float((images.double() / 255).var(dim=0, correction=0).mean())
    assert result.reconstruction_error < 0.5 * variance
    assert result.usage.perplexity > 6
    assert len(result.errors) == 60 and not result.tokenizer.training


def test_training_is_deterministic_and_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (
        fit_discrete_vae(pictures(), TINY, steps=3, batch_size=4, side_px=16) for _ in range(2)
    )
    assert first.errors == again.errors
    assert torch.equal(torch.get_rng_state(), before)
    other = fit_discrete_vae(pictures(), TINY, steps=3, batch_size=4, side_px=16, seed=1)
    assert other.errors != first.errors


def test_training_refuses_what_cannot_work() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        fit_discrete_vae(pictures(), TINY, side_px=20)
    with pytest.raises(ConfigError, match="at least 1 step"):
        fit_discrete_vae(pictures(), TINY, steps=0)
    with pytest.raises(DataError, match="at least 48 x 48"):
        fit_discrete_vae(pictures(), TINY, steps=1)
    with pytest.raises(DataError, match="at least one"):
        fit_discrete_vae(pictures(0), TINY, steps=1, side_px=32)
    with pytest.raises(DataError, match="different patches"):
        fit_discrete_vae(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), TINY, steps=1, side_px=32)
    with pytest.raises(NumericalError, match="at step"):
        fit_discrete_vae(pictures(), TINY, steps=30, side_px=16, learning_rate=1e30)


# --- the published encoder ---


def published_by_hand(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The published encoder, written down from its names alone, in float64."""

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        w, b = weights[f"{name}.w"].double(), weights[f"{name}.b"].double()
        return functional.conv2d(x, w, b, padding=w.shape[-1] // 2)

    x = conv("blocks.input", 0.8 * images.double() / 255 + 0.1)
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            y = x
            for number in (1, 2, 3, 4):
                y = conv(f"{name}.res_path.conv_{number}", y.relu())
            shortcut = conv(f"{name}.id_path", x) if f"{name}.id_path.w" in weights else x
            x = shortcut + y / 64
        if group < 4:
            x = functional.max_pool2d(x, 2)
    return conv("blocks.output.conv", x.relu())


def test_published_encoder_is_its_formula() -> None:
    torch.manual_seed(0)
    dvae = PublishedDvae(TINY_PUBLISHED)
    for weight in dvae.parameters():  # the biases too, which start at zero
        torch.nn.init.normal_(weight, std=0.3)
    expected = published_by_hand(dvae.state_dict(), pictures(3))
    assert torch.allclose(dvae.logits(pictures(3)).double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(dvae.encode(pictures(3)), expected.argmax(dim=1))


def test_published_sizes_and_names() -> None:
    """The published state: 74 tensors, 53.8 million numbers, these names and shapes."""
    with torch.device("meta"):
        state = PublishedDvae().state_dict()
    assert len(state) == 2 + 8 * 4 * 2 + 3 * 2 + 2
    assert sum(value.numel() for value in state.values()) == 53_786_240
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["blocks.input.w"] == (256, 3, 7, 7)
    assert shapes["blocks.group_1.block_1.res_path.conv_1.w"] == (64, 256, 3, 3)
    assert shapes["blocks.group_1.block_1.res_path.conv_4.w"] == (256, 64, 1, 1)
    assert shapes["blocks.group_2.block_1.id_path.w"] == (512, 256, 1, 1)
    assert shapes["blocks.group_4.block_2.res_path.conv_3.b"] == (512,)
    assert shapes["blocks.output.conv.w"] == (8192, 2048, 1, 1)
    assert "blocks.group_1.block_1.id_path.w" not in shapes
    assert "blocks.group_4.block_2.id_path.w" not in shapes


def test_published_state_loads_whole_or_not_at_all(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = PublishedDvae(TINY_PUBLISHED)
    path = tmp_path / "encoder.safetensors"
    save_file(source.state_dict(), path)
    loaded = load_published_dvae(path, TINY_PUBLISHED)
    assert torch.equal(loaded.encode(pictures()), source.encode(pictures()))

    state = load_file(path)
    name = "blocks.group_1.block_1.res_path.conv_1.w"
    broken = {
        "1 of 74 weights missing": {key: v for key, v in state.items() if key != name},
        "1 unexpected": state | {"blocks.more.w": torch.zeros(1)},
        "shape": state | {name: torch.zeros(2, 8, 1, 1)},
        "not finite": state | {name: torch.full_like(state[name], math.inf)},
    }
    for message, weights in broken.items():
        save_file(weights, path)
        with pytest.raises(WeightsError, match=message):
            load_published_dvae(path, TINY_PUBLISHED)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(WeightsError, match="not a readable"):
        load_published_dvae(path, TINY_PUBLISHED)
    with pytest.raises(WeightsError, match="no weights"):
        load_published_dvae(tmp_path / "absent.safetensors", TINY_PUBLISHED)


def test_half_precision_weights_load_as_float32(tmp_path: Path) -> None:
    source = PublishedDvae(TINY_PUBLISHED).half()
    save_file(source.state_dict(), tmp_path / "half.safetensors")
    loaded = load_published_dvae(tmp_path / "half.safetensors", TINY_PUBLISHED)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}


# --- centroids ---


def test_centroids_are_a_fixed_point_of_plain_k_means() -> None:
    """Each code is the nearest centroid, and once converged each centroid its patches' mean."""
    images = pictures(40)
    fitted = KMeansTokenizer.fit(images, vocab_size=8, iterations=60)
    cut = images.double().numpy().reshape(40, 3, 4, 8, 4, 8).transpose(0, 2, 4, 1, 3, 5) / 255
    patches, centroids = cut.reshape(-1, 192), fitted.centroids.double().numpy()
    distances = ((patches[:, None] - centroids[None]) ** 2).sum(axis=2)
    codes = fitted.encode(images).numpy().reshape(-1)
    chosen = np.take_along_axis(distances, codes[:, None], axis=1)[:, 0]
    assert (chosen <= distances.min(axis=1) + 1e-3).all()
    for code in np.unique(codes):
        assert np.abs(patches[codes == code].mean(axis=0) - centroids[code]).max() < 1e-3


def test_centroids_paint_what_they_stand_for() -> None:
    """With a code for each different patch, nothing is lost."""
    palette = torch.tensor([[0, 0, 0], [255, 0, 0], [0, 255, 0], [40, 50, 60]], dtype=torch.uint8)
    which = torch.randint(0, 4, (10, 2, 2), generator=torch.Generator().manual_seed(0))
    images = palette[which].permute(0, 3, 1, 2)
    images = images.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    fitted = KMeansTokenizer.fit(images, vocab_size=4)
    assert torch.equal(fitted.decode(fitted.encode(images)), images)


def test_fitting_is_deterministic() -> None:
    first, again = (KMeansTokenizer.fit(pictures(), vocab_size=12, seed=4) for _ in range(2))
    assert torch.equal(first.centroids, again.centroids)


def test_more_codes_than_patches_are_refused() -> None:
    with pytest.raises(DataError, match="got 1 different patches, expected at least 2"):
        KMeansTokenizer.fit(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), vocab_size=2)
    with pytest.raises(DataError, match="no pictures"):
        KMeansTokenizer.fit(pictures(0), vocab_size=2)
    with pytest.raises(ConfigError, match="at least 1"):
        KMeansTokenizer.fit(pictures(2), vocab_size=0)
    with pytest.raises(ConfigError, match="centroids of shape"):
        KMeansTokenizer(torch.zeros(4, 191))
