"""One long video made by the machines of a Ray cluster: clips of keyframes, then stretches of it.

Each worker reads the job's files itself, under the same paths, and loads the model once. What it
makes depends on the place in the video alone, so the frames are those of one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.config import KEYFRAME_STEP, USUAL_CHUNK
from keyface_cli.errors import DeviceError
from keyface_cli.jobs.cluster import distribute
from keyface_cli.jobs.plan import Plan, read
from keyface_cli.options import GenerationOptions, KeyframeStore, Progress
from keyface_cli.stages.timeline import KEYFRAMES_PER_CLIP, Timeline

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from keyface_cli.jobs.runner import ComputeOptions

CHUNKS = 16  # in a stretch; the chunk before it is sampled again, for the frame where they meet
AHEAD = 16  # stretches that may be finished before the one that is written next


@dataclass(frozen=True)
class Clip:
    """A clip of keyframes to sample, and their latents when it is done."""

    index: int
    latents: Tensor | None = None


@dataclass(frozen=True)
class Stretch:
    """Frames to make, what there is of keyframes, and RGB (n, R, R, 3) when it is done."""

    first: int
    last: int  # exclusive
    clips: dict[int, Tensor]
    frames: NDArray[np.uint8] | None = None


@dataclass
class Kept:
    """A `KeyframeStore` in memory."""

    clips: dict[int, Tensor] = field(default_factory=dict)

    def get(self, clip: int) -> Tensor | None:
        """Return what was put for a clip, or None."""
        return self.clips.get(clip)

    def put(self, clip: int, latents: Tensor) -> None:
        """Keep the latents of a clip."""
        self.clips[clip] = latents


class ClusterPipeline:
    """Stands for a loaded model whose networks are on other machines.

    Args:
        plan: the job.
        checkpoint: the model.
        compute: where and how each worker computes.
        address: of the cluster, see `cluster.distribute`.
    """

    def __init__(
        self, plan: Plan, checkpoint: Checkpoint, compute: ComputeOptions, address: str
    ) -> None:
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.chunk = USUAL_CHUNK  # the same for all workers, whatever memory each has
        stages = ("load", "audio", "keyframes", "interpolation", "decode")
        self.timings = dict.fromkeys(stages, 0.0)  # not known: the workers' clocks run side by side
        # who signs stays here
        self._set_up = partial(set_up, replace(plan, signer=None), checkpoint, compute)
        self._address = address

    def stream(
        self,
        portrait: Any,
        waveform: Any,
        emotion: NDArray[np.float32],
        options: GenerationOptions,
        progress: Progress,
        features: Mapping[str, Any] | None = None,
        *,
        first_frame: int = 0,
        store: KeyframeStore | None = None,
        view: Any = None,
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames from `first_frame` on, in order; see `KeyFacePipeline.stream`.

        Raises:
            DeviceError: there is no such cluster, or all workers of a piece were lost.
        """
        del portrait, waveform, features, view  # every worker reads its own
        chunk = options.chunk or self.chunk
        shared = _Shared(Timeline(len(emotion)), chunk, first_frame, store or Kept())
        begin = partial(self._set_up, options=replace(options, chunk=chunk))
        made: Iterator[Clip | Stretch] = distribute(
            shared.pieces(), begin, _lose, address=self._address
        )
        for piece in made:
            yield from shared.take(piece)
            progress("decode", shared.position, len(emotion))


class _Shared:
    """Which pieces a video has, and what of them is there."""

    def __init__(
        self, timeline: Timeline, chunk: int, first_frame: int, store: KeyframeStore
    ) -> None:
        self.timeline, self.position, self._store = timeline, first_frame, store
        self._chunk_frames = KEYFRAME_STEP * chunk
        self._ready: dict[int, NDArray[np.uint8]] = {}

    def pieces(self) -> Iterator[Clip | Stretch | None]:
        """Yield clips, then stretches whose clips are there; None while nothing can begin."""
        length = CHUNKS * self._chunk_frames
        edges = range(self.position - self.position % length, self.timeline.num_frames, length)
        for index in self._clips(self.position, self.timeline.num_frames):
            if self._store.get(index) is None:
                yield Clip(index)
        for edge in edges:
            first, last = max(edge, self.position), min(edge + length, self.timeline.num_frames)
            while first - self.position >= AHEAD * length:
                yield None
            while None in (found := self._found(first, last)).values():
                yield None
            yield Stretch(first, last, {i: z for i, z in found.items() if z is not None})

    def take(self, piece: Clip | Stretch) -> Iterator[NDArray[np.uint8]]:
        """Keep a finished piece, and yield the frames that are next."""
        if isinstance(piece, Clip):
            assert piece.latents is not None
            self._store.put(piece.index, piece.latents)
            return
        assert piece.frames is not None
        self._ready[piece.first] = piece.frames
        while self.position in self._ready:
            frames = self._ready.pop(self.position)
            self.position += len(frames)
            yield frames

    def _found(self, first: int, last: int) -> dict[int, Tensor | None]:
        return {index: self._store.get(index) for index in self._clips(first, last)}

    def _clips(self, first: int, last: int) -> range:
        """The clips that hold the keyframes of the chunks of some frames."""
        begin = max(0, first - 1) // self._chunk_frames * self._chunk_frames // KEYFRAME_STEP
        end = min(-(-last // KEYFRAME_STEP), self.timeline.num_keyframes - 1)
        return range(begin // KEYFRAMES_PER_CLIP, end // KEYFRAMES_PER_CLIP + 1)


def set_up(
    plan: Plan, checkpoint: Checkpoint, compute: ComputeOptions, *, options: GenerationOptions
) -> Callable[[Clip | Stretch], Clip | Stretch]:
    """Return what makes pieces of a job's video, in a worker."""
    from keyface_cli.jobs.runner import Runner

    inputs = read(plan, checkpoint)
    pipeline = Runner(checkpoint, compute).load(encoders=inputs.features is None)
    given = inputs.arguments | {"options": options}
    timeline = Timeline(len(inputs.emotion))

    def sample(index: int) -> Iterator[Tensor]:
        run = pipeline.begin_keyframes(**given)
        clip = timeline.clip(index)
        context = run.audio_context("keyframes", clip.audio)
        yield run.sample_keyframes(clip, context, timeline.num_keyframes).cpu()

    def make(piece: Clip | Stretch) -> Clip | Stretch:
        if isinstance(piece, Clip):
            return replace(piece, latents=next(pipeline.engine.running(sample(piece.index))))
        frames = pipeline.stream(
            **given,
            first_frame=piece.first,
            last_frame=piece.last,
            store=Kept(dict(piece.clips)),
        )
        return replace(piece, clips={}, frames=np.concatenate(list(frames)))

    return make


def _lose(piece: Clip | Stretch) -> None:
    raise DeviceError(
        "every worker that tried a piece of the video was lost", "see the memory it needs"
    )
