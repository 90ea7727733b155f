"""Sound, portrait and emotion become frames: the method of the paper, as generators.

    sound     -> tokens of the audio encoders -> each stage's audio context
    portrait  -> identity latent
    clips     -> keyframe latents      (stage one, when the next segment needs them)
    segments  -> latents of all frames (stage two, a chunk at a time) -> pictures -> merged frames

Nothing grows with the length of the sound: features, latents and pictures are dropped as they go.
What a clip, a segment or a chunk is depends on its place in the video alone, its noise too, so that
a stream which begins in the middle gives the same bits as one that comes by. How the networks do
what is asked of them here is told in `engine`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyface_cli.config import KEYFRAME_STEP, NUM_FRAMES
from keyface_cli.engine import Run
from keyface_cli.options import KeyframeStore
from keyface_cli.stages.interpolation import merge_segments
from keyface_cli.stages.timeline import Timeline


def frames(
    run: Run,
    plan: Timeline,
    *,
    first_frame: int = 0,
    last_frame: int | None = None,
    store: KeyframeStore | None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the video's frames from `first_frame` on, RGB (n, R, R, 3), as soon as they are final.

    Args:
        run: what samples and decodes.
        plan: which keyframes and segments the video has.
        first_frame: leave out those before it.
        last_frame: leave out this one and those after it.
        store: where keyframes are taken from and put to; None makes them anew.
    """
    run.progress("audio", 0, plan.num_frames)
    # a frame where two segments meet takes a picture of the one before too
    begin = max(0, first_frame - 1) // KEYFRAME_STEP
    position = KEYFRAME_STEP * begin
    stop = min(plan.num_frames, plan.num_frames if last_frame is None else last_frame)
    end = -(-stop // KEYFRAME_STEP)
    waiting: deque[Arrival] = deque()
    for merged in merge_segments(segments(run, plan, begin, end, store)):
        shown = merged[: max(0, stop - position)][max(0, first_frame - position) :]
        position += len(merged)
        if len(shown):
            waiting.append(Arrival(shown))
        del merged, shown  # large, and done with before the next are made
        # a GPU has been asked for the next pictures before these are waited for
        while len(waiting) > (run.engine.device.type == "cuda"):
            yield waiting.popleft().pixels()
    for rest in waiting:
        yield rest.pixels()


def keyframe_pictures(
    run: Run, plan: Timeline, store: KeyframeStore | None
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the place of each keyframe in the video, in frames, and its picture (R, R, 3)."""
    run.progress("audio", 0, plan.num_frames)
    for index, latent in enumerate(keyframes(run, plan, 0, store)):
        frame = KEYFRAME_STEP * index
        yield frame, to_uint8(run.decode(latent[None], frame))[0]


def keyframes(
    run: Run, plan: Timeline, first: int, store: KeyframeStore | None
) -> Iterator[Tensor]:
    """Stage one: yield the latent (C, h, w) of each keyframe from `first` on, clip by clip."""
    for clip in plan.clips():
        if clip.keyframes.stop <= first:
            continue
        latents = None if store is None else store.get(clip.index)
        if latents is None:
            context = run.audio_context("keyframes", clip.audio)
            latents = run.sample_keyframes(clip, context, plan.num_keyframes)
            if store is not None:
                store.put(clip.index, latents.cpu())
        else:
            run.progress("keyframes", clip.keyframes.stop, plan.num_keyframes)
        yield from latents[max(0, first - clip.keyframes.start) :].to(run.engine.device)


def segments(
    run: Run, plan: Timeline, begin: int, end: int, store: KeyframeStore | None
) -> Iterator[Tensor]:
    """Stage two: yield the pictures (T, 3, R, R) of segments `begin` to `end` - 1, in [0, 1].

    All segments of a chunk are sampled, those before `begin` and from `end` on too.
    """
    first = begin - begin % run.chunk
    left = islice(plan.segments(), first, end + -end % run.chunk)
    latents_of_keyframes = keyframes(run, plan, first, store)
    start = next(latents_of_keyframes)
    while group := list(islice(left, run.chunk)):
        ends = list(islice(latents_of_keyframes, len(group)))
        pairs = torch.stack([torch.stack(pair) for pair in pairwise([start, *ends])])
        start = ends[-1]
        wanted = [frame for segment in group for frame in segment.audio]
        context = run.audio_context("interpolation", wanted).view(len(group), NUM_FRAMES, -1)
        for segment, sampled in zip(group, run.sample_segments(group, pairs, context), strict=True):
            if not begin <= segment.index < end:
                continue
            # the last one may reach past the end
            shown = sampled[: plan.num_frames - segment.first_frame]
            pictures = run.decode(shown, segment.first_frame)
            done = min(segment.first_frame + len(pictures), plan.num_frames)
            run.progress("decode", done, plan.num_frames)
            yield pictures
            del pictures


class Arrival:
    """Pictures on their way to main memory: a GPU's copy goes on while other things are done.

    Args:
        pictures: (n, 3, R, R) in [0, 1].
    """

    def __init__(self, pictures: Tensor) -> None:
        # cut, not rounded, to whole numbers, as published
        pixels = torch.stack([(p * 255).to(torch.uint8).permute(1, 2, 0) for p in pictures])
        self._pixels = pixels.to("cpu", non_blocking=True)
        self._copied = cast(Any, torch.cuda.Event)() if pixels.is_cuda else None
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(pixels.device))

    def pixels(self) -> NDArray[np.uint8]:
        """Return RGB (n, R, R, 3) when they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._pixels.numpy()


def to_uint8(pictures: Tensor) -> NDArray[np.uint8]:
    """(n, 3, R, R) in [0, 1] -> (n, R, R, 3) in main memory."""
    return Arrival(pictures).pixels()
