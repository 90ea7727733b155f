"""Bad input is ordinary input: whatever a file holds, one line and nothing else, or a video.

Cases are made by hypothesis: random bytes, good files cut short or with bits flipped, extreme sizes
and lengths. `--thorough` tries thousands.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from keyface_cli.app import main as program
from keyface_cli.commands import console
from keyface_cli.jobs import runner
from keyface_cli.pipeline import KeyFacePipeline

pytestmark = pytest.mark.slow  # see --thorough too

FAST = ("--steps", 1, "--audio-guidance", 1, "--identity-guidance", 1, "--autoguidance", 1)
COMMON = (*FAST, "--dtype", "float32", "--device", "cpu", "--chunk", 50, "--duration", 0.2)
LONGEST_S = 20.0  # of work, ours and ffmpeg's
HANGS_S = 300  # on the clock: ended by a signal
MOST_MEMORY = 3 * 2**30
PORTRAITS = ("a.png", "a.jpg", "a.webp", "a.gif", "a.tiff", "a.bmp", "a.mp4", "a.ppm", "a")
SOUNDS = ("a.wav", "a.flac", "a.ogg", "a.mp3", "a.m4a", "a")
Damage = tuple[str, Any]
Attempt = Callable[..., int]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, portrait_png: Path, tone_wav: Path) -> Path:
    """A folder of good files of every kind."""
    import subprocess

    from keyface_cli.media.ffmpeg import find_ffmpeg

    folder = tmp_path_factory.mktemp("good")
    picture = Image.open(portrait_png).resize((48, 40))
    for name in PORTRAITS:
        if name not in ("a", "a.mp4"):
            picture.save(folder / name)
    samples, rate = soundfile.read(tone_wav)
    for name in ("a.wav", "a.flac", "a.ogg"):
        soundfile.write(folder / name, samples[:8000], rate)
    quiet = [find_ffmpeg(), "-v", "error", "-y", "-i", str(folder / "a.wav")]
    for name in ("a.mp3", "a.m4a"):
        subprocess.run([*quiet, str(folder / name)], check=True)
    subprocess.run([*quiet[:3], "-i", str(folder / "a.png"), str(folder / "a.mp4")], check=True)
    (folder / "a.csv").write_text("time,valence,arousal\n0,0,0\n0.5,0.8,-0.5\n1,0.1,0\n")
    return folder


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> Iterator[None]:
    """Load the model once: a good one is not what these tests are about."""
    kept: dict[Path, KeyFacePipeline] = {}
    load = runner.load_pipeline

    def once(checkpoint: Any, *arguments: Any, **more: Any) -> KeyFacePipeline:
        if checkpoint.folder != tiny_checkpoint:
            return load(checkpoint, *arguments, **more)
        if tiny_checkpoint not in kept:
            kept[tiny_checkpoint] = load(checkpoint, *arguments, **more)
        return kept[tiny_checkpoint]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "load_pipeline", once)
        yield


@pytest.fixture(scope="module")
def attempt(
    loaded: None, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Attempt:
    """A function that animates in an empty folder and checks what must always hold."""
    folder = tmp_path_factory.mktemp("fuzz") / "out"

    def run(portrait: Path, audio: Path, *more: object, model: Path = tiny_checkpoint) -> int:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        log = folder.with_name("log")
        words = ["animate", portrait, audio, "-o", folder / "a.mp4", "-m", model, *COMMON, *more]
        begun = sum(os.times()[:4])
        with log.open("w") as file, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["keyface", *map(str, words)])
            patch.setattr(sys, "stderr", file)
            patch.setattr(sys, "stdout", file)
            console.stderr.cache_clear()
            signal.alarm(HANGS_S)
            try:
                with pytest.raises(SystemExit) as stop:
                    program()
            finally:
                signal.alarm(0)
                console.stderr.cache_clear()
        said = log.read_text("utf-8", "replace")
        assert sum(os.times()[:4]) - begun < LONGEST_S
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MOST_MEMORY
        assert "Traceback" not in said
        left = sorted(path.name for path in folder.iterdir())
        if stop.value.code:
            assert stop.value.code in (1, 2), said
            assert said.count("error: ") == 1, said
            assert not re.search("error: unexpected [A-Z]", said), said  # an exception's name
            assert left == [], said
        else:
            assert left == ["a.mp4"], said
            assert (folder / "a.mp4").stat().st_size > 1000
        return int(stop.value.code or 0)

    return run


def damages() -> st.SearchStrategy[Damage]:
    """What is done to a good file: random bytes instead, cut short, bits flipped, bytes put in."""
    place = st.floats(0, 1, exclude_max=True)
    return st.one_of(
        st.tuples(st.just("random"), st.binary(max_size=300)),
        st.tuples(st.just("cut"), place),
        st.tuples(st.just("flip"), st.lists(st.tuples(place, st.integers(1, 255)), min_size=1)),
        st.tuples(st.just("insert"), st.tuples(place, st.binary(min_size=1, max_size=40))),
    )


def damaged(data: bytes, damage: Damage) -> bytes:
    kind, how = damage
    if kind == "random":
        return bytes(how)
    if kind == "cut":
        return data[: int(how * len(data))]
    if kind == "insert":
        at = int(how[0] * len(data))
        return data[:at] + how[1] + data[at:]
    changed = bytearray(data)
    for place, value in how:
        changed[int(place * len(data))] ^= value
    return bytes(changed)


def cases(share: int) -> Any:
    """Settings for a share of the cases, which are the same in every run."""

    def decorate(function: Any) -> Any:
        return settings(
            max_examples=share,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(function)

    return decorate


def fuzz(request: pytest.FixtureRequest, share: int, test: Any) -> None:
    """Run a test made by hypothesis, with ten times the cases where --thorough asks for them."""
    cases(share * (10 if request.config.getoption("--thorough") else 1))(test)()


@pytest.mark.parametrize("name", PORTRAITS)
def test_damaged_portraits(
    request: pytest.FixtureRequest,
    attempt: Attempt,
    good: Path,
    tmp_path: Path,
    name: str,
) -> None:
    source = good / ("a.png" if name == "a" else name)

    @given(damages())
    def test(damage: Damage) -> None:
        (tmp_path / name).write_bytes(damaged(source.read_bytes(), damage))
        attempt(tmp_path / name, good / "a.wav")

    fuzz(request, 12, test)


@pytest.mark.parametrize("name", SOUNDS)
def test_damaged_recordings(
    request: pytest.FixtureRequest,
    attempt: Attempt,
    good: Path,
    tmp_path: Path,
    name: str,
) -> None:
    source = good / ("a.wav" if name == "a" else name)

    @given(damages())
    def test(damage: Damage) -> None:
        (tmp_path / name).write_bytes(damaged(source.read_bytes(), damage))
        attempt(good / "a.png", tmp_path / name, "--crop", "center")

    fuzz(request, 12, test)


def test_damaged_curves(
    request: pytest.FixtureRequest, attempt: Attempt, good: Path, tmp_path: Path
) -> None:
    cell = st.one_of(
        st.floats().map(str), st.text(max_size=6), st.sampled_from(["", "0", "1", "-1", "2,5"])
    )
    tables = st.lists(st.lists(cell, max_size=4), max_size=5)
    written = tables.map(lambda rows: "\n".join(",".join(row) for row in rows))
    headed = written.map(lambda text: f"time,valence,arousal\n{text}".encode("utf-8", "replace"))
    spoilt = damages().map(lambda damage: damaged((good / "a.csv").read_bytes(), damage))

    @given(st.one_of(headed, spoilt))
    def test(data: bytes) -> None:
        (tmp_path / "a.csv").write_bytes(data)
        attempt(good / "a.png", good / "a.wav", "-e", tmp_path / "a.csv", "--crop", "center")

    fuzz(request, 40, test)


def test_damaged_models(
    request: pytest.FixtureRequest,
    attempt: Attempt,
    good: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    files = sorted(p.relative_to(tiny_checkpoint) for p in tiny_checkpoint.rglob("*.*"))

    # a bit flipped inside a tensor is another good tensor: only the head of those files is spoilt
    @given(st.sampled_from(files), damages())
    def test(file: Path, damage: Damage) -> None:
        model = tmp_path / "model"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(tiny_checkpoint, model, copy_function=os.link)
        data = (tiny_checkpoint / file).read_bytes()
        (model / file).unlink()
        head = data[:2000] if file.suffix == ".safetensors" and damage[0] == "flip" else data
        (model / file).write_bytes(damaged(head, damage) + data[len(head) :])
        attempt(good / "a.png", good / "a.wav", "--crop", "center", model=model)

    fuzz(request, 30, test)


@pytest.mark.parametrize(
    "size", [(1, 1), (20_000, 10), (10, 20_000), (1, 3000), (2, 2), (4000, 4000)]
)
@pytest.mark.parametrize("options", [(), ("--crop", "none", "--paste-back")])
def test_pictures_of_extreme_sizes(
    attempt: Attempt, good: Path, tmp_path: Path, size: tuple[int, int], options: Any
) -> None:
    Image.new("RGB", size, (120, 140, 90)).save(tmp_path / "a.png")
    code = attempt(tmp_path / "a.png", good / "a.wav", "--duration", 0.04, *options)
    assert (code == 0) == (not options or min(size) >= 16)


@pytest.mark.parametrize("samples", [0, 1, 3, 639, 640, 641])
@pytest.mark.parametrize("rate", [8000, 16_000, 96_000])
def test_recordings_of_few_samples(
    attempt: Attempt, good: Path, tmp_path: Path, samples: int, rate: int
) -> None:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.ones(samples), rate)
    code = attempt(good / "a.png", tmp_path / "a.wav", "--crop", "center")
    assert (code == 0) == (samples / rate >= 0.04)


def test_damaged_lists(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = b"portrait,audio,output,seed\na.png,a.wav,a.mp4,1\nb.png,a.wav,b.mp4,2\n"

    @given(damages())
    def test(damage: Damage) -> None:
        (tmp_path / "jobs.csv").write_bytes(damaged(text, damage))
        monkeypatch.setattr(sys, "argv", ["keyface", "batch", str(tmp_path / "jobs.csv")])
        with pytest.raises(SystemExit) as stop:
            program()
        said = capfd.readouterr()
        assert stop.value.code in (0, 1, 2)
        assert "Traceback" not in said.err
        # a list without rows is made at once, and no portrait is there to make anything of
        assert not list(tmp_path.glob("*.mp4*"))

    fuzz(request, 40, test)
