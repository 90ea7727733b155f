"""`keyface compare`: videos side by side in one, for looking."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyface_cli.commands import console, options

EXAMPLES = """\
[bold]Examples[/bold]

keyface compare ours.mp4 theirs.mp4 -o side.mp4

keyface compare a.mp4 b.mp4 c.mp4 --columns 2 --label A --label B --label C -o all.mp4
"""


def compare(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Two videos or more.")],
    output: Annotated[Path, options.writes("FILE.mp4", "The video to write.")],
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Above each, in the same order.", show_default="its name"
        ),
    ] = None,
    columns: Annotated[
        int | None, typer.Option(min=1, help="Videos in a row.", show_default="all")
    ] = None,
    sound: Annotated[int, typer.Option(min=1, help="Whose sound is taken, counted from 1.")] = 1,
    force: options.ForceOption = False,
) -> None:
    """Lay videos side by side with labels and one sound track."""
    if len(videos) < 2:
        raise typer.BadParameter("name two videos or more", param_hint="VIDEO...")
    labels = label or [path.stem for path in videos]
    if len(labels) != len(videos):
        raise typer.BadParameter(f"{len(labels)} labels for {len(videos)} videos")
    if sound > len(videos):
        raise typer.BadParameter(f"there are {len(videos)} videos", param_hint="--sound")
    from keyface_cli.output.formats import check_output

    check_output(output, force)
    from keyface_cli.evaluation.study.sidebyside import compare as write

    with console.waiting("encoding"):
        write(videos, labels, output, columns=columns, sound=sound - 1)
    typer.echo(output)
