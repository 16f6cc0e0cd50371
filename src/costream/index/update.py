"""Keep an index equal to the files of pictures and clips below some folders.

The work of one run, in order: find the files; skip those whose size and time are as noted; read
the others and compare their hash; decode, embed and store, in batches, those whose content is new.
Reading runs in threads, and decoding in processes, while the model works on the batch before. A
batch is stored in one durable step, so a run that is killed loses at most the batches in the
making, and the next run goes on from there. A file that crashes its decoder, or keeps it busy for a
minute, is a broken file like any other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from costream.config import check_config
from costream.data.decode_apart import Decoders
from costream.data.video import DEFAULT_SAMPLING, Sampling
from costream.data.walk import find_media
from costream.errors import ConfigError
from costream.index import check, files
from costream.index.forms import ItemForm
from costream.index.ingest import Ingest
from costream.index.left_out import leave_out
from costream.index.models import ImageEncoder, SoundEncoder
from costream.index.records import UpdateReport

if TYPE_CHECKING:
    from PIL.Image import Image

    from costream.index.protocol import SearchIndex


def update_index(
    index: SearchIndex,
    model: ImageEncoder | ItemForm,
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    prune: bool = False,
    batch_size: int = 64,
    smallest_side: int | None = None,
    read_words: Callable[[Image], str] | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    progress: Callable[[int, int], None] | None = None,
) -> UpdateReport:
    """Bring the pictures and clips below some folders into an index, embedding only what is new.

    A picture gets one vector, or several if the model is an `ItemForm`. A video gets as many for
    each of its moments, and so does a sound, when the model is a `SoundEncoder`; without a decoder
    or a tower for them, those that are met in folders are left out and counted. What a file is, its
    content says.

    The id of a picture or clip is its real path. A file whose size and time are as noted is not
    read. One that was touched but holds the same bytes is not embedded again; nor is one that holds
    the bytes of another item. When that other item's file is gone and was below `paths`, the file
    was moved, and the old item goes. Nothing outside `paths` is ever removed. Ctrl-C
    (KeyboardInterrupt) ends a run like an error does: what was stored stays, and the next run goes
    on from there.

    A broken file is listed and does not stop the run. If it was indexed before, the vector of its
    last good content stays: a file may be broken because it is just being written or because its
    disk is away, and `prune` is the way to drop files that are gone.

    Args:
        index: Where to.
        model: Makes the vectors; its space must be that of the index, unless that is empty.
        paths: Folders or files.
        prune: Whether to remove items below `paths` whose files are gone.
        batch_size: Pictures or moments embedded and made durable at a time.
        smallest_side: Passed to `open_image` and `sample_frames`: JPEG files and clips may be
            decoded smaller, down to this many pixels. Give what the model's own decoding uses, or
            None to decode in full.
        sampling: Which pictures of a clip are taken.
        read_words: Finds the words in a picture, which become its text; None leaves it empty. Only
            pictures that are embedded are read.
        progress: Called with the number of files dealt with and their total.

    Returns:
        What was done, with the failures and what was left out.

    Raises:
        SpaceMismatch: The index holds vectors of another model.
        DataError: A given path is absent, or the index cannot be written. What was stored before
            stays stored.
        NumericalError: No picture of the first batch got a usable vector: the model is broken.
        ConfigError: `batch_size` or a number of `sampling` is out of range, or the model only asks
            what another one has embedded.

    Example:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from costream.index import Index
        >>> from costream.records import Space
        >>> class MeanColour:
        ...     space = Space(encoder="mean", weights_hash="", preprocessing_hash="", dim=3)
        ...     def encode_images(self, images, *, batch_size):
        ...         means = np.stack([np.asarray(i).mean(axis=(0, 1)) for i in images])
        ...         return np.float32(means / np.linalg.norm(means, axis=1, keepdims=True))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (8, 8), "red").save(Path(folder, "red.png"))
        ...     with Index.open(Path(folder, "index"), create=True) as index:
        ...         report = update_index(index, MeanColour(), folder)
        >>> report.added
        1
    """
    if batch_size < 1:
        raise ConfigError(f"got batch_size={batch_size}, expected at least 1")
    if len(index):
        check.check_same(index.space, model.space, index.location)
    check.refuse_query_only(model)
    check_config(sampling)
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found, failures = find_media(given)
    found, left_out = leave_out(found, given, has_ears=isinstance(model, SoundEncoder))
    roots = [os.path.realpath(path) for path in given]
    names = files.real_paths(found)
    with Decoders() as decoders:
        run = Ingest(
            index=index,
            model=model,
            roots=roots,
            batch_size=batch_size,
            smallest_side=smallest_side,
            read_words=read_words,
            sampling=sampling,
            progress=progress,
            total=len(names),
            failures=failures,
            decoders=decoders,
        )
        run.know(index.items())
        run.over(names)
    if prune:
        run.count("removed", _prune(index, roots))
    index.load()  # so that the next search finds the vectors in one file
    return UpdateReport(**run.counts, failures=tuple(run.failures), left_out=left_out)


def _prune(index: SearchIndex, roots: Sequence[str]) -> int:
    gone = [
        item.id
        for item in index.items()
        if item.path is not None and files.is_below(item.path, roots) and files.is_gone(item.path)
    ]
    return index.remove(gone)
