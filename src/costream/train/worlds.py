"""What the runs of a small experiment share: data on frozen layers, and where models start.

An experiment trains many models for a minute each. Pictures are decoded once and pass the frozen
layers once (`CachedPairs`); every run starts from the same weights but for its seed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from costream.data import DataSet, make_scenes, read_data
from costream.encoders.device import keep_freed_memory
from costream.encoders.dual import DualConfig, DualEncoder
from costream.encoders.preprocess import TextPreprocess
from costream.encoders.presets import TINY
from costream.encoders.starting_weights import pretrained_mini
from costream.encoders.text import TextConfig
from costream.errors import ConfigError, DataError
from costream.evaluate.vectors import evaluate_vectors
from costream.train.short import CachedPairs, cache_pairs, encode_cached

Say = Callable[[str], None]

PHOTO_PX = 128
"""Side of the photographs: small enough that the stem takes seconds for thousands."""

_VISUAL_TOKEN_PX = 8
_FROZEN_TEXT_LAYERS = 4
_VISION_LAYERS = 1
_MAX_TOKENS = 24


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class World:
    """What all runs share.

    Attributes:
        make: A model before training, by seed.
        train: Training pictures and captions, for `train_short`.
        dev: What is measured on.
        train_data: The samples of `train`.
        dev_data: The samples of `dev`.
        facts: Names, hashes and counts of the data, and what the models start from.
    """

    make: Callable[[int], DualEncoder]
    train: CachedPairs
    dev: CachedPairs
    train_data: DataSet
    dev_data: DataSet
    facts: Mapping[str, str]


def make_world(
    make: Callable[[int], DualEncoder],
    train: DataSet,
    dev: DataSet,
    *,
    kept_px: int = 0,
    facts: Mapping[str, str],
    say: Say,
) -> World:
    """Decode both data sets once.

    Args:
        make: A model before training, by seed.
        train: Training pictures.
        dev: What is measured on.
        kept_px: Side of the pixels that are kept, as of `cache_pairs`.
        facts: What to say about where data and weights come from.
        say: Told about progress.

    Raises:
        DataError: When a picture is broken, or one has no caption.
    """
    keep_freed_memory()
    model = make(0)
    total = len(train) + len(dev)
    say(f"reading {total:,} pictures and running the frozen layers once")
    begin, done = time.monotonic(), [0]

    def progress(count: int) -> None:
        before, done[0] = done[0], done[0] + count
        if done[0] * 4 // total > before * 4 // total:
            say(f"  {done[0]:,} of {total:,}, {time.monotonic() - begin:.0f} s")

    pairs = [cache_pairs(model, data, kept_px=kept_px, progress=progress) for data in (train, dev)]
    counts = {
        f"{name} data": f"{data.name}, {data.num_images:,} pictures, "
        f"{data.num_captions:,} captions, hash {data.hash[:16]}"
        for name, data in (("train", train), ("dev", dev))
    }
    return World(
        make=make,
        train=pairs[0],
        dev=pairs[1],
        train_data=train,
        dev_data=dev,
        facts={**facts, **counts},
    )


def photographs(folder: Path, *, most_train: int = 6000, most_dev: int = 1000, say: Say) -> World:
    """Photographs on ImageNet's stem, frozen, at 128 pixels, and MiniLM with trained last layers.

    Args:
        folder: Has `train.jsonl` and `dev.jsonl`.
        most_train: The first so many training pictures are used.
        most_dev: The first so many are measured on.
        say: Told about progress.

    Raises:
        DataError: When there are no manifests for training and for measuring.
        WeightsError: When the starting weights are not installed.
    """
    for name in ("train.jsonl", "dev.jsonl"):
        if not (folder / name).is_file():
            raise DataError(
                f"there is no {folder / name}, expected train.jsonl and dev.jsonl in one folder",
                hint="name a folder that has both, or leave it out for procedural scenes",
            )
    make, start = photograph_models()
    return make_world(
        make,
        first_samples(read_data(folder / "train.jsonl"), most_train),
        first_samples(read_data(folder / "dev.jsonl"), most_dev),
        kept_px=PHOTO_PX // 32 * _VISUAL_TOKEN_PX,
        facts={"start": start},
        say=say,
    )


def photograph_models() -> tuple[Callable[[int], DualEncoder], str]:
    """Models for photographs by seed, and a sentence that says what they start from.

    Raises:
        WeightsError: When the starting weights are not installed.
    """
    base = pretrained_mini()
    start = (
        f"ImageNet's EfficientNet-Lite2, frozen, at {PHOTO_PX} pixels; MiniLM-L6, its first "
        f"{_FROZEN_TEXT_LAYERS} layers frozen; {_VISION_LAYERS} new layer and projections"
    )
    return lambda seed: short_model(base, seed), start


def scenes(*, num_train: int = 4000, num_dev: int = 500, say: Say) -> World:
    """Procedural scenes, each caption naming both objects and their places; random weights.

    Args:
        num_train: Training scenes.
        num_dev: Scenes that are measured on, none of them a training scene.
        say: Told about progress.
    """
    train = make_scenes(num_train, seed=0, detail="full")
    dev = make_scenes(num_dev, seed=0, skip=num_train, detail="full")
    facts = {"start": "random weights"}
    return make_world(tiny_models(train), train, dev, facts=facts, say=say)


def tiny_models(train: DataSet, *, name: str = "scenes") -> Callable[[int], DualEncoder]:
    """Tiny towers from random weights whose tokens are the words of the captions.

    Args:
        train: Whose words.
        name: Of the models.

    Returns:
        A model by seed.
    """
    tokenizer = word_tokenizer(train)
    text = replace(TINY.text, vocab_size=tokenizer.get_vocab_size())
    config = replace(TINY, text=text, name=name)

    def make(seed: int) -> DualEncoder:
        torch.manual_seed(seed)
        return DualEncoder(config, tokenizer)

    return make


def tiny_clips(
    train: DataSet, *, context: int, name: str = "tiny-clip", depth: int = 3
) -> Callable[[int], DualEncoder]:
    """Tiny towers of CLIP's kind: causal text read at its last token, a class token for pictures.

    Args:
        train: Whose words are the tokens.
        context: Most tokens a text may have, with one at each end.
        name: Of the models.
        depth: Layers of each tower.

    Returns:
        A model by seed, with random weights.
    """
    tokenizer = word_tokenizer(train)
    layers = replace(TINY.text.transformer, depth=depth, activation="quick_gelu")
    config = replace(
        TINY,
        name=name,
        vision=replace(
            TINY.vision, patch_px=8, transformer=layers, pre_norm=True, final_norm="pooled"
        ),
        text=TextConfig(
            vocab_size=tokenizer.get_vocab_size(),
            context=context,
            transformer=layers,
            causal=True,
            final_norm=True,
            pooling="eot",
            eot_id=tokenizer.get_vocab()["[SEP]"],
        ),
        text_preprocess=TextPreprocess(max_tokens=context),
    )

    def make(seed: int) -> DualEncoder:
        torch.manual_seed(seed)
        return DualEncoder(config, tokenizer)

    return make


def first_samples(data: DataSet, most: int) -> DataSet:
    """The first samples of a data set, at most so many."""
    return DataSet(name=data.name, samples=data.samples[:most])


def short_config(base: DualConfig) -> DualConfig:
    """A lighter form of a model: whole stem frozen, few layers, small pictures, short texts.

    Raises:
        ConfigError: When the model has no convolutional stem.
    """
    vision = base.vision
    if vision.conv is None:
        raise ConfigError(f"model {base.name} has no convolutional stem", hint="start from one")
    return replace(
        base,
        name=f"{base.name}-short",
        vision=replace(
            vision,
            image_px=PHOTO_PX,
            conv=replace(vision.conv, num_frozen_stages=7),
            transformer=replace(vision.transformer, depth=_VISION_LAYERS, drop_path=0.0),
        ),
        image_preprocess=replace(base.image_preprocess, size_px=PHOTO_PX),
        text_preprocess=replace(base.text_preprocess, max_tokens=_MAX_TOKENS),
    )


def short_model(base: DualEncoder, seed: int) -> DualEncoder:
    """A lighter model with the stem and the text tower of `base`; the rest from the seed."""
    torch.manual_seed(seed)
    model = DualEncoder(short_config(base.config), base.tokenizer)
    for short, whole in ((model.vision.stem, base.vision.stem), (model.text, base.text)):
        if short is not None and whole is not None:
            known = whole.state_dict()
            short.load_state_dict({name: known[name] for name in short.state_dict()})
    frozen = [f"transformer.layers.{number}." for number in range(_FROZEN_TEXT_LAYERS)]
    for name, weight in model.text.named_parameters():
        if name.startswith(("token_embedding", "position_embedding", "embedding_norm", *frozen)):
            weight.requires_grad_(False)
    return model


def word_tokenizer(data: DataSet) -> Tokenizer:
    """A tokenizer whose tokens are the words of the captions, with BERT's special tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    split = pre_tokenizers.BertPreTokenizer()
    captions = (text.lower() for sample in data.samples for text in sample.slots["text"])
    words = sorted({word for text in captions for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def retrieval_hits(model: DualEncoder, dev: CachedPairs) -> dict[str, float]:
    """hit@k in percent of both directions, and `hit@1`, the mean of both.

    Args:
        model: Its dot products are measured.
        dev: What is measured on.

    Returns:
        `image_to_text hit@1`, ..., `text_to_image median_rank`, and `hit@1`.
    """
    images, texts = encode_cached(model, dev)
    measured = evaluate_vectors(images.numpy(), texts.numpy(), dev.image_of_text)
    values = {
        f"{direction} {metric}": value
        for direction, metrics in measured.items()
        for metric, value in metrics.items()
    }
    both = [values["image_to_text hit@1"], values["text_to_image hit@1"]]
    return {**values, "hit@1": statistics.fmean(both)}
