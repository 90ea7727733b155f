"""Audio features of a recording alone, without a video: for `keyface embed`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from keyface_cli.checkpoints.checkpoint import Checkpoint, encoder_names
from keyface_cli.config import SAMPLES_PER_FRAME
from keyface_cli.device import memory_errors, resolve_device
from keyface_cli.models.speech import CORE_FRAMES, Samples, audio_features, encoded_sound
from keyface_cli.pipeline import load_networks


def encode_audio(
    checkpoint: Checkpoint, waveform: Samples, device: str = "auto"
) -> dict[str, Iterator[Tensor]]:
    """Encode a recording with a model's audio encoders alone, to be used with many portraits.

    Args:
        checkpoint: the model.
        waveform: (S,) mono at 16 kHz in [-1, 1], an array or whatever reads slices of one.
        device: as in `KeyFacePipeline.load`.

    Returns:
        For each encoder blocks (n, 2, D) float32 on the CPU, made as they are asked for, of the
        N = ceil(S / 640) video frames in order.

    Raises:
        WeightsError, DeviceError: see `KeyFacePipeline.load`; memory may run out in a block too.
    """
    place = resolve_device(device)
    names = encoder_names(checkpoint.config)
    encoders = load_networks(checkpoint, names, place, dict.fromkeys(names, torch.float32))
    N = math.ceil(len(waveform) / SAMPLES_PER_FRAME)
    encoded = encoded_sound(checkpoint.config, waveform)

    def blocks(name: str) -> Iterator[Tensor]:
        with memory_errors(place), torch.inference_mode():
            features = audio_features(name, encoders[name], encoded)
        for first in range(0, N, CORE_FRAMES):
            with memory_errors(place), torch.inference_mode():
                block = features.frames(range(first, min(first + CORE_FRAMES, N))).cpu()
            yield block

    return {name: blocks(name) for name in names}
