"""The page of a user study: both clips of a pair, two buttons, the keyboard, and a bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keyface_cli.errors import KeyFaceError
from keyface_cli.evaluation.study.study import CLIPS, Study, next_trial, record
from keyface_cli.web.page import LOCAL, Page

LONGEST_NAME = 40  # characters


def make_page(study: Study, host: str = LOCAL, port: int = 0) -> Page:
    """Return the page of a study, ready to serve; `?rater=NAME` begins under a name at once.

    Args:
        study: votes go to its file.
        host: address to listen on.
        port: or 0 for a free one.

    Raises:
        PageError: the address cannot be listened on.
    """

    def trial(fields: dict[str, str]) -> dict[str, Any]:
        return _state(study, _rater(fields.get("rater")))

    def vote(body: Any) -> dict[str, Any]:
        fields = body if isinstance(body, dict) else {}
        rater = _rater(fields.get("rater"))
        seconds = fields.get("seconds")
        taken = float(seconds) if isinstance(seconds, (int, float)) else 0.0
        record(study, rater, str(fields.get("pair")), str(fields.get("side")), taken)
        return _state(study, rater)

    clips = {clip for t in study.trials for clip in (t.left_clip, t.right_clip)}
    files = {f"clips/{clip}": study.folder / CLIPS / clip for clip in clips}
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return Page(html, get={"trial": trial}, post={"vote": vote}, files=files, host=host, port=port)


def _rater(name: Any) -> str:
    """Return a rater's name.

    Raises:
        KeyFaceError: it is empty, too long or holds what a spreadsheet would run.
    """
    text = " ".join(name.split()) if isinstance(name, str) else ""
    if not text or len(text) > LONGEST_NAME or text[0] in "=+-@" or not text.isprintable():
        raise KeyFaceError("a name has 1 to 40 characters and begins with a letter or a number")
    return text


def _state(study: Study, rater: str) -> dict[str, Any]:
    done, trial = next_trial(study, rater)
    facts: dict[str, Any] = {"done": done, "total": len(study.trials), "pair": None}
    if trial is not None:
        facts |= {"pair": trial.pair}
        facts |= {"left": f"clips/{trial.left_clip}", "right": f"clips/{trial.right_clip}"}
    return facts
