"""MacCap: noise, adaptor, parts of pictures, and captions that say what a picture shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from costream.data import DataSet, make_scenes
from costream.errors import ConfigError
from costream.generate.language_model import small_language_model
from costream.method import apply_methods, read_method
from costream.methods._maccap.captions import score_scene, word_overlap
from costream.methods._maccap.claim import Scale, train_adaptor, write_captions
from costream.methods._maccap.regions import PictureTokens, layer_attention, sub_regions
from costream.methods.maccap import (
    Adaptor,
    CaptionGenerator,
    CaptionObjective,
    Config,
    drawn_noise,
    make_captioner,
    noisy,
)
from costream.parts import Training
from costream.system import load_system
from costream.train import train
from costream.train.config import TrainConfig
from costream.train.loader import Loader
from costream.train.worlds import word_tokenizer
from tiny_world import scene_tokenizer, tiny_config, tiny_model

SMALL = {
    "language_model": "tiny",
    "copies": "3",
    "queries": "2",
    "feed_forward": "16",
    "dropout": "0",
    "new_tokens": "6",
    "beams": "1",
}


def unit(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


# --- noise ---


def test_noise_is_added_and_the_length_taken_away() -> None:
    """x = (e + s eps) / |e + s eps|, in numpy."""
    vectors, drawn = unit(4, 1, 512), drawn_noise([1, 2, 3, 4], 3, 512)
    moved = vectors.double().numpy() + np.sqrt(0.016) * drawn.double().numpy()
    expected = moved / np.linalg.norm(moved, axis=-1, keepdims=True)
    length = (512 * 0.016) ** 0.5
    assert np.allclose(noisy(vectors, drawn, length).numpy(), expected, atol=1e-6)
    assert Config().noise == pytest.approx(length, abs=0.01)
    assert torch.allclose(noisy(vectors, drawn, 0.0), vectors.expand(-1, 3, -1), atol=1e-6)


@pytest.mark.parametrize(("variance", "cosine"), [(0.001, 0.813), (0.016, 0.330), (0.1, 0.138)])
def test_one_copy_keeps_little_of_a_vector_and_ten_keep_more(
    variance: float, cosine: float
) -> None:
    """Mean cosine of a noisy copy is about 1 / sqrt(1 + d s^2)."""
    vectors = unit(200, 1, 512)
    copies = noisy(vectors, drawn_noise(range(200), 10, 512), (512 * variance) ** 0.5)
    assert float((copies * vectors).sum(-1).mean()) == pytest.approx(cosine, abs=0.01)
    if variance == 0.016:
        mean = torch.nn.functional.normalize(copies.mean(dim=1), dim=-1)
        assert float((mean * vectors[:, 0]).sum(-1).mean()) == pytest.approx(0.742, abs=0.01)


# --- adaptor ---


def test_the_order_of_what_the_adaptor_reads_does_not_matter() -> None:
    torch.manual_seed(0)
    adaptor = Adaptor(16, 12, Config(queries=4, feed_forward=32)).eval()
    vectors = unit(2, 5, 16)
    there = adaptor(vectors)
    assert there.shape == (2, 4, 12)
    assert torch.allclose(adaptor(vectors[:, [4, 2, 0, 1, 3]]), there, atol=1e-5)
    assert not torch.allclose(adaptor(-vectors), there, atol=1e-3)


# --- parts of pictures ---


def seen_tokens() -> PictureTokens:
    generator = torch.Generator().manual_seed(1)
    tokens = unit(2, 7, 6)
    attention = torch.softmax(2 * torch.randn(2, 7, 7, generator=generator), dim=-1)
    return PictureTokens(whole=tokens[:, 0], tokens=tokens, attention=attention)


def test_parts_are_what_the_most_attended_tokens_attend_to() -> None:
    """The formula as a plain loop."""
    seen = seen_tokens()
    for again in (False, True):
        found = sub_regions(seen, 3, again=again).numpy()
        for picture in range(2):
            attention = seen.attention[picture].double().numpy()
            chosen = np.argsort(-attention[0])[:3]
            for place, token in enumerate(chosen):
                weights = attention[token]
                if again:
                    weights = np.exp(weights) / np.exp(weights).sum()
                part = weights @ seen.tokens[picture].double().numpy()
                assert np.allclose(found[picture, place], part / np.linalg.norm(part), atol=1e-5)


def test_a_second_softmax_makes_weights_nearly_equal() -> None:
    """Even all attention on one of 50 tokens becomes 0.0526 and 0.0193."""
    row = torch.zeros(50)
    row[7] = 1.0
    again = torch.softmax(row, dim=0)
    assert float(again[7]) == pytest.approx(0.0526, abs=1e-4)
    assert float(again[0]) == pytest.approx(0.0193, abs=1e-4)
    seen = seen_tokens()
    middle = torch.nn.functional.normalize(seen.tokens.mean(dim=1), dim=-1)[:, None]
    twice = (sub_regions(seen, 3, again=True) * middle).sum(-1).mean()
    once = (sub_regions(seen, 3) * middle).sum(-1).mean()
    assert twice > 0.95 > once


def test_attention_is_that_of_the_layer() -> None:
    """With equal values everywhere, what a layer mixes is those values: rows sum to 1; and a
    layer's own mixture of values is what these weights give."""
    model = tiny_model(tiny_config(width=8), seed=3)
    layer = model.vision.transformer.layers[-1]
    single = tiny_model(tiny_config(width=8), seed=3).vision.transformer.layers[-1]
    single.attention.heads = 1
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    weights = layer_attention(layer, tokens)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 5), atol=1e-5)
    entered = single.attention_norm(tokens)
    value = single.attention.qkv(entered)[..., 16:]
    mixed = single.attention.out(layer_attention(single, tokens) @ value)
    assert torch.allclose(mixed, single.attention(entered, None, causal=False), atol=1e-5)


