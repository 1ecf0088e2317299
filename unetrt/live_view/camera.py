"""A camera of Micro-Manager, watched while it runs: its newest image again and again."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import FrameError, OptionError, UnetrtError
from unetrt.runtime.live.live_segmenter import LiveSegmenter

# Seconds between two looks at the newest image: a tenth of the shortest usual exposure.
POLL = 0.001
# What tells one image from the next, in the metadata that Micro-Manager's core gives each.
IDENTITY = ("ImageNumber", "ElapsedTime-ms", "TimeReceivedByCore")


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
        """Run the camera and submit its images, until there are enough or `stop` is set.

        Raises
        ------
        CameraError
            It stopped by itself, or failed.
        """
        try:
            self.core.startContinuousSequenceAcquisition(0)
            for number, (image, metadata) in enumerate(self._images(stop)):
                live.frameReady(image, SimpleNamespace(index={"t": number}), {"camera_metadata": metadata})
                if number + 1 == self._most:
                    break
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

    def _images(self, stop: Event) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        """Iterate over the images that come; each is the newest when it is looked at, a fresh array (H, W)."""
        last: tuple[Any, ...] = ()
        waiting = 0
        while not stop.wait(POLL):
            if not self.core.isSequenceRunning():
                raise CameraError(f"{self.name} stopped by itself")
            # Looking at an image copies it: only where another lies in the core's buffer, which grows until it is full.
            before, waiting = waiting, self.core.getRemainingImageCount()
            if waiting in (0, before):
                continue
            try:
                image, metadata = self.core.getLastImageAndMD()
            except IndexError:  # the buffer ran over, and was cleared
                continue
            seen = dict(metadata)
            identity = tuple(map(seen.get, IDENTITY))
            if identity != last:
                last = identity
                yield image, seen

    def _load(self, config: str, exposure: float | None) -> None:
        try:
            self.core.loadSystemConfiguration(config)
        except FileNotFoundError as error:
            raise OptionError(f"{config} does not exist, nor beside the devices: {error}") from error
        except (OSError, RuntimeError) as error:
            raise OptionError(f"{config} does not load: {error}") from error
        if not self.core.getCameraDevice():
            raise OptionError(f"{config} names no camera: give a configuration of Micro-Manager that does")
        try:
            if exposure is not None:
                self.core.setExposure(exposure)
        except RuntimeError as error:
            raise OptionError(f"exposure {exposure:g} ms does not work: {error}") from error
