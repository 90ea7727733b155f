"""Counting what a video costs, and timing it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from keyface_cli import benchmark
from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.jobs.runner import ComputeOptions
from keyface_cli.models.unet import VideoUNet
from keyface_cli.options import GenerationOptions
from keyface_cli.pipeline import KeyFacePipeline
from keyface_cli.presets import PRESETS

Main = Callable[..., tuple[int, str, str]]
TINY = PRESETS["tiny"]
CPU = ComputeOptions("cpu", "float32")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["exact", "fast", "draft"])
def test_what_is_counted_is_what_is_done(
    lively_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    """Passes and FLOPs of a stream, counted while it runs; the video ends inside a segment."""
    calls: list[int] = []
    forward = VideoUNet.forward

    def counted(unet: VideoUNet, x: torch.Tensor, *more: Any) -> torch.Tensor:
        calls.append(len(x))
        return forward(unet, x, *more)

    options = GenerationOptions(preset=preset)
    seconds, checkpoint = 30 / 25, Checkpoint.open(lively_checkpoint)
    costs = benchmark.count(checkpoint.config, options.sampling(checkpoint.config), seconds)
    monkeypatch.setattr(VideoUNet, "forward", counted)
    # torch counts no FLOPs of the CPU's own kernel of attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        benchmark.measure(checkpoint, CPU, options, seconds)
    unets = [cost for name, cost in costs.items() if "unet" in name or "guide" in name]
    assert sum(calls) == sum(cost.passes for cost in unets)
    # where two segments meet both have a picture
    assert costs["vae"].passes == costs["portrait_decoder"].passes == 30 + 3 - 1
    total = sum(cost.tflops for cost in costs.values())
    # the portrait's encoding and the projections of the sound are left out
    assert total == pytest.approx(counter.get_total_flops() / 1e12, rel=0.03)


@pytest.mark.slow
def test_presets_of_the_published_model_cost_a_third_and_a_fifth() -> None:
    model = PRESETS["keyface"]
    exact, fast, draft = (
        sum(cost.tflops for cost in benchmark.count(model, model.sampling_of(preset), 10).values())
        for preset in ("exact", "fast", "draft")
    )
    assert fast / exact == pytest.approx(0.32, abs=0.01)
    assert draft / exact == pytest.approx(0.20, abs=0.01)


def test_scales_of_one_cost_nothing() -> None:
    plain = dataclasses.replace(
        TINY.sampling, audio_guidance=1.0, identity_guidance=1.0, autoguidance=1.0
    )
    guided, alone = (benchmark.count(TINY, sampling, 2) for sampling in (TINY.sampling, plain))
    assert "interpolation_guide" not in alone
    assert guided["keyframe_unet"].passes == 3 * alone["keyframe_unet"].passes
    assert guided["interpolation_unet"] == alone["interpolation_unet"]


@pytest.mark.slow
def test_the_published_model_is_counted_without_its_weights(main: Main) -> None:
    code, out, err = main("bench", "--model", "keyface", "--count", "--json", "--seconds", "60")
    assert code == 0, err
    counted = json.loads(out)["counted"]["exact"]
    assert counted["interpolation_unet"]["passes"] == pytest.approx(42.3 / 2, rel=0.01)
    assert counted["interpolation_guide"] == counted["interpolation_unet"]
    assert counted["interpolation_unet"]["tflops"] / counted["interpolation_unet"][
        "passes"
    ] == pytest.approx(17.74, rel=0.01)


def test_a_model_that_is_not_installed_is_timed_all_the_same() -> None:
    unfetched = benchmark.Unfetched.of(TINY)
    found = benchmark.measure(unfetched, CPU, GenerationOptions(), 0.2)
    assert found["total"] > 0
    assert found["stages"].keys() == {"audio", "keyframes", "interpolation", "decode"}
    pipeline = KeyFacePipeline.load(unfetched, "cpu", "float32")
    assert all(p.isfinite().all() for p in pipeline.engine.keyframe_unet.parameters())


@pytest.mark.slow
def test_two_runs_are_compared(main: Main, tiny_checkpoint: Path, tmp_path: Path) -> None:
    given = ("bench", "-m", tiny_checkpoint, "--seconds", "0.2", "--device", "cpu")
    code, out, err = main(*given, "--json", "--chunk", "1", "--chunk", "2")
    assert code == 0, err
    assert [row["chunk"] for row in json.loads(out)["measured"]] == [1, 2]
    (tmp_path / "before.json").write_text(out)
    code, out, err = main(*given, "--steps", "1", "--against", tmp_path / "before.json")
    assert code == 0, err
    assert "interpolation_unet: " in out
    assert "exact: FLOPs: 0." in err
    assert "chunk 2" not in err
    assert "of the other's time" in err
    (tmp_path / "bad.json").write_text("[]")
    code, _, err = main(*given, "--against", tmp_path / "bad.json")
    assert (code, "not a report of keyface bench" in err) == (1, True)


@pytest.mark.slow
def test_editor_is_timed_as_its_page_asks_it(
    main: Main, tiny_checkpoint: Path, tone_wav: Path, tmp_path: Path
) -> None:
    given = ("bench", "--editor", "-m", tiny_checkpoint, "--audio", tone_wav, "--device", "cpu")
    code, out, err = main(*given, "--steps", 1, "--preset", "draft", "--json")
    assert code == 0, err
    told = json.loads(out)
    found = told["editor"]["draft"]
    assert (told["model"], found["device"]) == ("tiny", "cpu")
    assert found["keyframes"] == 3
    assert found["page_s"] > 0
    assert 0 < found["page_with_portrait_s"] < found["strip_s"]
    assert len(found["clip_s"]) == len(found["first_keyframe_s"]) == 5
    pairs = zip(found["first_keyframe_s"], found["clip_s"], strict=True)
    assert all(0 < first <= whole for first, whole in pairs)
    assert "threads" in found["machine"]
    code, _, err = main(*given, "--portrait", tmp_path / "none.png")
    assert (code, "the editor did not start: error: " in err) == (1, True)


@pytest.mark.slow
def test_quality_is_measured_against_exact(main: Main, tmp_path: Path) -> None:
    given = ("bench", "-m", "mini", "--quality", "--device", "cpu")
    sound = Path(__file__).parent.parent / "examples" / "speech.wav"
    short = tmp_path / "short.wav"
    waveform, rate = soundfile.read(sound, frames=2 * soundfile.info(sound).samplerate)
    soundfile.write(short, waveform, rate)
    code, out, err = main(
        *given, "--audio", short, "--preset", "exact", "--preset", "fast", "--json"
    )
    assert code == 0, err
    found = json.loads(out)["quality"]
    assert found["exact"]["psnr"] == 100  # the same noise, so the same video
    assert found["exact"]["sharpness"] == 1
    assert found["exact"]["lip_to_sound"] == found["exact"]["exact_lip_to_sound"]
    assert 20 < found["fast"]["psnr"] < 60
    assert found["fast"]["exact_lip_to_sound"] == found["exact"]["exact_lip_to_sound"]
    code, _, err = main("bench", "-m", "keyface", "--quality")
    assert (code, "random weights show nothing" in err) == (1, True)
