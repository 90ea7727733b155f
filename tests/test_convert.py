"""Published files through the real command line: equal networks, and no fault goes by unnamed.

The files are made of the parity data, in the published containers: DeepSpeed's names,
what only training needed, half precision.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published import write_files
from safetensors.torch import save_file
from test_parity import (
    LATENT_SCALE,
    ONE_PASS,
    SAMPLED,
    ParitySet,
    assert_close,
    open_set,
    parity_folder,
)
from torch import Tensor

from keyface_cli.checkpoints.checkpoint import Checkpoint, build
from keyface_cli.checkpoints.renaming import rename_vae, split
from keyface_cli.diffusion.sampler import ays_sigmas
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.speech import encode
from keyface_cli.presets import PRESETS
from keyface_cli.stages.interpolation import InterpolationStage
from keyface_cli.stages.keyframes import KeyframeStage

Main = Callable[..., tuple[int, str, str]]
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def parity() -> ParitySet:
    return open_set(parity_folder())


@pytest.fixture(scope="module")
def files(parity: ParitySet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every published file of the parity set's model."""
    folder = tmp_path_factory.mktemp("published")
    write_files(parity, folder)
    return folder


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def arguments(files: Path, output: Path, **replaced: Path | None) -> list[object]:
    given: dict[str, Path | None] = {
        "keyframe": files / "keyframe.pt",
        "interpolation": files / "interpolation.pt",
        "guide": files / "interpolation_bad.pt",
        "wavlm": files / "WavLM-Base+.pt",
        "beats": files / "BEATs.pt",
        "wav2vec2": files / "wav2vec2",
        "vae": files / "vae",
        "config": files / "config.json",
        **replaced,
    }
    options = [(f"--{name}", path) for name, path in given.items() if path is not None]
    return ["weights", "convert", *(word for option in options for word in option), "-o", output]


