"""What a video costs: passes and FLOPs of the networks, counted; seconds and memory, measured."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from keyface_cli.checkpoints.checkpoint import Checkpoint, build, encoder_names, needed_components
from keyface_cli.config import FPS, NUM_FRAMES, SAMPLES_PER_FRAME, ModelConfig, SamplingConfig
from keyface_cli.diffusion.guidance import keyframe_guidance
from keyface_cli.diffusion.sampler import sigmas_for
from keyface_cli.jobs.runner import ComputeOptions, Runner
from keyface_cli.models.conditioning import Conditioning
from keyface_cli.models.portrait_decoder import SQUARE, Portrait, PortraitDecoder
from keyface_cli.models.speech import CORE_FRAMES, WINDOW_FRAMES
from keyface_cli.models.unet import VideoUNet
from keyface_cli.options import GenerationOptions
from keyface_cli.stages.timeline import Timeline

WEIGHT_STD = 0.02  # of weights that stand for those of a model which is not installed


@dataclass(frozen=True)
class Cost:
    """What one network does for a video.

    Args:
        passes: of clips of 14 frames (UNets), of pictures (VAE and portrait decoder) or of windows
            of sound (encoders).
        tflops: of all of them, in 10^12; a multiplication and an addition count as two.
    """

    passes: int
    tflops: float


def count(config: ModelConfig, sampling: SamplingConfig, seconds: float) -> dict[str, Cost]:
    """Count what each network does for a video, without weights and without computing.

    A guide network is counted of models that need one; see `needed_components`.

    Args:
        config: the model.
        sampling: steps and scales.
        seconds: of the video.
    """
    N = max(1, round(seconds * FPS))
    plan = Timeline(N)
    clips, segments = list(plan.clips()), list(plan.segments())
    levels = sigmas_for(sampling.schedule, sampling.steps, sampling.sigma_min)[:-1].tolist()
    low, high = sampling.guidance_interval or (0, math.inf)
    guided = sum(low <= level <= high for level in levels)
    unguided = len(levels) - guided
    own_guide = "interpolation_guide" in needed_components(config, guide=True)
    window, windows = (N, 1) if N <= WINDOW_FRAMES else (WINDOW_FRAMES, -(-N // CORE_FRAMES))
    decoded = sum(min(NUM_FRAMES, N - segment.first_frame) for segment in segments)
    passes = {
        "keyframe_unet": len(clips) * (guided * _branches(sampling) + unguided),
        "interpolation_unet": len(segments) * (guided * (sampling.autoguidance != 0) + unguided),
        "interpolation_guide": len(segments) * guided * (sampling.autoguidance != 1) * own_guide,
        "vae": decoded,
        "portrait_decoder": decoded if config.portrait_decoder else 0,
        **dict.fromkeys(encoder_names(config), windows),
    }
    return {
        name: Cost(n, n * _flops(name, config, window) / 1e12) for name, n in passes.items() if n
    }


def _branches(sampling: SamplingConfig) -> int:
    """How often the keyframe network is evaluated in an update."""
    asked: list[int] = []

    def evaluate(x: Any, sigma: Any, branches: Any) -> Any:
        asked.append(len(branches))
        return [x] * len(branches)

    guided = keyframe_guidance(
        evaluate,
        audio=sampling.audio_guidance,
        identity=sampling.identity_guidance,
        emotion=sampling.emotion_guidance,
    )
    guided(torch.zeros(()), torch.ones(()))
    return asked[0]


@torch.inference_mode()
def _flops(name: str, config: ModelConfig, frames: int) -> int:
    """FLOPs of one pass; `frames` are those of a window of sound."""
    network = build(name, config, empty=True).eval()
    C, size = config.latent_channels, config.latent_size
    with FlopCounterMode(display=False) as counter:
        if name == "vae":
            cast(Any, network).decode(_shape(1, C, size, size))
        elif name == "portrait_decoder":
            _decode_with_portrait(cast(PortraitDecoder, network), config)
        elif name in encoder_names(config):
            network(_shape(1, frames * SAMPLES_PER_FRAME))
        else:
            unet = cast(VideoUNet, network)
            unet(_shape(1, NUM_FRAMES, C, size, size), _shape(1), _given(unet, config))
    return int(counter.get_total_flops())


def _decode_with_portrait(network: PortraitDecoder, config: ModelConfig) -> None:
    R = config.resolution
    picture, motion = _shape(1, 3, R, R), _shape(1, len(config.motion))
    features = _shape(1, network.frame_in.out_channels, R // SQUARE, R // SQUARE)
    network(picture, Portrait(picture, picture, features, _shape(1, 2), picture), motion)


def _given(unet: VideoUNet, config: ModelConfig) -> Conditioning:
    C, size = config.latent_channels, config.latent_size
    between = unet.missing_frame is not None
    anchored = between and config.parameterization == "anchored"
    return Conditioning(
        audio=_shape(1, NUM_FRAMES, unet.audio_projection.out_features),
        latents=_shape(1, 2 if between else 1, C, size, size),
        emotion=_shape(1, NUM_FRAMES, 2),
        anchor=_shape(1, NUM_FRAMES, C, size, size) if anchored else None,
    )


def _shape(*sizes: int) -> torch.Tensor:
    # not by torch.device("meta"), under which constants that networks keep would be made there too
    return torch.empty(sizes, device="meta")


class Unfetched(Checkpoint):
    """A model that is not installed: its networks, with random weights. For time, not pictures."""

    @classmethod
    def of(cls, config: ModelConfig) -> Unfetched:
        """Return the model of a configuration."""
        return cls(Path(f"{config.preset}, random weights"), config, {"files": {}})

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the networks."""
        return needed_components(self.config, guide=True)

    def count(self, component: str) -> int:
        """Return how many numbers a network holds."""
        return sum(p.numel() for p in build(component, self.config, empty=True).parameters())

    def load(
        self,
        component: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """Build a network with weights that are small and random."""
        network = build(component, self.config, empty=True).to(dtype).to_empty(device=device)
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                # norms scale by one, so that no number runs away
                plain = tensor.dim() == 1 and name.endswith("weight")
                tensor.fill_(1.0) if plain else tensor.normal_(std=WEIGHT_STD)
        return network.eval().requires_grad_(False)


def measure(
    checkpoint: Checkpoint, compute: ComputeOptions, options: GenerationOptions, seconds: float
) -> dict[str, Any]:
    """Make a video of noise and throw it away.

    Args:
        checkpoint: the model.
        compute: where and how to compute.
        options: the choices of the run.
        seconds: of the video.

    Returns:
        "load_s"; "stages", seconds per second of video of each; "total", their sum; "memory", the
        level in the end; "chunk"; "peak_gb" of the process, and on a GPU "gpu_peak_gb"; "device",
        "dtype".

    Raises:
        KeyFaceError: of any kind that `KeyFacePipeline` raises.
    """
    pipeline = Runner(checkpoint, compute).load()
    cuda = pipeline.device.type == "cuda"
    N, R = max(1, round(seconds * FPS)), pipeline.config.resolution
    draw = np.random.default_rng(0)
    sound = draw.normal(0, 0.1, N * SAMPLES_PER_FRAME).astype(np.float32)
    portrait = draw.uniform(-1, 1, (3, R, R)).astype(np.float32)
    still = np.zeros((N, 2), np.float32)

    def make(frames: int) -> None:
        part = sound[: frames * SAMPLES_PER_FRAME]
        for _ in pipeline.stream(portrait, part, still[:frames], options):
            pass

    if cuda:  # the first pass chooses kernels
        make(1)
        torch.cuda.reset_peak_memory_stats(pipeline.device)
    started = time.perf_counter()
    make(N)
    total = time.perf_counter() - started
    timings = dict(pipeline.timings)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    report = {
        "load_s": timings.pop("load"),
        "stages": {stage: spent * FPS / N for stage, spent in timings.items()},
        "total": total * FPS / N,
        "memory": pipeline.memory,
        "chunk": options.chunk or pipeline.chunk,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9,
        "device": str(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
    }
    if cuda:
        report["gpu_peak_gb"] = torch.cuda.max_memory_allocated(pipeline.device) / 1e9
    return report


def make(
    checkpoint: Checkpoint,
    compute: ComputeOptions,
    options: GenerationOptions,
    portrait: Path,
    audio: Path,
    presets: Sequence[str],
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Make the same video with several presets, of the same noise.

    Args:
        checkpoint: the model.
        compute: where and how to compute.
        options: the choices of each run besides its preset.
        portrait: a picture.
        audio: a recording.
        presets: which.

    Yields:
        Each preset and its frames, RGB (N, R, R, 3).

    Raises:
        KeyFaceError: of any kind that `KeyFacePipeline` raises.
    """
    pipeline = Runner(checkpoint, compute).load()
    for preset in presets:
        chosen = vars(replace(options, preset=preset))
        yield preset, np.concatenate(list(pipeline(portrait, audio, **chosen)))
