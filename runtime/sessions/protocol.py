"""Session and Lane: what every inference engine implements.

A session is a model loaded on one device. Its lanes hold the arrays of passes in flight, so that with two of them the
next tiles are cut while the engine computes. `TileLoop` drives the lanes; `Session.run` computes one batch::

    with open_session("model.onnx") as session:
        scores = session.run(tiles)  # (batch, C, h, w) -> what the model's head returns
"""

from abc import ABC, abstractmethod
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import FrameError
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.timings import Passed


class Lane(ABC):
    """One pass that can be in flight: host arrays, and the pass itself.

    The owner fills `input`, calls `launch`, does other work, calls `wait`, reads `output`. Between `launch` and `wait`
    both arrays belong to the engine. A lane is used by one thread at a time.

    Attributes
    ----------
    input
        (batch, C, h, w) in the spec's input dtype; always the same array.
    output
        The spec's output tensor; always the same array. Holds the result of the last pass.
    passed
        Times of the last pass that was waited for.
    """

    input: NDArray[Any]
    output: NDArray[Any]
    passed: Passed

    @abstractmethod
    def launch(self) -> None:
        """Start a pass and return at once.

        Raises
        ------
        SessionClosedError
            The lane or its session is closed.
        InferenceError
            The pass did not start; the lane can be launched again.
        """

    @abstractmethod
    def wait(self) -> None:
        """Block until the pass has ended; `output` is then complete.

        Raises
        ------
        InferenceError
            The pass failed. The lane can be launched again.
        SessionClosedError
            The lane or its session was closed in the meantime.
        """

    @abstractmethod
    def close(self) -> None:
        """Wait for the pass and free the lane's resources; idempotent."""

    def restart_clock(self) -> None:  # noqa: B027 - only clocks of limited precision restart
        """Reset the time from which `passed.begin` counts; affects all lanes made in the same call, none in flight."""

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Compute one batch and return `output`, which the next pass overwrites.

        Parameters
        ----------
        batch
            (batch, C, h, w), or (C, h, w) to put the same tile in every slot; values as `input` holds them.

        Raises
        ------
        FrameError
            The shape is not that of `input`.
        """
        if np.shape(batch) not in (self.input.shape, self.input.shape[1:]):
            raise FrameError(
                f"a batch of shape {np.shape(batch)} does not fit: the model takes {self.input.shape}, or one tile "
                f"{self.input.shape[1:]} for every slot"
            )
        self.input[...] = batch
        self.launch()
        self.wait()
        return self.output


class Session(Closable, ABC):
    """A model loaded on one device.

    Attributes
    ----------
    spec
        The model's spec.
    name
        Engine and device, for messages.
    device
        CUDA's index of the GPU; None on the CPU.
    """

    spec: ModelSpec
    name: str
    device: int | None

    @abstractmethod
    def lanes(self, count: int) -> list[Lane]:
        """Return `count` new lanes, which live until they or the session are closed.

        Raises
        ------
        OutOfMemoryError
            They do not fit on the device; the message states what they need.
        """

    @abstractmethod
    def close(self) -> None:
        """Wait for passes in flight and free everything; idempotent."""

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Compute one batch in a lane that is opened for it, and return a copy of the output.

        Parameters
        ----------
        batch
            See `Lane.run`. For many batches, call `Lane.run` on a lane that is kept.
        """
        (lane,) = self.lanes(1)
        with closing(lane):
            return lane.run(batch).copy()