def test_without_weight_parts_change_nothing() -> None:
    system = captioning(tiny_model())
    pictures = [sample.slots["image"] for sample in make_scenes(2, size_px=24).samples]
    plain = CaptionGenerator(system, Config(copies=3, region_weight=0.0)).entered(pictures)
    whole, entered = plain
    assert torch.allclose(entered, whole[:, None].expand(-1, 3, -1), atol=1e-5)
    mean = CaptionGenerator(system, Config(copies=3, regions="mean")).entered(pictures)[1]
    assert torch.allclose(mean[:, 0], mean[:, 2], atol=1e-6)
    assert not torch.allclose(mean, entered, atol=1e-3)


def captioning(model):  # type: ignore[no-untyped-def]
    words = "maccap " + " ".join(f"{key}={value}" for key, value in SMALL.items())
    return apply_methods(model, [read_method(words)]).model.eval()


# --- training ---


def text_batch(model, data):  # type: ignore[no-untyped-def]
    loader = Loader(data, model, TrainConfig(steps=1, batch_size=4), reads=("text",))
    ((batch,),) = list(loader.batches(0))
    return batch


def loss_of(model, data, config):  # type: ignore[no-untyped-def]
    own = model.get_submodule("maccap").own
    captions = {sample.id: sample.slots["text"] for sample in data.samples}
    objective = CaptionObjective(config, own, captions)
    state = objective.init_state(model)
    return objective.loss(model, text_batch(model, data), {}, state).total


def test_the_loss_is_that_of_the_captions() -> None:
    """Row by row, written out: the caption's vector with noise, adaptor, language model."""
    config = Config(copies=3, queries=2, language_model="tiny", learned_tokens=12)
    model = captioning(tiny_model())
    data = make_scenes(4, size_px=24)
    captioner = model.get_submodule("maccap")
    batch = text_batch(model, data)
    sums, count = 0.0, 0
    with torch.no_grad():
        for id_, seed in zip(batch.ids, batch.seeds.tolist(), strict=True):
            (text,) = next(s.slots["text"] for s in data.samples if s.id == id_)
            vector = torch.from_numpy(model.encode_texts([text]))[:, None]
            read = noisy(vector, drawn_noise([seed], 3, vector.shape[-1]), config.noise)
            ids = torch.from_numpy(captioner.own.encode(text, 12))[None]
            values, real = captioner.own.losses(captioner.adaptor(read), ids)
            sums, count = sums + float(values.sum()), count + int(real.sum())
        found = float(loss_of(model, data, config))
    assert found == pytest.approx(sums / count, rel=1e-4)


