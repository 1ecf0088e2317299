"""A camera of Micro-Manager in live mode, as a source of frames.

Image files in the place of a camera.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import FrameError, OptionError, UnetrtError
from unetrt.runtime.files.images import read_frames
from unetrt.runtime.live.live_segmenter import LiveSegmenter

# Seconds between two looks whether the camera still runs.
LOOK = 0.02


class CameraError(UnetrtError, RuntimeError):
    """A camera that stopped, or failed, while it was to run."""

    exit_code = 1


class Camera(Closable):
    """The camera of a Micro-Manager configuration, in a core of its own.

    Parameters
    ----------
    config
        A configuration file, or the name of one that lies beside Micro-Manager's devices: `MMConfig_demo.cfg`.
    exposure
        Milliseconds; None: as configured.
    most
        How many images there are to be; None: until it is stopped.

    Attributes
    ----------
    core
        The `pymmcore_plus.CMMCorePlus`.

    Raises
    ------
    OptionError
        There is no such configuration, its devices do not load, it has no camera, or no such exposure.
    ModuleNotFoundError
        pymmcore-plus is missing.
    """

    def __init__(self, config: str, exposure: float | None = None, *, most: int | None = None) -> None:
        from pymmcore_plus import CMMCorePlus

        self.unread: dict[Path, FrameError] = {}
        self.core = CMMCorePlus()
        self._most = most
        try:
            self._load(config, exposure)
        except BaseException:
            self.close()
            raise
        self.name = f"{self.core.getCameraDevice()} of {Path(config).name}"

    def feed(self, live: LiveSegmenter, stop: Event) -> None:
        """Run the camera and submit its newest images, until there are enough or `stop` is set.

        Raises
        ------
        CameraError
            It stopped by itself, or failed.
        """
        from unetrt.runtime.acquisition import LiveModeFeed

        counted: Any = _FirstFrames(live, self._most)  # as much of a live segmenter as a feed calls
        try:
            with LiveModeFeed(self.core, counted) as feed:
                self.core.startContinuousSequenceAcquisition(0)
                while not (counted.enough or stop.wait(LOOK)):
                    if not self.core.isSequenceRunning():
                        raise CameraError(f"{self.name} stopped by itself")
                    if error := feed.status().last_error:
                        raise CameraError(f"{self.name} failed: {error}")
                self.core.stopSequenceAcquisition()
        except RuntimeError as error:
            if isinstance(error, CameraError):
                raise
            raise CameraError(f"{self.name} failed: {error}") from error

    def close(self) -> None:
        """Let go of the devices; idempotent."""
        from pymmcore import CMMCore  # noqa: TID251 - the method that pymmcore-plus hides

        if self.core.isSequenceRunning():
            self.core.stopSequenceAcquisition()
        self.core.unloadAllDevices()
        # The core reports from a thread of its own, which aborts the process if it finds an interpreter that ends.
        CMMCore.registerCallback(self.core, None)

    def _load(self, config: str, exposure: float | None) -> None:
        try:
            self.core.loadSystemConfiguration(config)
        except FileNotFoundError as error:
            raise OptionError(f"{config} does not exist, nor beside the devices: {error}{_no_devices()}") from error
        except (OSError, RuntimeError) as error:
            raise OptionError(f"{config} does not load: {error}{_no_devices()}") from error
        if not self.core.getCameraDevice():
            raise OptionError(f"{config} names no camera: give a configuration of Micro-Manager that does")
        try:
            if exposure is not None:
                self.core.setExposure(exposure)
        except RuntimeError as error:
            raise OptionError(f"exposure {exposure:g} ms does not work: {error}") from error


def _no_devices() -> str:
    """Return what to do where Micro-Manager's devices are not installed; empty where they are."""
    from pymmcore_plus import find_micromanager

    if find_micromanager():
        return ""
    return "; Micro-Manager's devices are missing: mmcore install, or pip install mm-test-adapters for the demo's"


class _FirstFrames:
    """A live segmenter for whoever feeds it, that takes so many frames and no more; None: all."""

    def __init__(self, live: LiveSegmenter, most: int | None) -> None:
        self._live, self._left = live, most
        self.sequenceStarted, self.sequenceFinished = live.sequenceStarted, live.sequenceFinished
        self.thread = live.thread

    @property
    def enough(self) -> bool:
        return self._left == 0

    def submit(self, frame: Any, index: Any, meta: Mapping[str, Any], *, copy: bool) -> None:
        if self._left is None:
            self._live.submit(frame, index, meta, copy=copy)
        elif self._left:
            self._live.submit(frame, index, meta, copy=copy)
            self._left -= 1


# The key in a frame's metadata under which its `FileFrame` lies.
FILE = "file"


@dataclass(frozen=True)
class FileFrame:
    """Which frame of which file one is: number `frame`, from 0, of the `frames` in `path`."""

    path: Path
    frame: int
    frames: int


class Replay:
    """Frames of files, one after the other, at a camera's pace; frames of a stack one by one.

    Parameters
    ----------
    paths
        Image files, in the order in which they are shown.
    fps
        Frames a second; 0: each as soon as there is room for it.
    loop
        Whether to begin anew after the last.
    most
        How many frames there are to be; None: all.

    Attributes
    ----------
    name
        What a person calls it.
    unread
        Why files were left out, for each once.
    """

    def __init__(self, paths: Sequence[Path], fps: float, *, loop: bool = False, most: int | None = None) -> None:
        self.unread: dict[Path, FrameError] = {}
        self.name = f"{len(paths)} files" if len(paths) > 1 else paths[0].name
        self._paths, self._period = paths, 1 / fps if fps else 0.0
        self._loop, self._most = loop, most

    def feed(self, live: LiveSegmenter, stop: Event) -> None:
        """Submit all frames, until there are no more or `stop` is set.

        A frame whose file was not read in time comes late, and those after it at their pace from then on.
        """
        due = perf_counter()
        for number, (place, frame) in enumerate(self._frames(live.segmenter.spec.channels)):
            if stop.wait(max(0.0, due - perf_counter())):
                return
            live.submit(frame, {"t": number}, {FILE: place}, copy=False)
            if number + 1 == self._most:
                return
            due = max(due + self._period, perf_counter())

    def _frames(self, channels: int) -> Iterator[tuple[FileFrame, NDArray[Any]]]:
        for _ in count():
            for path in self._paths:
                yield from self._frames_of(path, channels)
            if not self._loop or len(self.unread) == len(self._paths):
                return

    def _frames_of(self, path: Path, channels: int) -> Iterator[tuple[FileFrame, NDArray[Any]]]:
        try:
            frames = read_frames(path, channels)
        except FrameError as error:
            self.unread[path] = error
            return
        frame_axes = 2 if channels == 1 else 3
        stack = frames if frames.ndim > frame_axes else frames[None]
        for number, frame in enumerate(stack):
            yield FileFrame(path, number, len(stack)), frame
