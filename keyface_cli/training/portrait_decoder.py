"""Training of the portrait decoder on pairs of pictures, see `portrait_pairs`.

What it gets to see is what sampling leaves: latents that are noisy, blurred, half-way between two
faces or too near to the portrait. It is scored by pixels and edges, and, after a while, by a
critic that tells squares of its pictures from true ones: by its answer, and by how far apart its
features of the two are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Unpack, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.config import MOTION, ModelConfig
from keyface_cli.errors import ConfigError
from keyface_cli.files import save_array
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.portrait_decoder import PortraitDecoder
from keyface_cli.training import run
from keyface_cli.training.loop import Start, Trainer, saver
from keyface_cli.training.losses import EYES, MOUTH, Region
from keyface_cli.training.options import TrainOptions
from keyface_cli.training.sampled import FILE as SAMPLED

COMPONENT = "portrait_decoder"
EDGE_WEIGHT = 1.5
FACE_WEIGHT = 4.0  # of the pixels around mouth and eyes
CRITIC_WEIGHT = 0.01
FEATURE_WEIGHT = 0.05  # of the distance between the critic's features of made and true pictures
CRITIC = Region(0.52, 0.92, 0.25, 0.75)  # what it looks at: mouth and chin
CRITIC_SHIFT = 16  # greatest shift of that square; a fixed one would leave its edges in the picture
CRITIC_SHARE = 0.25  # of the updates are done before the critic counts
NOISE = 0.25  # greatest deviation of the noise on latents
BACK = 0.3  # greatest share by which latents are drawn back to the portrait's
MUON_RATE = 0.005
SAMPLED_SHARE = 0.5  # of a batch are frames as the UNets made them, where there are any
REFRESH = 200  # batches between looks for new shards


class Pairs(NamedTuple):
    """A batch of heads; pictures are uint8 (B, 3, H, W), latents scaled (B, C, h, w)."""

    portraits: Tensor
    decoded: Tensor  # the portraits through the VAE and back
    targets: Tensor  # a face of each head, head and eyes moved and lids closed
    motions: Tensor  # (B, M), by how much
    own: Tensor  # latents of the portraits
    faces: Tensor  # of the targets' faces, head and eyes as in the portraits
    others: Tensor  # of further faces, likewise
    sampled: Tensor  # (B,), 1 where `faces` are as a UNet made them


@torch.inference_mode()
def encode_pairs(folder: Path, codec: LatentCodec) -> None:
    """Encode the portraits and the stills of a shard of pairs, and decode the portraits again.

    Writes `decoded.npy`, uint8 (n, H, W, 3), and `latents.npy`, float16 (n, 1 + K, C, h, w).
    """
    portraits = np.load(folder / "portraits.npy", mmap_mode="r")
    stills = np.load(folder / "stills.npy", mmap_mode="r")
    decoded, latents = np.empty_like(portraits), []
    for i, (portrait, faces) in enumerate(zip(portraits, stills, strict=True)):
        pictures = torch.from_numpy(np.concatenate([portrait[None], faces]))
        z = codec.encode(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)
        latents.append(z.half().numpy())
        back = ((codec.decode(z[:1]).clamp(-1, 1) + 1) * 127.5).round().byte()
        decoded[i] = back[0].permute(1, 2, 0).numpy()
    # the latents last: they tell that the shard is finished
    save_array(folder / "decoded.npy", decoded)
    save_array(folder / "latents.npy", np.stack(latents))


class PortraitDecoderTraining:
    """The loss of a `PortraitDecoder`.

    Args:
        codec: whose pictures it sees; frozen.
        data: folder of shards that `portrait_pairs.write_pairs` has made, and of scenes as
            `sampled.sample_shard` leaves them, if any; new ones join as they come.
        options: batch size and updates.

    Raises:
        ConfigError: there is no shard.
    """

    def __init__(self, codec: LatentCodec, data: Path, options: TrainOptions) -> None:
        self.codec, self.data, self.options = codec, data, options
        self._drawn = 0
        self.refresh()
        self.critic = Critic()
        self.critic_optimiser = torch.optim.AdamW(
            self.critic.parameters(), lr=4e-4, betas=(0.5, 0.99)
        )

    def refresh(self) -> None:
        """Take in shards that have been completed since."""
        names = ("portraits", "decoded", "targets", "motions", "latents")
        folders = sorted(path.parent for path in self.data.glob("[!.]*/motions.npy"))
        if not folders:
            raise ConfigError(
                f"no pairs of pictures in {self.data}", "make them with keyface dataset avatars"
            )
        for folder in folders:
            if not (folder / "latents.npy").is_file():
                encode_pairs(folder, self.codec)
        shards = [
            {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
            for folder in folders
        ]
        ends = torch.tensor([len(shard["portraits"]) for shard in shards]).cumsum(0)
        self._shards = shards, ends  # at once: other threads may be drawing
        names = ("portraits", "decoded_portraits", "runs", "latents_portraits", "latents_sampled")
        self._sampled = [
            {name: np.load(path.parent / f"{name}.npy", mmap_mode="r") for name in names}
            for path in sorted(self.data.glob(f"*/{SAMPLED}"))
        ]

    def draw(self, generator: torch.Generator) -> Pairs:
        """Draw heads and faces; none is mirrored, since a motion has sides."""
        self._drawn += 1
        if self._drawn % REFRESH == 0:
            self.refresh()
        shards, ends = self._shards
        rows = []
        for _ in range(self.options.batch_size):
            if self._sampled and float(torch.rand((), generator=generator)) < SAMPLED_SHARE:
                rows.append(self._draw_sampled(generator))
                continue
            number = int(torch.randint(int(ends[-1]), (), generator=generator))
            which = int(torch.searchsorted(ends, number, right=True))
            shard = shards[which]
            head = number - (int(ends[which - 1]) if which else 0)
            faces = shard["targets"].shape[1]
            one, other = torch.randint(faces, (2,), generator=generator).tolist()
            pictures = shard["portraits"][head], shard["decoded"][head], shard["targets"][head, one]
            tensors = [torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures]
            motion = torch.from_numpy(np.array(shard["motions"][head, one]))
            latents = torch.from_numpy(np.array(shard["latents"][head])).float()
            true = torch.tensor(0.0)
            rows.append((*tensors, motion, latents[0], latents[1 + one], latents[1 + other], true))
        return Pairs(*(torch.stack(each) for each in zip(*rows, strict=True)))

    def _draw_sampled(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw a frame of a scene as the UNets made it; no head moves in these."""

        def random(stop: int) -> int:
            return int(torch.randint(stop, (), generator=generator))

        shard = self._sampled[random(len(self._sampled))]
        scene = random(len(shard["latents_sampled"]))
        frame = random(shard["latents_sampled"].shape[1])
        pictures = (
            shard["portraits"][scene, 0],
            shard["decoded_portraits"][scene],
            shard["runs"][scene, frame],
        )
        tensors = [torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures]
        own = torch.from_numpy(np.array(shard["latents_portraits"][scene, 0, 0])).float()
        face = torch.from_numpy(np.array(shard["latents_sampled"][scene, frame])).float()
        return (*tensors, torch.zeros(len(MOTION)), own, face, face, torch.tensor(1.0))

    @torch.no_grad()
    def _as_sampled(self, pairs: Pairs, generator: torch.Generator) -> Tensor:
        """Decode latents as sampling leaves them, (B, 3, H, W)."""
        B, device = len(pairs.own), pairs.own.device

        def some(share: float, most: float) -> Tensor:
            drawn, amount = torch.rand(2, B, 1, 1, 1, generator=generator, device=device)
            shares: Tensor = (drawn < share).float() * amount * most
            return shares * (1 - pairs.sampled.view(-1, 1, 1, 1))

        z = torch.lerp(pairs.faces, pairs.others, some(0.3, 0.2))
        z = torch.lerp(z, pairs.own, some(0.5, BACK))
        blurred = F.avg_pool2d(F.pad(z, (1, 1, 1, 1), mode="replicate"), 3, 1)
        z = torch.lerp(z, blurred, some(0.3, 0.3))
        noise = torch.randn(z.shape, generator=generator, device=device)
        z = z + some(0.6, NOISE) * noise * z.std((1, 2, 3), keepdim=True)
        pictures: Tensor = self.codec.decode(z)
        return pictures

    def losses(self, trainer: Trainer, pairs: Pairs) -> dict[str, Tensor]:
        """Score the network on a batch, and train the critic on it."""
        with trainer.compute.autocast():
            frames = self._as_sampled(pairs, trainer.generator).float()
            decoder = cast(PortraitDecoder, trainer.model)
            portrait = pairs.portraits.float() / 127.5 - 1
            prepared = decoder.prepare(portrait, pairs.decoded.float() / 127.5 - 1)
            made = decoder(frames, prepared, pairs.motions)
        target = pairs.targets.float() / 127.5 - 1
        weight = face_weights(target.shape[-1]).to(target.device)
        pixels = (weight * (made - target).abs()).mean()
        edges = (weight[..., 1:, 1:] * _edge_error(made, target)).mean()
        values = {"pixels": pixels, "edges": edges}
        loss = pixels + EDGE_WEIGHT * edges
        if trainer.update >= CRITIC_SHARE * self.options.updates:
            with trainer.compute.autocast():
                shift = torch.randint(
                    -CRITIC_SHIFT,
                    CRITIC_SHIFT + 1,
                    (2,),
                    generator=trainer.generator,
                    device=trainer.generator.device,
                ).tolist()
                true_mouth, made_mouth = cut_mouth(target, *shift), cut_mouth(made, *shift)
                values["critic"] = self._train_critic(true_mouth, made_mouth.detach())
                seen = self.critic.features(made_mouth)
                with torch.no_grad():
                    true = self.critic.features(true_mouth)
                fooled = -self.critic.answer(seen[-1]).float().mean()
            distances = [
                (a.float() - b.float()).abs().mean() for a, b in zip(seen, true, strict=True)
            ]
            values["features"] = torch.stack(distances).mean()
            loss = loss + CRITIC_WEIGHT * fooled + FEATURE_WEIGHT * values["features"]
        mse = (made.detach().clamp(-1, 1) - target).square()
        values["psnr"] = 10 * torch.log10(4 / mse.mean((1, 2, 3)).clamp(min=1e-6)).mean()
        return {"loss": loss} | values

    def _train_critic(self, true: Tensor, made: Tensor) -> Tensor:
        """One step of the critic: hinge loss of true and made mouths."""
        self.critic.requires_grad_(True)
        loss = F.relu(1 - self.critic(true).float()).mean()
        loss = loss + F.relu(1 + self.critic(made).float()).mean()
        self.critic_optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.critic_optimiser.step()
        self.critic.requires_grad_(False)
        return loss.detach()


