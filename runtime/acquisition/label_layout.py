"""How labels of an acquisition are laid out in a file: the axes of the raw data, or a series."""

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetrt.runtime.acquisition.places import Places, PlannedPlaces, SeriesPlaces, planned
from unetrt.runtime.live.results import LiveSequence

if TYPE_CHECKING:
    from ome_writers import AcquisitionSettings, Dimension

    from unetrt.runtime.acquisition.places import Index

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
