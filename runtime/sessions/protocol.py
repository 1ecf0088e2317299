"""What a session and its lanes promise, whatever the engine."""

from types import TracebackType
from typing import Any, Protocol, Self

from numpy.typing import NDArray

from unetrt.runtime.spec import ModelSpec


class Lane(Protocol):
    """One pass that can be in flight: staging arrays, and the pass itself.

    The owner fills `input`, calls `launch`, does other things, calls `wait`, reads `output`. Between `launch` and
    `wait` both arrays belong to the engine. A lane is used by one thread at a time.

    Attributes
    ----------
    input
        (batch, C, h, w), as the spec says; stays the same array for the lane's life.
    output
        As the spec's head says; stays the same array for the lane's life. Its content is that of the last pass.
    seconds
        How long the engine computed in the last pass that was waited for.
    """

    input: NDArray[Any]
    output: NDArray[Any]
    seconds: float

    def launch(self) -> None:
        """Start a pass and return at once. Raises SessionClosedError after `close`."""

    def wait(self) -> None:
        """Block until the pass has ended; afterwards `output` is whole.

        Raises
        ------
        InferenceError
            The pass failed. The lane can be launched again.
        """


class Session(Protocol):
    """A loaded model on one device.

    Attributes
    ----------
    spec
        The model's spec.
    name
        Engine and device, for people.
    """

    spec: ModelSpec
    name: str

    def lanes(self, count: int) -> list[Lane]:
        """Return `count` new lanes. They live until `close`."""

    def close(self) -> None:
        """Wait for passes in flight and free everything; calling it again does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
