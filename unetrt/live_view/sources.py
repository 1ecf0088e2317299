"""Sources of frames for `unetrt live`: a Micro-Manager camera in live mode, or image files at a camera's pace.

A `FrameSource` submits frames to a live segmenter on its own thread, until it ends or is asked to stop.

    source = FileReplay(list_images("images"), fps=20)
    source.feed(live, threading.Event())
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any, Protocol

from numpy.typing import NDArray

from unetrt.runtime import LiveSegmenter
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import CameraError, FrameError, OptionError
from unetrt.runtime.files.formats import AS_STORED, Reading
from unetrt.runtime.files.images import read_frames
from unetrt.runtime.files.sources import AnyPath, ImageSource, source_of
from unetrt.runtime.pixels.frames import stack_of

# Seconds between two checks that the camera still runs.
LOOK = 0.02
# Key of the `FileFrame` in a replayed frame's metadata.
FILE = "file"


class FrameSource(Protocol):
    """A source of frames.

    Attributes
    ----------
    name
        Its name, for display.
    unread
        Files that cannot be read -> why.
    """

    name: str
    unread: dict[ImageSource, FrameError]

    def feed(self, live: LiveSegmenter, stop: Event) -> None:
        """Submit frames until there are no more, or until soon after `stop` is set."""


class Camera(Closable):
    """The camera of a Micro-Manager configuration, in its own core; a `FrameSource`.

    Parameters
    ----------
    config
        A configuration file, or the name of one in Micro-Manager's folder, such as `MMConfig_demo.cfg`.
    exposure
        Exposure time in milliseconds; None: as configured.
    most
        Maximum number of images; None: no limit.
    camera
        Device label of the camera; None: as configured. Of a Multi Camera all cameras are followed, each as a stream.

    Attributes
    ----------
    core
        The `pymmcore_plus.CMMCorePlus`.

    Raises
    ------
    OptionError
        The configuration does not exist or load, or has no such camera, or the exposure is out of range.
    ModuleNotFoundError
        pymmcore-plus is not installed.
    """

    def __init__(
        self, config: str, exposure: float | None = None, *, most: int | None = None, camera: str | None = None
    ) -> None:
        from pymmcore_plus import CMMCorePlus

        self.unread: dict[ImageSource, FrameError] = {}
        self.core = CMMCorePlus()
        self._most = most
        try:
            self._load(config, exposure, camera)
        except BaseException:
            self.close()
            raise
        self.name = f"{self.core.getCameraDevice()} of {Path(config).name}"

    def feed(self, live: LiveSegmenter, stop: Event) -> None:
        """Run the camera and submit its newest images, until `most` are submitted or `stop` is set.

        Raises
        ------
        CameraError
            The camera stopped by itself, or failed.
        """
        from unetrt.runtime.acquisition import LiveModeFeed

        try:
            with LiveModeFeed(self.core, live, most=self._most) as feed:
                self.core.startContinuousSequenceAcquisition(0)
                while not (feed.status().submitted == self._most or stop.wait(LOOK)):
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
        """Unload the devices; idempotent."""
        from pymmcore import CMMCore  # noqa: TID251 - a method that pymmcore-plus hides

        if self.core.isSequenceRunning():
            self.core.stopSequenceAcquisition()
        self.core.unloadAllDevices()
        # The core's callback thread aborts the process if it finds the interpreter finalizing.
        CMMCore.registerCallback(self.core, None)

    def _load(self, config: str, exposure: float | None, camera: str | None) -> None:
        from unetrt.runtime.acquisition.live_mode import cameras_of, require_camera

        try:
            self.core.loadSystemConfiguration(config)
        except FileNotFoundError as error:
            raise OptionError(f"{config} does not exist, nor in Micro-Manager's folder: {error}{_advice()}") from error
        except (OSError, RuntimeError) as error:
            raise OptionError(f"{config} does not load: {error}{_advice()}") from error
        if camera is not None:
            require_camera(self.core, camera)
            self.core.setCameraDevice(camera)
        elif not self.core.getCameraDevice():
            loaded = " or ".join(cameras_of(self.core))
            nearest = f"give --camera {loaded}" if loaded else "give a Micro-Manager configuration that does"
            raise OptionError(f"{config} names no camera: {nearest}")
        try:
            if exposure is not None:
                self.core.setExposure(exposure)
        except RuntimeError as error:
            raise OptionError(f"the camera refuses an exposure of {exposure:g} ms: {error}") from error


def _advice() -> str:
    """Return how to install Micro-Manager's devices, if they are missing; else an empty string."""
    from pymmcore_plus import find_micromanager

    if find_micromanager():
        return ""
    return "; Micro-Manager's devices are missing: mmcore install, or pip install mm-test-adapters for the demo's"


@dataclass(frozen=True)
class FileFrame:
    """The origin of a replayed frame: frame `frame`, from 0, of the `frames` frames of `source`."""

    source: ImageSource
    frame: int
    frames: int


class FileReplay:
    """The frames of image files, in order, at a camera's pace; a `FrameSource`. Stacks are replayed frame by frame.

    Parameters
    ----------
    files
        Image files.
    fps
        Frames per second; 0: each as soon as the queue has room.
    loop
        Whether to repeat the files endlessly.
    most
        Maximum number of frames; None: no limit.
    reading
        How files are read.

    Attributes
    ----------
    name
        The number of files, or the name of the only one.
    unread
        Files that cannot be read -> why.
    """

    def __init__(
        self,
        files: Sequence[AnyPath],
        fps: float,
        *,
        loop: bool = False,
        most: int | None = None,
        reading: Reading = AS_STORED,
    ) -> None:
        self.unread: dict[ImageSource, FrameError] = {}
        sources = [source_of(file) for file in files]
        self.name = f"{len(sources)} files" if len(sources) > 1 else sources[0].path.name
        self._sources, self._period = sources, 1 / fps if fps else 0.0
        self._loop, self._most, self._reading = loop, most, reading

    def feed(self, live: LiveSegmenter, stop: Event) -> None:
        """Submit all frames, until there are no more or `stop` is set.

        A frame whose file is read too late delays all later ones: the pace never exceeds `fps`.
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
            for source in self._sources:
                yield from self._frames_of(source, channels)
            if not self._loop or len(self.unread) == len(self._sources):
                return

    def _frames_of(self, source: ImageSource, channels: int) -> Iterator[tuple[FileFrame, NDArray[Any]]]:
        try:
            frames = read_frames(source, channels, self._reading)
        except FrameError as error:
            self.unread[source] = error
            return
        stack = stack_of(frames, channels)
        for number, frame in enumerate(stack):
            yield FileFrame(source, number, len(stack)), frame
