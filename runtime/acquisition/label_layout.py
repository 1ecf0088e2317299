"""The layout of a file of labels: its axes, and the position of each frame on them.

With a plan (`useq.MDASequence`) that fits a regular array, a file of labels has the plan's axes, in acquisition order,
and a frame's position is that of its event in the plan. Otherwise the file is a series: time is its only axis, and
frames follow one another as they were submitted. Positions are flat indices into the axes before (H, W), C order.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unetrt.runtime.errors import OutputError
from unetrt.runtime.live.results import LiveResult, LiveSequence

if TYPE_CHECKING:
    from ome_writers import AcquisitionSettings, Dimension


# An event's index: axis -> position on it, such as {"t": 3, "c": 0}.
Index = Mapping[str, Any]
# Type of the events that acquire a frame (useq, `AcquireImage`); autofocus events have an index too.
ACQUIRES = "acquire_image"


class Places(Protocol):
    """Maps results to positions in the file."""

    def place(self, result: LiveResult) -> tuple[int, list[Index]]:
        """Return a frame's position, and the indices of the positions skipped since the frame before.

        Raises OutputError if the frame has no position.
        """


class PlannedPlaces:
    """Positions of frames in a plan: a result's index is looked up among the plan's remaining events.

    Frames must arrive in the order of the plan. Events between two consecutive frames are skipped, since their frames
    were dropped or not acquired.

    Parameters
    ----------
    plan
        A `useq.MDASequence`.
    channel
        The only channel whose frames have positions; None for all channels.
    """

    def __init__(self, plan: Any, channel: str | None = None) -> None:
        self._ahead = enumerate(planned(plan, channel))
        # Events read from `_ahead` but not matched yet: key -> position and index.
        self._passed: dict[frozenset[tuple[str, Any]], tuple[int, Index]] = {}

    def place(self, result: LiveResult) -> tuple[int, list[Index]]:
        """Return a frame's position in the plan, and the indices of the skipped events."""
        wanted = _key(result.index or {})
        if wanted not in self._passed:
            self._read_until(wanted)
        if wanted not in self._passed:
            raise OutputError(
                f"no remaining event of the plan has index {result.index}: its labels are not stored; "
                "submit each frame of the plan once, in order, with the index of its event"
            )
        number = self._passed[wanted][0]
        skipped = [index for at, index in self._passed.values() if at < number]
        self._passed = {key: (at, index) for key, (at, index) in self._passed.items() if at > number}
        return number, skipped

    def _read_until(self, wanted: frozenset[tuple[str, Any]]) -> None:
        for number, index in self._ahead:
            key = _key(index)
            self._passed[key] = number, index
            if key == wanted:
                return


class SeriesPlaces:
    """Positions of frames without a plan: their submission order.

    Parameters
    ----------
    first
        Submission index of the first frame; None for that of the first result, less the frames dropped before it.
    """

    def __init__(self, first: int | None = None) -> None:
        self._first, self._next = first, 0

    def place(self, result: LiveResult) -> tuple[int, list[Index]]:
        """Return a frame's position; skipped positions have an empty index."""
        if self._first is None:
            self._first = result.number - result.dropped
        number = result.number - self._first
        skipped: list[Index] = [{} for _ in range(self._next, number)]
        self._next = number + 1
        return number, skipped


def planned(plan: Any, channel: str | None) -> Iterator[Index]:
    """Yield the indices of the events of a `useq.MDASequence` that acquire a frame, in acquisition order."""
    for event in plan:
        name = getattr(event.channel, "config", None)
        if getattr(event.action, "type", ACQUIRES) == ACQUIRES and channel in (None, name):
            yield {str(axis): at for axis, at in event.index.items()}


def _key(index: Index) -> frozenset[tuple[str, Any]]:
    return frozenset((str(axis), at) for axis, at in index.items())


# Zarr's lossless codec shrinks labels about a hundred times: 8 ms for 2048 x 2048. zarr-python writes synchronously: it
# reports a full disk with the frame and buffers none.
ZARR = {"format": {"name": "ome-zarr", "backend": "zarr-python"}, "compression": "blosc-zstd"}
TIFF = {"format": {"name": "ome-tiff"}, "compression": "none"}


