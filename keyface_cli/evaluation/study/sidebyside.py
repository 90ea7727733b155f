"""Videos beside each other in one, for looking; and a video made worse, for attention checks."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from keyface_cli.credentials.marks import Mark, combined, read_mark, write_mark
from keyface_cli.errors import VideoError
from keyface_cli.files import replacing
from keyface_cli.media.ffmpeg import file_url, find_ffmpeg, last_words
from keyface_cli.media.frames import VideoInfo, probe

_LABEL = 28  # pixels, of the strip above each picture
_MOSAIC = 12  # pixels across a degraded clip
_ENCODE = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p"]
_PLAIN = ["-map_metadata", "-1", "-movflags", "+faststart"]  # how a source was made is its own


def compare(
    videos: Sequence[Path],
    labels: Sequence[str],
    output: Path,
    *,
    columns: int | None = None,
    sound: int = 0,
) -> Path:
    """Lay videos side by side with labels above them, and one sound track.

    Args:
        videos: two or more.
        labels: as many.
        output: .mp4; it appears when it is whole.
        columns: pictures in a row; None is all.
        sound: whose sound is taken, by index; the first other with one where it has none.

    Raises:
        VideoError: a file cannot be read or written.
    """
    found = [probe(path) for path in videos]
    tall = max(info.size[1] for info in found)
    tall += tall % 2
    width = max(_even(info.size[0] * tall / info.size[1]) for info in found)
    fps = max(info.fps for info in found)
    across = min(columns or len(found), len(found))
    with tempfile.TemporaryDirectory() as folder:
        strips = []
        for i, label in enumerate(labels):
            strips.append(Path(folder) / f"{i}.png")
            _draw_label(label, width).save(strips[-1])
        graph = _graph(found, fps, (width, tall), across)
        command = [find_ffmpeg(), "-v", "error", "-y", "-nostdin"]
        for path in (*videos, *strips):
            command += ["-i", file_url(path)]
        command += ["-filter_complex", graph, "-map", "[out]"]
        order = [sound, *(i for i in range(len(videos)) if i != sound)]
        speaking = next((i for i in order if _has_sound(videos[i])), None)
        if speaking is not None:
            command += ["-map", f"{speaking}:a:0", "-c:a", "aac", "-b:a", "192k"]
        seconds = max(info.frames / info.fps for info in found)
        _encode([*command, "-t", f"{seconds:.3f}"], output, videos)
    return output


def degrade(source: Path, output: Path) -> None:
    """Write a video as a mosaic of 12 pixels across, with its sound.

    Raises:
        VideoError: it cannot be read or written.
    """
    width, height = probe(source).size
    mosaic = f"scale={_MOSAIC}:-1:flags=area,scale={_even(width)}:{_even(height)}:flags=neighbor"
    command = [find_ffmpeg(), "-v", "error", "-y", "-nostdin", "-i", file_url(source)]
    _encode(
        [*command, "-vf", mosaic, "-map", "0:v:0", "-map", "0:a?", "-c:a", "aac"], output, [source]
    )


def _graph(found: Sequence[VideoInfo], fps: float, size: tuple[int, int], across: int) -> str:
    """Return ffmpeg's filter: each video scaled, padded and held at its end, under its label."""
    width, height = size
    parts, cells = [], []
    for i in range(len(found)):
        parts.append(
            f"[{i}:v:0]fps={fps:.6f},scale={width}:{height}:force_original_aspect_ratio=decrease:"
            f"flags=lanczos,pad={width}:{height}:(ow-iw)/2:(oh-ih)/2,setsar=1,"
            f"tpad=stop=-1:stop_mode=clone[v{i}]"
        )
        parts.append(f"[{len(found) + i}:v:0]loop=-1:1,fps={fps:.6f},setsar=1[l{i}]")
        parts.append(f"[l{i}][v{i}]vstack=shortest=1[c{i}]")
        column, row = i % across, i // across
        cells.append(f"{column * width}_{row * (height + _LABEL)}")
    inputs = "".join(f"[c{i}]" for i in range(len(found)))
    layout = "|".join(cells)
    parts.append(f"{inputs}xstack=inputs={len(found)}:layout={layout}:fill=black[out]")
    return ";".join(parts)


def _draw_label(text: str, width: int) -> Image.Image:
    picture = Image.new("RGB", (width, _LABEL), "black")
    font = ImageFont.load_default(16)
    draw = ImageDraw.Draw(picture)
    left = max((width - draw.textlength(text, font)) / 2, 2)
    draw.text((left, 4), text, fill="white", font=font)
    return picture


def _even(number: float) -> int:
    return max(2, round(number / 2) * 2)


def _has_sound(path: Path) -> bool:
    command = [find_ffmpeg(), "-v", "error", "-nostdin", "-i", file_url(path)]
    command += ["-map", "0:a:0", "-c", "copy", "-frames:a", "1", "-f", "null", "-"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _encode(command: Sequence[str], output: Path, sources: Sequence[Path]) -> None:
    """Run ffmpeg; the result says as the sources do that it is synthetic, and nothing else."""
    with replacing(output, VideoError, shared=True) as part:
        done = subprocess.run(
            [*command, *_ENCODE, *_PLAIN, "-f", "mp4", file_url(part)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            raise VideoError(f"{output}: cannot be made: {last_words(done.stderr)}")
        if (source := combined(map(read_mark, sources))) is not None:
            write_mark(part, "mp4", Mark(source))