@pytest.fixture(scope="module")
def converted(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command line makes of them."""
    from typer.testing import CliRunner

    from keyface_cli.app import app

    output = tmp_path_factory.mktemp("converted") / "model"
    done = CliRunner().invoke(app, [str(word) for word in arguments(files, output)])
    assert done.exit_code == 0, done.output
    return output


@pytest.mark.slow
def test_c_keyframes_sampled_with_converted_weights(parity: ParitySet, converted: Path) -> None:
    cases, guidance = parity.cases, parity.manifest["guidance"]
    unet: Any = Checkpoint.open(converted).load("keyframe_unet", dtype=torch.float32)
    stage = KeyframeStage(
        unet,
        LATENT_SCALE,
        "v",
        ays_sigmas(guidance["num_steps"]),
        guidance["audio_ratio"],
        guidance["ref_ratio"],
    )
    found = stage.sample(
        cases["c.portrait_latent"],
        unet.project_audio(cases["c.audio"]),
        torch.stack([cases["c.valence"], cases["c.arousal"]], dim=-1),
        cases["c.noise"].unflatten(0, (-1, parity.frames)),
    )
    assert_close(found.flatten(0, 1), cases["c.out"], SAMPLED, "c.out")


@pytest.mark.slow
def test_d_interpolation_with_converted_weights(parity: ParitySet, converted: Path) -> None:
    cases, guidance = parity.cases, parity.manifest["guidance"]
    checkpoint = Checkpoint.open(converted)
    unet: Any = checkpoint.load("interpolation_unet", dtype=torch.float32)
    guide: Any = checkpoint.load("interpolation_guide", dtype=torch.float32)
    stage = InterpolationStage(
        unet,
        guide,
        LATENT_SCALE,
        "v",
        ays_sigmas(guidance["num_steps"]),
        guidance["karras_scale"],
    )
    keyframes = cases["d.keyframe_latents"]
    found = stage.sample(
        torch.stack([keyframes[:-1], keyframes[1:]], dim=1),
        unet.project_audio(cases["d.audio"]),
        cases["d.noise"].unflatten(0, (-1, parity.frames)),
    )
    assert_close(found.flatten(0, 1), cases["d.out"], SAMPLED, "d.out")
    assert torch.equal(unet.audio_projection.weight, guide.audio_projection.weight)


def test_e_and_f_the_other_networks_converted(parity: ParitySet, converted: Path) -> None:
    checkpoint, cases = Checkpoint.open(converted), parity.cases
    vae: Any = checkpoint.load("vae")
    codec = LatentCodec(vae, checkpoint.config.latent_scale)
    assert_close(codec.encode(cases["e.pixels"]), cases["e.latent"], ONE_PASS, "e.latent")
    # the keyframe file's decoder, in its half precision
    assert_close(codec.decode(cases["e.latent"]), cases["e.decoded_1"], ONE_PASS, "e.decoded_1")
    encoders = {name: checkpoint.load(name) for name in ("wavlm", "wav2vec2", "beats")}
    N = int(cases["f0.n_frames"])
    for name, features in encode(encoders, cases["f0.wave"]).items():
        assert_close(features, cases[f"f0.{name}"][:N], ONE_PASS, f"f0.{name}")


def test_the_folder_is_whole_and_in_half_precision(converted: Path, main: Main) -> None:
    checkpoint = Checkpoint.open(converted)
    assert checkpoint.dtypes("keyframe_unet") == checkpoint.dtypes("interpolation_guide") == ["F16"]
    assert checkpoint.dtypes("wavlm") == ["F32"]  # exact: small, and computed in float32
    code, out, err = main("weights", "verify", converted)
    assert (code, out) == (0, f"{converted}: whole\n"), err
    code, out, _ = main("weights", "show", converted, "--json")
    shown = json.loads(out)
    assert code == 0
    assert {origin["file"] for origin in shown["origins"]} >= {"keyframe.pt", "BEATs.pt"}
    assert shown["components"].keys() == set(checkpoint.components)


def test_what_is_of_no_use_is_said(files: Path, tmp_path: Path, main: Main) -> None:
    code, _, err = main(*arguments(files, tmp_path / "model"))
    assert code == 0, err
    assert "6 of them of no use here (conditioner.embedders, loss_fn.lpips)" in err
    assert "WavLM-Base+.pt" in err
    assert "(mask_emb)" in err
    assert "2 of them of no use here (predictor.bias, predictor.weight)" in err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_an_encoder_in_the_keyframe_file_will_do(
    files: Path, tmp_path: Path, main: Main, parity: ParitySet
) -> None:
    whole = arguments(files, tmp_path / "model", keyframe=files / "whole_keyframe.pt", vae=None)
    assert main(*whole)[0] == 0
    codec = LatentCodec(Checkpoint.open(tmp_path / "model").load("vae"), LATENT_SCALE)  # type: ignore[arg-type]
    assert_close(
        codec.encode(parity.cases["e.pixels"]), parity.cases["e.latent"], ONE_PASS, "e.latent"
    )
    code, _, err = main(*arguments(files, tmp_path / "none", vae=None))
    assert code == 1
    assert "no encoder for portraits" in err
    assert "--vae" in err


def test_without_a_guide_there_is_no_autoguidance(files: Path, tmp_path: Path, main: Main) -> None:
    code, _, err = main(*arguments(files, tmp_path / "model", guide=None))
    assert code == 0
    assert "no guide" in err
    assert "interpolation_guide" not in Checkpoint.open(tmp_path / "model").components


@pytest.mark.slow
@pytest.mark.parametrize("container", ["state_dict", "safetensors", "top", "legacy"])
def test_other_containers_are_read(files: Path, tmp_path: Path, main: Main, container: str) -> None:
    module = torch.load(files / "interpolation.pt", weights_only=False)["module"]
    path = tmp_path / ("file.safetensors" if container == "safetensors" else "file.ckpt")
    if container == "safetensors":
        save_file(module, path)
    elif container == "state_dict":
        torch.save({"state_dict": module, "epoch": 3}, path)
    else:
        torch.save(module, path, _use_new_zipfile_serialization=container == "top")
    code, _, err = main(*arguments(files, tmp_path / "model", interpolation=path))
    assert code == 0, err


class Evil:
    """A pickle that runs a program when it is read the careless way."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_file_is_refused_and_not_run(
    files: Path, tmp_path: Path, main: Main, archive: bool
) -> None:
    proof = tmp_path / "proof"
    evil = tmp_path / "keyframe.pt"
    module = {"a": torch.zeros(1)}
    torch.save(
        {"module": module, "evil": Evil(proof)}, evil, _use_new_zipfile_serialization=archive
    )
    code, out, err = main(*arguments(files, tmp_path / "model", keyframe=evil))
    assert code == 1
    assert not out
    assert "system" in err
    assert "refused" in err
    assert not proof.exists()
    assert not (tmp_path / "model").exists()
    torch.load(evil, weights_only=False)  # it would have been run
    assert proof.exists()


def edited(files: Path, path: Path, **changes: Tensor | None) -> Path:
    """Write interpolation.pt again, with tensors replaced, added or (None) left out."""
    module = torch.load(files / "interpolation.pt", weights_only=False)["module"]
    for name, tensor in changes.items():
        module.pop(name, None)
        if tensor is not None:
            module[name] = tensor
    torch.save({"module": module}, path)
    return path


MASK = "_forward_module.model.learned_mask"
LINEAR = "_forward_module.model.diffusion_model.time_embed.0.bias"


