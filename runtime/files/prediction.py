"""Files in, files out: what `unetrt predict` does with each image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.images import read_stack, stem_of, write_labels, write_png
from unetrt.runtime.model.spec import Annotation
from unetrt.runtime.pixels.instances import instances
from unetrt.runtime.pixels.overlay import overlay
from unetrt.runtime.segment.segmenter import Progress, Segmenter

Array = NDArray[Any]


@dataclass(frozen=True)
class Output:
    """What is written for an image.

    Attributes
    ----------
    folder
        Where NAME.tif and overlays/NAME.png go.
    kind
        `instances`: one number an object; `classes`: the class map.
    min_area
        Instances of fewer pixels are dropped.
    overlays
        Whether overlays are written.
    tta
        Whether to average over the 8 rotated and reflected copies of each frame.
    """

    folder: Path
    kind: Annotation = "instances"
    min_area: int = 0
    overlays: bool = True
    tta: bool = False


def predict_file(segmenter: Segmenter, source: Path, output: Output, progress: Progress | None = None) -> Array:
    """Segment one image file and write its labels, and its overlay, under the output folder.

    Returns
    -------
    The labels, (H, W) or for a stack (N, H, W). The overlay shows a stack's first frame.

    Raises
    ------
    FrameError
        The image cannot be read or does not fit the model; nothing is written then.
    """
    stack = read_frames(source, segmenter.spec.channels)
    try:
        classes = segmenter.segment(stack, tta=output.tta, progress=progress).labels
    except FrameError as error:
        raise FrameError(f"{source}: {error}") from error
    labels: Array = classes
    if output.kind == "instances":
        labels = instances(classes, segmenter.spec.separation_border, output.min_area)
    write_labels(output.folder / f"{stem_of(source)}.tif", labels)
    if output.overlays:
        frame_axes = 2 if segmenter.spec.channels == 1 else 3
        picture = overlay(_first(stack, frame_axes), _first(labels, 2))
        write_png(output.folder / "overlays" / f"{stem_of(source)}.png", picture)
    return labels


def read_frames(source: Path, channels: int) -> Array:
    """Read an image file as `Segmenter.segment` takes it for a model of `channels`: (H, W), (C, H, W) or a stack."""
    stack = read_stack(source)
    if stack.shape[1] != channels:
        raise FrameError(
            f"{source} has {stack.shape[1]} channels: this model takes {channels}; save those, or train on all"
        )
    frames = stack[:, 0] if channels == 1 else stack
    return frames[0] if len(frames) == 1 else frames


def _first(stack: Array, axes: int) -> Array:
    return stack[0] if stack.ndim > axes else stack
