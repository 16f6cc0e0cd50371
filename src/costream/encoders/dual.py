"""The two-stream model: one tower a modality, one space for both.

Shape letters: B items of a batch, N items in all, D dimensions of the space.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from costream.config import Range, from_dict, to_dict
from costream.data.picture import PictureSource
from costream.encoders.blocks import Encoded
from costream.encoders.device import inference_autocast
from costream.encoders.fingerprint import (
    digest_arrays,
    hash_settings,
    is_text_weight,
    join_digests,
    settings_that_count,
)
from costream.encoders.in_batches import (
    decoded_ahead,
    in_batches,
    join_features,
    to_cpu,
    tokens_of,
)
from costream.encoders.preprocess import ImagePreprocess, TextPreprocess, check_list, tokenize
from costream.encoders.text import TextConfig, TextTower
from costream.encoders.vision import VisionConfig, VisionTower
from costream.errors import ConfigError, DataError, NumericalError
from costream.records import Batch, Features, Space

if TYPE_CHECKING:
    from PIL.Image import Image
    from tokenizers import Tokenizer

    from costream.data.container import ClipSource
    from costream.data.video import Sampling

T = TypeVar("T")
Precision = Literal["float32", "bfloat16"]

# Vectors in bfloat16 must be those in float32 to this cosine; tried with the first few pictures.
_LEAST_COSINE = 0.999
_CHECKED = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DualConfig:
    """Everything that fixes a two-stream model but its weights.

    Attributes:
        name: For people; also part of the `Space`.
        dim: Dimensions of the shared space.
        vision: Form of the vision tower.
        text: Form of the text tower.
        image_preprocess: What happens to a picture first.
        text_preprocess: What happens to a text first.
        projection_bias: Whether the projections into the shared space have a bias.
        projection: Which towers have one: `both` or only the `text` tower (SigLIP).
        methods: Words of the methods that changed the model or stay in use (`costream.system`), in
            order.
        query_space: Space of another model that a method has fitted this one's vectors to, so that
            they are questions to what that model has embedded; None when there is none.
        in_query_space: Whether they still are: not after another change of the model.
    """

    name: str
    dim: Annotated[int, Range(1)]
    vision: VisionConfig
    text: TextConfig
    image_preprocess: ImagePreprocess
    text_preprocess: TextPreprocess
    projection_bias: bool = False
    projection: Literal["both", "text"] = "both"
    methods: tuple[str, ...] = ()
    query_space: Space | None = None
    in_query_space: bool = False


class Head(Protocol):
    """From a tower's output to vectors of the shared space."""

    def __call__(self, encoded: Encoded) -> Tensor:
        """Output of a tower to vectors float32 (B, D)."""


