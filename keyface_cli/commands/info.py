"""`keyface info`: how a result was made, who signed it, and whether it is still what was signed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from keyface_cli.credentials.marks import read_mark
from keyface_cli.credentials.validation import Credentials, read_anchors, read_credentials
from keyface_cli.errors import VideoError
from keyface_cli.output.metadata import read_metadata

EXAMPLES = """\
[bold]Examples[/bold]

keyface info talk.mp4

keyface info photograph.jpg --trust C2PA-TRUST-LIST.pem
"""


def info(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A result of keyface, or any file with content credentials (C2PA).",
        ),
    ],
    trust: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pem",
            envvar="KEYFACE_TRUST",
            help="Certificates of the authorities that you trust, such as C2PA's own list.",
            show_default="none: no signer is trusted",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of lines.")
    ] = False,
) -> None:
    """Say how a result was made, who signed it, and whether it is still what was signed.

    Exit codes: 0 it is, or is not signed; 1 it was changed, or readers refuse it.
    """
    if not file.exists():
        raise VideoError(f"{file}: no such file")
    anchors = None if trust is None else read_anchors(trust)
    try:
        credentials, source = read_credentials(file, anchors), read_mark(file)
    except OSError as error:
        raise VideoError(f"{file}: cannot be read: {error.strerror or error}") from error
    try:
        found = read_metadata(file)
    except VideoError:
        if credentials is None and source is None:
            raise
        found = {}
    command = found.pop("command", None)
    if command is not None:
        command = f"{command} -o {shlex.quote(file.name)}"
    if as_json:
        described = None if credentials is None else asdict(credentials)
        found |= {"digital_source_type": source, "credentials": described, "command": command}
        typer.echo(json.dumps(found))
    else:
        for name, value in found.items():
            typer.echo(f"{name}: {value}")
        if source is not None:
            typer.echo(f"digital_source_type: {source}")
        for line in _lines(credentials, trust):
            typer.echo(line)
        if command is not None:
            typer.echo(command)
    if credentials is not None and credentials.refused:
        raise typer.Exit(1)


def _lines(credentials: Credentials | None, trust: Path | None) -> Iterator[str]:
    """What is said of a file's credentials."""
    if credentials is None:
        yield "credentials: none"
        return
    if credentials.signer is not None:
        yield f"signed by: {credentials.signer} ({credentials.issuer}), {credentials.algorithm}"
        if credentials.time is not None:
            trust_in = "" if credentials.time_trusted else ", which is not on the list"
            yield f"signed at: {credentials.time}, by a time-stamp authority{trust_in}"
        elif credentials.claimed_time is not None:
            yield f"signed at: {credentials.claimed_time}, by the signer's own clock"
        listed = "no list was given, see --trust" if trust is None else f"not by {trust}"
        yield f"trusted: {'yes' if credentials.trusted else f'no ({listed})'}"
        if credentials.expired:
            yield "certificate: expired, and no time stamp says that it was valid when it signed"
        yield f"claimed by: {credentials.generator}"
        yield f"claimed source: {credentials.source}"
        for ingredient in credentials.ingredients:
            yield f"made of: {ingredient}"
    for problem in credentials.problems:
        yield f"refused: {problem}"
    for where in credentials.changed:
        yield f"changed: {where}"
    if credentials.whole:
        yield "credentials: whole, every byte that was signed is what it was"
    else:
        yield "credentials: changed since it was signed"
