"""Which speech synthesisers this machine lacks, for the tests that need one."""

from __future__ import annotations

import os
import shutil

from keyface_cli.avatars import synthesis
from keyface_cli.errors import KeyFaceError


def missing_engines() -> set[str]:
    missing = {engine for engine in ("flite", "festival") if shutil.which(engine) is None}
    try:
        synthesis._speaker(os.getpid())
    except KeyFaceError:
        missing.add("espeak")
    return missing
