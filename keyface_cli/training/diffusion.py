"""Training of the two UNets and of the guide by the published recipe (stages/README.md).

A batch of clips is noised, denoised under its conditions, some of which are dropped at random so
that guidance has its unconditional branches, and scored by `losses`.
"""

from __future__ import annotations

import dataclasses
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from keyface_cli.checkpoints.lpips import load_lpips
from keyface_cli.config import ModelConfig
from keyface_cli.diffusion.denoiser import denoise
from keyface_cli.errors import ConfigError
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.conditioning import Conditioning
from keyface_cli.models.unet import VideoUNet
from keyface_cli.stages.noise import anchor_for
from keyface_cli.training import run
from keyface_cli.training.beginning import begin, freeze_temporal_layers
from keyface_cli.training.clips import Clips, ClipSource
from keyface_cli.training.latent_reader import FILE as READER_FILE
from keyface_cli.training.latent_reader import LatentReader, load_reader, reading_loss
from keyface_cli.training.loop import Save, Start, Trainer, saver
from keyface_cli.training.losses import (
    MOUTH,
    PictureDistance,
    explained,
    latent_loss,
    picture_losses,
    sample_sigmas,
)
from keyface_cli.training.options import DiffusionOptions, TrainOptions
from keyface_cli.training.samples import HeldOut
from keyface_cli.training.shards import check_vae

logger = logging.getLogger(__name__)
MUON_RATE = 0.01  # of the inner matrices; the other parameters' rate is an option
COMPONENTS = {
    "keyframes": "keyframe_unet",
    "interpolation": "interpolation_unet",
    "guide": "interpolation_guide",
}
REFRESH = 100  # batches between looks for new shards


