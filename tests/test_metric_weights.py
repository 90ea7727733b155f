"""Fetching the metrics' networks from a local server, and what their table must hold."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cv2", reason="pip install 'keyface[eval]'")

from keyface_cli.evaluation.networks import fetching
from keyface_cli.evaluation.networks.weights import (
    BY_NAME,
    METRIC_WEIGHTS,
    MetricWeights,
    find_weights,
)
from keyface_cli.evaluation.registry import METRICS

Main = Callable[..., tuple[int, str, str]]
CONTENT = bytes(range(256)) * 40
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server that sends CONTENT as any name but "absent", and the ranges it was asked for."""
    ranges: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
            ranges.append(f"{self.path}:{start}")
            body = b"" if "absent" in self.path else CONTENT[start:]
            self.send_response(404 if not body else 206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if start:
                last = len(CONTENT) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(CONTENT)}")
            self.end_headers()
            self.wfile.write(body)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}", ranges
    http.shutdown()
    thread.join()
    http.server_close()


def network(url: str, name: str, sha256: str = "") -> MetricWeights:
    return MetricWeights(name, f"{name}.pth", "a network", "MIT", f"{url}/{name}", sha256)


def test_files_are_fetched_checked_and_recorded(
    server: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, ranges = server
    wanted = [
        network(url, "vgg", HASH),
        network(url, "absent"),
        network(url, "sface", HASH[:8]),
        network(url, "i3d"),
        MetricWeights("nsv", "nsv", "a classifier", "its own", hint="make it"),
    ]
    lines: list[str] = []
    (tmp_path / "i3d.pth.partial").write_bytes(CONTENT[:1000])  # an earlier run was killed
    failures = fetching.pull_metrics(tmp_path, report=lines.append, wanted=wanted)
    assert (tmp_path / "vgg.pth").read_bytes() == CONTENT
    assert (tmp_path / "i3d.pth").read_bytes() == CONTENT
    assert "/i3d:1000" in ranges
    assert [line.split(":")[0] for line in failures] == ["absent", "sface"]
    assert "the server answers 404" in failures[0]
    assert f"expected {HASH[:8]}: dropped" in failures[1]  # the whole hash counts
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i3d.pth", "vgg.pth", "weights.json"]
    assert json.loads((tmp_path / "weights.json").read_text())["vgg"]["sha256"] == HASH
    assert f"vgg: a network, {url}/vgg, licence MIT" in lines
    assert (
        f"i3d: a network, {url}/i3d, licence MIT; "
        "no sha256 of it is known, so what comes is not checked"
    ) in lines
    assert "nsv: not public: a classifier; make it" in lines
    count = len(ranges)
    assert fetching.pull_metrics(tmp_path, report=lines.append, wanted=wanted[:1]) == []
    assert len(ranges) == count  # nothing is fetched twice
    assert f"vgg: is there: {tmp_path / 'vgg.pth'}" in lines


def test_the_command_names_what_failed(
    server: tuple[str, list[str]], tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYFACE_HOME", str(tmp_path))
    wanted = (network(server[0], "vgg"), network(server[0], "absent"))
    monkeypatch.setattr(
        fetching.pull_metrics,
        "__kwdefaults__",
        {**(fetching.pull_metrics.__kwdefaults__ or {}), "wanted": wanted},
    )
    code, _, err = main("weights", "pull", "metrics")
    assert code == 1
    assert "error: 1 networks could not be fetched" in err
    assert (tmp_path / "metrics" / "vgg.pth").exists()


@pytest.mark.slow
def test_a_server_that_is_down_is_one_line(tmp_path: Path) -> None:
    (line,) = fetching.pull_metrics(tmp_path, wanted=[network("http://127.0.0.1:9", "vgg")])
    assert line.startswith("vgg: cannot fetch http://127.0.0.1:9/vgg: ")
    assert "\n" not in line
    assert not list(tmp_path.iterdir())


def test_every_network_is_described() -> None:
    assert {name for entry in METRICS.values() for name in entry.needs} == set(BY_NAME)
    for weights in METRIC_WEIGHTS:
        assert weights.licence
        assert (
            weights.url.startswith("https://") or weights.hint != MetricWeights("", "", "", "").hint
        )
    unpinned = {one.name for one in METRIC_WEIGHTS if one.url and len(one.sha256) != 64}
    assert unpinned == {"clip", "aesthetic"}


def test_named_files_come_before_fetched_ones(tmp_path: Path) -> None:
    assert find_weights("vgg", {}, tmp_path) is None
    fetched = tmp_path / BY_NAME["vgg"].file
    fetched.touch()
    assert find_weights("vgg", {}, tmp_path) == fetched
    assert find_weights("vgg", {"vgg": Path("mine")}, tmp_path) == Path("mine")
