"""Read any recording as the 16 kHz mono waveform that the audio encoders read.

The sound that the video carries is the user's own: `video` encodes it from the same file. Files are
read in blocks; `store_waveform` keeps the result in a file too, so that memory does not grow with
the recording.
"""

from __future__ import annotations

import io
import logging
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from keyface_cli.config import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from keyface_cli.errors import AudioError
from keyface_cli.files import check_given, unwritable
from keyface_cli.media.ffmpeg import decoding, file_url, find_ffmpeg, last_words

logger = logging.getLogger(__name__)

MAX_CHANNELS = 8  # more than these the AAC encoder does not take
RATES = (2_000, 768_000)  # Hz: outside these the header is damaged
SILENCE = 1e-4  # -80 dB of full scale: a recording with nothing above it is silent
QUIET = 1e-3  # -60 dB of full scale, as a mean: whispering, far away
LOUDEST = 2.0  # times full scale: louder than any overshoot of a lossy codec
CLIPPED = 1e-3  # of the samples at full scale: it was recorded too loud
OFFSET = 0.02  # of full scale: a mean that no voice has
_BLOCK = 1 << 16  # samples of each channel that are read at a time
_AU_HEADER = struct.Struct(">4s5I")  # magic, offset of the data, bytes, encoding, rate, channels


@dataclass(frozen=True)
class _Sound:
    """A file while it is being read: `blocks` are (n, channels) float32, 1.0 is full scale."""

    rate: int
    channels: int
    blocks: Iterator[NDArray[np.float32]]


