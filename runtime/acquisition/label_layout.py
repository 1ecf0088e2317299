"""The layout of a store of labels: its axes, and the place of each frame on them.

With a plan (`useq.MDASequence`) that fits a regular array, a store of labels has the plan's axes, as Micro-Manager
stores raw data, and a frame's place follows from the index of its event. Otherwise the store is a series: time is its
axis, and frames follow one another as they were submitted. Several cameras at once are an axis, `cam`, in both.

A place is a flat index, from 0, in the order of acquisition: the last axis varies fastest. It is computed from the
index by arithmetic (`FrameGrid`), so that skipped frames cost nothing. A `Slot` is where a frame is in the store.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice
from math import inf, prod
from typing import TYPE_CHECKING, Any, Protocol

from unetrt.runtime.acquisition.label_stream import Slot
from unetrt.runtime.errors import OutputError
from unetrt.runtime.files.names import safe_names
from unetrt.runtime.live.frame_metadata import CAMERAS, camera_infos, event_index, pixel_size_of
from unetrt.runtime.live.results import LiveResult, LiveSequence

if TYPE_CHECKING:
    from ome_writers import AcquisitionSettings, Dimension, Position


# An event's index: axis -> position on it, such as {"t": 3, "c": 0}.
Index = Mapping[str, Any]
# Type of the events that acquire a frame (useq, `AcquireImage`); autofocus events have an index too.
ACQUIRES = "acquire_image"
# Types of axes in the order of a store.
ORDER = ("position", "time", "channel", "other", "space")
# Axes of an image of OME-Zarr at most, without stage positions.
MOST_AXES = 5
# Events of a plan that are compared with the arithmetic of its places; of a plan with nested plans all are.
COMPARED = 1000
# Names in the group of an acquisition that are no stage positions.
TAKEN = ("OME", "tables", "zarr.json")
# Zarr's lossless codec shrinks labels about a hundred times: 8 ms for 2048 x 2048.
ZARR = {"format": {"name": "ome-zarr", "backend": "zarr-python"}, "compression": "blosc-zstd"}


class IndexAxis:
    """An axis of an acquisition, without those of a frame.

    Parameters
    ----------
    keys
        The keys of an index along it: one, or `p` and `g` for stage positions and the tiles of their grids.
    length
        Number of positions; None: no end.
    values
        The values of the keys at each position; None: the value of the only key is the position.
    """

    def __init__(self, keys: tuple[str, ...], length: int | None, values: Sequence[tuple[Any, ...]] | None = None):
        self.length = length
        self._keys, self._values = keys, values
        self._numbers = {value: number for number, value in enumerate(values or ())}

    def find(self, index: Index) -> int | None:
        """Return the position of an index on the axis; None if it has none."""
        value = tuple(index.get(key) for key in self._keys)
        if self._values is not None:
            return self._numbers.get(value) if all(isinstance(one, Hashable) for one in value) else None
        number = value[0]
        return number if isinstance(number, int) and 0 <= number < (self.length or inf) else None

    def at(self, number: int) -> Index:
        """Return the part of an index at a position on the axis."""
        value = (number,) if self._values is None else self._values[number]
        return {key: one for key, one in zip(self._keys, value, strict=True) if one is not None}


class Places(Protocol):
    """Maps results to places."""

    def place(self, result: LiveResult) -> int:
        """Return a frame's place; raises OutputError if it has none."""

    def index(self, place: int) -> Index:
        """Return the index of the frame at a place, as far as it is known."""

    def count(self) -> int | None:
        """Return the number of places; None if it is not known."""


