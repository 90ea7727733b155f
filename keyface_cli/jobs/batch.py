"""Many jobs: the file that lists them, what is made already, and the report of each."""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.errors import JobError, KeyFaceError, VideoError
from keyface_cli.files import csv_text, file_hash, read_rows, write_text
from keyface_cli.jobs.job import Job, default_output
from keyface_cli.jobs.plan import Plan, digest

SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".mp4", ".mov", ".webm", ".mkv")
FIELDS = ("row", "status", "error", "seconds", "output", "sha256", "portrait", "audio")
_TRUE, _FALSE = {"true", "yes", "1", "x"}, {"false", "no", "0"}


@dataclass
class Row:
    """One line of a batch, and what became of it.

    `status` is "pending", "running", "done", "skipped", "failed" or "interrupted"; `seconds` how
    long it took; `shares_sound` whether another row has the same part of the same recording;
    `tried` whether a worker that was lost may have made it already.
    """

    row: int
    values: dict[str, str]
    job: Job | None = None
    status: str = "pending"
    error: str = ""
    seconds: float = 0.0
    output: str = ""
    sha256: str = ""
    shares_sound: bool = False
    tried: bool = False
    portrait: str = field(init=False, default="")
    audio: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.portrait, self.audio = self.values.get("portrait", ""), self.values.get("audio", "")

    def fail(self, error: BaseException) -> None:
        """Take note of why the row could not be made."""
        hint = getattr(error, "hint", None)
        message = (
            str(error) if isinstance(error, KeyFaceError) else f"{type(error).__name__}: {error}"
        )
        self.error = " ".join(f"{message} ({hint})".split() if hint else message.split())
        self.status = "failed"

    def described(self) -> dict[str, Any]:
        """Return the row of the report."""
        return {name: getattr(self, name) for name in FIELDS}


def read_jobs(path: Path, common: Mapping[str, str], folder: Path | None) -> list[Row]:
    """Read a CSV of jobs: a header, then a row for each video.

    The columns are portrait, audio, output and any option of `animate` by its name; an empty cell
    leaves the option out. Commas, semicolons or tabs separate; files are relative to the CSV's
    folder. A row that is no job is a failed row.

    Args:
        path: the CSV.
        common: options of all rows that do not say otherwise, by the names of columns.
        folder: what outputs are relative to; None is the CSV's folder.

    Raises:
        JobError: the file cannot be read, or a column is unknown or missing.
    """
    header, rows = read_rows(path, JobError, name_of=partial(_column, path), comments=True)
    if not header:
        raise JobError(f"{path}: holds no rows", "the first line is: portrait,audio,output")
    for needed in ("portrait", "audio"):
        if needed not in header and needed not in common:
            raise JobError(f"{path}: the column {needed} is missing")
    base = path.resolve().parent
    made = []
    for number, cells in rows:
        given = {name: cell for name, cell in cells.items() if name and cell}
        made.append(Row(number, {**common, **given}))
        if cells.get(""):
            made[-1].fail(JobError("a value under no column"))
    _fill(made, base, folder or base)
    return made


def jobs_of_folder(
    portrait: Path, sounds: Path, common: Mapping[str, str], folder: Path
) -> list[Row]:
    """Return a row for each recording in a folder, in the order of names.

    Raises:
        JobError: it is no folder, or holds none.
    """
    if not sounds.is_dir():
        raise JobError(f"{sounds}: no such folder")
    found = sorted(path for path in sounds.iterdir() if path.suffix.lower() in SOUNDS)
    if not found:
        raise JobError(f"{sounds}: holds no recordings")
    values = [{**common, "portrait": str(portrait), "audio": str(path)} for path in found]
    rows = [Row(number, each) for number, each in enumerate(values, start=1)]
    _fill(rows, Path.cwd(), folder)
    return rows


def is_made(plan: Plan, checkpoint: Checkpoint, *, force: bool) -> bool:
    """Whether a job's output is there and was made of the same files with the same choices.

    Where it is to be signed, it also has to be signed, by whomever, and not changed since.

    Args:
        plan: the job.
        checkpoint: the model.
        force: it may be replaced, whoever made it.

    Raises:
        VideoError: it is there, and was not made by keyface: it is not to be replaced.
        KeyFaceError: a file of the job cannot be read.
    """
    from keyface_cli.output.metadata import read_metadata

    if not plan.job.output.exists():
        return False
    try:
        found = read_metadata(plan.job.output)
    except VideoError:
        if force:
            return False
        raise
    if found.get("job") != digest(plan.recipe(checkpoint)):
        return False
    if plan.signer is None:
        return True
    from keyface_cli.credentials.validation import read_credentials

    credentials = read_credentials(plan.job.output)
    return credentials is not None and not credentials.refused


