"""`keyface evaluate`: how good a model is, in figures."""

from __future__ import annotations

import typer

from keyface_cli.commands import evaluate_avatars, evaluate_videos

app = typer.Typer(
    name="evaluate",
    no_args_is_help=True,
    help="Measure a model, or videos.",
    epilog="""\
[bold]Examples[/bold]

keyface evaluate avatars --clips 20 --seconds 5

keyface evaluate avatars --model runs/mine --photographs faces -o report --json
""",
)


app.command()(evaluate_avatars.avatars)
app.command()(evaluate_avatars.reader)
app.command(epilog=evaluate_videos.EXAMPLES)(evaluate_videos.videos)
app.command(epilog=evaluate_videos.SCENES_EXAMPLE)(evaluate_videos.scenes)
