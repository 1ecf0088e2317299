"""ONNX Runtime on a GPU, with its CUDA provider.

Models in ONNX Runtime's CUDA provider: loading one, its lanes, and what is said where the provider refuses it.

A graph computes wholly on the GPU, or not at all: ONNX Runtime's ways to go on with the CPU are closed, as it takes
them without a word.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from unetrt.runtime.cuda.device import Buffer, CudaDevice, Stream
from unetrt.runtime.cuda.driver import open_driver, why_not
from unetrt.runtime.errors import BackendUnavailableError, ModelFileError, OptionError, UnetrtError
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import INPUT, OUTPUT, ModelSpec
from unetrt.runtime.sessions import onnxruntime as files
from unetrt.runtime.sessions.cuda import CudaSession
from unetrt.runtime.sessions.cuda_lane import EnginePass, Place
from unetrt.runtime.sessions.onnxruntime_libraries import load_libraries, why_not_loaded
from unetrt.runtime.sessions.onnxruntime_options import Options, Trials, require_options

log = logging.getLogger("unetrt")

# What ONNX Runtime calls the provider, and its library without prefix and suffix.
PROVIDER, LIBRARY = "CUDAExecutionProvider", "onnxruntime_providers_cuda"
TITLE = "ONNX Runtime's CUDA provider"
# What ONNX Runtime says of an option (provider_options_utils.h).
ODD_OPTION = re.compile(r'(Unknown|Failed to parse) provider option:? "[^"\n]*"')
# What ONNX Runtime says where the provider's library did not load, and also where it has not all operators of a graph.
NOT_LOADED = "fallback to CPU EP has been explicitly disabled"


def load(path: Path, spec: ModelSpec, options: Mapping[str, str], index: int, stream: Stream | None = None) -> Any:
    """Return an InferenceSession of a file.

    Parameters
    ----------
    path, spec
        The ONNX file, and what its graph must be like.
    options
        The provider's options, except device and stream.
    index
        The device's number, as CUDA counts.
    stream
        Where it computes; without one it is only to be looked at.

    Raises
    ------
    BackendUnavailableError
        The provider's library does not load, or it has not all of the graph's operators.
    ModelFileError
        ONNX Runtime cannot load the file, or it does not fit its spec.
    OptionError
        This ONNX Runtime does not know an option, or not its value.
    OutOfMemoryError
        The weights do not fit on the device.
    InferenceError
        A call on the device failed.
    """
    # The provider sets has_user_compute_stream by itself.
    place = {"device_id": str(index)} | ({"user_compute_stream": str(stream.handle)} if stream else {})
    session_options = files.session_options(threads=1)  # there is nothing to compute on the host
    session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    engine = None
    try:
        engine = files.load(path, session_options, [(PROVIDER, {**options, **place})])
    except files.failures() as error:
        log.debug("ONNX Runtime: %s", error)
        refusal = _refused(error, path)
    else:
        unfit = _unfit(engine, path, spec)
        if unfit is None:
            return engine
        refusal = unfit
    # What is raised must not hold what is on the device, in the frames of its traceback: that would outlive the stream.
    engine = None
    raise refusal


def _unfit(engine: Any, path: Path, spec: ModelSpec) -> UnetrtError | None:
    """Return our error for an InferenceSession that would compute elsewhere, or does not fit its spec."""
    if PROVIDER not in engine.get_providers():
        return _not_loaded(path)
    try:
        files.require_fit(engine, spec, path)
    except ModelFileError as error:
        return ModelFileError(str(error))
    return None


def _refused(error: Exception, path: Path) -> UnetrtError:
    """Return our error for what ONNX Runtime said when it was to load a file."""
    if NOT_LOADED in str(error):
        return _not_loaded(path)
    odd = ODD_OPTION.search(str(error))
    if odd and not files.FAILED_CALL.search(str(error)):  # a device that fails is said to be an odd device_id
        return OptionError(f"{TITLE}: {odd[0]}; leave that backend option out, or give it another value")
    if type(error).__name__ == "NotImplemented":
        return _lacking(path, files.first_line(error))
    if files.is_about_the_device(error):
        return files.translated(error, f"{path} could not be loaded with {TITLE}")
    return files.not_loadable(error, path)


def _not_loaded(path: Path) -> BackendUnavailableError:
    if reason := why_not_loaded(LIBRARY):
        return BackendUnavailableError(f"{TITLE} does not load ({reason}): pip install 'onnxruntime-gpu[cuda,cudnn]'")
    return _lacking(path, "it has not all of its operators, which would compute on the CPU")


def _lacking(path: Path, reason: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"{path} cannot be computed with {TITLE} ({reason}): use another backend, or export with another --precision "
        "or --input"
    )


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
    lane
        Bytes that ONNX Runtime takes on the device for each lane; 0 where that is not known.
    """

    def __init__(
        self, spec: ModelSpec, name: str, device: CudaDevice, load: Callable[[Stream], Any], lane: int
    ) -> None:
        super().__init__(spec, name, device)
        self._load, self._lane = load, lane

    def scratch(self) -> int:
        """Return 0: ONNX Runtime allocates by itself."""
        return 0

    def own_memory(self) -> int:
        """Return what a lane was measured to take."""
        return self._lane

    def new_pass(self, scratch: Buffer | None, place: Place) -> EnginePass:  # noqa: ARG002
        """Return a pass in an InferenceSession of its own."""
        return OnnxRuntimePass(self._load(place.stream), self.spec, place)

    def warmed(self) -> None:
        """Nothing is kept: the provider compiles nothing."""

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


__all__ = ["open_session", "probe", "require_options"]


def probe(device: int = 0) -> str | None:  # noqa: ARG001 - one answer for all devices
    """Return None where it is usable, else one sentence that says why not and what helps."""
    if reason := files.why_not_importable("onnxruntime-gpu", "gpu"):
        return reason
    import onnxruntime

    if PROVIDER not in onnxruntime.get_available_providers():
        return (
            f"ONNX Runtime has no {PROVIDER} here: pip uninstall onnxruntime, then pip install --force-reinstall "
            "onnxruntime-gpu, which owns the same module"
        )
    return why_not() or load_libraries()


def open_session(path: Path, device: int, options: Options) -> OnnxRuntimeGpuSession:
    """Open an ONNX file. Before a model is first used on a GPU, sets of the provider's options are tried on it.

    Parameters
    ----------
    path
        The ONNX file.
    device
        The GPU's number, as CUDA counts.
    options
        The user's options of the provider, by name; if there are any, they are used, and no sets are compared.

    Raises
    ------
    BackendUnavailableError
        The provider's libraries are missing, or it has not all of the graph's operators.
    ModelFileError
        The file is not a model of ours.
    OptionError
        The provider does not have an option, or not its value.
    OutOfMemoryError
        The model does not fit on the device.
    InferenceError
        A call on the device failed.
    """
    import onnxruntime

    spec, cuda = read_spec(path), CudaDevice(open_driver(device, os.environ))
    title = f"ONNX Runtime {onnxruntime.__version__} on {cuda}"

    def opened(chosen: Options, lane: int) -> OnnxRuntimeGpuSession:
        return OnnxRuntimeGpuSession(spec, title, cuda, partial(load, path, spec, chosen, device), lane)

    trials = Trials(path, spec, cuda, options, opened)
    choice = trials.kept()
    if choice is None:
        choice = trials.choice()
    else:  # what does not load is said here, so that `auto` can go on
        with cuda.current():
            load(path, spec, trials.options(choice), device)
    return opened(trials.options(choice), choice.lane)
