"""Memory levels: the same frames at each, and a run that runs out goes on a level lower."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from keyface_cli import pipeline as pipelines
from keyface_cli.checkpoints.checkpoint import Checkpoint, build
from keyface_cli.errors import DeviceError
from keyface_cli.memory import (
    ACTIVATIONS_PER_LATENT,
    LARGEST_CHUNK,
    LEVELS,
    SPARE_BYTES,
    Demand,
    Residency,
)
from keyface_cli.options import GenerationOptions
from keyface_cli.pipeline import KeyFacePipeline, demand_of
from keyface_cli.presets import PRESETS

GUIDED = GenerationOptions(steps=1, audio_guidance=2.0, identity_guidance=1.5, autoguidance=2.0)


def frames(pipeline: KeyFacePipeline) -> NDArray[np.uint8]:
    """Half a second and more of the tiny model, with every kind of guidance."""
    waveform = np.random.default_rng(0).normal(0, 0.1, 20 * 640).astype(np.float32)
    portrait = np.linspace(-1, 1, 3 * 64 * 64, dtype=np.float32).reshape(3, 64, 64)
    emotion = np.zeros((20, 2), np.float32)
    return np.concatenate(list(pipeline.stream(portrait, waveform, emotion, GUIDED)))


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> NDArray[np.uint8]:
    return frames(KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32", memory="high"))


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_gives_the_same_frames(
    tiny_checkpoint: Path, expected: NDArray[np.uint8], level: str
) -> None:
    pipeline = KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32", memory=level)
    difference = frames(pipeline).astype(int) - expected
    assert abs(difference).max() <= 1  # a rounding of 8 bits
    assert pipeline.memory == level


class Sometimes:
    """Calls of a network fail by want of memory, the numbered ones."""

    def __init__(self, module: nn.Module, fail: set[int], error: Exception) -> None:
        self.calls = 0
        self.fail, self.error = fail, error
        module.register_forward_pre_hook(self.count)

    def count(self, *_: Any) -> None:
        self.calls += 1
        if self.calls in self.fail:
            raise self.error


@pytest.mark.parametrize("network", ["keyframe_unet", "interpolation_unet"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_run_that_runs_out_goes_on_a_level_lower(
    tiny_checkpoint: Path,
    expected: NDArray[np.uint8],
    caplog: pytest.LogCaptureFixture,
    network: str,
    error: Exception,
) -> None:
    pipeline = KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32", memory="high")
    Sometimes(getattr(pipeline.engine, network), {1, 2, 3}, error)
    with caplog.at_level(logging.WARNING, "keyface_cli"):
        found = frames(pipeline)
    assert abs(found.astype(int) - expected).max() <= 1
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory, continuing with --memory balanced",
        "out of memory, continuing with --memory low",
        "out of memory, continuing with --memory low, one segment at a time",
    ]


def test_at_the_lowest_level_it_is_an_error(tiny_checkpoint: Path) -> None:
    pipeline = KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32", memory="low")
    Sometimes(pipeline.engine.keyframe_unet, {1, 2}, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(DeviceError, match="not enough memory on cpu"):
        frames(pipeline)


def test_other_errors_are_not_taken_for_want_of_memory(tiny_checkpoint: Path) -> None:
    pipeline = KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32", memory="high")
    Sometimes(pipeline.engine.keyframe_unet, {1}, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        frames(pipeline)
    assert pipeline.memory == "high"


class Places(nn.Module):
    """A network that notes where it is sent."""

    def __init__(self, log: list[tuple[str, str]], name: str) -> None:
        super().__init__()
        self.log, self.name = log, name
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)

    def to(self, device: Any) -> Any:
        self.log.append((self.name, str(device)))
        return self


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The networks that were given to diffusers' group offload."""
    import diffusers.hooks

    given: list[nn.Module] = []
    monkeypatch.setattr(
        diffusers.hooks, "apply_group_offloading", lambda network, **_: given.append(network)
    )
    return given


