"""What survives: runs that are ended at any moment, full disks, other options, damaged folders."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from keyface_cli import files
from keyface_cli.errors import JobError
from keyface_cli.jobs import jobfolder
from keyface_cli.jobs.jobfolder import JobFolder, folder_for
from keyface_cli.output.ledger import Ledger

Main = Callable[..., tuple[int, str, str]]
FAST = ("--steps", "1", "--audio-guidance", "1", "--identity-guidance", "1", "--autoguidance", "1")
COMMON = (*FAST, "--dtype", "float32", "--device", "cpu", "--crop", "center", "--quiet")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def noise_wav(path: Path, seconds: float) -> Path:
    noise = np.random.default_rng(1).uniform(-0.3, 0.3, round(16_000 * seconds))
    soundfile.write(path, noise, 16_000)
    return path


def finished(output: Path) -> int:
    """How many steps of a video its folder holds."""
    try:
        return len((folder_for(output) / "done.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


def run_program(arguments: list[str], log: str) -> None:
    """Run the program in a process of its own that has imported everything already."""
    os.setsid()  # its ffmpeg dies with it or not, as after a power cut
    sys.argv = ["keyface", *arguments]
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from keyface_cli.app import main

    main()


@pytest.fixture(scope="module")
def start() -> Callable[..., Any]:
    """A function that starts the program in a fork of a server that has imported it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["keyface_cli.jobs.make_video", "keyface_cli.app", __name__])

    def begin(arguments: list[str], log: Path) -> Any:
        process = context.Process(target=run_program, args=(arguments, str(log)))
        process.start()
        return process

    return begin


