"""Signed results: by options, by the environment, in batches; refused early, and resumed."""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import keyface_cli
from keyface_cli.credentials import signing, validation
from keyface_cli.credentials.certificates import new_key_pair
from keyface_cli.credentials.marks import COMPOSITE, GENERATED, read_mark
from keyface_cli.credentials.signing import Signer
from keyface_cli.credentials.validation import read_credentials
from keyface_cli.errors import CredentialsError
from keyface_cli.files import file_hash
from keyface_cli.jobs.jobfolder import folder_for
from keyface_cli.jobs.signing import _load_once
from keyface_cli.media.ffmpeg import find_ffmpeg
from keyface_cli.output.metadata import read_metadata
from keyface_cli.pipeline import KeyFacePipeline

pytest.importorskip("c2pa")

Main = Callable[..., tuple[int, str, str]]
FAST = ("--steps", 1, "--dtype", "float32", "--device", "cpu", "--crop", "center", "--quiet")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "keys"
    new_key_pair(folder, "Jane Doe")
    return folder


@pytest.fixture
def sign(keys: Path) -> tuple[object, ...]:
    return ("--sign", keys / "cert.pem", "--key", keys / "key.pem")


@pytest.fixture
def animate(
    main: Main,
    tiny_checkpoint: Path,
    portrait_png: Path,
    tone_wav: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Main:
    """A function that animates in an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*options: object) -> tuple[int, str, str]:
        return main("animate", portrait_png, tone_wav, "--model", tiny_checkpoint, *FAST, *options)

    return run


def content(path: Path) -> bytes:
    """The hash of every stream as it is decoded."""
    source = path / "%06d.png" if path.is_dir() else path
    command = [find_ffmpeg(), "-v", "error", "-nostdin", "-i", str(source)]
    command += ["-map", "0", "-f", "streamhash", "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.parametrize("name", ["a.mp4", "a.MOV", "a.gif", "frames"])
def test_a_signed_result_is_whole_and_shows_what_the_unsigned_one_shows(
    animate: Main, main: Main, sign: tuple[object, ...], portrait_png: Path, name: str
) -> None:
    path, plain = Path(name), Path(f"plain{Path(name).suffix}")
    assert animate("-o", path, *sign, "--duration", 0.5)[0] == 0
    assert animate("-o", plain, "--duration", 0.5)[0] == 0
    assert content(path) == content(plain)
    assert sorted(os.listdir()) == sorted([name, plain.name])
    assert read_metadata(path) == read_metadata(plain)
    found = read_credentials(path)
    assert found is not None
    assert (found.signer, found.source, found.refused) == ("Jane Doe", GENERATED, False)
    assert found.generator == f"keyface {keyface_cli.__version__}"
    assert found.ingredients[0] == f"portrait.png SHA-256 {file_hash(portrait_png)}"
    assert found.ingredients[1].startswith("tone.wav SHA-256 ")
    code, out, _ = main("info", path)
    assert code == 0
    assert "model_sha256: " in out
    assert "credentials: whole" in out
    assert read_credentials(plain) is None
    assert read_mark(plain) == GENERATED


def test_a_preview_is_signed_as_a_video_is(
    main: Main, sign: tuple[object, ...], tiny_checkpoint: Path, portrait_png: Path,
    tone_wav: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)

    def preview(name: str, *options: object) -> Path:
        words = ["happy", "--audio", tone_wav, "--portrait", portrait_png, "-o", name, *options]
        code, out, err = main("emotion", "preview", *words, "--model", tiny_checkpoint, *FAST)
        assert (code, out) == (0, f"{name}\n"), err
        return Path(name)

    plain, signed = preview("plain.png"), preview("signed.png", *sign)
    assert content(signed) == content(plain)
    assert read_metadata(signed) == read_metadata(plain)
    assert read_mark(signed) == read_mark(plain) == GENERATED
    assert read_credentials(plain) is None
    found = read_credentials(signed)
    assert found is not None
    assert (found.signer, found.source, found.refused) == ("Jane Doe", GENERATED, False)
    assert found.ingredients[0] == f"portrait.png SHA-256 {file_hash(portrait_png)}"
    assert "credentials: whole" in main("info", signed)[1]
    changed = bytearray(signed.read_bytes())
    changed[-40] ^= 1
    signed.write_bytes(changed)
    code, out, _ = main("info", signed)
    assert (code, "credentials: changed" in out) == (1, True)
    monkeypatch.setenv("KEYFACE_SIGN_CERT", str(keys / "cert.pem"))
    monkeypatch.setenv("KEYFACE_SIGN_KEY", str(keys / "key.pem"))
    assert read_credentials(preview("by-environment.png")) is not None
    monkeypatch.setenv("KEYFACE_SIGN_KEY", str(keys / "none.pem"))
    code, _, err = main(
        "emotion", "preview", "happy", "--audio", tone_wav, "--portrait", portrait_png, "-o",
        "late.png", "--model", tiny_checkpoint, *FAST,
    )  # fmt: skip
    assert (code, "none.pem: no such file" in err.replace("\n", "")) == (1, True)
    assert sorted(os.listdir()) == ["by-environment.png", "plain.png", "signed.png"]


def test_pasted_back_it_is_a_composite_and_pictures_are_shown_on_request(
    animate: Main, sign: tuple[object, ...]
) -> None:
    import c2pa

    for more, shown in (((), False), (("--ingredients",), True)):
        done = animate("-o", "a.mp4", "-f", "--paste-back", "--duration", 0.2, *sign, *more)
        assert done[0] == 0
        found = read_credentials(Path("a.mp4"))
        assert found is not None
        assert (found.source, read_mark(Path("a.mp4"))) == (COMPOSITE, COMPOSITE)
        with c2pa.Reader("a.mp4") as reader:
            manifest = reader.get_active_manifest()
        assert ["thumbnail" in one for one in manifest["ingredients"]] == [shown, False]
        (recipe,) = (
            one["data"] for one in manifest["assertions"] if one["label"] == signing.RECIPE
        )
        assert recipe == read_metadata(Path("a.mp4"))


def test_what_cannot_be_signed_is_refused_in_one_line_before_any_frame(
    animate: Main,
    keys: Path,
    sign: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(KeyFacePipeline, "load", lambda *_, **__: pytest.fail("was loaded"))
    other, secret, _ = new_key_pair(tmp_path / "other", "other")
    chain, key = keys / "cert.pem", keys / "key.pem"
    late = tmp_path / "late"
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--sign", chain, "--key", secret), "is not the key of the first certificate"),
        (("--sign", other, "--key", key), "is not the key of the first certificate"),
        (("--sign", late, "--key", key), f"{late}: no such file"),
        (("--sign", chain, "--key", chain), "holds no private key"),
        (("--sign", chain), "signs nothing without its key"),
        (("--key", key), "--key is of no use without --sign"),
        (("--timestamp", "http://127.0.0.1:9"), "--timestamp is of no use without --sign"),
        ((*sign, "--timestamp", "http://127.0.0.1:9"), "gave no time stamp"),
        ((*sign, "-o", "a.webm"), "cannot be signed into .webm"),
        ((*sign, "-o", "-"), "a pipe cannot be signed"),
        ((*sign, "-o", "frames", "--timestamp", "http://x"), "of every picture"),
    ]
    for options, said in cases:
        code, out, err = animate(*options)
        assert (code, out) == (1, ""), options
        line = err.splitlines()[0]
        assert line.startswith("error: ")
        assert said in line
        assert sum(one.startswith("error") for one in err.splitlines()) == 1
        assert os.listdir() == []


def test_a_key_that_only_others_may_read_is_refused(animate: Main, keys: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    key = Path(shutil.copy(keys / "key.pem", "key.pem"))
    key.chmod(0)
    code, _, err = animate("--sign", keys / "cert.pem", "--key", key)
    assert code == 1
    assert "cannot be read: Permission denied" in err


@pytest.mark.slow
def test_the_environment_signs_a_batch_and_what_was_left_unsigned(
    animate: Main,
    main: Main,
    keys: Path,
    tiny_checkpoint: Path,
    portrait_png: Path,
    tone_wav: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open("jobs.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("portrait", "audio", "output", "steps", "crop", "duration"),
                (portrait_png, tone_wav, "a.mp4", 1, "center", 0.2),
                (portrait_png, tone_wav, "b.webm", 1, "center", 0.2),
            ]
        )
    run = ("batch", "jobs.csv", "--skip-existing", "--model", tiny_checkpoint, "--device", "cpu")
    assert main(*run)[0] == 0
    assert read_credentials(Path("a.mp4")) is None
    monkeypatch.setenv("KEYFACE_SIGN_CERT", str(keys / "cert.pem"))
    monkeypatch.setenv("KEYFACE_SIGN_KEY", str(keys / "key.pem"))
    code, out, _ = main(*run)
    assert code == 1
    assert "done row 2 " in out  # it was unsigned
    assert "failed row 3 " in out
    assert "cannot be signed into .webm" in out
    found = read_credentials(Path("a.mp4"))
    assert found is not None
    assert not found.refused
    assert "skipped row 2 " in main(*run)[1]
    assert animate("-o", "c.gif", "--duration", 0.2)[0] == 0
    assert read_credentials(Path("c.gif")) is not None


def test_a_signature_that_fails_at_the_end_costs_no_frame(
    animate: Main, sign: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("a.mp4")
    assert animate("-o", path, "--duration", 0.5)[0] == 0
    expected = content(path)
    path.unlink()
    whole = Signer.sign

    def fail(*_: object) -> None:
        raise CredentialsError("http://stamps: gave no time stamp", "try again later")

    monkeypatch.setattr(Signer, "sign", fail)
    code, _, err = animate("-o", path, *sign, "--duration", 0.5)
    assert code == 1
    assert "gave no time stamp" in err
    assert os.listdir() == ["a.mp4.keyface"]
    monkeypatch.setattr(Signer, "sign", whole)
    monkeypatch.setattr(KeyFacePipeline, "stream", lambda *_, **__: pytest.fail("made frames"))
    assert animate("-o", path, *sign, "--duration", 0.5)[0] == 0
    assert content(path) == expected
    found = read_credentials(path)
    assert found is not None
    assert not found.refused
    assert os.listdir() == ["a.mp4"]


def _begin_to_sign(arguments: list[str], written: str) -> None:
    """Run the program until half of the signed copy is written, then wait."""
    target = signing._Target.write

    def write(self: Any, data: Any) -> int:
        count = target(self, data)
        if self.tell() > 3000:
            self.raw.flush()
            Path(written).touch()
            time.sleep(600)
        return count

    signing._Target.write = write  # type: ignore[method-assign]
    sys.argv = ["keyface", *arguments]
    from keyface_cli.app import main

    main()


@pytest.mark.slow
def test_killed_while_it_is_signed_it_goes_on(
    animate: Main,
    sign: tuple[object, ...],
    tmp_path: Path,
    tiny_checkpoint: Path,
    portrait_png: Path,
    tone_wav: Path,
) -> None:
    assert animate("-o", "plain.mp4", "--duration", 0.5)[0] == 0
    path = Path("a.mp4").resolve()
    words = [portrait_png, tone_wav, "--model", tiny_checkpoint, *FAST, "-o", path, *sign]
    arguments = ["animate", *map(str, words), "--duration", "0.5"]
    written = tmp_path / "written"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_begin_to_sign, args=(arguments, str(written)))
    process.start()
    while not written.exists() and process.is_alive():
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert written.exists()
    assert not path.exists()
    left = {file.name for file in folder_for(path).iterdir()}
    assert {"result", "result.signed"} <= left
    assert animate("-o", path, *sign, "--duration", 0.5)[0] == 0
    assert content(path) == content(Path("plain.mp4"))
    found = read_credentials(path)
    assert found is not None
    assert not found.refused
    assert sorted(os.listdir()) == ["a.mp4", "plain.mp4"]


def test_python_signs_too(
    keys: Path, tiny_checkpoint: Path, portrait_png: Path, tone_wav: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.gif"
    _load_once.cache_clear()
    keyface_cli.animate(
        *(portrait_png, tone_wav, path),
        model=str(tiny_checkpoint),
        device="cpu",
        steps=1,
        crop="center",
        duration=0.2,
        sign=str(keys / "cert.pem"),
        key=str(keys / "key.pem"),
    )
    found = validation.read_credentials(path, (keys / "root.pem").read_text())
    assert found is not None
    assert (found.trusted, found.refused) == (True, False)