class FrameGrid:
    """Places of frames in a plan: nested loops over axes, of which the last varies fastest.

    Parameters
    ----------
    axes
        The axes; only the first may have no end.
    """

    def __init__(self, axes: Sequence[IndexAxis]) -> None:
        self._axes = tuple(axes)
        self._lengths = [axis.length for axis in axes]

    def place(self, result: LiveResult) -> int:
        """Return the place of a result by its index; raises OutputError if the plan has no such frame."""
        place = self.find(event_index(result))
        if place is None:
            raise OutputError(
                f"the plan has no frame with the index {result.index}: its labels are not stored; "
                "submit each frame of the plan with the index of its event"
            )
        return place

    def find(self, index: Index) -> int | None:
        """Return the place of an index; None if there is none."""
        place = 0
        for axis, length in zip(self._axes, self._lengths, strict=True):
            if (number := axis.find(index)) is None:
                return None
            place = place * (length or 0) + number
        return place

    def index(self, place: int) -> Index:
        """Return the index of a place."""
        found: dict[str, Any] = {}
        for axis, number in zip(self._axes, unravelled(place, self._lengths), strict=True):
            found |= axis.at(number)
        return found

    def count(self) -> int | None:
        """Return the number of places; None if the first axis has no end."""
        return None if None in self._lengths else prod(length or 0 for length in self._lengths)


class SeriesPlaces:
    """Places of frames without a plan: their submission order.

    Parameters
    ----------
    first
        Submission index of the first frame; None for that of the first result, less the frames dropped before it.
    cameras
        Number of cameras, whose frames come in turn.
    """

    def __init__(self, first: int | None = None, cameras: int = 1) -> None:
        self._first, self._cameras = first, cameras

    def place(self, result: LiveResult) -> int:
        """Return a frame's place; a frame of another camera than its number says is the next one of this camera."""
        if self._first is None:
            self._first = result.number - result.dropped
        place = result.number - self._first
        camera = event_index(result).get(CAMERAS)
        if isinstance(camera, int) and 0 <= camera < self._cameras and (ahead := (camera - place) % self._cameras):
            self._first -= ahead
            place += ahead
        return place

    def index(self, place: int) -> Index:
        """Return the camera of a place, if there are several."""
        return {CAMERAS: place % self._cameras} if self._cameras > 1 else {}

    def count(self) -> None:
        """Return None: the number of frames is not known."""


def unravelled(place: int, lengths: Sequence[int | None]) -> list[int]:
    """Return the position of a place on each axis, the last one fastest; the first axis may have no end (None)."""
    steps: list[int] = []
    for length in reversed(lengths):
        step = place if length is None else place % length
        place = 0 if length is None else place // length
        steps.insert(0, step)
    return steps


def planned(plan: Any, channel: str | None) -> Iterator[Index]:
    """Yield the indices of the events of a `useq.MDASequence` that acquire a frame, in acquisition order."""
    for event in plan:
        name = getattr(event.channel, "config", None)
        if getattr(event.action, "type", ACQUIRES) == ACQUIRES and channel in (None, name):
            yield {str(axis): at for axis, at in event.index.items()}


