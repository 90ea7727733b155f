"""From the published files to one checkpoint folder.

One source file is held at a time, mapped into memory where its format allows that, and goes out
tensor by tensor. The folder appears under its name when all of it is written.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keyface_cli.checkpoints.checkpoint import build
from keyface_cli.checkpoints.renaming import (
    UNUSED_BY_ENCODER,
    rename_beats,
    rename_unet,
    rename_vae,
    rename_wav2vec2,
    rename_wavlm,
    split,
)
from keyface_cli.checkpoints.unpickle import check_numbers, read_tensors
from keyface_cli.checkpoints.writing import replacing_model, save_component, write_manifest
from keyface_cli.config import ModelConfig
from keyface_cli.errors import ConfigError, WeightsError
from keyface_cli.presets import PRESETS

Report = Callable[[str], None]

_WEIGHTS_IN_FOLDER = (  # of a transformers or diffusers folder, the best first
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)


@dataclass(frozen=True)
class Sources:
    """The published files.

    Args:
        keyframe: `keyframe.pt`, with the keyframe UNet and the VAE's decoder.
        interpolation: `interpolation.pt`.
        wavlm: `WavLM-Base+.pt`.
        beats: BEATs, fine-tuned iteration 3+, a `.pt` file.
        wav2vec2: a transformers folder of wav2vec 2.0, with or without the head that spells.
        guide: `interpolation_bad.pt`; without it the model has no autoguidance.
        vae: a diffusers folder of Stable Video Diffusion's VAE, whose encoder is used; without it
            the keyframe file has to hold an encoder.
    """

    keyframe: Path
    interpolation: Path
    wavlm: Path
    beats: Path
    wav2vec2: Path
    guide: Path | None = None
    vae: Path | None = None


def convert(
    sources: Sources,
    folder: Path,
    config: ModelConfig | None = None,
    dtype: torch.dtype = torch.float16,
    *,
    force: bool = False,
    licence: str = "as the files that it was made of",
    origins: Collection[dict[str, Any]] = (),
    report: Report = lambda line: None,
) -> None:
    """Write a checkpoint folder from the published files.

    Args:
        sources: the files; those of the audio encoders and of the VAE say their own sizes.
        folder: to be made; its parent exists.
        config: sizes of the UNets and what the files do not say; None is the published model.
        dtype: of the numbers written.
        force: replace the folder where it exists and is a model.
        licence: for the manifest.
        origins: what is known about each file (its address, licence, ...), for the manifest.
        report: told in a line what was read and what of it has no use.

    Raises:
        WeightsError: a file is missing, damaged, another one's, or does not fit; file, tensor and
            shapes are named. Nothing is written then.
        ConfigError: a file says sizes that cannot be understood.
    """
    with replacing_model(folder, force=force) as partial:
        run = _Conversion(sources, partial, config or PRESETS["keyface"], dtype, report)
        write_manifest(
            partial,
            run.run(),
            licence=licence,
            source="converted from the published files",
            origins=origins or [{"file": path.name} for path in vars(sources).values() if path],
        )


@dataclass
class _Conversion:
    """One run of `convert`: each method reads a file and writes what it holds."""

    sources: Sources
    folder: Path
    config: ModelConfig
    dtype: torch.dtype
    report: Report

    def run(self) -> ModelConfig:
        """Write every network; return the configuration that they have."""
        # the small ones first: their faults are found in seconds
        self._encoder("wavlm", self.sources.wavlm)
        self._encoder("beats", self.sources.beats)
        self._encoder("wav2vec2", self.sources.wav2vec2)
        decoder = self._unet("keyframe_unet", self.sources.keyframe)
        self._vae(decoder)
        self._interpolation()
        return self.config

    def _encoder(self, name: str, path: Path) -> None:
        if name == "wav2vec2":
            settings = _folder_config(path)
            path = _folder_weights(path)
            tensors, _ = read_tensors(path)
            wanted = {k: v for k, v in settings.items() if k in self.config.wav2vec2}
            self.config = dataclasses.replace(
                self.config, wav2vec2=self.config.wav2vec2 | wanted | {"mask_time_prob": 0.0}
            )
        else:
            tensors, cfg = read_tensors(path)
            read = {"wavlm": wavlm_config, "beats": beats_config}[name]
            said: dict[str, Any] = {name: read(cfg, path)} if cfg else {}
            self.config = dataclasses.replace(self.config, **said)
        rename = {"wavlm": rename_wavlm, "wav2vec2": rename_wav2vec2, "beats": rename_beats}[name]
        module = build(name, self.config, empty=True)
        with _naming(path):
            state = rename(tensors, module)
        unused = UNUSED_BY_ENCODER[name]
        self._write(name, state, path, None)
        self._say(path, len(tensors), [n for n in tensors if unused.match(n)])

    def _unet(self, component: str, path: Path) -> dict[str, Tensor]:
        """Write a UNet; return the tensors of the autoencoder beside it."""
        parts, count = _read_stage(component, path)
        self._write_unet(component, parts["unet"], path)
        unused = [*parts["unused"]]
        if component != "keyframe_unet":
            self._projection = {
                name: tensor.clone()
                for name, tensor in parts["unet"].items()
                if name.startswith("conditioner.")
            }
            unused += parts["vae"]
        self._say(path, count, unused)
        # copied, so that the file is let go
        return {name: tensor.clone() for name, tensor in parts["vae"].items()}

    def _interpolation(self) -> None:
        self._unet("interpolation_unet", self.sources.interpolation)
        path = self.sources.guide
        if path is None:
            self.report("no guide: autoguidance will not be available")
            return
        parts, count = _read_stage("interpolation_guide", path)
        # it uses the audio projection of the network that it guides
        own = [name for name in parts["unet"] if name.startswith("conditioner.")]
        network = {n: t for n, t in parts["unet"].items() if n not in own}
        self._write_unet("interpolation_guide", network | self._projection, path)
        self._say(path, count, [*own, *parts["unused"], *parts["vae"]])

    def _write_unet(self, component: str, official: dict[str, Tensor], path: Path) -> None:
        stage = "keyframes" if component == "keyframe_unet" else "interpolation"
        layers = self.config.unet(stage).layers_per_block
        module = build(component, self.config, empty=True)
        with _naming(path):
            state = rename_unet(official, module, layers)
        self._write(component, state, path, self.dtype)

    def _vae(self, official: dict[str, Tensor]) -> None:
        path, source, encoder = self.sources.keyframe, self.sources.vae, None
        if source is not None:
            settings = _folder_config(source)
            wanted = {k: v for k, v in settings.items() if k in self.config.vae}
            scale = settings.get("scaling_factor", self.config.latent_scale)
            self.config = dataclasses.replace(
                self.config, vae=self.config.vae | wanted, latent_scale=float(scale)
            )
            path = _folder_weights(source)
            tensors, _ = read_tensors(path)
            encoder = {
                n: t for n, t in tensors.items() if n.startswith(("encoder.", "quant_conv."))
            }
            self._say(path, len(tensors), [name for name in tensors if name not in encoder])
        elif not any(name.startswith("first_stage_model.encoder.") for name in official):
            raise WeightsError(
                f"no encoder for portraits in {path}",
                "name the folder of Stable Video Diffusion's VAE with --vae",
            )
        module = build("vae", self.config, empty=True)
        levels = len(self.config.vae["block_out_channels"])
        with _naming(path):
            state = rename_vae(official, module, levels, encoder)
        self._write("vae", state, path, None)

    def _write(
        self, component: str, state: dict[str, Tensor], path: Path, dtype: torch.dtype | None
    ) -> None:
        if dtype is None:  # their own, and one for all
            dtype = functools.reduce(
                torch.promote_types, (t.dtype for t in state.values() if t.is_floating_point())
            )
        check_numbers(state, path, dtype)
        module = build(component, self.config, empty=True)
        save_component(self.folder, component, module, dtype=dtype, state=state)

    def _say(self, path: Path, count: int, unused: list[str]) -> None:
        line = f"{path.name}: {count} tensors"
        if unused:
            groups = sorted({".".join(name.split(".")[:2]) for name in unused})
            line += f", {len(unused)} of them of no use here ({', '.join(groups)})"
        self.report(line)


def wavlm_config(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    """Turn the `cfg` of a WavLM file into arguments of transformers' WavLMConfig.

    Raises:
        ConfigError: it lacks a number, or asks for what the published model does not have.
    """
    try:
        if cfg.get("normalize") or not cfg.get("relative_position_embedding", True):
            raise ConfigError(f"{path}: not a WavLM Base model", "use WavLM-Base+.pt")
        layers = _conv_layers(cfg["conv_feature_layers"])
        return {
            "hidden_size": cfg["encoder_embed_dim"],
            "num_hidden_layers": cfg["encoder_layers"],
            "num_attention_heads": cfg["encoder_attention_heads"],
            "intermediate_size": cfg["encoder_ffn_embed_dim"],
            "conv_dim": [width for width, _, _ in layers],
            "conv_kernel": [kernel for _, kernel, _ in layers],
            "conv_stride": [stride for _, _, stride in layers],
            "conv_bias": cfg["conv_bias"],
            "num_conv_pos_embeddings": cfg["conv_pos"],
            "num_conv_pos_embedding_groups": cfg["conv_pos_groups"],
            "num_buckets": cfg["num_buckets"],
            "max_bucket_distance": cfg["max_distance"],
            "feat_extract_norm": "group" if cfg["extractor_mode"] == "default" else "layer",
            "do_stable_layer_norm": cfg["layer_norm_first"],
        }
    except (KeyError, ValueError, TypeError, SyntaxError) as error:
        raise ConfigError(f"{path}: its cfg cannot be understood: {error}") from error


def beats_config(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    """Turn the `cfg` of a BEATs file into arguments of `models.beats.BEATs`.

    Raises:
        ConfigError: it lacks a number, or asks for what the published model does not have.
    """
    from keyface_cli.models.beats import BEATs

    published = {"deep_norm": True, "gru_rel_pos": True, "relative_position_embedding": True}
    published |= {"layer_norm_first": False, "conv_bias": False}
    for name, value in published.items():
        if bool(cfg.get(name)) != value:
            raise ConfigError(f"{path}: its cfg has {name} {cfg.get(name)}, not {value}")
    absent = {"embed_dim": 512, "num_buckets": 320, "max_distance": 1280}  # defaults of its code
    names = inspect.signature(BEATs.__init__).parameters.keys() - {"self"}
    given = absent | {name: cfg[name] for name in names if name in cfg}
    missing = sorted(names - given.keys())
    if missing:
        raise ConfigError(f"{path}: its cfg lacks {', '.join(missing)}")
    return given


def _conv_layers(expression: str) -> list[tuple[int, int, int]]:
    """Read fairseq's (width, kernel, stride) list: a sum of lists, some of them times a number."""
    layers: list[tuple[int, int, int]] = []
    for part, times in re.findall(r"(\[[^\]]*\])\s*(?:\*\s*(\d+))?", expression):
        layers += ast.literal_eval(part) * int(times or 1)
    return layers


def _read_stage(component: str, path: Path) -> tuple[dict[str, dict[str, Tensor]], int]:
    """Return the tensors of a UNet's file, as `split` sorts them, and how many there are.

    Raises:
        WeightsError: the file is the other stage's, or cannot be used.
    """
    tensors, _ = read_tensors(path)
    # told apart here, before a shape does
    interpolates = any(name.endswith("learned_mask") for name in tensors)
    if interpolates == (component == "keyframe_unet"):
        kinds = ("a keyframe file", "an interpolation file")
        found, wanted = reversed(kinds) if interpolates else kinds
        raise WeightsError(f"{path} is {found}, not {wanted}", "were two files swapped?")
    with _naming(path):
        return split(tensors), len(tensors)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in what renaming finds wrong."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}", error.hint) from error


def _folder_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"file not found: {path}", "name the folder of the model") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from error
    if not isinstance(settings, dict):
        raise WeightsError(f"cannot read {path}: not a configuration")
    return settings


def _folder_weights(folder: Path) -> Path:
    for name in _WEIGHTS_IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"no weights in {folder}", f"one of {', '.join(_WEIGHTS_IN_FOLDER)}")
