"""Every command explains itself and is listed in README.md, and what the READMEs show exists."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from keyface_cli.app import app
from keyface_cli.commands import animate
from keyface_cli.jobs.job import Job

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
READMES = [README, *sorted((ROOT / "keyface_cli").rglob("README.md"))]
ROOMS = [str(path.relative_to(ROOT)) for path in READMES]


Command = tuple[tuple[str, ...], Callable[..., Any]]


def find_commands(group: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[Command]:
    """Yield the words that name each command, as in ("train", "vae"), and its function."""
    for command in group.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        yield (*path, name), command.callback
    for subgroup in group.registered_groups:
        assert subgroup.typer_instance is not None
        group_name = subgroup.name or subgroup.typer_instance.info.name
        yield from find_commands(subgroup.typer_instance, (*path, str(group_name)))


COMMANDS = dict(sorted(find_commands(app)))


def help_of(words: tuple[str, ...]) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "300", "NO_COLOR": "1"})
    assert done.exit_code == 0
    return done.stdout


def shown_commands(readme: str) -> list[list[str]]:
    """Return the words after `keyface` of every command that a README shows."""
    lines = (ROOT / readme).read_text("utf-8").splitlines()
    code = [line.strip() for line in lines if line.startswith("    ") or "`keyface " in line]
    shown = [re.split(r"&&|`|\|", text)[0] for line in code for text in line.split("keyface ")[1:]]
    return [words for text in shown if (words := shlex.split(text.replace("[", " ")))]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_explains_itself(words: tuple[str, ...]) -> None:
    callback = COMMANDS[words]
    assert callback.__doc__ is not None
    sentence = callback.__doc__.splitlines()[0]
    assert re.fullmatch(r"[A-Z].*\.", sentence)
    assert sentence in help_of(words)
    for name, hint in get_type_hints(callback, include_extras=True).items():
        if name != "return":
            helps = [info.help for info in hint.__metadata__ if info.help]
            assert helps, name
            # a word in brackets is taken for a style and left out where no \ stands before it
            assert not any(re.search(r"(?<!\\)\[[a-z]", text) for text in helps), name


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_is_listed_in_the_readme(words: tuple[str, ...]) -> None:
    lines = README.read_text("utf-8").splitlines()
    group, name = " ".join(("keyface", *words[:-1])), words[-1]
    assert any(re.search(rf"{group}\b.*\b{name}\b", line) for line in lines)


def test_the_first_readme_is_short() -> None:
    assert len(README.read_bytes()) <= 8000


def test_every_room_is_found_from_the_first_readme() -> None:
    assert {"README.md", "keyface_cli/emotion/README.md", "keyface_cli/jobs/README.md"} < {*ROOMS}
    linked = re.findall(r"\]\((keyface_cli/[^)#]+)\)", README.read_text("utf-8"))
    assert sorted(set(linked)) == ROOMS[1:]


@pytest.mark.parametrize("readme", ROOMS)
def test_files_that_a_readme_links_to_exist(readme: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / readme).read_text("utf-8"))
    for link in links:
        if not link.startswith("https://"):
            assert ((ROOT / readme).parent / link).exists(), link


@pytest.mark.parametrize("readme", ROOMS)
def test_commands_and_options_of_a_readme_exist(readme: str) -> None:
    for words in shown_commands(readme):
        if not re.match(r"[a-z]", words[0]):
            continue
        command = next((c for c in COMMANDS if tuple(words[: len(c)]) == c), None)
        assert command, f"no such command: keyface {' '.join(words)}"
        text = help_of(command)
        for option in (word.split("=")[0] for word in words if re.match("-+[a-z]", word)):
            assert re.search(rf"{option}\b", text), f"{' '.join(words)}: no such option: {option}"


def test_animate_shows_defaults_and_panels() -> None:
    text = help_of(("animate",))
    for panel in ("Output", "Portrait", "Sound", "Model", "Machine"):
        assert f"─ {panel} ─" in text
    for option in (
        *("emotion", "model", "seed", "steps", "audio-guidance", "identity-guidance", "start"),
        *(
            "autoguidance",
            "liveliness",
            "emotion-guidance",
            "duration",
            "device",
            "dtype",
            "chunk",
            "crf",
            "output",
        ),
        *("crop", "face", "portrait-time", "background", "size", "fps", "audio-offset"),
    ):
        line = next(line for line in text.splitlines() if f"--{option} " in line)
        assert "[default: " in line, option


def test_examples_of_animate_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []

    def stop(job: Job) -> None:
        jobs.append(job)
        raise typer.Exit

    monkeypatch.setattr(animate, "make_plan", stop)
    lines = [line for line in animate.EXAMPLES.splitlines() if line.startswith("keyface ")]
    assert len(lines) == 2
    for line in lines:
        assert CliRunner().invoke(app, shlex.split(line)[1:]).exit_code == 0
        assert line in help_of(("animate",))
    assert [str(job.output) for job in jobs] == ["talk.mp4", "avatar-speech.mp4"]


def test_python_of_the_readme_runs_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").symlink_to(README.parent / "examples")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "talk.mp4 25"
    assert sum(ast.literal_eval(line)[0] for line in lines[1:]) == 25
    assert (tmp_path / "talk.mp4").is_file()
