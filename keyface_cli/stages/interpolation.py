"""Stage two: sample the frames between two keyframes, and join the segments.

KeyFace (arXiv 2503.01715), stage two. A segment has T = 14 frames, of which the first and the last
are keyframes that the network sees clean; it samples all 14 again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from keyface_cli.diffusion.denoiser import denoise
from keyface_cli.diffusion.guidance import autoguidance, in_interval
from keyface_cli.diffusion.sampler import Denoiser, sample_euler
from keyface_cli.models.conditioning import Conditioning
from keyface_cli.stages.noise import anchor_for

if TYPE_CHECKING:
    from keyface_cli.models.unet import VideoUNet


@dataclass(frozen=True)
class InterpolationStage:
    """The interpolation network, its weaker guide, and the choices of a run.

    Args:
        network: the interpolation UNet.
        guide: the same architecture, trained less; may be None where `autoguidance` is 1. An
            anchored network without one is guided by its anchor, the two keyframes blended, which
            costs nothing.
        latent_scale: VAE latents times this are what is diffused.
        parameterization: "v" or "anchored", as both networks were trained.
        sigmas: falling noise levels that end in 0, see `diffusion.sampler.sigmas_for`.
        autoguidance: how far to go from the guide's answer to the network's; 1 is the network's.
        guidance_interval: the noise levels at which the guide is asked, least and greatest; None is
            all.

    Raises:
        ValueError: `autoguidance` is not 1, and there is neither a guide nor an anchor.
    """

    network: VideoUNet
    guide: VideoUNet | None
    latent_scale: float
    parameterization: str
    sigmas: Tensor
    autoguidance: float
    guidance_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.guide is None and self.parameterization == "v" and self.autoguidance != 1:
            raise ValueError("autoguidance needs a guide")

    def sample(
        self,
        keyframes: Tensor,
        audio: Tensor,
        noise: Tensor,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Sample all frames of B segments together.

        Segments do not see each other: the published code means to average their shared latents
        in every step, which never runs, and `merge_segments` averages pixels instead.

        Args:
            keyframes: scaled latents at the start and the end of each segment, (B, 2, C, h, w).
            audio: the network's `project_audio` of each frame's sound, (B, T, D). The guide is
                given the same.
            noise: unit Gaussian, (B, T, C, h, w).
            callback: called after each update with the number done and the latents.

        Returns:
            Scaled latents, float32, (B, T, C, h, w).
        """
        given = Conditioning(audio, keyframes / self.latent_scale)
        anchor = anchor_for(self.parameterization, keyframes, noise.shape[1])
        if anchor is not None:
            # such a network also sees it, in place of nothing, where the frames are missing
            given = replace(given, anchor=anchor / self.latent_scale)

        def denoiser(network: VideoUNet) -> Denoiser:
            return lambda x, sigma: denoise(
                lambda x, c_noise: network(x, c_noise, given),
                x,
                sigma,
                anchor=anchor,
            )

        guided = alone = denoiser(self.network)
        if (guide := self._guide(denoiser, anchor)) is not None:
            guided = autoguidance(alone, guide, self.autoguidance)
            guided = in_interval(guided, alone, self.guidance_interval)
        return sample_euler(guided, noise, self.sigmas, callback)

    def _guide(
        self, denoiser: Callable[[VideoUNet], Denoiser], anchor: Tensor | None
    ) -> Denoiser | None:
        if self.guide is not None:
            return denoiser(self.guide)
        return None if anchor is None else lambda x, sigma: anchor


def merge_segments(segments: Iterable[Tensor]) -> Iterator[Tensor]:
    """Join segments whose last frame is the next one's first: the shared frame is their mean.

    Args:
        segments: pictures (T, ...) of each segment in turn, T of 2 or more; they are changed.

    Yields:
        (T - 1, ...) frames per segment as soon as they are final; at the end the last frame,
        (1, ...).
    """
    last = None
    for segment in segments:
        if last is not None:
            segment[:1] = (last + segment[:1]) / 2
        last = segment[-1:].clone()
        yield segment[:-1]
        del segment  # large, and done with before the next is made
    if last is not None:
        yield last
