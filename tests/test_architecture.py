"""Imports point down only, and what is heavy is imported by those who need it."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import keyface_cli

PACKAGE = Path(keyface_cli.__file__).parent

# room (a folder) or module -> the rooms that it may import beside itself, from the bottom up
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "diffusion": set(),
    "files": {"errors"},
    "config": {"errors"},
    "presets": {"config"},
    "device": {"errors"},
    "plotting": {"errors"},
    "web": {"errors"},
    "avatars": {"files", "config", "errors"},
    "models": {"files", "config", "errors"},
    "checkpoints": {"files", "models", "device", "presets", "config", "errors"},
    "media": {"files", "checkpoints", "config", "errors"},
    "credentials": {"media", "version", "files", "errors"},
    "output": {"credentials", "media", "files", "config", "errors"},
    "stages.timeline": {"config"},
    "stages.motion": {"config"},
    "stages": {"diffusion", "models"},
    "emotion": {"media", "stages.timeline", "plotting", "files", "config", "errors"},
    "keywords": {"emotion"},
    "memory": {"device", "config"},
    "options": {"config", "errors"},
    "engine": {
        *("options", "memory", "stages", "stages.motion", "stages.timeline", "diffusion"),
        *("models", "device"),
        "config",
    },
    "stream": {"engine", "options", "stages", "stages.timeline", "config"},
    "pipeline": {
        *("stream", "engine", "options", "keywords", "memory", "stages.timeline", "emotion"),
        *("media", "checkpoints", "models", "device", "files", "config", "errors"),
    },
    "embedding": {"pipeline", "checkpoints", "models", "device", "config"},
    "jobs": {
        *("pipeline", "options", "output", "credentials", "emotion", "media", "checkpoints"),
        *("stages.timeline", "version", "device", "files", "config", "errors"),
    },
    "editor": {
        *("jobs", "pipeline", "stream", "options", "output", "credentials", "emotion"),
        *("checkpoints", "web", "stages.timeline", "files", "config", "errors"),
    },
    "api": {"jobs", "options", "keywords", "checkpoints"},
    "benchmark": {
        *("jobs", "options", "stages.timeline", "diffusion", "checkpoints", "models", "config"),
    },
    "": {"api", "pipeline", "options", "version"},  # what is public, when it is asked for
    "training": {
        *("avatars", "emotion", "media", "checkpoints", "stages", "diffusion", "models"),
        *("options", "device", "files", "config", "errors"),
    },
    "evaluation.networks": {"files", "media", "checkpoints", "errors"},
    "evaluation.measures": {"evaluation.networks", "media"},
    "evaluation.metrics": {
        *("evaluation.measures", "evaluation.networks", "emotion", "media", "checkpoints"),
        *("models", "config", "errors"),
    },
    "evaluation.avatars": {
        *("pipeline", "options", "checkpoints", "output", "credentials", "emotion", "avatars"),
        *("evaluation.metrics", "models", "plotting", "files", "config", "errors"),
    },
    "evaluation.study": {"files", "credentials", "media", "web", "plotting", "config", "errors"},
    "evaluation": {
        *("evaluation.metrics", "evaluation.measures", "evaluation.networks", "emotion", "media"),
        *("plotting", "files", "config", "errors"),
    },
    "commands": {
        *("evaluation", "evaluation.avatars", "evaluation.study", "evaluation.networks"),
        *("editor", "training", "avatars", "jobs", "benchmark", "pipeline", "options", "output"),
        *("embedding", "credentials"),
        *("emotion", "media", "checkpoints", "models", "plotting", "device", "files", "config"),
        *("presets", "version", "errors"),
    },
    "app": {"commands", "version", "errors"},
    "__main__": {"app"},
}


def module_of(path: Path) -> str:
    """The dotted name of a file, without `keyface_cli.`; the package itself is ''."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> str | None:
    """The row of a module: the longest name in the table that it is or lies in."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in MAY_IMPORT), None)


def imports(module: str, *, at_run_time: bool = False) -> set[str]:
    """Our own modules that one imports: anywhere in it, or only those that its import needs."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if at_run_time else ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    ours = {name for name in found if f"{name}.".startswith("keyface_cli.")}
    return {_module(name.removeprefix("keyface_cli").removeprefix(".")) for name in ours}


def _module(name: str) -> str:
    """The module that a dotted name is or lies in."""
    while name not in FILES:
        name = name.rpartition(".")[0]
    return name


def test_every_module_has_a_row_and_every_row_a_module() -> None:
    assert {module: layer(module) for module in FILES if layer(module) is None} == {}
    assert {layer(module) for module in FILES} == MAY_IMPORT.keys()


