"""OME-TIFF of several stage positions: a file for each, whole on its own."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.acquisition.label_stream import LabelStream
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OutputError

if TYPE_CHECKING:
    from ome_writers import AcquisitionSettings


# Files that are open at once, each with a thread of its writer.
MOST = 64


class PositionStreams(Closable):
    """A `LabelStream` for each position, in a folder named as the file would be; a file is made with its first labels.

    ome-writers can do that too, but its files then describe each other, and after an acquisition that was cancelled
    none of them can be read: each promises frames that no file has.

    Parameters
    ----------
    settings
        Of the whole, with an axis of positions.
    metadata
        What each file says of itself, beside its position.

    Raises
    ------
    OutputError
        Of all methods: a file cannot be made or written.
    """

    def __init__(self, settings: "AcquisitionSettings", metadata: Mapping[str, Any]) -> None:
        self._settings, self._metadata = settings, metadata
        self._axes = tuple(axis.count or 1 for axis in settings.dimensions[:-2])
        self._positions = next(at for at, axis in enumerate(settings.dimensions) if axis.type == "position")
        if (count := len(settings.positions)) > MOST:
            raise OutputError(
                f"{count} positions would be {count} OME-TIFF files that are open at once, {MOST} at most: "
                "store labels as .ome.zarr"
            )
        self._streams: dict[int, LabelStream] = {}
        self._opened = ExitStack()

    def put(self, place: int, labels: NDArray[Any]) -> None:
        """Store labels (H, W), in the dtype of the file, which nobody changes, at a place behind all before."""
        position, within = self._split(place)
        if position not in self._streams:
            self._streams[position] = self._opened.enter_context(self._open(position))
        self._streams[position].put(within, labels)

    def pass_over(self, place: int) -> None:
        """Leave a place behind all before empty; a position without any labels has no file."""
        position, within = self._split(place)
        if position in self._streams:
            self._streams[position].pass_over(within)

    def close(self) -> None:
        """Finish all files; idempotent."""
        self._opened.close()

    def _split(self, place: int) -> tuple[int, int]:
        """Return the position of a place, and the place among those of its position."""
        steps = list(map(int, np.unravel_index(place, self._axes)))
        position = steps.pop(self._positions)
        sizes = [size for at, size in enumerate(self._axes) if at != self._positions]
        return position, int(np.ravel_multi_index(steps, sizes)) if sizes else 0

    def _open(self, position: int) -> LabelStream:
        from ome_writers import AcquisitionSettings

        folder = Path(self._settings.output_path)
        suffix = self._settings.format.suffix
        axes = [axis for axis in self._settings.dimensions if axis.type != "position"]
        path = folder / f"{folder.name}_p{position:03}{suffix}"
        own = {"root_path": str(path), "dimensions": axes, "plate": None}
        settings = AcquisitionSettings.model_validate({**self._settings.model_dump(), **own})
        return LabelStream(settings, {**self._metadata, "position": self._settings.positions[position].name})
