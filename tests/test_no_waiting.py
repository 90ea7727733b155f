"""Inside an update nothing makes a GPU wait: no number is read from it, no array copied to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from keyface_cli.checkpoints.checkpoint import build
from keyface_cli.diffusion.sampler import ays_sigmas
from keyface_cli.models.unet import VideoUNet
from keyface_cli.presets import PRESETS
from keyface_cli.stages.interpolation import InterpolationStage
from keyface_cli.stages.keyframes import KeyframeStage

TINY = PRESETS["tiny"]


class NoWaiting(TorchDispatchMode):
    """Fails where an operation of the meta device, which stands for a GPU, meets the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, torch.Tensor)]
        if any(t.is_meta for t in tensors):
            self.seen += 1
            # a number on the CPU goes with the call
            assert all(t.is_meta or t.dim() == 0 for t in tensors), func
            assert made is None or all(
                t.is_meta for t in tree_leaves(made) if isinstance(t, torch.Tensor)
            ), func
        return made


def networks(parameterization: str) -> tuple[VideoUNet, VideoUNet]:
    config = dataclasses.replace(TINY, parameterization=parameterization)
    first, second = (
        build(name, config, empty=True).eval() for name in ("keyframe_unet", "interpolation_unet")
    )
    assert isinstance(first, VideoUNet)
    assert isinstance(second, VideoUNet)
    return first, second


def there(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize("parameterization", ["v", "anchored"])
@torch.inference_mode()
def test_both_stages_never_wait(parameterization: str) -> None:
    keyframe_unet, interpolation_unet = networks(parameterization)
    sigmas = ays_sigmas(3)
    first = KeyframeStage(
        keyframe_unet, 0.2, parameterization, sigmas, 5.0, 2.0, 1.5, guidance_interval=(0.5, 20.0)
    )
    second = InterpolationStage(
        interpolation_unet, interpolation_unet, 0.2, parameterization, sigmas, 2.0
    )
    noise, audio = there(1, 14, 4, 8, 8), there(1, 14, 32)
    with NoWaiting() as watch:
        second.sample(there(1, 2, 4, 8, 8), audio, noise)
    assert watch.seen > 100

    updates: list[int] = []
    watch = NoWaiting()
    emotion = torch.ones(1, 14, 2)

    def begin(update: int, x: torch.Tensor) -> None:
        updates.append(update)
        if update == 1:  # before the first, the emotion is brought to the device
            watch.__enter__()

    first.sample(there(1, 4, 8, 8), audio, emotion, noise, begin)
    watch.__exit__(None, None, None)
    assert updates == [1, 2, 3]
    assert watch.seen > 100


def test_what_waits_is_noticed() -> None:
    with NoWaiting(), pytest.raises(AssertionError):
        there(3).index_fill(0, torch.tensor([0, 2]).to("meta"), 1.0)
    with NoWaiting(), pytest.raises((AssertionError, RuntimeError)):
        there().item()
