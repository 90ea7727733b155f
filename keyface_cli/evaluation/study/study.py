"""A user study: pairs of clips with the same sound and portrait, and each rater's way through them.

The folder holds study.json (the pairs, in one order), clips/ and votes.csv. Raters see clips by
number only, so that no name tells which method made one.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

from keyface_cli.config import from_dict
from keyface_cli.errors import ConfigError, KeyFaceError
from keyface_cli.files import append, csv_text, making_folder, unwritable, write_text
from keyface_cli.media.frames import list_videos, probe

FORMAT_VERSION = 1
MANIFEST, VOTES, CLIPS = "study.json", "votes.csv", "clips"
HEADER = ("time", "rater", "pair", "winner", "loser", "side", "seconds", "check")
DEGRADED = "degraded"  # the worse clip of an attention check
_LENGTH_TOLERANCE = 2  # frames


@dataclass(frozen=True)
class Trial:
    """One pair as it is shown.

    Args:
        pair: its name: the clip and both methods, in alphabetical order.
        left: method on the left.
        right: method on the right.
        left_clip: number of the left clip in clips/.
        right_clip: number of the right one.
        check: the method that has to win where this is an attention check, else "".
    """

    pair: str
    left: str
    right: str
    left_clip: str
    right_clip: str
    check: str = ""


@dataclass(frozen=True)
class Study:
    """A study's folder, read."""

    folder: Path
    methods: list[str]
    trials: list[Trial]
    seed: int

    @property
    def votes(self) -> Path:
        """The file of answers."""
        return self.folder / VOTES


def new_study(
    folders: Sequence[Path],
    folder: Path,
    *,
    names: Sequence[str] = (),
    pairs: int | None = None,
    checks: int = 2,
    seed: int = 0,
) -> Study:
    """Build a study of the clips that all methods have.

    Each clip is shown for each pair of methods; sides are drawn so that every method is on
    either side equally often, up to one. An attention check shows a clip beside itself in 12
    pixels across.

    Args:
        folders: of the methods' videos, at least two, paired by name.
        folder: of the study, made here.
        names: of the methods; the folders' own where empty.
        pairs: to draw, the same number of each pair of methods up to one; None is all.
        checks: attention checks, spread over the study.
        seed: of sides, order and numbers.

    Raises:
        KeyFaceError: fewer than two methods, no common clips, clips of other lengths, or the
            folder exists.
    """
    methods = list(names) or [path.resolve().name for path in folders]
    if len(methods) < 2 or len(set(methods)) != len(methods) or len(methods) != len(folders):
        raise KeyFaceError("a study needs two or more methods, each with a name of its own")
    if folder.exists():
        raise KeyFaceError(f"{folder}: exists already", "choose another folder")
    videos = {m: list_videos(path) for m, path in zip(methods, folders, strict=True)}
    common = sorted(set.intersection(*(set(found) for found in videos.values())))
    if not common:
        raise KeyFaceError("no name is in all folders", "clips are paired by name")
    for name in common:
        _check_lengths([videos[m][name] for m in methods])
    chance = random.Random(seed)
    chosen = _choose(methods, common, pairs, chance)
    with making_folder(folder) as part:
        (part / CLIPS).mkdir()
        copies = _copy_clips(part / CLIPS, videos, chosen, chance)
        trials = _balance(chosen, copies, chance)
        trials = _insert_checks(part / CLIPS, trials, checks, chance)
        study = {
            "format": FORMAT_VERSION,
            "methods": methods,
            "seed": seed,
            "trials": [asdict(trial) for trial in trials],
        }
        write_text(part / MANIFEST, json.dumps(study, indent=1) + "\n")
    return open_study(folder)


def open_study(folder: Path) -> Study:
    """Read a study's folder.

    Raises:
        KeyFaceError: it is none, or a clip is missing.
    """
    path = folder / MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = facts["format"]
        if version != FORMAT_VERSION:
            raise KeyFaceError(
                f"{path}: unknown format: {version}, not {FORMAT_VERSION}",
                "make the study again, or use the keyface that made it",
            )
        trials = [from_dict(Trial, trial, "trials") for trial in facts["trials"]]
        study = Study(folder, list(facts["methods"]), trials, int(facts["seed"]))
    except FileNotFoundError:
        raise KeyFaceError(f"{folder}: is no study", "make one: keyface study new") from None
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise KeyFaceError(f"{path}: is damaged: {error}") from error
    for trial in study.trials:
        for clip in (trial.left_clip, trial.right_clip):
            if Path(clip).name != clip:  # anyone who is asked could see whatever it names
                raise KeyFaceError(f"{path}: is damaged: no clip's name: {clip}")
            if not (folder / CLIPS / clip).is_file():
                raise KeyFaceError(f"{folder / CLIPS / clip}: is missing", "make the study again")
    return study


def next_trial(study: Study, rater: str) -> tuple[int, Trial | None]:
    """Return how many answers a rater has given, and what is shown next; None: all are given."""
    answered = {row["pair"] for row in _rows(study) if row["rater"] == rater}
    left = [trial for trial in _order(study, rater) if trial.pair not in answered]
    return len(study.trials) - len(left), left[0] if left else None


