"""Fetching the published weights, from a local server that speaks what is needed of the hub."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from published import model_config, write_files
from safetensors.torch import load, save
from test_parity import ParitySet, open_set, parity_folder

from keyface_cli.checkpoints import download
from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.errors import WeightsError
from keyface_cli.presets import PRESETS

Main = Callable[..., tuple[int, str, str]]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SVD, OPEN_VAE = "stabilityai/stable-video-diffusion-img2vid", "stabilityai/sd-vae-ft-mse"


@dataclass
class Hub:
    """Repositories as `{name: {path: content}}`, and how the server misbehaves."""

    repositories: dict[str, dict[str, bytes]]
    url: str = ""
    licences: dict[str, str] = field(default_factory=dict)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)  # repository -> code, word
    gated: dict[str, tuple[int, str]] = field(default_factory=dict)  # the same, of files alone
    wrong: set[str] = field(default_factory=set)  # paths sent with other content
    cut_after: int | None = None  # bytes of one answer, then the connection ends, once
    ranges: list[tuple[str, int]] = field(default_factory=list)  # what was asked for, from where

    def tree(self, repository: str, folder: str) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
            for path, content in self.repositories[repository].items()
            if path.rpartition("/")[0] == folder
        ]

    def describe(self, repository: str) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": path,
                "size": len(content),
                "lfs": {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 130,
                },
            }
            for path, content in self.repositories[repository].items()
        ]
        card = {"license": self.licences[repository]} if repository in self.licences else {}
        return {"id": repository, "sha": COMMIT, "siblings": siblings, "cardData": card}


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def refuse(self, code: int, word: str) -> None:
            self.send_response(code)
            self.send_header("X-Error-Code", word)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)(/.*)?", path)
            repository = found[1] if found else ""
            if repository in hub.status:
                return self.refuse(*hub.status[repository])
            if repository not in hub.repositories:
                return self.refuse(404, "RepoNotFound")
            if "/revision/" in path and not path.endswith(("/main", COMMIT)):
                return self.refuse(404, "RevisionNotFound")
            if "/tree/" in path:
                content = json.dumps(hub.tree(repository, path.partition(COMMIT)[2][1:])).encode()
                return self.send(content, 200, body)
            if path.startswith("/api/"):
                content = json.dumps(hub.describe(repository)).encode()
                return self.send(content, 200, body)
            if repository in hub.gated:
                return self.refuse(*hub.gated[repository])
            name = path.split(f"/resolve/{COMMIT}/")[-1]
            if name not in hub.repositories[repository]:
                return self.refuse(404, "EntryNotFound")
            content = hub.repositories[repository][name]
            asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            start, stop = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(content))
            if body:
                hub.ranges.append((name, start))
                if name in hub.wrong:
                    content = bytes(len(content))
            self.send(content[start:stop], 206 if asked else 200, body, content, name)
            return None

        def send(
            self, part: bytes, code: int, body: bool, whole: bytes | None = None, name: str = ""
        ) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(part)))
            if whole is not None:
                self.send_header("ETag", f'"{hashlib.sha256(name.encode()).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if body:
                if hub.cut_after is not None and len(part) > hub.cut_after:
                    self.wfile.write(part[: hub.cut_after])
                    self.wfile.flush()
                    hub.cut_after = None
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.wfile.write(part)

    return Handler


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[ParitySet, Path]:
    parity, folder = open_set(parity_folder()), tmp_path_factory.mktemp("published")
    write_files(parity, folder)
    return parity, folder


@pytest.fixture
def server(
    published: tuple[ParitySet, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A server with every published file, small; the home folder is the test's own."""
    parity, folder = published

    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    ours = {
        "README.md": b"hello",
        "checkpoints/keyframe.pt": read("keyframe.pt"),
        "checkpoints/interpolation.pt": read("interpolation.pt"),
        "checkpoints/interpolation_bad.pt": read("interpolation_bad.pt"),
        "checkpoints/WavLM-Base+.pt": read("WavLM-Base+.pt"),
        "checkpoints/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt": read("BEATs.pt"),
    }
    state = Hub(
        {
            "toninio19/keyface": ours,
            "facebook/wav2vec2-base-960h": {
                name: read(f"wav2vec2/{name}") for name in ("config.json", "model.safetensors")
            },
            "stabilityai/stable-video-diffusion-img2vid": {
                f"vae/{name}": read(f"vae/{name}")
                for name in ("config.json", "diffusion_pytorch_model.fp16.safetensors")
            },
        },
        licences={"facebook/wav2vec2-base-960h": "apache-2.0"},
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    monkeypatch.setenv("KEYFACE_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(PRESETS, "keyface", model_config(parity))
    yield state
    server.shutdown()
    server.server_close()


def test_pull_makes_the_model_and_says_what_it_took(
    server: Hub, tmp_path: Path, main: Main
) -> None:
    code, out, err = main("weights", "pull")
    folder = tmp_path / "home" / "models" / "keyface"
    assert (code, out) == (0, f"{folder}\n"), err
    # what was matched, and under which licence
    assert "beats: toninio19/keyface/checkpoints/BEATs_iter3_plus" in err
    assert "licence MIT, see https://github.com/microsoft/unilm" in err
    assert "wav2vec2/weights: facebook/wav2vec2-base-960h/model.safetensors, licence apache" in err
    assert "not stated there" in err  # of the model's own repository, which names none
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify()
    assert set(checkpoint.components) >= {"keyframe_unet", "interpolation_guide", "wav2vec2"}
    recorded = {origin["role"]: origin for origin in checkpoint.manifest["origins"]}
    assert recorded.keys() == {role.name for role in download.ROLES}
    assert recorded["keyframe"]["revision"] == COMMIT
    assert len(recorded["keyframe"]["sha256"]) == 64
    assert not (tmp_path / "home" / "downloads").exists()
    # a second time nothing happens
    server.ranges.clear()
    code, _, err = main("weights", "pull")
    assert (code, "installed already" in err, server.ranges) == (1, True, [])


def test_a_cut_connection_is_continued(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "BLOCK_BYTES", 60_000)
    server.cut_after = 50_000
    found = [file for file in download.find() if file.role.name == "keyframe"]
    paths = download.fetch(found, tmp_path / "downloads")
    content = server.repositories["toninio19/keyface"]["checkpoints/keyframe.pt"]
    assert paths["keyframe"].read_bytes() == content
    # the block that was cut is asked for again, and no other
    blocks = range(0, len(content), 60_000)
    assert len(blocks) > 1
    assert [start for _, start in server.ranges] == [0, *blocks]


def test_a_killed_fetch_is_continued(server: Hub, tmp_path: Path) -> None:
    found = [file for file in download.find() if file.role.name == "keyframe"]
    content = server.repositories["toninio19/keyface"]["checkpoints/keyframe.pt"]
    path = download.fetch(found, tmp_path / "downloads")["keyframe"]
    path.rename(f"{path}.partial")
    partial = Path(f"{path}.partial")
    partial.write_bytes(content[:54321])
    server.ranges.clear()
    download.fetch(found, tmp_path / "downloads")
    assert path.read_bytes() == content
    assert server.ranges == [("checkpoints/keyframe.pt", 54321)]
    server.ranges.clear()
    download.fetch(found, tmp_path / "downloads")
    assert server.ranges == []


@pytest.mark.slow
def test_a_wrong_hash_is_dropped_and_said(server: Hub, tmp_path: Path, main: Main) -> None:
    server.wrong.add("checkpoints/interpolation.pt")
    code, out, err = main("weights", "pull")
    assert (code, out) == (1, "")
    assert "checkpoints/interpolation.pt of toninio19/keyface is not the file" in err
    assert not list((tmp_path / "home").rglob("interpolation.pt*"))
    assert not (tmp_path / "home" / "models" / "keyface").exists()
    # the files before it are kept, and not fetched again
    server.wrong.clear()
    server.ranges.clear()
    assert main("weights", "pull")[0] == 0
    assert "checkpoints/keyframe.pt" not in [name for name, _ in server.ranges]


@pytest.mark.parametrize(
    ("repository", "answer", "message"),
    [
        ("toninio19/keyface", (404, "RepoNotFound"), "toninio19/keyface: not found"),
        ("toninio19/keyface", (401, "RepoNotFound"), "hf auth login"),
        ("toninio19/keyface", (401, ""), "hf auth login"),
        ("toninio19/keyface", (403, ""), "the server answers 403"),
        ("facebook/wav2vec2-base-960h", (500, ""), "the server answers 500"),
    ],
)
def test_refusals_are_one_line(
    server: Hub, main: Main, repository: str, answer: tuple[int, str], message: str
) -> None:
    server.status[repository] = answer
    code, out, err = main("weights", "pull")
    assert (code, out) == (1, "")
    assert message in err
    assert repository in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert server.ranges == []


def open_the_other_vae(server: Hub) -> None:
    """Add the open VAE: the same encoder under diffusers' older names, and another decoder."""
    files = server.repositories[SVD]
    encoder = {}
    for name, tensor in load(files["vae/diffusion_pytorch_model.fp16.safetensors"]).items():
        if not name.startswith("decoder."):
            for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
                name = name.replace(f".{new}.", f".{old}.")
            encoder[name.replace("to_out.0", "proj_attn")] = tensor
    config = json.loads(files["vae/config.json"]) | {"_class_name": "AutoencoderKL"}
    del config["scaling_factor"]  # as published
    server.repositories[OPEN_VAE] = {
        "config.json": json.dumps(config).encode(),
        "diffusion_pytorch_model.safetensors": save(
            encoder
            | {"decoder.conv_in.weight": torch.ones(1), "post_quant_conv.bias": torch.ones(4)}
        ),
    }
    server.licences[OPEN_VAE] = "mit"


@pytest.mark.slow
@pytest.mark.parametrize("listed", [True, False])
def test_a_gate_is_walked_around(server: Hub, tmp_path: Path, main: Main, listed: bool) -> None:
    """As on the real hub everyone may see what the gated repository holds, or not even that."""
    assert main("weights", "pull")[0] == 0
    folder = tmp_path / "home" / "models" / "keyface"
    expected = Checkpoint.open(folder).load("vae").state_dict()
    open_the_other_vae(server)
    (server.gated if listed else server.status)[SVD] = (403, "GatedRepo")
    server.ranges.clear()
    code, out, err = main("weights", "pull", "--force")
    assert (code, out) == (0, f"{folder}\n"), err
    assert f"{SVD} asks for a login" in err
    assert f"vae/weights: {OPEN_VAE}/diffusion_pytorch_model.safetensors, licence mit" in err
    assert "vae: avatar.png encoded and decoded: " in err
    assert not [name for name, _ in server.ranges if name.startswith("vae/")]
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify()
    found = checkpoint.load("vae").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert OPEN_VAE in [origin["repository"] for origin in checkpoint.manifest["origins"]]
    assert "sd-vae-ft-mse: mit" in checkpoint.manifest["licence"]


def test_a_dry_run_lists_everything_and_fetches_nothing(
    server: Hub, tmp_path: Path, main: Main
) -> None:
    code, out, err = main("weights", "pull", "--dry-run", "--speed", "8")
    assert code == 0, err
    assert server.ranges == []
    assert not (tmp_path / "home").exists()
    size = len(server.repositories["toninio19/keyface"]["checkpoints/keyframe.pt"])
    assert f"{size / 1e6:9,.1f} MB  toninio19/keyface/checkpoints/keyframe.pt  not stated" in out
    assert "facebook/wav2vec2-base-960h/model.safetensors  apache-2.0  http" in out
    total = sum(file.size for file in download.find())
    assert f"GB in all: {total / 1e6 / 60:.1f} min at 8 Mbit/s" in out
    assert "GB are free in" in out
    code, _, _ = main("weights", "pull", "metrics", "--dry-run")
    assert code == 2


def test_an_unknown_revision_is_named(server: Hub, main: Main) -> None:
    code, _, err = main("weights", "pull", "--revision", "v9")
    assert (code, "no such revision: v9" in err) == (1, True), err


def test_a_missing_file_lists_what_there_is(server: Hub, main: Main) -> None:
    del server.repositories["toninio19/keyface"]["checkpoints/keyframe.pt"]
    code, _, err = main("weights", "pull")
    assert code == 1
    assert "no file for keyframe" in err
    assert "checkpoints/interpolation.pt" in err
    assert "keyface weights convert" in err


def test_files_are_matched_by_role_under_other_names(server: Hub) -> None:
    files = server.repositories["toninio19/keyface"]
    for old, new in (
        ("checkpoints/keyframe.pt", "weights/keyframes_v2.ckpt"),
        ("checkpoints/interpolation.pt", "weights/Interpolation_final.pt"),
        ("checkpoints/interpolation_bad.pt", "weights/bad.pt"),
        ("checkpoints/WavLM-Base+.pt", "WavLM-Base-plus.pt"),
    ):
        files[new] = files.pop(old)
    matched = {file.role.name: file.path for file in download.find()}
    assert matched["keyframe"] == "weights/keyframes_v2.ckpt"
    assert matched["interpolation"] == "weights/Interpolation_final.pt"
    assert matched["guide"] == "weights/bad.pt"
    assert matched["wavlm"] == "WavLM-Base-plus.pt"


def test_a_server_that_is_down_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, main: Main
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("KEYFACE_HOME", str(tmp_path))
    import huggingface_hub  # noqa: F401  its import is not the server's fault

    started = time.perf_counter()
    code, out, err = main("weights", "pull")
    assert (code, out) == (1, "")
    assert f"cannot reach http://127.0.0.1:{port}" in err
    assert time.perf_counter() - started < 5


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_said_within_five_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, main: Main
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("KEYFACE_HOME", str(tmp_path))
        started = time.perf_counter()
        code, _, err = main("weights", "pull")
    assert (code, "cannot reach" in err) == (1, True)
    assert time.perf_counter() - started < 5.5


def test_too_small_a_disk_is_said_before_anything_is_fetched(
    server: Hub, monkeypatch: pytest.MonkeyPatch, main: Main
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    code, _, err = main("weights", "pull")
    assert code == 1
    assert "not enough space" in err
    assert "KEYFACE_HOME" in err
    assert server.ranges == []


def test_a_disk_that_fills_up_is_said_and_the_fetch_can_go_on(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = server.repositories["toninio19/keyface"]["checkpoints/keyframe.pt"]
    real = shutil.copyfileobj

    def fill(source: Any, out: Any, length: int) -> None:
        out.write(source.read(1000))
        raise OSError(28, "No space left on device")

    found = [file for file in download.find() if file.role.name == "keyframe"]
    monkeypatch.setattr(shutil, "copyfileobj", fill)
    with pytest.raises(WeightsError, match="the disk is full"):
        download.fetch(found, tmp_path / "downloads")
    monkeypatch.setattr(shutil, "copyfileobj", real)
    server.ranges.clear()
    paths = download.fetch(found, tmp_path / "downloads")
    assert server.ranges == [("checkpoints/keyframe.pt", 1000)]
    assert paths["keyframe"].read_bytes() == content
