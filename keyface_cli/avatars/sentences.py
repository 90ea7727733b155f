"""What the voices say: hand-written everyday sentences and a grammar that makes many more.

The held-out sentences are hand-written, and neither list nor grammar of training contains one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

import torch

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
TRAINING_SENTENCES = tuple(_TABLES["training"].splitlines())
HELD_OUT_SENTENCES = tuple(_TABLES["held_out"].splitlines())
_CHOICES = _TABLES["grammar"]


def compose(generator: torch.Generator) -> str:
    """Make one sentence with the grammar: grammatical as a rule, sensible by luck."""
    sentence = _expand("{sentence}", generator)
    return sentence[0].upper() + sentence[1:]


def draw_sentence(generator: torch.Generator, held_out: bool = False, language: str = "en") -> str:
    """Draw a sentence: a held-out one, or else a third hand-written and two thirds composed.

    Other languages than English have hand-written sentences only, the same for both sides: there
    whole languages are held out.
    """
    if language != "en":
        return _pick(_TABLES["foreign"][language].splitlines(), generator)
    if held_out:
        return _pick(HELD_OUT_SENTENCES, generator)
    if int(torch.randint(3, (), generator=generator)) == 0:
        return _pick(TRAINING_SENTENCES, generator)
    return compose(generator)


def _expand(template: str, generator: torch.Generator) -> str:
    head, brace, rest = template.partition("{")
    if not brace:
        return template
    symbol, _, tail = rest.partition("}")
    chosen = _expand(_pick(_CHOICES[symbol], generator), generator)
    return head + chosen + _expand(tail, generator)


def _pick(choices: Sequence[str], generator: torch.Generator) -> str:
    return choices[int(torch.randint(len(choices), (), generator=generator))]
