"""Contenders are checked before they are timed: whoever computes another network's labels is not timed at all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from unetrt.benchmarks.contenders import REFERENCE, Contender
from unetrt.benchmarks.job import Job
from unetrt.benchmarks.ready import About
from unetrt.benchmarks.result import LeftOut
from unetrt.benchmarks.whole_frame import whole_frame_scores, wrong_pixels
from unetrt.benchmarks.worker import Worker
from unetrt.runtime.errors import ParityError, UnetrtError
from unetrt.trainer.checkpoint import Checkpoint

# More labels than this may not differ from those of one FP32 pass, ties left out: those of another network would. An
# untrained one has many pixels at which rounding decides; in FP32 nothing may differ.
MOST_WRONG = 0.05


@dataclass(frozen=True)
class Checked:
    """A contender whose labels are right, and the share of the frame's pixels in which they differ from the truth."""

    contender: Contender
    about: About
    pixels_off: float


class Checks:
    """Holds labels against those of one FP32 pass over the whole frame."""

    def __init__(self, job: Job, checkpoint: Checkpoint, frame: NDArray[Any]) -> None:
        self._job = job
        self._truth = whole_frame_scores(checkpoint, frame)

    def of(self, contender: Contender, told: Callable[[str], None]) -> Checked | LeftOut:
        """Check a contender; those of others that cannot run are left out, and so is whatever cannot be had here."""
        told(f"checking: {contender.title}")
        if reason := contender.why_not(self._job.device):
            return LeftOut(contender.name, contender.title, reason)
        try:
            with Worker(contender, self._job) as worker:
                return self._checked(contender, worker.about, worker.labels())
        except ParityError:
            raise
        except UnetrtError as error:
            if contender.name == REFERENCE:
                raise
            return LeftOut(contender.name, contender.title, str(error))

    def _checked(self, contender: Contender, about: About, labels: NDArray[Any]) -> Checked:
        if about.right_within is not None:
            height, width = about.right_within
            wrong = wrong_pixels(labels[:height, :width], self._truth[:, :height, :width])
            if wrong > (0 if contender.precision_on(self._job.device) == "fp32" else MOST_WRONG):
                raise ParityError(
                    f"{wrong:.2%} of the labels of {contender.title} are not those of one FP32 pass over the frame: "
                    "nothing is timed"
                )
        return Checked(contender, about, wrong_pixels(labels, self._truth))
