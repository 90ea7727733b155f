"""Ratings from votes on pairs: Elo averaged over orders, and Bradley-Terry strengths.

Bradley-Terry (1952): A is preferred to B with probability 1 / (1 + exp(b - a)). Elo is the same
model fitted one vote after the other, so that its result depends on the order; the mean over
shuffles does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyface_cli.errors import KeyFaceError
from keyface_cli.files import read_rows
from keyface_cli.plotting import new_figure

Numbers = NDArray[np.float64]
ELO_SPREAD = 400.0  # points at which the better one is preferred ten times as often
_PRIOR = 0.01  # of a Gaussian on strengths: bounds those of methods that never lost


@dataclass(frozen=True)
class Vote:
    """One answer.

    Args:
        winner: the method that was preferred.
        loser: the other one.
        rater: who.
        pair: what was shown; the same for all raters who saw the same two clips.
    """

    winner: str
    loser: str
    rater: str = ""
    pair: str = ""


@dataclass(frozen=True)
class Scores:
    """What the votes say of methods, in the order of `methods`.

    Args:
        methods: from best to worst by Bradley-Terry.
        elo: mean over shuffles.
        strength: of Bradley-Terry, mean 0, in natural logarithms of odds.
        low: end of the strength's 95 % interval, by bootstrap over raters or votes.
        high: the other end.
        wins: [i][j]: how often i was preferred to j.
        votes: how many.
        raters: how many.
        agreement: Fleiss' kappa over pairs that several raters saw; None where there are none.
    """

    methods: list[str]
    elo: list[float]
    strength: list[float]
    low: list[float]
    high: list[float]
    wins: list[list[int]]
    votes: int
    raters: int
    agreement: float | None


def read_votes(path: Path) -> list[Vote]:
    """Read votes: a CSV file with winner and loser, and where known rater and pair.

    Rows of attention checks are left out, and so are raters who failed one of them.

    Raises:
        KeyFaceError: the file cannot be read, lacks a column or holds no votes.
    """
    header, rows = read_rows(path)
    if not {"winner", "loser"} <= set(header):
        raise KeyFaceError(f"{path}: needs the columns winner and loser")
    votes, inattentive = [], set()
    for line, row in rows:
        winner, loser, rater = (row.get(name, "") for name in ("winner", "loser", "rater"))
        if row.get("check"):
            if row["check"] != winner:
                inattentive.add(rater)
            continue
        if not winner or not loser or winner == loser:
            raise KeyFaceError(f"{path}:{line}: a vote needs a winner and another loser")
        votes.append(Vote(winner, loser, rater, row.get("pair", "")))
    kept = [vote for vote in votes if vote.rater not in inattentive]
    if not kept:
        why = "all raters failed an attention check" if votes else "it holds no votes"
        raise KeyFaceError(f"{path}: {why}")
    return kept


def elo(
    outcomes: NDArray[np.int64],
    count: int,
    k: float = 16.0,
    start: float = 1000.0,
    shuffles: int = 100,
    seed: int = 0,
) -> Numbers:
    """Return each method's mean rating over shuffled orders.

    Args:
        outcomes: (V, 2) winner and loser as indices.
        count: of methods.
        k: points at stake in a vote.
        start: everybody's first rating.
        shuffles: orders to average over.
        seed: of the orders.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(count)
    for _ in range(shuffles):
        ratings = [start] * count
        for winner, loser in outcomes[generator.permutation(len(outcomes))].tolist():
            expected = 1 / (1 + 10 ** ((ratings[loser] - ratings[winner]) / ELO_SPREAD))
            change = k * (1 - expected)
            ratings[winner] += change
            ratings[loser] -= change
        total += ratings
    return total / shuffles


def bradley_terry(wins: Numbers) -> Numbers:
    """Return the strengths (M,), mean 0, of greatest likelihood, under a weak prior.

    Args:
        wins: (M, M), how often the row was preferred to the column.
    """
    count = len(wins)
    strength = np.zeros(count)
    games = wins + wins.T
    for _ in range(100):  # Newton's steps; the likelihood is concave
        p = 1 / (1 + np.exp(strength[None] - strength[:, None]))  # row preferred to column
        gradient = (wins - games * p).sum(1) - _PRIOR * strength
        spread = games * p * (1 - p)
        hessian = np.diag(spread.sum(1) + _PRIOR) - spread
        step = np.linalg.solve(hessian, gradient)
        strength = strength + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    return np.asarray(strength - strength.mean())


