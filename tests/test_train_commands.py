"""`keyface train` and `keyface dataset` from the command line."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from drawn import make_shard
from photographs import make_photographs

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.checkpoints.writing import write_manifest, write_tensors
from keyface_cli.commands import console
from keyface_cli.commands.train_options import Asked, collect
from keyface_cli.errors import WeightsError
from keyface_cli.presets import PRESETS

Main = Callable[..., tuple[int, str, str]]
QUICK = ("--updates", 2, "--batch-size", 1, "--precision", "float32", "--set", "held_out=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard(tmp_path_factory.mktemp("drawn") / "data" / "000").parent


def test_a_run_is_a_model_at_any_time(
    main: Main,
    data: Path,
    tiny_checkpoint: Path,
    portrait_png: Path,
    tone_wav: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    arguments = ("--data", data, "-o", run, "--from", tiny_checkpoint, *QUICK)
    code, out, err = main("train", "interpolation", *arguments, "--seed", 5)
    assert (code, out) == (0, f"{run}\n"), err
    assert "interpolation: 2/2" in err
    code, out, err = main(
        "animate", portrait_png, tone_wav, "-o", tmp_path / "talk.mp4", "--model", run
    )
    assert code == 0, err
    assert Checkpoint.open(run).config == PRESETS["tiny"]  # of the model it started from
    stored = tomllib.loads((run / "options" / "interpolation.toml").read_text())
    assert stored["interpolation"]["updates"] == 2
    assert stored["interpolation"]["seed"] == 5
    assert stored["interpolation"]["lower_half"] == 2.0  # of the recipe

    # resuming takes the stored options, and flags go before them
    code, _, err = main(
        "train", "interpolation", "--data", data, "-o", run, "--resume", "--updates", 3
    )
    assert code == 0, err
    stored = tomllib.loads((run / "options" / "interpolation.toml").read_text())
    assert (stored["interpolation"]["updates"], stored["interpolation"]["seed"]) == (3, 5)
    assert stored["interpolation"]["batch_size"] == 1
    rows = (run / "interpolation_unet.csv").read_text().splitlines()
    assert rows[0].startswith("update,seconds,loss")


def test_the_published_architecture_gets_the_published_recipe(tmp_path: Path) -> None:
    config, asked = PRESETS["keyface"], Asked(tmp_path, tmp_path, False, None)
    found, loss = collect("keyframes", asked, config, stored=False)
    assert (found.learning_rate, found.schedule, found.muon_rate) == (1e-5, "constant", 0.0)
    assert (loss.pixel, loss.perceptual, loss.freeze_temporal) == (1.0, 1.0, True)
    # the small ones get the one that suits a CPU
    found, loss = collect("keyframes", asked, PRESETS["mini"], stored=False)
    assert (found.schedule, loss.high_sigmas, loss.pixel) == ("cosine", 0.75, 0.0)


def test_flags_go_before_files_and_files_before_recipes(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[keyframes]\nupdates = 11\nseed = 3\nmouth = 2.5\n[vae]\nupdates = 9\n")
    asked = Asked(
        tmp_path,
        tmp_path / "run",
        resume=False,
        threads=None,
        recipe="paper",
        file=file,
        given={"seed": 4},
        chosen=["drop_audio=0.5"],
    )
    found, loss = collect("keyframes", asked, PRESETS["mini"], stored=False)
    assert (found.updates, found.seed, found.learning_rate) == (11, 4, 1e-5)
    assert (loss.mouth, loss.drop_audio, loss.pixel) == (2.5, 0.5, 1.0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("keyframes", "--set", "updatse=4"), 1, "unknown option: updatse"),
        (("keyframes", "--preset", "huge"), 1, "unknown preset: huge"),
        (("keyframes", "--recipe", "mine"), 1, "unknown recipe: mine"),
        (("keyframes", "--from", "nowhere"), 1, "no such model: nowhere"),
        (("keyframes", "--options", "none.toml"), 1, "cannot read options: none.toml"),
        (("keyframes", "--updates", "0"), 2, "Invalid value for '--updates'"),
        (("keyframes", "--preset", "tiny"), 1, "no encoded shard in"),
        (("interpolation", "--preset", "tiny", "--from", "keyframe_unet"), 1, "no keyframe_unet"),
        (("vae", "--preset", "tiny"), 1, "no pictures in"),
        (("audio", "beats", "--preset", "tiny"), 1, "no scenes in"),
        (("audio", "hubert", "--preset", "tiny"), 2, "tiny has beats, wav2vec2, wavlm"),
        (("decoder", "--preset", "tiny"), 1, "has no portrait decoder"),
        (("reader",), 1, "no scenes in"),
    ],
)
def test_wrong_use_is_one_line(
    main: Main, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, out, err = main("train", *arguments, "--data", tmp_path / "none", "-o", tmp_path / "run")
    assert found == code, err
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert out == ""


def test_avatars_are_drawn_once(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[object, ...]] = []

    def scenes(folder: Path, count: int, seed: int, **voices: object) -> None:
        folder.mkdir()
        (folder / "waveforms.npy").touch()
        drawn.append(("scenes", folder.name, count, seed))

    def frames(folder: Path, seed: int, size: int, cast: object) -> None:
        (folder / "runs.npy").touch()
        drawn.append(("frames", folder.name, seed, size, cast is not None))

    def pool(path: Path, count: int, size: int, seed: int, cast: object, share: float) -> None:
        path.touch()
        drawn.append(("pictures", count, size, seed, cast is not None))

    def pairs(folder: Path, count: int, seed: int, size: int, cast: object) -> None:
        folder.mkdir()
        drawn.append(("pairs", folder.name, count, seed, size, cast is not None))

    monkeypatch.setattr("keyface_cli.avatars.shards.write_scenes", scenes)
    monkeypatch.setattr("keyface_cli.avatars.shards.render_frames", frames)
    monkeypatch.setattr("keyface_cli.avatars.pictures.render_pool", pool)
    monkeypatch.setattr("keyface_cli.avatars.portrait_pairs.write_pairs", pairs)
    hours = ("--hours", 0.5, "--sound-hours", 0.01, "--pairs", 250)
    arguments = ("dataset", "avatars", "-o", tmp_path / "data", *hours, "--seed", 3)
    code, out, err = main(*arguments)
    assert (code, out) == (0, f"{tmp_path / 'data'}\n"), err
    assert drawn == [
        ("pictures", 5000, 256, 3, False),
        ("pairs", "pairs-000", 100, 30_000_000, 256, False),
        ("pairs", "pairs-001", 100, 30_010_000, 256, False),
        ("pairs", "pairs-002", 50, 30_020_000, 256, False),
        ("scenes", "000", 200, 30_000_000),
        ("frames", "000", 30_000_000, 256, False),
        ("scenes", "001", 58, 30_010_000),  # half an hour is 258 scenes of 7 s
        ("frames", "001", 30_010_000, 256, False),
        ("scenes", "sound-000", 6, 39_990_000),
    ]
    assert (tmp_path / "data" / "pictures.npy").exists()
    drawn.clear()
    (tmp_path / "data" / "001" / "runs.npy").unlink()
    assert main(*arguments)[0] == 0
    assert drawn == [("frames", "001", 30_010_000, 256, False)]
    # more of the same is drawn; what is there is never mixed with another seed's, or cut short
    code, _, err = main(*arguments[:4], *hours[2:], "--seed", 4, "--hours", 0.5)
    assert (code, "was drawn with seed 3, not 4" in err) == (1, True)
    code, _, err = main(*arguments, "--hours", 1)
    assert code == 1
    assert f"{tmp_path / 'data' / '001'} was to hold 58, not 200" in err
    assert "remove it" in err
    shutil.rmtree(tmp_path / "data" / "001")
    drawn.clear()
    assert main(*arguments, "--hours", 1)[0] == 0
    assert [row[:3] for row in drawn if row[0] == "scenes"] == [
        ("scenes", "001", 200),
        ("scenes", "002", 115),
    ]
    for damage in ("{}", '{"settings": {"se', '{"settings": 3, "sizes": []}'):
        (tmp_path / "data" / "avatars.json").write_text(damage)
        code, _, err = main(*arguments)
        assert (code, "avatars.json: is damaged" in err) == (1, True)
    (tmp_path / "data" / "avatars.json").unlink()
    assert "does not say what its shards were drawn of" in main(*arguments)[2]
    drawn.clear()
    photographs = ("--photographs", make_photographs(tmp_path / "faces"))
    other = ("dataset", "avatars", "-o", tmp_path / "other", *hours, *photographs)
    code, _, err = main(*other)
    assert code == 0, err
    # two thirds of the shards are photographs
    assert [row[-1] for row in drawn if row[0] == "pairs"] == [False, True, True]
    assert [row[-1] for row in drawn if row[0] in ("pictures", "frames")] == [True, False, True]


def test_progress_is_a_line_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with console.StageProgress() as progress:
        progress("training keyframes", 1, 100)
        progress("training keyframes", 50, 100, "loss 0.5")
        progress("training keyframes", 100, 100, "loss 0.25  mse 0.125")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("training keyframes: 100/100 updates")
    assert lines[0].endswith("loss 0.25  mse 0.125")


def _bytes(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_trained_network_is_replaced_by_force_only(
    main: Main, data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("train", "keyframes", "--data", data, "-o", run, "--from", tiny_checkpoint, *QUICK)
    assert main(*arguments)[0] == 0
    before = _bytes(run)
    code, out, err = main(*arguments, "--updates", 1, "--seed", 8)
    assert (code, out) == (1, "")
    assert f"the run has trained keyframe_unet already: {run}" in err
    assert "--resume" in err
    assert "--force" in err
    assert _bytes(run) == before
    code, _, err = main(*arguments, "--updates", 1, "--seed", 8, "--force")
    assert code == 0, err
    assert Checkpoint.open(run).manifest["training"]["keyframe_unet"]["updates"] == 1


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_manifest_goes_on(
    main: Main, data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run, stem = tmp_path / "run", "diffusion_pytorch_model"
    arguments = ("train", "keyframes", "--data", data, "-o", run)
    assert main(*arguments, "--from", tiny_checkpoint, *QUICK)[0] == 0
    network = Checkpoint.open(run).load("keyframe_unet")
    write_tensors(run / "keyframe_unet", stem, network.state_dict(), max_bytes=2**17)
    with pytest.raises(WeightsError, match="missing file"):
        Checkpoint.open(run)
    code, _, err = main(*arguments, "--resume", "--updates", 3)
    assert code == 0, err
    assert "its manifest is written anew" in err
    Checkpoint.open(run).verify()


def test_a_model_is_no_run(main: Main, data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    before = _bytes(model)
    code, _, err = main("train", "interpolation", "--data", data, "-o", model, *QUICK)
    assert code == 1
    assert f"a model, not a run: {model}" in err
    assert _bytes(model) == before


def test_a_trained_decoder_is_replaced_by_force_only(main: Main, tmp_path: Path) -> None:
    state = tmp_path / "run" / "state" / "portrait_decoder.pt"
    state.parent.mkdir(parents=True)
    state.touch()
    arguments = ("train", "decoder", "--data", tmp_path, "-o", tmp_path / "run")
    code, _, err = main(*arguments)
    assert (code, "has trained portrait_decoder already" in err, "--force" in err) == (
        1,
        True,
        True,
    )
    code, _, err = main(*arguments, "--force")
    assert (code, "already" in err) == (1, False), err  # what is refused now is a run without a VAE


def test_an_export_replaces_a_model_by_force_only(
    main: Main, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(tiny_checkpoint, run)
    shutil.rmtree(run / "beats")
    write_manifest(run, PRESETS["tiny"])
    manifest = json.loads((run / "keyface.json").read_text())
    del manifest["training"]  # free facts, which another program may leave out
    (run / "keyface.json").write_text(json.dumps(manifest))
    shutil.copytree(tiny_checkpoint, model)
    before = _bytes(model)
    code, out, err = main("train", "export", run, "-o", model)
    assert (code, out) == (1, "")
    assert f"folder exists: {model}" in err
    assert _bytes(model) == before
    assert main("train", "export", run, "-o", model, "--force")[0] == 0
    assert Checkpoint.open(model).components == Checkpoint.open(run).components
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run"]
