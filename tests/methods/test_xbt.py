"""XBT: maps and flips by their formulas, laws of the adapter, and an old index that is asked anew.

Shape letters: N texts, I dimensions of the new model, O of the old one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from costream.data import make_scenes
from costream.encoders.dual import DualEncoder
from costream.encoders.storage import load, save_model
from costream.errors import ConfigError, DataError, SpaceMismatch
from costream.index import open_index, update_index
from costream.method import apply_methods, read_method
from costream.methods._xbt.adapter import adapters_off, put_adapter, without_adapter
from costream.methods._xbt.maps import (
    FitConfig,
    Rotation,
    disturb,
    fit_perceptron,
    procrustes,
    slerp,
)
from costream.methods._xbt.upgrade import (
    UpgradeEvaluation,
    count_flips,
    is_compatible,
    successes,
)
from costream.methods.xbt import Config, XbtObjective, contrast, pseudo_old
from costream.search.engine import Searcher
from costream.search.query import Picture, Query, Words
from costream.system import load_system, run_protocol
from costream.train import train
from tiny_world import scene_batch, tiny_config, tiny_model, write_scenes

SMALL: dict[str, str] = {"old": "cots-mini", "map_steps": "2", "hidden": "16", "rank": "2"}
# Those after it must be made for its number of dimensions.
FIRST = True

FIT = FitConfig(
    hidden=32, layers=2, noise=0.3, cosine=1.0, temperature=0.05, steps=60, batch=64, rate=3e-3
)


def units(count: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, dim, generator=generator), dim=-1)


# --- maps ---


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 6), (9, 5), (5, 9)])
def test_procrustes_finds_a_planted_rotation(inputs: int, outputs: int) -> None:
    """Exactly; with fewer dimensions than before, of what lies in the planted subspace."""
    narrow = min(inputs, outputs)
    planted = torch.linalg.qr(torch.randn(max(inputs, outputs), narrow).double()).Q
    planted = planted if inputs >= outputs else planted.T
    new = units(50, narrow).double() @ planted.T if inputs > outputs else units(50, inputs).double()
    found = procrustes(new, new @ planted)
    assert torch.allclose(new @ found, new @ planted, atol=1e-10)
    inner = (new @ found) @ (new @ found).T
    assert torch.allclose(inner, new @ new.T, atol=1e-10)


def test_procrustes_is_the_best_of_all_orthogonal_matrices() -> None:
    new, old = units(40, 5).double(), units(40, 5, seed=1).double()
    best = (new @ procrustes(new, old) - old).norm()
    for seed in range(20):
        torch.manual_seed(seed)
        other = torch.linalg.qr(torch.randn(5, 5).double()).Q
        assert best <= (new @ other - old).norm()


def test_slerp_has_the_endpoints_and_golden_values_between() -> None:
    u, v = units(4, 6), units(4, 6, seed=1)
    assert torch.equal(slerp(u, v, 0.0), u)
    assert torch.equal(slerp(u, v, 1.0), v)
    assert torch.allclose(slerp(u, u, 0.3), u, atol=1e-6)
    x, y = np.array([1.0, 0.0]), np.array([np.cos(0.8), np.sin(0.8)])
    golden = (np.sin(0.6) * x + np.sin(0.2) * y) / np.sin(0.8)
    found = slerp(torch.from_numpy(x)[None], torch.from_numpy(y)[None], 0.25)[0]
    assert np.allclose(found.numpy(), golden)
    assert np.allclose(found.numpy(), [np.cos(0.2), np.sin(0.2)])


def test_noise_has_the_length_that_was_asked_for() -> None:
    vectors = units(500, 256)
    assert torch.allclose(disturb(vectors, 0.0), vectors)
    moved = disturb(vectors, 1.0, torch.Generator().manual_seed(1))
    # Noise as long as the vector and across it turns it by 45 degrees.
    assert float((moved * vectors).sum(dim=1).mean()) == pytest.approx(0.5**0.5, abs=0.02)


def test_phi_learns_a_map_that_was_planted_and_leaves_the_random_state_alone() -> None:
    new = units(300, 12)
    old = functional.normalize(new @ torch.linalg.qr(torch.randn(12, 8)).Q, dim=-1)
    before = torch.get_rng_state()
    phi = fit_perceptron(new[:250], old[:250], replace(FIT, noise=0.0, steps=200), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(not weight.requires_grad for weight in phi.parameters())
    scores = phi(new[250:]) @ old[250:].T
    assert float((scores.argmax(dim=1) == torch.arange(50)).float().mean()) > 0.5
    with pytest.raises(DataError, match="1 different texts"):
        fit_perceptron(new[:1], old[:1], FIT, seed=0)


# --- flips and the criterion ---


def test_flips_account_for_the_gain_to_the_digit() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 7, 333):
        old, new = rng.random(count) < 0.4, rng.random(count) < 0.6
        flips = count_flips(old, new)
        assert flips.positive - flips.negative == int(new.sum()) - int(old.sum())
        assert flips.gain == 100.0 * (int(new.sum()) - int(old.sum())) / count
        assert flips.positive_rate - flips.negative_rate == pytest.approx(flips.gain, abs=1e-12)


def test_the_same_model_through_the_identity_flips_nothing() -> None:
    images, texts = units(30, 8), units(60, 8, seed=1)
    owner = np.repeat(np.arange(30), 2)
    identity = Rotation(torch.eye(8))
    gallery = images.numpy(), texts.numpy()
    asked = identity(images).detach().numpy(), identity(texts).detach().numpy()
    old = successes(*gallery, *gallery, owner, 5)
    new = successes(*asked, *gallery, owner, 5)
    for direction in old:
        flips = count_flips(old[direction], new[direction])
        assert (flips.positive, flips.negative) == (0, 0)


def test_compatible_is_strict_and_in_both_directions() -> None:
    old = {"image_to_text": 30.0, "text_to_image": 20.0}
    assert is_compatible(old, {"image_to_text": 30.1, "text_to_image": 20.1})
    assert not is_compatible(old, old)
    assert not is_compatible(old, {"image_to_text": 0.5, "text_to_image": 57.0})
    with pytest.raises(DataError, match="directions"):
        is_compatible({"text_to_image": 20.0}, {"text_to_image": 57.0})


# --- the adapter ---


def adapted(*, rank: int = 2) -> tuple[DualEncoder, DualEncoder]:
    """A new model, and the same with an adapter whose matrices are not zero."""
    new, old = tiny_model(), tiny_model(tiny_config(dim=6, name="old"), seed=1)
    model = tiny_model()
    put_adapter(model, Rotation(units(8, 6)), old.space, rank=rank)
    model.config = replace(model.config, in_query_space=True, methods=("xbt",))
    for name, weight in model.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(weight)
    return new.eval(), model.eval()


TEXTS = ["a red circle left of a blue square", "a green star"]


def test_the_new_model_is_still_there_to_the_last_bit() -> None:
    new, model = adapted()
    pictures = [sample.slots["image"] for sample in make_scenes(3, size_px=24).samples]
    plain = without_adapter(model)
    assert plain.space == new.space != model.own_space
    assert np.array_equal(plain.encode_texts(TEXTS), new.encode_texts(TEXTS))
    assert np.array_equal(plain.encode_images(pictures), new.encode_images(pictures))
    assert not plain.is_query_only
    assert model.encode_texts(TEXTS).shape == (2, 6)
    with pytest.raises(ConfigError, match="the last method of tiny is none, expected xbt"):
        without_adapter(plain)


def test_without_matrices_it_is_the_map_of_the_new_model() -> None:
    new, model = adapted(rank=0)
    mapped = model.old_space_map(torch.from_numpy(new.encode_texts(TEXTS)))  # type: ignore[operator]
    assert np.allclose(model.encode_texts(TEXTS), mapped.detach().numpy(), atol=1e-6)


def test_targets_are_those_of_the_towers_before() -> None:
    new, model = adapted()
    batch = scene_batch(model, size=3)
    ids, mask = (batch.slots[f"text.{name}"].flatten(0, 1) for name in ("ids", "mask"))
    model.train()
    targets = pseudo_old(model, batch)
    assert model.text.training
    with torch.no_grad():
        expected = model.old_space_map(new.embed_tokens(ids, mask))  # type: ignore[operator]
        assert torch.allclose(targets, expected, atol=1e-6)
        assert not torch.allclose(targets, model.embed_tokens(ids, mask), atol=1e-3)
        with adapters_off(model):
            assert torch.allclose(targets, model.embed_tokens(ids, mask), atol=1e-6)


def test_a_second_map_is_refused() -> None:
    _, model = adapted()
    with pytest.raises(ConfigError, match="has a map to another model's space already"):
        put_adapter(model, Rotation(torch.eye(6)), model.space, rank=1)


# --- the loss ---


def test_the_loss_is_the_sum_of_two_contrasts() -> None:
    _, model = adapted()
    batch = scene_batch(model, size=4)
    batch = replace(batch, groups=torch.arange(4), weight=torch.ones(4))
    features = model.features(batch)
    found = XbtObjective(0.1).loss(model, batch, features, torch.nn.Module())
    image = features["image"].pooled.detach().double().numpy()
    expected = 0.0
    for text in (pseudo_old(model, batch), features["text"].pooled.detach()):
        scores = image @ text.double().numpy().T / 0.1
        for each in (scores, scores.T):
            log_p = each - np.log(np.exp(each).sum(axis=1, keepdims=True))
            expected -= np.diag(log_p).mean() / 2
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-5)


def test_texts_of_the_same_picture_are_no_negatives() -> None:
    batch = scene_batch(tiny_model(), size=2)
    batch = replace(batch, groups=torch.zeros(2, dtype=torch.int64), weight=torch.ones(2))
    assert float(contrast(units(2, 4), units(2, 4, seed=1), batch, 0.1)) == 0.0


# --- an old index, a new model ---


@pytest.fixture(scope="module")
def upgrade(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A folder of scenes, an old model, and a new one that was trained to ask in its space."""
    folder = tmp_path_factory.mktemp("upgrade")
    write_scenes(folder / "data", 24)
    old = save_model(tiny_model(tiny_config(dim=6, name="old"), seed=1), folder / "old")
    new = save_model(tiny_model(tiny_config(name="new")), folder / "new")
    settings = {"start": str(new), "old": str(old), "map_steps": "3", "hidden": "16", "rank": "2"}
    loop = {"steps": "2", "batch_size": "6", "warmup_steps": "1"}
    return folder, old, train("xbt", folder / "data", folder / "run", settings | loop)


