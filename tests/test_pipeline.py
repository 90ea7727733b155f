"""The stream of frames: exact lengths, the same frames for the same seed, and every refusal."""

from __future__ import annotations

import dataclasses
import gc
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from keyface_cli import KeyFacePipeline, device
from keyface_cli import pipeline as pipelines
from keyface_cli.checkpoints.checkpoint import Checkpoint, build, needed_components
from keyface_cli.checkpoints.writing import save_component, write_manifest
from keyface_cli.config import MOTION, SamplingConfig
from keyface_cli.errors import ConfigError, DeviceError, WeightsError
from keyface_cli.models import speech
from keyface_cli.models.unet import VideoUNet
from keyface_cli.options import GenerationOptions
from keyface_cli.stages.interpolation import InterpolationStage
from keyface_cli.stages.keyframes import KeyframeStage
from keyface_cli.stages.motion import Motion

FAST = GenerationOptions(steps=1, audio_guidance=1, identity_guidance=1, autoguidance=1)


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> KeyFacePipeline:
    return KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32")


@pytest.fixture(scope="module")
def lively(lively_checkpoint: Path) -> KeyFacePipeline:
    return KeyFacePipeline.load(lively_checkpoint, "cpu", "float32")


def inputs(num_frames: int) -> tuple[NDArray[np.float32], ...]:
    """A portrait, sound that ends inside the last frame, and a changing emotion."""
    random = np.random.default_rng(num_frames)
    portrait = random.uniform(-1, 1, (3, 64, 64)).astype(np.float32)
    waveform = random.normal(0, 0.1, 640 * num_frames - 100).astype(np.float32)
    emotion = np.linspace((-1, 0), (1, 0.5), num_frames, dtype=np.float32)
    return portrait, waveform, emotion


