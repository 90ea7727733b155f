"""What a result can be, whether it may be written, and the ffmpeg commands that make it.

A video is encoded in pieces, each a file of its own that begins with a key frame, while the network
works; at the end they are joined without encoding them again. Numbers of threads are fixed, since
encoders give other bits for other numbers.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from keyface_cli.credentials.marks import Mark, mark_tags
from keyface_cli.errors import VideoError
from keyface_cli.files import check_free, unwritable
from keyface_cli.media.ffmpeg import file_url

DEFAULT_CRF = 18  # of x264: 0 is lossless, 51 the worst; 18 is hard to tell from the original
# a GIF counts hundredths of a second, and browsers show a frame of one hundredth for ten
GIF_FPS = 50
STDOUT = Path("-")
_THREADS = "4"
_VP9_CRF = 13  # what VP9 needs more than x264 for the same quality
# RGB to limited-range BT.709, and all four tags: output flags alone leave the primaries unknown
_COLOUR = (
    "scale=out_color_matrix=bt709:out_range=tv,"
    "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709,"
    "format={}"
)
_X264 = ("-c:v", "libx264", "-preset", "veryfast")
_VP9 = ("-c:v", "libvpx-vp9", "-b:v", "0", "-deadline", "good", "-cpu-used", "4", "-row-mt", "1")
_PRORES = ("-c:v", "prores_ks", "-profile:v", "3", "-vendor", "apl0")
_LOSSLESS = ("-c:v", "libx264rgb", "-preset", "ultrafast", "-qp", "0")
# the layouts that both AAC and Opus can hold
_LAYOUTS = "aformat=channel_layouts=mono|stereo|3.0|quad|5.0|5.1|6.1|7.1"


@dataclass(frozen=True)
class SoundTrack:
    """The sound of a video: a window of a file's first audio stream.

    Args:
        path: the file.
        start_s: seconds left out at its beginning.
        duration_s: seconds used; None is to its end.
        offset_s: how much later than its picture it plays; below 0 earlier.
    """

    path: Path
    start_s: float = 0.0
    duration_s: float | None = None
    offset_s: float = 0.0


@dataclass(frozen=True)
class Format:
    """A kind of result.

    Args:
        name: the suffix, "folder" for pictures, "pipe" for raw frames.
        container: ffmpeg's name of what the result is.
        piece: the suffix of a piece, and its container.
        video: options of the encoder of pieces.
        pixels: ffmpeg's pixel format; None keeps RGB.
        audio: options of the encoder of the sound; none where the result carries no sound.
        sound: the suffix of the encoded sound, and its container.
        even: whether width and height have to be even.
    """

    name: str
    container: str
    piece: str
    video: tuple[str, ...]
    pixels: str | None
    audio: tuple[str, ...] = ()
    sound: str = "mp4"
    even: bool = True

    @property
    def has_quality(self) -> bool:
        """Whether its encoder has a quality to choose."""
        return not {"libx264", "libvpx-vp9"}.isdisjoint(self.video)

    @property
    def joined(self) -> bool:
        """Whether the pieces go into the result as they are."""
        return bool(self.audio)


_AAC = ("-c:a", "aac", "-b:a", "192k")
_OPUS = ("-c:a", "libopus", "-b:a", "160k")
FORMATS = {
    one.name: one
    for one in (
        Format(".mp4", "mp4", "mp4", _X264, "yuv420p", _AAC),
        Format(".mov", "mov", "mov", _PRORES, "yuv422p10le", ("-c:a", "pcm_s24le"), "mov"),
        Format(".webm", "webm", "mp4", _VP9, "yuv420p", _OPUS, "webm"),
        Format(".gif", "gif", "mp4", _LOSSLESS, None, even=False),
        Format("folder", "image2", "mp4", _LOSSLESS, None, even=False),
        Format("pipe", "rawvideo", "", (), None, even=False),
    )
}


def format_of(path: Path) -> Format:
    """Return the kind of result that a path means.

    Args:
        path: FILE.mp4, .mov, .webm or .gif; a folder (no suffix); or `-` for raw frames.

    Raises:
        VideoError: another suffix.
    """
    if path == STDOUT:
        return FORMATS["pipe"]
    suffix = path.suffix.lower()
    if not suffix:
        return FORMATS["folder"]
    if suffix not in FORMATS:
        known = ", ".join(name for name in FORMATS if name.startswith("."))
        raise VideoError(
            f"{path}: the output must end in {known}",
            "a name without a suffix is a folder of PNGs, - is a pipe",
        )
    return FORMATS[suffix]


def piece_command(
    kind: Format, target: Path, size: tuple[int, int], fps: int, crf: int
) -> list[str]:
    """Return ffmpeg's arguments that encode raw RGB frames from its stdin to a piece."""
    quality: list[str] = []
    if "libx264" in kind.video:
        quality = ["-crf", str(crf)]
    elif "libvpx-vp9" in kind.video:
        quality = ["-crf", str(min(63, crf + _VP9_CRF))]
    colour = [] if kind.pixels is None else ["-vf", _COLOUR.format(kind.pixels)]
    return [
        *("-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"),
        *("-s", f"{size[0]}x{size[1]}", "-r", str(fps), "-i", "pipe:0"),
        *colour,
        *kind.video,
        *quality,
        *("-threads", _THREADS, "-fflags", "+bitexact", "-f", kind.piece, file_url(target)),
    ]


