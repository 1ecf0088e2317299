"""A session of ONNX Runtime on a GPU, whichever provider computes in it."""

import logging
from collections.abc import Callable
from typing import Any

from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.cuda.resources import Buffer, Stream
from unetrt.runtime.sessions import onnxruntime_files as files
from unetrt.runtime.sessions.cuda import CudaSession
from unetrt.runtime.sessions.cuda_lane import EnginePass, Place
from unetrt.runtime.spec import INPUT, OUTPUT, ModelSpec

log = logging.getLogger("unetrt")


class OnnxRuntimeGpuSession(CudaSession):
    """A model whose lanes have an InferenceSession each.

    The stream is an option of an InferenceSession, and one with a stream of its own would make each pass wait for
    both. So every lane loads the model: weights, activations and a workspace are on the device once for each lane.

    Passes are not captured as CUDA graphs: ONNX Runtime gives its stream host functions that free memory
    (`ReleaseCpuBufferCallback` in cuda_stream_handle.cc), and a graph would call them with each replay.

    Parameters
    ----------
    spec, name, device
        As for every session on a GPU.
    load
        Makes an InferenceSession that computes in a stream; raises InferenceError, or BackendUnavailableError.
    """

    def __init__(self, spec: ModelSpec, name: str, device: CudaDevice, load: Callable[[Stream], Any]) -> None:
        super().__init__(spec, name, device)
        self._load = load

    def scratch(self) -> int:
        """Return 0: ONNX Runtime allocates by itself."""
        return 0

    def new_pass(self, scratch: Buffer | None, place: Place) -> EnginePass:  # noqa: ARG002
        """Return a pass in an InferenceSession of its own."""
        return OnnxRuntimePass(self._load(place.stream), self.spec, place)

    def warmed(self) -> None:
        """Nothing is kept: providers that keep engines do so when they load."""

    def unload(self) -> None:
        """Nothing is left: each lane had its own."""


class OnnxRuntimePass:
    """One InferenceSession, bound to the lane's addresses.

    Parameters
    ----------
    engine
        The InferenceSession, which computes in the place's stream.
    spec
        Says what is at the addresses.
    place
        Where it works.
    """

    def __init__(self, engine: Any, spec: ModelSpec, place: Place) -> None:
        self._engine: Any = engine
        self._binding: Any = engine.io_binding()
        self._options = _asynchronous()
        index = place.stream.device.driver.index
        frames, scores = spec.new_input(), spec.new_output()
        self._binding.bind_input(INPUT, "cuda", index, frames.dtype, frames.shape, place.input)
        self._binding.bind_output(OUTPUT, "cuda", index, scores.dtype, scores.shape, place.output)

    def enqueue(self) -> None:
        """Give a pass to the stream; raises InferenceError or OutOfMemoryError."""
        try:
            self._engine.run_with_iobinding(self._binding, self._options)
            return
        except files.failures() as error:
            log.debug("ONNX Runtime: %s", error)
            failure = files.translated(error, "ONNX Runtime failed")
        raise failure  # out here, as ONNX Runtime's traceback would keep what it has on the device

    def close(self) -> None:
        """Free the InferenceSession with all its memory."""
        self._binding = None
        self._engine = None


def _asynchronous() -> Any:
    """Return RunOptions without the wait for the stream that ends each run otherwise."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    # The key is kOrtRunOptionsConfigDisableSynchronizeExecutionProviders in onnxruntime_run_options_config_keys.h.
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
