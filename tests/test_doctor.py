"""`keyface doctor` says what works and what does not, and exits as `animate` would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from keyface_cli.commands import doctor

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: Path) -> list[str]:
    """Options for a tiny model, with no other model installed and a short self-test."""
    monkeypatch.setenv("KEYFACE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(doctor, "installed_models", dict)
    monkeypatch.setattr(doctor, "_SECONDS", 0.2)
    return ["doctor", "--model", str(tiny_checkpoint), "--device", "cpu"]


def test_a_machine_that_works(quick: list[str], main: Main, tiny_checkpoint: Path) -> None:
    code, out, err = main(*quick)
    assert code == 0, out + err
    lines = out.splitlines()
    assert any(line.startswith("ok   libx264: encodes") for line in lines)
    assert any(line.startswith(f"ok   model {tiny_checkpoint.name}: whole") for line in lines)
    assert lines[-1].startswith("ok   self-test: ")
    assert "FAIL" not in out


def test_json_is_one_object(quick: list[str], main: Main) -> None:
    code, out, _ = main(*quick, "--json", "--no-self-test")
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True)
    assert {"device", "ffmpeg", "aac", "memory"} <= {f["name"] for f in report["findings"]}


def test_what_the_published_model_takes_is_said(
    quick: list[str], main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines() -> dict[str, dict[str, str]]:
        code, out, err = main(*quick, "--json", "--no-self-test")
        assert code == 0, err
        found = {f["name"]: f for f in json.loads(out)["findings"]}
        return {kind: found[f"published model, {kind}"] for kind in ("GPU", "disk", "time")}

    said = lines()
    assert "15 GB of free memory on --memory high, from 8 GB on balanced" in said["GPU"]["text"]
    assert said["disk"]["text"].startswith("10.7 GB (counted)")
    assert "weights pull --dry-run" in said["disk"]["hint"]
    assert said["time"]["text"].startswith("970 TFLOP for a second of video (counted)")
    monkeypatch.setattr(doctor, "installed_models", lambda: {"keyface": Path(quick[2])})
    assert lines()["disk"]["hint"] is None


def test_a_damaged_model_fails_with_what_to_do(
    quick: list[str], main: Main, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "damaged"))
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    quick[2] = str(model)
    code, out, _ = main(*quick, "--no-self-test")
    assert code == 1
    assert "FAIL model damaged: the file is damaged" in out
    assert "keyface weights pull" in out


def test_another_model_that_is_damaged_does_not_matter(
    quick: list[str], main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "installed_models", lambda: {"other": tmp_path / "absent"})
    code, out, _ = main(*quick, "--no-self-test")
    assert code == 0
    assert "model absent: model folder not found" in out


def test_without_ffmpeg_it_fails(
    quick: list[str], main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "absent"))
    code, out, _ = main(*quick, "--no-self-test")
    assert code == 1
    assert "FAIL problem: ffmpeg was not found" in out


def test_an_ffmpeg_that_cannot_encode_fails(
    quick: list[str], main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    code, out, _ = main(*quick, "--no-self-test")
    assert code == 1
    assert "FAIL libx264: does not encode" in out


def test_a_device_that_is_not_there_fails(quick: list[str], main: Main) -> None:
    code, out, _ = main(*quick[:3], "--device", "cuda:99", "--no-self-test")
    assert code == 1
    assert "this machine has no cuda:99 device" in out
