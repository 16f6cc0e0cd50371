"""What happens to samples before they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from costream.records import Sample


class Pipe(Protocol):
    """A change of samples: other captions, weights, pairs; some may be left out.

    Runs once over the data set, before training. The same state of `rng` gives the same samples, so
    that a run that is resumed goes on with the same ones; its input is never changed.
    """

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sequence[Sample]:
        """Samples to samples."""
