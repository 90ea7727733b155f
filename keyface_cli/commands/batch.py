"""`keyface batch`: many videos from a list, the models loaded once, and a report of each."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.checkpoints.installed import resolve_model
from keyface_cli.commands import console, options
from keyface_cli.errors import KeyFaceError
from keyface_cli.jobs.batch import (
    Report,
    Row,
    is_made,
    jobs_of_folder,
    output_hash,
    parse_common,
    read_jobs,
)
from keyface_cli.jobs.jobfolder import remove_folder
from keyface_cli.jobs.plan import make_plan
from keyface_cli.jobs.runner import ComputeOptions, Runner

EXAMPLES = """\
[bold]Examples[/bold]

keyface batch examples/jobs.csv --skip-existing

keyface batch --portrait examples/avatar.png --audio-dir examples --output-dir videos
"""
_list, _output, _machine = map(options.in_panel, ("Jobs", "Output", "Machine"))


def batch(
    jobs: Annotated[
        Path | None,
        typer.Argument(
            metavar="[JOBS.csv]",
            help="A CSV: the columns portrait, audio, output and any option of animate.",
            show_default=False,
        ),
    ] = None,
    portrait: Annotated[
        Path | None, _list(help="Instead of a CSV: this portrait ...", show_default=False)
    ] = None,
    audio_dir: Annotated[
        Path | None, _list(help="... with each recording of this folder.", show_default=False)
    ] = None,
    output_dir: Annotated[
        Path | None,
        _list(
            help="Where outputs go, unless they are absolute.",
            show_default="the CSV's folder, with --audio-dir this one",
        ),
    ] = None,
    common: Annotated[
        list[str] | None,
        _list(
            "--set",
            metavar="NAME=VALUE",
            help="An option of animate for every row that does not say otherwise.",
            show_default=False,
        ),
    ] = None,
    skip_existing: Annotated[
        bool,
        _list(
            "--skip-existing",
            help="Leave out what was made of the same files with the same options already, by "
            "content, and make again what was not.",
        ),
    ] = False,
    report: Annotated[
        Path | None,
        _output(
            metavar="FILE.csv",
            help="The report; the same as JSON lines goes beside it.",
            show_default="JOBS.report.csv beside the CSV, or in the output folder",
        ),
    ] = None,
    as_json: Annotated[bool, _output("--json", help="Print one JSON object a row.")] = False,
    quiet: options.QuietOption = False,
    model: options.ModelOption = None,
    processes: Annotated[
        int,
        _machine(
            "--jobs",
            min=1,
            max=64,
            metavar="N",
            help="Work on so many rows at a time, each in a process with a GPU, or its share of "
            "the CPU, of its own; with --cluster, by so many workers in all.",
        ),
    ] = 1,
    cluster: options.ClusterOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    vae_dtype: options.VaeDtypeOption = None,
    memory: options.MemoryOption = "auto",
) -> None:
    """Make many videos from a list; a row that fails is reported and the rest continue."""
    if quiet:
        console.set_quiet()
    try:
        rows, place = _rows(jobs, portrait, audio_dir, output_dir, common or [])
        book = Report(report or place, rows)
        checkpoint = Checkpoint.open(resolve_model(model))
    except KeyFaceError as error:  # nothing of the batch can be made: wrong usage
        console.report("error", str(error))
        if error.hint is not None:
            console.report("hint", error.hint)
        raise typer.Exit(2) from error
    compute = ComputeOptions(device, dtype, vae_dtype, memory, False)
    queue = RowQueue(rows, book, as_json)
    try:
        if cluster is not None:
            _on_cluster(queue, checkpoint, compute, skip_existing, cluster, processes)
        elif processes == 1:
            worker = Worker(checkpoint, compute, skip_existing, is_default=model is None)
            for row in queue.take():
                queue.give(worker.make(row))
        else:
            _distribute(queue, checkpoint, compute, skip_existing, processes)
    finally:
        queue.close()
    failed = sum(row.status == "failed" for row in rows)
    console.say(f"{len(rows) - failed} of {len(rows)} made, {failed} failed; report: {book.path}")
    if failed:
        raise typer.Exit(1)


def _rows(
    jobs: Path | None,
    portrait: Path | None,
    audio_dir: Path | None,
    output_dir: Path | None,
    common: list[str],
) -> tuple[list[Row], Path]:
    """The rows and where their report goes."""
    pairs = parse_common(common)
    if output_dir is not None:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KeyFaceError(f"{output_dir}: {error.strerror or error}") from error
    if jobs is not None and portrait is None and audio_dir is None:
        rows = read_jobs(jobs, pairs, output_dir)
        return rows, jobs.with_name(f"{jobs.stem}.report.csv")
    if jobs is None and portrait is not None and audio_dir is not None:
        folder = output_dir or Path.cwd()
        return jobs_of_folder(portrait, audio_dir, pairs, folder), folder / "batch.report.csv"
    raise KeyFaceError("give a CSV, or --portrait and --audio-dir", "keyface batch --help")


class RowQueue:
    """Where workers take rows and give them back; may be used from several threads."""

    def __init__(self, rows: list[Row], report: Report, as_json: bool) -> None:
        self._rows, self._report, self._as_json = rows, report, as_json
        self._lock = threading.Lock()
        self._left = iter(rows)

    def take(self) -> Any:
        """Yield rows until none is left; a row that is no job is only said."""
        while True:
            with self._lock:
                row = next(self._left, None)
            if row is None:
                return
            if row.job is None:
                self.give(row)
                continue
            row.status = "running"
            self.update()
            yield row

    def give(self, row: Row) -> None:
        """Take note of a finished row, which may be a copy, and say so on stdout."""
        with self._lock:
            index = next(i for i, one in enumerate(self._rows) if one.row == row.row)
            self._rows[index] = row
        self.update()
        if self._as_json:
            typer.echo(json.dumps(row.described()))
        else:
            reason = f": {row.error}" if row.error else ""
            typer.echo(f"{row.status} row {row.row} {row.output}{reason}")
        sys.stdout.flush()

    def update(self) -> None:
        """Write the report."""
        with self._lock:
            self._report.write()

    def close(self) -> None:
        """Say in the report what was not finished."""
        for row in self._rows:
            if row.status == "running":
                row.status = "interrupted"
        self.update()


class Worker:
    """Makes rows one after the other with a model that is loaded once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        compute: ComputeOptions,
        skip_existing: bool,
        *,
        is_default: bool,
    ) -> None:
        self._skip_existing = skip_existing
        self._runner = Runner(checkpoint, compute, console.Terminal(), is_default=is_default)

    def make(self, row: Row) -> Row:
        """Make a row's video, or take note of why not; returns the row."""
        assert row.job is not None
        started = time.perf_counter()
        try:
            job, force = row.job, row.job.force
            may_be_made = self._skip_existing or row.tried
            plan = make_plan(replace(job, force=force or may_be_made))
            made = may_be_made and is_made(plan, self._runner.checkpoint, force=force)
            if row.tried and not made and not self._skip_existing:
                plan = make_plan(job)  # what is there is another's
            if made:
                row.status = "done" if row.tried else "skipped"
                if row.tried and not job.keep_job:
                    remove_folder(job.output)  # which the lost worker did not come to
            else:
                console.say(f"{job.portrait} + {job.audio} -> {job.output}")
                self._runner.run(plan, keep_sound=row.shares_sound)
                row.status = "done"
            row.sha256 = output_hash(job.output)
        except (MemoryError, Exception) as error:
            row.fail(error)
        row.seconds = round(time.perf_counter() - started, 3)
        return row


