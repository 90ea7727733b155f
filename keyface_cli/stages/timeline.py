"""Which frames are keyframes, the sound of each, and how segments join: pure integers.

A video of N frames is made in two passes (KeyFace, arXiv 2503.01715; see README.md here):

    frame       0         13        26        39   ...        every 13th frame is a keyframe
    keyframe    0 ------- 1 ------- 2 ------- 3    ...
    segment         0         1         2          ...        14 frames, both ends are keyframes

Keyframes are sampled together in clips of 14 slots. Slot 0 of every clip is the identity slot: the
network was trained with the identity frame itself there, so what it makes of it is thrown away.
The other 13 slots are keyframes; a last clip with fewer repeats its last one. The frames of a
segment are then sampled between its two keyframes, and neighbouring segments share the keyframe
where they join.

Nothing here needs the sound, only its length: an index past the end means the last frame, so that
a video whose length is no multiple of 13 is planned a little too long and cut by the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from keyface_cli.config import KEYFRAME_STEP, NUM_FRAMES

KEYFRAMES_PER_CLIP = NUM_FRAMES - 1  # 13: slot 0 belongs to the identity


@dataclass(frozen=True)
class Clip:
    """One pass of the keyframe network: 14 slots, each a picture 13 frames after the one before."""

    index: int
    audio: tuple[int, ...]
    """Frame of the sound (and of the emotion) that conditions each of 14 slots; 0 for slot 0."""
    keyframes: range
    """Numbers of the keyframes that this clip makes: slot 1 holds the first of them."""


@dataclass(frozen=True)
class Segment:
    """One pass of the interpolation network: the 14 frames from keyframe `index` to the next."""

    index: int
    audio: tuple[int, ...]
    """Frame of the sound that conditions each of the 14 frames."""

    @property
    def first_frame(self) -> int:
        """Position in the video of the segment's first frame, which is keyframe `index`."""
        return KEYFRAME_STEP * self.index

    @property
    def keyframes(self) -> tuple[int, int]:
        """Numbers of the keyframes at its two ends."""
        return self.index, self.index + 1


@dataclass(frozen=True)
class Timeline:
    """The plan for a video of `num_frames` frames (at least 1) at 25 fps.

    Raises:
        ValueError: `num_frames` is less than 1.
    """

    num_frames: int

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"a video needs at least one frame, not {self.num_frames}")

    @property
    def num_segments(self) -> int:
        """How many segments cover the video: at least one, even for a single frame."""
        return max(1, -(-(self.num_frames - 1) // KEYFRAME_STEP))

    @property
    def num_keyframes(self) -> int:
        """How many keyframes: both ends of every segment."""
        return self.num_segments + 1

    @property
    def num_clips(self) -> int:
        """How many passes of the keyframe network make all keyframes."""
        return -(-self.num_keyframes // KEYFRAMES_PER_CLIP)

    def keyframe_audio(self, keyframe: int) -> int:
        """Frame of the sound that conditions a keyframe: its own position, or the last frame."""
        return min(KEYFRAME_STEP * keyframe, self.num_frames - 1)

    def clip(self, index: int) -> Clip:
        """Return one clip, 0 <= index < `num_clips`."""
        first = KEYFRAMES_PER_CLIP * index
        keyframes = range(first, min(first + KEYFRAMES_PER_CLIP, self.num_keyframes))
        frames = [0, *map(self.keyframe_audio, keyframes)]
        padding = [frames[-1]] * (NUM_FRAMES - len(frames))
        return Clip(index, (*frames, *padding), keyframes)

    def segment(self, index: int) -> Segment:
        """Return one segment, 0 <= index < `num_segments`."""
        start = KEYFRAME_STEP * index
        inside = range(start, min(start + NUM_FRAMES, self.num_frames))
        padding = [inside[-1]] * (NUM_FRAMES - len(inside))
        return Segment(index, (*inside, *padding))

    def clips(self) -> Iterator[Clip]:
        """Every clip, in the order of time."""
        return map(self.clip, range(self.num_clips))

    def segments(self) -> Iterator[Segment]:
        """Every segment, in the order of time."""
        return map(self.segment, range(self.num_segments))
