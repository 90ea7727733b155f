"""Reading recordings: formats, rates, windows, and what is refused."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from keyface_cli.errors import AudioError, VideoError
from keyface_cli.media import ffmpeg
from keyface_cli.media.audio import count_frames, load_waveform, store_waveform


def tone(
    rate: int, seconds: float = 1.0, channels: int = 1, hertz: float = 440.0
) -> NDArray[np.float64]:
    """Return (samples, channels) of a sine at half of full scale."""
    times = np.arange(round(rate * seconds)) / rate
    return np.repeat(0.5 * np.sin(2 * np.pi * hertz * times)[:, None], channels, axis=1)


def convert(source: Path, target: Path, *options: str) -> Path:
    """Let ffmpeg write `source` in the format that the suffix of `target` means."""
    command = [ffmpeg.find_ffmpeg(), "-v", "error", "-i", str(source), *options, str(target)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return target


def assert_tone(waveform: NDArray[np.float32], seconds: float = 1.0, slack: int = 0) -> None:
    """The waveform is the 440 Hz tone, without the edges that codecs and filters blur."""
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - round(16_000 * seconds)) <= slack
    middle = waveform[2000:-2000]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.03)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * 16_000 / len(middle) == pytest.approx(440.0, abs=3.0)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count(tmp_path: Path, rate: int, channels: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate, channels=channels), rate)
    assert_tone(load_waveform(tmp_path / "a.wav"))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_any_sample_format(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000, subtype=subtype)
    assert_tone(load_waveform(tmp_path / "a.wav"))


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg", "a.opus"])
def test_formats_of_libsndfile(tmp_path: Path, name: str) -> None:
    form = {"a.opus": {"format": "OGG", "subtype": "OPUS"}}.get(name, {})
    soundfile.write(tmp_path / name, tone(48000, channels=2), 48000, **form)
    assert_tone(load_waveform(tmp_path / name), slack=1200)


@pytest.mark.parametrize("name", ["a.m4a", "a.aac", "a.mp4", "a.mov", "a.webm", "a.wma"])
def test_formats_of_ffmpeg(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / "source.wav", tone(48000, channels=2), 48000)
    convert(tmp_path / "source.wav", tmp_path / name)
    assert_tone(load_waveform(tmp_path / name), slack=1200)


def test_sound_track_of_a_video_and_a_misleading_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(44100), 44100)
    picture = ("-f", "lavfi", "-i", "color=red:size=64x64:duration=1")
    convert(tmp_path / "a.wav", tmp_path / "a.mp4", *picture, "-map", "0:a", "-map", "1:v")
    (tmp_path / "a.mp4").rename(tmp_path / "say: 'a%d'.wav")
    assert_tone(load_waveform(tmp_path / "say: 'a%d'.wav"), slack=1200)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left = tone(16000)[:, 0]
    soundfile.write(tmp_path / "a.wav", np.stack([left, 0 * left], axis=1), 16000)
    assert np.abs(load_waveform(tmp_path / "a.wav")).max() == pytest.approx(0.25, abs=0.001)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
@pytest.mark.parametrize("count", [1, 7, 100])
def test_length_is_exact(tmp_path: Path, rate: int, count: int) -> None:
    samples = rate + count
    soundfile.write(tmp_path / "a.wav", tone(rate, samples / rate), rate)
    assert len(load_waveform(tmp_path / "a.wav")) == -(-samples * 16000 // rate)


def test_long_sound_is_read_in_blocks_without_seams(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(44100, seconds=8.0), 44100, subtype="FLOAT")
    waveform = load_waveform(tmp_path / "a.wav")
    expected = tone(16000, seconds=8.0)[:, 0]
    assert np.abs(waveform - expected)[500:-500].max() < 1e-3


def test_start_and_duration_cut_the_same_samples(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (48000, 1))
    soundfile.write(tmp_path / "a.wav", noise, 16000, subtype="FLOAT")
    whole = load_waveform(tmp_path / "a.wav")
    part = load_waveform(tmp_path / "a.wav", start_s=0.5, duration_s=1.25)
    np.testing.assert_array_equal(part, whole[8000:28000])
    np.testing.assert_array_equal(load_waveform(tmp_path / "a.wav", 2.0, 9.0), whole[32000:])


def test_window_of_a_compressed_file_is_exact(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000, 3.0), 16000)
    for name in ("a.mp3", "a.m4a"):
        convert(tmp_path / "a.wav", tmp_path / name)
        whole = load_waveform(tmp_path / name)
        part = load_waveform(tmp_path / name, start_s=1.0, duration_s=1.0)
        np.testing.assert_allclose(part, whole[16000:32000], atol=1e-6)


def test_frames_cover_the_sound() -> None:
    assert [count_frames(n) for n in (1, 639, 640, 641, 160_000)] == [1, 1, 1, 2, 250]


def test_one_frame_is_enough(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000)[:640], 16000)
    assert len(load_waveform(tmp_path / "a.wav")) == 640


def test_silence_is_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    with caplog.at_level(logging.WARNING):
        assert not load_waveform(tmp_path / "a.wav").any()
    assert "silent" in caplog.text


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (1e-3 * tone(16000), r"very quiet \(-69 dB\)"),
        (1.2 * np.ones_like(tone(16000)), "silent"),
        (0.1 + tone(16000), r"offset \(DC\) of 10.0 %"),
        (np.clip(4 * tone(16000), -1, 1), r"clipped: 6\d\.\d % of it is at full scale"),
    ],
)
def test_what_is_unusual_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, samples: NDArray[np.float64], message: str
) -> None:
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    load_waveform(tmp_path / "a.wav")
    assert re.search(message, caplog.text)


def test_usual_sound_is_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "a.wav", 1.9 * tone(16000), 16000)
    load_waveform(tmp_path / "a.wav")
    assert caplog.text == ""


def test_stored_waveform_is_the_same_and_leaves_no_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 50_000)
    soundfile.write(tmp_path / "a.wav", noise, 22050)
    loaded = load_waveform(tmp_path / "a.wav", 0.5, 1.2)
    (tmp_path / "work").mkdir()
    stored = store_waveform(tmp_path / "a.wav", tmp_path / "work", 0.5, 1.2)
    assert list((tmp_path / "work").iterdir()) == []
    assert len(stored) == len(loaded) == 19_200
    np.testing.assert_array_equal(stored[:], loaded)
    np.testing.assert_array_equal(stored[700:900], loaded[700:900])
    assert len(stored[19_000:30_000]) == 200
    assert len(stored[30_000:40_000]) == 0
    with pytest.raises(AudioError, match="cannot be written to"):
        store_waveform(tmp_path / "a.wav", tmp_path / "absent")


def test_samples_beyond_full_scale_are_clipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "a.wav", 1e4 * tone(44100), 44100, subtype="FLOAT")
    waveform = load_waveform(tmp_path / "a.wav")
    assert np.abs(waveform).max() == 1.0
    assert "louder than full scale" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    samples = tone(16000)
    samples[4000] = value
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav: sample 4000 \(at 0\.25 s\) is no number"):
        load_waveform(tmp_path / "a.wav")
    assert len(load_waveform(tmp_path / "a.wav", start_s=0.5)) == 8000


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("hello " * 1000)
    (tmp_path / "rate.raw").write_bytes(bytes(5000))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "short.wav", tone(16000)[:639], 16000)
    soundfile.write(tmp_path / "slow.wav", tone(16000), 10)
    soundfile.write(tmp_path / "many.wav", tone(16000, channels=9), 16000)
    soundfile.write(tmp_path / "good.flac", np.random.default_rng(0).uniform(-1, 1, 9000), 16000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "good.flac").read_bytes()[:9000])
    for name, message in {
        "missing.wav": "no such audio file",
        "": "is a folder",
        "empty.wav": "the audio file is empty",
        "text.wav": "not a sound file that can be read: ",
        "rate.raw": "holds no sound",
        "slow.wav": "damaged sound file: a sample rate of 10 Hz",
        "none.wav": "holds no samples",
        "short.wav": r"shorter than one video frame \(40 ms\): 39\.9 ms",
        "many.wav": "has 9 channels, a video keeps at most 8",
        "cut.flac": "damaged sound file",
    }.items():
        with pytest.raises(AudioError, match=message) as caught:
            load_waveform(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_pipe_is_called_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(AudioError, match="is a pipe or a device, which can be read only once"):
        load_waveform(tmp_path / "a.wav")


def test_start_beyond_the_end_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000)
    with pytest.raises(AudioError, match=r"a start at 1 s is beyond its end at 1\.00 s"):
        load_waveform(tmp_path / "a.wav", start_s=1.0)
    with pytest.raises(AudioError, match="shorter than one video frame"):
        load_waveform(tmp_path / "a.wav", start_s=0.98)


def test_picture_has_no_sound(tmp_path: Path) -> None:
    command = [ffmpeg.find_ffmpeg(), "-v", "error", "-f", "lavfi", "-i", "color=size=64x64"]
    subprocess.run([*command, "-frames:v", "5", str(tmp_path / "a.mp4")], check=True)
    with pytest.raises(AudioError, match="holds no sound"):
        load_waveform(tmp_path / "a.mp4")


def test_without_ffmpeg_only_its_formats_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000)
    convert(tmp_path / "a.wav", tmp_path / "a.m4a")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "absent"))
    assert_tone(load_waveform(tmp_path / "a.wav"))
    with pytest.raises(VideoError, match="ffmpeg was not found"):
        load_waveform(tmp_path / "a.m4a")
