"""Many jobs from a list: what is read, made, left out, reported, and what one bad row does."""

from __future__ import annotations

import csv
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.commands import batch as batches
from keyface_cli.errors import JobError
from keyface_cli.jobs import make_video
from keyface_cli.jobs.batch import Row, jobs_of_folder, parse_choice, read_jobs
from keyface_cli.jobs.job import Job
from keyface_cli.jobs.plan import Plan
from keyface_cli.jobs.runner import ComputeOptions
from keyface_cli.media.ffmpeg import find_ffmpeg
from keyface_cli.pipeline import KeyFacePipeline

Main = Callable[..., tuple[int, str, str]]


def wav(path: Path, seconds: float = 0.3, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, round(16_000 * seconds))
    soundfile.write(path, noise, 16_000)
    return path


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def report(path: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(path.read_text().splitlines()))
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == [row["status"] for row in rows]
    return rows


@pytest.fixture
def batch(main: Main, tiny_checkpoint: Path, portrait_png: Path, tmp_path: Path) -> Main:
    """A function that runs a batch of fast jobs; recordings a, b and c lie in `in`."""
    for seed, name in enumerate("abc"):
        wav(tmp_path / "in" / f"{name}.wav", seed=seed)
    (tmp_path / "p.png").write_bytes(portrait_png.read_bytes())
    fast = [f"--set={name}=1" for name in ("steps", "audio_guidance", "identity_guidance")]
    fast += ["--set=autoguidance=1", "--set=crop=center"]

    def run(*arguments: object) -> tuple[int, str, str]:
        given = (*arguments, "-m", tiny_checkpoint, *fast, "--device", "cpu")
        return main("batch", *given, "--dtype", "float32", "-q")

    return run


def test_rows_are_made_with_one_model_and_reported(
    batch: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    load = KeyFacePipeline.load
    monkeypatch.setattr(
        KeyFacePipeline, "load", lambda *a, **more: loads.append(a) or load(*a, **more)
    )
    jobs = table(
        tmp_path / "jobs.csv",
        "Portrait;Audio;Output;Emotion;Seed;paste-back",
        "p.png;in/a.wav;one.mp4;happy;3;",
        "",
        "p.png;in/absent.wav;two.mp4;;;",
        "p.png;in/b.wav;three.mp4;hapy;;",
        "p.png;in/b.wav;four.mp4;;many;",
        "p.png;in/b.wav;one.mp4;;;",
        "p.png;in/c.wav;;;;yes",
    )
    code, out, err = batch(jobs)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("done", "failed", "failed", "failed", "failed", "done")
    ]
    rows = report(tmp_path / "jobs.report.csv")
    assert [row["status"] for row in rows] == [line.split()[0] for line in lines]
    assert [row["row"] for row in rows] == ["2", "4", "5", "6", "7", "8"]
    for row, message in zip(
        rows[1:5],
        ("absent.wav: ", "unknown emotion: hapy", "seed: not a number: many", "that of row 2 too"),
        strict=True,
    ):
        assert message in row["error"]
        assert row["sha256"] == ""
    made = sorted(path.name for path in tmp_path.glob("*.mp4"))
    assert made == ["one.mp4", "p-c.mp4"]
    from keyface_cli.files import file_hash

    assert rows[0]["sha256"] == file_hash(tmp_path / "one.mp4")
    assert float(rows[0]["seconds"]) > 0
    assert len(loads) == 1
    assert list(tmp_path.glob("*.keyface")) == []


def test_what_was_made_already_is_left_out_by_content(batch: Main, tmp_path: Path) -> None:
    jobs = table(
        tmp_path / "jobs.csv",
        "portrait,audio,output",
        "p.png,in/a.wav,a.mp4",
        "p.png,in/b.wav,b.mp4",
    )
    assert batch(jobs, "--skip-existing")[0] == 0
    first = (tmp_path / "a.mp4").stat().st_mtime_ns
    wav(tmp_path / "in" / "b.wav", seed=9)  # another recording of the same name
    code, out, _ = batch(jobs, "--skip-existing", "--json")
    assert code == 0
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["skipped", "done"]
    assert (tmp_path / "a.mp4").stat().st_mtime_ns == first
    # other options make another video, too
    code, out, _ = batch(jobs, "--skip-existing", "--set", "seed=4")
    assert [line.split()[0] for line in out.splitlines()] == ["done", "done"]
    # without the option what is there is not replaced
    code, out, _ = batch(jobs)
    assert code == 1
    assert out.count("exists already") == 2
    # nor what keyface did not make
    (tmp_path / "a.mp4").write_text("mine")
    code, out, _ = batch(jobs, "--skip-existing", "--set", "seed=4")
    assert [line.split()[0] for line in out.splitlines()] == ["failed", "skipped"]
    assert (tmp_path / "a.mp4").read_text() == "mine"


