"""The keyframes of a video, sampled clip by clip, and again only where the curve has changed.

A clip of keyframes depends on the portrait, the sound and the seed, which stay as they are while a
curve is drawn, and on valence and arousal at its 14 slots. No clip depends on another one, so a
change of the curve reaches the clips in whose time it lies, with one exception: slot 0 of every
clip, the identity's, takes frame 0, so that a change of the curve's first value reaches them all.
A change between two keyframes reaches none.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import KEYFRAME_STEP
from keyface_cli.stages.timeline import KEYFRAMES_PER_CLIP, Timeline

if TYPE_CHECKING:
    from torch import Tensor

    from keyface_cli.jobs.plan import JobInputs
    from keyface_cli.options import GenerationOptions, Progress
    from keyface_cli.pipeline import KeyFacePipeline

Curve = NDArray[np.float32]
KEPT_CLIPS = 128  # whose latents are kept: 0.4 MB each of the bundled model, 0.9 of the published


class Strip:
    """The keyframes of a job under any curve, the same pixels as `animate --keyframes-only` gives.

    The sound is encoded once for each clip and the portrait once; latents are kept for the curves
    that were asked for last. It is for one thread at a time.

    Args:
        inputs: what the job's files hold; its curve is only the first one.
        pipeline: the model.
        options: the choices of the run.
        progress: told how far a clip is; what it raises ends the clip.
    """

    def __init__(
        self,
        inputs: JobInputs,
        pipeline: KeyFacePipeline,
        options: GenerationOptions,
        progress: Progress | None = None,
    ) -> None:
        self.timeline = Timeline(len(inputs.emotion))
        self.clips_sampled = 0
        self._engine = pipeline.engine
        self._run = pipeline.begin_keyframes(**inputs.arguments, options=options, progress=progress)
        self._contexts: dict[int, Tensor] = {}
        self._latents: OrderedDict[str, Tensor] = OrderedDict()

    def name_of(self, keyframe: int, curve: Curve) -> str:
        """Return a name that a keyframe has under every curve that gives it the same picture."""
        return f"{conditions(self.timeline, keyframe // KEYFRAMES_PER_CLIP, curve)}-{keyframe}"

    def has(self, clip: int, curve: Curve) -> bool:
        """Say whether a clip is sampled already."""
        return conditions(self.timeline, clip, curve) in self._latents

    def latents(self, clip: int, curve: Curve) -> Tensor:
        """Return the latents of a clip's keyframes, (K, C, h, w) float32 on the CPU.

        Args:
            clip: its number.
            curve: (N, 2), valence and arousal of each video frame.

        Raises:
            DeviceError: memory ran out.
        """
        name = conditions(self.timeline, clip, curve)
        if name not in self._latents:
            self._latents[name] = next(self._engine.running(self._sampled(clip, curve)))
            self.clips_sampled += 1
        self._latents.move_to_end(name)
        while len(self._latents) > KEPT_CLIPS:
            self._latents.popitem(last=False)
        return self._latents[name]

    def picture(self, keyframe: int, curve: Curve) -> NDArray[np.uint8]:
        """Return a keyframe, RGB (R, R, 3), its clip sampled where that is not done.

        Args:
            keyframe: its number, 0 <= keyframe < `timeline.num_keyframes`.
            curve: as for `latents`.

        Raises:
            DeviceError: memory ran out.
        """
        clip, place = divmod(keyframe, KEYFRAMES_PER_CLIP)
        latent = self.latents(clip, curve)[place]
        return next(self._engine.running(self._decoded(latent, keyframe)))

    def keep(self, clip: int, curve: Curve, latents: Tensor) -> None:
        """Take on a clip that was sampled elsewhere."""
        self._latents[conditions(self.timeline, clip, curve)] = latents

    def _sampled(self, index: int, curve: Curve) -> Iterator[Tensor]:
        import torch

        clip = self.timeline.clip(index)
        self._run.follow(torch.tensor(curve))
        if index not in self._contexts:
            self._contexts[index] = self._run.audio_context("keyframes", clip.audio)
        count = self.timeline.num_keyframes
        yield self._run.sample_keyframes(clip, self._contexts[index], count).cpu()

    def _decoded(self, latent: Tensor, keyframe: int) -> Iterator[NDArray[np.uint8]]:
        from keyface_cli.stream import to_uint8

        decoded = self._run.decode(latent[None].to(self._engine.device), KEYFRAME_STEP * keyframe)
        yield to_uint8(decoded)[0]


class StripStore:
    """A `KeyframeStore` of a strip's clips under one curve, for the video between them."""

    def __init__(self, strip: Strip, curve: Curve) -> None:
        self._strip, self._curve = strip, curve

    def get(self, clip: int) -> Tensor | None:
        """Return the latents of a clip's keyframes, None where it is not sampled."""
        return (
            self._strip.latents(clip, self._curve) if self._strip.has(clip, self._curve) else None
        )

    def put(self, clip: int, latents: Tensor) -> None:
        """Keep the latents of a clip's keyframes."""
        self._strip.keep(clip, self._curve, latents)


def conditions(timeline: Timeline, clip: int, curve: Curve) -> str:
    """Return a name for what a clip depends on, besides what stays while a curve is drawn."""
    values = np.ascontiguousarray(curve[list(timeline.clip(clip).audio)], np.float32)
    return hashlib.sha256(b"%d/%s" % (clip, values.tobytes())).hexdigest()[:24]
