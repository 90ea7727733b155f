"""A folder of finished files, each with its hash: what a run has done, whatever ended it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from keyface_cli.files import append, file_hash, take_name

_NAME = "done.jsonl"


class Ledger:
    """Files that are finished, in a folder.

    A file is written under another name, moved to its own, and then noted with its hash in
    `done.jsonl`; each step is on the disk before the next. What is not noted, or no longer what
    was noted, does not count. Safe to use from several threads.

    Args:
        folder: where the files are; it exists.

    Raises:
        OSError: it cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._noted = self._read()
        self._checked: dict[str, bool] = {}

    @property
    def names(self) -> list[str]:
        """The names of the files that were noted."""
        return list(self._noted)

    def path(self, name: str) -> Path:
        """Return where a file of this name is, or would be."""
        return self.folder / name

    def part(self, name: str) -> Path:
        """Return where to write a file before it is finished."""
        return self.folder / f"{name}.part"

    def holds(self, name: str) -> bool:
        """Whether a file is finished and still what it was; its bytes are read once."""
        with self._lock:
            if name not in self._checked:
                noted = self._noted.get(name)
                self._checked[name] = noted is not None and noted == _describe(self.path(name))
            return self._checked[name]

    def add(self, name: str) -> None:
        """Take over the finished file `part(name)`."""
        part = self.part(name)
        described = _describe(part)
        assert described is not None
        take_name(part, self.path(name))
        line = json.dumps({"name": name, "bytes": described[0], "sha256": described[1]})
        with self._lock:
            append(self.path(_NAME), line.encode() + b"\n")
            self._noted[name], self._checked[name] = described, True

    def _read(self) -> dict[str, tuple[int, str]]:
        """What is noted; a last line that was cut short is cut off."""
        path, noted, good = self.path(_NAME), {}, 0
        if not path.exists():
            return {}
        data = path.read_bytes()
        for line in data.splitlines(keepends=True):
            try:
                entry = json.loads(line)
                if not line.endswith(b"\n"):
                    break
                noted[str(entry["name"])] = int(entry["bytes"]), str(entry["sha256"])
            except (ValueError, KeyError, TypeError):
                break
            good += len(line)
        if good < len(data):
            os.truncate(path, good)
        return noted


def _describe(path: Path) -> tuple[int, str] | None:
    """Size and hash of a file, None where there is none."""
    try:
        return path.stat().st_size, file_hash(path)
    except FileNotFoundError:
        return None
