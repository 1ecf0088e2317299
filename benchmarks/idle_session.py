"""A session that computes nothing: what a Segmenter does around it is the host's path of a frame, and no more."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.sessions.protocol import Lane, Session
from unetrt.runtime.timings import Passed

Array = NDArray[Any]


class IdleLane(Lane):
    """The arrays of a lane; what it gives is there from the start: random scores, or their labels."""

    def __init__(self, spec: ModelSpec) -> None:
        self.input: Array = spec.new_input()
        scores = np.random.default_rng(0).standard_normal((spec.batch, len(spec.classes), *spec.core), np.float32)
        self.output: Array = (scores[:, 1] > scores[:, 0]).view(np.uint8) if spec.head == "labels" else scores
        self.passed = Passed()

    def launch(self) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Keep the arrays."""


class IdleSession(Session):
    """Lanes that compute nothing, of two classes where they give labels."""

    device: int | None = None

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.name = spec, "nothing"

    def lanes(self, count: int) -> list[Lane]:
        """Return `count` idle lanes."""
        return [IdleLane(self.spec) for _ in range(count)]

    def close(self) -> None:
        """Do nothing."""
