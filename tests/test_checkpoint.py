"""Checkpoint folders: saving and loading are inverse, and every fault is named."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import platformdirs
import pytest
import torch
from counting import core_parameters
from safetensors.torch import load_file, save_file

from keyface_cli.checkpoints import installed
from keyface_cli.checkpoints.checkpoint import COMPONENTS, Checkpoint, build, needed_components
from keyface_cli.checkpoints.installed import resolve_model
from keyface_cli.checkpoints.writing import save_component, write_manifest
from keyface_cli.errors import ConfigError, WeightsError
from keyface_cli.presets import PRESETS

WEIGHTS = "diffusion_pytorch_model.safetensors"
BUNDLED = Path(__file__).parents[1] / "weights" / "mini"


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint folder that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


HELD = tuple(name for name in COMPONENTS if name != "portrait_decoder")  # only some models have one


def edit(path: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors of a file, and renew the manifest beside it."""
    tensors = {k: v for k, v in (load_file(path) | changes).items() if v is not None}
    save_file(tensors, path, metadata={"format": "pt"})
    write_manifest(path.parents[1], PRESETS["tiny"])


def test_all_components_are_there_and_verified(tiny_checkpoint: Path) -> None:
    opened = Checkpoint.open(tiny_checkpoint)
    assert opened.components == HELD
    assert opened.config == PRESETS["tiny"]
    assert opened.name == "tiny"
    opened.verify()


