"""A classifier of non-speech vocalisations from video, trained on a folder of labelled clips.

It is what NSV accuracy needs: FOLDER/LABEL/*.mp4 becomes a folder that transformers reads as a
video classifier, with its accuracy on clips that were held out.
"""

from __future__ import annotations

import json
import logging
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from keyface_cli.errors import KeyFaceError, VideoError, WeightsError
from keyface_cli.files import take_name, write_text
from keyface_cli.media.frames import list_videos, probe, read_frames
from keyface_cli.models.classifier_input import (
    IMAGENET,
    SETTINGS,
    pick_frames,
    prepare,
    read_normalisation,
)

logger = logging.getLogger(__name__)

RESULT = "nsv.json"  # how it was trained, and what it reaches
_WARMUP = 0.1  # of the updates


@dataclass(frozen=True)
class NsvOptions:
    """How a classifier is trained.

    Args:
        updates: of the weights.
        batch_size: clips in each.
        learning_rate: at its peak; it falls to 0 on half a cosine.
        held_out: share of each class's clips that are only measured.
        seed: of weights, order, flips and which clips are held out.
        sizes: of the network that starts from nothing, as transformers' VideoMAEConfig names them.
    """

    updates: int = 600
    batch_size: int = 8
    learning_rate: float = 5e-4
    held_out: float = 0.2
    seed: int = 0
    sizes: tuple[tuple[str, int], ...] = (
        ("image_size", 112),
        ("num_frames", 16),
        ("hidden_size", 192),
        ("num_hidden_layers", 6),
        ("num_attention_heads", 3),
        ("intermediate_size", 768),
    )


