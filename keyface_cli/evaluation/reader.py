"""Reads an avatar's mouth from pictures: a small network trained on rendered frames.

The renderer knows the pose of every frame that it draws. The reader learns the way back, so that
a generated frame can be compared with the pose that the truth had at that moment.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from keyface_cli.training.avatars import identity, rig
from keyface_cli.training.pictures import random_poses, render_uint8

CONTROLS = ("jaw", "width", "round", "press", "teeth", "smile")
CROP = (0.50, 0.94, 0.20, 0.80)  # top, bottom, left, right of the mouth's region, of the picture
CROP_SIZE = (56, 76)
WIDTHS = (32, 64, 96, 128)


class RigReader(nn.Module):
    """Pictures to mouth controls."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for out in WIDTHS:
            layers += [
                nn.Conv2d(width, out, 3, stride=2, padding=1),
                nn.BatchNorm2d(out),
                nn.GELU(),
            ]
            width = out
        self.features = nn.Sequential(*layers)
        h, w = (-(-side // 2 ** len(WIDTHS)) for side in CROP_SIZE)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(width * h * w, 128), nn.GELU(), nn.Linear(128, len(CONTROLS))
        )

    def forward(self, crops: Tensor) -> Tensor:
        """(B, 3, *CROP_SIZE) from `crop` -> (B, len(CONTROLS)) in the rig's units."""
        return cast(Tensor, self.head(self.features(crops)))

    @torch.inference_mode()
    def read(self, frames: Tensor, batch: int = 64) -> Tensor:
        """Read pictures: uint8 (N, H, W, 3) -> (N, len(CONTROLS))."""
        self.eval()
        return torch.cat([self(crop(part)) for part in torch.split(frames, batch)])


def crop(frames: Tensor) -> Tensor:
    """Cut the mouth's region out of uint8 (N, H, W, 3): (N, 3, *CROP_SIZE) in about [-1, 1]."""
    h, w = frames.shape[1:3]
    top, bottom, left, right = CROP
    part = frames[:, int(top * h) : int(bottom * h), int(left * w) : int(right * w)]
    x = part.permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.interpolate(x, CROP_SIZE, mode="bilinear", antialias=True)


def train_reader(updates: int = 1500, seed: int = 77, pictures: int = 4000) -> RigReader:
    """Train a reader on freshly rendered pictures, some of them blurred; minutes on a CPU.

    Args:
        updates: of 32 pictures each.
        seed: of identities, poses and weights.
        pictures: rendered once and used again.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    crops, targets = rendered_examples(pictures, generator)
    reader = RigReader().train()
    optimiser = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=updates)
    for _ in range(updates):
        picked = torch.randint(len(crops), (32,), generator=generator)
        x, y = crops[picked].float(), targets[picked].clone()
        if float(torch.rand((), generator=generator)) < 0.5:
            x = x.flip(-1)  # a face is symmetric, and so are these controls
        if float(torch.rand((), generator=generator)) < 0.5:
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        x = x + 0.06 * torch.randn(x.shape, generator=generator)
        loss = F.mse_loss(reader(x), y)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return reader.eval()


def rendered_examples(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Render pictures of new identities in random poses: crops (count, ...) and their controls."""
    crops, targets = [], []
    wanted = [rig.INDEX[name] for name in CONTROLS]
    for start in range(0, count, 64):
        n = min(64, count - start)
        people = identity.sample_identities(n, generator)
        poses = random_poses(n, generator)
        crops.append(crop(torch.from_numpy(render_uint8(people, poses, 256))).half())
        targets.append(poses[:, wanted])
    return torch.cat(crops), torch.cat(targets)


def validate(reader: RigReader, count: int = 512, seed: int = 991) -> dict[str, float]:
    """Return R^2 of each control on pictures of identities that training has not seen."""
    crops, targets = rendered_examples(count, torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        read = reader.eval()(crops.float())
    unexplained = ((read - targets) ** 2).sum(0) / ((targets - targets.mean(0)) ** 2).sum(0)
    return dict(zip(CONTROLS, (1 - unexplained).tolist(), strict=True))


def load_or_train(path: Path) -> RigReader:
    """Load a reader that was saved here before, or train one and save it."""
    reader = RigReader()
    if path.is_file():
        load_model(reader, path)
        return reader.eval()
    reader = train_reader()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(reader, str(path))
    return reader
