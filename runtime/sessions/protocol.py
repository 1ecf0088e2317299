"""What a session and its lanes promise, whatever the engine."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from numpy.typing import NDArray

from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.segment.timings import Passed

# Gives work to the CUDA stream of that handle.
Step = Callable[[int], None]


class Lane(Protocol):
    """One pass that can be in flight: staging arrays, and the pass itself.

    The owner fills `input`, calls `launch`, does other things, calls `wait`, reads `output`. Between `launch` and
    `wait` both arrays belong to the engine. A lane is used by one thread at a time.

    Attributes
    ----------
    input
        (batch, C, h, w), as the spec says; stays the same array.
    output
        As the spec's head says; stays the same array. Its content is that of the last pass.
    passed
        The times of the last pass that was waited for.
    """

    input: NDArray[Any]
    output: NDArray[Any]
    passed: Passed

    def restart_clock(self) -> None:
        """Set the clock of this lane and of those that were made with it to about 0; none of them is in flight."""

    def launch(self, before: Sequence[Step] = (), after: Sequence[Step] = ()) -> None:
        """Start a pass and return at once.

        Parameters
        ----------
        before, after
            What a lane on a GPU does instead of copying `input` to the device, and instead of copying the result to
            `output`. Others take none.

        Raises
        ------
        SessionClosedError
            The lane or its session is closed.
        InferenceError
            The pass did not start; the lane can be launched again.
        """

    def wait(self) -> None:
        """Block until the pass has ended; afterwards `output` is whole.

        Raises
        ------
        InferenceError
            The pass failed. The lane can be launched again.
        SessionClosedError
            The lane or its session was closed meanwhile.
        """

    def close(self) -> None:
        """Wait for the pass and free what the lane holds; idempotent."""


class Session(Protocol):
    """A loaded model on one device.

    Attributes
    ----------
    spec
        The model's spec.
    name
        Engine and device, for people.
    device
        The number of the GPU, as CUDA counts; None on a CPU.
    """

    spec: ModelSpec
    name: str
    device: int | None

    def lanes(self, count: int) -> list[Lane]:
        """Return `count` new lanes. They live until they or the session are closed.

        Raises
        ------
        OutOfMemoryError
            They do not fit on the device; the message says what they need.
        """

    def close(self) -> None:
        """Wait for passes in flight and free everything; calling it again does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
