"""A camera of Micro-Manager in live mode, as a source of frames."""

from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Any

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import FrameError, OptionError, UnetrtError
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