class UNetTraining:
    """The loss of either UNet on clips.

    Args:
        stage: "keyframes" or "interpolation".
        config: of the model; its parameterization and latent scale count.
        source: of the clips.
        options: of the loss.
        train: batch size and precision.
        codec: decodes the frame that is compared as a picture; None where the run has no VAE.
        distance: the perceptual one, for that frame.
        reader: compares what is read from latents; None where nothing is.
    """

    def __init__(
        self,
        stage: str,
        config: ModelConfig,
        source: ClipSource,
        options: DiffusionOptions,
        train: TrainOptions,
        codec: LatentCodec | None = None,
        distance: PictureDistance | None = None,
        reader: LatentReader | None = None,
    ) -> None:
        self.stage, self.config, self.source = stage, config, source
        self.options, self.train = options, train
        self.codec, self.distance, self.reader = codec, distance, reader
        self._drawn = 0

    def draw(self, generator: torch.Generator) -> Clips:
        """Draw a batch of clips."""
        self._drawn += 1
        if self._drawn % REFRESH == 0:
            self.source.refresh()
        return self.source.batch(self.train.batch_size, generator)

    def losses(self, trainer: Trainer, clips: Clips) -> dict[str, Tensor]:
        """Score the network on a batch; see `score`."""
        clips = clips._replace(
            latents=clips.latents.float(),
            features=clips.features.float(),
            emotion=clips.emotion.float(),
        )
        z, generator = clips.latents, trainer.generator
        sigma = sample_sigmas(len(z), self.options, generator)
        noise = torch.randn(z.shape, generator=generator, device=z.device)
        network = cast(VideoUNet, trainer.model)
        with trainer.compute.autocast():
            denoised, anchor = self.denoised(network, clips, sigma, noise, generator)
        values = self.score(denoised, clips, sigma, trainer)
        return values | self._measures(denoised, clips, anchor)

    def denoised(
        self,
        network: VideoUNet,
        clips: Clips,
        sigma: Tensor,
        noise: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor | None]:
        """Add noise to a batch and take it away again.

        Args:
            network: of the stage.
            clips: the batch, float32.
            sigma: (B,).
            noise: unit Gaussian, (B, T, C, h, w).
            generator: of the conditions that are dropped.

        Returns:
            D (B, T, C, h, w), float32, and the anchor that it started from, None for "v".
        """
        given, anchor = self._conditions(network, clips, generator)
        denoised = denoise(
            lambda x, c_noise: network(x, c_noise, given),
            clips.latents + sigma.view(-1, 1, 1, 1, 1) * noise,
            sigma,
            anchor=anchor,
        )
        return denoised, anchor

    def score(
        self, denoised: Tensor, clips: Clips, sigma: Tensor, trainer: Trainer | None = None
    ) -> dict[str, Tensor]:
        """Return the losses of denoised latents: `loss` and the terms that it is the sum of.

        Args:
            denoised: (B, T, C, h, w), float32.
            clips: the truth; with pictures where the options ask for pixels.
            sigma: (B,).
            trainer: whose precision the decoder computes in; None is float32.
        """
        options = self.options
        latent = latent_loss(
            denoised,
            clips.latents,
            sigma,
            lower_half=options.lower_half,
            mouth=options.mouth,
            eyes=options.eyes,
            weight_limit=options.weight_limit,
        ).mean()
        values = {"loss": latent}
        if self.reader is not None:
            with nullcontext() if trainer is None else trainer.compute.autocast():
                reading = reading_loss(
                    self.reader, denoised, clips.latents, sigma, options.weight_limit
                )
            values = {"loss": latent + options.reading * reading, "reading": reading}
        if clips.pictures is None or clips.frame is None or self.codec is None:
            return values
        # every frame's index is the same in all clips, and gradients flow through the decoder
        picked = denoised.index_select(1, clips.frame.view(1).to(denoised.device))[:, 0]
        target = clips.pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        half = self.config.vae_dtype == "auto"
        with nullcontext() if trainer is None else trainer.compute.autocast(half):
            decoded = self.codec.decode(picked)
        distance = self.distance if options.perceptual else None
        squared, perceived = picture_losses(decoded, target, sigma, distance, options.weight_limit)
        values["loss"] = values["loss"] + options.pixel * squared
        values |= {"latent": latent, "pixel": squared}
        if distance is not None:
            values["loss"] = values["loss"] + options.perceptual * perceived
            values["perceptual"] = perceived
        return values

    @torch.no_grad()
    def _measures(self, denoised: Tensor, clips: Clips, anchor: Tensor | None) -> dict[str, Tensor]:
        """How far a batch is off, unweighted; with an anchor, what share of the motion is right."""
        z = clips.latents
        error = (denoised - z).square().mean()
        if anchor is None:
            return {"mse": error}
        rows, columns = MOUTH.within(*z.shape[-2:])
        left, move = ((d - z)[..., rows, columns].square().mean() for d in (denoised, anchor))
        return {
            "mse": error,
            "explained": explained(error, (anchor - z).square().mean()),
            "mouth_explained": explained(left, move),
        }

    def _conditions(
        self, network: VideoUNet, clips: Clips, generator: torch.Generator
    ) -> tuple[Conditioning, Tensor | None]:
        """Bind the conditions of a batch, some of them dropped, and the anchor they give."""
        z = clips.latents
        B, T = z.shape[:2]

        def kept(probability: float, *shape: int) -> Tensor:
            drawn = torch.rand(B, generator=generator, device=z.device)
            return (drawn >= probability).float().view(B, *shape)

        audio = network.project_audio(clips.features) * kept(self.options.drop_audio, 1, 1)
        if self.stage == "keyframes":
            clean = z[:, :1]
        else:
            clean = z[:, [0, -1]] if clips.keyframes is None else clips.keyframes.float()
        clean = clean * kept(self.options.drop_identity, 1, 1, 1, 1)
        emotion = clips.emotion if self.stage == "keyframes" else None
        given = Conditioning(audio, clean / self.config.latent_scale, emotion)
        anchor = anchor_for(self.config.parameterization, clean, T)
        if self.stage == "interpolation" and anchor is not None:
            given = dataclasses.replace(given, anchor=anchor / self.config.latent_scale)
        return given, anchor


def train_unet(
    stage: str,
    config: ModelConfig,
    data: Path,
    folder: Path,
    train: TrainOptions,
    options: DiffusionOptions,
    *,
    start_from: str | Path | None = None,
    **start: Unpack[Start],
) -> int:
    """Train the UNet of a stage into `folder/keyframe_unet` or `folder/interpolation_unet`.

    The interpolation run also leaves `interpolation_guide`, as it was after `guide_share` of its
    updates. "guide" is the beginning of that same run, once more: the same seed and options give
    the same guide, for runs that have none or are to have another.

    Args:
        stage: "keyframes", "interpolation" or "guide".
        config: of the model.
        data: folder of finished shards, see `clips`.
        folder: the run.
        train: how long and how fast.
        options: of the loss.
        start_from: what a new network starts from, see `beginning.begin`.
        start: see `loop.Start`.

    Returns:
        The updates done in all.

    Raises:
        ConfigError: the options do not fit each other or the run.
        WeightsError: a network that is needed is missing, the state does not fit, or the run has
            trained the network already.
        FileNotFoundError: the data has no finished shard.
    """
    component = COMPONENTS[stage]
    guide_at = max(1, round(train.updates * options.guide_share)) if options.guide_share else 0
    if stage == "guide" and not guide_at:
        raise ConfigError("no guide is wanted: guide_share is 0", "use --set guide_share=0.0625")
    resume = start.get("resume", False)
    if not resume and not start.get("force"):
        run.refuse_trained(folder, component)
    run_stage = "keyframes" if stage == "keyframes" else "interpolation"
    network = _network(run_stage, component, config, folder, train, options, resume, start_from)
    training = _prepare(run_stage, config, data, folder, train, options)
    trainer = Trainer(component, network, folder, train, muon_rate=MUON_RATE, **start)
    _set_up(network, training, trainer)
    clips = training.source.held_out() if train.sample_every else []
    if clips and training.codec is None:
        logger.warning("no samples of held-out clips: the run has no vae yet: %s", folder)
    return trainer.fit(
        training.draw,
        training.losses,
        _saver(stage, config, folder, train, guide_at),
        sample=HeldOut(run_stage, config, clips, training.codec, trainer.compute).sample,
        save_at={guide_at},
        stop_at=guide_at if stage == "guide" else None,
    )


