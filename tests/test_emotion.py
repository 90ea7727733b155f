"""Named emotions and curves: what lies between the keys, and what a model reads of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.interpolate import PchipInterpolator

from keyface_cli.emotion import EASES, NAMED, EmotionTrack, Key, load_emotion
from keyface_cli.errors import EmotionError

# published, and written out again: a slip in the program's table must not be one in the test's
TABLE = {
    **{"happy": (0.85, 0.75), "angry": (-0.443, 0.908), "surprised": (0, 0.85)},
    **{"sad": (-0.85, -0.35), "neutral": (0, 0), "fear": (0.181, 0.949)},
    **{"disgusted": (-0.8, 0.5), "contempt": (0.307, 0.535), "calm": (0.65, -0.5)},
    **{"excited": (0.9, 0.9), "bored": (-0.6, -0.9), "confused": (-0.3, 0.4)},
    **{"anxious": (-0.85, 0.9), "confident": (0.7, 0.4), "frustrated": (-0.8, 0.6)},
    **{"amused": (0.7, 0.5), "proud": (0.8, 0.4), "ashamed": (-0.8, -0.3)},
    **{"grateful": (0.7, 0.2), "jealous": (-0.7, 0.5), "hopeful": (0.7, 0.3)},
    **{"disappointed": (-0.7, -0.3), "curious": (0.5, 0.5), "overwhelmed": (-0.6, 0.8)},
}
# As a spreadsheet writes them: between keys of 1e-311, SciPy's own slopes overflow
values = st.floats(-1, 1).map(lambda value: round(value, 9))


@st.composite
def tracks(draw: st.DrawFn, eases: tuple[str, ...] = EASES) -> EmotionTrack:
    """Curves whose keys are at least 1 ms apart."""
    numbers = draw(st.lists(st.integers(0, 60_000), min_size=1, max_size=8, unique=True))
    keys = [
        Key(n / 1000, draw(values), draw(values), draw(st.sampled_from(eases)))
        for n in sorted(numbers)
    ]
    return EmotionTrack(tuple(keys))


def arrays(track: EmotionTrack) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([key.time_s for key in track.keys]),
        np.array([(key.valence, key.arousal) for key in track.keys]),
    )


GRID = np.linspace(-1, 61, 621)


@pytest.mark.parametrize("name", TABLE)
def test_name_holds_the_published_values(name: str) -> None:
    sampled = load_emotion(f" {name.upper()}").sample(3)
    assert sampled.dtype == np.float32
    assert_allclose(sampled, [TABLE[name]] * 3, rtol=1e-6)


def test_there_are_24_names() -> None:
    assert set(NAMED) == set(TABLE)
    assert len(NAMED) == 24


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(EmotionError, match="unknown emotion: hapy") as caught:
        load_emotion("hapy")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean happy? the names: neutral, happy,")
    with pytest.raises(EmotionError, match=r"unknown emotion: \(empty\)"):
        load_emotion("")


def test_missing_file_is_not_taken_for_a_name(tmp_path: Path) -> None:
    with pytest.raises(EmotionError, match=r"no\.csv: no such emotion file"):
        load_emotion(str(tmp_path / "no.csv"))
    with pytest.raises(EmotionError, match=f"{tmp_path}: cannot be read: Is a directory"):
        load_emotion(str(tmp_path))


@given(tracks(("linear",)))
def test_linear_is_numpys(track: EmotionTrack) -> None:
    t, y = arrays(track)
    expected = np.stack([np.interp(GRID, t, y[:, i]) for i in (0, 1)], axis=1)
    assert_allclose(track.at(GRID), expected, atol=1e-12)


@given(tracks(("hold",)))
def test_hold_keeps_the_last_key(track: EmotionTrack) -> None:
    for time, found in zip(GRID[::20], track.at(GRID[::20]), strict=True):
        passed = [key for key in track.keys if key.time_s <= time] or [track.keys[0]]
        assert tuple(found) == (passed[-1].valence, passed[-1].arousal)


@given(tracks(("smooth",)))
def test_smooth_is_scipys_pchip_with_level_ends(track: EmotionTrack) -> None:
    t, y = arrays(track)
    t = np.concatenate([[t[0] - 2, t[0] - 1], t, [t[-1] + 1, t[-1] + 2]])
    y = np.concatenate([y[:1], y[:1], y, y[-1:], y[-1:]])
    inside = GRID[(t[0] <= GRID) & (t[-1] >= GRID)]
    assert_allclose(track.at(inside), PchipInterpolator(t, y)(inside), atol=1e-9)


def test_smooth_holds_between_the_smallest_numbers() -> None:
    keys = (Key(0, 0, 0, "smooth"), Key(0.002, 0, 5e-324, "smooth"), Key(2, 1, -1, "smooth"))
    found = EmotionTrack(keys).at(GRID)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 1


@given(tracks())
def test_smooth_beside_hold_starts_level(track: EmotionTrack) -> None:
    """A mixed curve is scipy's over each stretch between two holds, wherever it is smooth."""
    t, y = arrays(track)
    breaks = [i for i, key in enumerate(track.keys) if key.ease == "hold"]
    starts = [0, *(i + 1 for i in breaks)]
    for first, last in zip(starts, [*breaks, len(t) - 1], strict=True):
        if first > last:
            continue
        part = slice(first, last + 1)
        nodes = np.concatenate([[t[first] - 1], t[part], [t[last] + 1]])
        levels = np.concatenate([y[first : first + 1], y[part], y[last : last + 1]])
        curve = PchipInterpolator(nodes, levels)
        for i in range(first, last):
            if track.keys[i].ease == "smooth":
                between = np.linspace(t[i], t[i + 1], 12, endpoint=False)
                assert_allclose(track.at(between), curve(between), atol=1e-9)