def test_pictures_are_not_read() -> None:
    """The loss of captions whose pictures are not there is that of the same captions."""
    data = make_scenes(4, num_captions=2, size_px=24)
    bare = DataSet(
        name="texts",
        samples=tuple(replace(s, slots={"text": s.slots["text"]}) for s in data.samples),
    )
    config = Config(copies=3, queries=2, language_model="tiny")
    model = captioning(tiny_model())
    assert float(loss_of(model, data, config).detach()) == float(
        loss_of(model, bare, config).detach()
    )


def test_the_loss_leaves_the_towers_alone() -> None:
    config = Config(copies=3, queries=2, language_model="tiny", learned_tokens=12)
    model = captioning(tiny_model()).train()
    torch.autograd.backward(loss_of(model, make_scenes(4, size_px=24), config))
    with_gradient = {name for name, w in model.named_parameters() if w.grad is not None}
    assert with_gradient
    assert all(name.startswith("maccap.") for name in with_gradient)


def test_padding_is_learned_only_when_asked_for() -> None:
    """With texts of full length there is none, and both losses are the same."""
    model = captioning(tiny_model())
    data = make_scenes(4, size_px=24)
    found = {
        (learn, most): float(
            loss_of(
                model,
                data,
                Config(copies=3, queries=2, learned_tokens=most, learn_padding=learn),
            ).detach()
        )
        for learn in (False, True)
        for most in (2, 20)
    }
    assert found[False, 2] == found[True, 2]
    assert abs(found[False, 20] - found[True, 20]) > 1e-3


# --- captions ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose pictures lie where their texts do: of one object in the middle of each scene.

    The towers are random; captions are learned of texts alone."""
    folder = tmp_path_factory.mktemp("maccap")
    settings = {"start": "random", "preset": "tiny", "steps": "40", "batch_size": "16"}
    small = SMALL | {"feed_forward": "64"}
    data = make_scenes(60, num_captions=2, detail="full")
    return train("maccap", data, folder / "run", settings | small)


def test_a_saved_captioner_writes_the_same(trained: Path) -> None:
    pictures = [sample.slots["image"] for sample in make_scenes(3, skip=100).samples]
    first, second = (load_system(trained).parts.generator for _ in range(2))
    assert first is not None
    assert second is not None
    there = first.generate(pictures, 2)
    assert second.generate(pictures, 2) == there
    alone = [second.generate([picture], 2)[0] for picture in pictures]
    assert [[c.text for c in each] for each in alone] == [[c.text for c in e] for e in there]


def test_more_samples_are_never_worse(trained: Path) -> None:
    """Without a generator of random numbers the first captions are drawn again with more."""
    system = load_system(trained)
    pictures = [sample.slots["image"] for sample in make_scenes(3, skip=100).samples]
    generator = system.parts.generator
    assert generator is not None
    best = [[each[0].score for each in generator.generate(pictures, k)] for k in (1, 2, 4)]
    assert all(a <= b + 1e-6 <= c + 2e-6 for a, b, c in zip(*best, strict=True))
    for each in generator.generate(pictures, 4):
        texts = [candidate.text for candidate in each]
        assert len(texts) == len(set(texts)) <= 4
        assert [c.score for c in each] == sorted((c.score for c in each), reverse=True)
        image = system.model.encode_images(pictures[:1])
        assert image.shape[1] == system.model.config.dim


def test_drawn_captions_follow_their_generator(trained: Path) -> None:
    generator = load_system(trained).parts.generator
    assert generator is not None
    picture = [make_scenes(1, skip=100).samples[0].slots["image"]]
    drawn = [generator.generate(picture, 3, np.random.default_rng(seed)) for seed in (5, 5)]
    assert drawn[0] == drawn[1]


def made_up_vector(sample, directions):  # type: ignore[no-untyped-def]
    """What a perfect text tower would give: a sum of what a scene's objects are."""
    parts = [
        directions.setdefault(fact, torch.randn(32))
        for each in sample.meta["objects"]
        for fact in ((each.colour, each.shape), (each.shape, each.position))
    ]
    return torch.nn.functional.normalize(torch.stack(parts).sum(dim=0), dim=0)


