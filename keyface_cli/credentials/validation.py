"""Read the content credentials of a file by whatever tool, and find out what changed since."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from keyface_cli.credentials.boxes import read_boxes
from keyface_cli.credentials.library import load_library, reading_settings
from keyface_cli.credentials.marks import VOCABULARY
from keyface_cli.errors import CredentialsError
from keyface_cli.files import read_text

_UNHASHED = 16  # bytes at the start of the box of picture and sound that no block covers
_HEAD = 1 << 16  # bytes in which credentials begin, where there are any
_NO_LIST, _NO_STAMPER = "signingCredential.untrusted", "timeStamp.untrusted"
# what a certificate may have become without the file being another one
_OF_TIME = ("signingCredential.expired", "claimSignature.outsideValidity")
_CHANGED = re.compile(r"(Hash|hashedURI|claimSignature)\.mismatch$|\.missing$")


@dataclass(frozen=True)
class Credentials:
    """What a file's credentials say, and whether it is what was signed.

    Args:
        signer: the name in the certificate.
        issuer: the organisation in it.
        algorithm: how it was signed.
        time: when, by a time-stamp authority; None where none was asked.
        time_trusted: whether that authority is one that the reader trusts.
        claimed_time: when, by the signer's own clock.
        trusted: whether the certificate leads to one of the authorities that the reader trusts.
        whole: whether every byte that was signed is what it was.
        changed: where it is not, in words.
        problems: for what else readers refuse it, such as a certificate that was withdrawn.
        expired: whether the certificate has ended, and no time stamp says that it had not then.
        generator: the tool that made the claim.
        source: the digital source type of its first action.
        ingredients: what it was made of: name and, where it is said, hash.
    """

    signer: str | None
    issuer: str | None
    algorithm: str | None
    time: str | None
    time_trusted: bool
    claimed_time: str | None
    trusted: bool
    whole: bool
    changed: tuple[str, ...]
    problems: tuple[str, ...]
    expired: bool
    generator: str | None
    source: str | None
    ingredients: tuple[str, ...]

    @property
    def refused(self) -> bool:
        """Whether it is not what was signed, or readers refuse it for another reason."""
        return not self.whole or bool(self.problems)


def read_anchors(path: Path) -> str:
    """Return a list of authorities that are trusted: certificates in PEM.

    Raises:
        CredentialsError: it cannot be read, or holds none.
    """
    text = read_text(path, CredentialsError)
    if "BEGIN CERTIFICATE" not in text:
        raise CredentialsError(f"{path}: holds no certificates in PEM")
    return text


def read_credentials(path: Path, anchors: str | None = None) -> Credentials | None:
    """Read a file's credentials and check each byte that they cover.

    Args:
        path: a picture, video or sound of any kind that C2PA knows, or a folder of PNGs, which is
            whole where each of them is.
        anchors: authorities that are trusted, see `read_anchors`.

    Returns:
        What they say; None where there are none.

    Raises:
        CredentialsError: the library is not installed, though there are credentials, or they are
            not in the file.
        OSError: the file cannot be read.
    """
    if path.is_dir():
        return _of_folder(path, anchors)
    with path.open("rb") as file:
        return read_stream(file, anchors)


def read_stream(file: BinaryIO, anchors: str | None = None) -> Credentials | None:
    """Read the credentials of an open file; see `read_credentials`.

    Args:
        file: seekable.
        anchors: authorities that are trusted.
    """
    seems = _seems_signed(file)
    try:
        c2pa = load_library()
    except CredentialsError:
        if seems:
            raise
        return None
    file.seek(0)
    try:
        context = c2pa.Context.from_dict(reading_settings(anchors))
        with c2pa.Reader(None, file, context=context) as reader:
            found, details = json.loads(reader.json()), json.loads(reader.detailed_json())
    except c2pa.C2paError.RemoteManifest as error:
        raise CredentialsError(f"its credentials are not in the file: {error}") from error
    except c2pa.C2paError as error:
        absent = (c2pa.C2paError.ManifestNotFound, c2pa.C2paError.NotSupported)
        if not seems or isinstance(error, absent):
            return None
        said = " ".join(str(error).split())
        return replace(_NOTHING, changed=(f"the credentials, which cannot be read ({said})",))
    return _judge(found, details, file)


_NOTHING = Credentials(
    None, None, None, None, False, None, False, False, (), (), False, None, None, ()
)


def _seems_signed(file: BinaryIO) -> bool:
    """Whether the bytes with which credentials begin are where they would be."""
    file.seek(0)
    return b"c2pa" in file.read(_HEAD)


def _of_folder(path: Path, anchors: str | None) -> Credentials | None:
    """The credentials of the first picture that has any, with the changes of all."""
    first: Credentials | None = None
    bare: list[str] = []
    changed: list[str] = []
    problems: dict[str, None] = {}
    for picture in sorted(path.glob("*.png")):
        found = read_credentials(picture, anchors)
        if found is None:
            bare.append(f"{picture.name}: carries no credentials")
            continue
        if first is None or (first.signer is None and found.signer is not None):
            first = found
        changed += [f"{picture.name}: {where}" for where in found.changed]
        problems |= dict.fromkeys(found.problems)
    if first is None:
        return None
    where = (*changed, *bare)
    return replace(first, whole=not where, changed=where, problems=tuple(problems))


def _judge(found: Mapping[str, Any], details: Mapping[str, Any], file: BinaryIO) -> Credentials:
    """Say what the library's report means."""
    label = found["active_manifest"]
    manifest = found["manifests"][label]
    results = found.get("validation_results", {}).get("activeManifest", {})
    passed = {one["code"] for one in results.get("success", ())}
    noted = {one["code"] for one in results.get("informational", ())}
    failed = [
        one for one in results.get("failure", ()) if one["code"] not in (_NO_LIST, _NO_STAMPER)
    ]
    store = details["manifests"][label].get("assertion_store", {})
    changed = [
        where
        for one in failed
        if _CHANGED.search(one["code"])
        for where in _where(one, store, file)
    ]
    problems = [
        f"{one.get('explanation', '')} ({one['code']})".strip()
        for one in failed
        if not _CHANGED.search(one["code"]) and one["code"] not in _OF_TIME
    ]
    signature = manifest.get("signature_info", {})
    action = next(_actions(manifest), {})
    generator: Mapping[str, Any] = next(iter(manifest.get("claim_generator_info") or ()), {})
    named = [generator.get("name"), generator.get("version")]
    source = action.get("digitalSourceType")
    return Credentials(
        signer=signature.get("common_name"),
        issuer=signature.get("issuer"),
        algorithm=signature.get("alg"),
        time=signature.get("time"),
        time_trusted="time" in signature and _NO_STAMPER not in noted,
        claimed_time=action.get("when"),
        trusted="signingCredential.trusted" in passed,
        whole=not changed,
        changed=tuple(dict.fromkeys(changed)),
        problems=tuple(problems),
        expired=any(one["code"] in _OF_TIME for one in failed),
        generator=" ".join(filter(None, named)) or manifest.get("claim_generator"),
        source=None if source is None else str(source).removeprefix(VOCABULARY),
        ingredients=tuple(
            " ".join(filter(None, (one.get("title"), one.get("description"))))
            for one in manifest.get("ingredients", ())
        ),
    )


