"""Write frames and the user's own sound as a video, in pieces, while the frames are being made."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS, KEYFRAME_STEP
from keyface_cli.credentials.marks import Mark
from keyface_cli.errors import VideoError
from keyface_cli.files import is_full, take_name, unwritable
from keyface_cli.media.ffmpeg import find_ffmpeg, last_words
from keyface_cli.output.compose import Composer, Resize
from keyface_cli.output.formats import (
    DEFAULT_CRF,
    SoundTrack,
    check_output,
    format_of,
    join_commands,
    piece_command,
    sound_command,
)
from keyface_cli.output.framerate import FrameRate
from keyface_cli.output.ledger import Ledger
from keyface_cli.output.metadata import write_metadata

PIECE_FRAMES = 2 * KEYFRAME_STEP  # frames of the model in one piece, where nothing else is asked
_QUEUED_PIECES = 2  # that wait for ffmpeg before `write` does


class VideoWriter:
    """A result that frames are written to as they are made; use it as a context manager.

    A thread hands the frames to ffmpeg, piece by piece, beside the network. Finished pieces are
    in a ledger; those that are there already are not asked for again. At the end the pieces are
    joined under a temporary name beside the output, which then takes its own name. After any error,
    Ctrl-C included, an older output stays as it was and the ledger holds what was finished.

    Args:
        path: the output, see `check_output`, which is repeated at the end.
        num_frames: of the model, in the whole video; the sound is cut or padded to their length.
        size: width and height of the model's frames in pixels.
        sound: of the result; its own rate and number of channels are kept.
        crf: quality of x264, 0 (lossless) to 51.
        metadata: how the video was made, written to the result.
        mark: what the result says of its origin, for machines.
        seal: does what is left to do with the finished result, before it gets its name: it is
            given the temporary file, or folder, and may raise any error of ours, or `OSError`.
        force: replace an existing output.
        fps: of the result, see `framerate`.
        composer: makes the result's pictures of the model's; None leaves them as they are.
        ledger: where finished pieces are kept; None is a temporary folder.
        piece_frames: frames of the model in each piece.

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
        mark: Mark | None = None,
        seal: Callable[[Path], None] | None = None,
        force: bool = False,
        fps: int = FPS,
        composer: Composer | None = None,
        ledger: Ledger | None = None,
        piece_frames: int = PIECE_FRAMES,
    ) -> None:
        self.kind = format_of(path)
        self.composer = composer or Resize(size)
        if self.kind.even and (self.composer.size[0] % 2 or self.composer.size[1] % 2):
            width, height = self.composer.size
            raise ValueError(f"yuv420p needs even sizes, not {width}x{height}")
        self.path = path
        self.waited_s = 0.0  # seconds that `write` and the end of the file waited for ffmpeg
        self.rate = FrameRate(fps, num_frames)
        self._num_frames, self._size, self._sound = num_frames, size, sound
        self._crf, self._force, self._metadata = crf, force, dict(metadata or {})
        self._mark, self._seal = mark or Mark(), seal
        self._target = path.resolve()  # a link is followed, not replaced
        self._piece_frames = piece_frames
        self._own_folder: tempfile.TemporaryDirectory[str] | None = None
        self._ledger = ledger
        self._first_piece = self._finished_pieces()
        self._held: list[NDArray[np.uint8]] = []  # frames of the piece that is not full yet
        self._position = self.first_frame  # of the next frame that `write` takes
        self._queue: queue.Queue[tuple[int, NDArray[np.uint8]] | None] = queue.Queue(_QUEUED_PIECES)
        self._failure: BaseException | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()

    @property
    def first_frame(self) -> int:
        """The first frame that has to be written: those before it are finished."""
        start = self._first_piece * self._piece_frames
        return max(0, min(start, self._num_frames) - self.rate.looks_back)

    @property
    def complete(self) -> bool:
        """Whether every piece is finished and no frame has to be written."""
        return self._first_piece >= self._num_pieces

    @property
    def _num_pieces(self) -> int:
        return max(1, -(-(self._num_frames - 1) // self._piece_frames))

    def _bounds(self, index: int) -> tuple[int, int]:
        """First and last (exclusive) frame of a piece; the video's last is of the last one."""
        first = index * self._piece_frames
        last = first + self._piece_frames
        return first, self._num_frames if index == self._num_pieces - 1 else last

    def _name(self, index: int) -> str:
        return f"piece-{index:06d}.{self.kind.piece}"

    def _finished_pieces(self) -> int:
        """How many pieces from the first on are finished."""
        for index in range(self._num_pieces):
            if self._ledger is None or not self._ledger.holds(self._name(index)):
                return index
        return self._num_pieces

    def __enter__(self) -> VideoWriter:
        find_ffmpeg()
        if self._ledger is None:
            place = None if self.kind.name == "pipe" else self._target.parent
            self._own_folder = tempfile.TemporaryDirectory(dir=place, prefix=".keyface-")
            self._ledger = Ledger(Path(self._own_folder.name))
        self._thread = threading.Thread(target=self._work, name="video-writer", daemon=True)
        self._thread.start()
        return self

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append frames; the first is frame `first_frame`.

        Args:
            frames: (n, height, width, 3) RGB.

        Raises:
            VideoError: ffmpeg has failed.
        """
        if frames.shape[1:] != (self._size[1], self._size[0], 3) or frames.dtype != np.uint8:
            raise ValueError(f"frames of {frames.dtype} {frames.shape} for a {self._size} video")
        self._position += len(frames)
        self._held.append(frames)
        while not self.complete:
            first, stop = self._bounds(self._first_piece)
            if self._position < stop:
                return
            held = np.concatenate(self._held)
            begin = self._position - len(held)
            start = max(0, first - self.rate.looks_back)
            self._put((self._first_piece, held[start - begin : stop - begin]))
            self._first_piece += 1
            keep = max(0, stop - self.rate.looks_back - begin)
            self._held = [held[keep:]] if keep < len(held) else []

    def _put(self, work: tuple[int, NDArray[np.uint8]] | None) -> None:
        started = time.perf_counter()
        while self._failure is None:
            try:
                self._queue.put(work, timeout=0.1)
                break
            except queue.Full:
                continue
        self.waited_s += time.perf_counter() - started
        if self._failure is not None:
            raise self._failure

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
        if self._position != self._num_frames and not self.complete:
            raise ValueError(f"{self._position} frames were written, not {self._num_frames}")
        self._put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        if self.kind.name != "pipe":
            self._join()
        self.waited_s += time.perf_counter() - started

    def _clean_up(self) -> None:
        """End the thread and its ffmpeg, whatever state they are in."""
        self._stopped.set()
        if self._process is not None:
            self._process.kill()
        self._queue.put(None)  # which it comes to, for it leaves out what waits before
        self._thread.join()
        if self._own_folder is not None:
            self._own_folder.cleanup()

    # -- in the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        """Encode the sound, then pieces as they come; after a failure only wait for the end."""
        try:
            self._encode_sound()
        except BaseException as error:
            self._failure = error
        while (work := self._queue.get()) is not None:
            if self._failure is not None or self._stopped.is_set():
                continue
            try:
                self._encode_piece(*work)
            except BaseException as error:
                self._failure = error

    def _encode_sound(self) -> None:
        assert self._ledger is not None
        name = f"sound.{self.kind.sound}"
        if not self.kind.audio or self._ledger.holds(name):
            return
        seconds = self._num_frames / FPS
        part = self._ledger.part(name)
        self._run(sound_command(self.kind, part, self._sound, seconds), part)
        self._add(name)

    def _encode_piece(self, index: int, frames: NDArray[np.uint8]) -> None:
        assert self._ledger is not None
        shown = map(self.composer, self.rate.convert(*self._bounds(index), frames))
        if self.kind.name == "pipe":
            for frame in shown:
                _write_out(frame)
            return
        name = self._name(index)
        part = self._ledger.part(name)
        command = piece_command(self.kind, part, self.composer.size, self.rate.fps, self._crf)
        self._run(command, part, shown)
        self._add(name)

    def _add(self, name: str) -> None:
        assert self._ledger is not None
        if self._stopped.is_set():
            return
        try:
            self._ledger.add(name)
        except OSError as error:
            raise unwritable(self._ledger.folder, error, VideoError) from error

    def _run(
        self, arguments: list[str], made: Path, frames: Iterable[NDArray[np.uint8]] = ()
    ) -> None:
        """Run ffmpeg, which is to write `made`, with frames as its input."""
        with tempfile.TemporaryFile() as log:
            try:
                process = subprocess.Popen(
                    [find_ffmpeg(), *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is ours to handle
                )
            except OSError as error:
                raise VideoError(f"ffmpeg cannot be run: {error.strerror or error}") from error
            assert process.stdin is not None
            self._process = process
            broken = False
            try:
                for frame in frames:
                    process.stdin.write(np.ascontiguousarray(frame).data)
                process.stdin.close()
            except OSError:  # the pipe is broken: the reason is in ffmpeg's messages
                broken = True
            except BaseException:
                process.kill()
                raise
            finally:
                with suppress(OSError):  # what is left in its buffer has no reader
                    process.stdin.close()
                process.wait()
            if process.returncode != 0 or broken or not made.exists():
                raise self._ffmpeg_error(process.returncode, log)

    def _ffmpeg_error(self, code: int, log: IO[bytes]) -> VideoError:
        log.seek(0)
        text = log.read().decode("utf-8", "replace")
        if is_full(text):
            return VideoError(
                f"{self._target.parent}: the disk is full", "free some space and run it again"
            )
        return VideoError(f"ffmpeg failed (exit code {code}): {last_words(text)}")

    # -- at the end ----------------------------------------------------------------------------

    def _join(self) -> None:
        """Make the result of its pieces, under a temporary name, and give it its own."""
        assert self._ledger is not None
        part = self._ledger.path("result")  # where a run that is killed leaves no rest beside
        _remove(part)  # ... and an earlier one may have left it
        try:
            names = map(self._name, range(self._num_pieces))
            pieces = self._ledger.path("pieces.txt")
            pieces.write_text("".join(f"file '{name}'\n" for name in names))
            if self.kind.name == "folder":
                part.mkdir()
            sound = self._ledger.path(f"sound.{self.kind.sound}") if self.kind.audio else None
            said = json.dumps(self._metadata), self._mark
            for command in join_commands(self.kind, part, pieces, sound, self.rate.fps, *said):
                last = Path(command[-1].removeprefix("file:"))
                self._run(command, part if part.is_dir() else last)
            write_metadata(part, self.kind, self._metadata, self._mark)
            if self._seal is not None:
                self._seal(part)
            self._take_name(part)
        except OSError as error:
            raise unwritable(self._target, error, VideoError) from error
        finally:
            part.with_name(f"{part.name}.palette.png").unlink(missing_ok=True)
            _remove(part)

    def _take_name(self, part: Path) -> None:
        if os.path.lexists(self.path) and not self._force:  # made by someone else meanwhile
            check_output(self.path)
        take_name(part, self._target, force=True)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def _write_out(frame: NDArray[np.uint8]) -> None:
    try:
        sys.stdout.buffer.write(np.ascontiguousarray(frame).data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise VideoError("the program that the frames were piped to has ended") from None
    except OSError as error:
        raise VideoError(f"the frames cannot be written: {error.strerror or error}") from error
