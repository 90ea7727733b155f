"""Training of the VAE: pictures through a small VAE and back.

A VAE that starts from noise spends a short training on finding any code at all. This one starts as
the principal components of 16 x 16 patches, a linear code that takes seconds to compute and holds
a picture at some 30 dB already; training then adds what is not linear.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.config import ModelConfig
from keyface_cli.models.blocks import Attention, ResBlock
from keyface_cli.models.vae import VideoVAE
from keyface_cli.training import run
from keyface_cli.training.loop import Start, Trainer, saver
from keyface_cli.training.options import TrainOptions

FACE_ROWS, FACE_COLUMNS = (0.28, 0.85), (0.2, 0.8)  # where eyes and mouth are, of the picture
FACE_WEIGHT = 3.0
KL_WEIGHT = 1e-6
EDGE_WEIGHT = 1.0
MUON_RATE = 0.005  # of the inner matrices
NORM_OFFSET = 64.0  # K, see `prime`
FREE_CHANNELS = 0.3  # scale of the channels that training may use, at the start
LOG_VARIANCE = -6.0  # of the posterior, at the start
# Sampled latents are a little off those of any picture. The decoder learns to forgive that: it
# sees latents with noise of up to this standard deviation, more on some pictures than on others.
LATENT_NOISE = 0.25


def principal_components(
    pictures: np.ndarray, channels: int, patch: int, emphasis: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the linear code of square patches that keeps most of a picture's variance.

    Args:
        pictures: uint8 (n, H, W, 3).
        channels: components to keep, C.
        patch: side of a patch in pixels, P.
        emphasis: weight of each pixel, (1, 1, H, W).

    Returns:
        Convolution weights (C, 3, P, P) and a bias (C,) for pictures in [-1, 1], stride P. The
        components' scale is the square root of what it is in the pictures, so that the faint ones
        count too, and their mean variance is 1.
    """
    total = torch.zeros(3 * patch * patch, dtype=torch.float64)
    outer = torch.zeros(len(total), len(total), dtype=torch.float64)
    weights = F.avg_pool2d(emphasis, patch).flatten().double()[:, None]  # of the patches
    count = 0.0
    for picture in pictures:
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        rows = F.unfold(x, patch, stride=patch)[0].T.double()  # (patches, 3 P P)
        total += (weights * rows).sum(0)
        outer += rows.T @ (weights * rows)
        count += float(weights.sum())
    mean = total / count
    values, vectors = torch.linalg.eigh(outer / count - torch.outer(mean, mean))
    values, vectors = values[-channels:].flip(0), vectors[:, -channels:].flip(1)
    scale = values**-0.25  # std s becomes sqrt(s)
    scale = scale / ((values * scale**2).mean().sqrt())
    code = (vectors * scale).T
    bias = -(code @ mean)
    return code.float().reshape(channels, 3, patch, patch), bias.float()


