"""Marks and signatures: what machines read of a file, and what they say when it was changed."""

from __future__ import annotations

import http.server
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from keyface_cli.credentials import certificates, library, signing
from keyface_cli.credentials.boxes import read_boxes
from keyface_cli.credentials.certificates import Algorithm, new_key_pair
from keyface_cli.credentials.library import BLOCK_KB
from keyface_cli.credentials.marks import (
    COMPOSITE,
    DRAWN,
    GENERATED,
    MIXED,
    Mark,
    combined,
    mark_tags,
    read_mark,
    write_mark,
)
from keyface_cli.credentials.signing import (
    Ingredient,
    Signer,
    Statement,
    check_signable,
    load_signer,
    small_picture,
)
from keyface_cli.credentials.validation import Credentials, read_credentials, read_stream
from keyface_cli.errors import CredentialsError
from keyface_cli.evaluation.study.sidebyside import compare, degrade
from keyface_cli.media.ffmpeg import find_ffmpeg

pytest.importorskip("c2pa")

Main = Callable[..., tuple[int, str, str]]
MARK = Mark(GENERATED, "keyface 1.2.3")
STATEMENT = Statement(
    MARK, {"seed": 3}, [Ingredient("face.png", "ab" * 32), Ingredient("voice.wav", "cd" * 32)]
)
# name -> ffmpeg's container and options; lossless noise, so that the MP4 has several blocks
KINDS = {
    "a.mp4": ("mp4", ["-c:v", "libx264", "-qp", "0", "-movflags", "+faststart"]),
    "a.mov": ("mov", ["-c:v", "prores_ks", "-c:a", "pcm_s16le"]),
    "a.gif": ("gif", ["-an"]),
    "frames": ("image2", ["-an", "-frames:v", "3"]),
}


