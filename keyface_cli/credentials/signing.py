"""Sign a result: a C2PA manifest that says how it was made, bound to its bytes.

The standard is C2PA's, version 2.2 (https://spec.c2pa.org).
"""

from __future__ import annotations

import base64
import io
import json
import mimetypes
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from keyface_cli.credentials.certificates import KeyPair, read_key_pair
from keyface_cli.credentials.library import MIME, load_library, signing_settings
from keyface_cli.credentials.marks import Mark
from keyface_cli.credentials.validation import read_stream
from keyface_cli.errors import CredentialsError
from keyface_cli.files import take_name

RECIPE = "keyface.recipe"  # the assertion that holds what `info` reads
_PICTURE_SIZE = 512  # pixels, of an ingredient's picture
_OF_STAMPS = re.compile(r"http|time.?stamp", re.IGNORECASE)


@dataclass(frozen=True)
class Ingredient:
    """What a result was made of.

    Args:
        name: of the file, without its folders.
        sha256: of the file, in hexadecimal.
        picture: a JPEG of it to show; None shows none.
    """

    name: str
    sha256: str
    picture: bytes | None = None


@dataclass(frozen=True)
class Statement:
    """What is signed of a result.

    Args:
        mark: its digital source type, and the tool.
        recipe: how it was made: what JSON can hold.
        ingredients: what it was made of.
    """

    mark: Mark
    recipe: Mapping[str, Any] = field(default_factory=dict)
    ingredients: Sequence[Ingredient] = ()


def small_picture(picture: Image.Image) -> bytes:
    """Return a JPEG of a picture, 512 pixels at most."""
    small = picture.convert("RGB")
    small.thumbnail((_PICTURE_SIZE, _PICTURE_SIZE))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=85)
    return data.getvalue()


def check_signable(path: Path, timestamp: str | None) -> None:
    """Check that a result of this name can carry a signature.

    Args:
        path: FILE.mp4, .mov, .gif, a folder of PNGs (no suffix), or another.
        timestamp: the time-stamp authority that would be asked.

    Raises:
        CredentialsError: it cannot.
    """
    suffix = path.suffix.lower()
    if str(path) == "-":
        raise CredentialsError("a pipe cannot be signed", "name a file with -o")
    if suffix and suffix not in MIME:
        raise CredentialsError(
            f"{path}: content credentials cannot be signed into {suffix}",
            "choose .mp4, .mov, .gif or a folder of PNGs, or leave --sign out "
            "(and KEYFACE_SIGN_CERT unset)",
        )
    if not suffix and timestamp is not None:
        raise CredentialsError(
            f"{path}: a folder of PNGs would ask {timestamp} for a stamp of every picture",
            "leave --timestamp out, or make a video",
        )


class Signer:
    """Signs results with one key; `load_signer` makes one that is known to work."""

    def __init__(self, pair: KeyPair, timestamp: str | None = None) -> None:
        c2pa = load_library()
        self._pair, self._timestamp = pair, timestamp
        info = c2pa.C2paSignerInfo(pair.algorithm, pair.chain, pair.key, timestamp)
        try:
            self._signer = c2pa.Signer.from_info(info)
        except c2pa.C2paError as error:
            raise CredentialsError(f"{pair.source}: cannot sign: {_said(error)}") from error

    def sign(self, path: Path, suffix: str, statement: Statement) -> None:
        """Sign a finished file, or every PNG of a folder, in its place.

        A signed copy is made beside it under another name, on the disk before it takes the name.

        Args:
            path: the result, under whatever name.
            suffix: what it is: ".mp4", ".mov", ".gif", ".png" or, of a folder, "".
            statement: what is said of it.

        Raises:
            CredentialsError: it cannot be signed; the time-stamp authority does not answer.
            OSError: the copy cannot be written.
        """
        for one in sorted(path.glob("*.png")) if path.is_dir() else [path]:
            copy = one.with_name(f"{one.name}.signed")
            try:
                with one.open("rb") as source, _Target(copy) as target:
                    try:
                        self.sign_stream(source, target, MIME[suffix or ".png"], statement)
                    except CredentialsError as error:
                        raise target.failure or error from error
                take_name(copy, one)
            finally:
                copy.unlink(missing_ok=True)

    def sign_stream(self, source: Any, target: Any, mime: str, statement: Statement) -> None:
        """Write a signed copy of a file into another.

        Args:
            source: a binary file to read.
            target: a binary file to write and read.
            mime: what they are.
            statement: what is said of it.

        Raises:
            CredentialsError: it cannot be signed.
        """
        c2pa = load_library()
        try:
            context = c2pa.Context.from_dict(signing_settings())
            builder = c2pa.Builder.from_json(json.dumps(_manifest(statement)), context=context)
            for index, ingredient in enumerate(statement.ingredients):
                if ingredient.picture is not None:
                    builder.add_resource(_picture_name(index), io.BytesIO(ingredient.picture))
            with _signals_held():
                builder.sign(self._signer, mime, source, target)
        except c2pa.C2paError as error:
            if self._timestamp is not None and _OF_STAMPS.search(str(error)):
                raise CredentialsError(
                    f"{self._timestamp}: gave no time stamp ({_said(error)})",
                    "try again later, or leave --timestamp out",
                ) from error
            raise CredentialsError(f"{self._pair.source}: cannot sign: {_said(error)}") from error


