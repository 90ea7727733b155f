"""Safetensors of one file and of several: the same tensors, and nothing half written."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch

from keyface_cli.checkpoints.checkpoint import Checkpoint, build
from keyface_cli.checkpoints.tensorfiles import open_tensors, weight_files
from keyface_cli.checkpoints.writing import save_component, write_manifest, write_tensors
from keyface_cli.errors import WeightsError
from keyface_cli.presets import PRESETS

TENSORS = {
    "a": torch.arange(100.0),
    "b": torch.arange(50.0).view(5, 10).T,  # not contiguous
    "c": torch.arange(7),
    "d": torch.randn(64, 64),
}


@pytest.mark.parametrize(("max_bytes", "files"), [(2**20, 1), (700, 2), (1, 4)])
def test_tensors_come_back_from_one_file_and_from_several(
    tmp_path: Path, max_bytes: int, files: int
) -> None:
    write_tensors(tmp_path, "model", TENSORS, max_bytes=max_bytes)
    assert len(weight_files(tmp_path, "model")) == files
    with open_tensors(tmp_path, "model") as reader:
        assert reader.names == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert reader.shape(name) == tuple(tensor.shape)
            assert torch.equal(reader.get(name), tensor)


def test_numbers_are_cast_and_whole_ones_kept(tmp_path: Path) -> None:
    write_tensors(tmp_path, "model", TENSORS, torch.float16, max_bytes=300)
    assert max(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 300 + 8192 + 200
    with open_tensors(tmp_path, "model") as reader:
        assert {name: reader.dtype(name) for name in "abcd"} == {
            "a": "F16",
            "b": "F16",
            "c": "I64",
            "d": "F16",
        }


def test_writing_again_leaves_no_old_file(tmp_path: Path) -> None:
    write_tensors(tmp_path, "model", TENSORS, max_bytes=1)
    write_tensors(tmp_path, "model", TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    write_tensors(tmp_path, "model", TENSORS, max_bytes=700)
    assert len(list(tmp_path.iterdir())) == 3
    with open_tensors(tmp_path, "model") as reader:
        assert reader.names == set(TENSORS)


def test_a_kill_at_any_step_leaves_one_network_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kill(BaseException):
        pass

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Kill

    def replace(source: Path, target: Path) -> None:
        count()
        os.rename(source, target)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        count()
        real(path, missing_ok=missing_ok)

    real = Path.unlink

    new = {name: tensor + 1 for name, tensor in TENSORS.items()}
    steps = 0
    for before, after in ((1, 1), (1, 2**20), (2**20, 1), (2**20, 2**20), (700, 700)):
        done = False
        while not done:
            folder = tmp_path / f"{before}-{after}-{steps}"
            folder.mkdir()
            write_tensors(folder, "model", TENSORS, max_bytes=before)
            left, steps = steps, steps + 1
            with monkeypatch.context() as patched:
                patched.setattr(os, "replace", replace)
                patched.setattr(Path, "unlink", unlink)
                try:
                    write_tensors(folder, "model", new, max_bytes=after)
                    done = True
                except Kill:
                    pass
            with open_tensors(folder, "model") as reader:
                found = {name: reader.get(name) for name in reader.names}
            assert any(
                found.keys() == one.keys() and all(torch.equal(found[n], one[n]) for n in one)
                for one in (TENSORS, new)
            )
        steps = 0


def test_several_files_are_what_diffusers_and_transformers_read(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLTemporalDecoder
    from transformers import WavLMModel

    config = PRESETS["tiny"]
    for component, stem in (("vae", "diffusion_pytorch_model"), ("wavlm", "model")):
        module = build(component, config)
        save_component(tmp_path, component, module)
        write_tensors(tmp_path / component, stem, module.state_dict(), max_bytes=2**14)
        assert len(list((tmp_path / component).glob("*.safetensors"))) > 1
        library = {"vae": AutoencoderKLTemporalDecoder, "wavlm": WavLMModel}[component]
        read = library.from_pretrained(tmp_path / component).state_dict()
        assert all(torch.equal(read[name], t) for name, t in module.state_dict().items())
    write_manifest(tmp_path, config)
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.verify()
    expected = build("vae", config, empty=True).state_dict()
    assert checkpoint.count("vae") == sum(t.numel() for t in expected.values())
    assert checkpoint.load("vae").state_dict().keys() == expected.keys()


def test_a_missing_file_of_several_is_named(tmp_path: Path) -> None:
    write_tensors(tmp_path, "model", TENSORS, max_bytes=1)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with (
        pytest.raises(WeightsError, match=r"missing file: .*model-00002-of-00004.safetensors"),
        open_tensors(tmp_path, "model"),
    ):
        pass


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with (
        pytest.raises(WeightsError, match=r"not an index of weights: .*index.json"),
        open_tensors(tmp_path, "model"),
    ):
        pass


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files(tmp_path, "model") == [tmp_path / "elsewhere.safetensors"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path, "model", TENSORS)
    before = (tmp_path / "model.safetensors").read_bytes()
    real = safetensors.torch.save_file

    def fill(tensors: dict[str, torch.Tensor], path: Path, **options: object) -> None:
        real({"a": torch.zeros(1)}, path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safetensors.torch, "save_file", fill)
    with pytest.raises(WeightsError, match="the disk is full"):
        write_tensors(tmp_path, "model", {"a": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    write_tensors(tmp_path, "model", TENSORS)
    plain = tmp_path / "plain"
    plain.touch()
    mode = stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode)
    assert mode == stat.S_IMODE(plain.stat().st_mode)
