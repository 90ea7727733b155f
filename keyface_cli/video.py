"""Write frames and the user's own sound as H.264 and AAC, while the frames are being made."""

from __future__ import annotations

import errno
import json
import os
import queue
import secrets
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS
from keyface_cli.errors import VideoError
from keyface_cli.ffmpeg import file_url, find_ffmpeg, last_words

SUFFIXES = (".mp4",)
DEFAULT_CRF = 18  # of x264: 0 is lossless, 51 the worst; 18 is hard to tell from the original
_QUEUED_CHUNKS = 4  # that wait for ffmpeg before `write` does
# RGB to limited-range BT.709, and all four tags: output flags alone leave the primaries unknown
_COLOUR = (
    "scale=out_color_matrix=bt709:out_range=tv,"
    "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709,"
    "format=yuv420p"
)


@dataclass(frozen=True)
class SoundTrack:
    """The sound of a video: a window of a file's first audio stream, both in seconds."""

    path: Path
    start_s: float = 0.0
    duration_s: float | None = None


def check_output(path: Path, force: bool = False) -> None:
    """Check, before anything is computed, that a video can be written to `path`.

    Raises:
        VideoError: the extension is no known one; the file exists and `force` is not set; its
            folder is missing or cannot be written to.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise VideoError(f"{path}: the output must end in {' or '.join(SUFFIXES)}")
    try:
        path.lstat()
        exists = True
    except (FileNotFoundError, NotADirectoryError):
        exists = False
    except OSError as error:  # a name that is too long, for example
        raise _write_error(path, error) from error
    if path.is_dir():
        raise VideoError(f"{path}: is a folder")
    if exists and not force:
        raise VideoError(f"{path}: exists already", "choose another name, or --force to replace it")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise VideoError(f"{folder}: no such folder", f"make it first: mkdir -p {folder}")
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".keyface-"):
            pass
    except OSError as error:
        raise _write_error(folder, error) from error


def _write_error(place: Path, error: OSError) -> VideoError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return VideoError(f"{place}: the disk is full")
    return VideoError(f"{place}: cannot be written to: {error.strerror or error}")


class VideoWriter:
    """A video file that frames are written to as they are made; use it as a context manager.

    ffmpeg runs beside the network: a thread hands it the frames. The file grows under a temporary
    name in the output's folder and takes its own name when it is complete; after any error,
    Ctrl-C included, the temporary file is removed and an older output stays as it was.

    Args:
        path: the output, see `check_output`, which is repeated at the end.
        num_frames: how many frames will be written; the sound is cut or padded to this length.
        size: width and height in pixels, both even.
        sound: what is heard; its own rate and number of channels are kept.
        crf: quality of x264, 0 (lossless) to 51.
        metadata: how the video was made, written as JSON to the file's `comment`.
        force: replace an existing file.

    Raises:
        VideoError: ffmpeg is absent or fails, or the disk is full.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_frames: int,
        size: tuple[int, int],
        sound: SoundTrack,
        crf: int = DEFAULT_CRF,
        metadata: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> None:
        if size[0] % 2 or size[1] % 2:
            raise ValueError(f"yuv420p needs even sizes, not {size[0]}x{size[1]}")
        self.path = path
        self.waited_s = 0.0  # seconds that `write` and the end of the file waited for ffmpeg
        self._num_frames = num_frames
        self._size = size
        self._force = force
        self._target = path.resolve()  # a link is followed, not replaced
        self._part = self._target.with_name(f".{path.stem[:40]}-{secrets.token_hex(4)}.part")
        self._command = _command(
            self._part, size, num_frames, sound, crf, json.dumps(dict(metadata or {}))
        )
        self._written = 0
        self._queue: queue.Queue[NDArray[np.uint8] | None] = queue.Queue(_QUEUED_CHUNKS)
        self._broken = threading.Event()  # ffmpeg takes no more frames

    def __enter__(self) -> VideoWriter:
        command = [find_ffmpeg(), *self._command]
        self._log = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        except OSError as error:
            self._log.close()
            raise VideoError(f"ffmpeg cannot be run: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._feed, name="video-writer", daemon=True)
        self._thread.start()
        return self

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append frames.

        Args:
            frames: (n, height, width, 3) RGB.

        Raises:
            VideoError: ffmpeg has failed.
        """
        if frames.shape[1:] != (self._size[1], self._size[0], 3) or frames.dtype != np.uint8:
            raise ValueError(f"frames of {frames.dtype} {frames.shape} for a {self._size} video")
        if self._broken.is_set():
            raise self._failure()
        started = time.perf_counter()
        self._queue.put(frames)
        self.waited_s += time.perf_counter() - started
        self._written += len(frames)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._clean_up()

    def _finish(self) -> None:
        started = time.perf_counter()
        self._queue.put(None)
        self._thread.join()
        if self._process.wait() != 0 or self._broken.is_set():
            raise self._failure()
        if self._written != self._num_frames:
            raise ValueError(f"{self._written} frames were written, not {self._num_frames}")
        if os.path.lexists(self.path) and not self._force:  # made by someone else meanwhile
            check_output(self.path)
        try:
            os.replace(self._part, self._target)
        except OSError as error:
            raise _write_error(self._target, error) from error
        self.waited_s += time.perf_counter() - started

    def _clean_up(self) -> None:
        """End ffmpeg and the thread, whatever state they are in, and remove the temporary file."""
        self._process.kill()
        self._process.wait()
        self._broken.set()
        while self._thread.is_alive():  # its write to the dead ffmpeg has failed by now
            try:
                self._queue.put(None, timeout=0.1)
            except queue.Full:
                continue
            self._thread.join(timeout=0.1)
        self._log.close()
        self._part.unlink(missing_ok=True)

    def _feed(self) -> None:
        """Hand the queued frames to ffmpeg; once it fails, only empty the queue."""
        assert self._process.stdin is not None
        while (frames := self._queue.get()) is not None:
            if self._broken.is_set():
                continue
            try:
                self._process.stdin.write(np.ascontiguousarray(frames).data)
            except OSError:  # the pipe is broken: the reason is in ffmpeg's messages
                self._broken.set()
        try:
            self._process.stdin.close()
        except OSError:
            self._broken.set()

    def _failure(self) -> VideoError:
        self._process.wait()
        self._log.seek(0)
        text = self._log.read().decode("utf-8", "replace")
        if os.strerror(errno.ENOSPC) in text or os.strerror(errno.EDQUOT) in text:
            return VideoError(f"{self._target.parent}: the disk is full")
        return VideoError(
            f"ffmpeg failed (exit code {self._process.returncode}): {last_words(text)}"
        )


def _command(
    part: Path,
    size: tuple[int, int],
    num_frames: int,
    sound: SoundTrack,
    crf: int,
    comment: str,
) -> list[str]:
    """Return ffmpeg's arguments: input 0 is the sound, input 1 the pipe of raw frames.

    Both streams are given the same length. The sound's clock starts at its first sample, which is
    where `audio.load_waveform` starts too, and is cut by filters because seeking in a compressed
    file is not exact.
    """
    seconds = f"{num_frames / FPS:.2f}"  # exact: a frame is 0.04 s
    end = "" if sound.duration_s is None else f":end={sound.start_s + sound.duration_s:.6f}"
    window = f"asetpts=N/SR/TB,atrim=start={sound.start_s:.6f}{end},asetpts=N/SR/TB,apad"
    return [
        *("-v", "error", "-y", "-i", file_url(sound.path)),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}"),
        *("-r", str(FPS), "-i", "pipe:0"),
        *("-map", "1:v:0", "-map", "0:a:0", "-map_metadata", "-1", "-map_chapters", "-1"),
        *("-vf", _COLOUR, "-c:v", "libx264", "-preset", "veryfast", "-crf", str(crf)),
        *("-af", window, "-c:a", "aac", "-b:a", "192k", "-t", seconds),
        *("-metadata", f"comment={comment}", "-movflags", "+faststart"),
        *("-f", "mp4", file_url(part)),
    ]
