"""MaPLe: where prompts enter, what trains, and the protocol of base and novel classes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from tokenizers.normalizers import Replace
from torch import Tensor

import costream
from costream.data import DataSet, make_scenes
from costream.encoders.dual import DualEncoder
from costream.encoders.preprocess import tokenize
from costream.encoders.storage import load, save_model
from costream.errors import ConfigError, DataError
from costream.evaluate import report_to_json
from costream.method import apply_methods, read_method
from costream.methods._maple.classes import (
    BaseToNovel,
    FewShots,
    accuracy,
    base_and_novel,
    class_text,
)
from costream.methods._maple.world import shape_pictures
from costream.methods.maple import (
    Config,
    MapleObjective,
    TextPrompts,
    VisionPrompts,
    freeze,
    put_prompts,
)
from costream.parts import Parts, System
from costream.records import Batch, Features, Sample
from costream.system import load_system, run_protocol
from costream.train.config import TrainConfig
from costream.train.short import cache_pairs, train_short
from costream.train.worlds import tiny_clips

SMALL: dict[str, str] = {"label": "mentioned"}

SHAPES = ("disc", "square", "cross")
CLASSES = tuple(f"{colour} {shape}" for colour in ("red", "blue", "green") for shape in SHAPES)


def words(*more: str) -> DataSet:
    """A data set that only gives a model its words."""
    text = ("a photo of a .", *CLASSES, *more)
    return DataSet(name="words", samples=(Sample(id="w", group="w", slots={"text": text}),))


def clip_like(*, depth: int = 4, seed: int = 0) -> DualEncoder:
    return tiny_clips(words(), context=12, depth=depth)(seed).eval()


def pixels(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 48, 48), dtype=torch.uint8, generator=generator)


# --- what is put in ---


@pytest.mark.parametrize(("prompts", "layers"), [(2, 3), (1, 1), (4, 4)])
def test_number_of_weights_is_the_formula(prompts: int, layers: int) -> None:
    model = freeze(put_prompts(clip_like(), Config(prompts=prompts, layers=layers)))
    width_t, width_v = model.text.width, model.vision.width
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained == layers * prompts * width_t + layers * (width_t * width_v + width_v)


def test_the_paper_has_three_and_a_half_million_weights() -> None:
    text = TextPrompts(torch.zeros(2, 512), layers=9, first=1)
    vision = VisionPrompts(768, 2, 9, text)
    count = sum(weight.numel() for part in (text, vision) for weight in part.parameters())
    assert count == 3_555_072


def test_deep_maps_start_as_copies_of_one_and_the_first_is_another() -> None:
    vision = VisionPrompts(6, 2, 4, TextPrompts(torch.randn(2, 5), layers=4, first=1))
    first, *deep = (each.weight for each in vision.maps)
    assert all(torch.equal(each, deep[0]) for each in deep)
    assert not torch.equal(first, deep[0])


def test_vision_prompts_are_linear_maps_of_those_of_the_text() -> None:
    text = TextPrompts(torch.randn(2, 5), layers=3, first=1)
    vision = VisionPrompts(6, 2, 3, text)
    for number in range(3):
        prompt = text.prompts[number].detach().double().numpy()
        weight, bias = (
            getattr(vision.maps[number], name).detach().double().numpy()
            for name in ("weight", "bias")
        )
        expected = np.array(
            [[row @ column + b for column, b in zip(weight, bias, strict=True)] for row in prompt]
        )
        np.testing.assert_allclose(vision.of_layer(number).detach().numpy(), expected, atol=1e-5)


def seen_by_layers(model: DualEncoder, side: str) -> list[Tensor]:
    """The tokens before every layer of a tower."""
    seen: list[Tensor] = []
    tower = model.text if side == "text" else model.vision

    def note(_: object, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().clone())

    handles = [layer.register_forward_pre_hook(note) for layer in tower.transformer.layers]
    if side == "text":
        model.encode_texts(["of a red disc."])
    else:
        model.embed_pixels(pixels(1))
    for handle in handles:
        handle.remove()
    return seen


def test_prompts_are_overwritten_before_the_first_layers_and_kept_after_them() -> None:
    model = put_prompts(clip_like(), Config(layers=3))
    text, vision = model.text.hook, model.vision.hook
    assert isinstance(text, TextPrompts) and isinstance(vision, VisionPrompts)
    before_text, before_vision = (seen_by_layers(model, side) for side in ("text", "image"))
    for number in (1, 2):
        given = text.prompts[number].detach()
        torch.testing.assert_close(before_text[number][0, 1:3], given)
        torch.testing.assert_close(before_vision[number][0, -2:], vision.of_layer(number).detach())
    assert before_vision[0].shape[1] == 1 + 36 + 2
    changed = copy.deepcopy(model)
    assert isinstance(changed.text.hook, TextPrompts)
    with torch.no_grad():
        changed.text.hook.prompts[1].add_(1.0)
    for side, before in (("text", before_text), ("image", before_vision)):
        after = seen_by_layers(changed, side)
        assert torch.equal(after[0], before[0])
        assert not torch.equal(after[1], before[1])
        assert not torch.equal(after[3], before[3])


def test_with_one_layer_nothing_is_overwritten() -> None:
    model = put_prompts(clip_like(), Config(layers=1))
    text, vision = model.text.hook, model.vision.hook
    assert text is not None and vision is not None
    tokens = torch.randn(2, 9, model.text.width)
    for number in range(4):
        assert text.before_layer(number, tokens) is tokens
        assert vision.before_layer(number, tokens) is tokens


def test_only_pictures_get_longer_and_leave_as_they_were() -> None:
    model = clip_like()
    plain = model.image_features([make_scenes(1).samples[0].slots["image"]]).tokens
    put_prompts(model, Config())
    prompted = model.image_features([make_scenes(1).samples[0].slots["image"]]).tokens
    assert plain is not None and prompted is not None and plain.shape == prompted.shape


# --- what it is equal to ---


def test_prompts_of_words_alone_are_the_zero_shot_model_to_the_last_bit() -> None:
    plain, prompted = clip_like(), clip_like()
    put_prompts(prompted, Config(layers=1, towers="text"))
    texts = [[class_text(name, model) for name in CLASSES] for model in (plain, prompted)]
    assert texts[0][0] == "a photo of a red disc." and texts[1][0] == "of a red disc."
    np.testing.assert_array_equal(prompted.encode_texts(texts[1]), plain.encode_texts(texts[0]))
    assert torch.equal(prompted.embed_pixels(pixels()), plain.embed_pixels(pixels()))


def test_with_prompts_in_pictures_it_starts_elsewhere() -> None:
    plain, prompted = clip_like(), put_prompts(clip_like(), Config(layers=1))
    assert not torch.allclose(prompted.embed_pixels(pixels()), plain.embed_pixels(pixels()))


def test_a_picture_alone_is_the_picture_in_a_batch() -> None:
    model = put_prompts(clip_like(), Config())
    together = model.embed_pixels(pixels(4))
    for number in range(4):
        alone = model.embed_pixels(pixels(4)[number : number + 1])
        torch.testing.assert_close(alone[0], together[number], atol=1e-5, rtol=0)


def test_a_text_keeps_room_for_its_prompts_however_long_it_is() -> None:
    model = put_prompts(clip_like(), Config())
    ids, _ = tokenize(model.tokenizer, ["x", "red " * 40], model.config.text_preprocess)
    assert ids.shape == (2, 12)
    start = model.tokenizer.encode("a photo", add_special_tokens=False).ids
    assert ids[:, 1:3].tolist() == [start, start]
    assert ids[1, -1] == model.config.text.eot_id


# --- saving, composing, errors ---


@pytest.mark.parametrize("towers", ["coupled", "independent", "text", "vision"])
def test_a_saved_model_is_loaded_with_its_prompts(towers: str, tmp_path: Path) -> None:
    model = apply_methods(clip_like(), [read_method(f"maple towers={towers}")]).model
    with torch.no_grad():
        for hook in (model.text.hook, model.vision.hook):
            if isinstance(hook, TextPrompts | VisionPrompts):
                for prompt in hook.parameters():
                    prompt.add_(0.1)
    loaded = load(save_model(model, tmp_path / "m"), device="cpu")
    assert loaded.space == model.space
    np.testing.assert_allclose(
        loaded.encode_texts(["of a red disc."]), model.encode_texts(["of a red disc."]), atol=5e-3
    )
    assert load_system(tmp_path / "m", device="cpu").parts.evaluation


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="layers=5, but a tower of tiny-clip has 4 layers"):
        put_prompts(clip_like(), Config(layers=5))
    with pytest.raises(ConfigError, match="held by another method"):
        put_prompts(put_prompts(clip_like(), Config()), Config())
    model = clip_like()
    model.tokenizer.normalizer = Replace("photo of a", "")
    with pytest.raises(ConfigError, match="'a photo of a' as 1 tokens, expected at least 2"):
        put_prompts(model, Config())


# --- the loss ---


def batch_of(classes: list[str]) -> tuple[Batch, dict[str, str]]:
    names = {f"p{number}": name for number, name in enumerate(classes)}
    batch = Batch(
        ids=tuple(names),
        groups=torch.arange(len(names)),
        slots={"image": pixels(len(names))},
        weight=torch.ones(len(names)),
        seeds=torch.arange(len(names)),
    )
    return batch, names


def test_the_loss_is_cross_entropy_over_the_classes() -> None:
    model = put_prompts(clip_like(), Config())
    batch, names = batch_of(["red disc", "blue square", "red disc"])
    objective = MapleObjective(0.1, {**names, "other": "green cross"})
    state = objective.init_state(model)
    found = float(objective.loss(model, batch, model.features(batch), state).total.detach())
    images = model.embed_pixels(pixels()).detach().double().numpy()
    classes = sorted({"red disc", "blue square", "green cross"})
    texts = model.encode_texts([f"of a {name}." for name in classes]).astype(np.float64)
    expected = 0.0
    for image, name in zip(images, names.values(), strict=True):
        scores = [float(image @ text) / 0.1 for text in texts]
        total = math.log(sum(math.exp(score) for score in scores))
        expected += (total - scores[classes.index(name)]) / 3
    assert found == pytest.approx(expected, abs=1e-4)


def test_no_gradient_reaches_the_model_and_it_reaches_prompts_through_both_towers() -> None:
    model = freeze(put_prompts(clip_like(), Config(layers=3)))
    batch, names = batch_of(["red disc", "blue square", "green cross"])
    objective = MapleObjective(0.1, names)
    state = objective.init_state(model)
    text = model.text.hook
    assert isinstance(text, TextPrompts)
    read = model.embed_tokens

    def gradients_of(*, text_fixed: bool) -> list[Tensor | None]:
        model.zero_grad()
        features = model.features(batch)
        if text_fixed:
            model.embed_tokens = lambda *both: read(*both).detach()  # type: ignore[method-assign]
        else:
            model.embed_tokens = read  # type: ignore[method-assign]
            features = {"image": Features(pooled=features["image"].pooled.detach())}
        objective.loss(model, batch, features, state).total.backward()  # type: ignore[no-untyped-call]
        return [prompt.grad for prompt in text.prompts]

    gradients = gradients_of(text_fixed=True), gradients_of(text_fixed=False)
    for name, weight in model.named_parameters():
        assert weight.requires_grad == (".hook." in name)
        assert weight.grad is None or ".hook." in name
    for through_image, through_text in zip(*gradients, strict=True):
        assert through_image is not None and bool(through_image.abs().sum() > 0)
        assert through_text is not None and bool(through_text.abs().sum() > 0)


# --- classes and the protocol ---


def pictures(per_class: int = 3) -> DataSet:
    samples = tuple(
        Sample(id=f"{name} {n}", group=f"{name} {n}", slots={"image": None, "text": (name,)})
        for name in CLASSES
        for n in range(per_class)
    )
    return DataSet(name="classes", samples=samples)


def test_the_side_of_a_class_depends_on_its_name_alone() -> None:
    base, novel = base_and_novel(CLASSES)
    assert (len(base), len(novel)) == (5, 4)
    assert set(base) | set(novel) == set(CLASSES)
    assert base_and_novel(CLASSES[::-1] * 2) == (base, novel)
    fewer, _ = base_and_novel([*novel, base[0], "a new one"])
    assert base[0] in fewer
    assert not set(fewer) & set(novel)


def test_few_shots_are_of_the_classes_asked_for() -> None:
    data = pictures(5)
    pipe = FewShots(classes=CLASSES[:2], label="", shots=3)
    chosen = pipe(data.samples, np.random.default_rng(0))
    assert [sample.slots["text"][0] for sample in chosen] == [CLASSES[0]] * 3 + [CLASSES[1]] * 3
    again = pipe(data.samples, np.random.default_rng(0))
    assert [sample.id for sample in again] == [sample.id for sample in chosen]
    whole = FewShots(classes=CLASSES, label="", shots=0)(data.samples, np.random.default_rng(0))
    assert [sample.id for sample in whole] == [sample.id for sample in data.samples]


def test_a_picture_without_one_class_is_told() -> None:
    many = Sample(id="p", group="p", slots={"image": None, "text": ("a", "b")}, meta={"scene": "c"})
    with pytest.raises(DataError, match="'p' has 2 different texts, expected one"):
        FewShots(classes=("a",), label="", shots=1)([many], np.random.default_rng(0))
    with pytest.raises(DataError, match=r"no field 'kind'.*its fields are scene"):
        FewShots(classes=("a",), label="kind", shots=1)([many], np.random.default_rng(0))


def test_equal_scores_count_as_chance_and_an_oracle_is_right() -> None:
    own = np.array([0, 1, 2, 2])
    assert accuracy(np.zeros((4, 3)), own) == pytest.approx(100 / 3)
    assert accuracy(np.eye(3)[own], own) == 100.0
    assert accuracy(1 - np.eye(3)[own], own) == 0.0


class Constant:
    """Scores all pairs alike."""

    cost: Literal["dot"] = "dot"
    needs: Literal["pooled"] = "pooled"

    def score(self, query: Features, gallery: Features) -> Tensor:
        return torch.zeros(len(query.pooled), len(gallery.pooled))


def learning_world() -> tuple[DualEncoder, DataSet]:
    """Three pictures of each class, and a model with random weights."""
    return clip_like(), shape_pictures(CLASSES, 3, style="dull", seed=0)


def test_the_protocol_gives_chance_to_a_constant_scorer_and_knows_no_ids() -> None:
    model, data = learning_world()
    constant = System(model=model, parts=Parts(scorer=Constant()))
    report = BaseToNovel().run(constant, data)
    values = report.metrics["image_to_class"]
    assert values["base accuracy"] == pytest.approx(100 / 5)
    assert values["novel accuracy"] == pytest.approx(100 / 4)
    assert values["harmonic mean"] == pytest.approx(2 * 20 * 25 / 45)
    assert "definitions" in report_to_json(report)
    plain = BaseToNovel().run(System(model=model), data).metrics
    renamed = DataSet(
        name="other",
        samples=tuple(replace(s, id=f"z{n}", group=f"z{n}") for n, s in enumerate(data.samples)),
    )
    assert run_protocol("maple", System(model=model), renamed).metrics == plain


def test_too_few_classes_are_refused() -> None:
    model, data = learning_world()
    few = DataSet(
        name="few", samples=tuple(s for s in data.samples if s.slots["text"][0] in CLASSES[:3])
    )
    with pytest.raises(
        DataError, match="has 2 base and 1 novel classes, expected at least 2 of each"
    ):
        BaseToNovel().run(System(model=model), few)


def test_it_learns_classes_and_nothing_else_of_the_model_moves() -> None:
    model, data = learning_world()
    classes = {sample.id: sample.slots["text"][0] for sample in data.samples}
    freeze(put_prompts(model, Config(layers=3)))
    pairs = cache_pairs(model, data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective = MapleObjective(0.05, classes)
    loop = TrainConfig(
        steps=60, batch_size=27, learning_rate=2e-2, warmup_steps=5, weight_decay=0.0
    )
    system = System(model=model)
    untrained = BaseToNovel().run(system, data).metrics["image_to_class"]["harmonic mean"]
    train_short(model, objective, pairs, loop)
    trained = BaseToNovel().run(system, data).metrics["image_to_class"]["harmonic mean"]
    assert trained > max(2 * untrained, 50)
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved and all(".hook." in name for name in moved)


def test_a_user_trains_on_base_classes_and_measures_both(tmp_path: Path) -> None:
    _, data = learning_world()
    settings = {
        "start": "random",
        "preset": "tiny",
        "steps": "2",
        "batch_size": "4",
        "threads": "1",
        "part": "base",
        "shots": "2",
    }
    path = costream.train("maple", data, tmp_path / "run", settings)
    system = load_system(path, device="cpu")
    assert system.model.config.methods == ("maple part=base shots=2",)
    report = run_protocol("maple", system, data)
    assert set(report.metrics["image_to_class"]) == {
        "base accuracy",
        "novel accuracy",
        "harmonic mean",
    }
