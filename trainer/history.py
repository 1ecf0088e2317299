"""What happened during a training: losses and scores, as CSV, as a picture, and for TensorBoard."""

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unetrt.runtime.files.atomic import whole_file
from unetrt.trainer.validation import Scores

# Steps over which the drawn loss is averaged: single tiles differ widely.
SMOOTHING = 25
COLUMNS = ("iou", "seg", "ap", "merged")


@dataclass
class History:
    """Losses of all steps and scores of all validations.

    Attributes
    ----------
    losses
        Of step 1 and up.
    scores
        (step, scores) of each validation.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, Scores]] = field(default_factory=list)

    @property
    def best_scores(self) -> Scores:
        """The best validation's scores."""
        return max((scores for _, scores in self.scores), key=lambda scores: scores.decisive)

    @property
    def latest_scores(self) -> Scores | None:
        """The last validation's scores, if there was any."""
        return self.scores[-1][1] if self.scores else None

    def add_scores(self, step: int, scores: Scores) -> bool:
        """Remember a validation's scores; tell whether they are the best so far."""
        best = max((earlier.decisive for _, earlier in self.scores), default=-1.0)
        self.scores.append((step, scores))
        return scores.decisive > best

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON has them; losses are kept as an array beside it."""
        return {"scores": [[step, asdict(scores)] for step, scores in self.scores]}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], losses: np.ndarray[Any, Any]) -> "History":
        """Return what `to_dict` gave, with the losses, (steps,) float64."""
        return cls(losses.tolist(), [(step, Scores(**scores)) for step, scores in stored["scores"]])

    def save(self, folder: Path) -> None:
        """Write history.csv and curves.png."""
        with whole_file(folder / "history.csv") as temporary, temporary.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["step", "loss", *COLUMNS])
            scores = dict(self.scores)
            for step, loss in enumerate(self.losses, 1):
                validated = [getattr(scores[step], name) for name in COLUMNS] if step in scores else [""] * len(COLUMNS)
                rows.writerow([step, loss, *validated])
        with whole_file(folder / "curves.png") as temporary:
            self._draw(temporary)

    def _draw(self, path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        steps, losses = np.arange(1, len(self.losses) + 1), np.array(self.losses)
        left.plot(steps, losses, color="0.8", linewidth=0.7, label="each step")
        window = min(SMOOTHING, len(losses))
        smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        left.plot(steps[window - 1 :], smooth, color="C0", label=f"mean of {window}")
        left.set(xlabel="step", ylabel="weighted cross entropy", yscale="log", title="Loss")
        left.legend()
        at = [step for step, _ in self.scores]
        for name, label in (("iou", "IoU"), ("seg", "SEG"), ("ap", "AP at 0.5")):
            values = [getattr(scores, name) for _, scores in self.scores]
            if values and None not in values:
                right.plot(at, values, "o-", label=label)
        right.set(xlabel="step", ylim=(0, 1), title="Validation, all images together")
        if at:
            right.legend(loc="lower right")
        figure.savefig(path, dpi=110)
