"""Reads a head's pose from pictures: a small network trained on heads of both kinds.

Who draws a head knows the pose of every frame. The reader learns the way back, so that a generated
frame can be compared with the pose that the truth had at that moment. It sees the portrait at rest
beside each frame: how wide a mouth is, or how open an eye, only tells something about the pose when
it is known how it is at rest.
"""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.avatars import rig
from keyface_cli.avatars.heads import draw_head
from keyface_cli.avatars.photographs.casting import Cast
from keyface_cli.avatars.pictures import random_poses
from keyface_cli.checkpoints.installed import home
from keyface_cli.checkpoints.tensorfiles import load_network, save_network
from keyface_cli.errors import WeightsError

logger = logging.getLogger(__name__)

CONTROLS = rig.FACE
BUNDLED = Path(__file__).parent / "reader.safetensors"
FORMAT = "keyface face reader 1"
# what is cut out of a picture: top, bottom, left, right, and the size it is brought to
MOUTH_REGION, MOUTH_SIZE = (0.48, 0.98, 0.17, 0.83), (72, 96)
EYE_REGION, EYE_SIZE = (0.12, 0.56, 0.10, 0.90), (56, 104)
WIDTHS = (32, 64, 96, 96)
HIDDEN = 128
RESOLUTION = 256  # of the pictures that it is trained on
SHIFT = 4  # pixels that its crops move by at most while it is trained
DRAWN_POSES, PHOTO_POSES = 3, 13  # of each head: a photograph is slow to prepare, quick to move
CHECKED = 96  # drawn heads that it is checked on
BLINKING = 0.4  # share of the pictures that it is trained on whose lids a blink has moved

Crops = tuple[Tensor, Tensor]  # of mouth and eyes, (B, 3, h, w) each


class RigReader(nn.Module):
    """Pictures to `CONTROLS`.

    `accuracy` holds R^2 of each control on heads that were kept from its training, by their kind.
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mouth, mouth_size = _tower(MOUTH_SIZE)
        self.eyes, eye_size = _tower(EYE_SIZE)
        self.head = nn.Sequential(
            nn.Linear(mouth_size + eye_size, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, len(CONTROLS))
        )
        reach = [(c.high - c.low) / 2 for name in CONTROLS for c in [rig.CONTROLS[rig.INDEX[name]]]]
        self.register_buffer("scale", torch.tensor(reach), persistent=False)
        self.accuracy: dict[str, dict[str, float]] = {}

    def forward(self, frames: Crops, portraits: Crops) -> Tensor:
        """Crops of frames and of the portraits that they show -> (B, len(CONTROLS))."""
        seen = [
            tower(torch.cat(pair, 1))
            for tower, *pair in zip((self.mouth, self.eyes), frames, portraits, strict=True)
        ]
        read: Tensor = self.head(torch.cat(seen, 1)) * self.scale
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


class Examples(NamedTuple):
    """Pictures with what is to be read from them.

    Args:
        frames: crops of M pictures, float16.
        portraits: crops of P heads at rest, float16.
        owner: (M,) whose head each picture shows.
        targets: (M, len(CONTROLS)).
    """

    frames: Crops
    portraits: Crops
    owner: Tensor
    targets: Tensor

    def batch(self, picked: Tensor) -> tuple[Crops, Crops, Tensor]:
        """Return frames, their portraits and targets of some of the pictures, float32."""
        owner = self.owner[picked]
        return (
            (self.frames[0][picked].float(), self.frames[1][picked].float()),
            (self.portraits[0][owner].float(), self.portraits[1][owner].float()),
            self.targets[picked],
        )


def examples(
    heads: int,
    poses: int,
    generator: torch.Generator,
    cast: Cast | None = None,
    plain: bool = False,
) -> Examples:
    """Draw new heads at rest and in random poses, in which many blink.

    Args:
        heads: how many, P.
        poses: pictures of each head, M = P * poses.
        generator: the source of chance.
        cast: whose photographs move; None draws heads instead.
        plain: photographs as they are, see `avatars.photographs.casting.draw_puppet`.
    """
    wanted = [rig.INDEX[name] for name in CONTROLS]
    frames: list[Crops] = []
    portraits: list[Crops] = []
    targets = []
    for number in range(heads):
        drawn = random_poses(poses, generator)
        closed, blinks = torch.rand(2, poses, generator=generator)
        drawn[:, rig.INDEX["blink"]] = closed.sqrt() * (blinks < BLINKING)
        draw = draw_head(generator, RESOLUTION, cast, plain=plain)
        pictures = torch.from_numpy(draw(torch.cat([torch.tensor([rig.REST]), drawn])))
        mouths, eyes = (part.half() for part in crop(pictures))
        portraits.append((mouths[:1], eyes[:1]))
        frames.append((mouths[1:], eyes[1:]))
        targets.append(rig.as_seen(drawn)[:, wanted])
        if number % 100 == 99:
            logger.info("drew %d of %d heads", number + 1, heads)
    owner = torch.arange(heads).repeat_interleave(poses)
    return Examples(_joined(frames), _joined(portraits), owner, torch.cat(targets))


def _joined(crops: list[Crops]) -> Crops:
    mouths, eyes = zip(*crops, strict=True)
    return torch.cat(mouths), torch.cat(eyes)


def train_reader(
    material: list[Examples], updates: int = 3000, seed: int = 77, batch: int = 32
) -> RigReader:
    """Train a reader, see `varied`.

    Args:
        material: examples of each kind of head, of which every batch has its share.
        updates: of `batch` pictures each.
        seed: of weights and batches.
        batch: pictures at once.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    reader = RigReader().train()
    optimiser = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=updates)

    for update in range(updates):
        parts = []
        for each in material:
            size = (batch // len(material),)
            parts.append(each.batch(torch.randint(len(each.targets), size, generator=generator)))
        shown = _joined([frames for frames, _, _ in parts])
        at_rest = _joined([rest for _, rest, _ in parts])
        wanted = torch.cat([targets for _, _, targets in parts])
        pairs = [varied(frame, rest, generator) for frame, rest in zip(shown, at_rest, strict=True)]
        read = reader((pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1]))
        loss = F.mse_loss(read / reader.scale, wanted / reader.scale)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if update % 250 == 249:
            logger.info("update %d of %d, error %.4f", update + 1, updates, float(loss))
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


