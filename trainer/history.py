"""History of a training: losses and scores as history.csv, curves.png and events for TensorBoard."""

import csv
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from unetrt.runtime.errors import one_line
from unetrt.runtime.files.atomic import whole_file
from unetrt.trainer.validation import Scores

log = logging.getLogger("unetrt")
# Window of the moving average in curves.png, in steps: the loss of single tiles varies widely.
SMOOTHING = 25
# Columns of history.csv with scores.
COLUMNS = ("iou", "seg", "ap", "merged")
CURVES = "curves.png"


@dataclass(frozen=True)
class TrainingProgress:
    """Report of a training step.

    Attributes
    ----------
    step
        Number of steps done.
    spent
        Share of the budget spent, 0 to 1.
    loss, rate
        Weighted cross entropy and learning rate of the step.
    scores
        Scores of the validation after this step; None if there was no validation.
    """

    step: int
    spent: float
    loss: float
    rate: float
    scores: Scores | None


@dataclass
class History:
    """Losses of all steps and scores of all validations.

    Attributes
    ----------
    losses
        Loss of each step; the first is that of step 1.
    scores
        (step, scores) of each validation.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, Scores]] = field(default_factory=list)

    @property
    def best_scores(self) -> Scores:
        """Scores of the best validation."""
        return max((scores for _, scores in self.scores), key=lambda scores: scores.decisive)

    @property
    def latest_scores(self) -> Scores | None:
        """Scores of the last validation; None before the first."""
        return self.scores[-1][1] if self.scores else None

    def add_scores(self, step: int, scores: Scores) -> bool:
        """Append a validation's scores; return whether they are the best so far."""
        best = max((earlier.decisive for _, earlier in self.scores), default=-1.0)
        self.scores.append((step, scores))
        return scores.decisive > best

    def save(self, folder: Path) -> None:
        """Write history.csv and curves.png."""
        with whole_file(folder / "history.csv") as temporary, temporary.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["step", "loss", *COLUMNS])
            scores = dict(self.scores)
            for step, loss in enumerate(self.losses, 1):
                validated = [getattr(scores[step], name) for name in COLUMNS] if step in scores else [""] * len(COLUMNS)
                rows.writerow([step, loss, *validated])
        with whole_file(folder / CURVES) as temporary:
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


class TensorBoard:
    """Writes the progress of a training as events for TensorBoard, in a `with` statement.

    Parameters
    ----------
    folder
        Folder of the run; events are written to its subfolder `tensorboard`.
    step
        Number of steps done before; events of later steps, from an interrupted run, are hidden.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer, self._failed = SummaryWriter(folder / "tensorboard", purge_step=step + 1), False

    def __call__(self, progress: TrainingProgress) -> None:
        """Write the events of one step; after a failure, which is logged, no more are written."""
        if self._failed:
            return
        try:
            self._write(progress)
        except Exception as error:  # noqa: BLE001 - of any library below it; the training goes on
            self._failed = True
            log.warning("no more events for TensorBoard are written: %s", one_line(error))

    def _write(self, progress: TrainingProgress) -> None:
        self._writer.add_scalar("loss", progress.loss, progress.step)
        self._writer.add_scalar("learning rate", progress.rate, progress.step)
        if scores := progress.scores:
            for name, value in vars(scores).items():
                if value is not None:
                    self._writer.add_scalar(f"validation/{name}", value, progress.step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(Exception):  # what it could not write, a full disk among others, does not end a training
            self._writer.close()
