"""`keyface weights`: the models that are there, and the published one fetched or converted."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from keyface_cli.checkpoints.checkpoint import MANIFEST, Checkpoint, needed_components
from keyface_cli.checkpoints.installed import home, installed_models, resolve_model
from keyface_cli.commands import console, options
from keyface_cli.errors import ConfigError, KeyFaceError, WeightsError

app = typer.Typer(
    name="weights",
    no_args_is_help=True,
    help="Look after models: fetch, list, show, verify and convert them.",
    epilog="""\
[bold]Examples[/bold]

keyface weights pull

keyface weights verify mini
""",
)
_CONVERT_EXAMPLE = """\
[bold]Example[/bold]

keyface weights convert --keyframe keyframe.pt --interpolation interpolation.pt
--guide interpolation_bad.pt --wavlm WavLM-Base+.pt --beats BEATs.pt
--wav2vec2 wav2vec2-base-960h --vae stable-video-diffusion/vae -o keyface
"""

ModelArgument = Annotated[
    str, typer.Argument(metavar="NAME|FOLDER", help="A model's name, or its folder.")
]


@app.command("list")
def list_models(as_json: options.JsonOption = False) -> None:
    """List the models that are installed and the bundled one."""
    rows: list[dict[str, Any]] = []
    for name, folder in installed_models().items():
        try:
            checkpoint = Checkpoint.open(folder)
        except KeyFaceError as error:
            rows.append({"name": name, "folder": str(folder), "error": str(error)})
            continue
        rows.append(
            {
                "name": name,
                "folder": str(folder),
                "resolution": checkpoint.config.resolution,
                "bytes": checkpoint.size,
                "licence": checkpoint.manifest.get("licence"),
            }
        )
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        if "error" in row:
            typer.echo(f"{row['name']}: damaged: {row['error']}")
        else:
            size = f"{row['resolution']} x {row['resolution']} pixels, {row['bytes'] / 1e6:.0f} MB"
            typer.echo(f"{row['name']}: {size}, {row['folder']}")
    if not any(row["name"] == "keyface" for row in rows):
        console.say("the published weights are not installed; keyface weights pull fetches them")


@app.command()
def show(model: ModelArgument, as_json: options.JsonOption = False) -> None:
    """Say what a model holds, where it comes from and how it was trained."""
    checkpoint = Checkpoint.open(resolve_model(model))
    description = describe(checkpoint)
    if as_json:
        typer.echo(json.dumps(description))
        return
    for key in ("name", "folder", "preset", "resolution", "licence", "source"):
        typer.echo(f"{key}: {description[key]}")
    typer.echo(f"sampling: {_facts(description['sampling'])}")
    for name, facts in description["components"].items():
        formats = ", ".join(facts["dtypes"])
        typer.echo(
            f"{name}: {facts['parameters']:,} parameters, {formats}, {facts['bytes']:,} bytes"
        )
    for name, facts in description["training"].items():
        typer.echo(f"training of {name}: {_facts(facts) if isinstance(facts, dict) else facts}")
    for origin in description["origins"]:
        typer.echo(f"made of: {_facts(origin)}")


@app.command()
def verify(model: ModelArgument) -> None:
    """Check a model's files, its tensors, and what its networks answer to a small input."""
    checkpoint = Checkpoint.open(resolve_model(model))
    from keyface_cli.checkpoints.verify import verify as check

    for line in check(checkpoint, _pictures(checkpoint)):
        console.say(line)
    typer.echo(f"{checkpoint.folder}: whole")


@app.command()
def pull(
    model: Annotated[
        Literal["keyface", "metrics"],
        typer.Argument(help="The published model, or the networks of keyface evaluate videos."),
    ] = "keyface",
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Branch, tag or commit of the model's repository.",
            show_default="the newest",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Fetch and make an installed model again.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only list files, sizes, licences, space and time."),
    ] = False,
    speed: Annotated[
        float,
        typer.Option(metavar="MBIT/S", min=0.1, help="Of your connection, for --dry-run."),
    ] = 100.0,
) -> None:
    """Fetch the published weights and make a model of them; a cut fetch is continued.

    The encoder of portraits is Stable Video Diffusion's. Where its repository refuses because you
    are not logged in, that of an open VAE with the same latents is taken.
    """
    if model == "metrics":
        if dry_run:
            raise typer.BadParameter("--dry-run is for the published model")
        _pull_metrics(force)
        return
    from keyface_cli.checkpoints.download import pull as fetch

    if dry_run:
        _list_files(revision, speed)
        return
    folder = fetch(revision, force=force, report=console.say)
    from keyface_cli.checkpoints.verify import check_codec

    checkpoint = Checkpoint.open(folder)
    for line in check_codec(checkpoint, _pictures(checkpoint)):
        console.say(line)
    typer.echo(folder)