def _distribute(
    queue: RowQueue,
    checkpoint: Checkpoint,
    compute: ComputeOptions,
    skip_existing: bool,
    count: int,
) -> None:
    """Let `count` processes, one a GPU, work on the rows; each is led by a thread."""
    import torch

    from keyface_cli.device import resolve_device

    place = resolve_device(compute.device).type
    devices = [f"cuda:{index}" if place == "cuda" else place for index in range(count)]
    threads = max(1, torch.get_num_threads() // count) if place == "cpu" else None
    for name in devices:
        resolve_device(name)
    ended = threading.Event()
    leads = [
        threading.Thread(
            target=_drive_process,
            args=(queue, checkpoint, compute._replace(device=name), skip_existing, threads, ended),
            daemon=True,
        )
        for name in devices
    ]
    for lead in leads:
        lead.start()
    try:
        for lead in leads:
            while lead.is_alive():
                lead.join(timeout=0.2)  # so that Ctrl-C is handled
    finally:
        ended.set()
        for lead in leads:
            lead.join()


def _on_cluster(
    queue: RowQueue,
    checkpoint: Checkpoint,
    compute: ComputeOptions,
    skip_existing: bool,
    address: str,
    processes: int,
) -> None:
    """Let the workers of a cluster make the rows; a row whose workers die fails alone."""
    from keyface_cli.jobs.cluster import distribute

    def lose(row: Row) -> None:
        row.fail(KeyFaceError("every worker that tried it was lost", "see the memory it needs"))
        queue.give(row)

    made = distribute(
        queue.take(),
        partial(_set_up, checkpoint, compute, skip_existing),
        lose,
        address=address,
        workers=processes if processes > 1 else None,
        again=lambda row: replace(row, tried=True),
    )
    for row in made:
        queue.give(row)


def _set_up(
    checkpoint: Checkpoint, compute: ComputeOptions, skip_existing: bool
) -> Callable[[Row], Row]:
    """What a worker of a cluster makes rows with."""
    console.set_up(verbose=False, debug=False)
    console.set_quiet()
    return Worker(checkpoint, compute, skip_existing, is_default=False).make


def _drive_process(
    queue: RowQueue,
    checkpoint: Checkpoint,
    compute: ComputeOptions,
    skip: bool,
    threads: int | None,
    ended: threading.Event,
) -> None:
    """Hand rows to a process of their own; one that dies fails its row alone."""
    context = multiprocessing.get_context("spawn")
    process: Any = None
    ours: Connection | None = None
    try:
        for row in queue.take():
            if process is None or not process.is_alive():
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, checkpoint, compute, skip, threads), daemon=True
                )
                process.start()
                theirs.close()
            assert ours is not None
            try:
                ours.send(row)
                while not ours.poll(0.2):
                    if ended.is_set():
                        return
                queue.give(ours.recv())
            except (EOFError, OSError):
                process.join()
                row.fail(KeyFaceError(f"its process ended with code {process.exitcode}"))
                queue.give(row)
    finally:
        if process is not None:
            process.terminate()
            process.join()


def _serve(
    connection: Connection,
    checkpoint: Checkpoint,
    compute: ComputeOptions,
    skip: bool,
    threads: int | None,
) -> None:
    """Make the rows that come through a pipe until it is closed, on some threads of the CPU."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console.set_up(verbose=False, debug=False)
    console.set_quiet()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    worker = Worker(checkpoint, compute, skip, is_default=False)
    while True:
        try:
            row = connection.recv()
        except EOFError:
            return
        connection.send(worker.make(row))
