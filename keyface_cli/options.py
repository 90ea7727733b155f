"""What one run may be told, what it tells, and where its keyframes are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from keyface_cli.config import SamplingConfig
from keyface_cli.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GenerationOptions:
    """The choices of one run; None means the model's own default.

    Args:
        seed: of all noise, any integer.
        steps: of each sampling, 1 or more.
        audio_guidance: scale of the sound in the keyframes; 1 is none.
        identity_guidance: scale of the portrait in the keyframes; 1 is none.
        autoguidance: scale of the interpolation's guide; 1 is none.
        chunk: segments (0.52 s each) that are sampled together: speed against memory.
        emotion_guidance: scale of valence and arousal in the keyframes; 1 is none.
        detail: share of the portrait's fine detail that is put back, 0 to 1.
    """

    seed: int = 0
    steps: int | None = None
    audio_guidance: float | None = None
    identity_guidance: float | None = None
    autoguidance: float | None = None
    chunk: int = 2
    emotion_guidance: float | None = None
    detail: float | None = None

    def sampling(self, defaults: SamplingConfig) -> SamplingConfig:
        """Fill what is None from a model's defaults.

        Raises:
            ConfigError: a number is out of its range.
        """
        scales = ("audio_guidance", "identity_guidance", "autoguidance", "emotion_guidance")
        names = ("steps", *scales, "detail")
        chosen = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in chosen.items() if value is not None}
        for name, value in {"chunk": self.chunk, **given}.items():
            least = 1 if name in ("steps", "chunk") else 0
            if not least <= value < float("inf"):
                raise ConfigError(f"{name} must be {least} or more: {value}")
        if given.get("detail", 0) > 1:
            raise ConfigError(f"detail must be 1 or less: {self.detail}")
        return replace(defaults, **given)


class Progress(Protocol):
    """Called while a video is made, often; must return quickly."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report how far a stage is.

        Args:
            stage: "audio", "keyframes", "interpolation" or "decode".
            done: keyframes in stage "keyframes", video frames in the others.
            total: of the whole video. Stages take turns, so each reaches its total by the end.
        """


class KeyframeStore(Protocol):
    """Where the keyframes of a video are kept between runs."""

    def get(self, clip: int) -> Tensor | None:
        """Return what was put for a clip, exactly, or None."""

    def put(self, clip: int, latents: Tensor) -> None:
        """Keep the latents of a clip's keyframes, float32 (K, C, h, w) on the CPU."""
