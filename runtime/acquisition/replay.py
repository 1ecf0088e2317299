"""Frames of image files, one after another and round again, as a camera would give them.

A camera for Micro-Manager's core that shows image files: an acquisition of real images without a microscope.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import BackendUnavailableError, FrameError
from unetrt.runtime.files.images import read_stack

if TYPE_CHECKING:
    from pymmcore_plus.experimental.unicore import SimpleCameraDevice, UniMMCore


Array = NDArray[Any]
Kind = tuple[tuple[int, int], np.dtype[Any]]


class Replay:
    """Frames of files in their order; after the last comes the first again.

    One file at a time is read and kept, when its first frame is asked for.

    Parameters
    ----------
    files
        Images of one channel (TIFF, PNG, NPY, Zarr), all of one size and dtype; stacks give all their frames.

    Attributes
    ----------
    files
        The files.
    shape
        Height and width of a frame, in pixels.
    dtype
        Of the pixels, as the files have it.

    Raises
    ------
    FrameError
        There is no file, or the first cannot be read or has several channels.
    """

    def __init__(self, files: Sequence[str | Path]) -> None:
        self.files = [Path(file) for file in files]
        if not self.files:
            raise FrameError("no files to replay: give one or more")
        self.shape, self.dtype = _kind(self.files[0])
        self.rewind()

    def rewind(self, file: int = 0) -> None:
        """Let the first frame of a file be the next, by the file's number in `files`."""
        self._frames = self._from(file % len(self.files))

    def count(self) -> int:
        """Return how many frames there are before the first comes again; reads all files. Raises FrameError."""
        return sum(len(_grey(file)) for file in self.files)

    def next(self) -> tuple[Array, str, int]:
        """Return a frame (H, W), the name of its file, and the frame's number in it.

        Raises
        ------
        FrameError
            The file cannot be read, has several channels, or another size or dtype than the first.
        """
        return next(self._frames)

    def _from(self, first: int) -> Iterator[tuple[Array, str, int]]:
        for file in cycle(self.files[first:] + self.files[:first]):
            stack = _grey(file)
            kind = stack.shape[-2:], stack.dtype
            if kind != (self.shape, self.dtype):
                raise FrameError(
                    f"{file} is {_words(kind)}, {self.files[0]} is {_words((self.shape, self.dtype))}: "
                    "a camera has one size and dtype; group files with by_kind and load a camera for each"
                )
            for number, frame in enumerate(stack):
                yield frame, file.name, number


def by_kind(files: Sequence[str | Path]) -> dict[Kind, list[Path]]:
    """Group files by the size (height, width) and dtype of their frames: what one camera can replay; reads them all.

    Raises
    ------
    FrameError
        A file cannot be read or has several channels.
    """
    groups: dict[Kind, list[Path]] = {}
    for file in files:
        groups.setdefault(_kind(Path(file)), []).append(Path(file))
    return groups


def _kind(file: Path) -> Kind:
    stack = _grey(file)
    return (stack.shape[-2], stack.shape[-1]), stack.dtype


def _grey(file: Path) -> Array:
    """Read a file's frames, (N, H, W)."""
    stack = read_stack(file)
    if stack.shape[1] != 1:
        raise FrameError(
            f"{file} has {stack.shape[1]} channels: a camera gives grey frames; save each channel by itself"
        )
    frames: Array = stack[:, 0]
    return frames


def _words(kind: Kind) -> str:
    (height, width), dtype = kind
    return f"{height} x {width} {dtype}"


# How the core calls the camera.
LABEL = "ReplayCamera"


def load_replay_camera(
    core: "UniMMCore", source: Replay | Sequence[str | Path], label: str = LABEL, exposure: float = 10.0
) -> "SimpleCameraDevice":
    """Load a camera that replays files into a core, and make it the core's camera.

    Every image that is snapped, live or in a sequence takes the next frame, bit for bit; one takes as long as the
    exposure. In sequences its metadata name the file, `File`, and the number of the frame in it, `Frame`.

    Parameters
    ----------
    core
        A `UniMMCore` of `pymmcore_plus.experimental.unicore`, which takes cameras that are written in Python.
    source
        The files, or a `Replay` of them, with which the program can choose what is shown next.
    label
        The camera's name in the core; a camera that has it is replaced.
    exposure
        Milliseconds; the core can set another.

    Raises
    ------
    BackendUnavailableError
        pymmcore-plus is not installed.
    FrameError
        As for `Replay`.
    """
    replay = source if isinstance(source, Replay) else Replay(source)
    camera = _camera(replay, exposure)
    if core.isPyDevice(label):
        core.unloadDevice(label)
    core.loadPyDevice(label, camera)
    core.initializeDevice(label)
    core.setCameraDevice(label)
    if not core.getShutterDevice():
        core.setAutoShutter(False)  # an acquisition would close the shutter that is not there
    return camera


def _camera(replay: Replay, exposure: float) -> "SimpleCameraDevice":
    """Return a camera; its class is made here, as its base may not be installed."""
    try:
        from pymmcore_plus.experimental.unicore import SimpleCameraDevice
    except ModuleNotFoundError as error:
        raise BackendUnavailableError("a replay camera needs pymmcore-plus: pip install 'unetrt[acquire]'") from error

    class ReplayCamera(SimpleCameraDevice):
        """Shows the frames of a replay."""

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
