"""Pictures as words: discrete codes of patches, the targets of masked vision modelling.

Three ways to make them, all with the same face (`VisualTokenizer`):

- `DiscreteVae`: a small discrete variational auto-encoder that trains here, in about a minute;
- `PublishedDvae`: the 8,192-code encoder that DALL-E published and BEiT and COTS use;
- `KMeansTokenizer`: nearest centroids of patch pixels, for a few seconds of fitting.
"""

from costream.encoders.visual_tokenizer.dvae import DiscreteVae, DiscreteVaeConfig, VaeLoss
from costream.encoders.visual_tokenizer.face import CodeUsage, VisualTokenizer, code_usage
from costream.encoders.visual_tokenizer.fit import VaeTraining, fit_discrete_vae
from costream.encoders.visual_tokenizer.kmeans import KMeansTokenizer
from costream.encoders.visual_tokenizer.published import (
    PublishedDvae,
    PublishedDvaeConfig,
    load_published_dvae,
)
from costream.encoders.visual_tokenizer.storage import (
    AnyTokenizer,
    load_tokenizer_model,
    save_tokenizer,
)

__all__ = [
    "AnyTokenizer",
    "CodeUsage",
    "DiscreteVae",
    "DiscreteVaeConfig",
    "KMeansTokenizer",
    "PublishedDvae",
    "PublishedDvaeConfig",
    "VaeLoss",
    "VaeTraining",
    "VisualTokenizer",
    "code_usage",
    "fit_discrete_vae",
    "load_published_dvae",
    "load_tokenizer_model",
    "save_tokenizer",
]
