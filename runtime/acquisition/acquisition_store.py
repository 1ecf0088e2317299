"""`AcquisitionStore`: an output that stores frames and labels together, for acquisitions without a known plan.

Where the labels decide what is acquired next, the number of frames of each position, channel and camera is not known
beforehand. Each of these combinations is a separate image, which grows (`ImageSeries`).

    store = AcquisitionStore("run.ome.zarr")
    with LiveSegmenter(model, policy="drop_oldest", outputs=[store], on_result=decide) as live:
        core.mda.run(iter(events.get, None), output=[live])
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.acquisition.growing_zarr import ImageSeries, write_collection, write_group
from unetrt.runtime.acquisition.label_stream import StoreKind
from unetrt.runtime.acquisition.label_tables import setting_of
from unetrt.runtime.acquisition.label_writer import FRAMES, SUFFIX, LabelWriter, new_tables, with_suffix
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OutputError, one_line
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.live.frame_metadata import event_index, pixel_size_of
from unetrt.runtime.live.results import DroppedFrames, LiveResult, LiveSequence, Outcome
from unetrt.runtime.pixels.frames import COLOURS

# Keys of an index (useq, `Axis`) that tell images apart: the stage position, and the tile of its grid.
PLACES = ("p", "g")
# Keys that the index of a frame has in the table: the image that it is in, and its index on the first axis of it.
SERIES, PLACE = "series", "series_frame"


class AcquisitionStore(LabelWriter):
    """An output of `LiveSegmenter` that stores each segmented frame with its labels, as OME-Zarr 0.5.

    The plan need not be known: each combination of stage position, grid tile, camera, channel, size and dtype is an
    image, `run.ome.zarr/0`, `run.ome.zarr/1` and so on, in order of appearance. Its axes are (t, y, x), or (t, c, y, x)
    for frames of several planes; t counts its frames in order of arrival, of all z. Its labels are `labels/objects`
    inside. The pixels are those that were segmented (`LiveResult.frame`), in the camera's dtype: for a model of one
    channel, those of a colour camera are grey. Object numbers are uint32, class indices uint8.

    The table `run.csv` has a row for each frame, see `FrameTable`: its index with all keys, names of position, channel
    and camera, stage coordinates, and in the column `index` the image (`series`) and the index on its first axis
    (`series_frame`) that it is stored at. Those of the first frame are also attributes of the image, under the key
    `unetrt`. Measurements of the objects are rows of `run_objects.csv`. Names are never paths.

    The store can be read while it grows: it has whole frames only, each with its labels, and valid metadata. All of it
    is on the disk when `result` returns, so that it has each such frame if the process is killed. Failed frames are
    stored with labels 0.

    Frames that were dropped are not stored: the live segmenter does not keep their pixels. They are one row of the
    table. Give the acquisition ``output=["raw.ome.zarr", live]`` if all raw frames are to be stored.

    Each sequence has its own files: `run.ome.zarr`, then `run_001.ome.zarr`, with the next free number. A sequence
    without frames has a table only, or nothing.

    Parameters
    ----------
    path
        `*.ome.zarr`.
    overwrite
        Whether to replace an existing store of an acquisition and its tables. Anything else at these paths is refused.

    Raises
    ------
    OutputError
        `path` has another suffix, exists, or cannot be written.
    BackendUnavailableError
        A package of the extra `acquire` is missing.
    """

    kind = StoreKind.ACQUISITION

    def __init__(self, path: str | Path, overwrite: bool = False) -> None:
        super().__init__(path, overwrite)

    def opened(self, stem: Path, sequence: LiveSequence | None, replace: bool) -> "StoredSequence":
        """Create the files of a sequence, for its first result; `stem` is their path without suffixes."""
        return StoredSequence(stem, sequence, replace=replace)


@dataclass(frozen=True)
class SeriesKey:
    """What the frames of an image have in common."""

    places: tuple[str, ...]
    position: str
    camera: str
    channel: str
    shape: tuple[int, ...]
    dtype: str


class StoredSequence(Closable):
    """The store and the tables of one sequence.

    Parameters
    ----------
    stem
        Path of its files without their suffixes.
    sequence
        The sequence; None if none was announced.
    replace
        Whether existing files are replaced.

    Raises
    ------
    OutputError
        Something is at a path that is not replaced, or the table cannot be written.
    """

    def __init__(self, stem: Path, sequence: LiveSequence | None, *, replace: bool) -> None:
        self._path = with_suffix(stem, SUFFIX)
        self._sequence = sequence
        self._about = {"frames": with_suffix(stem, FRAMES).name}
        self._table, self._objects = new_tables(stem, replace, StoreKind.ACQUISITION)
        self._series: dict[SeriesKey, ImageSeries] = {}
        self._listed = 0  # images that the store lists
        self._frames = 0  # stored

    def skip(self, frames: DroppedFrames) -> None:
        """Add the row of frames that were dropped."""
        self._table.add_skipped(None, frames.count, {}, Outcome.DROPPED)

    def add(self, result: LiveResult) -> None:
        """Store a frame with its labels, and its rows of the tables.

        Raises
        ------
        OutputError
            They cannot be stored; the table states the reason.
        """
        index: dict[Any, Any] = dict(result.index) if isinstance(result.index, Mapping) else {"index": result.index}
        try:
            number, place = self._store(result)
        except OutputError as error:
            self._table.add(None, result, Outcome.FAILED, result.error or error)
            raise
        placed, reason = replace(result, index={**index, SERIES: number, PLACE: place}), result.error
        frame, self._frames = self._frames, self._frames + 1
        try:
            if result.table is not None:
                self._objects.add(frame, result.table)
        except OutputError as error:
            reason = error
            raise
        finally:
            self._table.add(frame, placed, result.outcome, reason)

    def close(self) -> None:
        """Close the tables; the store is complete after each frame. Idempotent."""
        with self._table, self._objects:
            pass

    def _store(self, result: LiveResult) -> tuple[int, int]:
        """Store a frame, and return the number of its image and its index in there."""
        pixels = pixels_of(result)
        labels = result.labels
        if labels is not None and labels.dtype != np.uint8:
            labels = labels.astype(np.uint32)
        key = _key(result, pixels)
        try:
            if key not in self._series:
                self._series[key] = self._begun(len(self._series), key, result)
            number = list(self._series).index(key)
            place = self._series[key].append(pixels, labels)
            self._list()
        except (OSError, ValueError, TypeError) as error:
            raise OutputError(f"cannot write {self._path}: {one_line(error)}") from error
        return number, place

    def _begun(self, number: int, key: SeriesKey, result: LiveResult) -> ImageSeries:
        setting, size = setting_of(result), pixel_size_of(result.meta, self._sequence, result.stream.camera)
        names = [text for text in (key.position, key.camera, key.channel) if text]
        index = {str(axis): at for axis, at in event_index(result).items()}
        attributes = self._about | {"index": index} | setting
        return ImageSeries(
            self._path / str(number),
            key.shape,
            key.dtype,
            pixel_size=None if size is None else PixelSize(size, size),
            name=" ".join(names) or str(number),
            attributes={name: value for name, value in attributes.items() if value is not None},
        )

    def _list(self) -> None:
        """Let readers find the images that have frames."""
        write_collection(self._path, list(self._series.values()))
        listed = [str(number) for number, series in enumerate(self._series.values()) if series.length]
        if len(listed) > self._listed:
            write_group(self._path / "OME", {"series": listed})
            if not self._listed:
                write_group(self._path, {"bioformats2raw.layout": 3}, self._about)
            self._listed = len(listed)


def pixels_of(result: LiveResult) -> NDArray[Any]:
    """Return the frame of a result as it is stored: (H, W), or (C, H, W), of a dtype that OME-Zarr has.

    Colour planes come first, as in OME-Zarr; a single plane has no axis. True and False become 1 and 0.

    Raises
    ------
    OutputError
        The frame is no array of two or three axes, or of no such dtype.
    """
    try:
        pixels = np.asarray(result.frame)
    except Exception as error:
        raise OutputError(f"a frame that is not in the computer's memory is not stored: {one_line(error)}") from error
    while pixels.ndim > 2 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "buif" or pixels.dtype.itemsize > 8 or not pixels.size:
        raise OutputError(
            f"a frame of {pixels.dtype} {pixels.shape} is not stored: it must be (H, W), (C, H, W) or (H, W, C), of "
            "integers or floats"
        )
    if pixels.ndim == 3:
        if result.labels is None and pixels.shape[-1] in (1, *COLOURS):  # a failed frame, as the camera gave it
            pixels = np.moveaxis(pixels, -1, 0)
        pixels = pixels[0] if len(pixels) == 1 else pixels  # (H, W, 1)
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _key(result: LiveResult, pixels: NDArray[Any]) -> SeriesKey:
    index = event_index(result)
    setting = setting_of(result)
    names = ("position", "camera", "channel")
    position, camera, channel = (str(setting[name] or "") for name in names)
    places = tuple(str(index.get(axis, "")) for axis in PLACES)
    return SeriesKey(places, position, camera, channel, pixels.shape, pixels.dtype.name)
