"""What tests of the program share: a way to run it, pictures, and a model with random weights."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 200)}


@dataclass(frozen=True)
class Ran:
    """How a run of the program ended."""

    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class Program:
    """The program `costream`, as a real process; `here` runs it in this one, which is faster."""

    def __call__(
        self,
        *words: str | bytes | Path,
        cwd: Path,
        env: dict[str, str] | None = None,
        code: int = 0,
    ) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "costream", *map(os.fspath, words)],
            cwd=cwd,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"} | (env or {}),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=600,
            check=False,
        )
        ran = Ran(done.stdout.decode(), done.stderr.decode())
        assert "Traceback" not in ran.stderr, ran.stderr
        assert done.returncode == code, ran.stderr or ran.stdout
        return ran

    def here(self, *words: str | Path, cwd: Path, code: int = 0) -> Ran:
        from costream.cli import run

        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            got = run([os.fspath(word) for word in words])
        assert got == code, err.getvalue() or out.getvalue()
        return Ran(out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def costream_program() -> Program:
    return Program()


def make_pictures(folder: Path, names: Sequence[str] = tuple(COLOURS)) -> list[Path]:
    """Noisy pictures of one colour each, so that no two are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    paths = []
    for name in names:
        base = np.array(COLOURS[name]) + random.integers(-30, 30, (48, 64, 3))
        paths.append(folder / f"{name}.png")
        Image.fromarray(base.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


@pytest.fixture
def three_pictures(tmp_path: Path) -> list[Path]:
    """red.png, green.png and blue.png in `tmp_path / "pictures"`."""
    return make_pictures(tmp_path / "pictures")


def make_tiny_model(folder: Path, *, seed: int, name: str) -> Path:
    """A model with random weights, in the form in which models are shipped."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import BertProcessing

    from costream.encoders.blocks import TransformerConfig
    from costream.encoders.dual import DualConfig, DualEncoder
    from costream.encoders.preprocess import ImagePreprocess, TextPreprocess
    from costream.encoders.storage import save_model
    from costream.encoders.text import TextConfig
    from costream.encoders.vision import VisionConfig

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *COLOURS,
        *letters,
        *(f"##{c}" for c in letters),
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    torch.manual_seed(seed)
    vision = TransformerConfig(width=32, depth=1, heads=2, mlp_width=32)
    text = TransformerConfig(width=32, depth=1, heads=2, mlp_width=32, norm="post")
    config = DualConfig(
        name=name,
        dim=16,
        vision=VisionConfig(image_px=32, patch_px=16, transformer=vision),
        text=TextConfig(vocab_size=len(pieces), context=32, transformer=text, embedding_norm=True),
        image_preprocess=ImagePreprocess(size_px=32),
        text_preprocess=TextPreprocess(max_tokens=32),
    )
    return save_model(DualEncoder(config, tokenizer), folder)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model that loads in no time and knows nothing."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=0, name="tiny")


@pytest.fixture(scope="session")
def other_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1, name="other")
