"""An index of clips and a model whose scorer of pairs orders them otherwise than their cosines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from costream.encoders.storage import save_model
from costream.index import Index, Item
from costream.method import apply_methods, read_method
from costream.methods.x_pool import pooling_of
from costream.system import load_system
from tiny_world import tiny_model

CLIPS, MOMENTS = 6, 3


def make_pooled_clips(folder: Path) -> tuple[Path, Path]:
    """An index of random clips, and the folder of its model, trained by nobody.

    Args:
        folder: Where both are put.

    Returns:
        Folder of the index, folder of the model.
    """
    torch.manual_seed(0)
    system = apply_methods(tiny_model(), [read_method("x_pool")])
    with torch.no_grad():
        for weight in pooling_of(system.model).parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    save_model(system.model, folder / "model")
    space = load_system(folder / "model").model.space
    vectors = np.random.default_rng(1).standard_normal((CLIPS * MOMENTS, space.dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    spans = np.tile([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]], (CLIPS, 1))
    items = [Item(id=f"clip{n}", modality="video") for n in range(CLIPS)]
    with Index.open(folder / "index", create=True) as index:
        parents = np.repeat(np.arange(CLIPS), MOMENTS)
        index.add_moments(items, vectors.astype(np.float32), parents, spans, space)
    return folder / "index", folder / "model"
