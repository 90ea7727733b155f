"""Which key signs a job's result, and what is said of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface_cli.credentials.marks import COMPOSITE, GENERATED, Mark
from keyface_cli.errors import CredentialsError
from keyface_cli.jobs.job import Job

if TYPE_CHECKING:
    from PIL import Image

    from keyface_cli.credentials.signing import Signer, Statement

CERTIFICATE_VARIABLE, KEY_VARIABLE = "KEYFACE_SIGN_CERT", "KEYFACE_SIGN_KEY"


def mark_of(job: Job) -> Mark:
    """Return what a job's result says of its origin."""
    return Mark(COMPOSITE if job.paste_back else GENERATED)


def find_signer(job: Job) -> Signer | None:
    """Return what signs a job's result, tried out; None where it is not to be signed.

    Raises:
        CredentialsError: the options do not go together; the result cannot carry a signature; the
            certificate, its key or the time-stamp authority is of no use.
    """
    certificate = job.sign or _from_environment(CERTIFICATE_VARIABLE)
    if certificate is None:
        given = {"--key": job.key, "--timestamp": job.timestamp, "--ingredients": job.ingredients}
        for name, value in given.items():
            if value:
                raise CredentialsError(
                    f"{name} is of no use without --sign",
                    f"--sign CERT.pem, or the environment variable {CERTIFICATE_VARIABLE}",
                )
        return None
    key = job.key or _from_environment(KEY_VARIABLE)
    if key is None:
        raise CredentialsError(
            f"{certificate}: signs nothing without its key",
            f"--key KEY.pem, or the environment variable {KEY_VARIABLE}",
        )
    from keyface_cli.credentials.signing import check_signable

    check_signable(job.output, job.timestamp)
    return _load_once(certificate, key, job.timestamp)


@lru_cache(maxsize=8)
def _load_once(certificate: Path, key: Path, timestamp: str | None) -> Signer:
    """Load and try a key for the first of the jobs that it signs."""
    from keyface_cli.credentials.signing import load_signer

    return load_signer(certificate, key, timestamp)


def statement_of(
    job: Job, picture: Image.Image, hashes: Mapping[str, str], recipe: Mapping[str, Any]
) -> Statement:
    """Return what is signed of a job's result.

    Args:
        job: what was made.
        picture: the portrait.
        hashes: SHA-256 of the "portrait" and the "recording".
        recipe: what `keyface info` reads.
    """
    from keyface_cli.credentials.signing import Ingredient, Statement, small_picture

    shown = small_picture(picture) if job.ingredients else None
    ingredients = [
        Ingredient(job.portrait.name, hashes["portrait"], shown),
        Ingredient(job.audio.name, hashes["recording"]),
    ]
    return Statement(mark_of(job), recipe, ingredients)


def _from_environment(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None
