"""Laws: what makes embedding faster changes no vector, or by less than is said.

The linear layer gives torch's own to float32 rounding, and is torch's own where gradients flow;
bfloat16 is the same however pictures are batched, near float32, and refused where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import costream
from costream.encoders import dual as dual_module
from costream.encoders import linear as linear_module
from costream.encoders.dual import DualEncoder
from costream.encoders.linear import Linear
from costream.errors import NumericalError
from costream.index import Index, PreparingEncoder, update_index

GALLERY = Path(costream.__file__).parent / "assets" / "gallery"


@pytest.fixture(autouse=True)
def always_worthwhile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The convolution is taken, whatever this machine is."""
    monkeypatch.setattr(linear_module, "mkl_is_slow", lambda: True)
    yield


@pytest.mark.parametrize("shape", [(128,), (4, 50), (2, 3, 64), (1000,)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_torchs_own_to_rounding(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = Linear(48, 80, bias=bias)
    x = torch.randn(*shape, 48)
    want = functional.linear(
        x.double(), layer.weight.double(), None if not bias else layer.bias.double()
    )
    with torch.inference_mode():
        found = layer(x)
        strided = layer(x.flip(0).flip(0).transpose(0, -1).contiguous().transpose(0, -1))
    assert found.shape == want.shape
    for made in (found, strided):
        torch.testing.assert_close(made.double(), want, atol=2e-6, rtol=1e-5)


def test_few_rows_gradients_and_other_precisions_take_torchs_own() -> None:
    torch.manual_seed(0)
    layer = Linear(48, 80)
    few, many = torch.randn(127, 48), torch.randn(500, 48)
    with torch.inference_mode():
        assert torch.equal(layer(few), functional.linear(few, layer.weight, layer.bias))
        with torch.autocast("cpu", torch.bfloat16):
            made = layer(many)
            assert made.dtype == torch.bfloat16
            assert torch.equal(made, functional.linear(many, layer.weight, layer.bias))
    with torch.no_grad():
        assert torch.equal(layer(many), functional.linear(many, layer.weight, layer.bias))
    layer(many).sum().backward()
    assert layer.weight.grad is not None


# --- pictures that are prepared beforehand ---


def pictures() -> list[Path]:
    return sorted(GALLERY.glob("*.jpg"))[:6]


def test_what_is_prepared_beforehand_gets_the_same_vectors(tiny_model_dir: Path) -> None:
    model = costream.load(tiny_model_dir)
    assert isinstance(model, PreparingEncoder)
    opened = [Image.open(path).convert("RGB") for path in pictures()]
    prepared = [model.prepare_image(picture) for picture in opened]
    want = model.encode_images(opened, batch_size=4)
    assert np.array_equal(model.encode_prepared(prepared, batch_size=4), want)
    assert model.encode_prepared([]).shape == (0, model.config.dim)


def test_an_indexed_file_has_the_vector_that_the_model_gives(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = costream.load(tiny_model_dir)
    smallest_side = model.config.image_preprocess.decoded_px
    with Index.open(tmp_path / "index", create=True) as index:
        update_index(index, model, pictures(), smallest_side=smallest_side)
        stored = index.vectors([str(path) for path in pictures()])
    np.testing.assert_allclose(stored, model.encode_images(pictures()), atol=1e-3)


# --- bfloat16 ---


def one_by_one(model: DualEncoder, paths: list[Path]) -> np.ndarray:
    return np.concatenate([model.encode_images([path]) for path in paths])


def test_bfloat16_is_near_float32_and_the_same_in_any_batch(tiny_model_dir: Path) -> None:
    model = costream.load(tiny_model_dir)
    want = model.encode_images(pictures())
    model.precision = "bfloat16"
    found = model.encode_images(pictures())
    assert found.dtype == np.float32
    assert not np.array_equal(found, want)
    assert (found * want).sum(axis=1).min() > 0.999
    assert np.array_equal(one_by_one(model, pictures()), found)
    assert np.array_equal(model.encode_images(pictures()[::-1], batch_size=4)[::-1], found)
    texts = model.encode_texts(["red"])
    model.precision = "float32"
    assert np.array_equal(model.encode_texts(["red"]), texts)
    assert np.array_equal(model.encode_images(pictures()), want)


def test_bfloat16_is_refused_where_it_changes_vectors(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dual_module, "_LEAST_COSINE", 0.9999999)
    model = costream.load(tiny_model_dir)
    model.precision = "bfloat16"
    with Index.open(tmp_path / "index", create=True) as index:
        with pytest.raises(NumericalError, match=r"in bfloat16 tiny gives other vectors") as told:
            update_index(index, model, pictures())
        assert told.value.hint == "use float32"
        assert len(index) == 0


def test_the_program_takes_a_precision(
    tiny_model_dir: Path, tmp_path: Path, costream_program: object
) -> None:
    words = ("index", str(GALLERY / "husky.jpg"), "--model", tiny_model_dir)
    run = costream_program.here  # type: ignore[attr-defined]
    run(*words, "--precision", "bfloat16", cwd=tmp_path)
    model = costream.load(tiny_model_dir)
    model.precision = "bfloat16"
    want = model.encode_images([GALLERY / "husky.jpg"])
    with Index.open(tmp_path / ".costream") as index:
        np.testing.assert_array_equal(
            index.vectors(index.ids()), want.astype(np.float16).astype(np.float32)
        )
    done = run(*words, "--precision", "bfloat16", "--engine", "ray", cwd=tmp_path, code=2)
    assert "got --precision with --engine ray" in done.stderr
