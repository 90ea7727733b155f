"""Reads an avatar's face from pictures: a small network trained on rendered frames.

The renderer knows the pose of every frame that it draws. The reader learns the way back, so that
a generated frame can be compared with the pose that the truth had at that moment. It sees the
portrait at rest beside each frame: how wide a mouth is only tells something about its pose when it
is known how wide that mouth is at rest.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from keyface_cli.avatars import identity, rig
from keyface_cli.avatars.pictures import random_poses, render_uint8
from keyface_cli.checkpoints.installed import home
from keyface_cli.errors import WeightsError

CONTROLS = rig.FACE
# what is cut out of a picture: top, bottom, left, right, and the size it is brought to
MOUTH_REGION, MOUTH_SIZE = (0.48, 0.98, 0.17, 0.83), (72, 96)
EYE_REGION, EYE_SIZE = (0.12, 0.56, 0.10, 0.90), (56, 104)
WIDTHS = (32, 64, 96, 128)
RESOLUTION = 256  # of the pictures that it is trained on
POSES_EACH = 4  # of every head that it is trained on
SHIFT = 4  # pixels that its crops move by at most while it is trained

Crops = tuple[Tensor, Tensor]  # of mouth and eyes, (B, 3, h, w) each


class RigReader(nn.Module):
    """Pictures to controls of the face."""

    def __init__(self) -> None:
        super().__init__()
        self.mouth, mouth_size = _tower(MOUTH_SIZE)
        self.eyes, eye_size = _tower(EYE_SIZE)
        self.head = nn.Sequential(
            nn.Linear(mouth_size + eye_size, 160), nn.GELU(), nn.Linear(160, len(CONTROLS))
        )

    def forward(self, frames: Crops, portraits: Crops) -> Tensor:
        """Crops of frames and of the portraits that they show -> (B, len(CONTROLS))."""
        seen = [
            tower(torch.cat(pair, 1))
            for tower, *pair in zip((self.mouth, self.eyes), frames, portraits, strict=True)
        ]
        read: Tensor = self.head(torch.cat(seen, 1))
        return read

    @torch.inference_mode()
    def read(self, frames: Tensor, portrait: Tensor, batch: int = 64) -> Tensor:
        """Read the pictures of one head.

        Args:
            frames: uint8 (N, H, W, 3).
            portrait: uint8 (H, W, 3), the head at rest.
            batch: pictures at once.

        Returns:
            (N, len(CONTROLS)) in the rig's units.
        """
        self.eval()
        rest = crop(portrait[None])
        parts = []
        for part in torch.split(frames, batch):
            beside = (rest[0].expand(len(part), -1, -1, -1), rest[1].expand(len(part), -1, -1, -1))
            parts.append(self(crop(part), beside))
        return torch.cat(parts)


def _tower(size: tuple[int, int]) -> tuple[nn.Sequential, int]:
    """Convolutions over a crop beside its portrait, and the number of values they end in."""
    layers: list[nn.Module] = []
    width = 6
    for out in WIDTHS:
        layers += [nn.Conv2d(width, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.GELU()]
        width = out
    h, w = (-(-side // 2 ** len(WIDTHS)) for side in size)
    return nn.Sequential(*layers, nn.Flatten()), width * h * w


def crop(frames: Tensor) -> Crops:
    """Cut mouth and eyes out of uint8 (N, H, W, 3): (N, 3, h, w) each, about [-1, 1]."""
    h, w = frames.shape[1:3]
    cut = []
    for (top, bottom, left, right), size in ((MOUTH_REGION, MOUTH_SIZE), (EYE_REGION, EYE_SIZE)):
        part = frames[:, int(top * h) : int(bottom * h), int(left * w) : int(right * w)]
        x = part.permute(0, 3, 1, 2).float() / 127.5 - 1
        cut.append(F.interpolate(x, size, mode="bilinear", antialias=True))
    return cut[0], cut[1]


def train_reader(updates: int = 4000, seed: int = 77, heads: int = 2000) -> RigReader:
    """Train a reader on freshly rendered pictures, see `varied`; twenty minutes of a CPU core.

    Args:
        updates: of 32 pictures each.
        seed: of identities, poses and weights.
        heads: rendered at rest and in `POSES_EACH` poses.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    frames, portraits, targets = rendered_examples(heads, generator)
    reader = RigReader().train()
    optimiser = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=updates)

    for _ in range(updates):
        picked = torch.randint(len(targets), (32,), generator=generator)
        head = picked // POSES_EACH
        pairs = [
            varied(whole[picked].float(), rest[head].float(), generator)
            for whole, rest in zip(frames, portraits, strict=True)
        ]
        read = reader(tuple(frame for frame, _ in pairs), tuple(rest for _, rest in pairs))
        loss = F.mse_loss(read, targets[picked])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return reader.eval()


