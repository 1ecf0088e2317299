"""ONNX Runtime's providers for GPUs: what loads a graph into them, and what is said where they refuse it.

A graph computes wholly on the GPU, or not at all: ONNX Runtime's ways to go on with the CPU are closed, as it takes
them without a word.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetrt.runtime.cuda.resources import Stream
from unetrt.runtime.errors import BackendUnavailableError, UnetrtError
from unetrt.runtime.sessions import onnxruntime_files as files
from unetrt.runtime.sessions.onnxruntime_libraries import why_not_loaded

log = logging.getLogger("unetrt")

# What ONNX Runtime says where a provider's library did not load; the first also where nodes are none of its.
NOT_LOADED = ("fallback to CPU EP has been explicitly disabled", "Please install TensorRT libraries")


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's providers for GPUs.

    Attributes
    ----------
    name
        What ONNX Runtime calls it.
    title
        What people call it.
    library
        Its library's name without prefix and suffix.
    needs
        What to install for it.
    """

    name: str
    title: str
    library: str
    needs: str

    def load(self, path: Path, settings: Mapping[str, str], index: int, stream: Stream | None = None) -> Any:
        """Return an InferenceSession of a file.

        Parameters
        ----------
        path
            The ONNX file.
        settings
            The provider's options, but for device and stream.
        index
            The device's number, as CUDA counts.
        stream
            Where it computes; without one it is only to be looked at.

        Raises
        ------
        BackendUnavailableError
            The provider's library does not load, or it has not all of the graph's operators.
        ModelFileError
            ONNX Runtime cannot load the file.
        OutOfMemoryError
            The weights do not fit on the device.
        InferenceError
            A call on the device failed.
        """
        # All providers set has_user_compute_stream by themselves; TensorRT's refuses it as an option.
        place = {"device_id": str(index)} | ({"user_compute_stream": str(stream.handle)} if stream else {})
        options = files.session_options(threads=1)  # there is nothing to compute on the host
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            engine = files.load(path, options, [(self.name, {**settings, **place})])
        except files.failures() as error:
            log.debug("ONNX Runtime: %s", error)
            refusal = self._refused(error, path)
        else:
            if self.name in engine.get_providers():
                return engine
            refusal = self._not_loaded(path)
        raise refusal  # out here, as ONNX Runtime's traceback would keep what it has on the device

    def _refused(self, error: Exception, path: Path) -> UnetrtError:
        """Return our error for what ONNX Runtime said when it was to load a file."""
        if any(sign in str(error) for sign in NOT_LOADED):
            return self._not_loaded(path)
        if type(error).__name__ == "NotImplemented":
            return self._lacking(path, files.first_line(error))
        if files.is_about_the_device(error):
            return files.translated(error, f"{path} could not be loaded with ONNX Runtime's {self.title}")
        return files.not_loadable(error, path)

    def _not_loaded(self, path: Path) -> BackendUnavailableError:
        if reason := why_not_loaded(self.library):
            return BackendUnavailableError(f"ONNX Runtime's {self.title} does not load ({reason}): {self.needs}")
        return self._lacking(path, "it has not all of its operators, which would compute on the CPU")

    def _lacking(self, path: Path, reason: str) -> BackendUnavailableError:
        return BackendUnavailableError(
            f"{path} cannot be computed with ONNX Runtime's {self.title} ({reason}): use another backend, or export "
            "with another --precision or --input"
        )
