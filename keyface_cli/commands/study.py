"""`keyface study`: which method do people find more realistic?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from keyface_cli.commands import console, options
from keyface_cli.errors import KeyFaceError

app = typer.Typer(
    name="study",
    no_args_is_help=True,
    help="Ask people which of two clips is more realistic, and rate the methods.",
    epilog="""\
[bold]Examples[/bold]

keyface study new ours theirs others -o study

keyface study serve study

keyface study score study/votes.csv --plot ratings.png
""",
)
StudyArgument = Annotated[
    Path, typer.Argument(metavar="STUDY", help="A folder that study new made.")
]


@app.command()
def new(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Each method's videos, by name.")
    ],
    output: Annotated[Path, options.writes("STUDY", "The folder to make.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What each method is called, in the same order.",
            show_default="its folder's name",
        ),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="How many pairs.", show_default="all")
    ] = None,
    checks: Annotated[int, typer.Option(min=0, help="Attention checks among them.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of sides and order.")] = 0,
) -> None:
    """Make a study: pairs of clips with the same name, random sides, attention checks."""
    from keyface_cli.evaluation.study.study import new_study

    with console.waiting("copying clips"):
        made = new_study(folders, output, names=method or [], pairs=pairs, checks=checks, seed=seed)
    console.say(f"{len(made.trials)} pairs of {len(made.methods)} methods")
    typer.echo(output)


@app.command()
def serve(
    folder: StudyArgument,
    bind: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on; anything but 127.0.0.1 opens the study to a network.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is a free one.")] = 0,
) -> None:
    """Show the study's pairs on a page, one at a time; votes go to its votes.csv.

    The page's address holds a token, without which nothing is answered. Stop with Ctrl-C: every
    vote is on the disk when the next pair is shown.
    """
    from keyface_cli.evaluation.study.page import make_page
    from keyface_cli.evaluation.study.study import open_study

    opened = open_study(folder)
    with make_page(opened, bind, port) as page:
        if bind not in ("127.0.0.1", "localhost", "::1"):
            console.report("warning", f"the page is open to everybody who has its address: {bind}")
        typer.echo(page.url)
        console.say("open it in a browser; Ctrl-C ends the study's page, not the study")
        try:
            page.serve()
        except KeyboardInterrupt:
            console.say(f"votes: {opened.votes}")


@app.command()
def score(
    votes: Annotated[Path, typer.Argument(metavar="VOTES.csv", help="With winner and loser.")],
    k: Annotated[float, typer.Option(min=0.1, max=400.0, help="Elo points at stake.")] = 16.0,
    start: Annotated[float, typer.Option(help="Everybody's first Elo rating.")] = 1000.0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the ratings.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Rate the methods: Elo, Bradley-Terry with 95 % intervals, win matrix, agreement."""
    from keyface_cli.evaluation.study import ratings

    found = ratings.score(ratings.read_votes(votes), k=k, start=start)
    if plot is not None:
        try:
            ratings.plot(found, plot)
        except (OSError, ValueError) as error:
            raise KeyFaceError(f"{plot}: cannot be written: {error}") from error
        console.say(f"plot: {plot}")
    text = json.dumps(ratings.describe(found)) if as_json else ratings.markdown(found)
    typer.echo(text, nl=as_json)
