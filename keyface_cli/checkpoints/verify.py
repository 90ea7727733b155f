"""Whether a checkpoint folder is whole: hashes, shapes, numbers, and what its networks answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyface_cli.checkpoints.checkpoint import Checkpoint, build, needed_components
from keyface_cli.config import NUM_FRAMES, SAMPLE_RATE, ModelConfig
from keyface_cli.device import memory_errors
from keyface_cli.errors import WeightsError
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.conditioning import Conditioning
from keyface_cli.models.portrait_decoder import PortraitDecoder
from keyface_cli.models.unet import VideoUNet

LATENT_SIZE = 16  # at most, of the clip that a UNet is tried on
BIG = 5e8  # parameters; networks beyond are tried in bfloat16, which takes half the memory
# PSNR of a picture after encoder and decoder, at least. The published model's encoder comes from
# another place than its decoder: one of another latent space leaves some 10 dB.
LEAST_PSNR_DB = {"keyface": 28.0}


def verify(
    checkpoint: Checkpoint, pictures: Mapping[str, NDArray[np.float32]] | None = None
) -> Iterator[str]:
    """Check a folder as far as it can be checked without knowing what is right.

    Args:
        checkpoint: the model.
        pictures: by name, (3, R, R) in [-1, 1], to be encoded and decoded; None leaves that out.

    Yields:
        One line for each thing that was found in order.

    Raises:
        WeightsError: a network is missing, a file differs from its recorded hash, a tensor is
            missing, superfluous or of another shape, a tensor or an output contains NaN or
            infinity, or the VAE's encoder does not fit its decoder.
        DeviceError: the memory does not suffice to try a network.
    """
    guided = checkpoint.config.sampling.autoguidance != 1
    for name in needed_components(checkpoint.config, guide=guided):
        if name not in checkpoint.components:
            raise WeightsError(f"the model has no {name}: {checkpoint.folder}")
    checkpoint.verify()
    yield f"{len(checkpoint.manifest['files'])} files have their recorded sha256"
    for name in checkpoint.components:
        big = checkpoint.count(name) > BIG
        with memory_errors(torch.device("cpu")), torch.inference_mode():
            module = checkpoint.load(name, dtype=torch.bfloat16 if big else torch.float32)
            _check_numbers(module, name)
            answers = _try(module, name, checkpoint.config)
        if not all(bool(answer.isfinite().all()) for answer in answers):
            raise WeightsError(f"{name} outputs NaN or infinity: {checkpoint.folder}")
        count = sum(p.numel() for p in build(name, checkpoint.config, empty=True).parameters())
        yield f"{name}: {count:,} parameters fit; they and the output are finite"
    if pictures:
        yield from check_codec(checkpoint, pictures)


def check_codec(
    checkpoint: Checkpoint, pictures: Mapping[str, NDArray[np.float32]]
) -> Iterator[str]:
    """Encode and decode pictures, which shows whether encoder and decoder belong together.

    Args:
        checkpoint: the model.
        pictures: by name, (3, R, R) in [-1, 1].

    Yields:
        One line with the PSNR of each.

    Raises:
        WeightsError: it is below `LEAST_PSNR_DB` in all of them.
    """
    config, found = checkpoint.config, []
    vae = cast(Any, checkpoint.load("vae", dtype=torch.float32))
    codec = LatentCodec(vae, config.latent_scale, config.vae_patch_size)
    for name, picture in pictures.items():
        with memory_errors(torch.device("cpu")):
            found.append(reconstruction_psnr(codec, picture))
        yield f"vae: {name} encoded and decoded: {found[-1]:.1f} dB"
    least = LEAST_PSNR_DB.get(config.preset)
    if least is not None and max(found) < least:
        raise WeightsError(
            f"the VAE's encoder does not fit its decoder: {checkpoint.folder}",
            f"of a picture {max(found):.1f} dB are left, not {least:.0f}; "
            "run hf auth login and keyface weights pull --force",
        )


@torch.inference_mode()
def reconstruction_psnr(codec: LatentCodec, picture: NDArray[np.float32]) -> float:
    """Return what is left of a picture (3, R, R) in [-1, 1] after encoding and decoding, in dB."""
    x = torch.from_numpy(picture)[None]
    error = (codec.decode(codec.encode(x)).clamp(-1, 1) - x).square().mean()
    return float(10 * torch.log10(4 / error))


def _check_numbers(module: nn.Module, component: str) -> None:
    for name, tensor in module.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise WeightsError(f"{component}: tensor {name} contains NaN or infinity")


def _try(module: nn.Module, component: str, config: ModelConfig) -> list[Tensor]:
    """Run a network once on a small input."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    dtype = next(module.parameters()).dtype
    if component in ("wavlm", "wav2vec2", "beats"):
        return [cast(Tensor, module(0.1 * noise(1, SAMPLE_RATE // 5)))]
    if component == "vae":
        vae = cast(Any, module)
        side = 2 ** len(config.vae["block_out_channels"])
        picture = noise(1, config.vae["in_channels"], side, side).to(dtype)
        latent = vae.encode(picture).mean
        return [latent, vae.decode(latent)]
    if component == "portrait_decoder":
        decoder = cast(PortraitDecoder, module)
        pictures, motion = noise(2, 3, 64, 64), noise(2, len(config.motion))
        return [decoder(pictures, decoder.prepare(pictures[:1], pictures[1:]), motion)]
    return [_try_unet(cast(VideoUNet, module), component, config, noise)]


def _try_unet(unet: VideoUNet, component: str, config: ModelConfig, noise: Any) -> Tensor:
    side, C = min(config.latent_size, LATENT_SIZE), config.latent_channels
    pictures = 1 if component == "keyframe_unet" else 2
    stage = "keyframes" if component == "keyframe_unet" else "interpolation"
    anchored = config.parameterization == "anchored" and pictures == 2
    given = Conditioning(
        audio=noise(1, NUM_FRAMES, config.unet(stage).context_dim),
        latents=noise(1, pictures, C, side, side),
        emotion=torch.zeros(1, NUM_FRAMES, 2),
        anchor=noise(1, NUM_FRAMES, C, side, side) if anchored else None,
    )
    changed = {}
    if unet.missing_frame is not None:  # which has the size of the model's own latents
        changed["missing_frame"] = unet.missing_frame[:, :side, :side]
    x = noise(1, NUM_FRAMES, C, side, side)
    return cast(Tensor, torch.func.functional_call(unet, changed, (x, torch.zeros(1), given)))
