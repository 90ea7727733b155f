"""The folder beside an output in which a video that is being made keeps what is finished."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from keyface_cli.errors import JobError
from keyface_cli.files import remove_at_once, unwritable, write_text
from keyface_cli.output.ledger import Ledger

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".keyface"
FORMAT = 1
_DESCRIPTION = "job.json"
_TRIES = 5  # to lock a folder that other runs remove
_LONGEST_NAME = 240  # bytes of a file's name, less than every file system's limit


def folder_for(output: Path) -> Path:
    """Return the job folder of an output: `talk.mp4.keyface`."""
    target = output.resolve()
    name = target.name + SUFFIX
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32] + SUFFIX
    return target.with_name(name)


def remove_folder(output: Path) -> None:
    """Remove the job folder of an output that is finished, where one was left."""
    shutil.rmtree(folder_for(output), ignore_errors=True)


class JobFolder:
    """What is finished of one video: keyframe latents and encoded pieces, each with its hash.

    A context manager: inside it no other run can use the folder. On leaving, a folder in which
    nothing is finished is removed.

    Args:
        output: the video.
        dependencies: everything that the frames depend on, by the name that a user knows it under;
            what JSON can hold. A folder that was begun with another one is not used.
        restart: begin anew, whatever is there.

    Raises:
        JobError: the folder was begun with something else, is in use, or cannot be written.
    """

    def __init__(
        self, output: Path, dependencies: Mapping[str, Any], restart: bool = False
    ) -> None:
        self.path = folder_for(output)
        self._dependencies = json.loads(json.dumps(dict(dependencies)))
        self._restart = restart
        self.notes: dict[str, Any] = {}
        self.resumed = False
        self._removed = False
        self._lock = FileLock(str(self.path / "lock"))

    def __enter__(self) -> JobFolder:
        try:
            self._take()
            self._open()
        except Timeout:
            raise JobError(
                f"{self.path}: another run is making this video", "wait for it"
            ) from None
        except OSError as error:
            self._lock.release()
            raise unwritable(self.path, error, JobError) from error
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # removed while it is ours: a run that takes the lock after us has a folder of its own
        if not self._removed and not self.ledger.names:
            self.remove()
        self._lock.release()

    @property
    def finished(self) -> bool:
        """Whether there is anything that a further run need not do."""
        return bool(self.ledger.names)

    def note(self, **facts: Any) -> None:
        """Keep facts that a further run should find in `notes`.

        Raises:
            JobError: they cannot be written.
        """
        self.notes |= facts
        self._describe()

    def remove(self) -> None:
        """Remove the folder and all that is in it; a run that begins now has one of its own."""
        remove_at_once(self.path)  # were the lock removed before the rest, theirs would go with it
        self._removed = True

    def get(self, clip: int) -> Tensor | None:
        """Return the latents of a clip's keyframes, see `stream.KeyframeStore`."""
        from safetensors.torch import load_file

        name = _keyframes(clip)
        if not self.ledger.holds(name):
            return None
        return load_file(self.ledger.path(name))["latents"]

    def put(self, clip: int, latents: Tensor) -> None:
        """Keep the latents of a clip's keyframes, see `stream.KeyframeStore`.

        Raises:
            JobError: they cannot be written.
        """
        from safetensors.torch import save

        name = _keyframes(clip)
        try:
            self.ledger.part(name).write_bytes(save({"latents": latents.contiguous()}))
            self.ledger.add(name)
        except OSError as error:
            raise unwritable(self.path, error, JobError) from error

    def _take(self) -> None:
        """Make the folder where it is missing, and lock it."""
        for _ in range(_TRIES):
            self.path.mkdir(exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except FileNotFoundError:
                continue  # another run has just removed it
            if Path(self._lock.lock_file).exists():
                return
            self._lock.release()
        raise Timeout(self._lock.lock_file)

    def _open(self) -> None:
        described = self.path / _DESCRIPTION
        if self._restart:
            for path in self.path.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            found = json.loads(described.read_text(encoding="utf-8"))
            begun, self.notes = (
                dict(found.get("dependencies", found.get("identity"))),
                dict(found["notes"]),
            )
        except FileNotFoundError:
            begun = None
        except (ValueError, KeyError, TypeError):
            raise JobError(f"{described}: damaged", "--restart begins the video anew") from None
        self.ledger = Ledger(self.path)
        if begun is None:
            self._describe()
        elif begun != self._dependencies:
            raise JobError(
                f"{self.path} was begun with {_differences(begun, self._dependencies)}",
                "give the same again to resume, or --restart to begin anew",
            )
        self.resumed = begun is not None and self.finished

    def _describe(self) -> None:
        described = self.path / _DESCRIPTION
        content = {"format": FORMAT, "dependencies": self._dependencies, "notes": self.notes}
        write_text(described, json.dumps(content, indent=1) + "\n", JobError)


def _keyframes(clip: int) -> str:
    return f"keyframes-{clip:05d}.safetensors"


def _differences(begun: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Say what differs, as in "--seed 3, not 4; another portrait"."""
    said = []
    for name in sorted(begun.keys() | wanted.keys()):
        old, new = begun.get(name), wanted.get(name)
        if old == new:
            continue
        if name.startswith("--"):
            said.append(f"{name} {_shown(old)}, not {_shown(new)}")
        else:
            said.append(f"another {name}")
    return "; ".join(said)


def _shown(value: Any) -> str:
    return "left out" if value is None else str(value)
