"""Which vocalisation does a face make? A classifier of what the reader sees, nine classes.

It is trained on the rig's own tracks, with errors like the reader's added, and judged first on
rendered truth, read from the frames like a model's: that accuracy is the ceiling for any model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.avatars import rig
from keyface_cli.avatars.photographs.casting import Cast
from keyface_cli.avatars.scene import Scene, random_scene
from keyface_cli.avatars.voices import VOCALISATIONS
from keyface_cli.checkpoints.installed import home
from keyface_cli.checkpoints.tensorfiles import load_network, save_network
from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.avatars.heldout import HeldOut, portrait_of
from keyface_cli.evaluation.avatars.measure import SEED_STRIDE, animate
from keyface_cli.evaluation.avatars.reader import CONTROLS, RigReader
from keyface_cli.models.speech import encode
from keyface_cli.options import GenerationOptions
from keyface_cli.pipeline import KeyFacePipeline

FORMAT = "keyface vocal classifier 1"
SPEECH = "speech"
CLASSES = (*VOCALISATIONS, SPEECH)
SECONDS = 3.0
_READER_ERROR, _READER_OFFSET = 0.06, 0.08  # of what is read, a frame and a clip
_ROWS = [rig.INDEX[name] for name in CONTROLS]


class VocalClassifier(nn.Module):
    """Tracks of the face to one of `CLASSES`."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 2 * len(CONTROLS)
        for _ in range(3):
            layers += [nn.Conv1d(last, width, 5, padding=2), nn.BatchNorm1d(width), nn.GELU()]
            layers += [nn.MaxPool1d(2)]
            last = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * width, len(CLASSES)))

    def forward(self, tracks: Tensor) -> Tensor:
        """(B, N, len(CONTROLS)) -> logits (B, len(CLASSES))."""
        x = tracks.transpose(1, 2)
        x = torch.cat([x, F.pad(x[..., 1:] - x[..., :-1], (1, 0)) * 5], 1)
        x = self.features(x)
        read: Tensor = self.head(torch.cat([x.mean(-1), x.amax(-1)], 1))
        return read

    @torch.inference_mode()
    def name(self, tracks: Tensor) -> str:
        """Name what one face does: tracks (N, len(CONTROLS))."""
        return CLASSES[int(self.eval()(tracks[None])[0].argmax())]


def scene_of(kind: str, seed: int, *, held_out: bool) -> Scene:
    """Make a clip of one class.

    Raises:
        KeyFaceError: speech is asked for and no synthesiser is installed.
    """
    only = None if kind == SPEECH else kind
    return random_scene(seed, held_out, SECONDS, only=only)


def train_classifier(each: int = 160, updates: int = 1200, seed: int = 55) -> VocalClassifier:
    """Train a classifier on `each` performances of every class; minutes on a CPU."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    tracks, labels = [], []
    for label, kind in enumerate(CLASSES):
        for i in range(each):
            scene = scene_of(kind, (seed * len(CLASSES) + label) * SEED_STRIDE + i, held_out=False)
            tracks.append(rig.as_seen(scene.rig)[:, _ROWS])
            labels.append(label)
    examples, wanted = torch.stack(tracks), torch.tensor(labels)
    network = VocalClassifier().train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=updates)
    for _ in range(updates):
        picked = torch.randint(len(wanted), (64,), generator=generator)
        x = examples[picked]
        x = x + _READER_ERROR * torch.randn(x.shape, generator=generator)
        x = x + _READER_OFFSET * torch.randn(len(x), 1, x.shape[2], generator=generator)
        # a model does less than the truth as often as not
        x = x * (0.5 + 0.7 * torch.rand(len(x), 1, 1, generator=generator))
        x = x.roll(int(torch.randint(-8, 9, (), generator=generator)), 1)
        loss = F.cross_entropy(network(x), wanted[picked], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return network.eval()


def default_path() -> Path:
    """Return where the classifier is kept."""
    return home() / "readers" / "vocal.safetensors"


def load_or_train(path: Path) -> VocalClassifier:
    """Load the classifier of this version that was saved here before, or train one and save it.

    Raises:
        WeightsError: it cannot be written.
    """
    network = VocalClassifier()
    try:
        load_network(path, network, FORMAT)
    except WeightsError:
        network = train_classifier()
        save_network(path, network, {"format": FORMAT})
    return network.eval()


@dataclass(frozen=True)
class Recognition:
    """The classes seen in one clip: in the truth, the model's video, and that without BEATs."""

    kind: str
    truth: str
    generated: str
    without_beats: str


def evaluate(
    pipeline: KeyFacePipeline,
    reader: RigReader,
    classifier: VocalClassifier,
    each: int = 4,
    seed: int = 1,
    options: GenerationOptions | None = None,
    cast: Cast | None = None,
) -> Iterator[Recognition]:
    """Animate held-out vocalisations and speech, and name what the faces do.

    Args:
        pipeline: the model; the features of BEATs are zeroed for the second video of each clip.
        reader: of the face's controls.
        classifier: of what is read.
        each: clips of every class.
        seed: of scenes and heads.
        options: of the generation; None is the model's defaults.
        cast: held-out people whose photographs move; None draws heads.

    Yields:
        One result a clip.
    """
    size = pipeline.config.resolution
    heads = HeldOut(each * len(CLASSES), seed + SEED_STRIDE, size, cast)
    for i in range(each * len(CLASSES)):
        kind = CLASSES[i % len(CLASSES)]
        scene = scene_of(kind, (seed + 500) * SEED_STRIDE + i, held_out=True)
        draw = heads.head(i)
        portrait, truth = portrait_of(draw), draw(scene.rig)
        features = encode(pipeline.engine.encoders, scene.waveform)
        without_beats = {name: f * 0 if name == "beats" else f for name, f in features.items()}
        videos = (
            truth,
            animate(pipeline, portrait, scene, options, features),
            animate(pipeline, portrait, scene, options, without_beats),
        )
        read = (reader.read(torch.from_numpy(v), torch.from_numpy(portrait)) for v in videos)
        yield Recognition(kind, *(classifier.name(tracks) for tracks in read))