def record(study: Study, rater: str, pair: str, side: str, seconds: float) -> None:
    """Append a vote: on the disk before it is acknowledged; a repeated one is not counted twice.

    Raises:
        KeyFaceError: the rater, the pair or the side is none, or the file cannot be written.
    """
    trial = next((t for t in _order(study, rater) if t.pair == pair), None)
    if not rater or trial is None or side not in ("left", "right"):
        raise KeyFaceError("not a vote on a pair of this study")
    if any(row["rater"] == rater and row["pair"] == pair for row in _rows(study)):
        return
    winner, loser = trial.left, trial.right
    if side == "right":
        winner, loser = loser, winner
    now = datetime.now(UTC).isoformat(timespec="seconds")
    row = (now, rater, pair, winner, loser, side, f"{seconds:.2f}", trial.check)
    try:
        before = study.votes.read_bytes() if study.votes.exists() else b""
        text = csv_text(row, ()) if before else csv_text(HEADER, [row])
        if before and not before.endswith(b"\n"):
            text = f"\n{text}"  # the end of a row that a crash cut off
        append(study.votes, text.encode())
    except OSError as error:
        raise unwritable(study.votes, error) from error


def _rows(study: Study) -> list[dict[str, str]]:
    """Return the whole rows of the votes; one that a crash cut off is no vote."""
    if not study.votes.exists():
        return []
    text = study.votes.read_text(encoding="utf-8", errors="replace")
    rows = csv.DictReader(text.splitlines())
    return [row for row in rows if row.get("check") is not None and row.get("winner")]


def _order(study: Study, rater: str) -> list[Trial]:
    """Return the trials in this rater's order and sides, the same on every visit."""
    chance = random.Random(f"{study.seed} {rater}")
    trials = list(study.trials)
    chance.shuffle(trials)
    return [_turned(trial) if chance.random() < 0.5 else trial for trial in trials]


def _turned(trial: Trial) -> Trial:
    return Trial(
        trial.pair, trial.right, trial.left, trial.right_clip, trial.left_clip, trial.check
    )


def _check_lengths(paths: Sequence[Path]) -> None:
    found = [probe(path) for path in paths]
    for info in found[1:]:
        if abs(info.frames / info.fps - found[0].frames / found[0].fps) > _LENGTH_TOLERANCE / 25:
            raise KeyFaceError(
                f"{info.path}: {info.frames / info.fps:.2f} s, but {found[0].path}: "
                f"{found[0].frames / found[0].fps:.2f} s",
                "clips of a pair need the same sound",
            )


def _choose(
    methods: Sequence[str], clips: Sequence[str], wanted: int | None, chance: random.Random
) -> list[tuple[str, str, str]]:
    """Draw (clip, method, method): clips in turn, so that each pair of methods gets its share."""
    kinds = list(combinations(methods, 2))
    columns = []
    for kind in kinds:
        shuffled = list(clips)
        chance.shuffle(shuffled)
        columns.append([(clip, *kind) for clip in shuffled])
    rows = [pair for row in zip(*columns, strict=True) for pair in row]
    return rows if wanted is None else rows[:wanted]


def _copy_clips(
    folder: Path,
    videos: dict[str, dict[str, Path]],
    chosen: Sequence[tuple[str, str, str]],
    chance: random.Random,
) -> dict[tuple[str, str], str]:
    """Copy each clip that is shown under a number that says nothing of its method."""
    needed = sorted({(m, clip) for clip, *both in chosen for m in both})
    numbers = list(range(len(needed)))
    chance.shuffle(numbers)
    copies = {}
    for number, (method, clip) in zip(numbers, needed, strict=True):
        source = videos[method][clip]
        copies[method, clip] = f"{number:04d}{source.suffix.lower()}"
        shutil.copyfile(source, folder / copies[method, clip])
    return copies


def _balance(
    chosen: Sequence[tuple[str, str, str]],
    copies: dict[tuple[str, str], str],
    chance: random.Random,
) -> list[Trial]:
    """Give sides: of the trials of two methods each is on the left in every other one."""
    flips: dict[tuple[str, str], bool] = {}
    trials = []
    for clip, a, b in chosen:
        flip = flips.get((a, b), chance.random() < 0.5)
        flips[a, b] = not flip
        left, right = (b, a) if flip else (a, b)
        name = f"{clip}/{'/'.join(sorted((a, b)))}"
        trials.append(Trial(name, left, right, copies[left, clip], copies[right, clip]))
    chance.shuffle(trials)
    return trials


def _insert_checks(
    folder: Path, trials: list[Trial], count: int, chance: random.Random
) -> list[Trial]:
    """Add trials whose answer is plain: a clip beside itself, coarsely mosaicked."""
    from keyface_cli.evaluation.study.sidebyside import degrade

    result = list(trials)
    for i, trial in enumerate(chance.sample(trials, min(count, len(trials)))):
        worse = f"check{i}.mp4"
        degrade(folder / trial.left_clip, folder / worse)
        check = Trial(f"check/{i}", trial.left, DEGRADED, trial.left_clip, worse, trial.left)
        check = _turned(check) if chance.random() < 0.5 else check
        result.insert(chance.randint(0, len(result)), check)
    return result
