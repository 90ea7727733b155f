"""Training of the small audio encoders: WavLM and BEATs learn phones, mouth shapes and loudness.

The published encoders were pretrained on tens of thousands of hours. The bundled ones were given
only synthetic speech, whose phones and mouth movements the generator knows, so they are trained to
tell these from the sound, through linear heads that are thrown away afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from keyface_cli.avatars import rig
from keyface_cli.avatars.voices import PHONES
from keyface_cli.checkpoints.checkpoint import build
from keyface_cli.config import SAMPLES_PER_FRAME, ModelConfig
from keyface_cli.models import speech
from keyface_cli.models.network import Network
from keyface_cli.training import run
from keyface_cli.training.loop import Start, Trainer, saver
from keyface_cli.training.options import TrainOptions

MOUTH = tuple(rig.INDEX[name] for name in ("jaw", "width", "round", "press", "teeth", "tongue"))
WINDOW_FRAMES = 4 * 25  # of one training example; a multiple of 4 keeps BEATs' patches aligned
WINDOW_SAMPLES = WINDOW_FRAMES * SAMPLES_PER_FRAME
PACE = 1.15  # how much faster or slower a window may be played
FEATURES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "wavlm": speech.wavlm_features,
    "wav2vec2": speech.wav2vec2_features,
    "beats": lambda encoder, waveforms: encoder(waveforms),
}


class AudioEncoderTraining(nn.Module):
    """One encoder with the heads that it is trained through.

    Args:
        name: "wavlm", "wav2vec2" or "beats".
        encoder: the model to train.
        width: D of its features.
    """

    def __init__(self, name: str, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder
        self.phone_head = nn.Linear(width, len(PHONES))
        self.mouth_head = nn.Linear(width, len(MOUTH) + 1)  # and loudness

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> phone logits (B, F', 2, P), mouth and loudness per frame (B, F', M + 1)."""
        features = FEATURES[self.name](cast(Any, self.encoder), waveforms)
        return self.phone_head(features), self.mouth_head(features.mean(2))


class AudioTraining:
    """Draws windows of training scenes and scores what an encoder makes of them.

    Args:
        shards: folders that `scenes.write_scenes` has made.
        options: batch size and precision.
    """

    def __init__(self, shards: list[Path], options: TrainOptions) -> None:
        self.options = options
        self.waveforms = [np.load(s / "waveforms.npy", mmap_mode="r") for s in shards]
        self.labels = [np.load(s / "labels.npy") for s in shards]
        self.rigs = [np.load(s / "rigs.npy") for s in shards]

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw windows: waveforms (B, S), phone labels (B, 2 F) and mouth tracks (B, F, M)."""
        waves, phones, mouths = [], [], []
        for _ in range(self.options.batch_size):
            shard = int(torch.randint(len(self.waveforms), (), generator=generator))
            scene = int(torch.randint(len(self.waveforms[shard]), (), generator=generator))
            rig_tracks = self.rigs[shard][scene]
            # one more voice of each: played faster, with higher pitch and formants, or slower
            pace = PACE ** (2 * float(torch.rand((), generator=generator)) - 1)
            span = math.ceil(WINDOW_FRAMES * pace)
            start = int(torch.randint(len(rig_tracks) - span + 1, (), generator=generator))
            first = start * SAMPLES_PER_FRAME
            last = first + round(WINDOW_FRAMES * pace * SAMPLES_PER_FRAME)
            waves.append(_resized(self.waveforms[shard][scene, first:last], WINDOW_SAMPLES))
            halves = 2 * start + (np.arange(2 * WINDOW_FRAMES) + 0.5) * pace
            phones.append(self.labels[shard][scene, halves.astype(int)])
            frames = (np.arange(WINDOW_FRAMES) + 0.5) * pace - 0.5
            near = rig_tracks[start : start + span, list(MOUTH)].astype(np.float32)
            places = np.arange(span)
            mouths.append(np.stack([np.interp(frames, places, track) for track in near.T], 1))
        wave = torch.stack(waves) / 32768
        # the recording's level says little about the mouth: scale it at random
        gain = 10 ** (torch.rand(len(wave), 1, generator=generator) * 1.4 - 0.9)
        wave = (wave * gain).clamp(-1, 1)
        mouth = torch.from_numpy(np.stack(mouths)).float()
        return wave, torch.from_numpy(np.stack(phones)).long(), mouth

    def losses(self, trainer: Trainer, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """Score the encoder on what `draw` gives."""
        wave, phones, mouth = batch
        blocks = wave.view(len(wave), -1, SAMPLES_PER_FRAME)
        loudness = (blocks.square().mean(-1) + 1e-6).log()[..., None] / 4 + 1.5
        with trainer.compute.autocast():
            logits, shapes = trainer.model(wave)
        logits, shapes = logits.float().flatten(1, 2), shapes.float()
        phone_loss = F.cross_entropy(logits.flatten(0, 1), phones.flatten())
        shape_loss = F.mse_loss(shapes, torch.cat([mouth, loudness], -1))
        right = (logits.argmax(-1) == phones).float().mean()
        jaw = torch.corrcoef(torch.stack([shapes[..., 0].flatten(), mouth[..., 0].flatten()]))[0, 1]
        loss = phone_loss + 10 * shape_loss
        return {"loss": loss, "phones": phone_loss, "mouth": shape_loss, "right": right, "jaw": jaw}


def train_audio(
    name: str,
    config: ModelConfig,
    shards: list[Path],
    folder: Path,
    options: TrainOptions,
    *,
    start_from: Path | None = None,
    **start: Unpack[Start],
) -> int:
    """Train the encoder `name` of `config` into `folder/NAME`.

    Args:
        name: "wavlm", "wav2vec2" or "beats".
        config: of the model.
        shards: folders that `scenes.write_scenes` has made.
        folder: the run.
        options: how long and how fast.
        start_from: a checkpoint folder whose encoder to begin with; its heads are not kept.
        start: see `loop.Start`.

    Returns:
        The updates done in all.

    Raises:
        WeightsError: there is nothing to begin with, or it does not fit.
    """
    run.check(folder, config)
    torch.manual_seed(options.seed)
    if start_from is None:
        encoder = build(name, config)
    else:
        encoder = run.load_trained(start_from, name, config).requires_grad_(True)
    settings = cast(Network, encoder).config
    width = settings["encoder_embed_dim" if name == "beats" else "hidden_size"]
    model = AudioEncoderTraining(name, encoder, width)
    training = AudioTraining(shards, options)
    trainer = Trainer(name, model, folder, options, **start)
    save = saver(name, config, folder, options)

    def save_encoder(average: nn.Module, update: int) -> None:
        save(cast(AudioEncoderTraining, average).encoder, update)

    return trainer.fit(training.draw, training.losses, save_encoder)


def _resized(samples: NDArray[np.int16], count: int) -> Tensor:
    """Stretch samples (S,) to another number of them, float32."""
    wave = torch.from_numpy(np.array(samples)).float()
    return F.interpolate(wave[None, None], count, mode="linear")[0, 0]
