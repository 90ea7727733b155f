"""How the published UNets' parameters are counted."""

from __future__ import annotations

from torch import nn


def core_parameters(unet: nn.Module) -> int:
    """Return the number of parameters as the published counts have it.

    It leaves out the audio projection, which the published code keeps in the conditioner, and the
    learned missing frame, which it keeps in the wrapper.
    """
    outside = ("audio_projection.", "missing_frame")
    return sum(p.numel() for n, p in unet.named_parameters() if not n.startswith(outside))
