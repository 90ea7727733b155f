"""Held-out scenes of drawn avatars as files: what a model is given, and what it should have made.

The scenes are those of `avatars.evaluate` with the same seed; no training has seen them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image

from keyface_cli.avatars import appearance, rig
from keyface_cli.avatars.pictures import render_uint8
from keyface_cli.avatars.scene import random_scene
from keyface_cli.config import FPS, SAMPLE_RATE
from keyface_cli.credentials.marks import DRAWN, Mark
from keyface_cli.evaluation.avatars.measure import SEED_STRIDE
from keyface_cli.files import csv_text, unwritable, write_text
from keyface_cli.output.formats import SoundTrack
from keyface_cli.output.writer import VideoWriter

FOLDERS = ("portraits", "sounds", "emotions", "reference")


def write_scenes(folder: Path, clips: int, seconds: float, size: int, seed: int) -> Iterator[Path]:
    """Write portraits/NNN.png, sounds/NNN.wav, emotions/NNN.csv and reference/NNN.mp4.

    A scene whose video is there already is left alone, so that a stopped run can go on. Besides,
    `jobs.csv` lists all of them for `keyface batch`, with the whole portrait as the crop, so that
    results lie where the reference does.

    Args:
        folder: made where it is missing.
        clips: how many scenes.
        seconds: length of each.
        size: of the picture, in pixels, even.
        seed: of the scenes and heads.

    Yields:
        The reference video of each scene, as it is done.

    Raises:
        KeyFaceError: a synthesiser is missing, or the folder cannot be written to.
    """
    people = appearance.sample_appearances(clips, torch.Generator().manual_seed(seed))
    try:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        _write_jobs(folder / "jobs.csv", clips)
        for i in range(clips):
            video = folder / "reference" / f"{i:03d}.mp4"
            if not video.exists():
                _write_scene(folder, i, appearance.select(people, [i]), seconds, size, seed)
            yield video
    except OSError as error:
        raise unwritable(folder, error) from error


def _write_scene(
    folder: Path, index: int, who: appearance.Appearance, seconds: float, size: int, seed: int
) -> None:
    scene = random_scene(seed * SEED_STRIDE + index, held_out=True, duration_s=seconds)
    count = len(scene.rig)
    name = f"{index:03d}"
    portrait = render_uint8(who, torch.tensor([rig.REST]), size)[0]
    Image.fromarray(portrait).save(folder / "portraits" / f"{name}.png")
    sound = folder / "sounds" / f"{name}.wav"
    soundfile.write(sound, scene.waveform.numpy(), SAMPLE_RATE)
    _write_curve(folder / "emotions" / f"{name}.csv", scene.emotion.numpy())
    video = folder / "reference" / f"{name}.mp4"
    track = SoundTrack(sound)
    mark = Mark(DRAWN)
    with VideoWriter(video, num_frames=count, size=(size, size), sound=track, mark=mark) as writer:
        writer.write(render_uint8(appearance.select(who, [0] * count), scene.rig, size))


def _write_jobs(path: Path, clips: int) -> None:
    names = [f"{i:03d}" for i in range(clips)]
    rows = [
        (f"portraits/{n}.png", f"sounds/{n}.wav", f"emotions/{n}.csv", "none", f"{n}.mp4")
        for n in names
    ]
    write_text(path, csv_text(("portrait", "audio", "emotion", "crop", "output"), rows))


def _write_curve(path: Path, emotion: NDArray[np.float32]) -> None:
    rows = [(f"{t / FPS:.2f}", f"{v:.4f}", f"{a:.4f}") for t, (v, a) in enumerate(emotion)]
    write_text(path, csv_text(("time", "valence", "arousal"), rows))