def load_signer(certificates: Path, key: Path, timestamp: str | None = None) -> Signer:
    """Return a signer that has signed a picture of one pixel, which was then read back.

    Args:
        certificates: PEM: the signer's own certificate, then those that vouch for it.
        key: PEM: the private key of the first.
        timestamp: address of a time-stamp authority (RFC 3161), which is asked at each signature.

    Raises:
        CredentialsError: the library is not installed; a file cannot be used; the authority does
            not answer.
    """
    load_library()
    signer = Signer(read_key_pair(certificates, key), timestamp)
    picture, signed = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (1, 1)).save(picture, "PNG")
    picture.seek(0)
    signer.sign_stream(picture, signed, "image/png", Statement(Mark()))
    signed.seek(0)
    found = read_stream(signed)
    assert found is not None
    if found.problems:
        raise CredentialsError(
            f"{certificates}: readers would refuse what it signs: {'; '.join(found.problems)}",
            "keyface credentials new makes a chain of the kind that the standard wants",
        )
    return signer


def _manifest(statement: Statement) -> dict[str, Any]:
    """Return the definition of a manifest as c2pa takes it."""
    name, _, version = statement.mark.tool.partition(" ")
    agent = {"name": name, "version": version} if version else {"name": name}
    ingredients = [_described(index, one) for index, one in enumerate(statement.ingredients)]
    created = {
        "action": "c2pa.created",
        "digitalSourceType": statement.mark.uri,
        "softwareAgent": agent,
        "when": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "parameters": {"ingredientIds": [one["label"] for one in ingredients]},
    }
    assertions = [{"label": "c2pa.actions", "data": {"actions": [created]}}]
    if statement.recipe:
        assertions.append({"label": RECIPE, "data": dict(statement.recipe)})
    return {
        "claim_generator_info": [agent],
        "assertions": assertions,
        "ingredients": ingredients,
    }


def _described(index: int, ingredient: Ingredient) -> dict[str, Any]:
    """Return an ingredient that is known by its hash alone (RFC 6920)."""
    digest = base64.urlsafe_b64encode(bytes.fromhex(ingredient.sha256)).decode().rstrip("=")
    described: dict[str, Any] = {
        "title": ingredient.name,
        "format": mimetypes.guess_type(ingredient.name)[0] or "application/octet-stream",
        "relationship": "inputTo",
        "instance_id": f"ni:///sha-256;{digest}",
        "description": f"SHA-256 {ingredient.sha256}",
        "label": f"ingredient-{index}",
    }
    if ingredient.picture is not None:
        described["thumbnail"] = {"format": "image/jpeg", "identifier": _picture_name(index)}
    return described


def _picture_name(index: int) -> str:
    return f"ingredient-{index}.jpg"


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back: what they raise in a file that the library reads is lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda one, _: came.append(one)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


def _said(error: Exception) -> str:
    """What the library says, in one line."""
    return " ".join(str(error).split())


class _Target(io.BufferedRandom):
    """A new file that remembers why it could not be written; the library says only that."""

    def __init__(self, path: Path) -> None:
        self.failure: OSError | None = None
        super().__init__(io.FileIO(path, "w+"))

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.failure = error
            raise