class LabelLayout:
    """The axes of a store of labels, and the place of each frame on them.

    The axes are those of the plan; with `LiveSegmenter(channel=...)` the channel axis holds that channel only. Without
    a plan, or with one that no regular array can hold, time is the axis. Several cameras are the axis `cam`, the
    fastest; where that is one axis more than OME-Zarr allows, a channel of each camera is a channel of the store.

    Parameters
    ----------
    sequence
        The announced sequence; None if none was announced.

    Attributes
    ----------
    places
        Maps results to places.
    renamed
        Name of a stage position in the store -> its name in the plan, where they differ: names are not paths.
    """

    def __init__(self, sequence: LiveSequence | None) -> None:
        self._sequence = sequence
        several = next(iter(camera_infos(sequence)), {}).get("num_camera_adapter_channels")
        self._cameras = several if isinstance(several, int) and several > 0 else 1
        self.renamed: dict[str, str] = {}
        plan = None if sequence is None else self._named(sequence.plan)
        found = None if plan is None else self._planned(plan)
        self.places: Places
        if found is None:
            self.places = SeriesPlaces(None if sequence is None else sequence.first, self._cameras)
            self._axes, self._plate = [self._time()], None
        else:
            self._axes, self._plate, grid = found
            self.places = FrameGrid([*grid, *self._camera_axis()])
        # Lengths in the order of acquisition, and the axes of an array in the order of the store.
        self._lengths = {axis.name: axis.count for axis in self._axes}
        if self._cameras > 1:
            self._lengths[CAMERAS] = self._cameras
            self._add_cameras()
        self._order = [axis.name for axis in self.settings((1, 1), "uint8").array_storage_dimensions[:-2]]
        self._position = next((axis.name for axis in self._axes if axis.type == "position"), None)

    def settings(self, shape: tuple[int, ...], dtype: str) -> "AcquisitionSettings":
        """Return the settings of a store for labels of `shape` (H, W)."""
        from ome_writers import AcquisitionSettings, Dimension

        scale = pixel_size_of(None, self._sequence)
        frame = [
            Dimension(name=name, count=size, chunk_size=size, type="space", scale=scale, unit="micrometer")
            for name, size in zip("yx", shape, strict=True)
        ]
        # OME-Zarr has time, then channels or others, then space; ome-writers would put cameras behind z.
        ordered = sorted([*self._axes, *frame], key=lambda axis: ORDER.index(axis.type))
        axes = {
            "dimensions": [*self._axes, *frame],
            "storage_order": [axis.name for axis in ordered],
            "plate": self._plate,
        }
        return AcquisitionSettings.model_validate({"root_path": "labels.ome.zarr", "dtype": dtype, **axes, **ZARR})

    def slot(self, place: int) -> Slot:
        """Return where the frame of a place is in the store."""
        steps = dict(zip(self._lengths, unravelled(place, list(self._lengths.values())), strict=True))
        if CAMERAS in steps and CAMERAS not in self._order:
            steps["c"] = steps["c"] * self._cameras + steps[CAMERAS]
        return steps.get(self._position or "", 0), tuple(steps[name] for name in self._order)

    def _named(self, plan: Any) -> Any:
        """Return a plan whose stage positions have names that are no paths, no two the same."""
        from useq import MDASequence, WellPlatePlan

        # A plan without axes represents an event queue.
        if not isinstance(plan, MDASequence) or not plan.axis_order:
            return None
        if isinstance(plan.stage_positions, WellPlatePlan):  # which makes the names
            return plan
        places = list(plan.stage_positions)
        given = [place.name or str(number) for number, place in enumerate(places)]
        names = _apart(given, [(place.plate_row, place.plate_col) for place in places])
        self.renamed = {name: stored_text(text) for name, text in zip(names, given, strict=True) if name != text}
        named = [place.model_copy(update={"name": name}) for place, name in zip(places, names, strict=True)]
        return plan.model_copy(update={"stage_positions": tuple(named)})

    def _planned(self, plan: Any) -> tuple[list["Dimension"], Any, list[IndexAxis]] | None:
        """Return axes, well plate and axes of indices of a plan; None unless it fits a regular array."""
        from ome_writers import useq_to_acquisition_settings

        try:
            found = useq_to_acquisition_settings(plan, 1, 1)
        except (NotImplementedError, ValueError, ZeroDivisionError):
            return None
        channel = None if self._sequence is None else self._sequence.channel
        axes = [_restricted(axis, channel) for axis in found["dimensions"][:-2]]
        if not axes or any(axis.count is None for axis in axes[1:]):
            return None
        grid = [_axis(axis, plan, channel) for axis in axes]
        if not _is_regular(plan, channel, axes, grid):
            return None
        return [_placed(axis, found["plate"] is not None) for axis in axes], found["plate"], grid

    def _add_cameras(self) -> None:
        """Add the axis of the cameras, or join it with the channels."""
        from ome_writers import Channel, Dimension

        if sum(axis.type != "position" for axis in self._axes) + 3 <= MOST_AXES:
            self._axes.append(Dimension(name=CAMERAS, count=self._cameras, type="other"))
            return
        at = next(number for number, axis in enumerate(self._axes) if axis.type == "channel")
        names = _channel_names(self._axes[at])
        joined = [Channel(name=f"{name}, {CAMERAS} {camera}") for name in names for camera in range(self._cameras)]
        self._axes[at] = self._axes[at].model_copy(update={"count": len(joined), "coords": joined})

    def _camera_axis(self) -> list[IndexAxis]:
        return [IndexAxis((CAMERAS,), self._cameras)] if self._cameras > 1 else []

    def _time(self) -> "Dimension":
        from ome_writers import Dimension

        return Dimension(name="t", count=None, chunk_size=1, type="time")


