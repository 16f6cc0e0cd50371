"""A data set: samples, what was left out, and a fingerprint of the content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from costream.data.failures import Failure, printable
from costream.data.picture import PictureSource, picture_digest
from costream.errors import DataError
from costream.records import Sample

if TYPE_CHECKING:
    from costream.data.video import VideoSource


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """What every reader returns.

    Attributes:
        name: For people: folder and file name of the source.
        samples: One a picture or video, in the order of the source. `slots["image"]` is a path,
            encoded bytes, a PIL image or a stored picture (all accepted by `open_image`);
            `slots["video"]` the path of a clip, or its frames as pictures; `slots["text"]`
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
        """Number of pictures, or of videos where samples are those."""
        return len(self.samples)

    @property
    def shows(self) -> str:
        """The slot of what captions are about: `video` where all samples have one, else `image`."""
        return "video" if are_videos(self.samples) else "image"

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


def are_videos(samples: Sequence[Sample]) -> bool:
    """Whether there are samples, and each has a video.

    Example:
        >>> are_videos([Sample(id="a", group="a", slots={"video": "a.mp4"})]), are_videos([])
        (True, False)
    """
    return bool(samples) and all("video" in sample.slots for sample in samples)


def picture_of(sample: Sample) -> PictureSource:
    """The picture of a sample, for what reads pictures only.

    Raises:
        DataError: It has none; names it.

    Example:
        >>> picture_of(Sample(id="a", group="a", slots={"image": "a.jpg"}))
        'a.jpg'
    """
    source: PictureSource | None = sample.slots.get("image")
    if source is None:
        raise DataError(
            f"{printable(sample.id)} has no picture, expected one", hint="give captioned pictures"
        )
    return source


def data_hash(data: DataSet) -> str:
    """Fingerprint ids, captions and the content of pictures and videos.

    The order of samples, the order of captions within a sample and the place of the folder do not
    count; one changed byte of a picture or video, one changed letter of a caption (in any language)
    or one renamed picture does.

    Args:
        data: Any data set. Every file of a picture or video is read once.

    Returns:
        sha256 as 64 hexadecimal letters.

    Raises:
        DataError: A file cannot be read.

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
        record: list[object] = [sample.id, texts]
        record.append(None if image is None else picture_digest(image))
        if "video" in sample.slots:
            record.append(_video_digests(sample.slots["video"]))
        # JSON separates the parts without ambiguity, and its escapes hold even names that are
        # not UTF-8.
        digest.update(json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n")
    return digest.hexdigest()


def _video_digests(video: VideoSource) -> list[str]:
    """Of the file, or of each frame."""
    if isinstance(video, list | tuple):
        return [picture_digest(frame) for frame in video]
    return [picture_digest(video)]
