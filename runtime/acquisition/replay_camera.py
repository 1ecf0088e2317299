"""A camera for Micro-Manager's core that shows image files: an acquisition of real images without a microscope."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.acquisition.replay import Replay
from unetrt.runtime.errors import BackendUnavailableError

if TYPE_CHECKING:
    from pymmcore_plus.experimental.unicore import SimpleCameraDevice, UniMMCore

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
