"""What many tests share: a tiny model with random weights, a tone, a portrait, the program."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# before torch is imported: tests run beside other work, and tiny networks gain nothing from threads
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a shell's background jobs ignore Ctrl-C and hand that down to the programs that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--thorough` tries more cases, and others in every run."""
    parser.addoption("--thorough", action="store_true", help="more cases, other ones in every run")


def pytest_configure(config: pytest.Config) -> None:
    """Make hypothesis try the same cases in every run, so that a red test is the change's fault."""
    if not config.getoption("--thorough"):
        settings.register_profile("repeatable", derandomize=True, deadline=None)
        settings.load_profile("repeatable")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out, unless all are wanted or some are chosen by name or marker."""
    chosen = config.option.markexpr or any("::" in argument for argument in config.args)
    if chosen or os.environ.get("KEYFACE_SLOW"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint folder of the preset `tiny`, guide included, in half precision."""
    import torch

    from keyface_cli.checkpoints.checkpoint import build, needed_components
    from keyface_cli.checkpoints.writing import save_component, write_manifest
    from keyface_cli.presets import PRESETS

    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = PRESETS["tiny"]
    torch.manual_seed(0)
    for name in needed_components(config, guide=True):
        save_component(folder, name, build(name, config), dtype=torch.float16)
    write_manifest(folder, config, source="random weights")
    return folder


@pytest.fixture(scope="session")
def lively_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a portrait decoder, which moves head, eyes and lids."""
    import dataclasses
    import shutil

    import torch

    from keyface_cli.checkpoints.checkpoint import build
    from keyface_cli.checkpoints.writing import save_component, write_manifest
    from keyface_cli.config import MOTION
    from keyface_cli.presets import PRESETS

    config = dataclasses.replace(
        PRESETS["tiny"],
        portrait_decoder={"widths": [16, 16, 16]},
        motion=MOTION,
        sampling=dataclasses.replace(PRESETS["tiny"].sampling, liveliness=1.0),
    )
    folder = tmp_path_factory.mktemp("models") / "lively"
    shutil.copytree(tiny_checkpoint, folder)
    torch.manual_seed(1)
    decoder = build("portrait_decoder", config)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_component(folder, "portrait_decoder", decoder, dtype=torch.float16)
    write_manifest(folder, config, source="random weights")
    return folder


@pytest.fixture(scope="session")
def tone_wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of 440 Hz at 16 kHz, mono: 25 video frames."""
    import soundfile

    path = tmp_path_factory.mktemp("sounds") / "tone.wav"
    seconds = np.arange(16_000) / 16_000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * seconds), 16_000)
    return path


@pytest.fixture(scope="session")
def portrait_png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round face of flat colours, 64 x 64 pixels."""
    from PIL import Image, ImageDraw

    path = tmp_path_factory.mktemp("portraits") / "portrait.png"
    picture = Image.new("RGB", (64, 64), (90, 130, 170))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((12, 8, 52, 60), fill=(230, 190, 160))
    for x in (24, 40):
        draw.ellipse((x - 3, 26, x + 3, 32), fill=(40, 40, 60))
    draw.rectangle((25, 45, 39, 48), fill=(150, 60, 60))
    picture.save(path)
    return path


@pytest.fixture
def main(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """A function that runs the program in this process: exit code, stdout and stderr."""
    from keyface_cli import app

    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["keyface", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        assert isinstance(stop.value.code, int)
        return stop.value.code, *capfd.readouterr()

    yield run
    for name, handler in handlers.items():
        signal.signal(name, handler)
