"""Makes jobs with a model that is loaded once: for `animate`, for `batch` and from Python."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.jobs.plan import JobInputs, Plan, read
from keyface_cli.output.formats import STDOUT

if TYPE_CHECKING:
    import torch

    from keyface_cli.jobs.jobfolder import JobFolder
    from keyface_cli.media.features import StoredFeatures
    from keyface_cli.options import Progress
    from keyface_cli.pipeline import KeyFacePipeline

logger = logging.getLogger(__name__)


class ComputeOptions(NamedTuple):
    """Where and how to compute: see `KeyFacePipeline.load`."""

    device: str = "auto"
    dtype: str = "auto"
    vae_dtype: str | None = None
    memory: str = "auto"
    compile: bool = False


class Listener:
    """What a runner tells while it works; this one hands on no more than how far each stage is.

    Args:
        report: is told that; None tells nobody.
    """

    def __init__(self, report: Progress | None = None) -> None:
        self._report = report or (lambda stage, done, total: None)

    def say(self, line: str) -> None:
        """Take note of a fact."""

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Surround something that takes its time."""
        return nullcontext()

    def progress(self) -> AbstractContextManager[Progress]:
        """Surround the making of a video; what it gives is told how far each stage is."""
        return nullcontext(self._report)


class Runner:
    """Makes the videos of jobs with one model, loaded for the first of them.

    Args:
        checkpoint: the model.
        compute: where and how to compute.
        listener: what is told.
        is_default: whether nobody asked for this model by name.
        cluster: the address of a Ray cluster whose workers make the frames; None makes them here.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        compute: ComputeOptions,
        listener: Listener | None = None,
        *,
        is_default: bool = False,
        cluster: str | None = None,
    ) -> None:
        from keyface_cli.jobs.shared_sound import SharedSounds  # numpy: not where help is shown

        self._cluster = cluster
        self.checkpoint, self.compute = checkpoint, compute
        self._listener = listener or Listener()
        self._is_default = is_default
        self._pipeline: KeyFacePipeline | None = None
        self._sounds = SharedSounds()

    def run(self, plan: Plan, *, keep_sound: bool = False) -> dict[str, Any]:
        """Make a job's video, or its keyframes alone.

        Args:
            plan: the job.
            keep_sound: keep the audio features for later jobs with the same recording.

        Returns:
            What `keyface animate --json` prints, see `make_video`; and "model", "seed", "device",
            "dtype", and in "timings" the "total".

        Raises:
            KeyFaceError: of any kind; what is finished stays in the job's folder.
        """
        started, job = time.perf_counter(), plan.job
        inputs = read(plan, self.checkpoint)
        with self._folder(plan) as folder:
            if self._cluster is None or job.keyframes_only:
                pipeline = self.load(folder, encoders=inputs.features is None)
                if keep_sound and inputs.features is None:
                    features = self._kept_features(plan, inputs, pipeline)
                    inputs = inputs._replace(features=features)
            else:
                from keyface_cli.jobs.cluster_video import ClusterPipeline

                stand_in = ClusterPipeline(plan, self.checkpoint, self.compute, self._cluster)
                pipeline = cast("KeyFacePipeline", stand_in)
            from keyface_cli.jobs.make_video import make_keyframes, make_video

            with self._listener.progress() as progress:
                if job.keyframes_only and folder is not None:
                    place = make_keyframes(plan, inputs, pipeline, folder, progress)
                    made: dict[str, Any] = {"output": str(place)}
                    timings = dict(pipeline.timings)
                else:
                    made = make_video(plan, inputs, pipeline, folder, progress)
                    timings = made.pop("timings")
        timings["total"] = time.perf_counter() - started
        return {
            **made,
            "model": self.checkpoint.name,
            "seed": job.seed,
            "device": str(self._place[0]),
            "dtype": str(self._place[1]).removeprefix("torch."),
            "timings": {stage: round(seconds, 3) for stage, seconds in timings.items()},
        }

    def _kept_features(
        self, plan: Plan, inputs: JobInputs, pipeline: KeyFacePipeline
    ) -> Mapping[str, StoredFeatures] | None:
        part = plan.hashes["recording"], plan.job.start, plan.job.duration
        place = plan.job.output.resolve().parent
        return self._sounds.of(part, inputs.waveform, pipeline, place)

    @cached_property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        """The device and the number format of the networks; looked at before anything slow."""
        from keyface_cli.device import resolve_device, resolve_dtype

        device = resolve_device(self.compute.device)
        return device, resolve_dtype(self.compute.dtype, device)

    @contextmanager
    def _folder(self, plan: Plan) -> Iterator[JobFolder | None]:
        """Open the folder beside the output that keeps what is finished; a pipe has none."""
        job = plan.job
        if job.output == STDOUT:
            yield None
            return
        from keyface_cli.jobs.jobfolder import JobFolder

        device, dtype = self._place
        name = str(dtype).removeprefix("torch.")
        belongs = plan.dependencies(self.checkpoint, str(device), name, self.compute.vae_dtype)
        with JobFolder(job.output, belongs, job.restart) as folder:
            if folder.resumed:
                self._listener.say(f"resuming from what is finished in {folder.path}")
            try:
                yield folder
            except BaseException:
                if folder.finished:
                    self._listener.say(
                        f"kept in {folder.path}: the same command resumes from there"
                    )
                raise

    def load(self, folder: JobFolder | None = None, *, encoders: bool = True) -> KeyFacePipeline:
        """Load the model, unless the one that is loaded will do.

        A video goes on at the level of memory that it was begun with: another gives other bits.

        Args:
            folder: of the job that it is for, where there is one.
            encoders: whether the audio encoders are needed.

        Raises:
            WeightsError: a file of the model is damaged.
            DeviceError: there is too little memory.
        """
        level = None
        if folder is not None and self.compute.memory == "auto":
            level = folder.notes.get("memory")
        loaded = self._pipeline
        if loaded is not None and (
            level not in (None, loaded.memory) or (encoders and not loaded.has_encoders)
        ):
            self._pipeline = loaded = None  # its memory is needed
            self._sounds.clear()
        pipeline = self._pipeline
        if pipeline is None:
            pipeline = self._pipeline = load_pipeline(
                self.checkpoint,
                self._place,
                self.compute._replace(memory=level or self.compute.memory),
                self._listener,
                is_default=self._is_default,
                encoders=encoders,
            )
        if folder is not None:
            folder.note(memory=pipeline.memory)
        return pipeline


def load_pipeline(
    checkpoint: Checkpoint,
    place: tuple[torch.device, torch.dtype],
    compute: ComputeOptions,
    listener: Listener,
    *,
    is_default: bool,
    encoders: bool,
) -> KeyFacePipeline:
    """Load a model and say which.

    Raises:
        WeightsError: a file of the model is damaged.
        DeviceError: there is too little memory.
    """
    started = time.perf_counter()
    device, dtype = place
    note = ""
    if is_default and checkpoint.name != "keyface":
        note = " (the published weights are not installed)"
    logger.info("model folder: %s", checkpoint.folder)
    name = str(dtype).removeprefix("torch.")
    listener.say(f"model: {checkpoint.name}{note}, on {device} in {name}")
    with listener.waiting("loading the model"):
        from keyface_cli.device import keep_freed_memory
        from keyface_cli.pipeline import KeyFacePipeline

        if device.type == "cpu":
            keep_freed_memory()
        pipeline = KeyFacePipeline.load(
            checkpoint,
            device,
            dtype,
            vae_dtype=compute.vae_dtype,
            memory=compute.memory,
            compile=compute.compile,
            encoders=encoders,
        )
    if device.type != "cpu":
        listener.say(f"memory: {pipeline.memory}")
    pipeline.timings["load"] = time.perf_counter() - started  # with the imports
    return pipeline
