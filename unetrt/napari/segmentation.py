"""What the widget lets run off the GUI's thread: loading a model, segmenting an image. No Qt, no napari."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import ModelFileError, UnetrtError
from unetrt.runtime.instance_labels import instances
from unetrt.runtime.live.status import LiveStatus, one_line
from unetrt.runtime.segmenter import Progress, Segmenter
from unetrt.runtime.spec import Annotation

# Work that reports how far it is.
Call = Callable[[Progress], Any]


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be segmented, and how.

    Attributes
    ----------
    image
        What `Segmenter.segment` takes.
    kind
        `instances`: labels number the objects; `classes`: they name the class of each pixel.
    min_area
        Instances of fewer pixels are dropped.
    """

    image: Any
    kind: Annotation
    min_area: int = 0


def load(path: str) -> Segmenter:
    """Open a model file; may build an engine first, for minutes.

    Raises
    ------
    UnetrtError
        What `Segmenter` raises; ModelFileError where no file was chosen.
    """
    if not path.strip():
        raise ModelFileError("no model is chosen: give an ONNX file that unetrt export wrote, or an engine")
    return Segmenter(Path(path).expanduser())


def labels_of(segmenter: Segmenter, request: Request, progress: Progress) -> NDArray[Any]:
    """Return the labels of an image, (..., H, W): int32 instances, or uint8 classes.

    Parameters
    ----------
    segmenter, request
        What segments, and what is segmented.
    progress
        Called with the tiles done and all tiles; what it raises ends the call.

    Raises
    ------
    UnetrtError
        What `Segmenter.segment` raises.
    """
    tiles = [0, 0]

    def note(done: int, total: int) -> None:
        tiles[:] = done, total
        progress(done, total)

    classes = segmenter.segment(request.image, progress=note).labels
    if request.kind == "classes":
        return classes
    found = np.empty(classes.shape, np.int32)
    for plane in np.ndindex(classes.shape[:-2]):
        progress(*tiles)
        found[plane] = instances(classes[plane], segmenter.spec.separation_border, request.min_area)
    return found


def about(segmenter: Segmenter) -> str:
    """Return what a model says of itself, for people, on three lines."""
    spec = segmenter.spec
    height, width = spec.tile
    channels = "1 channel" if spec.channels == 1 else f"{spec.channels} channels"
    return f"classes: {', '.join(spec.classes)}\n{channels}, tile {height} x {width} px\n{segmenter.session.name}"


def figures(status: LiveStatus, objects: int | None = None) -> str:
    """Return what a live segmenter does and how fast, for people, on two lines, after the count of objects."""
    count = "" if objects is None else f"{objects} objects\n"
    latency = "no frame yet" if status.latency.p50 is None else f"latency {status.latency.p50 * 1000:.0f} ms"
    failed = f", failed {status.failed}" if status.failed else ""
    return (
        f"{count}{status.rate:.1f} frames/s, {latency}\n{status.submitted} frames: done {status.done}, "
        f"dropped {status.dropped}{failed}"
    )


def explained(error: BaseException) -> str:
    """Return an error as one line; its kind too, where the message was not written for people."""
    return " ".join(str(error).split()) if isinstance(error, UnetrtError) else one_line(error)