def test_a_new_folder_or_file_at_the_top_has_no_row() -> None:
    assert layer("rooms.new") is None
    assert layer("stages_new") is None


def test_the_table_runs_down_only() -> None:
    tuple(TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    row = layer(module)
    assert row is not None
    for name in imports(module):
        target = layer(name)
        assert target == row or target in MAY_IMPORT[row], f"{module} imports {name}"


def test_the_table_allows_nothing_that_is_not_used() -> None:
    used: dict[str | None, set[str | None]] = {row: set() for row in MAY_IMPORT}
    for module in FILES:
        used[layer(module)] |= {layer(name) for name in imports(module)}
    unused = {row: allowed - used[row] for row, allowed in MAY_IMPORT.items()}
    assert {row: names for row, names in unused.items() if names} == {}


def test_no_module_needs_itself_to_be_imported() -> None:
    graph = {module: imports(module, at_run_time=True) - {module} for module in FILES}
    graph[""] = set()  # imports the pipeline only when it is asked for
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How long a function is; without its signature where that declares a command's options."""
    arguments = function.args
    kinds = [a.annotation for a in (*arguments.args, *arguments.kwonlyargs)]
    names = [ast.unparse(kind) for kind in kinds if kind is not None]
    is_command = any(name.startswith("Annotated[") or name.endswith("Option") for name in names)
    first = function.body[0].lineno if is_command else function.lineno
    return (function.end_lineno or first) - first + 1


@pytest.mark.parametrize("module", FILES)
def test_no_function_is_longer_than_sixty_lines(module: str) -> None:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    assert {f.name: _lines(f) for f in functions if _lines(f) > 60} == {}


def _writes_its_own_way(call: ast.Call) -> bool:
    """Whether a call moves a file to its name or waits for the disk, as `files` does."""
    name = ast.unparse(call.func)
    if name in ("os.replace", "os.rename", "os.fsync", "os.sync", "os.umask"):
        return True
    if name in ("shutil.move", "np.save"):
        return True
    # of a path: a text's `replace` takes two arguments, that of a dataclass or a date keywords
    return isinstance(call.func, ast.Attribute) and (
        call.func.attr == "rename"
        or (call.func.attr == "replace" and len(call.args) == 1 and not call.keywords)
    )


@pytest.mark.parametrize("module", FILES)
def test_files_take_their_names_in_one_place(module: str) -> None:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [ast.unparse(call) for call in calls if _writes_its_own_way(call)]
    assert bool(found) == (module == "files"), found


def run(code: str) -> None:
    """Run code in a fresh interpreter; it fails by raising."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=600)


def test_inference_imports_neither_training_nor_what_breaks_an_install() -> None:
    run(
        "import sys, keyface_cli.pipeline\n"
        "from keyface_cli.checkpoints.checkpoint import COMPONENTS, build\n"
        "from keyface_cli.presets import PRESETS\n"
        "[build(name, PRESETS['mini'], empty=True) for name in COMPONENTS if name != 'wav2vec2']\n"
        "bad = ['keyface_cli.training', 'keyface_cli.evaluation', 'torchvision', 'torchaudio']\n"
        "bad += ['werkzeug']\n"
        # seconds each; the last is torch's compiler, which drawing on the meta device would import
        "bad += ['diffusers', 'transformers', 'accelerate', 'scipy', 'sympy', 'torch._dynamo']\n"
        "assert not [name for name in bad if name in sys.modules]\n"
    )


def test_the_method_is_read_in_one_sitting() -> None:
    # the networks come with the model that has them (`checkpoints.checkpoint.build`)
    run(
        "import sys, keyface_cli.pipeline\n"
        "ours = [m.__file__ for n, m in sys.modules.items() if n.startswith('keyface_cli')]\n"
        "assert sum(len(open(f, encoding='utf-8').readlines()) for f in ours) <= 3600\n"
    )


def test_help_and_the_bare_package_import_no_torch() -> None:
    run(
        "import sys, keyface_cli\n"
        "assert 'torch' not in sys.modules\n"
        "from keyface_cli.app import main\n"
        "sys.argv = ['keyface', 'animate', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = ['torch', 'diffusers', 'transformers', 'accelerate', 'scipy', 'werkzeug']\n"
        "assert not [name for name in heavy if name in sys.modules]\n"
    )


def test_checkpoints_are_found_and_checked_without_torch(tiny_checkpoint: Path) -> None:
    run(
        "import sys\n"
        "from pathlib import Path\n"
        "from keyface_cli.checkpoints.checkpoint import Checkpoint\n"
        f"Checkpoint.open(Path({str(tiny_checkpoint)!r})).verify()\n"
        "assert 'torch' not in sys.modules\n"
    )
