"""`keyface examples`: the portrait and the recording that every explanation uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyface_cli.commands import console
from keyface_cli.errors import KeyFaceError

_PACKAGE = Path(__file__).resolve().parent.parent
# in a wheel inside the package, in a checkout beside it
_PLACES = (_PACKAGE / "_examples", _PACKAGE.parent / "examples")
NAMES = ("avatar.png", "speech.wav")


def find_examples() -> Path:
    """Return the folder that holds the example portrait and recording.

    Raises:
        KeyFaceError: this installation lacks them.
    """
    for place in _PLACES:
        if all((place / name).is_file() for name in NAMES):
            return place
    raise KeyFaceError("this installation holds no examples", "install keyface again")


def examples(
    folder: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to copy them to, made where missing.")
    ] = Path("examples"),
    force: Annotated[bool, typer.Option("--force", help="Replace files that differ.")] = False,
) -> None:
    """Copy the example portrait and recording into a folder, and say how to use them."""
    source = find_examples()
    contents = {folder / name: (source / name).read_bytes() for name in NAMES}
    try:
        present = {path: path.read_bytes() for path in contents if path.exists()}
        for path, content in present.items():
            if content != contents[path] and not force:
                raise KeyFaceError(f"{path}: exists already", "use --force to replace it")
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            if present.get(path) != content:
                path.write_bytes(content)
            typer.echo(path)
    except OSError as error:
        raise KeyFaceError(f"{folder}: cannot be written to: {error.strerror or error}") from error
    console.say(f"try: keyface animate {' '.join(map(str, contents))} -o talk.mp4")
