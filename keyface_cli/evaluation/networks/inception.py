"""Inception v3 as the FID uses it: the network of 2015-12-05, ported from TensorFlow.

It differs from the usual one: 1008 classes, average pools that leave out the padding, and a
maximum pool in the last block. Tensor names are those of the public port's file
(pt_inception-2015-12-05-6726825d.pth).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from keyface_cli.checkpoints.unpickle import read_tensors
from keyface_cli.evaluation.networks.loading import load_strictly

FEATURES = 2048
SIDE = 299  # pixels
FidResize = Literal["antialias", "tensorflow", "pytorch", "clean"]
RESIZES: dict[str, str] = {
    "antialias": "bilinear with antialiasing, as torchmetrics 1.9",
    "tensorflow": "bilinear as TensorFlow 1 did, no antialiasing, as torch-fidelity",
    "pytorch": "bilinear without antialiasing, as pytorch-fid",
    "clean": "bicubic of Pillow in float, as clean-fid",
}
assert set(RESIZES) == set(get_args(FidResize))


def prepare(frames: Tensor, resize: FidResize) -> Tensor:
    """Resize frames to 299 x 299 as a named implementation does, and scale them for the network.

    Args:
        frames: uint8 (n, 3, H, W) RGB; bytes, because the field's numbers are of stored pictures.
        resize: one of RESIZES, each with the range that belongs to it.

    Returns:
        float32 (n, 3, 299, 299) in about [-1, 1].
    """
    if frames.dtype != torch.uint8:
        raise ValueError(f"FID is defined on bytes, not {frames.dtype}")
    x = frames.float()
    if resize == "pytorch":
        x = F.interpolate(x / 255, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return 2 * x - 1
    if resize == "antialias":
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
    elif resize == "tensorflow":
        x = _resize_from_corner(x)
    else:
        x = _resize_bicubic(x)
    return (x - 128) / 128


def _resize_from_corner(x: Tensor) -> Tensor:
    """Bilinear whose output pixel i lies at i * (in / out): the corners of both grids meet."""
    for axis in (2, 3):
        size = x.shape[axis]
        place = torch.arange(SIDE, dtype=torch.float32, device=x.device) * (size / SIDE)
        low = place.floor().long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        share = (place - low).view([-1 if i == axis else 1 for i in range(4)])
        x = torch.lerp(x.index_select(axis, low), x.index_select(axis, high), share)
    return x


def _resize_bicubic(x: Tensor) -> Tensor:
    planes = x.cpu().numpy()
    resized = [
        [
            np.asarray(Image.fromarray(plane).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).clip(
                0, 255
            )
            for plane in picture
        ]
        for picture in planes
    ]
    return torch.from_numpy(np.asarray(resized, np.float32)).to(x.device)


class _Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Any, stride: int, padding: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _conv(inputs: int, outputs: int, kernel: Any = 1, stride: int = 1, padding: Any = 0) -> _Conv:
    return _Conv(inputs, outputs, kernel, stride, padding)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _Block(nn.Module):
    """Branches side by side: chains of named convolutions, and a pool with or without one.

    Args:
        inputs: channels.
        convs: name -> outputs, kernel, stride, padding; a name ends in its place in the chain.
        chains: the names of each branch, in the order in which the outputs are joined; a tuple
            in a chain splits in as many outputs.
        pool: "average" or "max" with a 1x1 convolution after it, or "shrink": a maximum pool of
            stride 2 alone.
        pooled: outputs of the convolution after the pool.
    """

    def __init__(
        self,
        inputs: int,
        convs: dict[str, tuple[Any, ...]],
        chains: list[list[str | tuple[str, ...]]],
        pool: str,
        pooled: int = 0,
    ) -> None:
        super().__init__()
        self._chains, self._pool = chains, pool
        for chain in chains:
            width = inputs
            for step in chain:
                for name in (step,) if isinstance(step, str) else step:
                    self.add_module(name, _conv(width, *convs[name]))
                last = step if isinstance(step, str) else step[0]
                width = convs[last][0]
        if pooled:
            self.branch_pool = _conv(inputs, pooled)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self._chains:
            y = x
            for step in chain:
                names = (step,) if isinstance(step, str) else step
                y = torch.cat([cast(Tensor, self.get_submodule(name)(y)) for name in names], 1)
            outputs.append(y)
        if self._pool == "shrink":
            outputs.append(F.max_pool2d(x, 3, 2))
        else:
            y = _average(x) if self._pool == "average" else F.max_pool2d(x, 3, 1, 1)
            outputs.append(self.branch_pool(y))
        return torch.cat(outputs, 1)


_TALL, _WIDE = ((7, 1), 1, (3, 0)), ((1, 7), 1, (0, 3))


def _block_a(inputs: int, pooled: int) -> _Block:
    convs = {
        "branch1x1": (64,),
        "branch5x5_1": (48,),
        "branch5x5_2": (64, 5, 1, 2),
        "branch3x3dbl_1": (64,),
        "branch3x3dbl_2": (96, 3, 1, 1),
        "branch3x3dbl_3": (96, 3, 1, 1),
    }
    chains: list[list[Any]] = [
        ["branch1x1"],
        ["branch5x5_1", "branch5x5_2"],
        ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"],
    ]
    return _Block(inputs, convs, chains, "average", pooled)


def _block_b(inputs: int) -> _Block:
    convs = {
        "branch3x3": (384, 3, 2),
        "branch3x3dbl_1": (64,),
        "branch3x3dbl_2": (96, 3, 1, 1),
        "branch3x3dbl_3": (96, 3, 2),
    }
    chains: list[list[Any]] = [
        ["branch3x3"],
        ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"],
    ]
    return _Block(inputs, convs, chains, "shrink")


def _block_c(width: int) -> _Block:
    convs = {
        "branch1x1": (192,),
        "branch7x7_1": (width,),
        "branch7x7_2": (width, *_WIDE),
        "branch7x7_3": (192, *_TALL),
        "branch7x7dbl_1": (width,),
        "branch7x7dbl_2": (width, *_TALL),
        "branch7x7dbl_3": (width, *_WIDE),
        "branch7x7dbl_4": (width, *_TALL),
        "branch7x7dbl_5": (192, *_WIDE),
    }
    chains: list[list[Any]] = [
        ["branch1x1"],
        [f"branch7x7_{i}" for i in range(1, 4)],
        [f"branch7x7dbl_{i}" for i in range(1, 6)],
    ]
    return _Block(768, convs, chains, "average", 192)


def _block_d() -> _Block:
    convs = {
        "branch3x3_1": (192,),
        "branch3x3_2": (320, 3, 2),
        "branch7x7x3_1": (192,),
        "branch7x7x3_2": (192, *_WIDE),
        "branch7x7x3_3": (192, *_TALL),
        "branch7x7x3_4": (192, 3, 2),
    }
    chains: list[list[Any]] = [
        ["branch3x3_1", "branch3x3_2"],
        [f"branch7x7x3_{i}" for i in range(1, 5)],
    ]
    return _Block(768, convs, chains, "shrink")


def _block_e(inputs: int, pool: str) -> _Block:
    wide, tall = (384, (1, 3), 1, (0, 1)), (384, (3, 1), 1, (1, 0))
    convs = {
        "branch1x1": (320,),
        "branch3x3_1": (384,),
        "branch3x3_2a": wide,
        "branch3x3_2b": tall,
        "branch3x3dbl_1": (448,),
        "branch3x3dbl_2": (384, 3, 1, 1),
        "branch3x3dbl_3a": wide,
        "branch3x3dbl_3b": tall,
    }
    chains: list[list[Any]] = [
        ["branch1x1"],
        ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
        ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
    ]
    return _Block(inputs, convs, chains, pool, 192)


class FidInception(nn.Module):
    """The network up to its 2048 features; the classifier's weights are kept for strictness."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _conv(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = _conv(64, 80)
        self.Conv2d_4a_3x3 = _conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c = _block_a(192, 32), _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(128), _block_c(160)
        self.Mixed_6d, self.Mixed_6e = _block_c(160), _block_c(192)
        self.Mixed_7a = _block_d()
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, "average"), _block_e(2048, "max")
        self.fc = nn.Linear(FEATURES, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 299, 299) from `prepare` -> (n, 2048)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))
        return cast(Tensor, self.Mixed_7c(self.Mixed_7b(x)).mean(dim=(2, 3)))


def load_inception(path: Path) -> FidInception:
    """Read the weights of the 2015-12-05 network.

    Raises:
        WeightsError: the file is missing or damaged, or is another network: names what differs.
    """
    tensors, _ = read_tensors(path)
    network = FidInception()
    load_strictly(network, tensors, path, "Inception v3 of 2015-12-05")
    return network.eval()
