"""A model for MTEB's image-text retrieval tasks.

Example:
    >>> import costream
    >>> from costream.adapters.mteb import MtebModel
    >>> MtebModel(costream.load("cots-mini")).mteb_model_meta.modalities
    ['image', 'text']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costream.adapters.peers import installed
from costream.encoders.dual import DualEncoder
from costream.errors import DataError
from costream.search.algebra import combine

with installed("mteb", extra="mteb"):
    from mteb.models.model_meta import ModelMeta, ScoringFunction


class MtebModel:
    """What `mteb.evaluate` takes.

    Texts and pictures are embedded as everywhere else in costream, so that a number measured here
    is that of the searches. An input of both is their sum at unit length, as in a `Query` of two
    terms.

    Args:
        model: Any model of costream.
    """

    def __init__(self, model: DualEncoder) -> None:
        self.model = model

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What MTEB notes beside a result."""
        weights = sum(weight.numel() for weight in self.model.parameters())
        name = self.model.name
        return ModelMeta(
            loader=None,
            name=name if "/" in name else f"costream/{name}",
            revision=self.model.own_space.weights_hash,
            release_date=None,
            languages=None,
            n_parameters=weights,
            memory_usage_mb=None,
            max_tokens=self.model.config.text_preprocess.max_tokens,
            embed_dim=self.model.config.dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=False,
            training_datasets=None,
            modalities=["image", "text"],
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        precision: str = "float32",
    ) -> NDArray[np.float32]:
        """Batches of texts, pictures or both to unit vectors.

        Args:
            inputs: Batches with lists `text` or `image` or both.
            task_metadata: Not used: these models take no instructions.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Not used: queries and documents are embedded alike.
            batch_size: Items a step.
            show_progress_bar: Not used.
            precision: Not used; vectors are float32.

        Returns:
            float32 (N, D).

        Raises:
            DataError: A batch has neither texts nor pictures.
        """
        rows = [np.zeros((0, self.model.config.dim), dtype=np.float32)]
        rows.extend(self._batch(batch, batch_size) for batch in inputs)
        return np.concatenate(rows)

    def _batch(self, batch: Mapping[str, Any], batch_size: int) -> NDArray[np.float32]:
        parts = []
        if "text" in batch:
            parts.append(self.model.encode_texts(list(batch["text"]), batch_size=batch_size))
        if "image" in batch:
            parts.append(self.model.encode_images(list(batch["image"]), batch_size=batch_size))
        if not parts:
            raise DataError(f"got a batch of {', '.join(batch)}, expected text or image")
        if len(parts) == 1:
            return parts[0]
        return np.stack([combine(np.stack(pair), [1.0, 1.0]) for pair in zip(*parts, strict=True)])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Cosine of each row of one with each row of the other: (Q, N)."""
        return np.asarray(_unit(embeddings1) @ _unit(embeddings2).T, dtype=np.float32)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Cosine of each row of one with the same row of the other: (N,)."""
        product = _unit(embeddings1) * _unit(embeddings2)
        return np.asarray(product.sum(axis=1), dtype=np.float32)


def _unit(vectors: Any) -> NDArray[np.float64]:
    wide: NDArray[np.float64] = np.atleast_2d(np.asarray(vectors, dtype=np.float64))
    unit: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True).clip(1e-12)
    return unit
