"""ONNX Runtime on a GPU, with its CUDA provider."""

import os
from functools import partial
from pathlib import Path

from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.cuda.implementations import open_driver, why_not
from unetrt.runtime.model_files.onnx_file import read_spec
from unetrt.runtime.sessions import onnxruntime_files as files
from unetrt.runtime.sessions.onnxruntime_gpu_session import PROVIDER, OnnxRuntimeGpuSession, load
from unetrt.runtime.sessions.onnxruntime_libraries import load_libraries
from unetrt.runtime.sessions.onnxruntime_options import Options, Trials, require_options

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
