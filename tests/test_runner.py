"""One runner for all jobs: it reads, hashes and loads what it needs once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.errors import VideoError
from keyface_cli.jobs import plan as plans
from keyface_cli.jobs import runner
from keyface_cli.jobs.job import Job
from keyface_cli.jobs.jobfolder import JobFolder
from keyface_cli.jobs.plan import make_plan
from keyface_cli.jobs.runner import ComputeOptions, Runner
from keyface_cli.output.writer import VideoWriter

FAST: dict[str, Any] = {
    "steps": 1,
    "audio_guidance": 1.0,
    "identity_guidance": 1.0,
    "autoguidance": 1.0,
}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The level of memory of each model that is loaded."""
    levels: list[str] = []
    load = runner.load_pipeline

    def watch(*arguments: Any, **more: Any) -> Any:
        pipeline = load(*arguments, **more)
        levels.append(pipeline.memory)
        return pipeline

    monkeypatch.setattr(runner, "load_pipeline", watch)
    return levels


@pytest.fixture
def make(tiny_checkpoint: Path, portrait_png: Path, tone_wav: Path, tmp_path: Path) -> Any:
    """A function that runs a job with one runner."""
    one = Runner(Checkpoint.open(tiny_checkpoint), ComputeOptions("cpu", "float32"))

    def run(name: str, **more: Any) -> dict[str, Any]:
        output = tmp_path / name
        job = Job(
            portrait=portrait_png, audio=tone_wav, output=output, duration=0.5, **FAST, **more
        )
        return one.run(make_plan(job))

    return run


def test_what_means_nothing_to_a_result_is_said(
    portrait_png: Path, tone_wav: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def plan(name: str, **more: Any) -> str:
        caplog.clear()
        make_plan(Job(portrait=portrait_png, audio=tone_wav, output=tmp_path / name, **more))
        return caplog.text

    for name in ("a.mov", "a.gif", "frames"):
        assert "--crf does nothing here" in plan(name, crf=30)
    for name in ("a.gif", "frames"):
        assert "--audio-offset does nothing here" in plan(name, audio_offset=40.0)
    for name in ("a.mp4", "a.webm"):
        assert plan(name, crf=30, audio_offset=40.0) == ""
    assert plan("a.gif", fps=50) == ""
    with pytest.raises(VideoError, match="browsers show a GIF of 60 frames a second") as caught:
        plan("a.gif", fps=60)
    assert "--fps 50" in str(caught.value.hint)


def test_each_file_is_hashed_once_and_the_model_loaded_once(
    make: Any, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: Counter[str] = Counter()
    hash_of = plans.file_hash

    def count(path: Path) -> str:
        hashed[path.name] += 1
        return hash_of(path)

    monkeypatch.setattr(plans, "file_hash", count)
    make("a.mp4")
    assert hashed == {"portrait.png": 1, "tone.wav": 1}
    make("b.mp4")
    assert loaded == ["high"]


def test_a_video_goes_on_at_the_level_of_memory_that_it_was_begun_with(
    make: Any, loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a.mp4")
    make("b.mp4", keyframes_only=True)
    note = JobFolder.note
    opened = JobFolder.__enter__

    def begun_low(folder: JobFolder) -> JobFolder:
        result = opened(folder)
        if folder.resumed and not noted:
            note(folder, memory="low")
        return result

    noted: list[str] = []

    def watch(folder: JobFolder, **facts: Any) -> None:
        noted.extend(level for name, level in facts.items() if name == "memory")
        note(folder, **facts)

    monkeypatch.setattr(JobFolder, "__enter__", begun_low)
    monkeypatch.setattr(JobFolder, "note", watch)
    make("b.mp4")
    make("c.mp4")
    assert loaded == ["high", "low"]
    assert noted == ["low", "low"]


def test_a_video_goes_on_in_the_chunks_in_which_it_was_begun(
    tiny_checkpoint: Path,
    portrait_png: Path,
    tone_wav: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Runner(Checkpoint.open(tiny_checkpoint), ComputeOptions("cpu", "float32"))
    pipeline = one.load()
    passes: list[int] = []
    pipeline.engine.interpolation_unet.register_forward_pre_hook(
        lambda _, given: passes.append(len(given[0]))
    )
    job = Job(portrait=portrait_png, audio=tone_wav, output=tmp_path / "a.mp4", **FAST)
    pipeline.engine.chunk = 1  # as free memory may have it; a second has two segments
    write = VideoWriter.write

    def stop(writer: VideoWriter, frames: Any) -> None:
        write(writer, frames)
        if len(passes) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(VideoWriter, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        one.run(make_plan(job))
    monkeypatch.setattr(VideoWriter, "write", write)
    pipeline.engine.chunk = 2
    one.run(make_plan(job))
    assert set(passes) == {1}
    one.run(make_plan(replace(job, output=tmp_path / "b.mp4")))
    assert passes[-1] == 2