def test_every_recording_of_a_folder(batch: Main, tmp_path: Path) -> None:
    (tmp_path / "in" / "notes.txt").write_text("no recording")
    code, _, _ = batch(
        *("--portrait", tmp_path / "p.png", "--audio-dir", tmp_path / "in"),
        *("--output-dir", tmp_path / "new" / "out", "--jobs", 1),
    )
    assert code == 0
    made = [f"p-{name}.mp4" for name in "abc"]
    assert sorted(p.name for p in (tmp_path / "new" / "out").glob("*.mp4")) == made
    assert len(report(tmp_path / "new" / "out" / "batch.report.csv")) == 3


def test_interruption_is_in_the_report(
    batch: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = table(
        tmp_path / "jobs.csv",
        *("portrait,audio,output", "p.png,in/a.wav,a.mp4", "p.png,in/b.wav,b.mp4"),
        "p.png,in/c.wav,c.mp4",
    )
    make, made = make_video.make_video, []

    def stop(plan: Plan, *more: Any) -> dict[str, Any]:
        made.append(plan)
        if len(made) == 2:
            # as a killed run leaves it: the report is whole at this moment
            rows = report(tmp_path / "jobs.report.csv")
            assert [row["status"] for row in rows] == ["done", "running", "pending"]
            signal.raise_signal(signal.SIGINT)
        return make(plan, *more)

    monkeypatch.setattr(make_video, "make_video", stop)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, out, _ = batch(jobs)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert out.splitlines() == [f"done row 2 {tmp_path / 'a.mp4'}"]
    rows = report(tmp_path / "jobs.report.csv")
    assert [row["status"] for row in rows] == ["done", "interrupted", "pending"]
    monkeypatch.setattr(make_video, "make_video", make)
    code, out, _ = batch(jobs, "--skip-existing")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["skipped", "done", "done"]


def test_unexpected_failure_is_one_row(
    batch: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = make_video.make_video

    def fail(plan: Plan, *more: Any) -> dict[str, Any]:
        if plan.job.audio.name == "a.wav":
            raise RuntimeError("a line\nand another")
        return make(plan, *more)

    monkeypatch.setattr(make_video, "make_video", fail)
    code, out, _ = batch("--portrait", tmp_path / "p.png", "--audio-dir", tmp_path / "in",
                         "--output-dir", tmp_path)  # fmt: skip
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == ["failed", "done", "done"]
    assert "RuntimeError: a line and another" in out


def test_a_row_whose_worker_was_lost_may_be_made_already(
    tmp_path: Path, tiny_checkpoint: Path, portrait_png: Path
) -> None:
    wav(tmp_path / "a.wav")
    jobs = table(
        tmp_path / "jobs.csv", "portrait,audio,output,crop", f"{portrait_png},a.wav,a.mp4,center"
    )
    compute = ComputeOptions(device="cpu", dtype="float32")
    worker = batches.Worker(Checkpoint.open(tiny_checkpoint), compute, False, is_default=False)

    def make(tried: bool, **changes: Any) -> Row:
        (row,) = read_jobs(jobs, {}, None)
        assert row.job is not None
        return worker.make(replace(row, job=replace(row.job, **changes), tried=tried))

    first = make(tried=False)
    assert first.status == "done", first.error
    left = tmp_path / "a.mp4.keyface"  # by a worker that was lost between its last two steps
    left.mkdir()
    again = make(tried=True)
    assert not left.exists()
    assert (again.status, again.sha256) == ("done", first.sha256)
    # another's file is not replaced, and not taken for the row's
    for row in (make(tried=True, seed=7), make(tried=False)):
        assert row.status == "failed"
        assert "exists already" in row.error


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two processes on a CPU computes with half of the threads."""
    import torch

    given: list[int | None] = []

    def lead(*arguments: Any) -> None:
        given.append(arguments[-2])

    monkeypatch.setattr(batches, "_drive_process", lead)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    batches._distribute(None, None, ComputeOptions("cpu"), False, 2)  # type: ignore[arg-type]
    assert given == [4, 4]


@pytest.mark.slow
def test_several_processes_share_the_rows_and_one_may_die(
    batch: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "if any('b.wav' in word for word in sys.argv):\n"
        "    os.kill(os.getppid(), 9)\n"
        f"os.execv({find_ffmpeg()!r}, [{find_ffmpeg()!r}, *sys.argv[1:]])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    jobs = table(
        tmp_path / "jobs.csv",
        *("portrait,audio,output", "p.png,in/a.wav,a.mp4", "p.png,in/absent.wav,x.mp4"),
        *("p.png,in/b.wav,b.mp4", "p.png,in/c.wav,c.mp4"),
    )
    code, out, _ = batch(jobs, "--jobs", 2)
    assert code == 1
    assert len(out.splitlines()) == 4
    rows = report(tmp_path / "jobs.report.csv")
    assert [row["status"] for row in rows] == ["done", "failed", "failed", "done"]
    assert rows[2]["error"] == "its process ended with code -9"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "holds no rows"),
        (("portrait,output",), "the column audio is missing"),
        (("portrait,audio,colour",), "no such column: colour"),
        (("portrait,audio,seed,Seed",), "duplicate column: seed"),
    ],
)
def test_a_list_that_is_none_is_wrong_usage(
    batch: Main, tmp_path: Path, rows: tuple[str, ...], message: str
) -> None:
    jobs = table(tmp_path / "jobs.csv", *rows)
    code, out, err = batch(jobs)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


def test_wrong_usage(batch: Main, tmp_path: Path) -> None:
    for arguments in (
        (),
        (tmp_path / "absent.csv",),
        ("--portrait", tmp_path / "p.png"),
        ("--portrait", tmp_path / "p.png", "--audio-dir", tmp_path / "absent"),
        ("--portrait", tmp_path / "p.png", "--audio-dir", tmp_path / "in", "--set", "seed"),
    ):
        code, out, err = batch(*arguments)
        assert (code, out, err.splitlines()[0][:7]) == (2, "", "error: ")


def test_rows_are_read_as_spreadsheets_write_them(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.csv"
    text = 'portrait;audio;duration;Paste Back;fps\r\n"a b.png";c.wav;2,5;ja;50;;\r\n;;;;\r\n'
    jobs.write_bytes(b"\xef\xbb\xbf" + text.replace("ja", "yes").encode())
    (row,) = read_jobs(jobs, {"seed": "7"}, None)
    assert row.job == Job(
        portrait=tmp_path / "a b.png",
        audio=tmp_path / "c.wav",
        output=tmp_path / "a b-c.mp4",
        duration=2.5,
        paste_back=True,
        fps=50,
        seed=7,
    )
    jobs.write_bytes(text.encode("utf-16"))
    (row,) = read_jobs(jobs, {}, None)
    assert (row.job, row.error) == (None, "paste_back: yes or no, not ja")
    for cell, message in (
        ("fps=31", "fps must be one of"),
        ("seed=-1", "seed must be between"),
    ):
        name, value = cell.split("=")
        table(jobs, f"portrait,audio,{name}", f"a,b,{value}")
        assert message in read_jobs(jobs, {}, None)[0].error
    table(jobs, "portrait,audio", "a,b,c")
    assert read_jobs(jobs, {}, None)[0].error == "a value under no column"
    table(jobs, "portrait,audio,output", "a,b,-")
    assert "cannot be piped" in read_jobs(jobs, {}, None)[0].error
    with pytest.raises(JobError, match="holds no recordings"):
        jobs_of_folder(jobs, tmp_path, {}, tmp_path)
    assert parse_choice("duration", "1.5") == 1.5
    assert parse_choice("steps", "3") == 3
