"""The networks behind some metrics: which files, whose they are, and where they are looked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from keyface_cli.checkpoints.installed import home
from keyface_cli.errors import WeightsError
from keyface_cli.files import file_hash


@dataclass(frozen=True)
class MetricWeights:
    """One network.

    Args:
        name: as `--weights NAME=FILE` takes it.
        file: what it is called in the weights' folder; a folder for CLIP.
        what: it is.
        licence: of the weights.
        url: where they are published; "" where the user has to make or ask for the file.
        sha256: of the file, whole; "" where no public source states it (the hub states CLIP's).
        hint: how to get the file where it is not fetched.
    """

    name: str
    file: str
    what: str
    licence: str
    url: str = ""
    sha256: str = ""
    hint: str = "keyface weights pull metrics"


METRIC_WEIGHTS: tuple[MetricWeights, ...] = (
    MetricWeights(
        "inception",
        "inception-2015-12-05.pt",
        "Inception v3 of 2015-12-05 as TorchScript, for FID",
        "Apache-2.0",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
        "inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    ),
    MetricWeights(
        "alex",
        "alexnet-owt-7be5be79.pth",
        "AlexNet of ImageNet, for LPIPS",
        "BSD-3-Clause",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    MetricWeights(
        "vgg",
        "vgg16-397923af.pth",
        "VGG16 of ImageNet, for LPIPS",
        "BSD-3-Clause",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    MetricWeights(
        "i3d",
        "i3d_torchscript.pt",
        "I3D of Kinetics-400 as TorchScript, for FVD",
        "not stated by its publisher (StyleGAN-V)",
        "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
        "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
    ),
    MetricWeights(
        "clip",
        "clip-vit-large-patch14",
        "CLIP ViT-L/14, for aesthetic quality",
        "MIT",
        "https://huggingface.co/openai/clip-vit-large-patch14",
    ),
    MetricWeights(
        "aesthetic",
        "sa_0_4_vit_l_14_linear.pth",
        "LAION's linear head, for aesthetic quality",
        "MIT",
        "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
    ),
    MetricWeights(
        "emotion",
        "enet_b0_8_va_mtl.onnx",
        "EmotiEffLib's network of valence, arousal and eight classes",
        "Apache-2.0",
        "https://github.com/sb-ai-lab/EmotiEffLib/raw/main/models/affectnet_emotions/onnx/"
        "enet_b0_8_va_mtl.onnx",
        "c43e056ad388d4a8dc911832b8291435b2af537f967e5870ebd731574ec7e812",
    ),
    MetricWeights(
        "sface",
        "face_recognition_sface_2021dec.onnx",
        "OpenCV's SFace, for face similarity",
        "Apache-2.0",
        "https://huggingface.co/opencv/face_recognition_sface/resolve/main/"
        "face_recognition_sface_2021dec.onnx",
        "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
    ),
    MetricWeights(
        "amt",
        "amt-s.pt",
        "AMT-S as TorchScript, for motion smoothness",
        "CC-BY-NC-4.0",
        hint="trace AMT-S (github.com/MCG-NKU/AMT) with torch.jit and name the file",
    ),
    MetricWeights(
        "lipreader",
        "vsr_trlrs2lrs3vox2avsp_base.pth",
        "the visual encoder of Auto-AVSR, for LipScore",
        "its page limits the code to comparison and benchmarking; the weights follow the terms of "
        "their training data",
        hint="get vsr_trlrs2lrs3vox2avsp_base.pth from github.com/mpc001/auto_avsr and name it",
    ),
    MetricWeights(
        "nsv",
        "nsv",
        "a video classifier of non-speech sounds",
        "its own",
        hint="make one with keyface train nsv, and name its folder",
    ),
)
BY_NAME = {weights.name: weights for weights in METRIC_WEIGHTS}


def weights_folder() -> Path:
    """Return where fetched weights are kept."""
    return home() / "metrics"


def parse_named(texts: list[str]) -> dict[str, Path]:
    """Read `NAME=FILE` options.

    Raises:
        WeightsError: a name is unknown or a file is missing.
    """
    named = {}
    for text in texts:
        name, mark, file = text.partition("=")
        if not mark or name not in BY_NAME:
            known = ", ".join(BY_NAME)
            raise WeightsError(f"not NAME=FILE of a known network: {text}", f"names: {known}")
        path = Path(file).expanduser()
        if not path.exists():
            raise WeightsError(f"file not found: {path}", f"it was named for {name}")
        named[name] = path
    return named


def find_weights(name: str, named: Mapping[str, Path], folder: Path) -> Path | None:
    """Return the file of a network: the one that was named, else the one in the folder."""
    if name in named:
        return named[name]
    path = folder / BY_NAME[name].file
    return path if path.exists() else None


@cache
def fingerprint(path: Path) -> str:
    """Return the sha256 of a file, or of the names and hashes of a folder's files."""
    if path.is_dir():
        parts = [
            f"{p.relative_to(path)} {fingerprint(p)}"
            for p in sorted(path.rglob("*"))
            if p.is_file()
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return file_hash(path)


def check_hash(name: str, path: Path) -> None:
    """Make sure that a file is the published one, where its hash is known.

    Raises:
        WeightsError: it is another file.
    """
    expected = BY_NAME[name].sha256
    if expected and fingerprint(path) != expected:
        raise WeightsError(
            f"{path}: is not {BY_NAME[name].what}: sha256 {fingerprint(path)[:16]}..., "
            f"expected {expected[:16]}",
            BY_NAME[name].hint,
        )
