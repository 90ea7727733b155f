"""Imports point down only, and what is heavy is imported by those who need it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import keyface_cli

PACKAGE = Path(keyface_cli.__file__).parent

# module or sub-package -> what of ours it may import; longest name wins
MAY_IMPORT = {
    "errors": set[str](),
    "config": {"errors"},
    "device": {"errors"},
    "memory": {"device", "errors"},
    "ffmpeg": {"errors"},
    "media": {"errors", "ffmpeg"},
    "page": {"errors"},
    "audio": {"config", "errors", "ffmpeg"},
    "emotion": {"emotion", "page", "stages.timeline", "config", "errors"},
    "emotion.performance": {"emotion", "faces", "ffmpeg", "config", "errors"},
    "portrait": {"errors", "ffmpeg"},
    "faces": set[str](),
    "framing": {"faces", "errors"},
    "formats": {"errors", "ffmpeg"},
    "metadata": {"formats", "ffmpeg", "errors", ""},
    "framerate": {"config"},
    "finish": {"framing", "errors"},
    "ledger": set[str](),
    "output": {"errors", "formats"},
    "video": {
        *("config", "errors", "ffmpeg", "finish", "formats", "framerate", "ledger"),
        *("metadata", "output"),
    },
    "jobfolder": {"errors", "ledger"},
    "job": {
        *("audio", "checkpoint", "emotion", "errors", "features", "ffmpeg", "finish", "formats"),
        *("framing", "ledger", "output", "portrait", ""),
    },
    "batch": {"checkpoint", "errors", "job", "ledger", "metadata"},
    "making": {
        *("config", "emotion", "errors", "finish", "formats", "job", "jobfolder", "ledger"),
        *("pipeline", "stream", "video", ""),
    },
    "features": {"checkpoint", "errors"},
    "diffusion": {"diffusion"},
    "models": {"models", "config"},
    "models.lpips": {"foreign", "errors"},
    "renaming": {"config", "errors", "models"},
    "tensorfiles": {"errors"},
    "foreign": {"errors"},
    "hub": {"conversion", "checkpoint", "errors"},
    "verification": {"checkpoint", "device", "models", "config", "errors"},
    "conversion": {"checkpoint", "foreign", "renaming", "models", "config", "errors"},
    "checkpoint": {"tensorfiles", "models", "config", "errors"},
    "stages": {"stages", "diffusion", "models", "config", "errors"},
    "stages.timeline": {"config"},
    "stream": {"stages", "diffusion", "models", "memory", "device", "config", "errors"},
    "pipeline": {
        "stream",
        "stages",
        "models",
        "checkpoint",
        "memory",
        "device",
        "config",
        "errors",
    },
    "": {"pipeline"},  # the package itself, when it is asked for
}
INFERENCE = set(MAY_IMPORT) - {""}
MAY_IMPORT |= {
    "training": INFERENCE | {"training"},
    "evaluation": INFERENCE | {"evaluation", "training"},  # the avatars are its ground truth
    "commands": INFERENCE | {"commands", "training", "evaluation", ""},
    "app": {"commands", "errors", ""},
    "__main__": {"app"},
}


def modules() -> list[str]:
    """Every module of the package, without `keyface_cli.`; the package itself is ''."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def imports(module: str) -> set[str]:
    """Our own modules that one imports, anywhere in it, those for type checking too."""
    path = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            base = node.module or ""
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    ours = {name for name in found if f"{name}.".startswith("keyface_cli.")}
    return {name.removeprefix("keyface_cli").removeprefix(".") for name in ours}


def layer(module: str) -> str:
    """The entry of the table that a module, or a name in it, belongs to."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in MAY_IMPORT:
            return name
    # a name of the package itself, as `__version__`
    return "" if not (PACKAGE / f"{parts[0]}.py").exists() else parts[0]


def test_the_table_holds_every_module() -> None:
    assert {layer(module).split(".")[0] for module in modules()} == {
        name.split(".")[0] for name in MAY_IMPORT if name != "renaming" or "renaming" in modules()
    }
    assert all(layer(module) in MAY_IMPORT for module in modules())


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    allowed = MAY_IMPORT[layer(module)]
    for name in imports(module):
        target = layer(name)
        assert target in allowed or target.split(".")[0] in allowed, f"{module} imports {name}"


def run(code: str) -> None:
    """Run code in a fresh interpreter; it fails by raising."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=600)


def test_inference_imports_neither_training_nor_what_breaks_an_install() -> None:
    run(
        "import sys, keyface_cli.pipeline\n"
        "from keyface_cli.checkpoint import COMPONENTS, build\n"
        "from keyface_cli.config import PRESETS\n"
        "[build(name, PRESETS['tiny'], empty=True) for name in COMPONENTS]\n"
        "bad = ['keyface_cli.training', 'keyface_cli.evaluation', 'torchvision', 'torchaudio']\n"
        "assert not [name for name in bad if name in sys.modules]\n"
    )


def test_help_and_the_bare_package_import_no_torch() -> None:
    run(
        "import sys, keyface_cli\n"
        "assert 'torch' not in sys.modules\n"
        "from keyface_cli.app import main\n"
        "sys.argv = ['keyface', 'animate', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = ['torch', 'diffusers', 'transformers', 'accelerate', 'scipy']\n"
        "assert not [name for name in heavy if name in sys.modules]\n"
    )


def test_checkpoints_are_found_and_checked_without_torch(tiny_checkpoint: Path) -> None:
    run(
        "import sys\n"
        "from pathlib import Path\n"
        "from keyface_cli.checkpoint import Checkpoint\n"
        f"Checkpoint.open(Path({str(tiny_checkpoint)!r})).verify()\n"
        "assert 'torch' not in sys.modules\n"
    )
