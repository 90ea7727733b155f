"""The program: exit codes, messages, what is imported when, progress, and the examples."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import keyface_cli
from keyface_cli import __version__, app
from keyface_cli.commands import console, examples
from keyface_cli.errors import KeyFaceError

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Return a function that makes the command `examples` fail with an exception."""

    def set_error(error: BaseException) -> None:
        def fail() -> Path:
            raise error

        monkeypatch.setattr(examples, "find_examples", fail)

    return set_error


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_version_and_help(main: Main) -> None:
    assert main("--version") == (0, f"keyface {__version__}\n", "")
    assert main("-h")[0] == 0
    code, out, _ = main("animate", "-h")
    assert code == 0
    assert "Examples" in out


@pytest.mark.parametrize("arguments", [["--help"], ["animate", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys, atexit\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'soundfile', 'PIL', 'soxr'}\n"
        "atexit.register(lambda: print('LOADED', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['keyface', *{arguments}]\n"
        "from keyface_cli.app import main\n"
        "main()\n"
    )
    done = run_python("-c", script)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_pipeline_is_imported_when_it_is_asked_for() -> None:
    script = "import sys, keyface_cli; assert 'torch' not in sys.modules"
    assert run_python("-c", script).returncode == 0
    assert keyface_cli.KeyFacePipeline.__module__ == "keyface_cli.pipeline"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = keyface_cli.nothing


@pytest.mark.parametrize(
    "arguments",
    [["unknown"], ["--unknown"], ["animate"], ["animate", "a", "b", "--steps", "0"]],
)
def test_wrong_usage_is_exit_code_2(main: Main, arguments: list[str]) -> None:
    code, out, err = main(*arguments)
    assert code == 2
    assert out == ""
    assert "Usage" in err


def test_error_is_one_line_and_a_hint(main: Main, failing: Callable[[BaseException], None]) -> None:
    failing(KeyFaceError("a [b]file[/b]\nis\tmissing" + " long" * 50, "make it"))
    assert main("examples") == (
        1,
        "",
        "error: a [b]file[/b] is missing" + " long" * 50 + "\nhint: make it\n",
    )
    failing(KeyFaceError("no hint"))
    assert main("examples") == (1, "", "error: no hint\n")


def test_unexpected_error_is_one_line_with_advice(
    main: Main, failing: Callable[[BaseException], None]
) -> None:
    failing(RuntimeError("two\nlines"))
    code, out, err = main("examples")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "error: unexpected RuntimeError: two lines",
        "hint: keyface --debug COMMAND ... shows where; please report it",
    ]
    failing(MemoryError())
    assert main("examples")[2].startswith("error: not enough memory\nhint: ")


def test_traceback_only_with_debug(
    main: Main, failing: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(KeyFaceError("wrong"))
    assert "Traceback" not in main("--verbose", "examples")[2]
    code, _, err = main("--debug", "examples")
    assert code == 1
    assert "Traceback" in err
    assert err.endswith("error: wrong\n")
    monkeypatch.setenv("KEYFACE_DEBUG", "1")
    assert "Traceback" in main("examples")[2]


def test_ctrl_c_is_exit_code_130(main: Main, failing: Callable[[BaseException], None]) -> None:
    failing(KeyboardInterrupt())
    assert main("examples") == (130, "", "interrupted\n")


def test_sigterm_unwinds_the_program(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    unwound = []

    def wait() -> Path:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            unwound.append(True)
        return Path()

    monkeypatch.setattr(examples, "find_examples", wait)
    assert main("examples")[0] == 143
    assert unwound


def test_name_that_is_no_text_can_be_printed(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    done = subprocess.run(
        [sys.executable, "-m", "keyface_cli", "animate", name, "b", "-o", tmp_path / "a.avi"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"error: ")


def test_no_colour_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for no_colour, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_colour)
        file = io.StringIO()
        shown = Console(file=file, force_terminal=True)
        monkeypatch.setattr(console, "stderr", lambda shown=shown: shown)
        console.report("error", "wrong")
        assert file.getvalue().endswith("wrong\n")
        assert ("31m" in file.getvalue()) is coloured


def test_warnings_of_our_modules_are_said_and_information_on_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("keyface_cli.media.audio")
    for verbose, expected in ((False, "warning: loud\n"), (True, "warning: loud\nnews\n")):
        console.set_up(verbose=verbose, debug=False)
        logger.warning("loud")
        logger.info("news")
        assert capsys.readouterr().err == expected


def test_progress_is_plain_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console.set_up(verbose=False, debug=False)
    clock = iter([0.0, 4.0, 12.0, 13.0, 20.0, 21.0])
    monkeypatch.setattr(console.time, "perf_counter", lambda: next(clock))
    with console.StageProgress() as progress:
        for done in (0, 10, 30, 40, 50, 50):
            progress("interpolation", done, 50)
    assert capsys.readouterr() == (
        "",
        "interpolation: 30/50 frames, 2.5 frames/s, 8 s left\n"
        "interpolation: 50/50 frames, 2.5 frames/s\n",
    )


def test_quiet_says_neither_progress_nor_notices(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_up(verbose=False, debug=False)
    console.set_quiet()
    with console.StageProgress() as progress:
        progress("audio", 1, 1)
    console.say("notice")
    with console.waiting("loading"):
        pass
    assert capsys.readouterr().err == ""
    console.report("warning", "heard")
    assert capsys.readouterr().err == "warning: heard\n"


def test_progress_is_a_bar_for_each_stage_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console.set_up(verbose=False, debug=False)
    file = io.StringIO()
    shown = Console(file=file, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(console, "stderr", lambda: shown)
    with console.waiting("loading"):
        pass
    assert "loading" in file.getvalue()
    with console.StageProgress() as progress:
        for stage in console.STAGES:
            progress(stage, 0, 20)
            progress(stage, 20, 20)
        console.report("warning", "between")
    lines = file.getvalue().split("warning: between")[-1].splitlines()
    for name in ("audio", "keyframes", "interpolation", "decoding"):
        assert any(name in line and "20/20" in line for line in lines)


def test_examples_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    for name in examples.NAMES:
        (tmp_path / "source" / name).write_text(name)
    monkeypatch.setattr(examples, "_PLACES", (tmp_path / "absent", tmp_path / "source"))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        done = CliRunner().invoke(app.app, ["examples"])
        assert done.exit_code == 0
        assert done.stdout.split() == [f"examples/{name}" for name in examples.NAMES]
        assert "try: keyface animate examples/portrait.jpg examples/speech.wav" in done.stderr
    (tmp_path / "examples" / "speech.wav").write_text("mine")
    done = CliRunner().invoke(app.app, ["examples"])
    assert str(done.exception) == "examples/speech.wav: exists already"
    assert (tmp_path / "examples" / "speech.wav").read_text() == "mine"
    assert CliRunner().invoke(app.app, ["examples", "--force"]).exit_code == 0
    assert (tmp_path / "examples" / "speech.wav").read_text() == "speech.wav"


def test_examples_that_cannot_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "_PLACES", (tmp_path,))
    done = CliRunner().invoke(app.app, ["examples"])
    assert str(done.exception) == "this installation holds no examples"
    for name in examples.NAMES:
        (tmp_path / name).touch()
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app.app, ["examples", "-o", str(tmp_path / "file")])
    assert "file: cannot be written to: " in str(done.exception)