class DualEncoder(nn.Module):
    """A vision tower and a text tower that end in one space; the score of a pair is a dot product.

    Args:
        config: Form of both towers and their preprocessing.
        tokenizer: Turns texts into token ids.

    Attributes:
        precision: Of matrix products when pictures are embedded on a CPU; "float32" unless it is
            set. "bfloat16" is faster where the processor has it, gives the same bits however
            pictures are batched, and is refused for a model whose vectors it changes by more than
            a cosine of 0.999.

    Example:
        >>> import costream
        >>> model = costream.load("cots-mini")
        >>> model.encode_texts(["a dog on a beach"]).shape
        (1, 256)
    """

    precision: Precision = "float32"

    def __init__(self, config: DualConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.base_config = config
        """As the model was made; surgery changes `config` only."""
        self.tokenizer = tokenizer
        self._is_precise = False
        self.vision = VisionTower(config.vision)
        self.text = TextTower(config.text)
        bias = config.projection_bias
        self.image_projection: nn.Linear | nn.Identity = nn.Identity()
        if config.projection == "both":
            self.image_projection = nn.Linear(self.vision.width, config.dim, bias=bias)
        self.text_projection = nn.Linear(self.text.width, config.dim, bias=bias)
        # What a method puts in place of projection and normalisation, and its further modalities.
        self.image_head: Head | None = None
        self.text_head: Head | None = None
        self.towers = nn.ModuleDict()
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        mean, std = config.image_preprocess.mean, config.image_preprocess.std
        self.register_buffer("pixel_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.config.name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pixel_mean.device

    @property
    def space(self) -> Space:
        """The space that this model's vectors are compared in.

        That of another model, where this one was fitted to ask what that one has embedded
        (`is_query_only`); else its own.
        """
        fitted = self.config.query_space
        return fitted if fitted is not None and self.config.in_query_space else self.own_space

    @property
    def is_query_only(self) -> bool:
        """Whether the vectors are questions to another model's items, and none themselves."""
        return self.config.query_space is not None and self.config.in_query_space

    @property
    def own_space(self) -> Space:
        """The space of this very model, whatever it was fitted to.

        It changes with every weight (in the precision in which weights are stored), with the name,
        and with every setting that decides on a vector: of preprocessing and of the towers' form,
        for two models may have the same weights and another activation.
        """
        return Space(
            encoder=self.name,
            weights_hash=join_digests(*weight_digests(self.state_dict())),
            preprocessing_hash=settings_hash(self.config),
            dim=self.config.dim,
        )

    # --- tensors in, tensors out: what training uses ---

    def normalise_pixels(self, images: Tensor) -> Tensor:
        """Pixels uint8 (B, 3, H, W) to normalised float."""
        scaled = images.to(torch.float32) / 255
        normal = (scaled - self.pixel_mean) / self.pixel_std
        # Convolutions on a CPU run twice as fast on this layout.
        return normal.contiguous(memory_format=torch.channels_last)

    def project_image(self, encoded: Encoded) -> Tensor:
        """Output of the vision tower to unit vectors float32 (B, D)."""
        if self.image_head is not None:
            return self.image_head(encoded)
        return functional.normalize(self.image_projection(encoded.pooled).float(), dim=-1)

    def project_text(self, encoded: Encoded) -> Tensor:
        """Output of the text tower to unit vectors float32 (B, D)."""
        if self.text_head is not None:
            return self.text_head(encoded)
        return functional.normalize(self.text_projection(encoded.pooled).float(), dim=-1)

    def project_tokens(self, features: Features) -> Tensor:
        """Tokens of a tower to unit vectors float32 (B, T, D); of pictures only the patches."""
        if features.modality == "image":
            front = int(self.vision.class_token is not None)
            projected = self.image_projection(tokens_of(features)[:, front:])
        else:
            projected = self.text_projection(tokens_of(features))
        return functional.normalize(projected.float(), dim=-1)

    def embed_pixels(self, images: Tensor) -> Tensor:
        """Pixels uint8 (B, 3, H, W) to unit vectors float32 (B, D)."""
        return self.project_image(self.vision(self.normalise_pixels(images)))

    def embed_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask int64 (B, T) to unit vectors float32 (B, D)."""
        return self.project_text(self.text(ids, self._attended(mask)))

    def features(self, batch: Batch, frozen: Tensor | None = None) -> dict[str, Features]:
        """One clean pass of all towers over a training batch.

        Args:
            batch: Any of the slots `image` uint8 (B, 3, H, W); `video` uint8 (B, F, 3, H, W);
                `text.ids` and `text.mask` int64 (B, K, T), and the same for `text.fr` and the like;
                and those that a tower of `towers` is named for.
            frozen: The vision tower's `frozen_part` of this batch, when it is known already.

        Returns:
            `image`: pooled (B, D); extras `frozen` and `stem_map`, from where the pass can be
            entered again. `video`: as of `frame_features`. `text` and its kin: pooled (B * K, D),
            the captions of picture i in rows i * K on. Pooled vectors have unit length; tokens are
            the towers' own, before projection.
        """
        found: dict[str, Features] = {}
        for slot, value in batch.slots.items():
            if slot == "image":
                found[slot] = self._image_features(value, frozen)
            elif slot == "video":
                found[slot] = self.frame_features(value)
            elif slot.endswith(".ids"):
                name = slot.removesuffix(".ids")
                mask = batch.slots[f"{name}.mask"].flatten(0, 1)
                found[name] = self._text_features(value.flatten(0, 1), mask)
            elif slot in self.towers:
                found[slot] = replace(self.towers[slot](value), modality=slot)
        return found

    def _image_features(self, pixels: Tensor, frozen: Tensor | None) -> Features:
        if frozen is None:
            frozen = self.vision.frozen_part(self.normalise_pixels(pixels))
        stem_map = self.vision.trained_part(frozen)
        seen = self.vision.encode_map(stem_map)
        return Features(
            pooled=self.project_image(seen),
            tokens=seen.tokens,
            extras={"frozen": frozen, "stem_map": stem_map},
            modality="image",
        )

    def _text_features(self, ids: Tensor, mask: Tensor) -> Features:
        read = self.text(ids, self._attended(mask))
        return Features(
            pooled=self.project_text(read),
            tokens=read.tokens,
            mask=mask.bool(),
            extras={"ids": ids, "unscaled": self.text_projection(read.pooled).float()},
            modality="text",
        )

    def frame_features(self, frames: Tensor) -> Features:
        """Videos as frames.

        Args:
            frames: uint8 (B, F, 3, H, W).

        Returns:
            pooled (B, D): mean of the frames' unit vectors, made unit length (COTS' text-to-video
            retrieval); tokens (B, F, D): the frames' vectors, not scaled to unit length.
        """
        seen = self.vision(self.normalise_pixels(frames.flatten(0, 1)))
        if self.image_head is not None:
            projected = self.image_head(seen)
        else:
            projected = self.image_projection(seen.pooled).float()
        unscaled = projected.unflatten(0, frames.shape[:2])
        mean = functional.normalize(unscaled, dim=-1).mean(dim=1)
        return Features(
            pooled=functional.normalize(mean, dim=-1), tokens=unscaled, modality="video"
        )

    def _attended(self, mask: Tensor) -> Tensor | None:
        return None if self.config.text_preprocess.pad_to_max else mask.bool()

    # --- files and strings in, arrays out: what users use ---

    def encode_images(
        self,
        images: Sequence[PictureSource],
        *,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Pictures to unit vectors.

        Args:
            images: Paths, encoded bytes, PIL images or pictures stored in an archive.
            batch_size: Pictures a step; the result does not depend on it beyond rounding.
            progress: Called with the number of pictures done since the last call.

        Returns:
            float32 (N, D), row i for picture i.

        Raises:
            DataError: When a picture is absent or broken (names it), or one picture is given
                instead of a list.
            ConfigError: When `batch_size` is below 1.

        Example:
            >>> import costream
            >>> from PIL import Image
            >>> costream.load("cots-mini").encode_images([Image.new("RGB", (300, 200))]).shape
            (1, 256)
        """
        batches = in_batches(check_list(images, "pictures"), batch_size)
        read = self.config.image_preprocess.read
        return self._collect(decoded_ahead(batches, read), self._embed_prepared, progress)

    def prepare_image(self, image: Image) -> NDArray[np.uint8]:
        """Scale and cut one decoded picture; for callers with threads of their own.

        Args:
            image: Upright, RGB.

        Returns:
            uint8 (3, size_px, size_px), what `encode_prepared` takes.
        """
        return self.config.image_preprocess.pixels(image)

    def encode_prepared(
        self, prepared: Sequence[NDArray[np.uint8]], *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """What `encode_images` gives for pictures that `prepare_image` has made.

        Args:
            prepared: uint8 (3, size_px, size_px) each.
            batch_size: Pictures a step.

        Returns:
            float32 (N, D).

        Raises:
            ConfigError: When `batch_size` is below 1.

        Example:
            >>> import costream
            >>> from PIL import Image
            >>> model = costream.load("cots-mini")
            >>> model.encode_prepared([model.prepare_image(Image.new("RGB", (300, 200)))]).shape
            (1, 256)
        """
        return self._collect(in_batches(prepared, batch_size), self._embed_prepared, None)

    def _embed_prepared(self, batch: Sequence[NDArray[np.uint8]]) -> Tensor:
        pixels = torch.from_numpy(np.stack(batch)).to(self.device)
        if self.precision == "float32" or self.device.type != "cpu":
            return self.embed_pixels(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            vectors = self.embed_pixels(pixels)
        if not self._is_precise:
            few = slice(0, _CHECKED)
            cosines = (self.embed_pixels(pixels[few]) * vectors[few]).sum(dim=1)
            if float(cosines.min()) < _LEAST_COSINE:
                raise NumericalError(
                    f"in bfloat16 {self.name} gives other vectors than in float32 (cosine "
                    f"{float(cosines.min()):.4f}, expected at least {_LEAST_COSINE})",
                    hint="use float32",
                )
            self._is_precise = True
        return vectors

    def encode_texts(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Texts to unit vectors.

        Args:
            texts: Strings of any language and length; what exceeds the context is cut.
            batch_size: Texts a step; the result does not depend on it beyond rounding.
            progress: Called with the number of texts done since the last call.

        Returns:
            float32 (N, D), row i for text i.

        Raises:
            DataError: When an item is not a string, or one string is given instead of a list.
            ConfigError: When `batch_size` is below 1.

        Example:
            >>> import costream
            >>> costream.load("cots-mini").encode_texts(["a dog", "zwei Hunde"]).shape
            (2, 256)
        """
        settings = self.config.text_preprocess

        def run(batch: Sequence[str]) -> Tensor:
            ids, mask = tokenize(self.tokenizer, batch, settings)
            on = self.device
            return self.embed_tokens(torch.from_numpy(ids).to(on), torch.from_numpy(mask).to(on))

        return self._collect(in_batches(check_list(texts, "texts"), batch_size), run, progress)

    def encode_clip(
        self, clip: ClipSource, *, sampling: Sampling | None = None, batch_size: int = 32
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """A video to a unit vector for each of its moments, as `update_index` stores them.

        Args:
            clip: Path, encoded bytes, or a clip stored in an archive.
            sampling: Which moments; None for one a second and a shot.
            batch_size: Moments a step; pictures of no more than so many are held at once.

        Returns:
            float32 (M, D), and float64 (M, 2), begin and end of each moment in seconds: what
            `Index.add_moments` takes.

        Raises:
            DataError: The clip is absent or broken (names it), or PyAV is not installed.
            ConfigError: `batch_size` is below 1, or a number of `sampling` out of its range.

        Example:
            >>> import costream
            >>> model = costream.load("cots-mini")
            >>> vectors, spans = model.encode_clip("absent.mp4")  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            costream.errors.DataError: absent.mp4: is not there, expected a video or a sound; ...
        """
        from costream.data.video import DEFAULT_SAMPLING, sample_frames

        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
        frames = sample_frames(
            clip,
            sampling=DEFAULT_SAMPLING if sampling is None else sampling,
            smallest_side=self.config.image_preprocess.decoded_px,
        )
        vectors: list[NDArray[np.float32]] = []
        spans: list[tuple[float, float]] = []
        while batch := list(islice(frames, batch_size)):
            pictures = [frame.image for frame in batch]
            vectors.append(self.encode_images(pictures, batch_size=batch_size))
            spans.extend((frame.t_start, frame.t_end) for frame in batch)
        return np.concatenate(vectors), np.array(spans, dtype=np.float64)

    def image_features(
        self,
        images: Sequence[PictureSource],
        *,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> Features:
        """Pictures to vectors of the whole and of the patches, for scorers that read tokens.

        Args:
            images: As of `encode_images`.
            batch_size: As of `encode_images`.
            progress: As of `encode_images`.

        Returns:
            On the CPU: pooled (N, D); tokens (N, T, D), unit vectors of the patches.

        Raises:
            DataError: As of `encode_images`.
            ConfigError: As of `encode_images`.
        """
        read = self.config.image_preprocess.read

        def run(batch: Sequence[NDArray[np.uint8]]) -> Features:
            pixels = torch.from_numpy(np.stack(batch)).to(self.device)
            found = self._image_features(pixels, None)
            return replace(found, tokens=self.project_tokens(found), extras={})

        batches = in_batches(check_list(images, "pictures"), batch_size)
        return self._collect_features(decoded_ahead(batches, read), run, progress)

    def text_features(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> Features:
        """Texts to vectors of the whole and of the tokens, for scorers that read tokens.

        Args:
            texts: As of `encode_texts`.
            batch_size: As of `encode_texts`.
            progress: As of `encode_texts`.

        Returns:
            On the CPU: pooled (N, D); tokens (N, T, D), unit vectors; mask (N, T); extras `ids`
            (N, T) and `unscaled` (N, D), the vectors of the whole before they got unit length.

        Raises:
            DataError: As of `encode_texts`.
            ConfigError: As of `encode_texts`.
        """
        settings = self.config.text_preprocess

        def run(batch: Sequence[str]) -> Features:
            ids, mask = tokenize(self.tokenizer, batch, settings)
            on = self.device
            found = self._text_features(torch.from_numpy(ids).to(on), torch.from_numpy(mask).to(on))
            return replace(found, tokens=self.project_tokens(found))

        batches = in_batches(check_list(texts, "texts"), batch_size)
        return self._collect_features(batches, run, progress)

    def video_features(
        self,
        videos: Sequence[Sequence[PictureSource]],
        *,
        batch_size: int = 8,
        progress: Callable[[int], None] | None = None,
    ) -> Features:
        """Videos, given as equally many sampled frames each, to vectors of the whole and of frames.

        Args:
            videos: For each video its frames as pictures.
            batch_size: Videos a step.
            progress: Called with the number of videos done since the last call.

        Returns:
            As of `frame_features`, on the CPU.

        Raises:
            DataError: When the numbers of frames differ, or a frame is broken.
            ConfigError: When `batch_size` is below 1.
        """
        counts = {len(check_list(video, "frames")) for video in check_list(videos, "videos")}
        if len(counts) > 1 or 0 in counts:
            raise DataError(
                f"videos have {sorted(counts)} frames, expected the same number, at least 1",
                hint="sample as many of each",
            )
        read = self.config.image_preprocess.read

        def run(batch: Sequence[Sequence[PictureSource]]) -> Features:
            pixels = np.stack([[read(frame) for frame in video] for video in batch])
            return self.frame_features(torch.from_numpy(pixels).to(self.device))

        return self._collect_features(in_batches(videos, batch_size), run, progress)

    def encode_videos(
        self, videos: Sequence[Sequence[PictureSource]], *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Videos, given as their sampled frames, to unit vectors.

        The vector of a video is the mean of its frames' unit vectors, made unit length again (COTS'
        text-to-video retrieval); order of the frames does not matter.

        Args:
            videos: For each video its frames as pictures, at least one.
            batch_size: Frames a step.

        Returns:
            float32 (N, D).

        Raises:
            DataError: When a video has no frame, a frame is broken, or a video is not a list.
            ConfigError: When `batch_size` is below 1.

        Example:
            >>> import costream
            >>> from PIL import Image
            >>> frames = [Image.new("RGB", (300, 200), shade) for shade in ("red", "blue")]
            >>> costream.load("cots-mini").encode_videos([frames]).shape
            (1, 256)
        """
        frames: list[PictureSource] = []
        counts: list[int] = []
        for number, video in enumerate(check_list(videos, "videos")):
            counts.append(len(check_list(video, f"frames as video {number}")))
            frames.extend(video)
            if not counts[-1]:
                raise DataError(
                    f"video {number} has no frame, expected at least one",
                    hint="leave it out, or sample frames from it",
                )
        vectors = self.encode_images(frames, batch_size=batch_size)
        starts = np.cumsum([0, *counts])
        pooled = np.zeros((len(counts), self.config.dim), dtype=np.float32)
        for number, count in enumerate(counts):
            mean = vectors[starts[number] : starts[number] + count].mean(axis=0)
            pooled[number] = mean / np.linalg.norm(mean).clip(1e-12)
        return pooled

    def _collect_features(
        self,
        batches: Iterator[Sequence[T]],
        run: Callable[[Sequence[T]], Features],
        progress: Callable[[int], None] | None,
    ) -> Features:
        parts: list[Features] = []
        with self._inference():
            for batch in batches:
                parts.append(to_cpu(run(batch)))
                if progress is not None:
                    progress(len(batch))
        if not parts:
            raise DataError("got nothing to encode, expected at least one item")
        return join_features(parts)

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode(), inference_autocast(self.device):
                yield
        finally:
            self.train(was_training)

    def _collect(
        self,
        batches: Iterator[Sequence[T]],
        run: Callable[[Sequence[T]], Tensor],
        progress: Callable[[int], None] | None,
    ) -> NDArray[np.float32]:
        rows = [np.zeros((0, self.config.dim), dtype=np.float32)]
        with self._inference():
            for batch in batches:
                rows.append(run(batch).float().cpu().numpy())
                if progress is not None:
                    progress(len(batch))
        return np.concatenate(rows)


def weight_digests(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """sha256 of the image weights and of the text weights, as they are stored (float16)."""
    halves: tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]] = ([], [])
    for name, value in state.items():
        raw = value.detach().cpu().to(torch.float16).contiguous().numpy().tobytes()
        halves[is_text_weight(name)].append((name, raw))
    return digest_arrays(halves[0]), digest_arrays(halves[1])


def settings_hash(config: DualConfig) -> str:
    """Fingerprint of every setting that decides on a vector, beside the weights."""
    # As they will be read again: where a number may have a fraction, 1 is 1.0.
    return hash_settings(settings_that_count(from_dict(DualConfig, to_dict(config))))