def _saver(
    stage: str, config: ModelConfig, folder: Path, train: TrainOptions, guide_at: int
) -> Save:
    """Return what writes a network, and until an update the guide beside it."""
    save, save_guide = (saver(COMPONENTS[name], config, folder, train) for name in (stage, "guide"))

    def save_both(average: nn.Module, update: int) -> None:
        save(average, update)
        # the weaker network for autoguidance: the same run, long before its end
        if update <= guide_at:
            save_guide(average, update)

    return save_both if stage == "interpolation" else save


def _network(
    stage: str,
    component: str,
    config: ModelConfig,
    folder: Path,
    train: TrainOptions,
    options: DiffusionOptions,
    resume: bool,
    start_from: str | Path | None,
) -> VideoUNet:
    """Build a network as its training begins, see `begin`; some layers may be frozen."""
    torch.manual_seed(train.seed)
    network: VideoUNet = VideoUNet(**dataclasses.asdict(config.unet(stage)))
    network.zero_output_layers()
    begin(network, component, config, folder, start_from, resume=resume)
    if options.freeze_temporal:
        if start_from is None and not resume:
            raise ConfigError(
                "the layers along time are to stay as they are, and they are random",
                "start from a trained model with --from, or train all with --all-layers",
            )
        freeze_temporal_layers(network)
    return network


def _prepare(
    stage: str,
    config: ModelConfig,
    data: Path,
    folder: Path,
    train: TrainOptions,
    options: DiffusionOptions,
) -> UNetTraining:
    """Open the data, and what compares pictures."""
    pictures = options.pixel > 0 or options.perceptual > 0
    weights = options.perceptual_weights
    if options.perceptual and not Path(weights).is_file():
        missing = f": no such file: {weights}" if weights else ""
        raise ConfigError(
            f"the perceptual loss needs the weights of the network that compares{missing}",
            "name them with --perceptual FILE, or leave the term out with --set perceptual=0",
        )
    kind, encoders = "runs", config.interpolation_encoders
    if stage == "keyframes":
        kind, encoders = "keyframes", config.keyframe_encoders
    source = ClipSource(
        data,
        kind,
        encoders,
        held_out=options.held_out,
        pictures=pictures,
        from_rest=options.from_rest,
        sampled_keyframes=options.sampled_keyframes,
    )
    if not len(source):
        raise ConfigError(f"{data} holds no clip that is long enough to train {stage}")
    codec = distance = None
    if (folder / "vae").is_dir() or pictures:
        vae: Any = run.load_trained(folder, "vae", config)
        check_vae(data, run.fingerprint(vae))
        codec = LatentCodec(vae, config.latent_scale, config.vae_patch_size)
    if options.perceptual:
        distance = load_lpips("vgg", Path(weights))
    reader = None
    if options.reading:
        reader = load_reader(Path(options.reading_weights or folder / READER_FILE), config)
    return UNetTraining(stage, config, source, options, train, codec, distance, reader)


def _set_up(network: VideoUNet, training: UNetTraining, trainer: Trainer) -> None:
    """Choose how the networks compute: on the device, and with less memory where that is asked."""
    if trainer.device.type == "cpu":
        network.train_on_cpu()
    if trainer.options.checkpointing:
        network.enable_gradient_checkpointing()
        if training.codec is not None:
            training.codec.vae.enable_gradient_checkpointing()
    for judge in (training.codec, training.distance, training.reader):
        if isinstance(judge, nn.Module):
            judge.to(trainer.device)
