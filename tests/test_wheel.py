"""What a wheel holds, as hatchling, which builds it, lists it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def packed() -> dict[str, Path]:
    """The files of a wheel, and where they come from."""
    builder = WheelBuilder(str(ROOT))
    return {file.distribution_path: Path(file.path) for file in builder.recurse_included_files()}


def test_all_of_the_pages_is_packed(packed: dict[str, Path]) -> None:
    pages = [p for p in (ROOT / "keyface_cli").rglob("*") if p.suffix in (".html", ".css", ".js")]
    assert pages
    for path in pages:
        assert packed[path.relative_to(ROOT).as_posix()] == path
    html = (ROOT / "keyface_cli" / "editor" / "page.html").read_text("utf-8")
    named = re.findall(r'(?:src|href)="([\w.]+\.(?:js|css))"', html)
    assert len(named) == 4
    assert all(f"keyface_cli/editor/{name}" in packed for name in named)


def test_the_model_the_examples_and_the_types_are_packed(packed: dict[str, Path]) -> None:
    for name in (
        "keyface_cli/py.typed",
        "keyface_cli/app.py",
        "keyface_cli/_weights/mini/keyface.json",
        "keyface_cli/_examples/speech.wav",
    ):
        assert packed[name].is_file()
    assert not [name for name in packed if name.startswith(("tests/", "runs/", "weights/"))]
