"""A checkpoint folder: what it holds, strict reading, and writing; runs in training are the same.

    keyface.json            format version, preset, configuration, licence, source, training, and
                            size and sha256 of every other file
    keyframe_unet/          one folder per network, each with config.json and safetensors; those of
    interpolation_unet/     vae, wavlm and wav2vec2 are read by diffusers and transformers as well
    interpolation_guide/    optional: the weaker network that autoguidance steers away from
    vae/  wavlm/  wav2vec2/  beats/

Tensors are stored in half precision as a rule and cast to the asked format while they are read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from keyface_cli.checkpoints.tensorfiles import TensorReader, move, open_tensors
from keyface_cli.config import ModelConfig, from_dict
from keyface_cli.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

MANIFEST = "keyface.json"
FORMAT_VERSION = 1
_NETWORKS = {  # component -> its module and class in `keyface_cli.models`
    "keyframe_unet": "unet.VideoUNet",
    "interpolation_unet": "unet.VideoUNet",
    "interpolation_guide": "unet.VideoUNet",
    "vae": "vae.VideoVAE",
    "portrait_decoder": "portrait_decoder.PortraitDecoder",
    "wavlm": "wav2vec2.WavLM",
    "wav2vec2": "wav2vec2.Wav2Vec2",
    "beats": "beats.BEATs",
}
COMPONENTS = tuple(_NETWORKS)
SPEECH_ENCODERS = ("wavlm", "wav2vec2")  # stored as transformers does, the others as diffusers


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder: its manifest is read and the size of every file is checked."""

    folder: Path
    config: ModelConfig
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, *, check_files: bool = True) -> Checkpoint:
        """Read a folder's manifest; no tensor is read yet.

        Args:
            folder: of the model.
            check_files: compare sizes with the recorded ones; a run that was killed while
                it was saving has others until it is resumed.

        Raises:
            WeightsError: the folder, its manifest or a file that the manifest lists is missing,
                or a file has another size than the one recorded.
            ConfigError: its configuration is not one that this version knows.
        """
        if not folder.is_dir():
            raise WeightsError(f"model folder not found: {folder}")
        path = folder / MANIFEST
        if not path.is_file():
            raise WeightsError(f"not a model folder: {folder}", f"it holds no {MANIFEST}")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            version, config, files = (manifest[k] for k in ("format_version", "config", "files"))
            sizes = {
                name: (int(facts["bytes"]), str(facts["sha256"])) for name, facts in files.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"not a model manifest: {path}", f"it is damaged: {type(error).__name__}: {error}"
            ) from error
        if version != FORMAT_VERSION:
            raise WeightsError(
                f"{path}: unknown format version: {version}", "install a newer keyface"
            )
        for name, (size, _) in sizes.items() if check_files else ():
            _check_size(folder / name, size)
        known = from_dict(ModelConfig, config, f"{path}: config")
        if not known.sampling_presets:  # of a version before them: those of its architecture
            from keyface_cli.presets import PRESETS

            if known.preset in PRESETS:
                named = PRESETS[known.preset].sampling_presets
                known = dataclasses.replace(known, sampling_presets=named)
        return cls(folder, known, manifest)

    @property
    def name(self) -> str:
        """The preset's name, as in "mini"."""
        return self.config.preset

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the networks that the folder holds."""
        return tuple(name for name in COMPONENTS if (self.folder / name).is_dir())

    @property
    def size(self) -> int:
        """Bytes of all files of its networks."""
        return sum(int(facts["bytes"]) for facts in self.manifest["files"].values())

    def count(self, component: str) -> int:
        """Return how many numbers a component's file holds, by its header.

        Raises:
            WeightsError: the component is absent or its file is damaged.
        """
        with open_tensors(self.folder / component, stem_of(component)) as reader:
            return sum(math.prod(reader.shape(name)) for name in reader.names)

    def dtypes(self, component: str) -> list[str]:
        """Return the number formats in a component's files, as safetensors names them ("F16").

        Raises:
            WeightsError: the component is absent or its file is damaged.
        """
        with open_tensors(self.folder / component, stem_of(component)) as reader:
            return sorted({reader.dtype(name) for name in reader.names})

    def verify(self) -> None:
        """Compare every file of every network with its recorded sha256.

        Raises:
            WeightsError: names the first file that differs, or that the manifest does not list.
        """
        from keyface_cli.files import file_hash

        for component in self.components:
            self._check_listed(component)
        for name, recorded in self.manifest["files"].items():
            if file_hash(self.folder / name) != recorded["sha256"]:
                raise WeightsError(
                    f"the file is damaged: {self.folder / name}", "its sha256 is not the one listed"
                )

    def _check_listed(self, component: str) -> None:
        """Refuse a network of which the manifest does not list every file."""
        for path in network_files(self.folder, component):
            if path.relative_to(self.folder).as_posix() not in self.manifest["files"]:
                raise WeightsError(
                    f"not listed in {self.folder / MANIFEST}: {path}",
                    "it is of another model, or its training was stopped while it was written",
                )

    def load(
        self,
        component: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """Build one network and fill it, strictly.

        Args:
            component: one of `COMPONENTS`.
            device: where its tensors go.
            dtype: number format of its tensors; None keeps the file's.

        Returns:
            The module in evaluation mode, its parameters without gradient.

        Raises:
            WeightsError: the component is absent, its file is damaged or not in the manifest, or a
                tensor is missing, unexpected or of another shape; file and tensor are named.
        """
        self._check_listed(component)
        with open_tensors(self.folder / component, stem_of(component)) as reader:
            module = build(component, self.config, empty=True)
            expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
            _check_tensors(reader, expected)
            # one at a time, so that casting needs no second copy of them all
            tensors = {name: move(reader.get(name), device, dtype) for name in expected}
        module.load_state_dict(tensors, strict=True, assign=True)
        return module.eval().requires_grad_(False)


def build(component: str, config: ModelConfig, *, empty: bool = False) -> nn.Module:
    """Construct one network of a configuration, with random weights.

    Args:
        component: one of `COMPONENTS`.
        config: the model it belongs to.
        empty: leave its tensors on the meta device, without memory, to be filled or counted.

    Raises:
        ConfigError: an argument is unknown, or a value is none that the network can have.
    """
    try:
        with _on_meta() if empty else nullcontext():
            return cast("nn.Module", _construct(component, config))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the {component} of this model is none of ours: {error}") from error


def needed_components(config: ModelConfig, *, guide: bool) -> tuple[str, ...]:
    """Name the networks that making a video takes, in the order of `COMPONENTS`.

    Args:
        config: the model.
        guide: whether autoguidance is on, so that the weaker network is needed too; by anchored
            models it is not.
    """
    wanted = {"keyframe_unet", "interpolation_unet", "vae", *encoder_names(config)}
    if config.portrait_decoder:
        wanted.add("portrait_decoder")
    if guide and config.parameterization == "v":
        wanted.add("interpolation_guide")
    return tuple(name for name in COMPONENTS if name in wanted)


def encoder_names(config: ModelConfig) -> tuple[str, ...]:
    """Name the audio encoders of a model, each once."""
    return tuple(dict.fromkeys((*config.keyframe_encoders, *config.interpolation_encoders)))


@contextmanager
def _on_meta() -> Iterator[None]:
    """Let modules have shapes alone; what would draw their first weights is not even called.

    On the meta device torch draws through its compiler, whose import takes a second.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if getattr(func, "__module__", None) == "torch.nn.init":
                return kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    with torch.device("meta"), Undrawn():
        yield


