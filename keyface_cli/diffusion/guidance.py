"""Guidance: combinations of denoisers that follow the conditions more closely than one does.

Each function here turns denoisers into a denoiser, D(x (B, T, C, h, w), sigma 0-d), for
`sampler.sample_euler`. A branch whose factor is 0 is not evaluated: a scale of 1 costs no more
than no guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from torch import Tensor

from keyface_cli.diffusion.sampler import Denoiser


class Branch(Enum):
    """Conditions of one evaluation of the keyframe network; the first three with emotion."""

    UNCONDITIONAL = "e0"  # neither audio nor identity
    IDENTITY = "e1"  # the identity frame, no audio
    FULL = "e2"  # the identity frame and the audio
    NEUTRAL = "n"  # as FULL, with valence and arousal 0


Branches = Callable[[Tensor, Tensor, Sequence[Branch]], Sequence[Tensor]]
"""(x, sigma, branches) -> the denoised latents of each branch, in order, from one network call."""


def keyframe_guidance(
    evaluate: Branches, *, audio: float, identity: float, emotion: float = 1.0
) -> Denoiser:
    """Guide by audio and identity with a scale for each, as published, and by emotion.

    D = audio (e2 - e1) + identity (e1 - e0) + e0, which is
    audio e2 + (identity - audio) e1 + (1 - identity) e0: identity 1 drops e0, equal scales drop
    e1, and both at 1 leave e2 alone. Not of the paper is (emotion - 1) (e2 - n), added to that:
    where a network shows an emotion faintly, it magnifies the difference to a neutral face.

    Args:
        evaluate: runs the branches it is asked for, batched.
        audio: guidance scale of the audio; 1 turns it off.
        identity: guidance scale of the identity frame; 1 turns it off.
        emotion: guidance scale of valence and arousal; 1 turns it off.
    """
    weights = {
        Branch.UNCONDITIONAL: 1 - identity,
        Branch.IDENTITY: identity - audio,
        Branch.FULL: audio + (emotion - 1),
        Branch.NEUTRAL: 1 - emotion,
    }
    branches = [branch for branch, weight in weights.items() if weight != 0]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = evaluate(x, sigma, branches)
        terms = [weights[b] * d for b, d in zip(branches, denoised, strict=True)]
        return sum(terms[1:], start=terms[0])

    return denoise


def in_interval(
    guided: Denoiser, plain: Denoiser, interval: tuple[float, float] | None
) -> Denoiser:
    """Guide at some noise levels alone (Kynkäänniemi et al. 2024), and elsewhere do without.

    Args:
        guided: with guidance.
        plain: the network's own answer.
        interval: the least and the greatest noise level that is guided; None is all.
    """
    if interval is None:
        return guided
    low, high = interval
    return lambda x, sigma: (guided if low <= sigma <= high else plain)(x, sigma)


def autoguidance(good: Denoiser, guide: Denoiser, scale: float) -> Denoiser:
    """Guide a network away from a weaker version of itself.

    D = guide + scale (good - guide), after Karras et al. 2024; both have the same conditions.

    Args:
        good: the network whose samples are wanted.
        guide: the weaker one, for instance an early checkpoint of the same training.
        scale: guidance scale; at 1 the guide is not evaluated, at 0 only the guide is.
    """
    if scale == 1:
        return good
    if scale == 0:
        return guide

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        weaker = guide(x, sigma)
        return weaker + scale * (good(x, sigma) - weaker)

    return denoise
