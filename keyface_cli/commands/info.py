"""`keyface info`: how a result was made, and the command that makes it again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from keyface_cli.output.metadata import read_metadata

EXAMPLES = """\
[bold]Examples[/bold]

keyface info talk.mp4
"""


def info(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A video, GIF or folder that keyface made.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of lines.")
    ] = False,
) -> None:
    """Say how a result was made, and the command that makes it again."""
    found = read_metadata(file)
    command = found.pop("command", None)
    if command is not None:
        command = f"{command} -o {shlex.quote(file.name)}"
    if as_json:
        typer.echo(json.dumps({**found, "command": command}))
        return
    for name, value in found.items():
        typer.echo(f"{name}: {value}")
    if command is not None:
        typer.echo(command)