def score(
    votes: Sequence[Vote],
    *,
    k: float = 16.0,
    start: float = 1000.0,
    shuffles: int = 100,
    resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """Rate the methods of votes; see `elo` for the options.

    The bootstrap draws raters where there are at least five, because one rater's votes are
    alike; else it draws votes.
    """
    names = sorted({name for vote in votes for name in (vote.winner, vote.loser)})
    place = {name: i for i, name in enumerate(names)}
    outcomes = np.array([(place[v.winner], place[v.loser]) for v in votes], np.int64)
    wins = _count(outcomes, len(names))
    strength = bradley_terry(wins)
    low, high = _interval(votes, outcomes, len(names), resamples, seed)
    ratings = elo(outcomes, len(names), k, start, shuffles, seed)
    order = np.argsort(-strength, kind="stable")
    return Scores(
        [names[i] for i in order],
        ratings[order].tolist(),
        strength[order].tolist(),
        low[order].tolist(),
        high[order].tolist(),
        wins[np.ix_(order, order)].astype(int).tolist(),
        len(votes),
        len({vote.rater for vote in votes}),
        agreement(votes),
    )


def agreement(votes: Sequence[Vote]) -> float | None:
    """Return Fleiss' kappa of pairs that two or more raters saw: 1 always agree, 0 by chance."""
    seen: dict[str, list[tuple[str, str]]] = {}
    for vote in votes:
        if vote.pair:
            seen.setdefault(vote.pair, []).append((vote.winner, vote.loser))
    shared = [answers for answers in seen.values() if len(answers) > 1]
    if not shared:
        return None
    agreed, pairs, first, total = 0, 0, 0, 0
    for answers in shared:
        reference = min(answers[0])  # one of the two methods, whichever won
        chosen = [winner == reference for winner, _ in answers]
        agreed += sum(a == b for a, b in combinations(chosen, 2))
        pairs += len(chosen) * (len(chosen) - 1) // 2
        first += sum(chosen)
        total += len(chosen)
    chance = (first / total) ** 2 + (1 - first / total) ** 2
    observed = agreed / pairs
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


def describe(scores: Scores) -> dict[str, Any]:
    """Return the scores as plain data, for JSON."""
    columns = ("elo", "strength", "low", "high")
    rows = [
        {"method": name} | {key: round(getattr(scores, key)[i], 4) for key in columns}
        for i, name in enumerate(scores.methods)
    ]
    return {
        "methods": rows,
        "wins": scores.wins,
        "votes": scores.votes,
        "raters": scores.raters,
        "agreement": None if scores.agreement is None else round(scores.agreement, 4),
    }


def markdown(scores: Scores) -> str:
    """Return the scores and the win matrix as Markdown."""
    lines = [
        "| method | Elo | Bradley-Terry [95 %] | "
        + " | ".join(f"beats {n}" for n in scores.methods)
        + " |"
    ]
    lines.append("|" + " --- |" * (3 + len(scores.methods)))
    for i, name in enumerate(scores.methods):
        interval = f"{scores.strength[i]:.2f} [{scores.low[i]:.2f}, {scores.high[i]:.2f}]"
        wins = " | ".join("" if i == j else str(n) for j, n in enumerate(scores.wins[i]))
        lines.append(f"| {name} | {scores.elo[i]:.0f} | {interval} | {wins} |")
    kappa = (
        "" if scores.agreement is None else f", agreement (Fleiss' kappa) {scores.agreement:.2f}"
    )
    lines.append(f"\n{scores.votes} votes of {scores.raters} raters{kappa}")
    return "\n".join(lines) + "\n"


def plot(scores: Scores, path: Path) -> None:
    """Draw the strengths with their intervals."""
    figure = new_figure(5, 1 + 0.4 * len(scores.methods))
    axes = figure.subplots()
    places = np.arange(len(scores.methods))[::-1]
    strength = np.array(scores.strength)
    ends = np.abs(np.array([scores.low, scores.high]) - strength)
    axes.errorbar(strength, places, xerr=ends, fmt="o", capsize=3)
    axes.set_yticks(places, scores.methods)
    axes.set_xlabel("Bradley-Terry strength (95 % interval)")
    figure.savefig(path, dpi=120)


def _count(outcomes: NDArray[np.int64], count: int) -> Numbers:
    wins = np.zeros((count, count))
    np.add.at(wins, (outcomes[:, 0], outcomes[:, 1]), 1)
    return wins


def _interval(
    votes: Sequence[Vote], outcomes: NDArray[np.int64], count: int, resamples: int, seed: int
) -> tuple[Numbers, Numbers]:
    raters = sorted({vote.rater for vote in votes})
    if len(raters) >= 5:
        own = {rater: i for i, rater in enumerate(raters)}
        groups = np.array([own[vote.rater] for vote in votes])
    else:
        groups = np.arange(len(votes))
    members = int(groups.max()) + 1
    tables = np.stack([_count(outcomes[groups == g], count) for g in range(members)])
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        weights = np.bincount(generator.integers(0, members, members), minlength=members)
        drawn.append(bradley_terry(np.tensordot(weights, tables, 1)))
    low, high = np.quantile(np.stack(drawn), (0.025, 0.975), axis=0)
    return low, high
