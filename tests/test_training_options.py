"""The options of `keyface train`: recipes, files, the command line's NAME=VALUE."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from keyface_cli.errors import ConfigError
from keyface_cli.training.options import (
    FIELDS,
    RECIPES,
    DiffusionOptions,
    TrainOptions,
    choose,
    parse,
    read_toml,
    write_toml,
)


def test_the_paper_recipe_is_the_published_one() -> None:
    train = choose(TrainOptions, RECIPES["paper"]["keyframes"])
    assert (train.learning_rate, train.schedule, train.warmup) == (1e-5, "constant", 1000)
    assert (train.muon_rate, train.beta2, train.weight_decay) == (0.0, 0.999, 0.01)
    assert (train.batch_size, train.checkpointing) == (1, True)
    loss = choose(DiffusionOptions, RECIPES["paper"]["keyframes"])
    assert (loss.log_sigma_mean, loss.log_sigma_std) == (1.0, 1.2)
    assert (loss.lower_half, loss.pixel, loss.perceptual) == (3.0, 1.0, 1.0)
    assert (loss.drop_identity, loss.drop_audio, loss.freeze_temporal) == (0.1, 0.2, True)
    assert (loss.wide_sigmas, loss.weight_limit, loss.mouth) == (0.0, math.inf, 1.0)
    between = choose(DiffusionOptions, RECIPES["paper"]["interpolation"])
    assert (between.lower_half, between.pixel, between.perceptual) == (2.0, 0.0, 0.0)
    assert between.guide_share == 1 / 16


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("table", RECIPES["paper"])
def test_recipes_hold_no_unknown_option(recipe: str, table: str) -> None:
    assert set(RECIPES[recipe][table]) <= set(FIELDS)
    choose(TrainOptions, RECIPES[recipe][table])
    choose(DiffusionOptions, RECIPES[recipe][table])


def test_files_give_back_what_was_written(tmp_path: Path) -> None:
    train = TrainOptions(updates=7, minutes=math.inf, learning_rate=1e-5, compile=True)
    loss = DiffusionOptions(perceptual_weights='a "b"\\ä.pth', weight_limit=math.inf)
    path = tmp_path / "run" / "options" / "keyframes.toml"
    write_toml(path, "keyframes", train, loss)
    values = read_toml(path, "keyframes")
    assert choose(TrainOptions, values) == train
    assert choose(DiffusionOptions, values) == loss
    assert read_toml(path, "vae") == {}
    assert [file.name for file in path.parent.iterdir()] == ["keyframes.toml"]


def test_later_layers_win() -> None:
    train = choose(TrainOptions, {"updates": 5, "seed": 1}, {"updates": 6, "mouth": 2.0})
    assert (train.updates, train.seed) == (6, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("updates=50", ("updates", 50)),
        ("learning_rate = 1e-4", ("learning_rate", 1e-4)),
        ("mouth=4", ("mouth", 4.0)),
        ("minutes=inf", ("minutes", math.inf)),
        ("compile=true", ("compile", True)),
        ("schedule=cosine", ("schedule", "cosine")),
        ("perceptual_weights=/a b/c=d.pth", ("perceptual_weights", "/a b/c=d.pth")),
    ],
)
def test_options_of_the_command_line(text: str, expected: tuple[str, object]) -> None:
    assert parse(text) == expected
    assert type(parse(text)[1]) is type(expected[1])


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("updates", "not NAME=VALUE: updates", None),
        ("update=5", "unknown option: update", "did you mean updates?"),
        ("updates=many", "updates: expected int, found 'many'", None),
        ("updates=0.5", "updates: expected int, found 0.5", None),
        ("updates=0", "updates must be from 1 to", None),
        ("updates=true", "updates: expected int, found True", None),
        ("learning_rate=nan", "learning_rate must be from 0 to 1: nan", None),
        ("drop_audio=1.5", "drop_audio must be from 0 to 1", None),
        ("schedule=linear", "schedule: linear", "use constant, cosine"),
        ("compile=1", "compile: expected bool, found 1", None),
    ],
)
def test_wrong_options_are_named(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        choose(TrainOptions, dict([parse(text)]))
    assert hint is None or caught.value.hint == hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[keyframes", "cannot read options"),
        ("[keyframe]\nupdates = 5", "not a table of options: keyframe"),
        ("updates = 5", "not a table of options: updates"),
        ("[vae]\nupdate = 5", "unknown option: update"),
        ("[vae]\nupdates = '5'", "updates: expected int"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "o.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_toml(path, "keyframes")
    assert str(path) in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read options"):
        read_toml(tmp_path / "none.toml", "vae")


def test_every_option_has_a_type_that_toml_knows() -> None:
    assert set(FIELDS.values()) <= {bool, int, float, str}
    names = [
        field.name for cls in (TrainOptions, DiffusionOptions) for field in dataclasses.fields(cls)
    ]
    assert len(names) == len(set(names))
