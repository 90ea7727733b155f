"""The report of `keyface evaluate avatars`: tables, a contact sheet, plots, the worst clips."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keyface_cli.evaluation.avatars.measure import (
    FIGURES,
    ClipResult,
    of_truth,
    spread,
    strip,
    summarise,
    write_csv,
)
from keyface_cli.evaluation.avatars.vocal import Recognition
from keyface_cli.evaluation.avatars.voiceless import SoundResult
from keyface_cli.files import csv_text, plain, write_text
from keyface_cli.plotting import new_figure

SHEET_CLIPS, WORST = 12, 5
THUMB = 96  # height of a frame on the contact sheet
BINS = 20


class Report:
    """Gathers the figures of clips and writes them as files.

    Args:
        folder: to write into, made where it is missing; None keeps the figures only.
        reader_accuracy: R^2 of the reader, by control.
    """

    def __init__(self, folder: Path | None, reader_accuracy: dict[str, float]) -> None:
        self.folder = folder
        self.reader_accuracy = reader_accuracy
        self.results: list[ClipResult] = []
        self.recognitions: list[Recognition] = []
        self.sounds: list[SoundResult] = []
        self._sheet: list[NDArray[np.uint8]] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def keep(self, result: ClipResult, frames: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Take in a clip; its frames are drawn and dropped."""
        self.results.append(result)
        if self.folder is None:
            return
        both = Image.fromarray(np.concatenate([strip(frames), strip(truth)]))
        both.save(self.folder / f"{result.index:03d}.png")
        if len(self._sheet) < SHEET_CLIPS:
            self._sheet.append(
                np.asarray(both.resize((both.width * 2 * THUMB // both.height, 2 * THUMB)))
            )

    def summary(self) -> dict[str, dict[str, float]]:
        """Return {median, mean, low10, n} of each figure that any clip has."""
        summary = summarise(self.results)
        right: dict[str, list[bool]] = {}
        for clip in self.recognitions:
            right.setdefault(clip.kind, []).append(clip.generated == clip.kind)
        if right:
            # a clip is right or wrong: the share of all is the mean, not the median of classes
            summary["nsv_accuracy"] = spread([float(np.mean(of)) for of in right.values()]) | {
                "mean": self.recognition_shares()["generated"],
                "n": len(self.recognitions),
            }
        return summary

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values: figures at the top level, then what they are from."""
        return {
            **self.summary(),
            "truth": of_truth(self.results),
            "nsv": self.recognition_shares(),
            "sounds": self.openings(),
            "reader_r2": self.reader_accuracy,
            # the clips to look at first
            "worst": [one.index for one in sorted(self.results, key=lambda r: r.lip_sync)[:WORST]],
            "clips": [plain(asdict(result)) for result in self.results],
            "vocal_clips": [asdict(recognition) for recognition in self.recognitions],
        }

    def openings(self) -> dict[str, dict[str, float]]:
        """Return how far the mouth is seen open under each sound without a voice.

        Returns:
            For each sound "opening" and "of_truth", of generated frames and of the head at rest;
            "over_speech" and "truth_over_speech", both over the opening in speech; "n" clips.
        """
        speech = np.mean([result.opening for result in self.results]) if self.results else 0.0
        found = {}
        for kind in dict.fromkeys(sound.kind for sound in self.sounds):
            of_kind = [sound for sound in self.sounds if sound.kind == kind]
            opening = float(np.mean([sound.opening for sound in of_kind]))
            truth = float(np.mean([sound.of_truth for sound in of_kind]))
            found[kind] = {
                "opening": opening,
                "of_truth": truth,
                "over_speech": opening / max(float(speech), 1e-6),
                "truth_over_speech": truth / max(float(speech), 1e-6),
                "n": len(of_kind),
            }
        return found

    def recognition_shares(self) -> dict[str, float]:
        """Return the share of vocal clips named right: of truth, generated, and without BEATs."""
        return {
            which: float(np.mean([getattr(n, which) == n.kind for n in self.recognitions]))
            for which in ("truth", "generated", "without_beats")
            if self.recognitions
        }

    def write(self) -> None:
        """Write tables (CSV), `report.json`, the contact sheet and the plots (PNG)."""
        if self.folder is None:
            return
        write_csv(self.folder / "clips.csv", self.results)
        write_text(self.folder / "report.json", json.dumps(self.to_dict(), indent=1))
        kinds = ("median", "mean", "low10")
        rows = [
            [name, *(f"{figures[kind]:.4f}" for kind in kinds), figures["n"]]
            for name, figures in self.summary().items()
        ]
        write_text(self.folder / "summary.csv", csv_text(["figure", *kinds, "n"], rows))
        if self._sheet:
            Image.fromarray(np.concatenate(self._sheet)).save(self.folder / "sheet.png")
        _plot(self.folder / "spread.png", self.results)
        if self.recognitions:
            pairs = Counter((n.kind, n.generated) for n in self.recognitions)
            named = [[*pair, count] for pair, count in sorted(pairs.items())]
            write_text(self.folder / "vocal.csv", csv_text(["kind", "named", "clips"], named))


def _plot(path: Path, results: list[ClipResult]) -> None:
    """Draw how every figure is spread over the clips."""
    shown = [
        (name, values)
        for name in FIGURES
        if (values := [v for r in results if (v := float(getattr(r, name))) == v])
    ]
    columns = 4
    rows = -(-len(shown) // columns)
    figure = new_figure(3 * columns, 2.2 * rows)
    for i, (name, values) in enumerate(shown):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.hist(values, bins=min(BINS, len(values)))
        axes.axvline(float(np.median(values)), color="black")
        axes.set_title(f"{name}, median {np.median(values):.3g}", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.savefig(path, dpi=100)
