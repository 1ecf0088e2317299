"""What happened during a training: losses and scores, as CSV and as a picture."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unetrt.runtime.artifacts import whole_file
from unetrt.trainer.validation import Scores

# Steps over which the drawn loss is averaged: single tiles differ widely.
SMOOTHING = 25


@dataclass
class History:
    """Losses of all steps and scores of all validations.

    Attributes
    ----------
    losses
        (step, loss) of each step.
    scores
        (step, scores) of each validation.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    scores: list[tuple[int, Scores]] = field(default_factory=list)

    @property
    def best_scores(self) -> Scores:
        """The best validation's scores."""
        return max((scores for _, scores in self.scores), key=lambda scores: scores.decisive)

    def add_loss(self, step: int, loss: float) -> None:
        """Remember a step's loss."""
        self.losses.append((step, loss))

    def add_scores(self, step: int, scores: Scores) -> bool:
        """Remember a validation's scores; tell whether they are the best so far."""
        best = max((earlier.decisive for _, earlier in self.scores), default=-1.0)
        self.scores.append((step, scores))
        return scores.decisive > best

    def save(self, folder: Path) -> None:
        """Write history.csv and curves.png."""
        with whole_file(folder / "history.csv") as temporary, temporary.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["step", "loss", "iou", "seg"])
            scores = dict(self.scores)
            for step, loss in self.losses:
                validated = (scores[step].iou, scores[step].seg) if step in scores else ("", "")
                rows.writerow([step, loss, *validated])
        with whole_file(folder / "curves.png") as temporary:
            self._draw(temporary)

    def _draw(self, path: Path) -> None:
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        steps, losses = np.array(self.losses).T
        left.plot(steps, losses, color="0.8", linewidth=0.7, label="each step")
        window = min(SMOOTHING, len(losses))
        smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        left.plot(steps[window - 1 :], smooth, color="C0", label=f"mean of {window}")
        left.set(xlabel="step", ylabel="weighted cross entropy", yscale="log", title="Loss")
        left.legend()
        at = [step for step, _ in self.scores]
        right.plot(at, [scores.iou for _, scores in self.scores], "o-", label="IoU")
        if all(scores.seg is not None for _, scores in self.scores):
            right.plot(at, [scores.seg for _, scores in self.scores], "o-", label="SEG")
        right.set(xlabel="step", ylim=(0, 1), title="Validation, mean over images")
        right.legend(loc="lower right")
        figure.savefig(path, dpi=110)
