"""The training loop, the losses and the stages of `keyface train`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import TINY, make_shard
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from keyface_cli.avatars import rig
from keyface_cli.avatars.heads import DrawFrames, still
from keyface_cli.avatars.shards import SCENE_FRAMES, render_frames
from keyface_cli.checkpoints.checkpoint import Checkpoint, build
from keyface_cli.errors import ConfigError, WeightsError
from keyface_cli.models.unet import VideoUNet
from keyface_cli.models.vae import VideoVAE
from keyface_cli.training import run
from keyface_cli.training.beginning import TEMPORAL, begin, freeze_temporal_layers
from keyface_cli.training.clips import ClipSource
from keyface_cli.training.diffusion import COMPONENTS, train_unet
from keyface_cli.training.losses import explained, latent_loss, picture_losses, sample_sigmas
from keyface_cli.training.options import DiffusionOptions, TrainOptions
from keyface_cli.training.samples import lip_sync
from keyface_cli.training.vae import prime, principal_components

ENCODERS = ("wavlm", "beats")


def test_sigmas_follow_the_published_distribution() -> None:
    sigmas = sample_sigmas(20_000, DiffusionOptions(), torch.Generator().manual_seed(0))
    assert float(sigmas.log().mean()) == pytest.approx(1.0, abs=0.03)
    assert float(sigmas.log().std()) == pytest.approx(1.2, abs=0.03)
    wide = DiffusionOptions(wide_sigmas=1.0)
    sigmas = sample_sigmas(20_000, wide, torch.Generator().manual_seed(0))
    assert float(sigmas.min()) == pytest.approx(0.01, rel=0.05)
    assert float(sigmas.max()) == pytest.approx(700, rel=0.05)


def test_a_share_of_sigmas_is_where_sampling_begins() -> None:
    options = DiffusionOptions(wide_sigmas=0.1, high_sigmas=0.6)
    sigmas = sample_sigmas(20_000, options, torch.Generator().manual_seed(0))
    # hardly any other is as high: 0.3 x 0.008 of the normal ones, 0.1 x 0.24 of the wide ones
    assert float((sigmas >= 50).float().mean()) == pytest.approx(0.626, abs=0.015)
    high = sigmas[sigmas >= 50].log()
    assert float(high.mean()) == pytest.approx(math.log(50 * 700) / 2, abs=0.03)


def test_latent_loss_weighs_noise_and_the_lower_half() -> None:
    target = torch.zeros(1, 2, 3, 4, 4)
    denoised = torch.ones_like(target)
    sigma = torch.tensor([2.0])
    plain = latent_loss(denoised, target, sigma)
    assert plain.shape == (1, 2)
    torch.testing.assert_close(plain, torch.full((1, 2), 1.25))
    torch.testing.assert_close(
        latent_loss(denoised, target, sigma, lower_half=3.0), torch.full((1, 2), 2.5)
    )
    one, zero = torch.ones(1, 1, 1, 16, 16), torch.zeros(1, 1, 1, 16, 16)
    by_mouth = latent_loss(one, zero, sigma, mouth=9)
    # 5 rows and 8 columns of 16 count nine times
    torch.testing.assert_close(by_mouth, torch.full((1, 1), 1.25 * (1 + 8 * 5 * 8 / 256)))
    by_eyes = latent_loss(one, zero, sigma, lower_half=3, eyes=9)
    # and here 4 rows and 8 columns of the upper half
    torch.testing.assert_close(by_eyes, torch.full((1, 1), 1.25 * (2 + 8 * 4 * 8 / 256)))
    limited = latent_loss(denoised, target, torch.tensor([0.01]), weight_limit=5.0)
    torch.testing.assert_close(limited, torch.full((1, 2), 5.0))


def pictures(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((count, 3, 8, 8))).float()
    smooth = F.interpolate(coarse, size=64, mode="bilinear")
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_where_nothing_moves_nothing_is_explained() -> None:
    share = explained(torch.tensor([0.1, 0.1, 0.0]), torch.tensor([0.4, 0.0, 0.0]))
    assert torch.equal(share, torch.tensor([0.75, 0.0, 0.0]))


def test_primed_vae_is_the_linear_code() -> None:
    code, bias = principal_components(pictures(20), 8, 16, torch.ones(1, 1, 64, 64))
    torch.manual_seed(0)
    vae = VideoVAE(
        in_channels=768,
        out_channels=768,
        block_out_channels=[128],
        down_block_types=["DownEncoderBlock2D"],
        layers_per_block=1,
        latent_channels=8,
    ).eval()
    prime(vae, code, bias)
    x = torch.from_numpy(pictures(4)).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = F.conv2d(x, code, bias, stride=16)
    with torch.no_grad():
        encoded = vae.encode(F.pixel_unshuffle(x, 16))
        decoded = F.pixel_shuffle(vae.decode(latents), 16)
    torch.testing.assert_close(encoded.mean, latents, atol=2e-3, rtol=0)
    assert float((0.5 * encoded.logvar).exp().max()) < 0.06
    back = torch.linalg.pinv(code.flatten(1)) @ (latents - bias[:, None, None]).flatten(2)
    linear_picture = F.pixel_shuffle(back.unflatten(2, (4, 4)), 16)
    # the decoder's free channels begin with a little noise
    assert float((decoded - linear_picture).square().mean()) < 1e-4


def test_linear_code_loses_no_more_than_the_faint_components() -> None:
    shown = pictures(20)
    code, bias = principal_components(shown, 8, 16, torch.ones(1, 1, 64, 64))
    x = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 127.5 - 1
    patches = F.unfold(x, 16, stride=16).transpose(1, 2).flatten(0, 1)  # (n, 768)
    matrix = code.flatten(1)
    back = (patches @ matrix.T) @ torch.linalg.pinv(matrix).T
    mean = patches.mean(0)
    back = back + mean - (mean @ matrix.T) @ torch.linalg.pinv(matrix).T
    faint = torch.linalg.svdvals(patches - mean)[8:]
    lost = float((back - patches).square().sum())
    assert lost == pytest.approx(float(faint.square().sum()), rel=1e-3)
    assert torch.allclose(matrix @ mean, -bias, atol=1e-3)


def test_principal_components_have_the_promised_scale() -> None:
    code, bias = principal_components(pictures(30), 6, 16, torch.ones(1, 1, 64, 64))
    x = torch.from_numpy(pictures(30)).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = F.conv2d(x, code, bias, stride=16).transpose(0, 1).flatten(1)
    assert float(latents.var(1).mean()) == pytest.approx(1, rel=0.01)
    torch.testing.assert_close(latents.mean(1), torch.zeros(6), atol=1e-3, rtol=0)
    spread = latents.std(1)
    assert (spread[:-1] >= spread[1:] - 1e-4).all()  # the strongest comes first


def test_picture_losses_weigh_each_clip_by_its_own_noise() -> None:
    decoded = torch.full((2, 3, 4, 4), 1.7)  # clipped to 1
    target = torch.tensor([0.5, 0.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    sigma = torch.tensor([1.0, 2.0])  # weights 2 and 1.25
    squared, perceived = picture_losses(
        decoded, target, sigma, lambda a, b: (a - b).abs().mean((1, 2, 3))
    )
    assert float(squared) == pytest.approx((2 * 0.25 + 1.25 * 1) / 2)
    assert float(perceived) == pytest.approx((2 * 0.5 + 1.25 * 1) / 2)
    assert float(picture_losses(decoded, target, sigma)[1]) == 0


@pytest.fixture
def encoded_shard(tmp_path: Path) -> Path:
    return make_shard(tmp_path / "data" / "000").parent


def test_clips_pair_frames_with_their_own_sound(encoded_shard: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    keyframes = ClipSource(encoded_shard, "keyframes", ENCODERS).batch(16, generator)
    assert keyframes.latents.shape[:3] == (16, 14, TINY.latent_channels)
    times = keyframes.features[:, :, 0, 0]
    assert (times.diff(dim=1) == 13).all()
    assert keyframes.features.shape[2:] == (2, TINY.keyframe_unet.audio_dim)
    assert (keyframes.features[..., -1] == 2).all()  # the encoder asked for last
    runs = ClipSource(encoded_shard, "runs", ENCODERS).batch(64, generator)
    times = runs.features[:, :, 0, 0]
    assert (times.diff(dim=1) == 1).all()
    stored = np.load(encoded_shard / "000" / "latents_runs.npy")
    starts = np.load(encoded_shard / "000" / "run_starts.npy")
    for clip, time in zip(runs.latents, times[:, 0].long().tolist(), strict=True):
        scene, frame = divmod(time, 175)
        offset = frame - starts[scene]
        expected = stored[scene, :, offset : offset + 14]
        assert any(np.array_equal(clip.numpy(), part) for part in expected)


@pytest.mark.parametrize("kind", ["keyframes", "runs"])
def test_a_clip_comes_with_the_picture_of_one_frame(encoded_shard: Path, kind: str) -> None:
    source = ClipSource(encoded_shard, kind, ENCODERS, pictures=True)
    clips = source.batch(32, torch.Generator().manual_seed(0))
    assert clips.pictures is not None
    assert clips.frame is not None
    latents = np.load(encoded_shard / "000" / f"latents_{kind}.npy")
    pictures = np.load(encoded_shard / "000" / f"{kind}.npy")
    mirrored = 0
    for clip, picture in zip(clips.latents, clips.pictures, strict=True):
        (scene, flip, frame), *_ = np.argwhere(
            (latents == clip[int(clips.frame)].numpy()).all((3, 4, 5))
        )
        shown = pictures[scene, frame]
        assert np.array_equal(picture, shown[:, ::-1] if flip else shown)
        mirrored += flip
    assert 5 < mirrored < 27


def test_some_clips_begin_with_the_head_at_rest(encoded_shard: Path) -> None:
    shard = encoded_shard / "000"
    at_rest = np.load(shard / "latents_portraits.npy")
    latents = np.load(shard / "latents_keyframes.npy")
    shown = {name: np.load(shard / f"{name}.npy") for name in ("portraits", "keyframes")}
    source = ClipSource(encoded_shard, "keyframes", ENCODERS, pictures=True, from_rest=0.5)
    generator = torch.Generator().manual_seed(0)
    rested = compared = 0
    for _ in range(64):
        (clip,), _, _, (picture,), frame, *_ = source.batch(1, generator)
        (scene, flip), *_ = np.argwhere((latents[:, :, 1:] == clip[1:].numpy()).all((2, 3, 4, 5)))
        rest = np.array_equal(clip[0], at_rest[scene, flip, 0])
        assert rest or np.array_equal(clip[0], latents[scene, flip, 0])
        name = "portraits" if rest and frame == 0 else "keyframes"
        expected = shown[name][scene, int(frame)]
        assert np.array_equal(picture, expected[:, ::-1] if flip else expected)
        rested += rest
        compared += bool(rest and frame == 0)
    assert 16 < rested < 48
    assert compared
    (shard / "latents_portraits.npy").unlink()  # as in shards of earlier versions
    without = ClipSource(encoded_shard, "keyframes", ENCODERS, from_rest=1.0)
    clips = without.batch(4, generator).latents
    assert all((latents[:, :, 0] == clip[0].numpy()).all((2, 3, 4)).any() for clip in clips)


def test_a_shard_shows_heads_at_rest_and_as_their_scene_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracks = torch.rand(3, SCENE_FRAMES, len(rig.CONTROLS)).half()
    np.save(tmp_path / "rigs.npy", tracks.numpy())
    asked: list[list[Tensor]] = []

    def draw_head(generator: torch.Generator, size: int, cast: object) -> DrawFrames:
        head: list[Tensor] = []
        asked.append(head)

        def draw(poses: Tensor) -> np.ndarray:
            head.append(poses)
            return np.full((len(poses), size, size, 3), 10 * len(asked) + len(head), np.uint8)

        return draw

    monkeypatch.setattr("keyface_cli.avatars.shards.draw_head", draw_head)
    render_frames(tmp_path, 5, 8)
    assert [[len(poses) for poses in head] for head in asked] == [[1, 14, 27]] * 3
    assert all(torch.equal(head[0][0], torch.tensor(rig.REST)) for head in asked)
    for i, (name, step) in enumerate((("keyframe", 13), ("run", 1)), start=1):
        starts = np.load(tmp_path / f"{name}_starts.npy")
        shown = np.load(tmp_path / f"{name}s.npy")
        for scene, head in enumerate(asked):
            at = starts[scene] + step * np.arange(len(head[i]))
            assert torch.equal(head[i], still(tracks[scene, at].float()))
            assert (shown[scene] == 10 * (scene + 1) + i + 1).all()


def test_held_out_clips_are_never_drawn(encoded_shard: Path) -> None:
    make_shard(encoded_shard / "001")
    source = ClipSource(encoded_shard, "keyframes", ENCODERS, held_out=2)
    clips = source.batch(200, torch.Generator().manual_seed(0))
    latents = np.load(encoded_shard / "000" / "latents_keyframes.npy")
    # both shards hold the same numbers: of the first only scene 0 may be drawn
    assert len(source) == 4
    held_out = source.held_out()
    assert len(held_out) == 2
    for index, (clip, shown) in enumerate(held_out):
        assert np.array_equal(clip.latents[0], latents[1 + index, 0])
        assert np.array_equal(shown, np.load(encoded_shard / "000" / "keyframes.npy")[1 + index])
    (encoded_shard / "000" / "keyframes.npy").unlink()
    assert source.held_out() == []
    first = (clips.latents[:, 0, 0, 0, 0].numpy() == latents[0, :, 0, 0, 0, 0][:, None]).any(0)
    assert 0.3 < first.mean() < 0.7  # scene 0 of two shards, of four places


def test_new_shards_join(encoded_shard: Path) -> None:
    source = ClipSource(encoded_shard, "keyframes", ENCODERS)
    assert len(source) == 3
    make_shard(encoded_shard / "001")
    source.refresh()
    assert len(source) == 6


def test_without_a_finished_shard_there_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no encoded shard"):
        ClipSource(tmp_path, "runs", ENCODERS)


OPTIONS = TrainOptions(
    updates=4, batch_size=2, save_every=3, log_every=1, sample_every=0, precision="float32"
)


@pytest.mark.parametrize("stage", ["keyframes", "interpolation"])
@pytest.mark.parametrize("parameterization", ["v", "anchored"])
def test_unet_trains_and_the_run_is_a_checkpoint(
    stage: str, parameterization: str, encoded_shard: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, parameterization=parameterization)
    folder = tmp_path / "run"
    assert train_unet(stage, config, encoded_shard, folder, OPTIONS, DiffusionOptions()) == 4
    name = "keyframe_unet" if stage == "keyframes" else "interpolation_unet"
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify()
    assert checkpoint.config == config
    assert run.training_facts(folder)[name]["updates"] == 4
    assert ("interpolation_guide" in checkpoint.components) == (stage == "interpolation")
    log = (folder / f"{name}.csv").read_text().splitlines()
    assert len(log) == 5
    assert all(math.isfinite(float(value)) for value in log[-1].split(","))
    run.export(folder, tmp_path / "given", torch.float16, "a test")
    exported = Checkpoint.open(tmp_path / "given")
    assert next(exported.load(name).parameters()).dtype == torch.float16


def tensors(folder: Path, component: str) -> dict[str, Tensor]:
    return Checkpoint.open(folder).load(component).state_dict()


@pytest.mark.slow
def test_the_guide_is_the_run_at_a_sixteenth_of_its_updates(
    encoded_shard: Path, tmp_path: Path
) -> None:
    options = dataclasses.replace(OPTIONS, updates=16, save_every=10, batch_size=1)
    whole, again = tmp_path / "whole", tmp_path / "again"
    train_unet("interpolation", TINY, encoded_shard, whole, options, DiffusionOptions())
    assert run.training_facts(whole)["interpolation_guide"]["updates"] == 1
    assert run.training_facts(whole)["interpolation_unet"]["updates"] == 16
    assert train_unet("guide", TINY, encoded_shard, again, options, DiffusionOptions()) == 1
    alone = tensors(again, "interpolation_guide")
    final = tensors(whole, "interpolation_unet")
    for name, value in tensors(whole, "interpolation_guide").items():
        assert torch.equal(value, alone[name])
    assert any(not torch.equal(value, final[name]) for name, value in alone.items())
    # a run that is to keep its guide does
    keep = DiffusionOptions(guide_share=0.0)
    with pytest.raises(ConfigError, match="no guide is wanted"):
        train_unet("guide", TINY, encoded_shard, again, options, keep)
    longer = dataclasses.replace(options, updates=3)
    train_unet("interpolation", TINY, encoded_shard, again, longer, keep)
    assert run.training_facts(again)["interpolation_guide"]["updates"] == 1


def test_a_killed_unet_training_goes_on_exactly(encoded_shard: Path, tmp_path: Path) -> None:
    whole = dataclasses.replace(OPTIONS, updates=2, learning_rate=0.01)
    half = dataclasses.replace(whole, minutes=0.0)  # one update, then saved
    loss = DiffusionOptions()
    train_unet("keyframes", TINY, encoded_shard, tmp_path / "a", whole, loss)
    train_unet("keyframes", TINY, encoded_shard, tmp_path / "b", half, loss)
    train_unet("keyframes", TINY, encoded_shard, tmp_path / "b", whole, loss, resume=True)
    resumed = tensors(tmp_path / "b", "keyframe_unet")
    for name, value in tensors(tmp_path / "a", "keyframe_unet").items():
        assert torch.equal(value, resumed[name]), name


def test_frozen_layers_along_time_stay_and_the_rest_moves(
    encoded_shard: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    frozen = DiffusionOptions(freeze_temporal=True)
    options = dataclasses.replace(OPTIONS, learning_rate=0.01, ema_decay=0.0)
    with pytest.raises(ConfigError, match="they are random"):
        train_unet("keyframes", TINY, encoded_shard, tmp_path / "x", options, frozen)
    folder = tmp_path / "run"
    train_unet(
        "keyframes", TINY, encoded_shard, folder, options, frozen, start_from=tiny_checkpoint
    )
    before, after = (tensors(path, "keyframe_unet") for path in (tiny_checkpoint, folder))
    along_time = {name for name in before if not TEMPORAL.isdisjoint(name.split("."))}
    moved = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert along_time
    assert moved == set(before) - along_time
    assert {"time_embedding.linear_1.weight", "audio_projection.weight"} <= moved
    # what the run has not trained comes from the model: it can be used at once
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify()
    assert set(checkpoint.components) == set(Checkpoint.open(tiny_checkpoint).components)
    Checkpoint.open(tiny_checkpoint).verify()


def test_the_published_names_of_frozen_parameters_are_ours() -> None:
    # those whose published name contains "time_", but not time_embed
    unet = VideoUNet(**dataclasses.asdict(TINY.keyframe_unet))
    freeze_temporal_layers(unet)
    frozen = {name for name, p in unet.named_parameters() if not p.requires_grad}
    names = [name for name, _ in unet.named_parameters()]
    time = ("temporal_", "time_mixer", "time_pos_embed")
    assert frozen == {name for name in names if any(part in name for part in time)}
    assert not any("time_emb_proj" in n and "temporal" not in n for n in frozen)


def test_a_picture_of_one_frame_is_compared_through_the_vae(
    encoded_shard: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    loss = DiffusionOptions(pixel=1.0, held_out=1)
    options = dataclasses.replace(OPTIONS, updates=2, sample_every=2, checkpointing=True)
    folder = tmp_path / "run"
    train_unet("keyframes", TINY, encoded_shard, folder, options, loss, start_from=tiny_checkpoint)
    header, *_, last = (folder / "keyframe_unet.csv").read_text().splitlines()
    row = dict(zip(header.split(","), map(float, last.split(",")), strict=True))
    assert row["pixel"] > 0
    assert row["loss"] == pytest.approx(row["latent"] + row["pixel"], rel=1e-5)
    before, after = (tensors(path, "vae") for path in (tiny_checkpoint, folder))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    # a held-out clip is made: two rows of fourteen pictures, and its measures
    with Image.open(folder / "samples" / "keyframe_unet-000002.png") as strip:
        assert strip.size == (14 * 64, 2 * 64)
    samples = (folder / "keyframe_unet-samples.csv").read_text().splitlines()
    assert samples[0] == "update,lip_sync,psnr"
    assert -1 <= float(samples[1].split(",")[1]) <= 1
    asked = dataclasses.replace(loss, perceptual=1.0)
    with pytest.raises(ConfigError, match="perceptual loss needs the weights"):
        train_unet("keyframes", TINY, encoded_shard, folder, options, asked, force=True)
    asked = dataclasses.replace(asked, perceptual_weights="none.pth")
    with pytest.raises(ConfigError, match=r"no such file: none\.pth"):
        train_unet("keyframes", TINY, encoded_shard, folder, options, asked, force=True)


@pytest.mark.slow
def test_saving_memory_changes_no_gradient(encoded_shard: Path, tmp_path: Path) -> None:
    stage = "interpolation"
    weights = []
    for checkpointing in (False, True):
        options = dataclasses.replace(OPTIONS, updates=2, checkpointing=checkpointing)
        folder = tmp_path / str(checkpointing)
        train_unet(stage, TINY, encoded_shard, folder, options, DiffusionOptions())
        weights.append(tensors(folder, COMPONENTS[stage]))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name])


def test_one_stage_starts_from_the_other(encoded_shard: Path, tmp_path: Path) -> None:
    still = dataclasses.replace(OPTIONS, updates=1, learning_rate=0.0, muon_rate=0.0)
    loss = DiffusionOptions()
    short = dataclasses.replace(OPTIONS, updates=1)
    train_unet("keyframes", TINY, encoded_shard, tmp_path, short, loss)
    train_unet(
        "interpolation", TINY, encoded_shard, tmp_path, still, loss, start_from="keyframe_unet"
    )
    theirs = tensors(tmp_path, "keyframe_unet")
    ours = tensors(tmp_path, "interpolation_unet")
    assert torch.equal(ours["conv_in.weight"][:, :8], theirs["conv_in.weight"])
    assert not ours["conv_in.weight"][:, 8:].any()  # the mask
    name = "add_embedding.linear_1.weight"
    assert torch.equal(ours[name], theirs[name][:, -ours[name].shape[1] :])
    assert torch.equal(ours["conv_out.weight"], theirs["conv_out.weight"])


@pytest.mark.parametrize("stage", ["keyframes", "interpolation"])
def test_a_training_starts_from_stable_video_diffusion(stage: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    width = TINY.keyframe_unet.block_out_channels[0]
    unet = VideoUNet(**dataclasses.asdict(TINY.keyframe_unet)).state_dict()
    base = {name: t for name, t in unet.items() if not name.startswith("audio_projection.")}
    base["add_embedding.linear_1.weight"] = torch.zeros(4 * width, 3 * width)
    vae = build("vae", TINY)
    for name, tensors_of in (("unet", base), ("vae", vae.state_dict())):
        (tmp_path / "svd" / name).mkdir(parents=True)
        (tmp_path / "svd" / name / "config.json").write_text("{}")
        save_file(tensors_of, tmp_path / "svd" / name / "diffusion_pytorch_model.safetensors")
    network = VideoUNet(**dataclasses.asdict(TINY.unet(stage)))
    fresh = {name: t.clone() for name, t in network.state_dict().items()}
    component, folder = COMPONENTS[stage], tmp_path / "run"
    begin(network, component, TINY, folder, tmp_path / "svd", resume=False)
    own = {"add_embedding.linear_1.weight", "missing_frame", "conv_in.weight"}
    for name, tensor in network.state_dict().items():
        if name in own or name.startswith("audio_projection."):
            continue
        assert torch.equal(tensor, base[name]), name
    assert torch.equal(
        network.add_embedding.linear_1.weight, fresh["add_embedding.linear_1.weight"]
    )
    assert torch.equal(network.conv_in.weight[:, :8], base["conv_in.weight"])
    assert not network.conv_in.weight[:, 8:].any()
    copied = tensors(folder, "vae")
    assert all(torch.equal(tensor, copied[name]) for name, tensor in vae.state_dict().items())
    base["strange.weight"] = torch.zeros(1)
    save_file(base, tmp_path / "svd" / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightsError, match="another architecture"):
        begin(network, component, TINY, folder, tmp_path / "svd", resume=False)


def test_the_network_is_compiled_where_that_is_asked(
    encoded_shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    options = dataclasses.replace(OPTIONS, updates=1, compile=True)
    train_unet("keyframes", TINY, encoded_shard, tmp_path, options, DiffusionOptions())
    assert [type(module) for module in compiled] == [VideoUNet]


def test_a_run_refuses_another_configuration(tmp_path: Path, encoded_shard: Path) -> None:
    options = dataclasses.replace(OPTIONS, updates=1)
    train_unet("keyframes", TINY, encoded_shard, tmp_path, options, DiffusionOptions())
    other = dataclasses.replace(TINY, latent_scale=2.0)
    with pytest.raises(ConfigError, match="another configuration"):
        run.load_trained(tmp_path, "keyframe_unet", other)
    with pytest.raises(ConfigError, match="another configuration"):
        train_unet("interpolation", other, encoded_shard, tmp_path, options, DiffusionOptions())
    with pytest.raises(WeightsError, match="no vae yet"):
        run.load_trained(tmp_path, "vae", TINY)


def test_a_run_goes_on_with_other_sampling_defaults(tmp_path: Path, encoded_shard: Path) -> None:
    options = dataclasses.replace(OPTIONS, updates=1)
    train_unet("keyframes", TINY, encoded_shard, tmp_path, options, DiffusionOptions())
    presets = {"hasty": {"audio_guidance": 1.5}}
    sampling = dataclasses.replace(TINY.sampling, steps=3)
    other = dataclasses.replace(TINY, sampling=sampling, sampling_presets=presets)
    options = dataclasses.replace(options, updates=2)
    assert (
        train_unet(
            "keyframes", other, encoded_shard, tmp_path, options, DiffusionOptions(), resume=True
        )
        == 2
    )


def test_lip_sync_follows_the_main_motion_of_the_true_mouth() -> None:
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (64, 64, 3)).astype(np.float32) * 0.5
    opening = rng.uniform(0, 1, 14)

    def film(track: np.ndarray) -> np.ndarray:
        frames = np.repeat(still[None], 14, 0)
        frames[:, 40:48, 24:40] += 100 * track[:, None, None, None]
        return frames.astype(np.uint8)

    truth = film(opening)
    assert lip_sync(film(opening), truth) == pytest.approx(1, abs=1e-3)
    assert lip_sync(film(1 - opening), truth) == pytest.approx(-1, abs=1e-3)
    found = lip_sync(film(rng.uniform(0, 1, 14)), truth)
    assert found is not None
    assert abs(found) < 0.7
    assert lip_sync(film(np.zeros(14)), truth) == pytest.approx(0, abs=1e-3)
    assert lip_sync(truth, film(np.zeros(14))) is None
