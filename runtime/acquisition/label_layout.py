"""How labels of an acquisition are laid out in a file: the axes of the raw data, or a series.

Where the labels of a frame belong: its number among all frames of an acquisition, in the order of its plan.

A table of what became of each frame of an acquisition, as CSV beside its labels.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OutputError
from unetrt.runtime.live.results import LiveResult, LiveSequence

if TYPE_CHECKING:
    from ome_writers import AcquisitionSettings, Dimension


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


# Zarr's own lossless codec; labels shrink by a hundred times. zarr-python writes at once: it reports a full disk with
# the frame, and keeps none in memory. 8 ms for 2048 x 2048.
ZARR = {"format": {"name": "ome-zarr", "backend": "zarr-python"}, "compression": "blosc-zstd"}
TIFF = {"format": {"name": "ome-tiff"}, "compression": "none"}


class LabelLayout:
    """The axes of a file of labels, and where on them each frame belongs.

    The axes are those of the plan, as Micro-Manager stores raw data: with the one channel alone whose frames are
    segmented, if there is one. Without a plan, or with one that no regular array can hold, time is the only axis.

    Parameters
    ----------
    sequence
        What was announced; None where nothing was.

    Attributes
    ----------
    places
        Tells where results belong.
    """

    def __init__(self, sequence: LiveSequence | None) -> None:
        self._sequence = sequence
        planned = self._planned(1, 1) is not None
        self.places: Places = SeriesPlaces(None if sequence is None else sequence.first)
        if planned and sequence is not None:
            self.places = PlannedPlaces(sequence.plan, sequence.channel)

    def settings(self, path: Path, shape: tuple[int, ...], dtype: str) -> "AcquisitionSettings":
        """Return what a file of labels (H, W) of a dtype is made with; what is there is replaced."""
        from ome_writers import AcquisitionSettings

        height, width = shape
        axes = self._planned(height, width) or {"dimensions": self._series(height, width)}
        form = ZARR if path.name.lower().endswith(".zarr") else TIFF
        return AcquisitionSettings.model_validate(
            {"root_path": str(path), "dtype": dtype, "overwrite": True, **axes, **form}
        )

    def _planned(self, height: int, width: int) -> dict[str, Any] | None:
        """Return axes and plate of a plan; None where there is none that fits an array."""
        from ome_writers import useq_to_acquisition_settings
        from useq import MDASequence

        sequence = self._sequence
        # A plan without axes stands for events that come one by one.
        if sequence is None or not isinstance(sequence.plan, MDASequence) or not sequence.plan.axis_order:
            return None
        if self._camera().get("num_camera_adapter_channels", 1) > 1:
            return None
        try:
            found = useq_to_acquisition_settings(sequence.plan, width, height, pixel_size_um=self._pixel_size())
        except (NotImplementedError, ValueError, ZeroDivisionError):
            return None
        axes = [_of_channel(axis, sequence.channel) for axis in found["dimensions"]]
        if len(axes) == 2 or any(axis.count is None for axis in axes):
            return None
        # Only plans within plans are not nested loops; the events of a long plan take seconds to list.
        own = any(getattr(place, "sequence", None) is not None for place in sequence.plan.stage_positions)
        if own and not _is_regular(planned(sequence.plan, sequence.channel), axes[:-2]):
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
        """Return µm a pixel; None where nobody knows."""
        size = self._camera().get("pixel_size_um")
        return float(size) if size and size > 0 else None

    def _camera(self) -> dict[str, Any]:
        meta = {} if self._sequence is None else self._sequence.meta
        return dict(next(iter(meta.get("image_infos") or []), {}))


def _is_regular(events: Iterable["Index"], axes: Sequence["Dimension"]) -> bool:
    """Tell whether events come as nested loops over axes give them, the last one the fastest.

    A place of the stage is a position and a tile of its grid together, as ome-writers has them. Along each axis things
    are numbered in the order in which they first come.
    """
    met: list[dict[Any, int]] = [{} for _ in axes]
    places = [
        tuple(seen.setdefault(_along(axis, index), len(seen)) for axis, seen in zip(axes, met, strict=True))
        for index in events
    ]
    return places == list(product(*(range(axis.count or 0) for axis in axes)))


def _along(axis: "Dimension", index: "Index") -> Any:
    return (index.get("p"), index.get("g")) if axis.type == "position" else index.get(axis.name)


def _of_channel(axis: "Dimension", channel: str | None) -> "Dimension":
    """Return an axis with one channel alone, if it is that of the channels."""
    from ome_writers import Channel

    if channel is None or axis.type != "channel":
        return axis
    return axis.model_copy(update={"count": 1, "coords": [Channel(name=channel)]})


# Axes of an acquisition (useq, `Axis`): time, position, grid, channel, z; `image` is the camera's own number.
AXES = ("t", "p", "g", "c", "z", "image")
# Where things were, from the metadata of Micro-Manager's frames: when, which position of the stage, which channel.
SETTING = ("seconds", "position", "channel", "x_um", "y_um", "z_um")
COLUMNS = ("frame", *AXES, *SETTING, "outcome", "objects", "latency_ms", "error")


class FrameTable(Closable):
    """One row a frame, in their order; each is on its way to the disk as soon as it is known.

    Columns: `frame`, the number of the frame in its file, from 0, in the order of acquisition; `t`, `p`, `g`, `c`, `z`,
    `image`, its index; `seconds` since the acquisition began, the names of its `position` and `channel`, and `x_um`,
    `y_um`, `z_um` of the stage, where the frame's metadata tell; `outcome`: `done`, `failed`, `dropped`, or `missing`
    for a frame of the plan that never came; `objects`, how many there are; `latency_ms`, from the frame to its labels;
    `error`, why there are none. A frame that has no place in the file has a row without `frame`; frames of the plan
    behind the last that came have none. Where more than 1000 were dropped while one was segmented, the first of them
    have no index, or are `missing`.

    Parameters
    ----------
    path
        Where the table goes; a file there is replaced.

    Raises
    ------
    OutputError
        There can be no file there; of all methods, too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: TextIO = path.open("w", newline="", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error
        self._writer = csv.writer(self._file)
        self._write(COLUMNS)

    def add(self, frame: int | None, result: LiveResult, outcome: str, error: BaseException | None) -> None:
        """Add the row of a frame that came; `outcome` and `error` may be those of storing it."""
        index: Index = result.index if isinstance(result.index, Mapping) else {}
        cells = {"objects": result.objects, "latency_ms": f"{1e3 * result.latency:.1f}" if result.latency else None}
        reason = None if error is None else " ".join(str(error).split())
        self._add(frame, index, {**_setting(result.meta), **cells, "outcome": outcome, "error": reason})

    def add_absent(self, frame: int, index: Index, outcome: str) -> None:
        """Add the row of a frame of which nobody told."""
        self._add(frame, index, {"outcome": outcome})

    def close(self) -> None:
        """Finish the file."""
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def _add(self, frame: int | None, index: Index, cells: Mapping[str, Any]) -> None:
        row = {"frame": frame, **{axis: index.get(axis) for axis in AXES}, **cells}
        self._write(row.get(column) for column in COLUMNS)

    def _write(self, row: Iterable[object]) -> None:
        try:
            self._writer.writerow(list(row))
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self._path}: {error.strerror or error}")


def _setting(meta: Any) -> dict[str, Any]:
    """Return when, where and how a frame was taken, as far as its metadata (pymmcore-plus, `FrameMetaV1`) tell."""
    if not isinstance(meta, Mapping):
        return {}
    event, stage = meta.get("mda_event"), meta.get("position")
    time = meta.get("runner_time_ms")
    found: dict[str, Any] = {
        "seconds": f"{time / 1e3:.3f}" if isinstance(time, int | float) else None,
        "position": getattr(event, "pos_name", None),
        "channel": getattr(getattr(event, "channel", None), "config", None),
    }
    if isinstance(stage, Mapping):
        found |= {f"{axis}_um": stage.get(axis) for axis in "xyz"}
    return found
