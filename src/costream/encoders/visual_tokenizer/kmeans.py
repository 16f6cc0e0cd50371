"""Codes by the nearest centroid of patch pixels: no training, a few seconds of fitting.

Shape letters: N pictures, P patches, V codes, F = 3 * side * side numbers of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.encoders.visual_tokenizer.face import check_pixels
from costream.errors import ConfigError, DataError

_CHUNK = 8192


def _patches(images: Tensor, side: int) -> Tensor:
    """Pictures uint8 (N, 3, h, w) to float32 (P, F) in [0, 1], picture by picture, row by row."""
    cut = functional.unfold(images.float() / 255, side, stride=side)
    return cut.transpose(1, 2).reshape(-1, 3 * side * side)


def _distances(patches_PF: Tensor, centroids_VF: Tensor) -> Tensor:
    """Squared distances (P, V) less each patch's own square, which does not change the order."""
    return centroids_VF.square().sum(dim=1) - 2.0 * (patches_PF @ centroids_VF.T)


def _nearest(patches_PF: Tensor, centroids_VF: Tensor) -> Tensor:
    """int64 (P,), the nearest centroid of each patch; the first of equals."""
    parts = [
        _distances(part, centroids_VF).argmin(dim=1) for part in torch.split(patches_PF, _CHUNK)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def _spread(patches_PF: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """First centroids, drawn with probability proportional to the distance (k-means++)."""
    chosen = [int(torch.randint(0, len(patches_PF), (1,), generator=generator))]
    apart = (patches_PF - patches_PF[chosen[0]]).square().sum(dim=1)
    for found in range(1, count):
        if not apart.any():
            raise DataError(
                f"got {found} different patches, expected at least {count}, one a code",
                hint="pass more pictures or a smaller vocab_size",
            )
        # multinomial refuses more than 2^24 classes; a cumulative sum does not.
        sums = apart.double().cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) * sums[-1]
        chosen.append(min(int(torch.searchsorted(sums, draw, right=True)), len(apart) - 1))
        apart = torch.minimum(apart, (patches_PF - patches_PF[chosen[-1]]).square().sum(dim=1))
    return patches_PF[chosen].clone()


def find_centroids(
    points_PF: Tensor, count: int, iterations: int, generator: torch.Generator
) -> Tensor:
    """Centroids (V, F) of points float32 (P, F), by k-means++ and Lloyd's algorithm.

    Args:
        points_PF: The points.
        count: Number of centroids V.
        iterations: Rounds of Lloyd's algorithm.
        generator: CPU generator, for the first centroids.

    Raises:
        DataError: When there are fewer different points than centroids.
    """
    centroids = _spread(points_PF, count, generator)
    for _ in range(iterations):
        nearest = _nearest(points_PF, centroids)
        counts = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points_PF)
        filled = counts > 0
        # A centroid that lost all its points stays where it is.
        centroids[filled] = sums[filled] / counts[filled, None]
    return centroids


class KMeansTokenizer(nn.Module):
    """A visual tokenizer whose codes are centroids of patches.

    Args:
        centroids: float (V, F), pixels in [0, 1], F = 3 * side * side.

    Raises:
        ConfigError: When `centroids` have another form.

    Example:
        >>> import torch
        >>> black_and_white = KMeansTokenizer(torch.tensor([[0.0], [1.0]]).expand(2, 192))
        >>> picture = torch.zeros(1, 3, 8, 16, dtype=torch.uint8)
        >>> picture[..., 8:] = 255
        >>> black_and_white.encode(picture).tolist()
        [[[0, 1]]]
    """

    def __init__(self, centroids: Tensor) -> None:
        super().__init__()
        side = round((centroids.shape[-1] / 3) ** 0.5)
        if centroids.ndim != 2 or centroids.shape[1] != 3 * side * side or not side:
            raise ConfigError(
                f"got centroids of shape {tuple(centroids.shape)}, "
                "expected (codes, 3 * side * side)"
            )
        self.vocab_size = centroids.shape[0]
        self.pixels_per_token = side
        self.centroids: Tensor
        self.register_buffer("centroids", centroids.detach().float().clone())

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        images: Tensor,
        *,
        vocab_size: int = 512,
        side_px: int = 8,
        iterations: int = 15,
        most_patches: int = 20_000,
        seed: int = 0,
    ) -> KMeansTokenizer:
        """Find the centroids of pictures' patches; the same ones for the same input.

        Args:
            images: uint8 (N, 3, h, w) on the CPU, sides multiples of `side_px`.
            vocab_size: Number of codes V.
            side_px: Side of a patch.
            iterations: Rounds of Lloyd's algorithm.
            most_patches: More than this are thinned out at random first.
            seed: Of the thinning and of the first centroids.

        Raises:
            ConfigError: When a number is below 1.
            DataError: When `images` have another form, or fewer different patches than codes.
        """
        if min(vocab_size, side_px, most_patches) < 1 or iterations < 0:
            raise ConfigError(
                f"got {vocab_size=}, {side_px=}, {most_patches=}, {iterations=}, "
                "expected numbers of at least 1 (iterations: 0)"
            )
        check_pixels(images, side_px)
        generator = torch.Generator().manual_seed(seed)
        # Pictures are thinned before patches, so that a large set is never cut up whole.
        per_picture = max((images.shape[2] // side_px) * (images.shape[3] // side_px), 1)
        order = torch.randperm(len(images), generator=generator)
        patches = _patches(images[order[: 4 * most_patches // per_picture + 1]], side_px)
        patches = patches[torch.randperm(len(patches), generator=generator)[:most_patches]]
        if len(patches) == 0:
            raise DataError("got no pictures, expected at least one")
        return cls(find_centroids(patches, vocab_size, iterations, generator))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures uint8 (N, 3, h, w) to codes int64 (N, h / side, w / side).

        Raises:
            DataError: When `images` have another form.
        """
        side = self.pixels_per_token
        check_pixels(images, side)
        with torch.autocast(images.device.type, enabled=False):
            codes = _nearest(_patches(images, side), self.centroids)
        return codes.view(len(images), images.shape[2] // side, images.shape[3] // side)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 (N, H, W) to pictures uint8 (N, 3, side * H, side * W) of centroids."""
        side = self.pixels_per_token
        count, rows, columns = codes.shape
        pixels = self.centroids[codes].view(count, rows, columns, 3, side, side)
        painted = pixels.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, rows * side, columns * side)
        return (painted * 255).round().clamp(0, 255).to(torch.uint8)
