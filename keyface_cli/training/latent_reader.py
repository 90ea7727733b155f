"""A network that reads faces from latents, and the loss that compares what it reads.

The squared error of latents counts every difference alike, and lips that are a little wider differ
little. The renderer of drawn avatars knows the pose of every frame, so a small network can learn to
read the pose from latents, and a UNet then be asked that the same be read from its latents as from
the true ones. No picture is decoded for it.

The reader sees two latents of one head and tells by how much the pose differs. What `evaluate
avatars` measures with is another network, which reads decoded pictures of other heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack, cast

import numpy as np
import torch
from torch import Tensor, nn

from keyface_cli.avatars import rig
from keyface_cli.checkpoints.tensorfiles import load_network, save_network
from keyface_cli.config import ModelConfig
from keyface_cli.errors import WeightsError
from keyface_cli.training.clips import KINDS
from keyface_cli.training.loop import Start, Trainer
from keyface_cli.training.losses import noise_weight
from keyface_cli.training.options import TrainOptions, Value

FILE = "reader.safetensors"
FORMAT = "keyface latent reader 1"
NORM_GROUPS = 8
POOLED = 4  # cells on a side that the last features are brought to
PAIRS_EACH = 8  # pairs drawn from one scene
NOISE = 0.08  # greatest deviation of the noise on what is read
RECIPE: dict[str, Value] = {
    "updates": 2500,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "weight_decay": 0.02,
    "warmup": 100,
    "ema_decay": 0.99,
}


class LatentReader(nn.Module):
    """Reads how the poses of two frames differ.

    Args:
        channels: of the latents.
    """

    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_block(2 * channels, 64),
            *_block(64, 128, stride=2),
            *_block(128, 128),
            *_block(128, 192, stride=2),
            nn.AdaptiveAvgPool2d(POOLED),
            nn.Flatten(),
            nn.Linear(192 * POOLED**2, 160),
            nn.GELU(),
            nn.Linear(160, len(rig.FACE)),
        )
        self.register_buffer("scale", torch.ones(len(rig.FACE)))

    def forward(self, latents: Tensor, reference: Tensor) -> Tensor:
        """Read a frame against another one of the same head.

        Args:
            latents: of frames, (B, C, h, w), scaled.
            reference: of as many other frames.

        Returns:
            (B, len(rig.FACE)): the differences of the controls, in units of `scale`, the standard
            deviations of such differences in the data.
        """
        return cast(Tensor, self.body(torch.cat([latents, reference], 1)))


def _block(channels: int, out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, out, 3, stride=stride, padding=1)
    return convolution, nn.GroupNorm(NORM_GROUPS, out), nn.GELU()


def reading_loss(
    reader: LatentReader, denoised: Tensor, target: Tensor, sigma: Tensor, weight_limit: float
) -> Tensor:
    """Return the squared difference of what is read from denoised and from true latents, 0-d.

    Frames are read against the first true one of their clip; each clip is weighted by its noise
    level as in `latent_loss`.

    Args:
        reader: a trained one, on the latents' device.
        denoised: D, (B, T, C, h, w).
        target: clean latents of the same shape.
        sigma: (B,).
        weight_limit: upper bound of the noise weight.
    """
    reference = target[:, :1].expand_as(target)[:, 1:].flatten(0, 1)
    read = reader(denoised[:, 1:].flatten(0, 1), reference)
    with torch.no_grad():
        wanted = reader(target[:, 1:].flatten(0, 1), reference)
    error = (read.float() - wanted.float()).square().view(len(target), -1).mean(1)
    loss: Tensor = (noise_weight(sigma, weight_limit) * error).mean()
    return loss


class ReaderTraining:
    """Draws pairs of latents of drawn avatars, with the difference of their controls.

    Half of the frames are the mean of two frames of one head, and so are their controls: where a
    UNet cannot know a pose, its latents are means too.

    Args:
        shards: folders that `clips.encode_shard` has finished.
        batch_size: scenes in a batch, of each of which `PAIRS_EACH` pairs are drawn.
    """

    def __init__(self, shards: list[Path], batch_size: int) -> None:
        self.batch_size = batch_size
        wanted = [rig.INDEX[name] for name in rig.FACE]
        self.latents, self.controls = [], []
        for shard in shards:
            rigs = np.load(shard / "rigs.npy")[..., wanted].astype(np.float32)
            for kind, (step, starts) in KINDS.items():
                latents = np.load(shard / f"latents_{kind}.npy", mmap_mode="r")
                times = np.load(shard / f"{starts}.npy")[:, None] + step * np.arange(
                    latents.shape[2]
                )
                self.latents.append(latents)
                self.controls.append(np.take_along_axis(rigs, times[..., None], 1))
        differences = [part - part[:, :1] for part in self.controls]
        spread = np.concatenate([part.reshape(-1, len(wanted)) for part in differences]).std(0)
        self.scale = torch.from_numpy(spread).clamp(min=1e-3)
        self.channels = int(self.latents[0].shape[3])  # of the latents

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw latents (B, C, h, w), as many to read them against, and the differences (B, R)."""

        def random(stop: int) -> int:
            return int(torch.randint(stop, (), generator=generator))

        latents, references, differences = [], [], []
        for _ in range(self.batch_size):
            part = random(len(self.latents))
            scene = random(len(self.latents[part]))
            shown = self.latents[part][scene, random(2)]  # as it is or mirrored
            frames = torch.from_numpy(np.array(shown)).float()
            controls = torch.from_numpy(self.controls[part][scene])
            one, other, reference = torch.randint(len(frames), (3, PAIRS_EACH), generator=generator)
            share, mixed = torch.rand(2, PAIRS_EACH, 1, generator=generator)
            share = torch.where(mixed < 0.5, share, 1.0)
            mean = torch.lerp(controls[other], controls[one], share)
            latents.append(torch.lerp(frames[other], frames[one], share[..., None, None]))
            references.append(frames[reference])
            differences.append(mean - controls[reference])
        return torch.cat(latents), torch.cat(references), torch.cat(differences)

    def losses(self, trainer: Trainer, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """Squared error of the differences, in units of their spread; a little noise is added."""
        latents, reference, differences = batch
        generator = trainer.generator
        strength = torch.rand(len(latents), 1, 1, 1, generator=generator, device=latents.device)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        wanted = differences / self.scale.to(differences.device)
        with trainer.compute.autocast():
            read = trainer.model(latents + NOISE * strength * noise, reference).float()
        error = (read - wanted).square().mean(0)
        explained = 1 - error / wanted.var(0).clamp(min=1e-8)
        return {"loss": error.mean()} | dict(zip(rig.FACE, explained, strict=True))


def train_reader(
    shards: list[Path], folder: Path, options: TrainOptions, **start: Unpack[Start]
) -> int:
    """Train a `LatentReader` into `folder/reader.safetensors`; returns the updates done."""
    torch.manual_seed(options.seed)
    training = ReaderTraining(shards, options.batch_size)
    reader = LatentReader(training.channels)
    reader.scale.copy_(training.scale)
    trainer = Trainer("reader", reader, folder, options, **start)

    def save(average: nn.Module, update: int) -> None:
        save_network(folder / FILE, average, {"format": FORMAT, "updates": str(update)})

    return trainer.fit(training.draw, training.losses, save)


def load_reader(path: Path, config: ModelConfig) -> LatentReader:
    """Read a trained reader of a model's latents; it is frozen.

    Raises:
        WeightsError: the file is missing, damaged, no reader or one of other latents.
    """
    hint = "make it with keyface train reader, or leave the term out with --set reading=0"
    if not path.is_file():
        raise WeightsError(f"no reader of latents: {path}", hint)
    reader = LatentReader(config.latent_channels)
    try:
        load_network(path, reader, FORMAT)
    except WeightsError as error:
        raise WeightsError(f"no reader of these latents: {error}", hint) from error
    return reader.eval().requires_grad_(False)
