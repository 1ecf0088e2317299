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

OPTIONS = {
    # No more than is asked for: each lane has an arena of its own, and powers of two would waste up to half of it.
    "arena_extend_strategy": "kSameAsRequested",
    # A rule, not a measurement: all lanes take the same algorithm, so a tile's result is the same in each, and no
    # workspace of gigabytes is tried out.
    "cudnn_conv_algo_search": "HEURISTIC",
    # Else FP32 is computed with 10 bits of mantissa.
    "use_tf32": "0",
}


def probe() -> str | None:
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


def open_session(path: Path, device: int) -> OnnxRuntimeGpuSession:
    """Load an ONNX file: once to see that all of it computes on the GPU, then once for each lane.

    Parameters
    ----------
    path
        The ONNX file.
    device
        The GPU's number, as CUDA counts.

    Raises
    ------
    BackendUnavailableError
        The provider's libraries are missing, or it has not all of the graph's operators.
    ModelFileError
        The file is not a model of ours.
    OutOfMemoryError
        Its weights do not fit on the device.
    InferenceError
        A call on the device failed.
    """
    import onnxruntime

    spec, cuda = read_spec(path), CudaDevice(open_driver(device, os.environ))
    load_in = partial(load, path, OPTIONS, device)
    with cuda.current():
        files.require_fit(load_in(), spec, path)
    return OnnxRuntimeGpuSession(spec, f"ONNX Runtime {onnxruntime.__version__} on {cuda}", cuda, load_in)
