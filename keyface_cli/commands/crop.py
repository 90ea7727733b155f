"""`keyface crop`: the square of a portrait that a model will see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.checkpoints.installed import resolve_model
from keyface_cli.commands import console, options
from keyface_cli.errors import PortraitError
from keyface_cli.files import check_free, replacing
from keyface_cli.jobs.job import Job

EXAMPLES = """\
[bold]Examples[/bold]

keyface crop examples/avatar.png -o seen.png

keyface crop examples/avatar.png --crop 40,20,400,400 -o seen.png
"""
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@options.taking(Job, "crop", "face", "require_face", "portrait_time", "background")
def crop(
    portrait: Annotated[Path, typer.Argument(metavar="PORTRAIT", help="A picture, or a video.")],
    output: Annotated[Path, options.writes("FILE.png", "The picture to write.")],
    force: options.ForceOption = False,
    model: options.ModelOption = None,
    *,
    choices: dict[str, Any],
) -> None:
    """Write the square of a portrait that a model will see, as `animate` cuts it out."""
    if output.suffix.lower() not in FORMATS:
        raise PortraitError(f"{output}: the picture must end in {', '.join(FORMATS)}")
    check_free(output, PortraitError, force=force, inputs=[portrait])
    config = Checkpoint.open(resolve_model(model)).config
    from keyface_cli.media.crop import cut
    from keyface_cli.media.framing import cut_out
    from keyface_cli.media.portrait import parse_colour, read_picture

    background = choices["background"]
    colour = None if background is None else parse_colour(background)
    picture = read_picture(portrait, colour, choices["portrait_time"])
    chosen = cut_out(
        picture, config, choices["crop"], choices["face"], choices["require_face"], portrait
    ).crop
    with replacing(output, PortraitError, shared=True) as part:
        cut(picture, chosen, config.resolution).save(part, format=FORMATS[output.suffix.lower()])
    lean = f", leaning {chosen.angle_deg:.0f} degrees" if chosen.angle_deg else ""
    console.say(f"crop: {chosen}{lean}")
    typer.echo(output)