@given(tracks())
def test_no_ease_overshoots(track: EmotionTrack) -> None:
    _, y = arrays(track)
    assert (track.at(GRID) >= y.min(axis=0)).all()
    assert (track.at(GRID) <= y.max(axis=0)).all()
    for one, other in zip(track.keys, track.keys[1:], strict=False):
        found = track.at(np.linspace(one.time_s, other.time_s, 20, endpoint=False))
        for column, ends in ((0, (one.valence, other.valence)), (1, (one.arousal, other.arousal))):
            steps = np.diff(found[:, column])
            assert (min(ends) <= found[:, column]).all()
            assert (found[:, column] <= max(ends)).all()
            assert (steps >= -1e-12).all() or (steps <= 1e-12).all()


@given(tracks(("linear", "hold")), st.integers(0, 6), st.floats(0.05, 0.95))
def test_a_key_put_on_the_curve_changes_nothing(
    track: EmotionTrack, number: int, share: float
) -> None:
    i = number % len(track.keys)
    one = track.keys[i]
    end = track.keys[i + 1].time_s if i + 1 < len(track.keys) else one.time_s + 1
    time = one.time_s + share * (end - one.time_s)
    extra = Key(time, *track.at(np.array([time]))[0].tolist(), one.ease)
    split = EmotionTrack((*track.keys[: i + 1], extra, *track.keys[i + 1 :]))
    away = GRID[np.abs(GRID - end) > 1e-9]
    assert_allclose(split.at(away), track.at(away), atol=1e-9)


@given(tracks(("smooth",)), st.floats(0.05, 0.95))
def test_a_key_put_on_a_smooth_curve_acts_nearby_only(track: EmotionTrack, share: float) -> None:
    """PCHIP takes slopes from neighbours: only the two segments beside the split one may change."""
    middle = (len(track.keys) - 1) // 2
    if len(track.keys) < 2:
        return
    one, other = track.keys[middle : middle + 2]
    time = one.time_s + share * (other.time_s - one.time_s)
    extra = Key(time, *track.at(np.array([time]))[0].tolist(), "smooth")
    split = EmotionTrack((*track.keys[: middle + 1], extra, *track.keys[middle + 1 :]))
    first = track.keys[max(0, middle - 1)].time_s
    last = track.keys[min(len(track.keys) - 1, middle + 2)].time_s
    away = GRID[(first >= GRID) | (last <= GRID)]
    assert_allclose(split.at(away), track.at(away), atol=1e-9)
    assert_allclose(split.at(np.array([time])), track.at(np.array([time])), atol=1e-9)


def test_keys_as_near_as_numbers_can_be() -> None:
    tiny = 5e-324
    keys = tuple(Key(n * tiny, (-1.0) ** n, 0.3 * n, "smooth") for n in range(3))
    found = EmotionTrack(keys).sample(5)
    assert np.isfinite(found).all()
    assert_allclose(found[1:], [[1, 0.6]] * 4, rtol=1e-6)


def test_a_key_rules_from_its_own_frame_on() -> None:
    for frame in range(300):
        track = EmotionTrack((Key(0, -1, 0, "hold"), Key((frame + 1) / 25, 1, 0)))
        assert track.sample(frame + 2)[-2:, 0].tolist() == [-1, 1]


def test_a_curve_is_read_at_the_frames_of_keyframes() -> None:
    track = load_emotion("0,0@0 1,-0.5@1")
    read = track.at_keyframes(30)
    assert [(h.frame, h.time_s) for h in read] == [(0, 0), (13, 0.52), (26, 1.04), (29, 1.16)]
    assert_allclose([h.valence for h in read], [0, 0.52, 1, 1])
    assert_allclose([h.arousal for h in read], [0, -0.26, -0.5, -0.5])
    assert [h.frame for h in track.at_keyframes(1)] == [0, 0]


def test_strength_scales_and_clips_once() -> None:
    track = load_emotion("happy@0 sad:0.5@2:smooth 0.2,-0.9@4:hold")
    strong = track.scaled(1.5)
    assert_allclose(arrays(strong)[1], [[1, 1], [-0.6375, -0.2625], [0.3, -1]], rtol=1e-9)
    assert [key.ease for key in strong.keys] == ["linear", "smooth", "hold"]
    assert track.scaled(1) == track
    assert_allclose(track.scaled(0).sample(100), np.zeros((100, 2)))


def test_intensity_goes_from_neutral_to_the_name() -> None:
    assert_allclose(load_emotion("angry:0.5").sample(1), [[-0.2215, 0.454]], rtol=1e-6)
    assert_allclose(load_emotion("angry:0").sample(1), [[0, 0]])
    assert load_emotion("angry:1").keys[0] == load_emotion("angry").keys[0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ((), "holds no key"),
        ((Key(0, 1.1, 0),), "key 1 of the curve is out of range"),
        ((Key(0, 0, float("nan")),), "key 1 of the curve is out of range"),
        ((Key(-1, 0, 0),), "key 1 of the curve is out of range"),
        ((Key(0, 0, 0, "wild"),), "key 1 of the curve is out of range"),
        ((Key(0, 0, 0), Key(0, 0, 0)), "key 2 of the curve is not after the one before it"),
    ],
)
def test_track_of_bad_keys_is_refused(keys: tuple[Key, ...], message: str) -> None:
    with pytest.raises(EmotionError, match=message):
        EmotionTrack(keys)
