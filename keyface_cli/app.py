"""The `keyface` program: its commands, and how errors become messages and exit codes."""

from __future__ import annotations

import atexit
import gc
import signal
import sys
import traceback
from typing import Annotated, Any

import typer

from keyface_cli.commands import (
    animate,
    batch,
    bench,
    compare,
    console,
    credentials,
    crop,
    dataset,
    doctor,
    embed,
    emotion,
    evaluate,
    examples,
    info,
    study,
    train,
    weights,
)
from keyface_cli.errors import KeyFaceError
from keyface_cli.version import __version__

app = typer.Typer(
    name="keyface",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `main` reports them
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
# one line for each command or group of commands; their modules import nothing heavy
app.command(epilog=animate.EXAMPLES)(animate.animate)
app.command(epilog=batch.EXAMPLES)(batch.batch)
app.command(epilog=bench.EXAMPLES)(bench.bench)
app.command(epilog=crop.EXAMPLES)(crop.crop)
app.command(epilog=embed.EXAMPLES)(embed.embed)
app.command()(examples.examples)
app.command(epilog=info.EXAMPLES)(info.info)
app.command()(doctor.doctor)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.add_typer(credentials.app)
app.add_typer(dataset.app)
app.add_typer(emotion.app)
app.add_typer(evaluate.app)
app.add_typer(study.app)
app.add_typer(train.app)
app.add_typer(weights.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"keyface {__version__}")
        raise typer.Exit


@app.callback()
def keyface(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say more about each step.")] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", envvar="KEYFACE_DEBUG", help="Show tracebacks and every library's messages."
        ),
    ] = False,
) -> None:
    """Turn a portrait and a recording into a video whose face talks."""
    console.set_up(verbose=verbose, debug=debug)


def main() -> None:
    """Run the program and exit: 0 done, 1 an error, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""
    _end_by_exception()
    atexit.register(gc.freeze)  # or the last search for garbage takes a fourth of a second
    for stream in (sys.stdout, sys.stderr):  # a file's name may be no valid text
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")
    try:
        app(prog_name="keyface")
    except KeyFaceError as error:
        _report(error, str(error), error.hint)
    except MemoryError as error:
        _report(error, "not enough memory", "use a smaller --chunk or a smaller model")
    except Exception as error:
        message = f"unexpected {type(error).__name__}: {error}"
        _report(error, message, "keyface --debug COMMAND ... shows where; please report it")
    except SystemExit as stop:
        if stop.code == 130:
            console.say("interrupted")
        raise
    sys.exit(1)


def _report(error: Exception, message: str, hint: str | None) -> None:
    if console.state.debug:
        traceback.print_exception(error)
    console.report("error", message)
    if hint is not None:
        console.report("hint", hint)


def _end_by_exception() -> None:
    """Let SIGTERM and a closed terminal unwind the program, so that temporary files go."""

    def stop(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