def make(
    tiny: KeyFacePipeline, num_frames: int, options: GenerationOptions | None = None, **more: Any
) -> NDArray[np.uint8]:
    return np.concatenate(list(tiny.stream(*inputs(num_frames), options, **more)))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    error = np.mean((a.astype(float) - b) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("num_frames", [1, 2, 5, 13, 14, 15, 27, 28])
def test_every_length_has_exactly_its_frames(tiny: KeyFacePipeline, num_frames: int) -> None:
    frames = make(tiny, num_frames, FAST)
    assert frames.shape == (num_frames, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert frames.std() > 0


def test_model_defaults_run_all_networks(tiny: KeyFacePipeline) -> None:
    assert tiny.config.sampling == SamplingConfig(2, "ays", 5.0, 2.0, 2.0)
    guided = make(tiny, 3)
    assert tiny.engine.guide is not None
    assert not np.array_equal(guided, make(tiny, 3, GenerationOptions(autoguidance=1)))


def test_same_seed_same_frames_and_another_seed_others(tiny: KeyFacePipeline) -> None:
    first = make(tiny, 15, FAST)
    assert np.array_equal(first, make(tiny, 15, FAST))
    assert not np.array_equal(first, make(tiny, 15, dataclasses.replace(FAST, seed=1)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunk_size_changes_rounding_only(tiny_checkpoint: Path, dtype: str) -> None:
    loaded = KeyFacePipeline.load(tiny_checkpoint, "cpu", dtype)
    options = GenerationOptions(steps=2, autoguidance=1, chunk=1)
    single = make(loaded, 41, options)
    for chunk in (3, 50):
        together = make(loaded, 41, dataclasses.replace(options, chunk=chunk))
        assert psnr(single, together) >= 55


class Store:
    """Keyframes in a dictionary."""

    def __init__(self) -> None:
        self.clips: dict[int, torch.Tensor] = {}

    def get(self, clip: int) -> torch.Tensor | None:
        return self.clips.get(clip)

    def put(self, clip: int, latents: torch.Tensor) -> None:
        assert latents.device.type == "cpu"
        self.clips[clip] = latents.clone()


@pytest.mark.parametrize("first", [1, 13, 26, 27, 51, 52, 53, 64, 65])
def test_stream_that_begins_in_the_middle_gives_the_same_bits(
    tiny: KeyFacePipeline, lively: KeyFacePipeline, first: int
) -> None:
    options = dataclasses.replace(FAST, chunk=2)
    for pipeline in (tiny, lively):
        whole = make(pipeline, 66, options)
        assert np.array_equal(make(pipeline, 66, options, first_frame=first), whole[first:])
    with pytest.raises(ValueError, match="no frame 66 in a video of 66"):
        make(tiny, 66, options, first_frame=66)


def test_keyframes_that_were_kept_are_not_made_again(
    tiny: KeyFacePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, count = Store(), 13 * 14 + 1  # 15 keyframes: two clips
    whole = make(tiny, count, FAST, store=store)
    assert {clip: tuple(kept.shape) for clip, kept in store.clips.items()} == {
        0: (13, 4, 8, 8),
        1: (2, 4, 8, 8),
    }
    monkeypatch.setattr(KeyframeStage, "sample", None)
    assert np.array_equal(make(tiny, count, FAST, store=store), whole)
    unguided = dataclasses.replace(FAST, autoguidance=None)  # and the guide is not needed
    pictures = dict(tiny.keyframes(*inputs(count), unguided, store=store))
    assert list(pictures) == list(range(0, count, 13))
    # the first picture of a video is its first keyframe, sampled again by stage two
    assert all(picture.shape == (64, 64, 3) for picture in pictures.values())
    del store.clips[1]
    with pytest.raises(TypeError):
        make(tiny, count, FAST, store=store)


def test_sound_is_read_in_slices(tiny: KeyFacePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "CORE_FRAMES", 40)
    monkeypatch.setattr(speech, "CONTEXT_FRAMES", 20)
    monkeypatch.setattr(speech, "WINDOW_FRAMES", 80)
    portrait, waveform, emotion = inputs(150)
    longest = 0

    class Slices:
        def __len__(self) -> int:
            return len(waveform)

        def __getitem__(self, where: slice) -> NDArray[np.float32]:
            nonlocal longest
            longest = max(longest, len(waveform[where]))
            return waveform[where]

    options = dataclasses.replace(FAST, chunk=1)
    sliced = np.concatenate(list(tiny.stream(portrait, Slices(), emotion, options)))
    assert np.array_equal(sliced, make(tiny, 150, options))
    assert np.array_equal(make(tiny, 150, options, first_frame=117), sliced[117:])
    assert 0 < longest <= 81 * 640


def test_each_input_changes_the_frames(tiny: KeyFacePipeline) -> None:
    options = GenerationOptions(steps=2, autoguidance=1)
    given = inputs(14)
    before = np.concatenate(list(tiny.stream(*given, options)))
    for which in range(3):
        changed = list(given)
        changed[which] = given[which][::-1]
        after = np.concatenate(list(tiny.stream(*changed, options)))
        assert not np.array_equal(before, after)


def test_keyframes_are_made_when_they_are_needed(tiny: KeyFacePipeline) -> None:
    made = []

    def watch(stage: str, done: int, total: int) -> None:
        if stage == "keyframes":
            made.append((done, total))

    options = dataclasses.replace(FAST, chunk=1)
    frames = tiny.stream(*inputs(13 * 13 + 1), options, watch)  # 14 keyframes, two clips
    for _ in range(12):
        next(frames)
    assert made == [(13, 14)]
    next(frames)
    assert made == [(13, 14), (14, 14)]


def test_progress_of_each_stage_rises_to_its_total(tiny: KeyFacePipeline) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def watch(stage: str, done: int, total: int) -> None:
        told.setdefault(stage, []).append((done, total))

    make(tiny, 30, GenerationOptions(steps=3, autoguidance=1), progress=watch)
    assert list(told) == ["audio", "keyframes", "interpolation", "decode"]
    for stage, calls in told.items():
        counts = [done for done, _ in calls]
        assert counts == sorted(counts)
        assert {total for _, total in calls} == {4 if stage == "keyframes" else 30}
        assert counts[-1] == calls[-1][1]


def test_timings_are_of_the_last_stream(tiny: KeyFacePipeline) -> None:
    loading = tiny.timings["load"]
    for _ in range(2):
        make(tiny, 1, FAST)
        assert set(tiny.timings) == {"load", "audio", "keyframes", "interpolation", "decode"}
        assert all(seconds > 0 for seconds in tiny.timings.values())
    assert tiny.timings["load"] == loading


def test_inference_mode_stays_inside(tiny: KeyFacePipeline) -> None:
    frames = tiny.stream(*inputs(15), FAST)
    next(frames)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_pixels_are_cut_and_not_rounded(
    tiny: KeyFacePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, expected in ((0.999 / 127.5 - 1, 0), (254.9 / 127.5 - 1, 254), (1.5, 255), (-2, 0)):
        decoded = torch.full((1, 3, 64, 64), value)
        monkeypatch.setattr(
            tiny.engine.codec,
            "decode",
            lambda latents, decoded=decoded: decoded.expand(len(latents), -1, -1, -1),
        )
        assert set(make(tiny, 1, FAST).flat) == {expected}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("chunk", 0),
        ("audio_guidance", -1.0),
        ("identity_guidance", float("nan")),
        ("autoguidance", float("inf")),
        ("liveliness", -0.1),
        ("liveliness", 1.5),
        ("emotion_guidance", -1.0),
    ],
)
def test_options_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must be between [01] and \d+: {value}"):
        dataclasses.replace(FAST, **{name: value})


def test_emotion_guidance_magnifies_an_emotion_and_leaves_a_neutral_face(
    tiny: KeyFacePipeline,
) -> None:
    portrait, waveform, emotion = inputs(15)
    guided = dataclasses.replace(FAST, emotion_guidance=3)

    def frames(curve: NDArray[np.float32], options: GenerationOptions) -> NDArray[np.uint8]:
        return np.concatenate(list(tiny.stream(portrait, waveform, curve, options)))

    assert not np.array_equal(frames(emotion, guided), frames(emotion, FAST))
    assert np.array_equal(frames(0 * emotion, guided), frames(0 * emotion, FAST))
    # a scale of 0 shows the neutral face, whatever is asked for
    off = dataclasses.replace(FAST, emotion_guidance=0)
    assert psnr(frames(emotion, off), frames(0 * emotion, FAST)) >= 55


def test_head_and_lids_move_as_the_seed_or_the_caller_says(lively: KeyFacePipeline) -> None:
    given = inputs(30)

    def frames(
        options: GenerationOptions, motion: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        return np.concatenate(list(lively.stream(*given, options, motion=motion)))

    still = dataclasses.replace(FAST, liveliness=0.0)
    unmoved = np.zeros((30, len(MOTION)), np.float32)
    assert np.array_equal(frames(still), frames(FAST, unmoved))
    assert not np.array_equal(frames(FAST), frames(still))
    drawn = Motion(given[1], 30, FAST.seed).frames(0, 30)
    assert np.array_equal(frames(FAST), frames(FAST, drawn))
    turned = unmoved.copy()
    turned[20:, MOTION.index("yaw")] = 0.5
    changed = (frames(FAST, turned) != frames(still)).any((1, 2, 3))
    assert changed[20:].all()
    assert not changed[:20].any()


def test_a_keyframe_moves_as_its_frame_of_the_video(lively: KeyFacePipeline) -> None:
    given = inputs(40)
    moved = dict(lively.keyframes(*given, FAST))
    still = dict(lively.keyframes(*given, dataclasses.replace(FAST, liveliness=0.0)))
    drawn = Motion(given[1], 40, FAST.seed).frames(0, 40)
    for frame in (0, 13, 26, 39):
        assert np.array_equal(moved[frame], still[frame]) == (not drawn[frame].any())


def test_a_portrait_decoder_runs_at_every_level_of_memory(lively_checkpoint: Path) -> None:
    expected = make(KeyFacePipeline.load(lively_checkpoint, "cpu", "float32"), 30, FAST)
    for memory in ("balanced", "low"):
        loaded = KeyFacePipeline.load(lively_checkpoint, "cpu", "float32", memory=memory)
        assert psnr(make(loaded, 30, FAST), expected) >= 55


def test_arrays_of_other_shapes(tiny: KeyFacePipeline) -> None:
    portrait, waveform, emotion = inputs(2)
    with pytest.raises(ValueError, match=r"portrait has shape \(3, 64, 63\), not \(3, 64, 64\)"):
        tiny.stream(portrait[..., 1:], waveform, emotion)
    with pytest.raises(ValueError, match="waveform has shape"):
        tiny.stream(portrait, waveform[None], emotion)
    with pytest.raises(ValueError, match=r"emotion has shape \(1, 2\), not \(2, 2\)"):
        tiny.stream(portrait, waveform, emotion[1:])
    with pytest.raises(ValueError, match="at least one frame"):
        tiny.stream(portrait, waveform[:0], emotion[:0])
    with pytest.raises(ValueError, match=r"motion has shape \(2, 8\), not \(2, 0\)"):
        tiny.stream(portrait, waveform, emotion, motion=np.zeros((2, 8), np.float32))


def test_guide_is_loaded_only_when_it_guides(tiny_checkpoint: Path) -> None:
    loaded = KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32")
    make(loaded, 1, FAST)
    assert loaded.engine.guide is None
    before = loaded.timings["load"]
    make(loaded, 1, dataclasses.replace(FAST, autoguidance=1.5))
    assert loaded.engine.guide is not None
    assert loaded.timings["load"] > before


def test_a_guide_that_does_not_fit_waits_in_main_memory(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32", memory="high")
    monkeypatch.setattr(loaded.engine, "device", torch.device("cuda"))
    load = pipelines.load_networks

    def full(checkpoint: Checkpoint, names: Any, place: torch.device, formats: Any) -> Any:
        if place.type == "cuda":
            raise DeviceError("not enough memory on cuda")
        return load(checkpoint, names, place, formats)

    monkeypatch.setattr(pipelines, "load_networks", full)
    loaded._load_guide()
    assert loaded.memory == "balanced"
    assert loaded.engine.residency.networks["interpolation_guide"] is loaded.engine.guide
    assert "out of memory, continuing with --memory balanced" in caplog.text


def test_model_without_a_guide(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for part in tiny_checkpoint.iterdir():
        if part.name != "interpolation_guide":
            (tmp_path / part.name).symlink_to(part)
    opened = Checkpoint.open(tiny_checkpoint)
    loaded = KeyFacePipeline.load(dataclasses.replace(opened, folder=tmp_path), "cpu", "float32")
    assert len(make(loaded, 1, FAST)) == 1
    with pytest.raises(WeightsError, match="the model has no interpolation_guide") as error:
        loaded.stream(*inputs(1))
    assert error.value.hint is not None
    assert error.value.hint.startswith("use --autoguidance 1: without a guide the keyframes'")
    assert f"{opened.config.sampling.audio_guidance:g} by this model's default" in error.value.hint


def test_anchored_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    opened = Checkpoint.open(tiny_checkpoint)
    config = dataclasses.replace(opened.config, parameterization="anchored")
    torch.manual_seed(0)
    for name in needed_components(config, guide=False):
        module = build(name, config)
        if isinstance(module, VideoUNet):
            module.zero_output_layers()
            module.conv_out.bias.data[4:] = -100.0  # shut
        save_component(tmp_path, name, module)
    write_manifest(tmp_path, config)
    loaded = KeyFacePipeline.load(tmp_path, "cpu", "float32")
    unguided = dataclasses.replace(FAST, steps=2)
    frames = make(loaded, 30, unguided)
    # networks that answer nothing leave every frame as the portrait that the VAE returns
    assert np.abs(frames.astype(int) - frames[:1]).max() <= 1
    plain = KeyFacePipeline.load(opened, "cpu", "float32")
    moving = make(plain, 30, unguided)
    assert np.abs(moving.astype(int) - moving[:1]).max() > 1


def test_audio_encoders_stay_in_float32(tiny_checkpoint: Path) -> None:
    loaded = KeyFacePipeline.load(tiny_checkpoint, "cpu", "bfloat16")
    assert next(loaded.engine.keyframe_unet.parameters()).dtype == torch.bfloat16
    assert set(loaded.engine.encoders) == {"wavlm", "wav2vec2", "beats"}
    for encoder in loaded.engine.encoders.values():
        assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_model_that_does_not_fit(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_memory", lambda _: 1_000_000)
    with pytest.raises(DeviceError, match="not enough memory on cpu: the model needs"):
        KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32")


def test_memory_that_runs_out_on_the_way(
    tiny: KeyFacePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(InterpolationStage, "sample", fail)
    with pytest.raises(DeviceError, match="not enough memory on cpu"):
        make(tiny, 1, FAST)


@pytest.mark.parametrize("N", [1, 2, 13, 14, 15, 27, 40])
def test_no_picture_past_the_end_is_decoded(
    tiny: KeyFacePipeline, monkeypatch: pytest.MonkeyPatch, N: int
) -> None:
    decoded: list[int] = []
    codec, decode = tiny.engine.codec, tiny.engine.codec.decode
    monkeypatch.setattr(codec, "decode", lambda z: (decoded.append(len(z)), decode(z))[1])
    make(tiny, N, FAST)
    shared = max(0, (N - 2) // 13)  # a frame where two segments meet is decoded for both
    assert sum(decoded) == N + shared


def test_networks_are_compiled_where_that_is_asked_for(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []

    def compile_it(network: VideoUNet, *, dynamic: bool) -> None:
        assert not dynamic
        compiled.append(network)

    monkeypatch.setattr(VideoUNet, "compile", compile_it)
    KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32")
    assert compiled == []
    pipeline = KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32", compile=True)
    make(pipeline, 1, dataclasses.replace(FAST, autoguidance=2.0))
    engine = pipeline.engine
    assert compiled == [engine.keyframe_unet, engine.interpolation_unet, engine.guide]


def test_compiled_networks_are_always_asked_for_the_same_size(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32")
    sizes: list[int] = []
    sample = InterpolationStage.sample

    def watch(stage: InterpolationStage, keyframes: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(keyframes))
        return sample(stage, keyframes, *rest)

    monkeypatch.setattr(InterpolationStage, "sample", watch)
    options = dataclasses.replace(FAST, chunk=3)
    plain = make(tiny, 66, options)  # six segments less one: the last chunk has two
    assert sizes == [3, 2]
    monkeypatch.setattr(tiny.engine, "compiled", True)
    assert psnr(make(tiny, 66, options), plain) >= 55
    assert sizes == [3, 2, 3, 3]


def test_a_gpu_s_times_are_read_when_it_has_them(
    tiny: KeyFacePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    over: list[bool] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None: ...

        def query(self) -> bool:
            return bool(over)

        def synchronize(self) -> None:
            over.append(True)

        def elapsed_time(self, end: Event) -> float:
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    engine = tiny.engine
    before = dict(engine.timings)
    with monkeypatch.context() as as_if:
        as_if.setattr(engine, "device", torch.device("cuda"))
        for _ in range(2):
            with engine.timed("decode"):
                pass
        assert not over  # nobody has waited
    assert engine.timings["decode"] == pytest.approx(before["decode"] + 0.5)
    assert over


def held() -> int:
    """Bytes of all tensors that are alive; what only waits for the collector is not."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.slow
def test_memory_does_not_grow_as_frames_come(tiny: KeyFacePipeline) -> None:
    frames = tiny.stream(*inputs(10 * 13 + 1), dataclasses.replace(FAST, chunk=1))
    before = [held() for _ in frames]
    assert len(before) == 11
    # the first has no frame to be merged with; the last holds no segment
    assert len(set(before[1:-1])) == 1


def test_a_preset_is_its_numbers(tiny: KeyFacePipeline) -> None:
    draft = GenerationOptions(preset="draft")
    found = draft.sampling(tiny.config)
    assert (found.steps, found.autoguidance, found.audio_guidance) == (3, 1.0, 5.0)
    assert found.guidance_interval == (0.5, 20.0)
    assert GenerationOptions(preset="draft", steps=5).sampling(tiny.config).steps == 5
    frames = make(tiny, 15, draft)
    assert not np.array_equal(frames, make(tiny, 15))
    named = dataclasses.replace(tiny.config, sampling_presets={"fast": {"steps": 7}})
    assert GenerationOptions(preset="fast").sampling(named).steps == 7
    with pytest.raises(ConfigError, match="tiny has no preset draft") as error:
        draft.sampling(named)
    assert error.value.hint == "it has exact, fast"
    damaged = dataclasses.replace(tiny.config, sampling_presets={"fast": {"step": 7}})
    with pytest.raises(ConfigError, match="preset fast: unknown key: step"):
        GenerationOptions(preset="fast").sampling(damaged)


def test_a_folder_that_names_no_presets_has_those_of_its_architecture(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    manifest = json.loads((tiny_checkpoint / "keyface.json").read_text())
    named = manifest["config"].pop("sampling_presets")
    assert named
    (tmp_path / "keyface.json").write_text(json.dumps(manifest))
    assert Checkpoint.open(tmp_path, check_files=False).config.sampling_presets == named


def test_a_preset_decodes_in_half_precision(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = KeyFacePipeline.load(tiny_checkpoint, "cpu", "bfloat16", vae_dtype="float32")
    seen: list[torch.dtype] = []
    first = cast(torch.nn.Module, loaded.engine.codec.vae.decoder.conv_in)
    first.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    options = GenerationOptions(steps=2, autoguidance=1)
    exact = make(loaded, 5, options)
    assert set(seen) == {torch.float32}
    seen.clear()
    config = dataclasses.replace(loaded.config, sampling_presets={"fast": {"half_vae": True}})
    monkeypatch.setattr(loaded, "config", config)
    monkeypatch.setattr(loaded.engine, "config", config)
    half = make(loaded, 5, dataclasses.replace(options, preset="fast"))
    assert set(seen) == {torch.bfloat16}
    assert 30 <= psnr(exact, half) < 100


@pytest.mark.parametrize(
    ("first", "last"), [(0, 1), (0, 13), (0, 26), (26, 52), (20, 41), (52, 66)]
)
def test_a_stretch_of_a_video_is_cut_out_of_it(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, first: int, last: int
) -> None:
    tiny = KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32")
    whole = make(tiny, 66, FAST)  # two segments a chunk
    decoded: list[int] = []
    codec, decode = tiny.engine.codec, tiny.engine.codec.decode
    monkeypatch.setattr(codec, "decode", lambda z: (decoded.append(len(z)), decode(z))[1])
    part = make(tiny, 66, FAST, first_frame=first, last_frame=last)
    assert np.array_equal(part, whole[first:last])
    assert sum(decoded) <= 14 * (-(-last // 13) - max(0, first - 1) // 13)
