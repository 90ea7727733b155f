"""`keyface examples`: the portraits, recordings and lists that explanations use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyface_cli.commands import console
from keyface_cli.errors import KeyFaceError
from keyface_cli.files import replacing, unwritable

_PACKAGE = Path(__file__).resolve().parent.parent
# in a wheel inside the package, in a checkout beside it
_PLACES = (_PACKAGE / "_examples", _PACKAGE.parent / "examples")
NAMES = (
    *("portrait.jpg", "avatar.png", "speech.wav", "curve.csv", "wall.jpg", "note.m4a"),
    *("jobs.csv", "all.sh", "README.md"),
)


def find_examples() -> Path:
    """Return the folder that holds the example files.

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
    """Copy example portraits, recordings, an emotion curve and a batch into a folder."""
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
                with replacing(path) as part:
                    part.write_bytes(content)
            typer.echo(path)
    except OSError as error:
        raise unwritable(folder, error) from error
    portrait, audio = (folder / name for name in ("portrait.jpg", "speech.wav"))
    console.say(f"try: keyface animate {portrait} {audio} -o talk.mp4")