def _actions(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for assertion in manifest.get("assertions", ()):
        if assertion["label"].startswith("c2pa.actions"):
            yield from assertion["data"].get("actions", ())


def _where(failure: Mapping[str, Any], store: Mapping[str, Any], file: BinaryIO) -> list[str]:
    """Say in words what a failure is about."""
    code, label = failure["code"], failure.get("url", "").rpartition("/")[2]
    if code == "assertion.bmffHash.mismatch":
        return list(_changed_blocks(store.get(label, {}), file)) or [
            "the description of the tracks, or the metadata (not picture and sound)"
        ]
    if code == "assertion.dataHash.mismatch":
        spared = store.get(label, {}).get("exclusions", ())
        ranges = ", ".join(f"{one['start']}-{one['start'] + one['length'] - 1}" for one in spared)
        return [f"bytes outside of the credentials ({ranges})" if ranges else "bytes of the file"]
    if code == "assertion.hashedURI.mismatch":
        return [f"the statement {label}"]
    if code.startswith("claimSignature"):
        return ["the claim that was signed, or its signature"]
    return [str(failure.get("explanation", code))]


def _changed_blocks(assertion: Mapping[str, Any], file: BinaryIO) -> Iterator[str]:
    """Yield the ranges of picture and sound in an MP4 or MOV that are not what they were.

    C2PA specification 2.2, section 18.6: of each `mdat` box the hash of every block is kept.
    """
    places = [box for box in read_boxes(file) if box.kind == b"mdat"]
    for tree in assertion.get("merkle") or ():
        size, hashes = tree.get("fixedBlockSize"), tree["hashes"]
        if not size or tree["localId"] >= len(places) or len(hashes) != tree["count"]:
            continue
        box = places[tree["localId"]]
        wrong: list[tuple[int, int]] = []
        for index, wanted in enumerate(hashes):
            start = box.start + _UNHASHED + index * size
            file.seek(start)
            data = file.read(max(0, min(size, box.end - start)))
            if hashlib.new(tree.get("alg") or "sha256", data).digest() == _bytes(wanted):
                continue
            if wrong and wrong[-1][1] == start:
                start = wrong.pop()[0]
            wrong.append((start, box.start + _UNHASHED + (index + 1) * size))
        for start, end in wrong:
            yield f"picture or sound in bytes {start}-{min(end, box.end) - 1}"


def _bytes(value: Any) -> bytes:
    """A hash as the library's JSON writes it: numbers, or base64."""
    return base64.b64decode(value) if isinstance(value, str) else bytes(value)