def ffmpeg(*arguments: object) -> bytes:
    command = [find_ffmpeg(), "-v", "error", "-nostdin", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of noise and a tone, marked, as every kind of result that can be signed."""
    folder = tmp_path_factory.mktemp("samples")
    inputs = ["-f", "lavfi", "-i", "nullsrc=s=128x128:r=25:d=1,geq=random(1)*255:128:128"]
    inputs += ["-f", "lavfi", "-i", "sine=d=1"]
    for name, (container, options) in KINDS.items():
        target = folder / name
        if container == "image2":
            target.mkdir()
        written = target / "%06d.png" if container == "image2" else target
        tags = [f"{key}={value}" for key, value in mark_tags(container, MARK).items()]
        tags = [word for tag in tags for word in ("-metadata", tag)]
        ffmpeg(*inputs, *options, *tags, written)
        write_mark(target, container, MARK)
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key, its chain and its root."""
    folder = tmp_path_factory.mktemp("made") / "keys"
    new_key_pair(folder, "Jane Doe")
    return folder


@pytest.fixture(scope="module")
def signer(keys: Path) -> Signer:
    return load_signer(keys / "cert.pem", keys / "key.pem")


@pytest.fixture(scope="module")
def signed(samples: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples, signed."""
    folder = tmp_path_factory.mktemp("signed") / "all"
    shutil.copytree(samples, folder)
    for name in KINDS:
        signer.sign(folder / name, Path(name).suffix, STATEMENT)
    return folder


def changed(path: Path, position: int) -> Credentials | None:
    """Read a copy of a file in which one bit of one byte is another."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    return read_stream(io.BytesIO(data))


def content(path: Path) -> bytes:
    """The hash of what is decoded of a file."""
    source = path / "%06d.png" if path.is_dir() else path
    return ffmpeg("-i", source, "-map", "0", "-f", "hash", "-")


def read_by_c2pa(path: Path) -> tuple[str, dict[str, object]]:
    """What the library says with its own defaults: its verdict and the active manifest."""
    import c2pa

    with c2pa.Reader(str(path)) as reader:
        return str(reader.get_validation_state()), dict(reader.get_active_manifest())


@pytest.mark.parametrize("name", KINDS)
def test_marks_are_read_by_us_and_by_exiftool(samples: Path, name: str) -> None:
    path = samples / name
    assert read_mark(path) == GENERATED
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed")
    for file in path.iterdir() if path.is_dir() else [path]:
        done = subprocess.run(
            ["exiftool", "-j", "-validate", "-DigitalSourceType", "-CreatorTool", str(file)],
            capture_output=True,
            check=True,
        )
        (found,) = json.loads(done.stdout)
        assert found["DigitalSourceType"] == MARK.uri
        assert found["CreatorTool"] == "keyface 1.2.3"
        assert found["Validate"] == "OK"


def test_a_file_without_a_mark_has_none(samples: Path, tmp_path: Path) -> None:
    for name, end in (("a.mp4", -565), ("a.gif", 3000)):
        cut = tmp_path / name
        cut.write_bytes((samples / name).read_bytes()[:end])
        assert read_mark(cut) is None
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    for name in ("a.png", "b.png", "empty"):
        assert read_mark(tmp_path / name) is None


def test_a_mark_changes_no_picture(tmp_path: Path) -> None:
    for suffix, container in ((".gif", "gif"), (".png", "image2")):
        path = tmp_path / f"a{suffix}"
        Image.effect_noise((40, 30), 80).save(path)
        before = content(path)
        write_mark(path if suffix == ".gif" else tmp_path, container, Mark(COMPOSITE))
        assert content(path) == before
        assert read_mark(path) == COMPOSITE


@pytest.mark.parametrize(
    ("sources", "wanted"),
    [
        ([None, None], None),
        (["digitalCapture", None], None),
        ([GENERATED, GENERATED], GENERATED),
        ([GENERATED, None], COMPOSITE),
        ([DRAWN, GENERATED], COMPOSITE),
        ([DRAWN, DRAWN], DRAWN),
        ([DRAWN, "digitalCapture"], MIXED),
    ],
)
def test_what_is_put_together_says_what_is_in_it(
    sources: list[str | None], wanted: str | None
) -> None:
    assert combined(sources) == wanted


def test_comparisons_and_study_clips_keep_the_mark(samples: Path, tmp_path: Path) -> None:
    marked, plain, side = samples / "a.mp4", tmp_path / "plain.mp4", tmp_path / "side.mp4"
    ffmpeg("-i", marked, "-map_metadata", "-1", "-c", "copy", plain)
    assert read_mark(plain) is None
    for videos, wanted in (
        ([marked, marked], GENERATED),
        ([plain, samples / "a.mov"], COMPOSITE),
        ([plain, plain], None),
    ):
        compare(videos, ["a", "b"], side)
        assert read_mark(side) == wanted
    degrade(marked, side)
    assert read_mark(side) == GENERATED


@pytest.mark.parametrize("name", KINDS)
def test_signed_files_are_valid_for_the_library_and_show_the_same(
    samples: Path, signed: Path, keys: Path, name: str
) -> None:
    path = signed / name
    for file in path.iterdir() if path.is_dir() else [path]:
        verdict, manifest = read_by_c2pa(file)
        assert verdict == "Valid"  # but for trust
        (action,) = next(
            one["data"]["actions"]
            for one in manifest["assertions"]  # type: ignore[attr-defined]
            if one["label"].startswith("c2pa.actions")
        )
        assert action["action"] == "c2pa.created"
        assert action["digitalSourceType"] == MARK.uri
        assert len(action["parameters"]["ingredients"]) == 2
    found = read_credentials(path, (keys / "root.pem").read_text())
    assert found is not None
    assert (found.signer, found.algorithm, found.trusted) == ("Jane Doe", "Es256", True)
    assert (found.generator, found.source) == ("keyface 1.2.3", GENERATED)
    assert found.whole
    assert not found.refused
    assert found.ingredients[0] == f"face.png SHA-256 {'ab' * 32}"
    assert content(path) == content(samples / name)
    assert read_mark(path) == GENERATED
    alone = read_credentials(path)
    assert alone is not None
    assert not alone.trusted


@pytest.mark.parametrize("algorithm", ["ES384", "PS256", "Ed25519"])
def test_other_algorithms_sign_too(tmp_path: Path, samples: Path, algorithm: Algorithm) -> None:
    chain, key, root = new_key_pair(tmp_path / "keys", "Acme", algorithm)
    path = Path(shutil.copy(samples / "a.gif", tmp_path))
    load_signer(chain, key).sign(path, ".gif", STATEMENT)
    found = read_credentials(path, root.read_text())
    assert found is not None
    assert (found.trusted, found.refused) == (True, False)
    assert str(found.algorithm).lower() == algorithm.lower()


def test_keys_are_for_their_owner_alone_and_never_replaced(keys: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    for name in ("cert.pem", "key.pem", "root.pem"):
        assert stat.S_IMODE((keys / name).stat().st_mode) == 0o600
    before = (keys / "key.pem").read_bytes()
    with pytest.raises(CredentialsError, match="exists already"):
        new_key_pair(keys, "Jane Doe")
    assert (keys / "key.pem").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(CredentialsError, match="cannot be written to"):
        new_key_pair(tmp_path / "file", "Jane Doe")


def test_one_changed_byte_is_found_and_placed(signed: Path) -> None:
    path = signed / "a.mp4"
    with path.open("rb") as file:
        boxes = {box.kind: box for box in read_boxes(file)}
    mdat, moov = boxes[b"mdat"], boxes[b"moov"]
    assert mdat.size > 2 * BLOCK_KB * 1024
    first = mdat.start + 16
    second = first + BLOCK_KB * 1024
    found = changed(path, second + 100)
    assert found is not None
    assert found.changed == (f"picture or sound in bytes {second}-{second + BLOCK_KB * 1024 - 1}",)
    assert not found.whole
    for position in (moov.start + 50, moov.end - 20, boxes[b"uuid"].end - 20, mdat.start + 12):
        found = changed(path, position)
        assert found is not None, position
        assert found.changed == (
            "the description of the tracks, or the metadata (not picture and sound)",
        )
    data = path.read_bytes()
    found = changed(path, data.index(b"trainedAlgorithmicMedia"))  # in the manifest, at its front
    assert found is not None
    assert not found.whole
    assert not found.trusted


def test_a_changed_picture_is_found(signed: Path, tmp_path: Path) -> None:
    for path in (signed / "a.gif", signed / "a.mov", signed / "frames" / "000002.png"):
        found = changed(path, path.stat().st_size - 30)
        assert found is not None
        assert not found.whole, path
    folder = shutil.copytree(signed / "frames", tmp_path / "frames")
    data = bytearray((folder / "000002.png").read_bytes())
    data[-30] ^= 1
    (folder / "000002.png").write_bytes(data)
    shutil.copy(folder / "000002.png", folder / "000004.png")
    Image.new("RGB", (2, 2)).save(folder / "000005.png")
    found = read_credentials(folder)
    assert found is not None
    assert [where[:10] for where in found.changed] == ["000002.png", "000004.png", "000005.png"]
    assert "carries no credentials" in found.changed[-1]


def test_a_file_that_was_never_signed_has_no_credentials(samples: Path, tone_wav: Path) -> None:
    for path in (*(samples / name for name in KINDS), tone_wav, Path(__file__)):
        found = read_credentials(path)
        assert found is None, path


def test_pictures_of_ingredients_only_where_they_are_given(
    samples: Path, signer: Signer, tmp_path: Path
) -> None:
    def thumbnails(ingredient: Ingredient) -> list[bool]:
        path = Path(shutil.copy(samples / "a.gif", tmp_path))
        signer.sign(path, ".gif", Statement(MARK, {}, [ingredient]))
        verdict, manifest = read_by_c2pa(path)
        assert verdict == "Valid"
        return ["thumbnail" in one for one in manifest["ingredients"]]  # type: ignore[attr-defined]

    assert thumbnails(Ingredient("a.png", "ab" * 32)) == [False]
    picture = small_picture(Image.new("RGBA", (2000, 100)))
    assert Image.open(io.BytesIO(picture)).size == (512, 26)
    assert thumbnails(Ingredient("a.png", "ab" * 32, picture)) == [True]


def _expired(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A certificate that ended half an hour ago."""
    monkeypatch.setattr(
        certificates,
        "timedelta",
        lambda **wanted: timedelta(hours=-0.5) if "days" in wanted else timedelta(**wanted),
    )
    chain, key, _ = new_key_pair(folder, "late", days=1)
    return chain, key


def test_bad_keys_are_refused_in_one_line(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, x448

    chain, key, root = keys / "cert.pem", keys / "key.pem", keys / "root.pem"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    plain = serialization.NoEncryption()
    own = serialization.load_pem_private_key(key.read_bytes(), None)

    def written(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(pem, pkcs8, plain)
    odd = x448.X448PrivateKey.generate().private_bytes(pem, pkcs8, plain)
    locked = own.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"x"))
    alone = chain.read_bytes().replace(root.read_bytes(), b"")
    turned = root.read_bytes() + alone
    cases = [
        (tmp_path / "absent.pem", key, "no such file"),
        (tmp_path, key, "cannot be read"),
        (chain, tmp_path / "absent.pem", "no such file"),
        (key, key, "holds no certificate"),
        (chain, chain, "holds no private key"),
        (chain, written("locked.pem", locked), "the key is encrypted"),
        (chain, written("other.pem", other), "is not the key of the first certificate"),
        (written("turned.pem", turned), key, "is not the key of the first certificate"),
        (chain, written("odd.pem", odd), "not a kind of key"),
        (*_expired(tmp_path / "late", monkeypatch), "the certificate expired on 2"),
    ]
    for certificate, private, said in cases:
        with pytest.raises(CredentialsError, match=said) as error:
            load_signer(certificate, private)
        assert "\n" not in str(error.value)


def test_a_certificate_that_readers_refuse_is_found_before_it_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "_EMAIL_PROTECTION", "1.3.6.1.5.5.7.3.1")  # of web servers
    chain, key, _ = new_key_pair(tmp_path / "web", "other")
    with pytest.raises(CredentialsError, match=r"cannot sign: .*the certificate is invalid"):
        load_signer(chain, key)
    of_c2pa = "1.3.6.1.4.1.62558.2.1"  # in the certificates of authorities on its own list
    monkeypatch.setattr(certificates, "_EMAIL_PROTECTION", of_c2pa)
    chain, key, _ = new_key_pair(tmp_path / "listed", "other")
    load_signer(chain, key)
    others = [purpose for purpose in library._PURPOSES if purpose != of_c2pa]
    monkeypatch.setattr(library, "_PURPOSES", others)
    with pytest.raises(CredentialsError, match=r"readers would refuse what it signs: .*EKU"):
        load_signer(chain, key)


def test_what_cannot_be_signed_is_named() -> None:
    for name in ("a.mp4", "a.MOV", "a.gif", "folder"):
        check_signable(Path(name), None)
    with pytest.raises(CredentialsError, match=r"cannot be signed into \.webm"):
        check_signable(Path("a.webm"), None)
    with pytest.raises(CredentialsError, match="a pipe cannot be signed"):
        check_signable(Path("-"), None)
    with pytest.raises(CredentialsError, match="of every picture"):
        check_signable(Path("folder"), "http://stamps")


def test_a_copy_that_cannot_be_written_leaves_the_file(
    samples: Path, signer: Signer, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    path = Path(shutil.copy(samples / "a.mov", tmp_path))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            signer.sign(path, ".mov", STATEMENT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.mov"]


def test_ctrl_c_while_it_is_signed_ends_the_run(
    samples: Path, signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(samples / "a.mov", tmp_path))
    before = path.read_bytes()
    write = signing._Target.write
    sent: list[int] = []

    def interrupted(self: Any, data: Any) -> int:
        if not sent:
            sent.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return write(self, data)

    monkeypatch.setattr(signing._Target, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        signer.sign(path, ".mov", STATEMENT)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.mov"]
    signer.sign(path, ".mov", STATEMENT)
    assert read_credentials(path) is not None


def test_info_reads_what_others_have_signed(main: Main, signer: Signer, tmp_path: Path) -> None:
    picture, signed_copy = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, "JPEG")
    picture.seek(0)
    signer.sign_stream(picture, signed_copy, "image/jpeg", Statement(Mark("digitalCapture", "cam")))
    (tmp_path / "photograph.jpg").write_bytes(signed_copy.getvalue())
    code, out, _ = main("info", tmp_path / "photograph.jpg")
    assert code == 0
    assert "claimed by: cam\nclaimed source: digitalCapture\n" in out
    assert "credentials: whole" in out
    assert "None" not in out


_AUTHORITY = """\
[req]
distinguished_name = name
[name]
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[stamps]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[tsa]
serial = serial
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256, sha384, sha512
ess_cert_id_alg = sha256
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, list[int]]]:
    """A time-stamp authority of openssl's on this machine: address, root, sizes of questions."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("authority")
    (folder / "config").write_text(_AUTHORITY)
    (folder / "serial").write_text("01\n")

    def openssl(command: str, given: bytes = b"") -> bytes:
        return subprocess.run(
            ["openssl", *command.split()], input=given, cwd=folder, capture_output=True, check=True
        ).stdout

    new = "req -newkey rsa:2048 -nodes -config config -subj /O=Stamps/CN=stamps"
    openssl(f"{new} -x509 -days 9 -extensions root -keyout root.key -out root.pem")
    openssl(f"{new}/OU=now -keyout own.key -out own.csr")
    issue = "x509 -req -in own.csr -CA root.pem -CAkey root.key -CAcreateserial -days 9"
    openssl(f"{issue} -extfile config -extensions stamps -out own.pem")
    asked: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(len(question))
            (folder / "question").write_bytes(question)
            answer = openssl(
                "ts -reply -config config -section tsa -queryfile question -signer own.pem "
                "-inkey own.key -chain root.pem"
            )
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder / "root.pem", asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_time_stamp_is_asked_for_only_where_it_is_wanted(
    authority: tuple[str, Path, list[int]], keys: Path, samples: Path, tmp_path: Path
) -> None:
    address, root, asked = authority
    chain, key = keys / "cert.pem", keys / "key.pem"
    path = Path(shutil.copy(samples / "a.gif", tmp_path))
    load_signer(chain, key).sign(path, ".gif", STATEMENT)
    found = read_credentials(path)
    assert found is not None
    assert found.time is None
    assert found.claimed_time is not None
    assert asked == []
    path = Path(shutil.copy(samples / "a.gif", tmp_path))
    load_signer(chain, key, address).sign(path, ".gif", STATEMENT)
    assert len(asked) == 2  # one to try it, one for the file
    lists = ((keys / "root.pem").read_text(), (keys / "root.pem").read_text() + root.read_text())
    for anchors, on_list in zip(lists, (False, True), strict=True):
        found = read_credentials(path, anchors)
        assert found is not None
        assert found.time is not None
        assert (found.trusted, found.time_trusted, found.refused) == (True, on_list, False)


def test_an_authority_that_does_not_answer_is_named(keys: Path) -> None:
    for address in ("http://127.0.0.1:9", "nonsense"):
        with pytest.raises(CredentialsError, match=f"^{address}: gave no time stamp"):
            load_signer(keys / "cert.pem", keys / "key.pem", address)


def test_the_command_makes_keys_and_says_what_they_are_worth(main: Main, tmp_path: Path) -> None:
    code, out, err = main("credentials", "new", "-o", tmp_path / "keys", "--name", "Jane Doe")
    assert code == 0
    paths = [Path(line) for line in out.splitlines()]
    assert [path.name for path in paths] == ["cert.pem", "key.pem", "root.pem"]
    assert "untrusted" in err
    assert "https://c2pa.org/conformance" in err
    load_signer(paths[0], paths[1])
    code, out, err = main("credentials", "new", "-o", tmp_path / "keys")
    assert (code, out) == (1, "")
    assert "exists already" in err
    assert main("credentials", "new", "-o", tmp_path / "b", "--name", "x" * 65)[0] == 2


def test_info_validates_any_signed_file(
    main: Main, signed: Path, samples: Path, keys: Path, tmp_path: Path
) -> None:
    path = signed / "a.mp4"
    code, out, _ = main("info", path)
    assert code == 0
    assert "signed by: Jane Doe (Jane Doe), Es256" in out
    assert "trusted: no (no list was given, see --trust)" in out
    assert "credentials: whole" in out
    assert f"digital_source_type: {GENERATED}" in out
    assert f"made of: voice.wav SHA-256 {'cd' * 32}" in out
    code, out, _ = main("info", path, "--trust", keys / "root.pem", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["credentials"]["trusted"] is True
    assert found["credentials"]["whole"] is True
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    (tmp_path / "b.mp4").write_bytes(data)
    code, out, _ = main("info", tmp_path / "b.mp4")
    assert code == 1
    assert "changed: picture or sound in bytes" in out
    assert "credentials: changed since it was signed" in out
    code, out, _ = main("info", samples / "a.gif")
    assert code == 0
    assert "credentials: none" in out
    for bad in (keys / "key.pem", tmp_path / "absent", tmp_path / "b.mp4"):
        code, _, err = main("info", path, "--trust", bad)
        assert code == 1
        assert str(bad) in err


def test_info_without_the_library_does_not_call_a_signed_file_whole(
    main: Main, signed: Path, samples: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    for name in KINDS:
        code, _, err = main("info", signed / name)
        assert code == 1
        assert "pip install 'keyface[credentials]'" in err
        assert main("info", samples / name)[0] == 0
    code, _, err = main("credentials", "new", "-o", tmp_path / "keys")
    assert code == 1
    assert "c2pa-python" in err