def _is_regular(plan: Any, channel: str | None, axes: Sequence["Dimension"], grid: Sequence[IndexAxis]) -> bool:
    """Return whether the events of a plan are nested loops over the axes of their indices, as those of the store."""
    if [one.length for one in grid] != [axis.count for axis in axes]:
        return False
    # Only plans nested in a position can be irregular; listing the events of a long plan takes seconds.
    nested = any(getattr(place, "sequence", None) is not None for place in plan.stage_positions)
    if nested and axes[0].count is None:
        return False
    places = FrameGrid(grid)
    events = list(islice(planned(plan, channel), None if nested else COMPARED))
    regular = [places.find(index) for index in events] == list(range(len(events)))
    return regular and (not nested or len(events) == places.count())


def _axis(axis: "Dimension", plan: Any, channel: str | None) -> IndexAxis:
    """Return the positions of an index along an axis of a plan."""
    if axis.type == "position":
        alone = plan.model_copy(update={"time_plan": None, "channels": (), "z_plan": None, "autofocus_plan": None})
        tiles = [(index.get("p"), index.get("g")) for index in planned(alone, None)]
        return IndexAxis(("p", "g"), len(tiles), tiles)
    if axis.type == "channel" and channel is not None:
        chosen = [(at,) for at, one in enumerate(plan.channels) if one.config == channel]
        return IndexAxis(("c",), len(chosen), chosen)
    return IndexAxis((axis.name,), axis.count)


def _restricted(axis: "Dimension", channel: str | None) -> "Dimension":
    """Return a channel axis with one channel, or all (None); other axes unchanged."""
    from ome_writers import Channel

    if axis.type != "channel":
        return axis
    names = _channel_names(axis) if channel is None else [channel]
    return axis.model_copy(update={"count": len(names), "coords": [Channel(name=stored_text(name)) for name in names]})


def _channel_names(axis: "Dimension") -> list[str]:
    return [str(getattr(one, "name", one)) for one in axis.coords or ()]


def stored_text(text: str) -> str:
    """Return a text as JSON has it: what is not Unicode (lone surrogates) is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _placed(axis: "Dimension", is_plate: bool) -> "Dimension":
    """Return an axis of stage positions with the names of their images in the store; other axes unchanged.

    Equal names get their index as a suffix, also those of tiles in a well, which ome-writers takes for one image.
    """
    if axis.type != "position":
        return axis
    places: list[Any] = list(axis.coords or ())
    names = _apart(
        [_image_name(place, is_plate) for place in places], [(place.plate_row, place.plate_column) for place in places]
    )
    plain = [
        place.model_copy(update={"name": name, "grid_row": None, "grid_column": None})
        for place, name in zip(places, names, strict=True)
    ]
    return axis.model_copy(update={"coords": plain})


def _apart(texts: Sequence[str], groups: Sequence[Hashable]) -> list[str]:
    """Return a name for each text, no two the same in a group."""
    names = list(texts)
    for group in set(groups):
        members = [number for number, one in enumerate(groups) if one == group]
        for number, name in zip(members, safe_names([texts[number] for number in members], TAKEN), strict=True):
            names[number] = name
    return names


def _image_name(place: "Position", is_plate: bool) -> str:
    """Return the name of an image as ome-writers gives it; in a well OME-Zarr has letters and digits only."""
    if is_plate:
        return "".join(letter for letter in place.name if letter.isascii() and letter.isalnum())
    return place.name if place.grid_row is None else f"{place.name}_{place.grid_row}_{place.grid_column}"
