"""The plan of keyframes and segments, for every length, and against the published planner."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from keyface_cli.stages.timeline import Timeline

LENGTHS = range(1, 3001)
# lengths at which the published planner has no fault but those of its leftover segment
HEALTHY = {
    *range(15, 27),
    *range(28, 40),
    *range(41, 53),
    *range(54, 66),
    *range(67, 79),
    157,
    326,
    664,
    1002,
}


def published_plans() -> list[dict[str, Any]]:
    """Plans recorded from the official code, from the directory of parity data."""
    here = Path(__file__).parent
    folder = Path(os.environ.get("KEYFACE_PARITY_DIR", here.parents[1] / "shared" / "parity"))
    if "KEYFACE_PARITY_DIR" not in os.environ and not folder.is_dir():
        folder = here / "data" / "parity"
    plans = json.loads((folder / "planning.json").read_text())["plans"]
    assert plans, "the file of plans is empty"
    return list(plans)


@pytest.mark.parametrize("n", [0, -1])
def test_a_video_needs_a_frame(n: int) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        Timeline(n)


def test_segments_cover_the_video_join_at_keyframes_and_take_their_own_audio() -> None:
    for n in LENGTHS:
        plan = Timeline(n)
        end = 0  # the last frame so far, and the keyframe at it
        joint = 0
        for segment in plan.segments():
            assert segment.first_frame == end, n
            assert segment.keyframes == (joint, joint + 1), n
            frames = range(end, end + 14)
            assert segment.audio == (*(f for f in frames if f < n), *[n - 1] * (end + 14 - n)), n
            read = segment.audio[0], segment.audio[13]
            assert read == (plan.keyframe_audio(joint), plan.keyframe_audio(joint + 1)), n
            end, joint = end + 13, joint + 1
        assert n <= end + 1 < n + max(13, 14 - n + 1), n  # covered, and no segment too many
        assert joint == plan.num_segments == plan.num_keyframes - 1, n


def test_every_keyframe_is_made_once_by_clips_that_start_with_the_identity() -> None:
    for n in LENGTHS:
        plan = Timeline(n)
        made: list[int] = []
        for clip in plan.clips():
            assert len(clip.audio) == 14
            assert clip.audio[0] == 0, n
            kept = clip.audio[1 : 1 + len(clip.keyframes)]
            assert kept == tuple(min(13 * k, n - 1) for k in clip.keyframes), n
            assert set(clip.audio[1 + len(kept) :]) <= {kept[-1]}, n
            made += clip.keyframes
        assert made == list(range(plan.num_keyframes)), n


def test_a_single_frame_still_makes_one_segment() -> None:
    plan = Timeline(1)
    assert (plan.num_clips, plan.num_keyframes, plan.num_segments) == (1, 2, 1)
    assert plan.segment(0).audio == (0,) * 14


def test_worked_example_of_two_clips() -> None:
    plan = Timeline(250)
    first, second = plan.clips()
    assert first.audio == (0, *range(0, 157, 13))
    assert second.audio == (0, 169, 182, 195, 208, 221, 234, 247, *[249] * 6)
    assert second.keyframes == range(13, 21)
    assert plan.segment(19).audio == (247, 248, *[249] * 12)


def test_healthy_lengths_equal_the_published_plan() -> None:
    compared = 0
    for record in published_plans():
        n = record["N"]
        if n not in HEALTHY:
            continue
        plan = Timeline(n)
        regular, leftover = divmod(n - 1, 13)
        clips = [c for g in record["groups"] for c in g["keyframe_slots_audio_index"]]
        for slots, clip in zip(clips, plan.clips(), strict=True):
            # its leftover's end keyframe, and the padding after it, hear frame 13 x regular where
            # ours hear the last frame; all keyframes before that agree
            same = [a for a in clip.audio if a <= 13 * regular]
            assert slots[: len(same)] == same, n
            assert set(slots[len(same) :]) <= {13 * regular}, n
            assert set(clip.audio[len(same) :]) <= {n - 1}, n
        segments = [tuple(s) for g in record["groups"] for s in g["segments_audio_index"]]
        ours = list(plan.segments())
        assert segments[:regular] == [s.audio for s in ours[:regular]], n
        assert len(segments) == len(ours) == regular + bool(leftover), n
        if leftover:  # theirs starts one frame late: the frame after the keyframe
            assert segments[-1][:-1] == ours[-1].audio[1:], n
        compared += 1
    assert compared >= 5