class Critic(nn.Module):
    """Tells squares of true mouths from made ones: (B, 3, h, w) -> (B, 1, h / 8, w / 8)."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
        self.levels = nn.ModuleList([first])
        for wide in (2 * width, 4 * width):
            convolution = nn.Conv2d(wide // 2, wide, 4, stride=2, padding=1)
            self.levels.append(nn.Sequential(convolution, nn.GroupNorm(1, wide), nn.LeakyReLU(0.2)))
        self.answer = nn.Conv2d(wide, 1, 3, padding=1)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Return what each level sees, at a half, a fourth and an eighth of the resolution."""
        seen = []
        for level in self.levels:
            pictures = level(pictures)
            seen.append(pictures)
        return seen

    def forward(self, pictures: Tensor) -> Tensor:
        """See the class."""
        return cast(Tensor, self.answer(self.features(pictures)[-1]))


def cut_mouth(pictures: Tensor, down: int, right: int) -> Tensor:
    """Cut out what the critic looks at, shifted by pixels at 256 x 256."""
    shifts = (down / 256, down / 256, right / 256, right / 256)
    shifted = Region(*(edge + shift for edge, shift in zip(CRITIC, shifts, strict=True)))
    rows, columns = shifted.within(*pictures.shape[-2:])
    return pictures[..., rows, columns]