class LabelLayout:
    """The axes of a file of labels, and the position of each frame on them.

    The axes are those of the plan, as Micro-Manager stores raw data; with `LiveSegmenter(channel=...)` the channel axis
    holds that channel only. Without a plan, or with one that no regular array can hold, time is the only axis.

    Parameters
    ----------
    sequence
        The announced sequence; None if none was announced.

    Attributes
    ----------
    places
        Maps results to positions.
    """

    def __init__(self, sequence: LiveSequence | None) -> None:
        self._sequence = sequence
        self.places: Places = SeriesPlaces(None if sequence is None else sequence.first)
        if sequence is not None and self._planned(1, 1) is not None:
            self.places = PlannedPlaces(sequence.plan, sequence.channel)

    def settings(self, path: Path, shape: tuple[int, ...], dtype: str) -> "AcquisitionSettings":
        """Return the settings of a file at `path` for labels of `shape` (H, W); an existing file is replaced."""
        from ome_writers import AcquisitionSettings

        height, width = shape
        axes = self._planned(height, width) or {"dimensions": self._series(height, width)}
        form = ZARR if path.name.lower().endswith(".zarr") else TIFF
        return AcquisitionSettings.model_validate(
            {"root_path": str(path), "dtype": dtype, "overwrite": True, **axes, **form}
        )

    def _planned(self, height: int, width: int) -> dict[str, Any] | None:
        """Return axes and well plate of the plan; None if there is no plan that fits a regular array."""
        from ome_writers import useq_to_acquisition_settings
        from useq import MDASequence

        sequence = self._sequence
        # A plan without axes represents an event queue.
        if sequence is None or not isinstance(sequence.plan, MDASequence) or not sequence.plan.axis_order:
            return None
        if self._camera().get("num_camera_adapter_channels", 1) > 1:
            return None
        try:
            found = useq_to_acquisition_settings(sequence.plan, width, height, pixel_size_um=self._pixel_size())
        except (NotImplementedError, ValueError, ZeroDivisionError):
            return None
        axes = [_restricted(axis, sequence.channel) for axis in found["dimensions"]]
        if len(axes) == 2 or any(axis.count is None for axis in axes):
            return None
        # Only plans nested in a position can be irregular; listing the events of a long plan takes seconds.
        nested = any(getattr(place, "sequence", None) is not None for place in sequence.plan.stage_positions)
        if nested and not _is_regular(planned(sequence.plan, sequence.channel), axes[:-2]):
            return None
        return {"dimensions": axes, "plate": found["plate"]}

    def _series(self, height: int, width: int) -> list["Dimension"]:
        from ome_writers import Dimension

        frame = [
            Dimension(name=name, count=size, chunk_size=size, type="space", scale=self._pixel_size(), unit="micrometer")
            for name, size in (("y", height), ("x", width))
        ]
        return [Dimension(name="t", count=None, chunk_size=1, type="time"), *frame]

    def _pixel_size(self) -> float | None:
        """Return the pixel size in µm; None if it is unknown."""
        size = self._camera().get("pixel_size_um")
        return float(size) if size and size > 0 else None

    def _camera(self) -> dict[str, Any]:
        meta = {} if self._sequence is None else self._sequence.meta
        return dict(next(iter(meta.get("image_infos") or []), {}))


def _is_regular(events: Iterable[Index], axes: Sequence["Dimension"]) -> bool:
    """Return whether events are nested loops over the axes, with the last axis varying fastest.

    A stage position and a tile of its grid count as one position, as in ome-writers. Along each axis values are
    numbered by first appearance.
    """
    met: list[dict[Any, int]] = [{} for _ in axes]
    places = [
        tuple(seen.setdefault(_along(axis, index), len(seen)) for axis, seen in zip(axes, met, strict=True))
        for index in events
    ]
    return places == list(product(*(range(axis.count or 0) for axis in axes)))


def _along(axis: "Dimension", index: Index) -> Any:
    return (index.get("p"), index.get("g")) if axis.type == "position" else index.get(axis.name)


def _restricted(axis: "Dimension", channel: str | None) -> "Dimension":
    """Return a channel axis restricted to one channel; other axes, or all channels (None), unchanged."""
    from ome_writers import Channel

    if channel is None or axis.type != "channel":
        return axis
    return axis.model_copy(update={"count": 1, "coords": [Channel(name=channel)]})
