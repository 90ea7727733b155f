"""Writing videos: what is in the file, how long it is, and that no failure leaves anything."""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from keyface_cli.errors import VideoError
from keyface_cli.media.ffmpeg import find_ffmpeg, last_words
from keyface_cli.output.formats import SoundTrack, check_output
from keyface_cli.output.writer import VideoWriter

SIZE = 64
METADATA = {"tool": "keyface 0", "model": "tiny", "note": "quote ' \" = ; # \\ ü"}


def make_sound(path: Path, rate: int = 16000, seconds: float = 1.0, channels: int = 1) -> Path:
    """Write noise that fades in, so that a shift in time shows."""
    count = round(rate * seconds)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (count, channels))
    soundfile.write(path, noise * np.linspace(0.2, 1.0, count)[:, None], rate)
    return path


def make_frames(count: int) -> NDArray[np.uint8]:
    """Return (count, 64, 64, 3): in each frame a white bar stands one pixel further right."""
    frames = np.full((count, SIZE, SIZE, 3), (200, 120, 40), dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[:, index % SIZE] = 255
    return frames


def write_video(
    output: Path, sound: Path, frames: NDArray[np.uint8], chunk: int = 7, **options: object
) -> Path:
    """Write `frames` in chunks; `start_s` and `duration_s` among the options go to the sound."""
    window = {key: options.pop(key) for key in ("start_s", "duration_s") if key in options}
    with VideoWriter(
        output,
        num_frames=len(frames),
        size=(SIZE, SIZE),
        sound=SoundTrack(sound, **window),  # type: ignore[arg-type]
        **options,  # type: ignore[arg-type]
    ) as writer:
        for first in range(0, len(frames), chunk):
            writer.write(frames[first : first + chunk])
    return output


def ffmpeg(*arguments: str | Path) -> bytes:
    command = [find_ffmpeg(), "-v", "error", "-nostdin", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def decode_frames(path: Path) -> NDArray[np.uint8]:
    data = ffmpeg("-i", path, "-map", "0:v", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1")
    return np.frombuffer(data, np.uint8).reshape(-1, SIZE, SIZE, 3)


def decode_sound(path: Path, channels: int = 1) -> NDArray[np.float32]:
    data = ffmpeg("-i", path, "-map", "0:a", "-f", "f32le", "pipe:1")
    return np.frombuffer(data, "<f4").reshape(-1, channels)


def describe(path: Path) -> str:
    """Return what ffmpeg says about a file's streams."""
    command = [find_ffmpeg(), "-hide_banner", "-nostdin", "-i", str(path)]
    return subprocess.run(command, capture_output=True, check=False).stderr.decode()


def boxes(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the type and the content of each box of an MP4 file or of a box that holds boxes."""
    position = 0
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        yield kind.decode("latin-1"), data[position + 8 : position + size]
        position += size


def track_seconds(path: Path) -> list[float]:
    """Return how long each track is shown, from its header (version 0: milliseconds)."""
    moov = dict(boxes(path.read_bytes()))["moov"]
    scale = struct.unpack_from(">I", dict(boxes(moov))["mvhd"], 12)[0]
    headers = [dict(boxes(content))["tkhd"] for kind, content in boxes(moov) if kind == "trak"]
    return [struct.unpack_from(">I", header, 20)[0] / scale for header in headers]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return make_sound(tmp_path / "in" / "sound.wav")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_frames_colours_and_tags_survive(sound: Path, out: Path) -> None:
    frames = make_frames(25)
    path = write_video(out / "a.mp4", sound, frames, crf=1)
    decoded = decode_frames(path)
    assert decoded.shape == frames.shape
    assert np.abs(decoded[:, :, 40:].astype(int) - frames[:, :, 40:])[:, :, 1:].mean() < 3
    bars = decoded[..., 2].mean(axis=1).argmax(axis=1)  # blue: weak in the ground, full in the bar
    np.testing.assert_array_equal(bars, np.arange(25))
    video = next(line for line in describe(path).splitlines() if "Video:" in line)
    assert "h264" in video
    assert "yuv420p(tv, bt709, progressive)" in video
    assert " 25 fps" in video
    kinds = [kind for kind, _ in boxes(path.read_bytes())]
    assert kinds.index("moov") < kinds.index("mdat")


def test_metadata_is_read_back(sound: Path, out: Path) -> None:
    path = write_video(out / "a.mp4", sound, make_frames(25), metadata=METADATA)
    text = ffmpeg("-i", path, "-f", "ffmetadata", "-").decode()
    comment = re.search(r"^comment=(.*)$", text, re.MULTILINE)
    assert comment is not None
    assert json.loads(re.sub(r"\\(.)", r"\1", comment[1])) == METADATA


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("count", [1, 25, 64])
def test_sound_and_picture_are_equally_long(sound: Path, out: Path, rate: int, count: int) -> None:
    make_sound(sound, rate, seconds=count / 25 - 0.01)
    path = write_video(out / "a.mp4", sound, make_frames(count))
    assert track_seconds(path) == pytest.approx([count / 25] * 2, abs=0.002)
    assert len(decode_frames(path)) == count
    assert abs(len(decode_sound(path)) / rate - count / 25) < 0.04


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_rate_and_channels_are_the_users_own(sound: Path, out: Path, channels: int) -> None:
    make_sound(sound, 44100, channels=channels)
    path = write_video(out / "a.mp4", sound, make_frames(25))
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[channels]
    assert f"44100 Hz, {layout}" in describe(path)
    assert "Audio: aac" in describe(path)
    assert decode_sound(path, channels).shape[1] == channels


def test_sound_is_the_window_asked_for(sound: Path, out: Path) -> None:
    make_sound(sound, 48000, seconds=3.0)
    original = soundfile.read(sound)[0]
    path = write_video(out / "a.mp4", sound, make_frames(25), start_s=1.0, duration_s=0.9)
    samples = decode_sound(path)[:, 0]
    window = original[48000 : 48000 + 43200]
    shifts = range(-200, 201)
    match = [float(samples[4000 + s : 40000 + s] @ window[4000:40000]) for s in shifts]
    assert shifts[int(np.argmax(match))] == 0
    assert np.abs(samples[44500:]).max() < 0.05  # padded: the window ends before the picture


def test_same_input_gives_the_same_file(sound: Path, out: Path) -> None:
    frames = make_frames(30)
    one = write_video(out / "a.mp4", sound, frames, chunk=30).read_bytes()
    assert write_video(out / "b.mp4", sound, frames, chunk=1).read_bytes() == one


def test_names_that_ffmpeg_might_take_for_something_else(sound: Path, out: Path) -> None:
    odd = sound.rename(sound.with_name("http: %03d'x.wav"))
    path = write_video(out / ("-n: %03d" + "ü" * 100 + ".mp4"), odd, make_frames(5))
    assert leftovers(out) == [path.name]
    assert len(decode_frames(path)) == 5


def test_result_has_ordinary_permissions_and_follows_links(sound: Path, out: Path) -> None:
    (out / "other.txt").touch()
    (out / "link.mp4").symlink_to(out / "real.mp4")
    write_video(out / "link.mp4", sound, make_frames(5), force=True)
    assert (out / "link.mp4").is_symlink()
    assert (out / "real.mp4").stat().st_mode == (out / "other.txt").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("chunks", [0, 1, 20])
def test_failure_leaves_the_old_file_alone(
    sound: Path, out: Path, error: type[BaseException], chunks: int
) -> None:
    (out / "a.mp4").write_text("old")
    writer = VideoWriter(
        out / "a.mp4", num_frames=99, size=(SIZE, SIZE), sound=SoundTrack(sound), force=True
    )

    def generate_and_fail() -> None:
        with writer:
            for _ in range(chunks):
                writer.write(make_frames(3))
            raise error

    with pytest.raises(error):
        generate_and_fail()
    assert leftovers(out) == ["a.mp4"]
    assert (out / "a.mp4").read_text() == "old"


def test_nothing_has_the_final_name_before_the_end(sound: Path, out: Path) -> None:
    with VideoWriter(
        out / "a.mp4", num_frames=25, size=(SIZE, SIZE), sound=SoundTrack(sound)
    ) as writer:
        writer.write(make_frames(25))
        assert not (out / "a.mp4").exists()
    assert leftovers(out) == ["a.mp4"]
    assert writer.waited_s > 0


def test_wrong_number_of_frames_is_our_own_mistake(sound: Path, out: Path) -> None:
    writer = VideoWriter(out / "a.mp4", num_frames=9, size=(SIZE, SIZE), sound=SoundTrack(sound))
    with pytest.raises(ValueError, match="5 frames were written, not 9"), writer:
        writer.write(make_frames(5))
    assert leftovers(out) == []
    writer = VideoWriter(out / "a.mp4", num_frames=9, size=(SIZE, SIZE), sound=SoundTrack(sound))
    with pytest.raises(ValueError, match="frames of float64"), writer:
        writer.write(make_frames(5).astype(float))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="even sizes, not 63x64"):
        VideoWriter(out / "a.mp4", num_frames=9, size=(63, 64), sound=SoundTrack(sound))


def test_ffmpeg_failing_says_its_last_lines(sound: Path, out: Path) -> None:
    sound.write_text("not a sound")
    with pytest.raises(VideoError, match=r"ffmpeg failed \(exit code \d+\): .*Invalid data") as got:
        write_video(out / "a.mp4", sound, make_frames(900))
    assert "\n" not in str(got.value)
    assert leftovers(out) == []


def fake_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a Python script in the place of ffmpeg."""
    program = folder / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "sys.stdin.buffer.read(99)\nsys.exit('av_write: No space left on device')",
            "disk is full",
        ),
        ("sys.stdin.buffer.read()\nsys.exit('No space left on device')", "disk is full"),
        ("sys.stdin.buffer.read(99)\nsys.exit('one\\n[a @ 0x1] two\\n')", r"code 1\): one; two$"),
        ("sys.exit()", r"exit code 0\): no message"),
    ],
)
def test_ffmpeg_dying_is_one_line(
    sound: Path, out: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    fake_ffmpeg(sound.parent, monkeypatch, script)
    with pytest.raises(VideoError, match=message):
        write_video(out / "a.mp4", sound, make_frames(900), chunk=9)
    assert leftovers(out) == []


def test_ffmpeg_absent_is_another_message(
    sound: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(out / "absent"))
    with pytest.raises(VideoError, match="ffmpeg was not found"):
        write_video(out / "a.mp4", sound, make_frames(9))


def test_last_words_leave_out_noise() -> None:
    text = "[aac @ 0x5] bad\n[aac @ 0x6] bad\n[a#0:1 @ 0x7] Task finished with error code: -22\n"
    assert last_words(text) == "bad"
    assert last_words("") == "no message"


def test_output_is_checked_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "dir.mp4").mkdir()
    (tmp_path / "plain").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty")
    check_output(tmp_path / "b.MP4")
    check_output(tmp_path / "a.mp4", force=True)
    for name, message in {
        "a.mp4": "exists already",
        "a.avi": r"must end in \.mp4",
        "plain": "is a file",
        "full": "is a folder that holds something else",
        "dir.mp4": "is a folder",
        "no/a.mp4": "no such folder",
        "a.mp4/b.mp4": "no such folder",
        "a" * 300 + ".mp4": "cannot be written to: File name too long",
    }.items():
        with pytest.raises(VideoError, match=message):
            check_output(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    check_output(Path("c.mp4"))
    assert leftovers(tmp_path) == ["a.mp4", "dir.mp4", "empty", "full", "plain"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder nobody can write to")
def test_folder_that_cannot_be_written_to() -> None:
    with pytest.raises(VideoError, match=r"/proc/\d+: cannot be written to: "):
        check_output(Path("/proc/self/a.mp4"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(VideoError, match="cannot be written to: Permission denied"):
        check_output(tmp_path / "a.mp4")