class VAETraining:
    """The loss of the VAE: reconstruction, edges and a faint KL term.

    Args:
        config: the model whose `vae`, `vae_patch_size` and `latent_size` are used.
        pools: `.npy` files of uint8 (n, H, W, 3) pictures.
        options: batch size and precision.
    """

    def __init__(self, config: ModelConfig, pools: list[Path], options: TrainOptions) -> None:
        self.config = config
        self.options = options
        self.pools = [np.load(path, mmap_mode="r") for path in pools]
        patch = config.resolution // config.latent_size
        sample = np.concatenate([pool[: 500 // len(self.pools)] for pool in self.pools])
        h = w = config.resolution
        self.emphasis = torch.ones(1, 1, h, w)
        rows = slice(int(FACE_ROWS[0] * h), int(FACE_ROWS[1] * h))
        columns = slice(int(FACE_COLUMNS[0] * w), int(FACE_COLUMNS[1] * w))
        self.emphasis[:, :, rows, columns] = FACE_WEIGHT
        self.emphasis /= self.emphasis.mean()
        self.weights, self.bias = principal_components(
            sample, config.latent_channels, patch, self.emphasis
        )

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw pictures with random flips: (B, 3, H, W) uint8."""
        pictures = []
        for _ in range(self.options.batch_size):
            pool = self.pools[int(torch.randint(len(self.pools), (), generator=generator))]
            index = int(torch.randint(len(pool), (), generator=generator))
            picture = torch.from_numpy(np.array(pool[index])).permute(2, 0, 1)
            flip = float(torch.rand((), generator=generator)) < 0.5
            pictures.append(picture.flip(-1) if flip else picture)
        return torch.stack(pictures)

    def losses(self, trainer: Trainer, pictures: Tensor) -> dict[str, Tensor]:
        """Score the network on pictures (B, 3, H, W) uint8."""
        x = pictures.float() / 127.5 - 1
        emphasis = self.emphasis.to(x.device)
        patch, generator = self.config.vae_patch_size, trainer.generator
        vae = cast(Any, trainer.model)
        with trainer.compute.autocast():
            packed = F.pixel_unshuffle(x, patch)
            posterior = vae.encode(packed)
            latents = posterior.sample(generator)
            drawn = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device)
            strength = LATENT_NOISE * drawn
            noise = torch.randn(latents.shape, generator=generator, device=x.device)
            decoded = vae.decode(latents + strength * noise)
        y = F.pixel_shuffle(decoded.float(), patch)
        error = ((y - x).abs() * emphasis).mean()
        edges = sum(
            ((y.diff(dim=d) - x.diff(dim=d)).abs() * emphasis.narrow(d, 1, x.shape[d] - 1))
            .mean() for d in (-1, -2)
        )  # fmt: skip
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
        loss = error + EDGE_WEIGHT * edges + KL_WEIGHT * kl
        mse = F.mse_loss(y.clamp(-1, 1), x)
        psnr = -10 * torch.log10(mse / 4)
        return {"loss": loss, "l1": error, "edges": edges, "kl": kl, "psnr": psnr}


@torch.no_grad()
def prime(vae: VideoVAE, weights: Tensor, bias: Tensor) -> None:
    """Make a new one-level VAE start as the linear code of `principal_components`, exactly.

    Every residual branch begins at zero, so that a picture reaches the end of the encoder and of
    the decoder unchanged. Both end in a group norm and a SiLU, which would bend it. Each component
    z therefore travels as a pair of channels (z, -z), in a norm group with two constants (K, -K):
    the group's mean is about 0 and its variance nearly K^2, so the norm passes z on; and
    SiLU(z) - SiLU(-z) = z undoes the activation. The remaining channels begin small and random,
    for training to use.

    Args:
        vae: the network, changed in place; its patches are those of `weights`.
        weights: (C, 3, P, P) and
        bias: (C,) of the code.
    """
    encoder, decoder, quant_conv = (cast(Any, part) for part in vae.children())
    for module in vae.modules():
        if isinstance(module, ResBlock | Attention):
            last = module.conv2 if isinstance(module, ResBlock) else module.to_out[0]
            nn.init.zeros_(cast(Any, last).weight)
            nn.init.zeros_(cast(Any, last).bias)
    count, offset = len(weights), NORM_OFFSET
    group = encoder.conv_norm_out.num_channels // encoder.conv_norm_out.num_groups
    plus = group * torch.arange(count)  # a norm group for each component
    minus = plus + 1
    code = weights.flatten(1)  # (C, 3 P P), in the order of pixel_unshuffle
    pixels = torch.linalg.pinv(code)  # back: (3 P P, C)

    for conv, rows, shift, free in (
        (encoder.conv_in, code, bias, 0.0),
        (decoder.conv_in, torch.eye(count), torch.zeros(count), FREE_CHANNELS),
    ):
        conv.weight *= free
        conv.bias *= free
        for channels, sign in ((plus, 1.0), (minus, -1.0)):
            conv.weight[channels] = 0.0
            conv.weight[channels, :, 1, 1] = sign * rows
            conv.bias[channels] = sign * shift
        conv.weight[plus + 2], conv.weight[plus + 3] = 0.0, 0.0
        conv.bias[plus + 2], conv.bias[plus + 3] = offset, -offset
    for norm in (encoder.conv_norm_out, decoder.conv_norm_out):
        norm.weight.fill_(offset * math.sqrt(2 / group))
        norm.weight[plus + 2] = norm.weight[plus + 3] = 0.0  # the constants have done their work
    for conv, columns in (
        (encoder.conv_out, torch.eye(2 * count, count)),
        (decoder.conv_out, pixels),
    ):
        conv.weight.zero_()
        conv.weight[:, plus, 1, 1] = columns
        conv.weight[:, minus, 1, 1] = -columns
        conv.bias.zero_()
    decoder.conv_out.bias.copy_(-(pixels @ bias))
    decoder.time_conv_out.weight.zero_()
    decoder.time_conv_out.weight[:, :, 1, 0, 0] = torch.eye(len(pixels))
    decoder.time_conv_out.bias.zero_()
    quant_conv.weight.zero_()
    quant_conv.weight[:count, :count, 0, 0] = torch.eye(count)
    quant_conv.bias.zero_()
    quant_conv.bias[count:] = LOG_VARIANCE


def train_vae(
    config: ModelConfig,
    pools: list[Path],
    folder: Path,
    options: TrainOptions,
    **start: Unpack[Start],
) -> int:
    """Train the VAE of `config` into `folder/vae`; returns the updates done in all.

    A VAE of one level starts as a linear code (see `prime`), which it keeps: only the decoder
    learns, so that latents made early in the training remain valid. A deeper one starts at random
    and is trained whole.
    """
    run.check(folder, config)
    torch.manual_seed(options.seed)
    vae = VideoVAE(**config.vae)
    training = VAETraining(config, pools, options)
    if config.vae_patch_size * config.latent_size == config.resolution:  # it has one level
        prime(vae, training.weights, training.bias)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    vae.decoder.time_conv_out.requires_grad_(False)  # frames are decoded one at a time
    trainer = Trainer("vae", vae, folder, options, muon_rate=MUON_RATE, **start)
    return trainer.fit(training.draw, training.losses, saver("vae", config, folder, options))