def _construct(component: str, config: ModelConfig) -> Any:
    if component not in _NETWORKS:
        raise ConfigError(f"no such component: {component}", f"one of {', '.join(COMPONENTS)}")
    # each library costs seconds to import, so only what is built is imported
    module, name = _NETWORKS[component].split(".")
    network = getattr(import_module(f"keyface_cli.models.{module}"), name)
    if name == "VideoUNet":
        stage = "keyframes" if component == "keyframe_unet" else "interpolation"
        return network(**dataclasses.asdict(config.unet(stage)))
    return network(**getattr(config, component))


def stem_of(component: str) -> str:
    # the names under which transformers and diffusers look for weights
    return "model" if component in SPEECH_ENCODERS else "diffusion_pytorch_model"


def _check_tensors(reader: TensorReader, expected: dict[str, torch.Size]) -> None:
    for problem, names in (
        ("missing tensor", expected.keys() - reader.names),
        ("unexpected tensor", reader.names - expected.keys()),
    ):
        if names:
            raise WeightsError(f"{reader.path}: {problem}: {min(names)}", f"{len(names)} in all")
    for name, shape in expected.items():
        if reader.shape(name) != tuple(shape):
            raise WeightsError(
                f"{reader.file(name)}: tensor {name} has shape {reader.shape(name)}, "
                f"not {tuple(shape)}"
            )


def network_files(folder: Path, component: str) -> list[Path]:
    """Every file of a network that is there, in a checkpoint folder."""
    found = (folder / component).glob("*")
    return sorted(path for path in found if path.suffix in (".json", ".safetensors"))


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise WeightsError(f"missing file: {path}")
    found = path.stat().st_size
    if found != size:
        raise WeightsError(f"the file is damaged: {path}", f"it has {found} bytes, not {size}")