def output_hash(path: Path) -> str:
    """Return the SHA-256 of a result; of a folder, that of its files in the order of names."""
    if path.is_file():
        return file_hash(path)
    import hashlib

    names = sorted(file for file in path.iterdir() if file.is_file())
    return hashlib.sha256("".join(map(file_hash, names)).encode()).hexdigest()


class Report:
    """What became of each row, as CSV and as JSON lines; whole files at every moment.

    Args:
        path: of the CSV; the JSON lines get its name with .jsonl.
        rows: all rows.

    Raises:
        JobError: it cannot be written.
    """

    def __init__(self, path: Path, rows: list[Row]) -> None:
        self.path, self.lines_path, self._rows = path, path.with_suffix(".jsonl"), rows
        self.write()

    def write(self) -> None:
        """Write the rows as they are now."""
        table = csv_text(FIELDS, (row.described().values() for row in self._rows))
        lines = "".join(json.dumps(row.described()) + "\n" for row in self._rows)
        for path, text in ((self.path, table), (self.lines_path, lines)):
            write_text(path, text, JobError, "--report names another file")


def parse_choice(name: str, text: str) -> Any:
    """Return the value of a field of `Job` that a cell means.

    Raises:
        JobError: it means none.
    """
    hint = typing.get_type_hints(Job)[name]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(one for one in kinds if one is not type(None))
    if kind is bool:
        word = text.lower()
        if word not in _TRUE | _FALSE:
            raise JobError(f"{name}: yes or no, not {text}")
        return word in _TRUE
    if kind in (int, float):
        try:
            return kind(text.replace(",", ".") if "." not in text else text)
        except ValueError:
            raise JobError(f"{name}: not a number: {text}") from None
    return kind(text)


def _column(path: Path, text: str) -> str:
    """The field of `Job` that a header names; empty where the column has none."""
    name = text.lower().lstrip("-").replace("-", "_").replace(" ", "_")
    known = [one.name for one in dataclasses.fields(Job)]
    if name and name not in known:
        raise JobError(
            f"{path}: no such column: {text}",
            "portrait, audio, output, or an option of keyface animate",
        )
    return name


def parse_common(pairs: Iterable[str]) -> dict[str, str]:
    """Read the NAME=VALUE of `--set`.

    Raises:
        JobError: one is no such pair.
    """
    common = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark:
            raise JobError(f"--set takes NAME=VALUE: {pair}")
        common[_column(Path("--set"), name.strip())] = value.strip()
    return common


def _fill(rows: list[Row], base: Path, folder: Path) -> None:
    """Make the job of each row, or say why there is none."""
    taken: dict[Path, int] = {}
    for row in rows:
        if row.status == "failed":
            continue
        try:
            row.job = _job(row.values, base, folder)
            row.output = str(row.job.output)
            place = row.job.output.resolve()
            if place in taken:
                raise JobError(f"its output is that of row {taken[place]} too: {row.output}")
            taken[place] = row.row
        except (KeyFaceError, ValueError, OSError) as error:
            row.fail(error)
            row.job = None
    made = [(row, row.job) for row in rows if row.job is not None]
    sounds = Counter((job.audio.resolve(), job.start, job.duration) for _, job in made)
    for row, job in made:
        row.shares_sound = sounds[job.audio.resolve(), job.start, job.duration] > 1


def _job(values: Mapping[str, str], base: Path, folder: Path) -> Job:
    chosen = {name: parse_choice(name, text) for name, text in values.items()}
    for name in ("portrait", "audio"):
        if name not in chosen:
            raise JobError(f"{name} is missing")
    for name in ("portrait", "audio", "features", "voice_model", "sign", "key", "output"):
        if name in chosen:
            chosen[name] = (folder if name == "output" else base) / chosen[name]
    if "emotion" in chosen and os.path.isfile(base / chosen["emotion"]):
        chosen["emotion"] = str(base / chosen["emotion"])
    if str(values.get("output")) == "-":
        raise JobError("a batch cannot be piped: name a file")
    chosen.setdefault("output", default_output(chosen["portrait"], chosen["audio"], folder))
    return Job(**chosen)
