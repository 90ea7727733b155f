"""NSV accuracy: does a classifier of videos see the non-speech sound of the recording?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.measures import Block, Clip, Column, Figures, Frames, SetMeasure
from keyface_cli.evaluation.metrics.fidelity import to_tensor
from keyface_cli.models.classifier_input import pick_frames, prepare, read_normalisation


class VocalisationClassifier:
    """Any video classifier of transformers, from a local folder.

    Args:
        folder: with config.json, weights and, for the normalisation, preprocessor_config.json.
        device: where to compute.

    Raises:
        WeightsError: the folder holds no such network.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoModelForVideoClassification

        if not folder.is_dir():
            raise WeightsError(f"folder not found: {folder}")
        try:
            network: Any = AutoModelForVideoClassification.from_pretrained(
                folder, local_files_only=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{folder}: no video classifier that transformers can read: "
                f"{str(error).splitlines()[0]}",
                "keyface train nsv makes one",
            ) from error
        self._network = network.float().eval().to(device)
        self._device = device
        self.labels = [str(network.config.id2label[i]) for i in range(network.config.num_labels)]
        self.frames = int(getattr(network.config, "num_frames", 16))
        self.side = int(network.config.image_size)
        self._mean, self._deviation = read_normalisation(folder)

    @torch.inference_mode()
    def classify(self, frames: Frames) -> str:
        """Return the label of frames (T, H, W, 3), T as the network wants."""
        pixels = to_tensor(frames, self._device)
        logits = self._network(prepare(pixels, self.side, self._mean, self._deviation)).logits
        return self.labels[int(logits[0].argmax())]


class VocalisationAccuracy(SetMeasure):
    """Share of clips whose class is recognised; the confusion matrix is in the protocol.

    Args:
        classifier: whose labels name the classes.
    """

    name = "nsv"
    columns = (Column("nsv_accuracy", "NSV accuracy", "higher", 3),)

    def __init__(self, classifier: VocalisationClassifier) -> None:
        self._classifier = classifier
        self._places = {label.lower(): i for i, label in enumerate(classifier.labels)}
        self.restart()

    def restart(self) -> None:
        """Start another method."""
        count = len(self._classifier.labels)
        self._confusion = np.zeros((count, count), int)  # rows: true, columns: seen
        self._answers: list[float] = []  # of each clip: 1 right, 0 wrong, NaN no label

    def protocol(self) -> dict[str, Any]:
        """Return labels, confusion matrix and the accuracy of each class."""
        totals = self._confusion.sum(1)
        accuracy = {
            label: int(self._confusion[i, i]) / int(totals[i])
            for i, label in enumerate(self._classifier.labels)
            if totals[i]
        }
        return {
            "labels": self._classifier.labels,
            "confusion": self._confusion.tolist(),
            "per_class": accuracy,
            "frames": self._classifier.frames,
        }

    def begin(self, clip: Clip) -> None:
        """Start a clip."""
        self._clip = clip
        count = self._classifier.frames
        self._wanted = pick_frames(clip.frames, count)
        self._taken: dict[int, Frames] = {}

    def add(self, block: Block) -> None:
        """Keep the evenly spaced frames that the network sees."""
        for i, frame in enumerate(block.generated, block.start):
            if i in self._wanted:
                self._taken[i] = frame

    def end(self) -> Figures:
        """Classify the clip."""
        label = (self._clip.label or "").lower()
        if label not in self._places:
            self._answers.append(float("nan"))
            known = ", ".join(self._classifier.labels)
            said = f"{self._clip.label} is none of {known}" if label else "the clip has no label"
            return self.unscored(said)
        last = max(self._taken)
        frames = np.stack([self._taken.get(i, self._taken[last]) for i in self._wanted])
        seen = self._classifier.classify(frames)
        self._confusion[self._places[label], self._places[seen.lower()]] += 1
        self._answers.append(float(seen.lower() == label))
        return Figures()

    def overall(self, weights: NDArray[np.float64] | None = None) -> dict[str, float]:
        """Return the accuracy over labelled clips."""
        answers = np.array(self._answers)
        w = np.ones(len(answers)) if weights is None else weights
        scored = np.isfinite(answers)
        total = float(w[scored].sum())
        return {"nsv_accuracy": float((answers * w)[scored].sum()) / total} if total else {}
