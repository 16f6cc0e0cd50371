"""Laws: a clip is one item with a vector a moment; only new content is embedded; failures stay."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clip_maker import cuts, gallery, sound_bytes, still, tone, write_clip
from costream.data import Sampling, open_image, sample_frames
from costream.data.decode_apart import Decoders
from costream.data.failures import Failure
from costream.data.video import DEFAULT_SAMPLING
from costream.encoders.locate import shipped_models
from costream.encoders.storage import load
from costream.errors import ConfigError, DataError
from costream.index import Filter, Index, Item, Moment, SoundEncoder, UpdateReport, update_index
from costream.index import left_out as left_out_module
from costream.index.embed_apart import add_made, embed_apart
from costream.records import Space

LONG_AGO_NS = 10**18
SHOTS = ("airplane", "cat_face", "broccoli", "bison", "crab")


class SmallPictures:
    """A small real encoder: four by four pixels and a constant, unit length."""

    space = Space(encoder="small pictures", weights_hash="w", preprocessing_hash="p", dim=49)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        self.batches.append(len(images))
        small = [open_image(image).resize((4, 4), Image.Resampling.BOX) for image in images]
        rows = [np.append(np.asarray(image, dtype=np.float64), 128.0) for image in small]
        vectors = np.stack([row / np.linalg.norm(row) for row in rows])
        return vectors.astype(np.float32)


class Hearing(SmallPictures):
    """One that hears, too: the loudness of 48 bands of a second of sound."""

    rate_hz = 8_000
    window_s = 1.0

    def encode_sounds(self, sounds: Sequence[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        rows = []
        for samples in sounds:
            assert samples.dtype == np.float32 and len(samples) <= 8_000
            bands = np.abs(np.fft.rfft(samples, 8_000))[:3984].reshape(48, 83).mean(axis=1)
            row = np.append(bands, 1.0)
            rows.append(row / np.linalg.norm(row))
        return np.array(rows, dtype=np.float32)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "index", create=True) as opened:
        yield opened


def make_clip(path: Path, names: Sequence[str], seconds: float = 1.0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, cuts(names, seconds), **options)
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return path


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    make_clip(folder / "clips" / "a.mp4", SHOTS)
    make_clip(folder / "clips" / "b.mkv", SHOTS[:2])
    for name in ("dolphin", "castle_in_park"):
        gallery(name).save(folder / f"{name}.png")
        os.utime(folder / f"{name}.png", ns=(LONG_AGO_NS, LONG_AGO_NS))
    return folder


def assert_equals_clip(index: Index, path: Path) -> None:
    """The item holds the moments and vectors that the decoder and the model give for the file."""
    frames = list(sample_frames(path))
    (moments,) = index.moments([str(path)])
    assert moments == tuple(Moment(t_start=f.t_start, t_end=f.t_end) for f in frames)
    want = SmallPictures().encode_images([frame.image for frame in frames])
    assert (index.all_vectors([str(path)]) == want.astype(np.float16)).all()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_clips_beside_pictures(index: Index, media: Path, batch_size: int) -> None:
    model = SmallPictures()
    report = update_index(index, model, media, batch_size=batch_size)
    assert report == UpdateReport(added=4, embedded=4)
    assert max(model.batches) <= batch_size
    assert sum(model.batches) == 5 + 2 + 2
    assert len(index) == 4
    for name in ("a.mp4", "b.mkv"):
        assert_equals_clip(index, media / "clips" / name)
    assert index.moments([str(media / "dolphin.png")]) == [(Moment(),)]
    assert index.matches(Filter(modality=("video",))) == {
        str(media / "clips" / name) for name in ("a.mp4", "b.mkv")
    }
    assert update_index(index, model, media) == UpdateReport(unchanged=4)
    assert index.check() == ()


def test_a_query_finds_the_moment(index: Index, media: Path) -> None:
    update_index(index, SmallPictures(), media)
    a = str(media / "clips" / "a.mp4")
    for number, name in enumerate(SHOTS[2:], start=2):
        query = SmallPictures().encode_images([gallery(name)])
        ranking = index.search(query, SmallPictures.space, 3)
        assert ranking.ids[0][0] == a
        t_start, t_end = ranking.spans[0][0]
        assert t_start <= number + 0.5 < t_end
        assert len(set(ranking.ids[0])) == len(ranking.ids[0])
    every = index.search(query, SmallPictures.space, 9, group=False)
    assert list(every.ids[0]).count(a) == 5


def test_only_changed_clips_are_embedded_again(index: Index, media: Path) -> None:
    update_index(index, SmallPictures(), media)
    a, b = media / "clips" / "a.mp4", media / "clips" / "b.mkv"
    os.utime(b, ns=(LONG_AGO_NS + 5, LONG_AGO_NS + 5))
    make_clip(a, SHOTS[1:3])
    model = SmallPictures()
    report = update_index(index, model, media)
    assert report == UpdateReport(changed=1, embedded=1, unchanged=3)
    assert model.batches == [2]
    assert_equals_clip(index, a)
    moved = b.rename(media / "moved.mkv")
    assert update_index(index, model, media) == UpdateReport(moved=1, unchanged=3)
    (media / "copy.mkv").write_bytes(moved.read_bytes())
    assert update_index(index, model, media) == UpdateReport(added=1, unchanged=4)
    assert_equals_clip(index, moved)
    assert_equals_clip(index, media / "copy.mkv")
    moved.unlink()
    a.unlink()
    assert update_index(index, model, media, prune=True) == UpdateReport(removed=2, unchanged=3)
    assert model.batches == [2]
    assert index.check() == ()


def test_a_picture_that_becomes_a_clip_and_back(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "p" / "it.jpg"
    make_clip(tmp_path / "it.mp4", SHOTS[:3])
    path.parent.mkdir()
    for content, num_moments in (("picture", 1), ("clip", 3), ("picture", 1)):
        if content == "clip":
            path.write_bytes((tmp_path / "it.mp4").read_bytes())
        else:
            gallery("crab").save(path)
        update_index(index, SmallPictures(), path)
        (item,) = index.items()
        assert item.modality == ("video" if content == "clip" else "image")
        assert len(index.moments([item.id])[0]) == num_moments


def test_a_broken_clip_fails_alone_and_keeps_its_last_good_moments(
    index: Index, media: Path
) -> None:
    update_index(index, SmallPictures(), media)
    a = media / "clips" / "a.mp4"
    before = index.all_vectors([str(a)])
    content = a.read_bytes()
    a.write_bytes(content[: content.index(b"moov") - 4])
    (media / "clips" / "c.avi").write_bytes(b"RIFF\xff\xff\xff\xffAVI " + b"LIST" * 1000)
    make_clip(media / "clips" / "d.mp4", SHOTS[:1])
    for _ in range(2):  # tried again by every run
        report = update_index(index, SmallPictures(), media, prune=True)
        assert {Path(failure.path).name for failure in report.failures} == {"a.mp4", "c.avi"}
    assert (index.all_vectors([str(a)]) == before).all()
    assert len(index) == 5


class Failing(SmallPictures):
    """Gives nothing usable for pictures that are mostly dark."""

    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        vectors = super().encode_images(images, batch_size=batch_size)
        dark = [np.asarray(open_image(image)).mean() < 8 for image in images]
        vectors[np.array(dark)] = np.nan
        return vectors


def test_a_clip_with_a_moment_that_has_no_vector_fails_alone(index: Index, media: Path) -> None:
    dark = still(Image.new("RGB", (96, 64)), 1.0)
    write_clip(media / "dark.mp4", [*cuts(SHOTS[:1], 1.0), *dark])
    report = update_index(index, Failing(), media)
    assert [Path(failure.path).name for failure in report.failures] == ["dark.mp4"]
    assert "zero or not finite; leave this video out" in report.failures[0].reason
    assert report.added == 4


class Interrupted(SmallPictures):
    """Stops in its third batch."""

    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        if len(self.batches) == 2:
            raise KeyboardInterrupt
        return super().encode_images(images, batch_size=batch_size)


def test_an_interrupt_in_the_middle_of_a_clip_leaves_no_part_of_it(
    index: Index, media: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        update_index(index, Interrupted(), media, batch_size=2)
    assert str(media / "clips" / "a.mp4") not in index.ids()
    assert index.check() == ()
    assert update_index(index, SmallPictures(), media).failures == ()
    assert_equals_clip(index, media / "clips" / "a.mp4")


class Meddling(SmallPictures):
    """A model during whose work the clip is written anew."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        os.utime(self.path, ns=(LONG_AGO_NS + 7, LONG_AGO_NS + 7))
        return super().encode_images(images, batch_size=batch_size)


