"""The strip of keyframes: the pixels of `animate`, and as few clips as a change of curve needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.editor.strip import Curve, Strip, StripStore, conditions
from keyface_cli.emotion import EmotionTrack, Key
from keyface_cli.jobs.job import Job
from keyface_cli.jobs.plan import JobInputs, make_plan, read
from keyface_cli.jobs.runner import ComputeOptions, Runner
from keyface_cli.pipeline import KeyFacePipeline
from keyface_cli.stages.timeline import Timeline

Main = Callable[..., tuple[int, str, str]]
KEYS = (Key(0.0, 0.0, 0.0), Key(2.0, 0.8, 0.6, "smooth"), Key(4.0, -0.5, 0.9), Key(7.5, 0.2, 0.1))
STRENGTH = 1.2


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds: 200 frames, 17 keyframes, two clips."""
    path = tmp_path_factory.mktemp("sounds") / "long.wav"
    t = np.arange(8 * 16_000) / 16_000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * t) * (np.sin(3 * t) > 0), 16_000)
    return path


@pytest.fixture(scope="module")
def job(sound: Path, portrait_png: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    line = " ".join(f"{k.valence},{k.arousal}@{k.time_s}:{k.ease}" for k in KEYS)
    return Job(
        portrait=portrait_png,
        audio=sound,
        output=folder / "a.mp4",
        emotion=line,
        emotion_strength=STRENGTH,
        emotion_guidance=2.0,
        crop="center",
        seed=3,
        steps=2,
    )


@pytest.fixture(scope="module")
def made(job: Job, lively_checkpoint: Path) -> tuple[JobInputs, KeyFacePipeline]:
    checkpoint = Checkpoint.open(lively_checkpoint)
    pipeline = Runner(checkpoint, ComputeOptions("cpu", "float32")).load()
    return read(make_plan(job), checkpoint), pipeline


@pytest.fixture
def strip(made: tuple[JobInputs, KeyFacePipeline], job: Job) -> Strip:
    return Strip(*made, job.generation)


def curve_of(*keys: Key, num_frames: int = 200) -> Curve:
    return EmotionTrack(keys).scaled(STRENGTH).sample(num_frames)


def test_strip_shows_the_pixels_of_animate_in_any_order(
    main: Main, job: Job, strip: Strip, lively_checkpoint: Path
) -> None:
    words = ["animate", job.portrait, job.audio, "-o", job.output, "--emotion", job.emotion]
    words += [
        "--seed",
        3,
        "--emotion-guidance",
        2,
        "--crop",
        "center",
        "--emotion-strength",
        STRENGTH,
    ]
    code, out, _ = main(
        *words, "--steps", 2, "--keyframes-only", "--model", lively_checkpoint, "--device", "cpu",
        "--dtype", "float32",
    )  # fmt: skip
    assert code == 0
    files = sorted(Path(out.strip()).glob("frame-*.png"))
    assert len(files) == strip.timeline.num_keyframes == 17
    shown: dict[int, np.ndarray] = {}
    other = curve_of(Key(0.0, 0.5, -0.5))
    strip.picture(14, other)  # another curve does not leave a trace
    for keyframe in [14, 16, *range(13)]:
        shown[keyframe] = strip.picture(keyframe, curve_of(*KEYS))
    for keyframe, path in enumerate(files):
        if keyframe in shown:
            np.testing.assert_array_equal(shown[keyframe], np.asarray(Image.open(path)))
    assert strip.clips_sampled == 3
    assert not np.array_equal(shown[14], strip.picture(14, other))


@pytest.mark.parametrize(
    ("keys", "changed"),
    [
        (KEYS, set()),
        ((KEYS[0], Key(2.0, 0.1, 0.6, "smooth"), *KEYS[2:]), {0}),  # 0 to 4 s
        ((*KEYS[:2], Key(4.0, 0.5, 0.9), KEYS[3]), {0, 1}),  # 2 to 7.5 s
        ((*KEYS, Key(7.9, -1.0, 0.1)), {1}),
        ((Key(0.0, 0.1, 0.0), *KEYS[1:]), {0, 1}),  # slot 0 of every clip takes frame 0
    ],
)
def test_clips_that_a_change_of_the_curve_reaches(keys: tuple[Key, ...], changed: set[int]) -> None:
    before, after = curve_of(*KEYS), curve_of(*keys)
    plan = Timeline(len(before))
    found = {i for i in range(2) if conditions(plan, i, before) != conditions(plan, i, after)}
    assert found == changed


def test_a_change_between_two_keyframes_reaches_no_clip() -> None:
    before, after = curve_of(*KEYS), curve_of(*KEYS)
    plan = Timeline(len(before))
    after[15] += 0.3
    assert conditions(plan, 0, before) == conditions(plan, 0, after)
    after[13] += 0.3
    assert conditions(plan, 0, before) != conditions(plan, 0, after)


def test_only_clips_whose_curve_changed_are_sampled_again(strip: Strip) -> None:
    before, after = curve_of(*KEYS), curve_of(*KEYS, Key(7.9, -1.0, 0.1))
    for curve in (before, after, before):
        for keyframe in (0, 16):
            strip.picture(keyframe, curve)
    assert strip.clips_sampled == 3
    assert strip.name_of(1, after) == strip.name_of(1, before)
    assert strip.name_of(16, after) != strip.name_of(16, before)


def test_the_video_between_takes_the_keyframes_of_the_strip(
    made: tuple[JobInputs, KeyFacePipeline], strip: Strip, job: Job
) -> None:
    inputs, pipeline = made
    curve = curve_of(*KEYS)

    def frames(store: object) -> np.ndarray:
        stream = pipeline.stream(
            inputs.portrait, inputs.waveform, curve, job.generation, first_frame=187,
            store=store,  # type: ignore[arg-type]
        )  # fmt: skip
        return next(iter(stream))

    strip.latents(0, curve)
    np.testing.assert_array_equal(frames(StripStore(strip, curve)), frames(None))
    assert strip.clips_sampled == 1
    assert strip.has(1, curve)  # what the video needed, it keeps


def test_room_is_imported_without_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, keyface_cli.editor as room\n"
        "for one in pkgutil.iter_modules(room.__path__):\n"
        "    importlib.import_module(f'keyface_cli.editor.{one.name}')\n"
        "assert not {'torch', 'scipy', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
