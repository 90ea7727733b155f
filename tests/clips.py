"""Small videos for the tests of the evaluation."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from keyface_cli.media.ffmpeg import find_ffmpeg

SIDE = 48


def moving(frames: int = 30, seed: int = 0, side: int = SIDE) -> np.ndarray:
    """A smooth pattern that moves: uint8 (frames, side, side, 3)."""
    y, x = np.mgrid[:side, :side] / side
    t = np.arange(frames)[:, None, None]
    waves = [np.sin(9 * x + 7 * y + 0.2 * t + seed + channel) for channel in range(3)]
    return (127 + 100 * np.stack(waves, -1)).astype(np.uint8)


def write_video(
    path: Path,
    frames: np.ndarray,
    *,
    fps: str = "25",
    loudness: np.ndarray | None = None,
    filters: str = "",
    lossless: bool = True,
) -> Path:
    """Write frames losslessly; with sound where `loudness` gives the level of each frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    h, w = frames.shape[1:3]
    command = [find_ffmpeg(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{w}x{h}", "-r", fps, "-i", "pipe:0"]
    if loudness is not None:
        noise = np.random.default_rng(0).normal(size=640 * len(loudness))
        wave = (np.repeat(loudness, 640) * noise * 0.2).clip(-1, 1)
        sound = path.with_suffix(".pcm")
        sound.write_bytes((wave * 32767).astype("<i2").tobytes())
        command += ["-f", "s16le", "-ar", "16000", "-ac", "1", "-i", str(sound), "-c:a", "aac"]
    if filters:
        command += ["-vf", filters, "-fps_mode", "vfr"]
    if lossless:
        command += ["-c:v", "libx264rgb", "-qp", "0", "-preset", "ultrafast"]
    else:  # as browsers can play
        command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast"]
    command += ["-movflags", "+faststart", str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True)
    path.with_suffix(".pcm").unlink(missing_ok=True)
    return path