def face_weights(size: int) -> Tensor:
    """Weight of each pixel, (1, 1, size, size): those of mouth and eyes count more."""
    weight = torch.ones(1, 1, size, size)
    for part in (MOUTH, EYES):
        rows, columns = part.within(size, size)
        weight[..., rows, columns] = FACE_WEIGHT
    return weight / weight.mean()


def _edge_error(made: Tensor, target: Tensor) -> Tensor:
    """How differences of neighbouring pixels differ, (B, 3, H - 1, W - 1)."""
    error = made - target
    return (error.diff(dim=-1)[..., 1:, :].abs() + error.diff(dim=-2)[..., 1:].abs()) / 2


def train_portrait_decoder(
    data: Path,
    config: ModelConfig,
    folder: Path,
    options: TrainOptions,
    **start: Unpack[Start],
) -> int:
    """Train a portrait decoder into `folder/portrait_decoder`; returns the updates done.

    Args:
        data: folder of pairs.
        config: of the model; its VAE is the run's.
        folder: the run.
        options: how long and how fast.
        start: see `loop.Start`; the critic of a training that is resumed begins anew.
    """
    vae: Any = run.load_trained(folder, "vae", config)
    codec = LatentCodec(vae, config.latent_scale, config.vae_patch_size)
    torch.manual_seed(options.seed)
    training = PortraitDecoderTraining(codec, data, options)
    decoder: PortraitDecoder = PortraitDecoder(**config.portrait_decoder)
    trainer = Trainer(COMPONENT, decoder, folder, options, muon_rate=MUON_RATE, **start)
    codec.to(trainer.device)
    training.critic.to(trainer.device)
    return trainer.fit(training.draw, training.losses, saver(COMPONENT, config, folder, options))
