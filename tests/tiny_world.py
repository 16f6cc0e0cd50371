"""A world small enough to train in: scenes, a tokenizer that knows their words, and a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from costream.data import DataSet, make_scenes
from costream.data.scenes import COLOURS, POSITIONS, SHAPES
from costream.encoders.blocks import TransformerConfig
from costream.encoders.dual import DualConfig, DualEncoder
from costream.encoders.preprocess import ImagePreprocess, TextPreprocess
from costream.encoders.text import TextConfig
from costream.encoders.vision import VisionConfig
from costream.records import Batch
from costream.train.config import TrainConfig
from costream.train.loader import Loader

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_JOINTS = "a and there is with left right of to the above over below under ,"


def scene_tokenizer() -> Tokenizer:
    """WordPiece with the words of scenes, and letters for all others."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    texts = [_JOINTS, *COLOURS, *(t for group in (*SHAPES.values(), *POSITIONS) for t in group)]
    words = sorted({word for text in texts for word in text.split()} - set(letters))
    pieces = [*SPECIAL, *words, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def tiny_config(
    *, width: int = 16, dim: int = 8, dropout: float = 0.0, name: str = "tiny", depth: int = 1
) -> DualConfig:
    """24 x 24 pixels in 4 x 4 patches, texts of at most 24 tokens."""
    vision = TransformerConfig(
        width=width, depth=depth, heads=2, mlp_width=2 * width, dropout=dropout
    )
    text = TransformerConfig(
        width=width, depth=depth, heads=2, mlp_width=2 * width, dropout=dropout, norm="post"
    )
    return DualConfig(
        name=name,
        dim=dim,
        vision=VisionConfig(image_px=24, patch_px=6, transformer=vision),
        text=TextConfig(
            vocab_size=scene_tokenizer().get_vocab_size(),
            context=24,
            transformer=text,
            embedding_norm=True,
        ),
        image_preprocess=ImagePreprocess(size_px=24),
        text_preprocess=TextPreprocess(max_tokens=24),
    )


def tiny_model(config: DualConfig | None = None, *, seed: int = 0) -> DualEncoder:
    """A model with random weights on the CPU."""
    torch.manual_seed(seed)
    return DualEncoder(config or tiny_config(), scene_tokenizer())


def scene_batch(
    model: DualEncoder,
    *,
    size: int = 4,
    captions: int = 1,
    step: int = 0,
    data: DataSet | None = None,
) -> Batch:
    """One batch as the loader makes it."""
    config = TrainConfig(steps=step + 1, batch_size=size, captions=captions, threads=1)
    scenes = data or make_scenes(16, num_captions=max(captions, 2), size_px=24)
    (batch,) = next(Loader(scenes, model, config).batches(step))
    return batch


def write_scenes(folder: Path, count: int, *, num_captions: int = 2) -> Path:
    """Scenes as PNG files and a manifest; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for sample in make_scenes(count, num_captions=num_captions, size_px=24).samples:
        sample.slots["image"].save(folder / f"{sample.id}.png")
        lines.append(
            json.dumps({"image": f"{sample.id}.png", "captions": list(sample.slots["text"])})
        )
    manifest = folder / "train.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def state_bytes(folder: Path, names: Sequence[str] = ("model.safetensors",)) -> dict[str, bytes]:
    """Content of files of a model directory."""
    return {name: (folder / name).read_bytes() for name in names}