def test_captions_are_learned_from_texts_alone() -> None:
    """Of a vector that training did not see, what it stands for is said, and not of another one."""
    torch.manual_seed(0)
    scenes = make_scenes(1040, detail="full").samples
    directions: dict[tuple[str, object], torch.Tensor] = {}
    vectors = torch.stack([made_up_vector(sample, directions) for sample in scenes])
    texts = [sample.slots["text"][0] for sample in scenes]
    language = small_language_model(word_tokenizer(DataSet(name="scenes", samples=scenes)))
    tokens = torch.from_numpy(np.stack([language.encode(text, 25) for text in texts[:1000]]))
    config = Config(copies=4, queries=6, feed_forward=128, dropout=0.0, noise=0.5, new_tokens=24)
    scale = Scale(steps=300, batch_size=32, rate=2e-3, config=config)
    trained = train_adaptor(vectors[:1000], tokens, language, scale, 0)
    entered = vectors[1000:, None].expand(-1, 4, -1)
    captions = write_captions(*trained, entered, replace(config, beams=1), 0)
    objects = [sample.meta["objects"] for sample in scenes[1000:]]
    own = np.mean([score_scene(*each)[0] for each in zip(captions, objects, strict=True)])
    moved = [*objects[1:], objects[0]]
    other = np.mean([score_scene(*each)[0] for each in zip(captions, moved, strict=True)])
    assert own > other + 0.2


def test_training_needs_a_language_model_that_is_there(tmp_path: Path) -> None:
    from costream.errors import WeightsError

    method = read_method(f"maccap language_model={tmp_path / 'absent.gguf'}")
    data = make_scenes(2, size_px=24)
    with pytest.raises(WeightsError, match="there is no language model"):
        apply_methods(tiny_model(), [method], training=Training(data=data, directory=tmp_path))


def test_the_tokenizer_of_the_model_is_the_tiny_language_models() -> None:
    language = small_language_model(scene_tokenizer())
    ids = language.encode("a red disc", 8)
    assert ids.tolist()[4:] == [-1] * 4
    assert language.decode(ids[:4].tolist()) == "a red disc"


def test_scores_of_captions() -> None:
    sample = make_scenes(1, detail="full").samples[0]
    objects, caption = sample.meta["objects"], sample.slots["text"][0]
    assert score_scene(caption, objects) == (1.0, 1.0)
    assert score_scene("nothing", objects) == (0.0, 0.0)
    first = objects[0]
    attributes, whole = score_scene(f"a {first.colour} {first.shape}", objects)
    assert 0 < attributes < 1
    assert whole == 0.0
    assert word_overlap("A dog runs.", ["the cat", "a dog runs"]) == 1.0
    assert word_overlap("a dog runs", ["a dog sleeps"]) == 0.5
    assert word_overlap("on the", ["a dog"]) == 0.0


def test_vectors_that_are_too_long_are_refused_before_they_fill_the_memory() -> None:
    """A space of all words of a vocabulary has some 28,000 dimensions."""
    model = tiny_model()
    model.config = replace(model.config, dim=28_000)
    with pytest.raises(ConfigError, match="have 28,000 dimensions, expected at most 4,096"):
        make_captioner(model, Config(language_model="tiny"))
