"""Laws: a sound keeps its pitch, length and level at any rate; windows partition it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_maker import SOUND_CODECS, clip_bytes, cuts, sound_bytes, tone
from costream.data.audio import read_sound, sound_windows


def pitch(samples: NDArray[np.float32], rate: int) -> float:
    """Frequency of the strongest part."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate / len(samples))


@pytest.mark.parametrize("form", SOUND_CODECS)
def test_every_kind_of_sound_keeps_pitch_length_and_level(form: str) -> None:
    rate = 48_000 if form == "ogg" else 44_100
    samples = read_sound(sound_bytes(tone(2.0, rate), form, rate=rate), rate_hz=16_000)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert len(samples) == pytest.approx(32_000, abs=1_600)  # some codecs add silence
    middle = samples[8_000:24_000]
    assert pitch(middle, 16_000) == pytest.approx(440, abs=2)
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000, 192_000, 384_000])
def test_the_rate_of_the_file_does_not_matter(rate: int) -> None:
    sound = sound_bytes(tone(1.5, rate), "wav", rate=rate)
    samples = read_sound(sound, rate_hz=16_000)
    assert len(samples) == 24_000
    assert np.abs(samples - tone(1.5))[200:-200].max() < 0.01


@pytest.mark.parametrize(
    ("codec", "tolerance"),
    [
        ("pcm_u8", 2**-7),
        ("pcm_s16le", 2**-14),
        ("pcm_s24le", 2**-14),
        ("pcm_s32le", 1e-6),
        ("pcm_f32le", 0.0),
        ("pcm_f64le", 1e-7),
        ("pcm_mulaw", 0.02),
    ],
)
def test_every_form_of_samples_is_scaled_to_one(codec: str, tolerance: float) -> None:
    want = tone(0.5)
    got = read_sound(sound_bytes(want, "wav", codec=codec), rate_hz=16_000)
    assert np.abs(got - want).max() <= tolerance


def test_channels_are_averaged() -> None:
    left, right = tone(0.5), tone(0.5, hertz=880)
    got = read_sound(sound_bytes([left, right], "wav", codec="pcm_f32le"), rate_hz=16_000)
    np.testing.assert_allclose(got, (left + right) / 2, atol=1e-7)
    six = np.stack([left, right, left, right, left, right])
    got = read_sound(sound_bytes(six, "wav", codec="pcm_f32le"), rate_hz=16_000)
    np.testing.assert_allclose(got, (left + right) / 2, atol=1e-7)


def test_the_sound_of_a_video_is_read() -> None:
    clip = clip_bytes(cuts(("crab",), 2.0), sound=True)
    samples = read_sound(clip, rate_hz=16_000)
    assert pitch(samples[8_000:24_000], 16_000) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 1.5, 3.0, 3.01])
@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_windows_partition_the_sound(seconds: float, rate: int) -> None:
    sound = sound_bytes(tone(seconds, rate), "wav", rate=rate)
    windows = list(sound_windows(sound, rate_hz=16_000, window_s=1.0))
    assert windows[0].t_start == 0
    assert all(before.t_end == after.t_start for before, after in pairwise(windows))
    assert windows[-1].t_end == pytest.approx(seconds, abs=1e-3)
    assert all(len(window.samples) == 16_000 for window in windows[:-1])
    assert 0 < len(windows[-1].samples) <= 16_000
    joined = np.concatenate([window.samples for window in windows])
    assert (joined == read_sound(sound, rate_hz=16_000)).all()


def test_a_sound_is_the_same_alone_and_after_others() -> None:
    first, second = sound_bytes(tone(1.0), "mp3"), sound_bytes(tone(1.0, hertz=300), "mp3")
    want = read_sound(second)
    read_sound(first)
    assert (read_sound(second) == want).all()