def sound_command(kind: Format, target: Path, sound: SoundTrack, seconds: float) -> list[str]:
    """Return ffmpeg's arguments that encode a window of a recording, exactly so long.

    The sound's clock starts at its first sample, which is where `audio.load_waveform` starts too,
    and is cut by filters because seeking in a compressed file is not exact.
    """
    end = "" if sound.duration_s is None else f":end={sound.start_s + sound.duration_s:.6f}"
    clock = "asetpts=N/SR/TB"
    window = [clock, f"atrim=start={sound.start_s:.6f}{end}", clock]
    if sound.offset_s > 0:
        window.append(f"adelay=delays={1000 * sound.offset_s:.3f}:all=1")
    elif sound.offset_s < 0:
        window += [f"atrim=start={-sound.offset_s:.6f}", clock]
    if kind.name != ".mov":
        window.append(_LAYOUTS)
    return [
        *("-v", "error", "-y", "-nostdin", "-i", file_url(sound.path), "-map", "0:a:0"),
        *("-map_metadata", "-1", "-map_chapters", "-1", "-af", ",".join([*window, "apad"])),
        *(*kind.audio, "-t", f"{seconds:.6f}", "-fflags", "+bitexact"),
        *("-f", kind.sound, file_url(target)),
    ]


def join_commands(
    kind: Format,
    target: Path,
    pieces: Path,
    sound: Path | None,
    fps: int,
    comment: str,
    mark: Mark,
) -> list[list[str]]:
    """Return ffmpeg's arguments, of one call or two, that make the result of its pieces.

    Args:
        kind: what it is.
        target: what to write: a file, or for "folder" an existing folder.
        pieces: a list of the pieces for ffmpeg's concat demuxer.
        sound: the encoded sound, where there is one.
        fps: frames a second.
        comment: what the file's `comment` says, where it can.
        mark: what it says of its origin, where ffmpeg can write that.
    """
    quiet = ["-v", "error", "-y", "-nostdin"]
    frames = [*quiet, "-f", "concat", "-i", file_url(pieces)]
    exact = ["-fflags", "+bitexact"]
    if kind.name == "folder":
        return [[*frames, "-pix_fmt", "rgb24", *exact, "-f", "image2", f"{target}/%06d.png"]]
    if kind.name == ".gif":
        palette = target.with_name(f"{target.name}.palette.png")
        return [
            [*frames, "-vf", "palettegen", "-frames:v", "1", "-f", "image2", file_url(palette)],
            [
                *(*frames, "-i", file_url(palette), "-lavfi", "paletteuse=dither=bayer"),
                *("-r", str(fps), *exact, "-f", "gif", file_url(target)),
            ],
        ]
    fast = ["-movflags", "+faststart"] if kind.container in ("mp4", "mov") else []
    # the demuxer rounds where a piece begins to microseconds: back to whole frames
    grid = f"setts=pts=round(PTS*TB*{fps})/(TB*{fps}):dts=round(DTS*TB*{fps})/(TB*{fps})"
    said = {"comment": comment, **mark_tags(kind.container, mark)}
    return [
        [
            *(*frames, "-i", file_url(sound or pieces), "-map", "0:v:0", "-map", "1:a:0"),
            *("-map_metadata", "-1", "-map_chapters", "-1", "-c", "copy", *exact, "-bsf:v", grid),
            *(word for name, text in said.items() for word in ("-metadata", f"{name}={text}")),
            *(*fast, "-f", kind.container, file_url(target)),
        ]
    ]


def check_output(path: Path, force: bool = False) -> Format:
    """Check, before anything is computed, that a result can be written to `path`.

    Returns:
        What kind of result it is.

    Raises:
        VideoError: the extension is no known one; the file exists and `force` is not set; its
            folder is missing or cannot be written to.
    """
    kind = format_of(path)
    if kind.name == "pipe":
        if sys.stdout.isatty():
            raise VideoError("raw frames are not for a terminal", "pipe them: ... -o - | PROGRAM")
        return kind
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
    except OSError as error:  # a name that is too long, for example
        raise unwritable(path, error, VideoError) from error
    if kind.name == "folder" and os.path.lexists(path):
        _check_folder(path, force)
    else:
        check_free(path, VideoError, force=force)
    folder = path.resolve().parent
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".keyface-"):
            pass
    except OSError as error:
        raise unwritable(folder, error, VideoError) from error
    return kind


def _check_folder(path: Path, force: bool) -> None:
    """Refuse to replace what is there and is not a folder of frames."""
    if not path.is_dir():
        raise VideoError(f"{path}: is a file", "a name without a suffix is a folder of PNGs")
    if not any(path.iterdir()):
        return
    if not (path / "000001.png").is_file():
        raise VideoError(f"{path}: is a folder that holds something else", "choose another name")
    if not force:
        raise VideoError(f"{path}: exists already", "choose another name, or --force to replace it")
