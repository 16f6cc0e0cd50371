"""Every method of the folder, made small, on data that has every slot: what contracts run on."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np

from costream.card import find_methods
from costream.config import parse_settings
from costream.data import DataSet, make_scenes
from costream.encoders.dual import DualEncoder
from costream.method import Method, apply_methods, find_module
from costream.parts import System, Training
from costream.records import Batch, Sample
from costream.train.config import TrainConfig
from costream.train.loader import Loader
from tiny_world import tiny_model

METHODS = tuple(find_methods())
_TESTS = Path(__file__).parents[1] / "methods"


def own_tests(name: str) -> ModuleType:
    """The test file of a method; may hold `SMALL`, its settings for contracts."""
    path = _TESTS / f"test_{name.replace('-', '_')}.py"
    spec = importlib.util.spec_from_file_location(f"contract_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_method(name: str) -> Method:
    """A method with the settings that its test file calls SMALL."""
    card, module = find_module(name)
    settings = vars(own_tests(name)).get("SMALL", {})
    return Method(card=card, module=module, config=parse_settings(module.Config, settings))


def every_slot(count: int = 12) -> DataSet:
    """Scenes with captions in five languages, of which four are made up, and as videos."""
    scenes = make_scenes(count + 1, num_captions=2, size_px=24).samples
    pairs = pairwise(scenes)
    return DataSet(
        name="every slot", samples=tuple(_with_slots(one, other) for one, other in pairs)
    )


def _with_slots(sample: Sample, other: Sample) -> Sample:
    image, texts = sample.slots["image"], sample.slots["text"]
    foreign = {
        f"text.{language}": tuple(" ".join(reversed(text.split())) for text in texts)
        for language in ("de", "fr", "cs", "ar")
    }
    video = (image, image, other.slots["image"], image)
    sound = np.random.default_rng(len(sample.id)).standard_normal(64).astype(np.float32)
    slots = {"image": image, "text": texts, "video": video, "audio": sound, **foreign}
    return replace(sample, slots=slots)


def trained_with(
    names: list[str], folder: Path, *, seed: int = 0, data: DataSet | None = None
) -> tuple[System, DataSet]:
    """A tiny model with methods on it, ready to train."""
    data = every_slot() if data is None else data
    model = tiny_model(seed=seed)
    training = Training(data=data, directory=folder)
    methods = [small_method(name) for name in names]
    system = apply_methods(model, methods, seed=seed, training=training)
    rng = np.random.default_rng(seed)
    for pipe in system.parts.data:
        data = DataSet(name=data.name, samples=tuple(pipe(data.samples, rng)))
    return system, data


def batch_of(model: DualEncoder, data: DataSet, reads: tuple[str, ...], *, size: int = 6) -> Batch:
    """The first batch of a run."""
    config = TrainConfig(steps=1, batch_size=size, captions=1, frames=4)
    ((batch,),) = list(Loader(data, model, config, reads=reads).batches(0))
    return batch
