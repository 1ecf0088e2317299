"""Contenders are checked before they are timed: whoever computes another network's labels is not timed at all."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.contenders import REFERENCE, Contender
from unetrt.benchmarks.job import Job
from unetrt.benchmarks.ready import About
from unetrt.benchmarks.result import LeftOut
from unetrt.benchmarks.worker import Worker
from unetrt.runtime.errors import ParityError, UnetrtError
from unetrt.trainer.checkpoint import Checkpoint
from unetrt.trainer.validation import whole_frame_scores, wrong_pixels

# More labels than this may not differ from those of one FP32 pass, ties left out: those of another network would. An
# untrained one has many pixels at which rounding decides; in FP32 nothing may differ.
MOST_WRONG = 0.05


@dataclass(frozen=True)
class Checked:
    """A contender whose labels are right, and the share of the frame's pixels in which they differ from the truth."""

    contender: Contender
    about: About
    pixels_off: float

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON stores; the contender is known by its name."""
        return {"about": asdict(self.about), "pixels_off": self.pixels_off}

    @classmethod
    def from_dict(cls, contender: Contender, stored: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave of a contender."""
        return cls(contender, About.from_dict(stored["about"]), stored["pixels_off"])


class Checks:
    """Holds labels against those of one FP32 pass over the whole frame."""

    def __init__(self, job: Job, checkpoint: Checkpoint, frame: NDArray[Any]) -> None:
        self._job, self._checkpoint, self._frame = job, checkpoint, frame

    @cached_property
    def _truth(self) -> NDArray[np.float32]:
        return whole_frame_scores(self._checkpoint, self._frame)

    def of(self, contender: Contender, told: Callable[[str], None]) -> Checked | LeftOut:
        """Check a contender; one of others that cannot run, or is wrong, is left out.

        Raises
        ------
        ParityError
            The labels of the usual loop, or of unetrt, are another network's.
        InferenceError
            The usual loop failed.
        """
        told(f"checking: {contender.title}")
        if reason := contender.why_not(self._job.device):
            return LeftOut(contender.name, contender.title, reason)
        try:
            with Worker(contender, self._job) as worker:
                return self._checked(contender, worker.about, worker.labels())
        except UnetrtError as error:
            if contender.name == REFERENCE or (contender.backend and isinstance(error, ParityError)):
                raise
            return LeftOut(contender.name, contender.title, str(error))

    def _checked(self, contender: Contender, about: About, labels: NDArray[Any]) -> Checked:
        if about.right_within is not None:
            height, width = about.right_within
            wrong = wrong_pixels(labels[:height, :width], self._truth[:, :height, :width])
            if wrong > self._most(contender):
                raise ParityError(
                    f"{wrong:.2%} of the labels of {contender.title} are not those of one FP32 pass over the frame: "
                    "nothing is timed"
                )
        return Checked(contender, about, wrong_pixels(labels, self._truth))

    def _most(self, contender: Contender) -> float:
        """Return the share of labels that may be wrong; on a GPU torch's FP32 is TF32, unless told otherwise."""
        exact = self._job.device == "cpu" and contender.precision_on("cpu") == "fp32"
        return 0.0 if exact else MOST_WRONG
