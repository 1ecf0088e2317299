"""A camera for Micro-Manager's core that replays image files: acquisitions of real images without a microscope.

`Replay` is an endless sequence of the frames of files of one size and dtype. `load_replay_camera` loads a Python camera
that shows them into a `UniMMCore`; `by_kind` groups files of several sizes or dtypes, one camera each.

    core = UniMMCore()
    load_replay_camera(core, list_images("images"))
    core.mda.run(MDASequence(time_plan={"interval": 0, "loops": 10}), output=[live])
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import BackendUnavailableError, FrameError, OptionError, shown
from unetrt.runtime.files.images import fitting, read_image
from unetrt.runtime.files.sources import AnyPath, ImageSource, source_of

if TYPE_CHECKING:
    from pymmcore_plus.experimental.unicore import SimpleCameraDevice, UniMMCore


Array = NDArray[Any]
Kind = tuple[tuple[int, int], np.dtype[Any]]


class Replay:
    """The frames of files in order, endlessly repeated.

    One file is in memory at a time; it is read when its first frame is needed.

    Parameters
    ----------
    files
        Images of one channel, all of one size and dtype; all frames of a stack are used.

    Attributes
    ----------
    files
        The files.
    shape
        (H, W) of a frame, in pixels.
    dtype
        dtype of the pixels.

    Raises
    ------
    FrameError
        No files were given, or the first cannot be read or has several channels.
    """

    def __init__(self, files: Sequence[AnyPath]) -> None:
        self.files = _sources(files)
        if not self.files:
            raise FrameError("no files to replay: give one or more")
        self.shape, self.dtype = _kind(self.files[0])
        self.rewind()

    def rewind(self, file: int = 0) -> None:
        """Continue with the first frame of a file, by its index in `files`, modulo their number."""
        self._frames = self._from(file % len(self.files))

    def count(self) -> int:
        """Return the number of frames in all files; reads them. Raises FrameError."""
        return sum(len(_read_grey(file)) for file in self.files)

    def next(self) -> tuple[Array, str, int]:
        """Return the next frame (H, W), the name of its file, and the frame's index in it, from 0.

        Raises
        ------
        FrameError
            The file cannot be read, has several channels, or another size or dtype than the first.
        """
        return next(self._frames)

    def _from(self, first: int) -> Iterator[tuple[Array, str, int]]:
        for file in cycle(self.files[first:] + self.files[:first]):
            stack = _read_grey(file)
            kind = stack.shape[-2:], stack.dtype
            if kind != (self.shape, self.dtype):
                raise FrameError(
                    f"{file} is {_described(kind)}, {self.files[0]} is {_described((self.shape, self.dtype))}: "
                    "a camera has one size and dtype; group files with by_kind and load a camera for each"
                )
            for number, frame in enumerate(stack):
                yield frame, file.path.name, number


def by_kind(files: Sequence[AnyPath]) -> dict[Kind, list[ImageSource]]:
    """Group files by size (H, W) and dtype of their frames, so that each group fits one camera; reads all files.

    Raises
    ------
    FrameError
        A file cannot be read or has several channels.
    """
    groups: dict[Kind, list[ImageSource]] = {}
    for file in _sources(files):
        groups.setdefault(_kind(file), []).append(file)
    return groups


def _sources(files: Sequence[AnyPath]) -> list[ImageSource]:
    """Return the images; raises OptionError where a single path or something else was given instead of several."""
    if isinstance(files, list | tuple) and all(isinstance(file, str | os.PathLike) for file in files):
        return [source_of(file) for file in files]
    raise OptionError(f"files must be a list of paths of images (got {shown(files)})")


def _kind(file: ImageSource) -> Kind:
    stack = _read_grey(file)
    return (stack.shape[-2], stack.shape[-1]), stack.dtype


def _read_grey(file: ImageSource) -> Array:
    """Read the frames of a file, (N, H, W)."""
    stack = fitting(read_image(file), 1)
    if stack.shape[1] != 1:
        raise FrameError(f"{file} has {stack.shape[1]} channels: a replay camera is grey; save each channel as a file")
    frames: Array = stack[:, 0]
    return frames


def _described(kind: Kind) -> str:
    (height, width), dtype = kind
    return f"{height} x {width} {dtype}"


# Device label of the camera in the core.
LABEL = "ReplayCamera"


def load_replay_camera(
    core: "UniMMCore", source: Replay | Sequence[AnyPath], label: str = LABEL, exposure: float = 10.0
) -> "SimpleCameraDevice":
    """Load a camera that replays files into a core, and select it.

    Each image, snapped, live or in a sequence, is the next frame, bit for bit, and takes the exposure time. The image
    metadata of sequences hold the name of the file, `File`, and the index of the frame in it, `Frame`.

    Parameters
    ----------
    core
        A `UniMMCore` of `pymmcore_plus.experimental.unicore`, which supports cameras written in Python.
    source
        The files, or a `Replay`, through which the caller controls the next frame.
    label
        Device label of the camera; a Python camera with this label is replaced.
    exposure
        Initial exposure time in milliseconds.

    Raises
    ------
    BackendUnavailableError
        pymmcore-plus is not installed.
    FrameError
        As for `Replay`.
    """
    if not hasattr(core, "isPyDevice"):
        raise OptionError(f"core must be a UniMMCore, which supports cameras written in Python (got {shown(core)})")
    replay = source if isinstance(source, Replay) else Replay(source)
    camera = _camera(replay, exposure)
    if core.isPyDevice(label):
        core.unloadDevice(label)
    core.loadPyDevice(label, camera)
    core.initializeDevice(label)
    core.setCameraDevice(label)
    if not core.getShutterDevice():
        core.setAutoShutter(False)  # there is no shutter to close
    return camera


def _camera(replay: Replay, exposure: float) -> "SimpleCameraDevice":
    """Return a camera; its class is defined here because its base class may not be installed."""
    try:
        from pymmcore_plus.experimental.unicore import SimpleCameraDevice
    except ModuleNotFoundError as error:
        raise BackendUnavailableError("a replay camera needs pymmcore-plus: pip install 'unetrt[acquire]'") from error

    class ReplayCamera(SimpleCameraDevice):
        """Replays frames."""

        milliseconds = exposure

        def get_exposure(self) -> float:
            return self.milliseconds

        def set_exposure(self, exposure: float) -> None:
            self.milliseconds = exposure

        def sensor_shape(self) -> tuple[int, int]:
            return replay.shape

        def dtype(self) -> np.dtype[Any]:
            return replay.dtype

        def snap(self, buffer: NDArray[Any]) -> Mapping[str, str]:
            begin = time.perf_counter()
            frame, file, number = replay.next()
            buffer[...] = frame
            time.sleep(max(0.0, self.milliseconds / 1e3 - (time.perf_counter() - begin)))
            return {"File": file, "Frame": str(number)}

    return ReplayCamera()