@app.command(epilog=_CONVERT_EXAMPLE)
def convert(
    keyframe: Annotated[Path, typer.Option(metavar="FILE", help="keyframe.pt")],
    interpolation: Annotated[Path, typer.Option(metavar="FILE", help="interpolation.pt")],
    wavlm: Annotated[Path, typer.Option(metavar="FILE", help="WavLM-Base+.pt")],
    beats: Annotated[
        Path, typer.Option(metavar="FILE", help="BEATs, iteration 3+, fine-tuned on AudioSet.")
    ],
    wav2vec2: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The folder of facebook/wav2vec2-base-960h.")
    ],
    folder: Annotated[Path, options.writes("FOLDER", "The model to write.")],
    guide: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="interpolation_bad.pt", show_default="no autoguidance"),
    ] = None,
    vae: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The VAE of Stable Video Diffusion, whose encoder is used.",
            show_default="the keyframe file's own encoder",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"],
        typer.Option(help="Number format of the UNets; the small networks keep their own."),
    ] = "float16",
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Sizes of the UNets where they are not the published ones, as `config` in a "
            f"{MANIFEST}.",
            show_default="the published model",
        ),
    ] = None,
    force: options.ForceOption = False,
) -> None:
    """Make a model of the published checkpoint files; nothing in them is ever run."""
    import torch

    from keyface_cli.checkpoints.convert import Sources
    from keyface_cli.checkpoints.convert import convert as write

    sources = Sources(keyframe, interpolation, wavlm, beats, wav2vec2, guide, vae)
    if not folder.absolute().parent.is_dir():
        raise KeyFaceError(f"folder not found: {folder.absolute().parent}", "make it first")
    sizes = None if config is None else _read_config(config)
    write(sources, folder, sizes, getattr(torch, dtype), force=force, report=console.say)
    typer.echo(folder)


def _list_files(revision: str | None, speed: float) -> None:
    """Say what `pull` would fetch, under which licences, and whether there is room and time."""
    from keyface_cli.checkpoints.download import downloads_folder, find, space

    found = find(revision, report=console.say)
    for file in found:
        typer.echo(
            f"{file.size / 1e6:9,.1f} MB  {file.role.repository}/{file.path}  "
            f"{file.licence}  {file.licence_url}"
        )
    total = sum(file.size for file in found)
    needed, free = space(found, downloads_folder())
    minutes = 8 * total / (speed * 1e6) / 60
    typer.echo(f"{total / 1e9:.1f} GB in all: {minutes:.1f} min at {speed:g} Mbit/s")
    room = "enough" if free >= needed else "not enough"
    typer.echo(
        f"{free / 1e9:.1f} GB are free in {home()}, {room}: "
        f"{needed / 1e9:.1f} GB are needed until the fetched files are dropped"
    )


def _pictures(checkpoint: Checkpoint) -> dict[str, Any]:
    """The examples that a VAE is tried on, as networks read them."""
    from keyface_cli.commands.examples import find_examples
    from keyface_cli.media.crop import cut
    from keyface_cli.media.framing import choose_crop, to_network
    from keyface_cli.media.portrait import read_picture

    pictures = {}
    for name in ("avatar.png", "wall.jpg"):
        path = find_examples() / name
        picture = read_picture(path)
        crop = choose_crop(path, picture, "center")
        pictures[name] = to_network(cut(picture, crop, checkpoint.config.resolution))
    return pictures


def _pull_metrics(force: bool) -> None:
    from keyface_cli.evaluation.networks.fetching import pull_metrics
    from keyface_cli.evaluation.networks.weights import weights_folder

    folder = weights_folder()
    failures = pull_metrics(folder, force=force, report=console.say)
    for line in failures:
        console.report("warning", line)
    if failures:
        raise WeightsError(
            f"{len(failures)} networks could not be fetched",
            "run the command again: it resumes where it stopped",
        )
    typer.echo(folder)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what `show` prints, as plain data."""
    manifest, config = checkpoint.manifest, checkpoint.config
    components = {}
    for name in checkpoint.components:
        files = [path for path in manifest["files"] if path.startswith(f"{name}/")]
        components[name] = {
            "parameters": checkpoint.count(name),
            "dtypes": checkpoint.dtypes(name),
            "bytes": sum(manifest["files"][path]["bytes"] for path in files),
            "needed": name in needed_components(config, guide=True),
        }
    return {
        "name": checkpoint.folder.name,
        "folder": str(checkpoint.folder),
        "preset": config.preset,
        "resolution": config.resolution,
        "licence": manifest.get("licence"),
        "source": manifest.get("source"),
        "sampling": asdict(config.sampling),
        "components": components,
        "training": manifest.get("training", {}),
        "origins": manifest.get("origins", []),
    }


def _read_config(path: Path) -> Any:
    from keyface_cli.config import ModelConfig, from_dict

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return from_dict(ModelConfig, data, str(path))


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