@pytest.mark.parametrize("component", HELD)
def test_saving_and_loading_is_the_identity(component: str, tmp_path: Path) -> None:
    module = build(component, PRESETS["tiny"])
    save_component(tmp_path, component, module)
    write_manifest(tmp_path, PRESETS["tiny"])
    opened = Checkpoint.open(tmp_path)
    loaded = opened.load(component)
    expected, found = module.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert opened.count(component) == sum(p.numel() for p in module.parameters())
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_files_load_as_any_type(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    loaded = Checkpoint.open(tiny_checkpoint).load("keyframe_unet", dtype=dtype)
    stored = load_file(tiny_checkpoint / "keyframe_unet" / WEIGHTS)
    for name, tensor in loaded.state_dict().items():
        assert stored[name].dtype == torch.float16
        assert torch.equal(tensor, stored[name].to(dtype))


def test_nothing_is_left_without_memory(tiny_checkpoint: Path) -> None:
    opened = Checkpoint.open(tiny_checkpoint)
    for component in opened.components:
        module = opened.load(component)
        held = [*module.parameters(), *module.buffers()]
        assert {tensor.device.type for tensor in held} == {"cpu"}


@pytest.mark.parametrize(
    ("component", "library"),
    [
        ("vae", "diffusers.AutoencoderKLTemporalDecoder"),
        ("wavlm", "transformers.WavLMModel"),
        ("wav2vec2", "transformers.Wav2Vec2Model"),
    ],
)
def test_the_libraries_read_the_folders_themselves(
    tiny_checkpoint: Path, component: str, library: str
) -> None:
    ours = Checkpoint.open(tiny_checkpoint).load(component, dtype=torch.float32)
    package, _, kind = library.partition(".")
    theirs = getattr(importlib.import_module(package), kind)
    read = theirs.from_pretrained(tiny_checkpoint / component).state_dict()
    assert read.keys() == ours.state_dict().keys()
    for name, tensor in read.items():
        assert torch.equal(tensor.float(), ours.state_dict()[name])


def test_arguments_that_no_network_has_are_named() -> None:
    config = dataclasses.replace(PRESETS["tiny"], vae=PRESETS["tiny"].vae | {"colour": 1})
    with pytest.raises(ConfigError, match=r"the vae of this model is none of ours: .*colour"):
        build("vae", config)


def test_published_architecture_is_counted_without_memory() -> None:
    config = PRESETS["keyface"]
    for name, core in (("keyframe_unet", 1_525_606_122), ("interpolation_unet", 1_524_953_642)):
        unet = build(name, config, empty=True)
        held = [p.numel() for p in unet.parameters() if p.device.type != "meta"]
        assert sum(held) < 100  # single numbers that the library constructs past the meta device
        assert core_parameters(unet) == core


def test_bundled_model_is_small_enough() -> None:
    config = PRESETS["mini"]
    numbers = {
        name: sum(p.numel() for p in build(name, config, empty=True).parameters())
        for name in needed_components(config, guide=config.sampling.autoguidance != 1)
    }
    assert 2 * sum(numbers.values()) <= 70e6
    assert 2 * max(numbers.values()) <= 45e6


def test_bundled_model_is_of_its_preset() -> None:
    assert Checkpoint.open(BUNDLED).config == PRESETS["mini"]


def test_needed_components_follow_the_configuration() -> None:
    mini = PRESETS["mini"]
    assert needed_components(mini, guide=False) == (
        "keyframe_unet",
        "interpolation_unet",
        "vae",
        "portrait_decoder",
        "wavlm",
        "beats",
    )
    assert needed_components(PRESETS["keyface"], guide=True) == HELD


def test_missing_folder_and_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model folder not found: .*nowhere"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=f"not a model folder: {tmp_path}"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format_version": 1, "config": {}}', "\xff"])
def test_damaged_manifest(text: str, copy: Path) -> None:
    (copy / "keyface.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightsError, match=r"not a model manifest: .*keyface\.json"):
        Checkpoint.open(copy)


def test_manifest_of_a_later_version(copy: Path) -> None:
    path = copy / "keyface.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(WeightsError, match="unknown format version: 2"):
        Checkpoint.open(copy)


def test_manifest_with_an_unknown_key(copy: Path) -> None:
    path = copy / "keyface.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["resolutoin"] = 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"keyface\.json: config: unknown key: resolutoin"):
        Checkpoint.open(copy)


def test_missing_file(copy: Path) -> None:
    (copy / "vae" / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match=rf"missing file: .*vae/{WEIGHTS}"):
        Checkpoint.open(copy)


def test_component_that_was_never_written(copy: Path) -> None:
    shutil.rmtree(copy / "interpolation_guide")
    write_manifest(copy, PRESETS["tiny"])
    opened = Checkpoint.open(copy)
    assert "interpolation_guide" not in opened.components
    with pytest.raises(WeightsError, match=rf"missing file: .*interpolation_guide/{WEIGHTS}"):
        opened.load("interpolation_guide")


def test_truncated_file_is_found_by_its_size(copy: Path) -> None:
    path = copy / "keyframe_unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=f"the file is damaged: {path}"):
        Checkpoint.open(copy)


def test_truncated_file_that_the_manifest_agrees_with(copy: Path) -> None:
    path = copy / "beats" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    write_manifest(copy, PRESETS["tiny"])
    with pytest.raises(WeightsError, match=f"cannot read weights: {path}"):
        Checkpoint.open(copy).load("beats")


def test_changed_byte_is_found_by_verify(copy: Path) -> None:
    path = copy / "wavlm" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    opened = Checkpoint.open(copy)
    with pytest.raises(WeightsError, match=f"the file is damaged: {path}"):
        opened.verify()


def test_missing_tensor(copy: Path) -> None:
    path = copy / "keyframe_unet" / WEIGHTS
    edit(path, **{"conv_in.weight": None})
    with pytest.raises(WeightsError, match=rf"{path}: missing tensor: conv_in\.weight"):
        Checkpoint.open(copy).load("keyframe_unet")


def test_unexpected_tensor(copy: Path) -> None:
    path = copy / "vae" / WEIGHTS
    edit(path, surplus=torch.zeros(1))
    with pytest.raises(WeightsError, match=f"{path}: unexpected tensor: surplus"):
        Checkpoint.open(copy).load("vae")


def test_misshapen_tensor(copy: Path) -> None:
    path = copy / "interpolation_unet" / WEIGHTS
    edit(path, missing_frame=torch.zeros(4, 8, 9))
    expected = rf"{path}: tensor missing_frame has shape \(4, 8, 9\), not \(4, 8, 8\)"
    with pytest.raises(WeightsError, match=expected):
        Checkpoint.open(copy).load("interpolation_unet")


def test_unknown_component() -> None:
    with pytest.raises(ConfigError, match="no such component: unet"):
        build("unet", PRESETS["tiny"])


def test_saving_replaces_a_component_and_leaves_nothing_else(tmp_path: Path) -> None:
    config = PRESETS["tiny"]
    first, second = build("beats", config), build("beats", config)
    save_component(tmp_path, "beats", first)
    save_component(tmp_path, "beats", second, dtype=torch.float16)
    assert {p.name for p in (tmp_path / "beats").iterdir()} == {"config.json", WEIGHTS}
    assert next(second.parameters()).dtype == torch.float32
    write_manifest(tmp_path, config)
    loaded = Checkpoint.open(tmp_path).load("beats")
    assert torch.equal(next(loaded.parameters()), next(second.parameters()).half())


def test_manifest_tells_how_the_model_was_made(tmp_path: Path) -> None:
    config = dataclasses.replace(PRESETS["tiny"], latent_scale=0.7)
    write_manifest(tmp_path, config, licence="CC-BY-4.0", source="here", training={"hours": 2})
    opened = Checkpoint.open(tmp_path)
    assert opened.config.latent_scale == 0.7
    assert opened.manifest["licence"] == "CC-BY-4.0"
    assert opened.manifest["source"] == "here"
    assert opened.manifest["training"] == {"hours": 2}


@pytest.mark.parametrize(
    "damage",
    [
        {"files": ["vae"]},
        {"files": {"vae/config.json": 3}},
        {"files": {"vae/config.json": {"bytes": "many", "sha256": ""}}},
        {"files": {"vae/config.json": {"bytes": 3}}},
        {"files": None},
    ],
)
def test_a_damaged_manifest_is_named(copy: Path, damage: dict[str, object]) -> None:
    path = copy / "keyface.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(WeightsError, match=r"not a model manifest: .*keyface.json") as caught:
        Checkpoint.open(copy)
    assert "it is damaged" in str(caught.value.hint)


def test_a_network_that_the_manifest_does_not_list_is_refused(copy: Path) -> None:
    path = copy / "keyface.json"
    manifest = json.loads(path.read_text())
    del manifest["files"][f"interpolation_guide/{WEIGHTS}"]
    path.write_text(json.dumps(manifest))
    opened = Checkpoint.open(copy)
    opened.load("keyframe_unet")
    message = f"not listed in .*keyface.json: .*interpolation_guide/{WEIGHTS}"
    with pytest.raises(WeightsError, match=message):
        opened.load("interpolation_guide")
    with pytest.raises(WeightsError, match=message):
        opened.verify()


class TestResolveModel:
    """What `--model` may be."""

    @pytest.fixture(autouse=True)
    def places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Look for models only below `tmp_path`."""
        monkeypatch.setenv("KEYFACE_HOME", str(tmp_path / "home"))
        file = tmp_path / "site" / "checkpoints" / "installed.py"
        monkeypatch.setattr(installed, "__file__", str(file))

    @staticmethod
    def put(folder: Path) -> Path:
        """Make what looks like a checkpoint folder."""
        folder.mkdir(parents=True)
        (folder / "keyface.json").touch()
        return folder

    def test_default_is_bundled_until_the_published_is_installed(self, tmp_path: Path) -> None:
        bundled = self.put(tmp_path / "weights" / "mini")
        assert resolve_model(None) == bundled
        published = self.put(tmp_path / "home" / "models" / "keyface")
        assert resolve_model(None) == published
        assert resolve_model("mini") == bundled
        assert resolve_model("keyface") == published

    def test_bundled_inside_a_wheel(self, tmp_path: Path) -> None:
        bundled = self.put(tmp_path / "site" / "_weights" / "mini")
        assert resolve_model(None) == bundled

    def test_any_folder(self, tmp_path: Path) -> None:
        run = self.put(tmp_path / "runs" / "mine")
        assert resolve_model(str(run)) == run
        assert resolve_model(run) == run

    def test_a_folder_that_is_no_model_does_not_hide_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundled = self.put(tmp_path / "weights" / "mini")
        work = tmp_path / "work"
        (work / "mini").mkdir(parents=True)
        (work / "maxi").mkdir()
        monkeypatch.chdir(work)
        assert resolve_model("mini") == bundled
        assert resolve_model(str(work / "mini")) == work / "mini"
        assert resolve_model("maxi") == Path("maxi")  # what is wrong with it is said when opened
        (work / "mini" / "keyface.json").touch()
        assert resolve_model("mini") == Path("mini")

    def test_a_model_whose_replacement_was_cut_short(self, tmp_path: Path) -> None:
        old = self.put(tmp_path / "runs" / ".mine.old")
        with pytest.raises(WeightsError, match="mine: replacing it was cut short") as error:
            resolve_model(str(tmp_path / "runs" / "mine"))
        assert str(old) in str(error.value.hint)
        self.put(tmp_path / "home" / "models" / ".keyface.old")
        with pytest.raises(WeightsError, match="keyface: replacing it was cut short"):
            resolve_model("keyface")
        assert installed.installed_models() == {}

    def test_models_are_no_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KEYFACE_HOME")
        assert installed.home() == platformdirs.user_data_path("keyface", appauthor=False)

    @pytest.mark.parametrize("name", ["maxi", "runs/maxi", "../weights/maxi"])
    def test_unknown(self, name: str) -> None:
        with pytest.raises(WeightsError, match=f"no such model: {name}"):
            resolve_model(name)