def train_nsv(
    data: Path,
    output: Path,
    options: NsvOptions,
    start: Path | None = None,
    device: str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a classifier.

    Args:
        data: folder with a folder of videos for each label.
        output: the classifier's folder, which must not exist; it appears when it is whole.
        options: see there.
        start: a folder of a video classifier to fine-tune; None starts from nothing.
        device: where to compute.
        report: told in a line how it goes.

    Returns:
        Labels, accuracy and confusion matrix on held-out clips, and the options; also in nsv.json.

    Raises:
        KeyFaceError: fewer than two labels or two clips of one, a clip that cannot be read, a
            `start` that is no classifier, or `output` exists.
    """
    if output.exists():
        raise KeyFaceError(f"{output}: exists already", "choose another folder")
    labels, clips = find_clips(data)
    torch.manual_seed(options.seed)
    network = _make_network(start, labels, options).to(device)
    count, side = int(network.config.num_frames), int(network.config.image_size)
    normal = read_normalisation(start) if start else IMAGENET
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".nsv-") as folder:
        frames = _decode(Path(folder) / "frames.npy", [path for path, _ in clips], count, side)
        targets = torch.tensor([label for _, label in clips])
        train, held = split(targets.tolist(), options.held_out, options.seed)
        report(f"{len(train)} clips to train on, {len(held)} held out, {len(labels)} labels")
        _fit(network, frames, targets, train, options, normal, device, report)
        confusion = np.zeros((len(labels), len(labels)), int)
        for i in held:
            pixels = prepare(_tensor(frames[i], device), side, *normal)
            confusion[int(targets[i]), _recognised(network, pixels)] += 1
        facts = {
            "labels": labels,
            "accuracy": float(np.trace(confusion) / len(held)),
            "confusion": confusion.tolist(),
            "clips": len(train),
            "held_out": len(held),
            "updates": options.updates,
            "seed": options.seed,
            "started_from": start.name if start else None,
        }
        part = Path(folder) / "classifier"
        network.save_pretrained(part)
        settings = {"image_mean": normal[0], "image_std": normal[1]}
        write_text(part / SETTINGS, json.dumps(settings) + "\n")
        write_text(part / RESULT, json.dumps(facts, indent=2) + "\n")
        take_name(part, output)
    return facts


@torch.inference_mode()
def _recognised(network: Any, pixels: torch.Tensor) -> int:
    """The index of the label that a network gives a clip."""
    return int(network(pixels).logits.argmax())


def find_clips(data: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """Return the labels, and each clip with the index of its label.

    Raises:
        KeyFaceError: see `train_nsv`.
    """
    if not data.is_dir():
        raise KeyFaceError(f"{data}: no such folder", "it holds a folder of videos for each label")
    folders = sorted(p for p in data.iterdir() if p.is_dir() and not p.name.startswith("."))
    clips: list[tuple[Path, int]] = []
    for index, folder in enumerate(folders):
        found = list(list_videos(folder).values())
        if len(found) < 2:
            raise KeyFaceError(f"{folder}: holds one clip", "each label needs two or more")
        clips += [(path, index) for path in found]
    if len(folders) < 2:
        raise KeyFaceError(f"{data}: holds {len(folders)} labels", "a classifier needs two or more")
    return [folder.name for folder in folders], clips


def split(targets: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return indices to train on and to hold out: of each class its share, at least one of each."""
    chance = random.Random(seed)
    train, held = [], []
    for label in sorted(set(targets)):
        own = [i for i, target in enumerate(targets) if target == label]
        chance.shuffle(own)
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        held += own[:count]
        train += own[count:]
    return train, held


def _make_network(start: Path | None, labels: Sequence[str], options: NsvOptions) -> Any:
    from transformers import (
        AutoModelForVideoClassification,
        VideoMAEConfig,
        VideoMAEForVideoClassification,
    )

    names = {"id2label": dict(enumerate(labels)), "label2id": {v: i for i, v in enumerate(labels)}}
    if start is None:
        return VideoMAEForVideoClassification(VideoMAEConfig(**dict(options.sizes), **names))
    try:
        return AutoModelForVideoClassification.from_pretrained(
            start,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # the head of other labels is made anew
            **names,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{start}: no video classifier that transformers can read: {str(error).splitlines()[0]}"
        ) from error


def _decode(path: Path, clips: Sequence[Path], count: int, side: int) -> NDArray[np.uint8]:
    """Decode the frames that are seen, once: a file of uint8 (clips, count, side, side, 3)."""
    shape = (len(clips), count, side, side, 3)
    frames = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for i, clip in enumerate(clips):
        wanted = pick_frames(probe(clip).frames, count)
        shown = enumerate(chain.from_iterable(read_frames(clip)))
        taken = {t: frame for t, frame in shown if t in wanted}
        if not taken:
            raise VideoError(f"{clip}: holds no pictures")
        last = max(taken)
        stack = _tensor(np.stack([taken.get(t, taken[last]) for t in wanted]), "cpu")
        pixels = prepare(stack, side, [0.0] * 3, [1.0] * 3)[0] * 255
        frames[i] = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        logger.info("decoded %d of %d clips", i + 1, len(clips))
    return frames


def _fit(
    network: Any,
    frames: NDArray[np.uint8],
    targets: Tensor,
    train: Sequence[int],
    options: NsvOptions,
    normal: tuple[list[float], list[float]],
    device: str,
    report: Callable[[str], None],
) -> None:
    counts = torch.bincount(targets[list(train)]).float()
    weights = (counts.mean() / counts).to(device)  # rare labels count as much as common ones
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.learning_rate)
    warmup = max(int(_WARMUP * options.updates), 1)
    chance = random.Random(options.seed)
    side = frames.shape[2]
    network.train()
    for update in range(options.updates):
        progress = max(update - warmup, 0) / max(options.updates - warmup, 1)
        rate = min((update + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * rate
        picked = [chance.choice(train) for _ in range(options.batch_size)]
        clips = [prepare(_tensor(frames[i], device), side, *normal) for i in picked]
        pixels = torch.cat([x.flip(-1) if chance.random() < 0.5 else x for x in clips])
        logits = network(pixels).logits
        loss = F.cross_entropy(logits, targets[picked].to(device), weights)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if (update + 1) % 50 == 0:
            report(f"update {update + 1} of {options.updates}: loss {float(loss.detach()):.3f}")
    network.eval()


def _tensor(frames: NDArray[np.uint8], device: str) -> Tensor:
    """Return uint8 (T, 3, H, W) of (T, H, W, 3)."""
    return torch.from_numpy(np.array(frames)).to(device).permute(0, 3, 1, 2)
