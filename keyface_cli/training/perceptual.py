"""The perceptual distance of pictures: LPIPS, or the features of a network trained here.

LPIPS-VGG is the published loss (SPEC 12); its weights are the user's. Where there are none, as for
the bundled model, a small network that has learned to read the pose of drawn avatars stands in: two
pictures are near when it sees the same in them. The file tells which of the two it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from keyface_cli.avatars import rig
from keyface_cli.checkpoints.lpips import load_lpips
from keyface_cli.config import KEYFRAME_STEP
from keyface_cli.errors import WeightsError
from keyface_cli.training import run
from keyface_cli.training.loop import Report, Trainer
from keyface_cli.training.losses import PictureDistance
from keyface_cli.training.options import TrainOptions, Value

FILE = "features.safetensors"
FORMAT = "keyface pose features 1"
WIDTHS = (32, 64, 96, 128, 160)
NORM_GROUPS = 8
RECIPE: dict[str, Value] = {
    "updates": 3000,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "warmup": 100,
    "ema_decay": 0.99,
}


class PoseFeatures(nn.Module):
    """Reads the rig's controls from pictures of drawn avatars.

    Args:
        controls: how many; those of `avatars.rig`.
    """

    def __init__(self, controls: int = len(rig.NAMES)) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        width = 3
        for out in WIDTHS:
            self.levels.append(
                nn.Sequential(
                    nn.Conv2d(width, out, 3, stride=2, padding=1),
                    nn.GroupNorm(NORM_GROUPS, out),
                    nn.SiLU(),
                    nn.Conv2d(out, out, 3, padding=1),
                    nn.GroupNorm(NORM_GROUPS, out),
                    nn.SiLU(),
                )
            )
            width = out
        self.head = nn.Linear(16 * width, controls)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> the output of each level, (B, C, H / 2^n, W / 2^n)."""
        found = []
        x = pictures
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, controls) in the rig's units."""
        pooled = F.adaptive_avg_pool2d(self.features(pictures)[-1], 4)
        return cast(Tensor, self.head(pooled.flatten(1)))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare pictures (B, 3, H, W) in [-1, 1], as LPIPS does with weights of one: (B,).

        At each place of each level the features are scaled to length 1; the distance is the mean
        over places of their squared difference, summed over levels.
        """
        pairs = zip(self.features(a), self.features(b), strict=True)
        parts = [(F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1) for x, y in pairs]
        return torch.stack([part.mean((1, 2)) for part in parts]).sum(0)


def load_distance(path: Path) -> PictureDistance:
    """Read the network that compares: pose features, or VGG16 of ImageNet for LPIPS.

    It moves to the device of the first pictures that it compares.

    Raises:
        WeightsError: the file is missing, damaged or neither of them.
    """
    if not path.is_file():
        raise WeightsError(f"no such file: {path}", "--perceptual names the weights of VGG16")
    network: Any = _load_pose_features(path) or load_lpips("vgg", path)
    compare = network.distance if isinstance(network, PoseFeatures) else network

    def distance(a: Tensor, b: Tensor) -> Tensor:
        network.to(a.device)
        return cast(Tensor, compare(a, b))

    return distance


def _load_pose_features(path: Path) -> PoseFeatures | None:
    try:
        tensors = run.read_helper(path, FORMAT)
        if tensors is None:
            return None
        network = PoseFeatures(len(tensors["head.bias"]))
        network.load_state_dict(tensors)
    except (SafetensorError, OSError):
        return None
    except (RuntimeError, KeyError) as error:
        raise WeightsError(
            f"damaged file: {path}", "make it anew: keyface train features"
        ) from error
    return network.eval().requires_grad_(False)


class FeatureTraining:
    """Draws pictures of drawn avatars with their rigs.

    Args:
        shards: folders that `scenes.render_frames` has finished.
        batch_size: pictures in a batch.
    """

    def __init__(self, shards: list[Path], batch_size: int) -> None:
        self.batch_size = batch_size
        self.pictures = [np.load(s / "keyframes.npy", mmap_mode="r") for s in shards]
        self.starts = [np.load(s / "keyframe_starts.npy") for s in shards]
        self.rigs = [np.load(s / "rigs.npy", mmap_mode="r") for s in shards]

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw pictures uint8 (B, H, W, 3) and their controls (B, R)."""

        def random(stop: int) -> int:
            return int(torch.randint(stop, (), generator=generator))

        pictures, rigs = [], []
        for _ in range(self.batch_size):
            shard = random(len(self.pictures))
            scene, frame = (random(stop) for stop in self.pictures[shard].shape[:2])
            pictures.append(np.array(self.pictures[shard][scene, frame]))
            time = int(self.starts[shard][scene]) + KEYFRAME_STEP * frame
            rigs.append(self.rigs[shard][scene, time].astype(np.float32))
        return torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(rigs))

    def losses(self, trainer: Trainer, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Squared error of the controls; half of the pictures get noise."""
        pictures, rigs = batch
        x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        strength = 0.1 * torch.rand(len(x), 1, 1, 1, generator=trainer.generator, device=x.device)
        noise = torch.randn(x.shape, generator=trainer.generator, device=x.device)
        with trainer.compute.autocast():
            read = trainer.model(x + strength * noise).float()
        error = (read - rigs).square().mean()
        return {"loss": error, "explained": 1 - error / rigs.var(0).mean().clamp(min=1e-8)}


def train_features(
    shards: list[Path],
    folder: Path,
    options: TrainOptions,
    *,
    resume: bool = False,
    force: bool = False,
    report: Report | None = None,
) -> int:
    """Train a `PoseFeatures` into `folder/features.safetensors`; returns the updates done."""
    torch.manual_seed(options.seed)
    training = FeatureTraining(shards, options.batch_size)
    trainer = Trainer("features", PoseFeatures(), folder, options, resume=resume, force=force)

    def save(average: nn.Module, update: int) -> None:
        run.save_helper(folder / FILE, average, FORMAT, update)

    return trainer.fit(training.draw, training.losses, save, report=report)