def count_frames(num_samples: int) -> int:
    """Return how many video frames cover `num_samples` at 16 kHz: the last may be a part."""
    return -(-num_samples // SAMPLES_PER_FRAME)


class StoredWaveform:
    """A waveform (S,) at 16 kHz in an unnamed file, which goes when the object does.

    `len` is S; a slice without a step reads its samples, float32.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __del__(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return os.fstat(self._file.fileno()).st_size // 4

    def __getitem__(self, where: slice) -> NDArray[np.float32]:
        first, last, step = where.indices(len(self))
        if step != 1:
            raise ValueError("a slice with a step")
        self._file.seek(4 * first)
        return np.frombuffer(self._file.read(4 * max(0, last - first)), np.float32)


def load_waveform(
    path: Path, start_s: float = 0.0, duration_s: float | None = None
) -> NDArray[np.float32]:
    """Read a sound file or a video's sound track as mono at 16 kHz.

    Channels are averaged, samples beyond full scale clipped as a player would. What is unusual is
    said as a warning: silence, hardly any sound, clipping, a constant offset.

    Args:
        path: wav, flac, mp3, ogg, opus, or whatever else ffmpeg can read (m4a, mp4, webm, ...).
        start_s: seconds to leave out at the beginning, >= 0.
        duration_s: seconds to read, > 0; None or more than there is: to the end.

    Returns:
        (S,) in [-1, 1], S = ceil(seconds * 16000) >= 640.

    Raises:
        AudioError: the file is missing, empty, damaged or no sound; holds numbers that are none;
            is shorter than one video frame; or `start_s` lies beyond its end.
        VideoError: the format needs ffmpeg and there is none.
    """
    with io.BytesIO() as file:
        _copy(path, file, start_s, duration_s)
        return np.frombuffer(file.getvalue(), np.float32)


def take_waveform(audio: Any, start_s: float, duration_s: float | None) -> Any:
    """Return a part of a recording, of a file as `load_waveform` does.

    Args:
        audio: a file, or a waveform (S,), mono at 16 kHz: an array or whatever has slices.
        start_s: as for `load_waveform`.
        duration_s: as for `load_waveform`.

    Raises:
        AudioError: as for `load_waveform`; it is neither, or nothing is left of it.
        VideoError: the format needs ffmpeg and there is none.
    """
    if isinstance(audio, str | PathLike):
        return load_waveform(Path(audio), start_s, duration_s)
    if not (hasattr(audio, "__getitem__") and hasattr(audio, "__len__")):
        raise AudioError(f"no recording: {audio!r}", "give a file or a waveform")
    last = None if duration_s is None else round((start_s + duration_s) * SAMPLE_RATE)
    taken = audio[round(start_s * SAMPLE_RATE) : last]
    if not len(taken):
        raise AudioError(f"nothing is left of the waveform from {start_s:g} s on")
    return taken


def store_waveform(
    path: Path, folder: Path, start_s: float = 0.0, duration_s: float | None = None
) -> StoredWaveform:
    """Read what `load_waveform` reads into an unnamed file in a folder.

    Raises:
        AudioError: as for `load_waveform`; or the file cannot be written.
        VideoError: the format needs ffmpeg and there is none.
    """
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, the waveform closes it
        stored = StoredWaveform(file)
        _copy(path, file, start_s, duration_s)
        file.flush()
    except OSError as error:
        raise unwritable(folder, error, AudioError) from error
    return stored


def _copy(path: Path, file: IO[bytes], start_s: float, duration_s: float | None) -> None:
    """Write the waveform to a file and say what is unusual about it."""
    check_given(path, "a sound file", "audio file", AudioError)
    with _open(path) as sound:
        if sound.channels > MAX_CHANNELS:
            raise AudioError(
                f"{path}: has {sound.channels} channels, a video keeps at most {MAX_CHANNELS}",
                "mix it down to stereo first",
            )
        if not RATES[0] <= sound.rate <= RATES[1]:
            raise AudioError(f"{path}: damaged sound file: a sample rate of {sound.rate} Hz")
        logger.info("%s: %d Hz, %d channels", path, sound.rate, sound.channels)
        levels = _Levels()
        for piece in _resampled(path, sound, start_s, duration_s, levels):
            file.write(np.clip(piece, -1.0, 1.0).astype(np.float32).data)
    # the resampler is off by a sample or two
    length = -(-levels.count * SAMPLE_RATE // sound.rate)
    file.truncate(4 * length)
    file.write(bytes(4 * length - file.seek(0, os.SEEK_END)))
    if length < SAMPLES_PER_FRAME:
        raise AudioError(
            f"{path}: shorter than one video frame ({1000 // FPS} ms): "
            f"{1000 * length / SAMPLE_RATE:.1f} ms"
        )
    levels.say(path)


@dataclass
class _Levels:
    """How loud the samples are that the encoders read; 1.0 is full scale."""

    count: int = 0
    peak: float = 0.0
    clipped: int = 0
    total: float = 0.0
    energy: float = 0.0

    def add(self, piece: NDArray[np.float32], mono: NDArray[np.float32]) -> None:
        """Take note of (n, channels) as read and their mean (n,)."""
        size = np.abs(piece)
        self.count += len(piece)
        self.peak = max(self.peak, float(size.max()))
        self.clipped += int((size >= 0.9999).any(axis=1).sum())
        self.total += float(mono.sum(dtype=np.float64))
        self.energy += float(np.square(mono, dtype=np.float64).sum())

    def say(self, path: Path) -> None:
        """Warn of what the user should know."""
        offset = self.total / self.count
        loudness = max(self.energy / self.count - offset**2, 0.0) ** 0.5
        if abs(offset) > OFFSET:
            logger.warning(
                "%s: a constant offset (DC) of %.1f %% of full scale", path, 100 * offset
            )
        if self.peak < SILENCE or loudness < SILENCE / 10:
            logger.warning("%s: silent, so the mouth has nothing to follow", path)
        elif loudness < QUIET:
            decibels = 20 * math.log10(loudness)
            logger.warning("%s: very quiet (%.0f dB): the mouth may hardly move", path, decibels)
        if self.peak > LOUDEST:
            logger.warning("%s: %.3g times louder than full scale: clipped", path, self.peak)
        elif self.clipped > CLIPPED * self.count:
            share = 100 * self.clipped / self.count
            logger.warning("%s: clipped: %.1f %% of it is at full scale", path, share)


@contextmanager
def _open(path: Path) -> Iterator[_Sound]:
    """Open by content, not by name: libsndfile first, ffmpeg for what it does not know.

    An mp3 goes to ffmpeg at once: libsndfile's decoder writes its own remarks to stderr.
    """
    file = None
    if path.suffix.lower() != ".mp3":
        with suppress(soundfile.SoundFileError, TypeError):  # TypeError: .raw, which says no rate
            file = soundfile.SoundFile(os.fspath(path))
    if file is None:
        with _open_ffmpeg(path) as sound:
            yield sound
        return
    with file:
        yield _Sound(file.samplerate, file.channels, _soundfile_blocks(path, file))


def _soundfile_blocks(path: Path, file: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    while True:
        try:
            block = file.read(_BLOCK, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise AudioError(f"{path}: damaged sound file: {error}") from error
        if not len(block):
            return
        yield block


@contextmanager
def _open_ffmpeg(path: Path) -> Iterator[_Sound]:
    """Decode through a pipe in Sun's .au format, whose header has the rate and the channels."""
    command = [find_ffmpeg(), "-v", "error", "-nostdin", "-protocol_whitelist", "file"]
    command += ["-i", file_url(path), "-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au"]
    command += ["-protocol_whitelist", "pipe", "pipe:1"]
    with decoding(command) as (output, ended):
        header = output.read(_AU_HEADER.size)
        if len(header) < _AU_HEADER.size:
            raise _not_audio(path, ended()[1])
        _, offset, _, _, rate, channels = _AU_HEADER.unpack(header)
        output.read(offset - _AU_HEADER.size)
        yield _Sound(rate, channels, _ffmpeg_blocks(path, output, ended, channels))


def _ffmpeg_blocks(
    path: Path, output: IO[bytes], ended: Callable[[], tuple[int, str]], channels: int
) -> Iterator[NDArray[np.float32]]:
    width = 4 * channels
    while data := output.read(_BLOCK * width):
        whole = len(data) - len(data) % width
        samples = np.frombuffer(data[:whole], dtype=">f4").reshape(-1, channels)
        yield samples.astype(np.float32)
    code, said = ended()
    if code != 0:
        raise AudioError(f"{path}: damaged sound file: {last_words(said)}")


def _not_audio(path: Path, text: str) -> AudioError:
    if "matches no streams" in text:
        return AudioError(f"{path}: holds no sound")
    return AudioError(
        f"{path}: not a sound file that can be read: {last_words(text)}",
        "wav, flac, mp3, ogg, opus, m4a, mp4, webm and mov are known to work",
    )


def _resampled(
    path: Path, sound: _Sound, start_s: float, duration_s: float | None, levels: _Levels
) -> Iterator[NDArray[np.float32]]:
    """Yield the window asked for at 16 kHz, the mean of its channels, in blocks (n,)."""
    rate = sound.rate
    first = round(start_s * rate)
    last = None if duration_s is None else first + round(duration_s * rate)
    resampler = None
    if rate != SAMPLE_RATE:
        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, num_channels=1, dtype="float32")
    position = 0
    for block in sound.blocks:
        piece = block[max(0, first - position) : None if last is None else max(0, last - position)]
        position += len(block)
        if len(piece):
            _check_finite(path, piece, first + levels.count, rate)
            mono = np.clip(piece, -1.0, 1.0).mean(axis=1, dtype=np.float32)
            levels.add(piece, mono)
            yield mono if resampler is None else resampler.resample_chunk(mono)
        if last is not None and position >= last:
            break
    if not position:
        raise AudioError(f"{path}: holds no samples")
    if first >= position:
        raise AudioError(
            f"{path}: a start at {start_s:g} s is beyond its end at {position / rate:.2f} s"
        )
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _check_finite(path: Path, piece: NDArray[np.float32], position: int, rate: int) -> None:
    """Refuse NaN and infinity: neither the networks nor the AAC encoder can take them."""
    finite = np.isfinite(piece).all(axis=1)
    if not finite.all():
        bad = position + int(np.argmin(finite))
        raise AudioError(
            f"{path}: sample {bad} (at {bad / rate:.2f} s) is no number (NaN or infinite)",
            "export it again, for example as 16-bit wav",
        )
