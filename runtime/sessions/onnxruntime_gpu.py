"""ONNX Runtime on a GPU, with its CUDA execution provider.

A graph computes entirely on the GPU, or is refused: ONNX Runtime's silent fallbacks to the CPU are disabled. Each lane
has a separate InferenceSession, because the stream is an option of the session. The provider's options are chosen by
`onnxruntime_options`; the libraries of CUDA and cuDNN are loaded by `onnxruntime_libraries`.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from unetrt.runtime.candidates import why_not_importable
from unetrt.runtime.cuda.device import Buffer, CudaDevice, Stream
from unetrt.runtime.cuda.driver import open_driver, why_not
from unetrt.runtime.errors import BackendUnavailableError, ModelFileError, OptionError, UnetrtError
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.safety import require_safe
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.sessions import onnxruntime as ort
from unetrt.runtime.sessions.cuda import CudaSession, EnginePass, Place
from unetrt.runtime.sessions.onnxruntime_libraries import load_libraries, why_not_loaded
from unetrt.runtime.sessions.onnxruntime_options import Options, Trials, require_options

log = logging.getLogger("unetrt")

# ONNX Runtime's name of the provider, and its library without prefix and suffix.
PROVIDER, LIBRARY = "CUDAExecutionProvider", "onnxruntime_providers_cuda"
TITLE = "ONNX Runtime's CUDA provider"
# ONNX Runtime's errors for an option or its value (provider_options_utils.h).
INVALID_OPTION = re.compile(r'(Unknown|Failed to parse) provider option:? "[^"\n]*"')
# ONNX Runtime's error where the provider's library did not load, and also where it lacks operators of the graph.
NOT_LOADED = "fallback to CPU EP has been explicitly disabled"

__all__ = ["open_session", "probe", "require_options"]


def probe(device: int = 0) -> str | None:  # noqa: ARG001 - one answer for all devices
    """Return None where the provider is usable, else one sentence that says why not and what helps."""
    if reason := why_not_importable("onnxruntime", "ONNX Runtime", "gpu", "onnxruntime-gpu"):
        return reason
    import onnxruntime

    if PROVIDER not in onnxruntime.get_available_providers():
        return (
            f"ONNX Runtime has no {PROVIDER} here: pip uninstall onnxruntime, then pip install --force-reinstall "
            "onnxruntime-gpu, which owns the same module"
        )
    return why_not() or load_libraries()


def open_session(path: Path, device: int, options: Options) -> "OnnxRuntimeGpuSession":
    """Open an ONNX file; the first time on a GPU, sets of the provider's options are tried.

    Parameters
    ----------
    path
        The ONNX file.
    device
        CUDA's index of the GPU.
    options
        The user's options of the provider, by name; if given, they are used and no sets are compared.

    Raises
    ------
    BackendUnavailableError
        The provider's libraries are missing, or it lacks operators of the graph.
    ModelFileError
        The file is not a unetrt model.
    OptionError
        The provider does not know an option or its value.
    OutOfMemoryError
        The model does not fit on the device.
    InferenceError
        A call on the device failed.
    """
    import onnxruntime

    spec, cuda = read_spec(path), CudaDevice(open_driver(device, os.environ))
    title = f"ONNX Runtime {onnxruntime.__version__} on {cuda}"

    def opened(chosen: Options, lane: int) -> "OnnxRuntimeGpuSession":
        return OnnxRuntimeGpuSession(spec, title, cuda, partial(load, path, spec, chosen, device), lane)

    trials = Trials(path, spec, cuda, options, opened)
    choice = trials.kept()
    if choice is None:
        choice = trials.choice()
    else:  # a model that does not load must raise here, so that `auto` tries the next backend
        with cuda.current():
            load(path, spec, trials.options(choice), device)
    return opened(trials.options(choice), choice.lane)


def load(path: Path, spec: ModelSpec, options: Mapping[str, str], index: int, stream: Stream | None = None) -> Any:
    """Return an InferenceSession of a file.

    Parameters
    ----------
    path, spec
        The ONNX file, and its spec.
    options
        The provider's options, except device and stream.
    index
        CUDA's index of the device.
    stream
        The stream it computes in; None where it only has to load.

    Raises
    ------
    BackendUnavailableError
        The provider's library does not load, or it lacks operators of the graph.
    ModelFileError
        The file is not safe to open, ONNX Runtime cannot load it, or it does not fit its spec.
    OptionError
        This ONNX Runtime does not know an option or its value.
    OutOfMemoryError
        The weights do not fit on the device.
    InferenceError
        A call on the device failed.
    """
    require_safe(path)
    # The provider sets has_user_compute_stream itself.
    place = {"device_id": str(index)} | ({"user_compute_stream": str(stream.handle)} if stream else {})
    session_options = ort.session_options(threads=1)  # there is nothing to compute on the host
    session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    engine = None
    try:
        engine = ort.load(path, session_options, [(PROVIDER, {**options, **place})])
    except ort.failures() as error:
        log.debug("ONNX Runtime: %s", error)
        refusal = _refused(error, path)
    else:
        unfit = _unfit(engine, path, spec)
        if unfit is None:
            return engine
        refusal = unfit
    # The error's traceback must not hold the engine, which would then outlive the stream.
    engine = None
    raise refusal


def _unfit(engine: Any, path: Path, spec: ModelSpec) -> UnetrtError | None:
    """Return the error for an InferenceSession that would compute on the CPU, or does not fit its spec."""
    if PROVIDER not in engine.get_providers():
        return _not_loaded(path)
    try:
        ort.require_fit(engine, spec, path)
    except ModelFileError as error:
        return ModelFileError(str(error))
    return None


def _refused(error: Exception, path: Path) -> UnetrtError:
    """Return the error for an exception of ONNX Runtime while it loaded a file."""
    if NOT_LOADED in str(error):
        return _not_loaded(path)
    invalid = INVALID_OPTION.search(str(error))
    if invalid and not ort.FAILED_CALL.search(str(error)):  # a failing device is reported as an invalid device_id
        return OptionError(f"{TITLE}: {invalid[0]}; omit that backend option, or give it another value")
    if type(error).__name__ == "NotImplemented":
        return _lacking(path, ort.first_line(error))
    if ort.is_about_the_device(error):
        return ort.translated(error, f"{path} could not be loaded with {TITLE}")
    return ort.not_loadable(error, path)


def _not_loaded(path: Path) -> BackendUnavailableError:
    if reason := why_not_loaded(LIBRARY):
        return BackendUnavailableError(f"{TITLE} does not load ({reason}): pip install 'onnxruntime-gpu[cuda,cudnn]'")
    return _lacking(path, "some of its operators would compute on the CPU")


def _lacking(path: Path, reason: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"{path} cannot be computed with {TITLE} ({reason}): use another backend, or export with another --precision "
        "or --input"
    )


class OnnxRuntimeGpuSession(CudaSession):
    """A session whose lanes have an InferenceSession each.

    The stream is an option of an InferenceSession. So every lane loads the model: weights, activations and workspace
    are on the device once for each lane.

    Passes are not captured as CUDA graphs: ONNX Runtime enqueues host functions that free memory
    (`ReleaseCpuBufferCallback` in cuda_stream_handle.cc), and a graph would call them with each replay.

    Parameters
    ----------
    spec, name, device
        See `CudaSession`.
    load
        Makes an InferenceSession that computes in a stream; raises InferenceError or BackendUnavailableError.
    lane
        Bytes that ONNX Runtime allocates on the device for each lane; 0 where unknown.
    """

    def __init__(
        self, spec: ModelSpec, name: str, device: CudaDevice, load: Callable[[Stream], Any], lane: int
    ) -> None:
        super().__init__(spec, name, device)
        self._load, self._lane = load, lane

    def scratch(self) -> int:
        """Return 0: ONNX Runtime allocates its scratch memory."""
        return 0

    def own_memory(self) -> int:
        """Return the measured memory of a lane, in bytes."""
        return self._lane

    def new_pass(self, scratch: Buffer | None, place: Place) -> EnginePass:  # noqa: ARG002
        """Return a pass in a new InferenceSession."""
        return OnnxRuntimePass(self._load(place.stream), self.spec, place)

    def unload(self) -> None:
        """Do nothing: each lane has freed its InferenceSession."""


class OnnxRuntimePass:
    """One InferenceSession, bound to the lane's addresses.

    Parameters
    ----------
    engine
        The InferenceSession, which computes in the place's stream.
    spec
        Gives the tensors at the addresses.
    place
        Where it works.
    """

    def __init__(self, engine: Any, spec: ModelSpec, place: Place) -> None:
        self._engine: Any = engine
        self._binding: Any = engine.io_binding()
        self._options = _asynchronous()
        index = place.stream.device.driver.index
        (name, shape, dtype), (out_name, out_shape, out_dtype) = spec.tensors()
        self._binding.bind_input(name, "cuda", index, dtype, shape, place.input)
        self._binding.bind_output(out_name, "cuda", index, out_dtype, out_shape, place.output)

    def enqueue(self) -> None:
        """Enqueue a pass on the stream; raises InferenceError or OutOfMemoryError."""
        try:
            self._engine.run_with_iobinding(self._binding, self._options)
            return
        except ort.failures() as error:
            log.debug("ONNX Runtime: %s", error)
            failure = ort.translated(error, "ONNX Runtime failed")
        raise failure  # outside of `except`: ONNX Runtime's traceback would keep its device memory alive

    def close(self) -> None:
        """Free the InferenceSession with all its memory."""
        self._binding = None
        self._engine = None


def _asynchronous() -> Any:
    """Return RunOptions without the synchronisation of the stream at the end of each run."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    # The key is kOrtRunOptionsConfigDisableSynchronizeExecutionProviders in onnxruntime_run_options_config_keys.h.
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
