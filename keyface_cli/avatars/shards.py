"""Training scenes on disk: what is said, how the avatar moves, and the frames that networks see.

A folder of shards; each shard holds the arrays of `SHARD_ARRAYS` for a few hundred scenes. Frames
are rendered where training samples them: fourteen keyframes at the published stride of 13, and one
run of consecutive frames from which interpolated segments are cut.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from keyface_cli.avatars import rig
from keyface_cli.avatars.heads import draw_head, still
from keyface_cli.avatars.performance import phone_labels
from keyface_cli.avatars.photographs.casting import Cast
from keyface_cli.avatars.recordings import Recording
from keyface_cli.avatars.scene import random_scene
from keyface_cli.config import FPS, KEYFRAME_STEP, NUM_FRAMES, SAMPLE_RATE
from keyface_cli.errors import ConfigError
from keyface_cli.files import replacing, save_array, write_text

logger = logging.getLogger(__name__)

FACTS = "avatars.json"  # of a folder of shards
SCENE_FRAMES = 7 * FPS  # just above the 170 frames that a clip of keyframes spans
RUN_FRAMES = 2 * KEYFRAME_STEP + 1  # consecutive frames: every start of a segment within one step
VOCAL = 0.4  # how likely a vocalisation comes before a sentence
VOICELESS = 0.14  # how likely a stretch, or all of a scene, is a sound that is no voice
BENEATH = 0.25  # how likely such a sound lies beneath a scene
NATURAL = 0.4  # how likely a natural voice speaks where these are wanted
TRANSMITTED = 0.2  # how likely a telephone, a codec or a hard room comes between


def keep_facts(folder: Path, settings: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Keep what the shards of a folder are drawn of, and refuse to mix them with others.

    Args:
        folder: of the shards; made where it is missing.
        settings: what all of them share, plain data.
        sizes: name of a shard, or of the file of single pictures -> how many it is to hold.

    Raises:
        ConfigError: a shard that is there was drawn with other settings or in another size; or
            what is kept is damaged.
    """
    path = folder / FACTS
    known: dict[str, Any] = {"settings": None, "sizes": {}}
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            known = {"settings": dict(found["settings"]), "sizes": dict(found["sizes"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: is damaged", "name another folder") from error
    there = [name for name in {**known["sizes"], **sizes} if (folder / name).exists()]
    if there and known["settings"] is None:
        raise ConfigError(
            f"{folder} does not say what its shards were drawn of", "name another folder"
        )
    for key, value in settings.items():
        if there and known["settings"].get(key) != value:
            raise ConfigError(
                f"{folder} was drawn with {key} {known['settings'].get(key)}, not {value}",
                "name another folder",
            )
    for name in there:
        if name in sizes and known["sizes"].get(name) != sizes[name]:
            raise ConfigError(
                f"{folder / name} was to hold {known['sizes'].get(name)}, not {sizes[name]}",
                "remove it to have it drawn again, or name another folder",
            )
    kept = {name: known["sizes"][name] for name in there if name in known["sizes"]}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"settings": dict(settings), "sizes": {**kept, **sizes}}, indent=2)
    write_text(path, text + "\n")


def write_scenes(
    folder: Path,
    count: int,
    seed: int,
    *,
    natural: bool = False,
    recordings: Sequence[Recording] = (),
) -> None:
    """Synthesise the sound and the motion of a shard; no picture yet.

    Writes `waveforms.npy` int16 (n, S), `rigs.npy` float16 (n, N, R), `emotions.npy` float16
    (n, N, 2) and `labels.npy` uint8 (n, 2 N), the phone of each half frame. Each is whole or not
    there, and the waveforms come last.

    Args:
        folder: of the shard; made where it is missing.
        count: scenes, n.
        seed: scene i is drawn from `seed + i`, whatever the size of the shard.
        natural: let natural voices speak in some scenes, which need packages of their own.
        recordings: of a real voice, for some scenes.

    Raises:
        KeyFaceError: a synthesiser is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waveforms, rigs, emotions, labels = [], [], [], []
    for i in range(count):
        scene = random_scene(
            seed + i,
            duration_s=SCENE_FRAMES / FPS,
            vocal=VOCAL,
            voiceless=VOICELESS,
            beneath=BENEATH,
            natural=NATURAL if natural else 0.0,
            recordings=recordings,
            transmitted=TRANSMITTED,
        )
        assert len(scene.waveform) == SCENE_FRAMES * SAMPLE_RATE // FPS
        waveforms.append((scene.waveform.clamp(-1, 1) * 32767).to(torch.int16).numpy())
        rigs.append(scene.rig.to(torch.float16).numpy())
        emotions.append(scene.emotion.to(torch.float16).numpy())
        labels.append(phone_labels(scene.phones, SCENE_FRAMES).to(torch.uint8).numpy())
    for name, arrays in (
        ("rigs", rigs),
        ("emotions", emotions),
        ("labels", labels),
        ("waveforms", waveforms),
    ):
        save_array(folder / f"{name}.npy", np.stack(arrays))


def render_frames(folder: Path, seed: int, size: int, cast: Cast | None = None) -> None:
    """Render the frames of a shard that training uses, one new head a scene.

    Heads, eyes and lids stay where they are at rest: a portrait decoder moves them (see
    `heads.still`). Writes `keyframe_starts.npy` and `run_starts.npy` int64 (n,), and the pictures
    `portraits.npy` uint8 (n, 1, size, size, 3), each head at rest,
    `keyframes.npy` uint8 (n, 14, size, size, 3) and `runs.npy` uint8 (n, 27, size, size, 3).

    Args:
        folder: a shard that `write_scenes` has made.
        seed: of heads and of where clips begin.
        size: of a picture in pixels.
        cast: whose photographs move; None draws heads instead.
    """
    rigs = still(torch.from_numpy(np.load(folder / "rigs.npy")).float())
    count = len(rigs)
    generator = torch.Generator().manual_seed(seed)
    span = NUM_FRAMES * KEYFRAME_STEP - KEYFRAME_STEP
    starts = torch.randint(SCENE_FRAMES - span, (count,), generator=generator)
    runs = torch.randint(SCENE_FRAMES - RUN_FRAMES + 1, (count,), generator=generator)
    save_array(folder / "keyframe_starts.npy", starts.numpy())
    save_array(folder / "run_starts.npy", runs.numpy())
    scenes = torch.arange(count)[:, None]
    poses = {
        "portraits": torch.tensor(rig.REST).expand(count, 1, -1),
        "keyframes": rigs[scenes, starts[:, None] + KEYFRAME_STEP * torch.arange(NUM_FRAMES)],
        "runs": rigs[scenes, runs[:, None] + torch.arange(RUN_FRAMES)],
    }
    with ExitStack() as stack:  # which is left from its last file to its first
        frames = {}
        for name, each in reversed(poses.items()):
            part = stack.enter_context(replacing(folder / f"{name}.npy"))
            shape = (count, each.shape[1], size, size, 3)
            frames[name] = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        for i in range(count):
            draw = draw_head(generator, size, cast)
            for name, each in poses.items():
                frames[name][i] = draw(each[i])
            logger.info("%s: drew %d of %d scenes", folder, i + 1, count)
        for each_frames in frames.values():
            each_frames.flush()
