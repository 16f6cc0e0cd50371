"""COTS learns procedural scenes: far above chance in seconds, and each loss does what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from costream.data import DataSet, make_scenes
from costream.encoders.dual import DualEncoder
from costream.encoders.presets import TINY
from costream.evaluate import evaluate
from costream.methods import cots
from costream.parts import Base, Training
from costream.train.config import TrainConfig
from costream.train.loop import run
from tiny_world import scene_tokenizer

HELD_OUT = 200
# Captions say left and right, so nothing is mirrored.
LOOP = TrainConfig(
    steps=150, batch_size=32, learning_rate=1e-3, warmup_steps=20, crop_area=0.9, mirror=False
)
LOSSES = cots.Config(
    queue_size=256,
    momentum=0.9,
    temperature=0.07,
    in_batch="momentum",
    online=1.0,
    visual_tokenizer="kmeans",
    visual_codes=64,
)


def train(out: Path, loop: TrainConfig, losses: cots.Config, data: DataSet) -> DualEncoder:
    torch.manual_seed(0)
    tokenizer = scene_tokenizer()
    text = replace(TINY.text, vocab_size=tokenizer.get_vocab_size())
    model = DualEncoder(replace(TINY, text=text), tokenizer)
    base = Base(model=model, training=Training(data=data, directory=out))
    run(model, cots.parts(losses, base).objective, data, loop, out, facts={})
    return model


def hit_at_10(model: DualEncoder) -> dict[str, float]:
    """Percent on scenes that were not trained on; chance is 5."""
    test = make_scenes(HELD_OUT, skip=4000, detail="full")
    return {way: values["hit@10"] for way, values in evaluate(model, test).metrics.items()}


def test_scenes_are_learned_far_above_chance(tmp_path: Path) -> None:
    """With every loss on; untrained it is chance, 5 % at 10 of 200."""
    data = make_scenes(1500, num_captions=2)
    before = hit_at_10(train(tmp_path / "none", replace(LOOP, steps=1), LOSSES, data))
    after = hit_at_10(train(tmp_path / "all", LOOP, LOSSES, data))
    for way, value in after.items():
        assert before[way] < 12.0
        assert value > 20.0, (before, after)


@pytest.mark.soak
def test_masked_words_are_read_off_the_right_picture(tmp_path: Path) -> None:
    """Accuracy with the true partner beats another pair's; without condition both are equal."""
    data = make_scenes(4000, num_captions=2)
    loop = replace(LOOP, steps=1200, batch_size=64)
    accuracy: dict[str, tuple[float, float]] = {}
    for condition in ("add_projected", "none"):
        how: Any = condition
        losses = replace(LOSSES, condition=how, mask_words=0.3)
        accuracy[condition] = told_apart(tmp_path / condition, loop, losses, data)
    right, wrong = accuracy["add_projected"]
    assert right > wrong + 0.05, accuracy
    assert accuracy["none"][0] == accuracy["none"][1]


def told_apart(
    out: Path, loop: TrainConfig, losses: cots.Config, data: DataSet
) -> tuple[float, float]:
    """Accuracy of masked colours and shapes: told the true picture, and another one."""
    torch.manual_seed(0)
    tokenizer = scene_tokenizer()
    text = replace(TINY.text, vocab_size=tokenizer.get_vocab_size())
    model = DualEncoder(replace(TINY, text=text), tokenizer)
    base = Base(model=model, training=Training(data=data, directory=out))
    ((weight, objective),) = cots.parts(losses, base).objective
    run(model, [(weight, objective)], data, loop, out, facts={})
    assert isinstance(objective, cots.CotsObjective)
    assert objective.word_head is not None
    test = make_scenes(400, skip=4000, detail="full").samples
    pictures = torch.from_numpy(model.encode_images([s.slots["image"] for s in test]))
    mask = tokenizer.token_to_id("[MASK]")
    names = {"red", "green", "blue", "yellow", "purple", "white", "disc", "square", "cross"}
    wanted = {tokenizer.token_to_id(name) for name in names}
    hits: list[list[bool]] = [[], []]
    with torch.no_grad():
        for number, sample in enumerate(test):
            ids = torch.tensor(tokenizer.encode(sample.slots["text"][0]).ids)
            for place in [n for n, i in enumerate(ids.tolist()) if i in wanted]:
                hidden = ids.clone()
                hidden[place] = mask
                tokens = model.text(hidden[None]).tokens[:, place]
                for which, picture in enumerate((number, (number + 1) % len(test))):
                    table = model.text.token_embedding.weight
                    logits = objective.word_head(tokens, pictures[picture : picture + 1], table)
                    hits[which].append(int(logits.argmax()) == int(ids[place]))
    return float(np.mean(hits[0])), float(np.mean(hits[1]))