def test_the_old_index_answers_the_new_model_and_does_not_change(
    upgrade: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    folder, old_place, new_place = upgrade
    weights = (old_place / "model.safetensors").read_bytes()
    old, new = load(old_place), load(new_place)
    assert new.space == old.space
    with open_index(tmp_path / "index", create=True) as index:
        update_index(index, old, folder / "data")
        ids = [item.id for item in index.items()]
        before = index.vectors(ids).copy()
        answer = Searcher(index, new).answer(Query(terms=(Words("a red circle"),), top=3))
        assert len(answer.results) == 3
        asked = new.encode_texts(["a red circle"])[0].astype(np.float64)
        best = before.astype(np.float64) @ asked
        assert answer.results[0].id == ids[int(best.argmax())]
        by_picture = Searcher(index, new).answer(Query(terms=(Picture(ids[0]),), top=3))
        assert len(by_picture.results) == 3
        with pytest.raises(
            ConfigError, match=r"only asks indexes of 'old'.*embed items with 'old'"
        ):
            update_index(index, new, folder / "data")
        assert np.array_equal(index.vectors(ids), before)
        with pytest.raises(SpaceMismatch):
            Searcher(index, load(folder / "new")).answer(Query(terms=(Words("a circle"),)))
    assert (old_place / "model.safetensors").read_bytes() == weights


def test_nothing_of_the_new_model_trained_but_the_adapter(
    upgrade: tuple[Path, Path, Path],
) -> None:
    folder, _, new_place = upgrade
    plain = without_adapter(load(new_place))
    start = load(folder / "new")
    assert plain.space == start.space
    assert np.array_equal(plain.encode_texts(TEXTS), start.encode_texts(TEXTS))
    with torch.no_grad():
        ups = [w for name, w in load(new_place).named_parameters() if name.endswith(".up")]
        assert any(bool(weight.any()) for weight in ups)


def test_the_upgrade_is_measured_in_both_directions(upgrade: tuple[Path, Path, Path]) -> None:
    folder, old_place, new_place = upgrade
    data = make_scenes(12, size_px=24)
    system = load_system(new_place)
    report = run_protocol(f"xbt old={old_place}", system, data)
    assert set(report.metrics) == {"image_to_text", "text_to_image"}
    for values in report.metrics.values():
        flips = values["positive_flips@1"] - values["negative_flips@1"]
        assert values["gain@1"] == pytest.approx(flips, abs=1e-9)
        assert values["hit@1"] - values["old hit@1"] == pytest.approx(flips, abs=1e-9)
        assert values["compatible"] == (values["hit@1"] > values["old hit@1"])
    assert report.model["name"] == "new"
    assert report.model["weights_hash"] == system.model.own_space.weights_hash
    with pytest.raises(SpaceMismatch, match="name the model that it was trained with"):
        UpgradeEvaluation(str(folder / "new")).run(system, data)


def test_the_closed_form_needs_no_steps(upgrade: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder, old_place, _ = upgrade
    settings = {"start": str(folder / "new"), "old": str(old_place), "projection": "procrustes"}
    model = train("xbt", folder / "data", tmp_path / "run", settings | {"rank": "0", "steps": "0"})
    assert load(model).space == load(old_place).space


def test_training_on_leaves_the_old_space(upgrade: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Or vectors that moved would be compared with an index that did not."""
    folder, old_place, new_place = upgrade
    loop = {"start": str(new_place), "steps": "1", "batch_size": "6", "warmup_steps": "1"}
    losses = {"mvm": "0", "mlm": "0", "queue_size": "8"}
    model = load(train("cots", folder / "data", tmp_path / "run", loop | losses))
    assert model.space != load(old_place).space
    assert model.space == model.own_space


def test_it_needs_an_old_model_and_training(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", 6)
    new = save_model(tiny_model(), tmp_path / "new")
    with pytest.raises(ConfigError, match="old=NAME_OR_DIR"):
        train("xbt", tmp_path / "data", tmp_path / "run", {"start": str(new)})
    with pytest.raises(ConfigError, match="xbt is trained before it is used"):
        apply_methods(tiny_model(), [read_method("xbt")])
    assert Config().fit.noise == Config().noise