def test_a_clip_that_is_changed_while_it_is_decoded_fails(index: Index, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "p" / "a.mp4", SHOTS)
    report = update_index(index, Meddling(clip), clip, batch_size=1)
    assert "was changed while it was read" in report.failures[0].reason
    assert len(index) == 0


def test_sampling_is_the_callers(index: Index, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "p" / "a.mp4", SHOTS)
    update_index(index, SmallPictures(), clip, sampling=Sampling(max_frames=2, cuts=False))
    assert index.moments([str(clip)]) == [
        (Moment(t_start=0, t_end=2.5), Moment(t_start=2.5, t_end=5))
    ]


def test_the_date_of_a_clip_is_when_it_was_recorded(index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    made = datetime(2021, 5, 4, 12, 0, tzinfo=UTC).timestamp()
    make_clip(folder / "a.mp4", SHOTS[:1], metadata={"creation_time": "2021-05-04T12:00:00Z"})
    make_clip(folder / "b.mp4", SHOTS[1:2])
    update_index(index, SmallPictures(), folder)
    a, b = index.items()
    assert (a.date, b.date) == (made, None)


# --- sounds ---


def test_sounds_in_folders_are_left_out_with_a_word(index: Index, media: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (media / name).write_bytes(sound_bytes(tone(1.0), "wav"))
    report = update_index(index, SmallPictures(), media)
    assert (report.added, report.failures) == (4, ())
    (left,) = report.left_out
    assert (left.what, left.count) == ("sounds", 2)
    assert "the model has no tower for sounds" in left.reason


def test_a_sound_that_is_named_fails_with_what_it_would_take(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(sound_bytes(tone(1.0), "wav"))
    (failure,) = update_index(index, SmallPictures(), path).failures
    assert "small pictures has no tower for sounds" in failure.reason
    assert "encode_sounds" in failure.reason


def test_a_model_that_hears_indexes_sounds_by_moments(index: Index, media: Path) -> None:
    assert isinstance(Hearing(), SoundEncoder)
    low_then_high = np.concatenate([tone(2.0, 8_000, 300), tone(1.5, 8_000, 2_000)])
    (media / "a.wav").write_bytes(sound_bytes(low_then_high, "wav", rate=8_000))
    (media / "b.flac").write_bytes(sound_bytes(tone(1.0, 16_000, 900), "flac"))
    (media / "c.wav").write_bytes(sound_bytes(np.full(100, np.nan), "wav", codec="pcm_f32le"))
    report = update_index(index, Hearing(), media, batch_size=2)
    assert (report.added, report.left_out) == (6, ())
    assert [Path(failure.path).name for failure in report.failures] == ["c.wav"]
    (moments,) = index.moments([str(media / "a.wav")])
    assert [(m.t_start, m.t_end) for m in moments] == [(0, 1), (1, 2), (2, 3), (3, 3.5)]
    query = Hearing().encode_sounds([tone(1.0, 8_000, 2_000)])
    ranking = index.search(query, Hearing.space, 1, where=Filter(modality=("audio",)))
    assert ranking.ids == ((str(media / "a.wav"),),)
    assert ranking.spans[0][0] == (2.0, 3.0)


def test_without_a_decoder_videos_in_folders_are_left_out_with_the_remedy(
    index: Index, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left_out_module, "find_spec", lambda name: None)
    report = update_index(index, SmallPictures(), media)
    assert (report.added, report.failures) == (2, ())
    (left,) = report.left_out
    assert (left.what, left.count) == ("videos", 2)
    assert "pip install costream[video]" in left.reason


def test_what_cannot_be_stored_stops_the_run(index: Index, media: Path) -> None:
    """A disk that is full is no fault of the clip that came last."""

    class Elsewhere(SmallPictures):
        def encode_images(
            self, images: Sequence[Any], *, batch_size: int = 32
        ) -> NDArray[np.float32]:
            return super().encode_images(images, batch_size=batch_size)[:, :5]

    with pytest.raises(DataError, match=r"gave vectors of shape"):
        update_index(index, Elsewhere(), media / "clips", batch_size=2)


def test_items_without_a_file_stay(index: Index, media: Path) -> None:
    index.add([Item(id="x")], SmallPictures().encode_images([gallery("crab")]), SmallPictures.space)
    update_index(index, SmallPictures(), media, prune=True)
    assert "x" in index.ids()


@pytest.mark.skipif(not shipped_models(), reason="the default model is not in this checkout")
def test_a_clip_encoded_alone_has_the_vectors_and_spans_that_the_index_holds(
    index: Index, media: Path
) -> None:
    model = load("cots-mini")
    clip = media / "clips" / "a.mp4"
    update_index(index, model, clip, smallest_side=model.config.image_preprocess.decoded_px)
    vectors, spans = model.encode_clip(clip, batch_size=2)
    (moments,) = index.moments([str(clip)])
    assert [(m.t_start, m.t_end) for m in moments] == [tuple(span) for span in spans.tolist()]
    np.testing.assert_allclose(index.all_vectors([str(clip)]), vectors, atol=2e-3)
    index.add_moments([Item(id="again")], vectors, np.zeros(len(vectors), int), spans, model.space)
    (again,) = index.moments(["again"])
    assert again == moments
    with pytest.raises(ConfigError, match="batch_size is 0"):
        model.encode_clip(clip, batch_size=0)


class Quarters(SmallPictures):
    """Several vectors a picture: one for each quarter."""

    space = replace(SmallPictures.space, kind="multi")

    def of_images(self, images: Sequence[Any]) -> list[NDArray[np.float32]]:
        made = []
        for image in images:
            width, height = image.size
            boxes = [(x, y, x + width // 2, y + height // 2) for x in (0, width // 2) for y in (0,)]
            made.append(self.encode_images([image.crop(box) for box in boxes]))
        return made

    def of_texts(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        raise NotImplementedError

    def score(self, query: NDArray[np.float32], item: NDArray[np.float32]) -> float:
        raise NotImplementedError

    def bound(self, best_V: NDArray[np.float32]) -> float:
        raise NotImplementedError


@pytest.mark.parametrize("maker", [SmallPictures(), Hearing(), Quarters()])
def test_what_is_embedded_apart_is_what_an_update_embeds(
    index: Index, media: Path, tmp_path: Path, maker: SmallPictures
) -> None:
    """Pictures, videos, sounds and what is broken; new files, changed ones and touched ones."""
    (media / "tone.wav").write_bytes(sound_bytes(tone(2.5, 8_000, 2_000), "wav", rate=8_000))
    os.utime(media / "tone.wav", ns=(LONG_AGO_NS, LONG_AGO_NS))
    (media / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 no more")
    names = sorted(str(path) for path in media.rglob("*.*"))

    def apart(target: Index) -> list[Failure]:
        known = target.items()
        with Decoders() as decoders:
            made, failures = embed_apart(
                maker,
                names,
                known,
                decoders=decoders,
                sampling=DEFAULT_SAMPLING,
                smallest_side=None,
                batch_size=3,
            )
        sent = [pickle.loads(pickle.dumps(one)) for one in made]  # noqa: S301
        add_made(target, sent, maker.space)
        return failures

    with Index.open(tmp_path / "apart", create=True) as other:
        for _ in range(2):
            report = update_index(index, maker, names, batch_size=3)
            failures = apart(other)
            assert sorted(map(str, failures)) == sorted(map(str, report.failures))
            assert failures
            assert other.items() == index.items()
            assert other.moments(index.ids()) == index.moments(index.ids())
            assert (other.all_vectors(index.ids()) == index.all_vectors(index.ids())).all()
            # For the second round: one is another, one is as it was but for its time.
            make_clip(media / "clips" / "b.mkv", SHOTS[2:])
            os.utime(media / "dolphin.png", ns=(LONG_AGO_NS, 2 * LONG_AGO_NS // 3))
        assert other.check() == ()
