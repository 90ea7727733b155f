"""Files are whole or not there, and a full disk is called one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from keyface_cli import files
from keyface_cli.errors import KeyFaceError, VideoError, WeightsError
from keyface_cli.files import (
    is_full,
    making_folder,
    read_rows,
    replacing,
    save_array,
    take_name,
    unwritable,
    write_text,
)


def write_half(path: Path, failure: Exception) -> None:
    """Fail in the middle of writing a file."""
    with replacing(path, VideoError, "buy a disk") as part:
        part.write_text("half")
        raise failure


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_half(path, KeyError())
    assert path.read_text() == "old"
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    write_text(tmp_path / "link.txt", "new\udcff")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_bytes() == b"new\xff"


def test_a_file_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, str]] = []
    real_sync, real_replace = files.sync, os.replace

    def sync(path: Path) -> None:
        steps.append(("sync", path.name))
        real_sync(path)

    def replace(source: Path, target: Path) -> None:
        steps.append(("name", Path(target).name))
        real_replace(source, target)

    monkeypatch.setattr(files, "sync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "a.txt", "whole")
    with making_folder(tmp_path / "b") as part:
        (part / "c").touch()
    folder = tmp_path.name
    assert steps == [
        *[("sync", ".a.txt.part"), ("name", "a.txt"), ("sync", folder)],
        *[("sync", "c"), ("sync", ".b.part"), ("name", "b"), ("sync", folder)],
    ]


def test_others_may_read_what_a_writer_made_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "a.bin") as part:
        part.unlink()
        part.touch(0o600)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.bin", "plain")]
    assert modes[0] == modes[1]


def test_two_writers_of_a_shared_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path, shared=True) as first, replacing(path, shared=True) as second:
        assert first != second
        first.write_text("one")
        second.write_text("two")
    assert path.read_text() == "one"  # which ended last


def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent/a\.txt: cannot be written to: No such file"):
        write_text(tmp_path / "absent" / "a.txt", "", WeightsError)
    with pytest.raises(VideoError, match=r"a\.txt: the disk is full") as found:
        write_half(tmp_path / "a.txt", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert found.value.hint == "buy a disk"
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_known_by_its_number_or_its_words() -> None:
    assert is_full(OSError(errno.EDQUOT, "whatever"))
    assert is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_full(OSError(errno.EACCES, "Permission denied"))
    error = unwritable(Path("a"), OSError(errno.EACCES, "Permission denied"), hint="ask")
    assert (str(error), error.hint) == ("a: cannot be written to: Permission denied", "ask")


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    left = tmp_path / ".shard.part"  # of a run that was killed
    left.mkdir()
    (left / "old.npy").touch()
    with making_folder(tmp_path / "shard") as part:
        assert list(part.iterdir()) == []
        (part / "new.npy").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]
    assert (tmp_path / "shard" / "new.npy").read_text() == "whole"

    def fill(error: BaseException) -> None:
        with making_folder(tmp_path / "other", VideoError) as part:
            (part / "half.npy").touch()
            raise error

    with pytest.raises(VideoError, match="other: the disk is full"):
        fill(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        fill(KeyboardInterrupt())
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]


def test_a_folder_replaces_none_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    with (
        pytest.raises(VideoError, match="taken: cannot be written to"),
        making_folder(tmp_path / "taken", VideoError),
    ):
        pass
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_of_a_linked_folder_what_the_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "disk" / "model" / "a").write_text("first")
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    for content in ("second", "third"):
        with making_folder(tmp_path / "model", force=True) as part:
            (part / "a").write_text(content)
        assert (tmp_path / "model").is_symlink()
        assert (tmp_path / "disk" / "model" / "a").read_text() == content
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(KeyFaceError, match="circle"), making_folder(tmp_path / "circle"):
        pass


def test_a_folder_that_holds_something_is_replaced_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(name: str, content: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "a").write_text(content)
        return tmp_path / name

    make(".model.old", "of a run that was killed")
    take_name(make("part", "second"), make("model", "first"), force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "a").read_text() == "second"

    (tmp_path / "other").mkdir()
    for left in ("file", "link", "folder"):
        old = tmp_path / ".model.old"
        if left == "file":
            old.touch()
        elif left == "link":
            old.symlink_to(tmp_path / "other")
        else:
            os.replace(tmp_path / "model", old)  # a kill between the two steps
        take_name(make("part", "second"), tmp_path / "model", force=True)
        assert (tmp_path / "model" / "a").read_text() == "second"
        assert {path.name for path in tmp_path.iterdir()} == {"model", "other"}
    (tmp_path / "other").rmdir()

    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(source).name == "part":
            raise OSError(errno.EACCES, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="Permission denied"):
        take_name(make("part", "third"), tmp_path / "model", force=True)
    assert (tmp_path / "model" / "a").read_text() == "second"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "part"}


def test_an_array_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npy"
    save_array(path, np.arange(3))
    assert np.load(path).tolist() == [0, 1, 2]

    def save(file: BinaryIO, array: object) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(KeyFaceError, match="the disk is full"):
        save_array(path, np.arange(4))
    assert np.load(path).tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_a_cell_may_go_over_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('Name, Text\r\na,"one\ntwo"\r\n\r\nb,p\u2028q\r\n'.encode())
    columns, rows = read_rows(path)
    assert columns == ["name", "text"]
    assert [cells for _, cells in rows] == [
        {"name": "a", "text": "one\ntwo"},
        {"name": "b", "text": "p\u2028q"},
    ]
    assert [line for line, _ in rows] == [3, 5]


def test_a_table_is_read_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\nName; Text;;\n#a;"b;c"\n;;;\nd;e;;f;\n')
    assert read_rows(path) == (
        ["name", "text"],
        [
            (3, {"name": "#a", "text": "b;c", "": ""}),
            (5, {"name": "d", "text": "e", "": "f"}),
        ],
    )
    columns, rows = read_rows(path, name_of=str.upper, comments=True)
    assert columns == ["NAME", "TEXT"]
    assert [line for line, _ in rows] == [5]
    path.write_text("a\tb\tA\n1\t2\t3\n")
    with pytest.raises(KeyFaceError, match=r"a\.csv: duplicate column: a"):
        read_rows(path)
    path.write_text("")
    assert read_rows(path) == ([], [])