def make_reader(
    heads: int,
    updates: int,
    seed: int,
    casts: tuple[Cast, Cast] | None = None,
    checked: int = CHECKED,
) -> RigReader:
    """Draw heads, train a reader on them and check it on others.

    Args:
        heads: drawn ones to train on; half as many are made of photographs.
        updates: see `train_reader`.
        seed: of everything drawn.
        casts: people to train on, and those who are held out; None leaves photographs out.
        checked: drawn heads that it is checked on, and three times as many as of photographs.
    """
    generator = torch.Generator().manual_seed(seed)
    material = [examples(heads, DRAWN_POSES, generator)]
    if casts is not None:
        material.append(examples(heads // 2, PHOTO_POSES, generator, casts[0]))
    reader = train_reader(material, updates, seed)
    others = torch.Generator().manual_seed(seed + 1)
    reader.accuracy["drawn"] = validate(reader, examples(checked, DRAWN_POSES, others))
    if casts is not None:
        seen = examples(checked // 3, PHOTO_POSES, others, casts[1], plain=True)
        reader.accuracy["photographs"] = validate(reader, seen)
    return reader


def validate(reader: RigReader, seen: Examples) -> dict[str, float]:
    """Return R^2 of each control on pictures of heads that its training has not seen."""
    everything = torch.arange(len(seen.targets))
    with torch.inference_mode():
        parts = [seen.batch(picked) for picked in torch.split(everything, 64)]
        read = torch.cat([reader.eval()(frames, rest) for frames, rest, _ in parts])
    error = (read - seen.targets).square().sum(0)
    unexplained = error / (seen.targets - seen.targets.mean(0)).square().sum(0)
    return dict(zip(CONTROLS, (1 - unexplained).tolist(), strict=True))


def save(reader: RigReader, path: Path) -> None:
    """Write a reader and its accuracy into one file, in half precision; it is whole or not there.

    Raises:
        WeightsError: it cannot be written.
    """
    facts = {"format": FORMAT, "accuracy": json.dumps(reader.accuracy)}
    save_network(path, copy.deepcopy(reader).half(), facts)


def own_path() -> Path:
    """Return where a reader is kept that was trained here."""
    return home() / "readers" / "faces.safetensors"


def load(path: Path | None = None) -> RigReader:
    """Load a reader that `save` wrote; where None the package's, or the one trained here.

    Raises:
        WeightsError: the file is missing, damaged, or not a reader of this version.
    """
    path = path or (BUNDLED if BUNDLED.is_file() else own_path())
    reader = RigReader()
    try:
        reader.accuracy = json.loads(load_network(path, reader, FORMAT)["accuracy"])
    except (WeightsError, ValueError, KeyError) as error:
        raise WeightsError(
            f"no face reader of this version: {path}",
            f"make one with keyface evaluate reader: {error}",
        ) from error
    return reader.eval()