@pytest.mark.parametrize("videos", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_video_is_the_same(
    start: Callable[..., Any],
    tiny_checkpoint: Path,
    portrait_png: Path,
    tmp_path: Path,
    videos: int,
) -> None:
    audio = noise_wav(tmp_path / "a.wav", 20.0)

    def command(name: str) -> list[str]:
        words = ["animate", portrait_png, audio, "-o", tmp_path / name, "--model", tiny_checkpoint]
        return [*map(str, words), *COMMON, "--chunk", "6"]

    whole = start([*command("whole.mp4"), "--keep-job"], tmp_path / "log")
    whole.join()
    assert whole.exitcode == 0, (tmp_path / "log").read_text()
    expected = sha256(tmp_path / "whole.mp4")
    steps = finished(tmp_path / "whole.mp4")
    assert steps == 12  # the sound, four clips of keyframes, seven pieces
    shutil.rmtree(folder_for(tmp_path / "whole.mp4"))
    chance = random.Random(5)
    killed = 0
    for index in range(videos):
        name = f"{index}.mp4"
        process = start(command(name), tmp_path / "log")
        step = chance.randrange(steps)
        while process.exitcode is None and finished(tmp_path / name) < step:
            process.join(0.005)
        process.join(chance.uniform(0, 0.1))  # somewhere in what comes next
        if process.exitcode is None:
            killed += 1
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if not (tmp_path / name).exists():
            process = start(command(name), tmp_path / "log")
            process.join()
            assert process.exitcode == 0, (tmp_path / "log").read_text()
        assert sha256(tmp_path / name) == expected, name
        assert not folder_for(tmp_path / name).exists()
    assert killed >= videos / 2
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.wav", "log", "whole.mp4", *(f"{index}.mp4" for index in range(videos))}


@pytest.fixture
def animate(
    main: Main, tiny_checkpoint: Path, portrait_png: Path, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """A function that animates two seconds to `out/a.mp4`, one segment a piece."""
    audio = noise_wav(tmp_path / "a.wav", 2.0)
    (tmp_path / "out").mkdir()

    def run(*more: object) -> tuple[int, str, str]:
        given = ["animate", portrait_png, audio, "-o", tmp_path / "out" / "a.mp4"]
        return main(*given, "--model", tiny_checkpoint, *COMMON, "--chunk", "1", *more)

    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_goes_when_the_video_is_complete_unless_it_is_to_be_kept(
    animate: Main, tmp_path: Path
) -> None:
    assert animate()[0] == 0
    assert names(tmp_path / "out") == ["a.mp4"]
    first = sha256(tmp_path / "out" / "a.mp4")
    assert animate("--force", "--keep-job")[0] == 0
    assert names(tmp_path / "out") == ["a.mp4", "a.mp4.keyface"]
    kept = names(tmp_path / "out" / "a.mp4.keyface")
    assert [name for name in kept if name.startswith("piece-")] == [
        f"piece-{index:06d}.mp4" for index in range(4)
    ]
    # nothing is left to be done but to join the pieces
    (tmp_path / "out" / "a.mp4").unlink()
    assert animate()[0] == 0
    assert sha256(tmp_path / "out" / "a.mp4") == first


def test_other_options_or_files_are_named(animate: Main, tmp_path: Path) -> None:
    assert animate("--keep-job", "--seed", 3)[0] == 0
    (tmp_path / "out" / "a.mp4").unlink()
    code, _, err = animate("--seed", 4, "--audio-offset", 20)
    assert code == 1
    assert "a.mp4.keyface was begun with --audio-offset left out, not 20.0; --seed 3, not 4" in err
    assert "--restart" in err.splitlines()[1]
    noise_wav(tmp_path / "a.wav", 2.02)
    code, _, err = animate("--seed", 3)
    assert (code, "begun with another recording" in err) == (1, True)
    assert animate("--restart")[0] == 0
    assert names(tmp_path / "out") == ["a.mp4"]


def test_keyframes_alone_are_pictures_and_the_video_goes_on_from_them(
    animate: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = animate("--keyframes-only")
    place = tmp_path / "out" / "a.mp4.keyface" / "keyframes"
    assert (code, out) == (0, f"{place}\n")
    assert names(tmp_path / "out") == ["a.mp4.keyface"]
    assert names(place) == [f"frame-{index:06d}.png" for index in (0, 13, 26, 39, 49)]
    assert Image.open(place / "frame-000013.png").size == (64, 64)
    from keyface_cli.stages.keyframes import KeyframeStage

    monkeypatch.setattr(KeyframeStage, "sample", None)
    assert animate()[0] == 0
    assert names(tmp_path / "out") == ["a.mp4"]


@pytest.mark.slow
def test_damaged_pieces_are_made_again(animate: Main, tmp_path: Path) -> None:
    assert animate("--keep-job")[0] == 0
    whole = sha256(tmp_path / "out" / "a.mp4")
    folder = tmp_path / "out" / "a.mp4.keyface"
    for damage in ("piece-000001.mp4", "keyframes-00000.safetensors", "sound.mp4", "done.jsonl"):
        path = folder / damage
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
        assert animate("--keep-job", "--force")[0] == 0, damage
        assert sha256(tmp_path / "out" / "a.mp4") == whole
    (folder / "job.json").write_text("{")
    code, _, err = animate("--force")
    assert (code, "job.json: damaged" in err, "--restart" in err) == (1, True, True)
    assert animate("--force", "--restart")[0] == 0
    assert sha256(tmp_path / "out" / "a.mp4") == whole


def test_failure_before_anything_is_finished_leaves_no_folder(
    animate: Main, tmp_path: Path
) -> None:
    assert animate("--model", tmp_path / "absent")[0] == 1
    assert animate("--device", "cuda:99")[0] == 1
    assert names(tmp_path / "out") == []


def test_two_runs_do_not_share_a_folder(animate: Main, tmp_path: Path) -> None:
    assert animate("--keep-job")[0] == 0
    folder = tmp_path / "out" / "a.mp4.keyface"
    dependencies = json.loads((folder / "job.json").read_text())["dependencies"]
    with JobFolder(tmp_path / "out" / "a.mp4", dependencies):
        code, _, err = animate("--force")
    assert (code, "another run is making this video" in err) == (1, True)


def test_an_empty_folder_is_removed_before_another_run_may_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, refused = tmp_path / "a.mp4", []
    with JobFolder(output, {}) as folder:
        remove = folder.remove

        def watch() -> None:
            with pytest.raises(JobError, match="another run is making this video"):
                JobFolder(output, {}).__enter__()
            refused.append(True)
            remove()

        monkeypatch.setattr(folder, "remove", watch)
    assert refused == [True]
    assert list(tmp_path.iterdir()) == []
    with JobFolder(output, {}) as again:
        assert again.path.is_dir()


@pytest.mark.parametrize("first", ["lock", "piece"])
def test_a_run_that_begins_while_a_finished_one_is_removed_keeps_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    output, begun = tmp_path / "a.mp4", JobFolder(tmp_path / "a.mp4", {})
    remove = shutil.rmtree

    def remove_slowly(path: Path, **rest: Any) -> None:
        there = path.is_dir()
        if there:
            (path / first).unlink()
            begun.__enter__().put(0, torch.ones(1))
        remove(path, **rest)

    with JobFolder(output, {}) as finished:
        (finished.path / "piece").touch()
        monkeypatch.setattr(shutil, "rmtree", remove_slowly)
        finished.remove()
        monkeypatch.setattr(shutil, "rmtree", remove)
    kept = begun.get(0)
    assert kept is not None
    assert kept.item() == 1
    begun.remove()
    begun.__exit__()
    assert list(tmp_path.iterdir()) == []


def test_ledger_counts_only_what_is_whole(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    for name in ("a", "b", "c"):
        assert not book.holds(name)
        book.part(name).write_text(name * 100)
        book.add(name)
        assert book.holds(name)
    assert names(tmp_path) == ["a", "b", "c", "done.jsonl"]
    (tmp_path / "a").write_text("x" * 100)
    with (tmp_path / "done.jsonl").open("r+b") as file:
        file.truncate((tmp_path / "done.jsonl").stat().st_size - 5)
    again = Ledger(tmp_path)
    assert [again.holds(name) for name in ("a", "b", "c")] == [False, True, False]
    again.part("d").write_text("d")
    again.add("d")  # the line that was cut short does not spoil the next
    assert Ledger(tmp_path).names == ["a", "b", "d"]
    (tmp_path / "b").unlink()
    assert not Ledger(tmp_path).holds("b")


def test_long_names_have_a_folder_too(tmp_path: Path) -> None:
    output = tmp_path / ("ü" * 120 + ".mp4")
    assert folder_for(output).parent == tmp_path
    with JobFolder(output, {"--seed": 1}) as folder:
        assert folder.path.is_dir()
    assert names(tmp_path) == []


def test_full_disk_is_one_line_and_resumable(
    animate: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Ledger.add

    def fail(book: Ledger, name: str) -> None:
        if name == "piece-000002.mp4":
            raise OSError(28, os.strerror(28))
        add(book, name)

    monkeypatch.setattr(Ledger, "add", fail)
    code, out, err = animate()
    assert (code, out) == (1, "")
    assert [line.split(": ")[0] for line in err.splitlines()] == ["error", "hint"]
    assert "the disk is full" in err
    assert names(tmp_path / "out") == ["a.mp4.keyface"]
    monkeypatch.setattr(Ledger, "add", add)
    assert animate()[0] == 0
    assert names(tmp_path / "out") == ["a.mp4"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone")
    yield place
    # lazily: what the failure holds on to is closed when it is forgotten
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("free", [20_000, 160_000, 220_000, 300_000])
def test_disk_that_fills_up(
    main: Main,
    tiny_checkpoint: Path,
    portrait_png: Path,
    tmp_path: Path,
    small_disk: Path,
    free: int,
) -> None:
    audio = noise_wav(tmp_path / "a.wav", 2.0)
    words = ("animate", portrait_png, audio, "-o", small_disk / "a.mp4", "--model", tiny_checkpoint)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2**20 - free))
    code, out, err = main(*words, *COMMON, "--chunk", 1)
    assert (code, out) == (1, "")
    assert re.search("^error: .*(disk is full|No space left)", err, re.MULTILINE)
    assert err.count("error: ") == 1
    assert set(names(small_disk)) <= {"a.mp4.keyface", "filler"}
    filler.unlink()
    assert main(*words, *COMMON, "--chunk", 1)[0] == 0
    assert names(small_disk) == ["a.mp4"]


def test_ffmpeg_that_dies_halfway_is_one_line_and_resumable(
    animate: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keyface_cli.media.ffmpeg import find_ffmpeg

    program = tmp_path / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "if any('piece-000002' in word for word in sys.argv):\n"
        "    sys.stdin.buffer.read(999)\n"
        "    os.kill(os.getpid(), 9)\n"
        f"os.execv({find_ffmpeg()!r}, [{find_ffmpeg()!r}, *sys.argv[1:]])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    code, out, err = animate()
    assert (code, out) == (1, "")
    assert "ffmpeg failed (exit code -9)" in err
    assert names(tmp_path / "out") == ["a.mp4.keyface"]
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    assert animate()[0] == 0
    assert names(tmp_path / "out") == ["a.mp4"]


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4.keyface").write_text("a file")
    with pytest.raises(JobError, match="cannot be written to"), JobFolder(tmp_path / "a.mp4", {}):
        pass
    assert jobfolder.SUFFIX == ".keyface"
    assert files.file_hash(tmp_path / "a.mp4.keyface") == sha256(tmp_path / "a.mp4.keyface")
