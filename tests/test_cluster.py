"""Work shared out over a Ray cluster: two machines, as Ray stages them on one, and one killed."""

from __future__ import annotations

import csv
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cluster_pieces import broken, prepare_marked, set_up
from test_batch import table, wav
from test_preparation import film, find_marks, openings, speech, write_video

from keyface_cli.errors import DeviceError
from keyface_cli.jobs import cluster, cluster_video
from keyface_cli.media.ffmpeg import find_ffmpeg
from keyface_cli.training.preparation import parts, tracking

pytest.importorskip("ray")
# Ray leaves sockets and processes to its own end
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two machines with a place for one worker each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    here = str(Path(__file__).parent)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    )
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else other work on a busy machine starves it
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def test_a_lost_worker_s_piece_is_made_again(
    tmp_path: Path, machines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "SETTLE_S", 0.1)
    made: list[int] = []
    lost: list[int] = []
    pieces: Iterator[int | None] = iter([1, None, 2, 3, None, None, 4, 5, 6])  # None: not yet
    for piece in cluster.distribute(
        pieces, partial(set_up, tmp_path, 3), lost.append, address=machines.address
    ):
        made.append(piece)
    assert (tmp_path / "killed").exists()
    assert sorted(made) == [2, 4, 6, 8, 10, 12]
    assert lost == []


def test_a_worker_that_cannot_begin_is_said(machines: Any) -> None:
    with pytest.raises(DeviceError, match=r"cannot begin: .*no model here"):
        list(cluster.distribute(iter([1]), broken, print, address=machines.address))


def test_no_cluster_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "1")
    with pytest.raises(DeviceError, match="no cluster at auto"):
        list(
            cluster.distribute(iter([1]), partial(set_up, Path()), print, address="auto", workers=1)
        )


def frames(video: Path) -> str:
    """The MD5 of a video's frames."""
    command = [find_ffmpeg(), "-v", "error", "-i", str(video), "-an", "-f", "md5", "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_batch_survives_a_machine(
    tmp_path: Path, machines: Any, main: Main, tiny_checkpoint: Path, portrait_png: Path
) -> None:
    for seed in range(8):
        wav(tmp_path / "in" / f"{seed}.wav", 0.8, seed)
    rows = [f"{portrait_png},in/{seed}.wav,{{}}/{seed}.mp4" for seed in range(8)]
    for folder in ("one", "many"):
        (tmp_path / folder).mkdir()
        lines = [row.format(folder) for row in rows]
        table(tmp_path / f"{folder}.csv", "portrait,audio,output", *lines)
    common = ["-m", tiny_checkpoint, "--device", "cpu", "--dtype", "float32", "-q"]
    common += ["--set", "steps=1", "--set", "crop=center"]

    report = tmp_path / "many.report.csv"
    killed: list[int] = []

    def states() -> list[str]:
        return [row["status"] for row in csv.DictReader(report.read_text().splitlines())]

    def kill() -> None:
        while not report.exists() or states().count("done") < 2:
            time.sleep(0.05)
        killed.append(states().count("done"))
        machines.remove_node(machines.worker_nodes.copy().pop(), allow_graceful=False)

    threading.Thread(target=kill, daemon=True).start()
    code, _, err = main("batch", tmp_path / "many.csv", *common, "--cluster", machines.address)
    assert code == 0, err
    assert states() == ["done"] * 8
    assert len(killed) == 1
    assert killed[0] < 8
    assert not list((tmp_path / "many").glob("*.keyface"))

    code, _, err = main("batch", tmp_path / "one.csv", *common)
    assert code == 0, err
    for seed in range(8):
        one, many = (tmp_path / folder / f"{seed}.mp4" for folder in ("one", "many"))
        assert frames(one) == frames(many)


def test_a_long_video_survives_a_machine(
    tmp_path: Path,
    machines: Any,
    main: Main,
    tiny_checkpoint: Path,
    portrait_png: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_video, "CHUNKS", 1)  # sixteen stretches, two clips of keyframes
    wav(tmp_path / "speech.wav", 15.7, 3)
    common = ["-m", tiny_checkpoint, "--device", "cpu", "--dtype", "float32", "-q"]
    common += ["--steps", "1", "--crop", "center"]
    given = ["animate", portrait_png, tmp_path / "speech.wav"]
    killed: list[int] = []
    take = cluster_video._Shared.take

    def watch(shared: Any, piece: Any) -> Iterator[Any]:
        yield from take(shared, piece)
        if shared.position > 100 and not killed:
            killed.append(shared.position)
            machines.remove_node(machines.worker_nodes.copy().pop(), allow_graceful=False)

    monkeypatch.setattr(cluster_video._Shared, "take", watch)
    many, one = tmp_path / "many.mp4", tmp_path / "one.mp4"
    code, _, err = main(*given, "-o", many, *common, "--cluster", machines.address)
    assert code == 0, err
    assert killed
    assert killed[0] < 392
    code, _, err = main(*given, "-o", one, *common)
    assert code == 0, err
    assert frames(one) == frames(many)


def test_videos_are_prepared_though_a_machine_is_lost(
    tmp_path: Path,
    machines: Any,
    main: Main,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "videos").mkdir()
    for number in range(6):
        sound = speech(2.0, number)
        write_video(tmp_path / "videos" / f"{number}.mkv", film(50, openings(sound, 50)), sound)
    (tmp_path / "videos" / "damaged.mp4").write_text("no video")
    given = ["dataset", "prepare", tmp_path / "videos", "--model", tiny_checkpoint, "--neutral"]
    given += ["--shortest", "1", "--device", "cpu"]
    taken: list[str] = []
    take = parts._take

    def watch(writer: Any, key: str, *more: Any) -> None:
        take(writer, key, *more)
        taken.append(key)
        if len(taken) == 2:
            machines.remove_node(machines.worker_nodes.copy().pop(), allow_graceful=False)

    with monkeypatch.context() as patched:
        patched.setattr(parts, "_take", watch)
        patched.setattr(parts, "set_up", prepare_marked)
        code, _, err = main(*given, "-o", tmp_path / "many", "--cluster", machines.address)
    assert code == 0, err
    assert len(taken) == 7

    monkeypatch.setattr(tracking, "find_faces", find_marks)
    code, _, err = main(*given, "-o", tmp_path / "one")
    assert code == 0, err
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["index.json", "report.csv", "shard-00000.safetensors"]
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == files
    for name in files:
        one, many = ((tmp_path / folder / name).read_bytes() for folder in ("one", "many"))
        assert one == many, name
    assert (tmp_path / "one" / "report.csv").read_text().count("kept") > 3