def damaged(kind: str, files: Path, path: Path) -> dict[str, Path | None]:
    """Make one file that is wrong in some way; returns what `arguments` takes."""
    good = files / "interpolation.pt"
    if kind == "missing":
        return {"interpolation": path}
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:-5000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "a web page":
        path.write_text("<html>404</html>")
    elif kind == "no tensors":
        torch.save({"module": {"a": 3}}, path)
    elif kind == "NaN":
        bias = torch.load(good, weights_only=False)["module"][LINEAR]
        edited(files, path, **{LINEAR: torch.full_like(bias, torch.nan)})
    elif kind == "too large":
        bias = torch.load(good, weights_only=False)["module"][LINEAR]
        edited(files, path, **{LINEAR: torch.full_like(bias, 1e6, dtype=torch.float32)})
    elif kind == "shape":
        edited(files, path, **{LINEAR: torch.zeros(3)})
    elif kind == "extra":
        edited(files, path, **{"_forward_module.model.diffusion_model.extra": torch.zeros(3)})
    elif kind == "unknown":
        edited(files, path, whatever=torch.zeros(3))
    elif kind == "left out":
        edited(files, path, **{LINEAR: None})
    elif kind == "swapped":
        return {"keyframe": good, "interpolation": files / "keyframe.pt"}
    elif kind == "guide of keyframes":
        return {"guide": files / "keyframe.pt"}
    elif kind == "beats as wavlm":
        return {"wavlm": files / "BEATs.pt"}
    elif kind == "file as folder":
        return {"wav2vec2": good}
    elif kind == "truncated wav2vec2":
        path.mkdir()
        for name in ("config.json", "model.safetensors"):
            (path / name).write_bytes((files / "wav2vec2" / name).read_bytes()[:-50])
        (path / "config.json").write_bytes((files / "wav2vec2" / "config.json").read_bytes())
        return {"wav2vec2": path}
    elif kind == "no config":
        path.mkdir()
        return {"vae": path}
    return {"interpolation": path}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"file not found: \S*bad.pt"),
        ("truncated", r"damaged or not a checkpoint: \S*bad.pt"),
        ("empty", r"damaged or not a checkpoint: \S*bad.pt"),
        ("a web page", r"not a checkpoint: \S*bad.pt"),
        ("no tensors", r"no weights in \S*bad.pt"),
        ("NaN", r"bad.pt: tensor time_embedding.linear_1.bias contains NaN"),
        ("too large", r"bad.pt: tensor time_embedding.linear_1.bias .* too large for float16"),
        ("shape", r"bad.pt: tensor \S*time_embed.0.bias has shape \(3,\), not \(\d+,\)"),
        ("extra", r"bad.pt: unexpected tensor: \S*diffusion_model.extra"),
        ("unknown", r"bad.pt: unexpected tensor: whatever"),
        ("left out", r"bad.pt: missing tensor: time_embedding.linear_1.bias"),
        ("swapped", r"interpolation.pt is an interpolation file, not a keyframe file"),
        ("guide of keyframes", r"keyframe.pt is a keyframe file, not an interpolation file"),
        ("beats as wavlm", r"BEATs.pt: its cfg cannot be understood"),
        ("file as folder", r"file not found: \S*config.json|cannot read \S*config.json"),
        ("truncated wav2vec2", r"cannot read weights: \S*model.safetensors"),
        ("no config", r"file not found: \S*config.json"),
    ],
)
def test_every_fault_is_one_line(
    files: Path, tmp_path: Path, main: Main, kind: str, message: str
) -> None:
    import re

    wrong = damaged(kind, files, tmp_path / "bad.pt")
    code, out, err = main(*arguments(files, tmp_path / "model", **wrong))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (1, "")
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors
    assert "Traceback" not in err
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob(".*"))


def test_an_existing_folder_is_kept(files: Path, tmp_path: Path, main: Main) -> None:
    output = tmp_path / "model"
    output.mkdir()
    (output / "mine").touch()
    code, _, err = main(*arguments(files, output))
    assert (code, "--force" in err) == (1, True)
    # not even by force: it may be anything
    code, _, err = main(*arguments(files, output), "--force")
    assert (code, "not a model folder" in err) == (1, True)
    assert [path.name for path in output.iterdir()] == ["mine"]


@pytest.mark.slow
def test_a_model_is_replaced_by_force(files: Path, tmp_path: Path, main: Main) -> None:
    output = tmp_path / "model"
    assert main(*arguments(files, output))[0] == 0
    (tmp_path / ".model.old" / "vae").mkdir(parents=True)  # of a run that was killed
    assert main(*arguments(files, output, guide=None), "--force")[0] == 0
    assert "interpolation_guide" not in Checkpoint.open(output).components
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("stage", "count"), [("keyframe", 1696), ("interpolation", 1697)])
def test_every_published_name_has_its_place(stage: str, count: int) -> None:
    from keyface_cli.checkpoints.renaming import rename_unet

    recorded = json.loads((Path(__file__).parent / "data" / f"{stage}_keys.json").read_text())
    assert len(recorded) == count
    with torch.device("meta"):
        official = {name: torch.empty(shape) for name, shape in recorded.items()}
    parts = split(official)
    assert not parts["unused"]
    config = PRESETS["keyface"]
    unet = build(f"{stage}_unet", config, empty=True)
    assert len(rename_unet(parts["unet"], unet)) == len(unet.state_dict()) == len(parts["unet"])
    vae = build("vae", config, empty=True)
    ours = vae.state_dict()
    encoder = {n: t for n, t in ours.items() if n.startswith(("encoder.", "quant_conv."))}
    assert rename_vae(parts["vae"], vae, 4, encoder).keys() == ours.keys()
    assert len(parts["vae"]) + len(encoder) == len(ours)