def test_networks_take_turns_on_the_device(streamed: list[nn.Module]) -> None:
    log: list[tuple[str, str]] = []
    names = ("keyframe_unet", "interpolation_unet", "vae")
    networks: dict[str, nn.Module] = {name: Places(log, name) for name in names}
    gpu = torch.device("meta")  # any that is not the CPU
    held = Residency(dict(networks), gpu, "balanced")
    weight = cast(Places, networks["keyframe_unet"]).weight
    with held.use("keyframe_unet"):
        assert log[:2] == [("interpolation_unet", "cpu"), ("vae", "cpu")]
        assert log[-1] == ("keyframe_unet", "meta")
        weight.data = torch.zeros(3)  # stands for the copy on the device
    with held.use("vae"):
        assert log[-1] == ("vae", "meta")
        assert torch.equal(weight, torch.ones(3))  # as it lay in main memory: not copied back
    log.clear()
    held.step_down()
    with held.use("keyframe_unet"):
        assert streamed == [networks["keyframe_unet"]]
        assert ("keyframe_unet", "meta") not in log
    log.clear()
    with held.use("vae"):
        # streamed networks look after themselves
        assert log == [("interpolation_unet", "cpu"), ("vae", "meta")]
    high = Residency(dict(networks), gpu, "high")
    log.clear()
    with high.use("vae"):
        assert log == []


def test_group_offload_takes_our_network_and_changes_nothing() -> None:
    """On a CPU its hooks move nothing, but they are all there and in the way of every layer."""
    from keyface_cli.models.conditioning import Conditioning

    torch.manual_seed(0)
    unet: Any = build("interpolation_unet", PRESETS["tiny"]).eval()
    given = Conditioning(torch.randn(1, 14, 32), torch.randn(1, 2, 4, 8, 8))
    x = torch.randn(1, 14, 4, 8, 8)
    with torch.inference_mode():
        before = unet(x, torch.zeros(1), given)
        held = Residency({"interpolation_unet": unet}, torch.device("cpu"), "low")
        held._bring("interpolation_unet")
        assert torch.equal(unet(x, torch.zeros(1), given), before)
    assert any(hasattr(module, "_diffusers_hook") for module in unet.modules())


UNET = 2 * 1_525_606_122
PUBLISHED = Demand(
    networks=3 * UNET + 4 * (97_000_000 + 3 * 94_000_000),
    stage=2 * UNET,
    clip=2 * 14 * 4 * 64 * 64 * ACTIVATIONS_PER_LATENT,
    clips=3,
)


@pytest.mark.parametrize(
    ("free_gb", "level", "chunk"),
    [(80, "high", 8), (24, "high", 8), (15, "high", 3), (12, "balanced", 5), (6, "low", 4)],
)
def test_level_and_chunk_follow_the_free_memory(free_gb: float, level: str, chunk: int) -> None:
    free = int(free_gb * 2**30)
    assert PUBLISHED.level_for(free) == level
    assert PUBLISHED.chunk_for(free, level) == chunk
    # what is there for so many segments suffices, and for one more it does not
    weights = {"high": PUBLISHED.networks, "balanced": PUBLISHED.stage, "low": 0}[level]
    taken = weights + chunk * PUBLISHED.clip + SPARE_BYTES
    assert taken <= free
    assert chunk == LARGEST_CHUNK or taken + PUBLISHED.clip > free


def test_where_memory_is_the_machine_s_own_nothing_is_chosen_by_it() -> None:
    assert PUBLISHED.level_for(None) == "high"
    assert PUBLISHED.chunk_for(None, "high") == 2


def test_a_level_that_does_not_fit_makes_one_segment_at_a_time() -> None:
    assert PUBLISHED.chunk_for(2**30, "high") == 1


def test_a_pipeline_takes_as_many_segments_as_fit(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    formats = dict.fromkeys(checkpoint.components, torch.float32)
    demand = demand_of(checkpoint, formats)
    free = demand.levels["high"] + 2 * demand.clip  # for the three clips of guidance, and two more
    monkeypatch.setattr(pipelines, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(pipelines, "available_memory", lambda _: free)
    load = Checkpoint.load
    monkeypatch.setattr(Checkpoint, "load", lambda *a, **more: load(*a, **more | {"device": "cpu"}))
    monkeypatch.setattr(pipelines, "require_memory", lambda *_: None)
    pipeline = KeyFacePipeline.load(tiny_checkpoint, dtype="float32")
    assert (pipeline.memory, pipeline.chunk) == ("high", 5)

    # its networks are on the CPU after all
    pipeline.engine.device = pipeline.engine.residency.device = torch.device("cpu")
    passes: list[int] = []
    unet = pipeline.engine.interpolation_unet
    unet.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    waveform = np.random.default_rng(0).normal(0, 0.1, 91 * 640).astype(np.float32)
    portrait, still = np.zeros((3, 64, 64), np.float32), np.zeros((91, 2), np.float32)
    given = portrait, waveform, still
    list(pipeline.stream(*given, dataclasses.replace(GUIDED, autoguidance=1)))
    assert passes == [5, 2]  # seven segments
    passes.clear()
    list(pipeline.stream(*given, dataclasses.replace(GUIDED, autoguidance=1, chunk=3)))
    assert passes == [3, 3, 1]
