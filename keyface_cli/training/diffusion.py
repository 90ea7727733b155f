"""Training of the two UNets (paper section 3 and appendix, SPEC 12): noise, weights and losses.

Noise levels are log-normal, ln sigma ~ N(1.0, 1.2^2). The squared error of the denoised latents is
weighted by (sigma^2 + 1) / sigma^2, and the lower half of the picture, where the mouth is, counts
more. Conditions are dropped at random so that guidance has its unconditional branches.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from keyface_cli.config import ModelConfig
from keyface_cli.diffusion.denoiser import denoise
from keyface_cli.models.unet import Conditioning, VideoUNet
from keyface_cli.stages.start import anchor_for
from keyface_cli.training import run
from keyface_cli.training.clips import Clips, ClipSource
from keyface_cli.training.loop import Trainer, TrainOptions


@dataclass(frozen=True)
class DiffusionOptions:
    """The loss of a UNet; the defaults are the published ones for keyframes."""

    log_sigma_mean: float = 1.0
    log_sigma_std: float = 1.2
    # share of clips whose sigma is drawn log-uniformly over the whole range that sampling visits;
    # the log-normal seldom reaches either end of it
    wide_sigmas: float = 0.0
    weight_limit: float = math.inf  # of (sigma^2 + 1) / sigma^2
    lower_half: float = 3.0  # lambda_lower; 2 for interpolation
    mouth: float = 1.0  # factor of the cells around the mouth, on top of the lower half's
    drop_identity: float = 0.1
    drop_audio: float = 0.2


WIDE_RANGE = (0.01, 700.0)
MOUTH_ROWS, MOUTH_COLUMNS = (0.56, 0.88), (0.28, 0.72)  # where it is, of the picture
MUON_RATE = 0.01  # of the inner matrices; the other parameters' rate is an option
# what the bundled model was trained with
MINI_LOSS = {
    "keyframes": DiffusionOptions(
        wide_sigmas=0.25, weight_limit=10.0, mouth=4.0, drop_identity=0.02, drop_audio=0.1
    ),
    # its guidance is autoguidance, which hears every condition: none need be dropped
    "interpolation": DiffusionOptions(
        wide_sigmas=0.25,
        weight_limit=10.0,
        lower_half=2.0,
        mouth=4.0,
        drop_identity=0.0,
        drop_audio=0.0,
    ),
}


def sample_sigmas(count: int, options: DiffusionOptions, generator: torch.Generator) -> Tensor:
    """Draw one noise level per clip: (count,)."""
    normal = torch.randn(count, generator=generator)
    sigmas = (options.log_sigma_mean + options.log_sigma_std * normal).exp()
    low, high = (math.log(bound) for bound in WIDE_RANGE)
    wide = (low + (high - low) * torch.rand(count, generator=generator)).exp()
    picked = torch.rand(count, generator=generator) < options.wide_sigmas
    return torch.where(picked, wide, sigmas)


def latent_loss(
    denoised: Tensor,
    target: Tensor,
    sigma: Tensor,
    *,
    lower_half: float = 1.0,
    mouth: float = 1.0,
    weight_limit: float = math.inf,
) -> Tensor:
    """Return the weighted squared error of each frame (SPEC 12).

    Args:
        denoised: D, (B, T, C, h, w).
        target: clean latents of the same shape.
        sigma: (B,).
        lower_half: factor of the rows from h / 2 on.
        mouth: further factor of the cells around the mouth.
        weight_limit: upper bound of the noise weight.

    Returns:
        (B, T): the mean over channels and positions.
    """
    weight = ((sigma**2 + 1) / sigma**2).clamp(max=weight_limit)
    error = weight.view(-1, 1, 1, 1, 1) * (denoised - target) ** 2
    h, w = target.shape[-2:]
    cells = torch.ones(h, w, device=target.device)
    cells[h // 2 :] = lower_half
    (top, bottom), (left, right) = MOUTH_ROWS, MOUTH_COLUMNS
    cells[round(top * h) : round(bottom * h), round(left * w) : round(right * w)] *= mouth
    return (error * cells).mean((2, 3, 4))


class UNetTraining:
    """The loss of either UNet on clips.

    Args:
        stage: "keyframes" or "interpolation".
        config: of the model; its parameterization and latent scale count.
        source: of the clips.
        options: of the loss.
        train: batch size and precision.
    """

    def __init__(
        self,
        stage: str,
        config: ModelConfig,
        source: ClipSource,
        options: DiffusionOptions,
        train: TrainOptions,
    ) -> None:
        self.stage, self.config, self.source = stage, config, source
        self.options, self.train = options, train

    def losses(self, trainer: Trainer) -> dict[str, Tensor]:
        if trainer.update % 100 == 0:
            self.source.refresh()
        generator = trainer.generator
        clips = self.source.batch(self.train.batch_size, generator)
        network: VideoUNet = trainer.model  # type: ignore[assignment]
        sigma = sample_sigmas(len(clips.latents), self.options, generator)
        noise = torch.randn(clips.latents.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.train.bfloat16):
            given, anchor = self._conditions(network, clips, generator)
            denoised = denoise(
                lambda x, c_noise: network(x, c_noise, given),
                clips.latents + sigma.view(-1, 1, 1, 1, 1) * noise,
                sigma,
                anchor=anchor,
            )
        per_frame = latent_loss(
            denoised,
            clips.latents,
            sigma,
            lower_half=self.options.lower_half,
            mouth=self.options.mouth,
            weight_limit=self.options.weight_limit,
        )
        values = {"loss": per_frame.mean()}
        with torch.no_grad():
            error = (denoised - clips.latents).square().mean((1, 2, 3, 4))
            values["mse"] = error.mean()
            if anchor is not None:
                still = (anchor - clips.latents).square().mean()
                values["explained"] = 1 - error.mean() / still
                h, w = clips.latents.shape[-2:]
                rows, columns = (
                    slice(round(a * side), round(b * side))
                    for (a, b), side in ((MOUTH_ROWS, h), (MOUTH_COLUMNS, w))
                )
                left, move = (
                    (d - clips.latents)[..., rows, columns].square().mean()
                    for d in (denoised, anchor)
                )
                values["mouth_explained"] = 1 - left / move
        return values

    def _conditions(
        self, network: VideoUNet, clips: Clips, generator: torch.Generator
    ) -> tuple[Conditioning, Tensor | None]:
        """Bind the conditions of a batch, some of them dropped, and the anchor they give."""
        z = clips.latents
        B, T = z.shape[:2]

        def kept(probability: float, *shape: int) -> Tensor:
            return (torch.rand(B, generator=generator) >= probability).float().view(B, *shape)

        audio = network.project_audio(clips.features) * kept(self.options.drop_audio, 1, 1)
        clean = z[:, :1] if self.stage == "keyframes" else z[:, [0, -1]]
        clean = clean * kept(self.options.drop_identity, 1, 1, 1, 1)
        emotion = clips.emotion if self.stage == "keyframes" else None
        given = Conditioning(audio, clean / self.config.latent_scale, emotion)
        anchor = anchor_for(self.config.parameterization, clean, T)
        if self.stage == "interpolation" and anchor is not None:
            given = dataclasses.replace(given, anchor=anchor / self.config.latent_scale)
        return given, anchor


@torch.no_grad()
def transfer(source: VideoUNet, target: VideoUNet) -> None:
    """Let one stage's network start from what the other's has learned.

    Everything that both have is copied. The interpolation network sees one channel more, the mask,
    which starts at zero, and hears no emotion, whose columns are left out.
    """
    theirs = source.state_dict()
    for name, mine in target.state_dict().items():
        other = theirs.get(name)
        if other is None:
            continue
        if name == "add_embedding.linear_1.weight":
            mine.copy_(other[:, -mine.shape[1] :])
        elif name == "conv_in.weight" and mine.shape[1] > other.shape[1]:
            mine.zero_()
            mine[:, : other.shape[1]] = other
        else:
            mine.copy_(other)


def train_unet(
    stage: str,
    config: ModelConfig,
    data: Path,
    folder: Path,
    train: TrainOptions,
    options: DiffusionOptions,
    *,
    resume: bool = False,
    start_from: str | None = None,
) -> int:
    """Train the UNet of a stage into `folder/keyframe_unet` or `folder/interpolation_unet`.

    The interpolation run also leaves `interpolation_guide`, as it was after a sixteenth of the
    updates.

    Args:
        stage: "keyframes" or "interpolation".
        config: of the model.
        data: folder of encoded shards.
        folder: the run.
        train: how long and how fast.
        options: of the loss.
        resume: go on from the run's saved state.
        start_from: another component of the run, whose weights a new network starts from.

    Returns:
        The updates done in all.
    """
    torch.manual_seed(train.seed)
    name = "keyframe_unet" if stage == "keyframes" else "interpolation_unet"
    network = VideoUNet(**dataclasses.asdict(config.unet(stage)))
    network.zero_output_layers()
    network.set_attn_processor(AttnProcessor())  # twice as fast as SDPA to train on a CPU
    if start_from is not None and not resume:
        transfer(cast(VideoUNet, run.load_trained(folder, start_from, config)), network)
    if stage == "keyframes":
        source = ClipSource(data, "keyframes", config.keyframe_encoders)
    else:
        source = ClipSource(data, "runs", config.interpolation_encoders)
    training = UNetTraining(stage, config, source, options, train)
    trainer = Trainer(name, network, folder, train, resume=resume, muon_rate=MUON_RATE)

    def save(average: nn.Module, update: int) -> None:
        facts = {"updates": update, "batch_size": train.batch_size, "seed": train.seed}
        run.save(folder, name, average, config, facts)
        # the weaker network for autoguidance: the same run, long before its end
        if stage == "interpolation" and update <= max(train.updates // 16, train.save_every):
            run.save(folder, "interpolation_guide", average, config, facts)

    return trainer.fit(training.losses, save)
