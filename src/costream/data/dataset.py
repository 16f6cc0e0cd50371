"""A data set: samples, what was left out, and a fingerprint of the content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from costream.data.failures import Failure
from costream.data.picture import picture_digest
from costream.records import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """What every reader returns.

    Attributes:
        name: For people: folder and file name of the source.
        samples: One a picture, in the order of the source. `slots["image"]` is a path, encoded
            bytes, a PIL image or a stored picture (all accepted by `open_image`); `slots["text"]`
            a tuple of captions, empty where the source has none; `slots["text.de"]` a tuple of
            German ones. `group` equals `id`.
        missing: Records that were left out (picture absent, no caption, damaged), with reasons.
        num_dropped_captions: Empty captions that were dropped from records with other captions.

    Example:
        >>> data = DataSet(name="none", samples=())
        >>> data.num_images, data.num_captions
        (0, 0)
    """

    name: str
    samples: tuple[Sample, ...]
    missing: tuple[Failure, ...] = ()
    num_dropped_captions: int = 0
    _hash: list[str] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def num_images(self) -> int:
        """Number of pictures."""
        return len(self.samples)

    @property
    def num_captions(self) -> int:
        """Number of captions in the main language (slot `text`), all pictures together."""
        return sum(len(sample.slots.get("text", ())) for sample in self.samples)

    @property
    def hash(self) -> str:
        """`data_hash` of this data set, computed once: the first use reads every picture."""
        if not self._hash:
            self._hash.append(data_hash(self))
        return self._hash[0]


def data_hash(data: DataSet) -> str:
    """Fingerprint ids, captions and picture content.

    The order of samples, the order of captions within a sample and the place of the folder do not
    count; one changed byte of a picture, one changed letter of a caption (in any language) or one
    renamed picture does.

    Args:
        data: Any data set. Every picture file is read once.

    Returns:
        sha256 as 64 hexadecimal letters.

    Raises:
        DataError: A picture file cannot be read.

    Example:
        >>> data_hash(DataSet(name="a", samples=())) == data_hash(DataSet(name="b", samples=()))
        True
    """
    digest = hashlib.sha256()
    for sample in sorted(data.samples, key=lambda sample: sample.id):
        texts = [
            [slot, sorted(captions)]
            for slot, captions in sorted(sample.slots.items())
            if slot == "text" or slot.startswith("text.")
        ]
        image = sample.slots.get("image")
        record = [sample.id, texts, None if image is None else picture_digest(image)]
        # JSON separates the parts without ambiguity, and its escapes hold even names that are
        # not UTF-8.
        digest.update(json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n")
    return digest.hexdigest()
