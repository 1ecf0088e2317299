"""Where the labels of a frame belong: its number among all frames of an acquisition, in the order of its plan."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from unetrt.runtime.errors import OutputError
from unetrt.runtime.live.results import LiveResult

# An event's index: axis -> position on it, such as {"t": 3, "c": 0}.
Index = Mapping[str, Any]
# The kind of event that makes a frame (useq, `AcquireImage`); an autofocus is an event with an index too.
ACQUIRES = "acquire_image"


class Places(Protocol):
    """Tells where results belong."""

    def place(self, result: LiveResult) -> tuple[int, list[Index]]:
        """Return the number of a frame, and the indices of those between it and the one before.

        Raises OutputError where it has no place.
        """


class PlannedPlaces:
    """The places of a plan's frames: a result's index is looked for among the events that are still to come.

    Frames that never came leave their places empty, whatever the reason, as their events are passed over.

    Parameters
    ----------
    plan
        A `useq.MDASequence`.
    channel
        The name of the only channel whose frames count; None counts all.
    """

    def __init__(self, plan: Any, channel: str | None = None) -> None:
        self._ahead = enumerate(planned(plan, channel))
        # Looked at in vain, for a frame that is not in the plan: key -> number and index.
        self._passed: dict[frozenset[tuple[str, Any]], tuple[int, Index]] = {}

    def place(self, result: LiveResult) -> tuple[int, list[Index]]:
        """Return the number of a frame in the plan, and the indices of those that were passed over."""
        wanted = _key(result.index or {})
        if wanted not in self._passed:
            self._look_for(wanted)
        if wanted not in self._passed:
            raise OutputError(
                f"a frame of index {result.index} is not among those of the plan that are still to come: "
                "its labels are not stored"
            )
        number = self._passed[wanted][0]
        skipped = [index for at, index in self._passed.values() if at < number]
        self._passed = {key: (at, index) for key, (at, index) in self._passed.items() if at > number}
        return number, skipped

    def _look_for(self, wanted: frozenset[tuple[str, Any]]) -> None:
        for number, index in self._ahead:
            key = _key(index)
            self._passed[key] = number, index
            if key == wanted:
                return


class SeriesPlaces:
    """The places of frames without a plan: one after the other, as they were submitted.

    Parameters
    ----------
    first
        The number of the first frame; None takes the one of the first result, less those that were dropped before it.
    """

    def __init__(self, first: int | None = None) -> None:
        self._first, self._next = first, 0

    def place(self, result: LiveResult) -> tuple[int, list[Index]]:
        """Return how many frames were submitted before this one; those that were passed over have no index."""
        if self._first is None:
            self._first = result.number - result.dropped
        number = result.number - self._first
        skipped: list[Index] = [{} for _ in range(self._next, number)]
        self._next = number + 1
        return number, skipped


def planned(plan: Any, channel: str | None) -> Iterator[Index]:
    """Yield the indices of the events of a `useq.MDASequence` that make a frame, in their order."""
    for event in plan:
        name = getattr(event.channel, "config", None)
        if getattr(event.action, "type", ACQUIRES) == ACQUIRES and channel in (None, name):
            yield {str(axis): at for axis, at in event.index.items()}


def _key(index: Index) -> frozenset[tuple[str, Any]]:
    return frozenset((str(axis), at) for axis, at in index.items())