def varied(frames: Tensor, portraits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make other heads of a few: what says nothing of a pose is changed, alike in both pictures.

    Colours are mixed anew and everything moves by up to 4 pixels. Half of the batches are mirrored,
    since a face is symmetric and so are these controls. The frames of half of them are blurred too,
    and noise is added to all pictures, for generated ones are softer and noisier than drawn ones.

    Args:
        frames: crops, (B, 3, h, w) in [-1, 1].
        portraits: the same crop of the same heads at rest.
        generator: of the changes.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(len(frames), *shape, generator=generator)

    shuffle = torch.rand(len(frames), 3, generator=generator).argsort(1)
    mix = (torch.eye(3) + 0.3 * normal(3, 3)).gather(1, shuffle[:, :, None].expand(-1, -1, 3))
    tint = 0.2 * normal(3, 1, 1)
    dx, dy = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator).tolist()
    mirrored, blurred = (torch.rand(2, generator=generator) < 0.5).tolist()
    h, w = frames.shape[-2:]

    def changed(x: Tensor) -> Tensor:
        x = torch.einsum("bij,bjhw->bihw", mix, x) + tint
        x = F.pad(x, (SHIFT,) * 4, mode="replicate")[..., dy : dy + h, dx : dx + w]
        return x.flip(-1) if mirrored else x

    frames, portraits = changed(frames), changed(portraits)
    if blurred:
        frames = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return frames + 0.06 * normal(3, h, w), portraits + 0.06 * normal(3, h, w)


def rendered_examples(heads: int, generator: torch.Generator) -> tuple[Crops, Crops, Tensor]:
    """Render new heads in random poses.

    Returns:
        Crops of `heads * POSES_EACH` pictures, crops of the `heads` portraits at rest, and the
        controls of the pictures (heads * POSES_EACH, len(CONTROLS)). Crops are float16.
    """
    wanted = [rig.INDEX[name] for name in CONTROLS]
    frames: list[list[Tensor]] = []
    portraits: list[list[Tensor]] = []
    targets = []
    for start in range(0, heads, 16):
        n = min(16, heads - start)
        people = identity.sample_identities(n, generator)
        poses = random_poses(n * POSES_EACH, generator)
        rest = torch.tensor([rig.REST]).expand(n, -1)
        repeated = identity.select(people, [i // POSES_EACH for i in range(n * POSES_EACH)])
        for kept, shown, posed in ((portraits, people, rest), (frames, repeated, poses)):
            pictures = torch.from_numpy(render_uint8(shown, posed, RESOLUTION))
            kept.append([part.half() for part in crop(pictures)])
        targets.append(rig.as_seen(poses)[:, wanted])
    in_poses, at_rest = (
        (torch.cat([mouth for mouth, _ in each]), torch.cat([eyes for _, eyes in each]))
        for each in (frames, portraits)
    )
    return in_poses, at_rest, torch.cat(targets)


def validate(reader: RigReader, heads: int = 128, seed: int = 991) -> dict[str, float]:
    """Return R^2 of each control on pictures of heads that its training has not seen."""
    frames, portraits, targets = rendered_examples(heads, torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        read = reader.eval()(
            tuple(part.float() for part in frames),
            tuple(part.float().repeat_interleave(POSES_EACH, 0) for part in portraits),
        )
    unexplained = ((read - targets) ** 2).sum(0) / ((targets - targets.mean(0)) ** 2).sum(0)
    return dict(zip(CONTROLS, (1 - unexplained).tolist(), strict=True))


def default_path() -> Path:
    """Return where the reader is kept when no place is named."""
    return home() / "readers" / "avatars.safetensors"


def load_or_train(path: Path) -> RigReader:
    """Load a reader that was saved here before, or train one and save it.

    Raises:
        WeightsError: the file is not a reader of this version.
    """
    reader = RigReader()
    if path.is_file():
        try:
            load_model(reader, path)
        except Exception as error:  # safetensors has no common error
            raise WeightsError(
                f"not a reader of this version: {path}",
                "name another file with --reader: one is trained and saved where none is",
            ) from error
        return reader.eval()
    reader = train_reader()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(reader, str(path))
    return reader
