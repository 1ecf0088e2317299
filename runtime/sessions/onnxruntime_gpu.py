"""ONNX Runtime on a GPU: with CUDA, and with TensorRT or TensorRT for RTX where it has those."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from unetrt.runtime.artifacts import writable_folder
from unetrt.runtime.cache_folder import cache_folder, locked
from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.cuda.implementations import open_driver, why_not
from unetrt.runtime.model_files.external_data import sha256_of_model
from unetrt.runtime.model_files.onnx_file import read_spec
from unetrt.runtime.sessions import onnxruntime_files as files
from unetrt.runtime.sessions.onnxruntime_gpu_session import OnnxRuntimeGpuSession
from unetrt.runtime.sessions.onnxruntime_libraries import preload
from unetrt.runtime.sessions.onnxruntime_provider import Provider

Settings = Mapping[str, str]


@dataclass(frozen=True)
class GpuBackend:
    """A provider as a backend.

    Attributes
    ----------
    provider
        What computes.
    absent
        What to do where ONNX Runtime was built without it.
    settings
        What it is asked for; a function of the folder where it keeps what it builds, if it does.
    package
        A package to import first, as it loads libraries that the provider needs.
    """

    provider: Provider
    absent: str
    settings: Settings | Callable[[Path], Settings]
    package: str | None = None

    def probe(self, device: int = 0) -> str | None:  # noqa: ARG002 - one answer for all devices
        """Return None where it is usable, else one sentence that says why not and what helps."""
        if reason := files.why_not_importable("onnxruntime-gpu", "gpu"):
            return reason
        import onnxruntime

        if self.provider.name not in onnxruntime.get_available_providers():
            return f"ONNX Runtime has no {self.provider.name} here: {self.absent}"
        return why_not()

    def open_session(self, path: Path, device: int) -> OnnxRuntimeGpuSession:
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
        preload(self.package)
        settings, turn = self._settings(path, cuda, onnxruntime.__version__)
        load = partial(self.provider.load, path, settings, device)
        with cuda.current(), turn:
            files.require_fit(load(), spec, path)
        name = f"ONNX Runtime {onnxruntime.__version__} with {self.provider.title} on {cuda}"
        return OnnxRuntimeGpuSession(spec, name, cuda, load)

    def _settings(self, path: Path, cuda: CudaDevice, version: str) -> tuple[Settings, AbstractContextManager[None]]:
        """Return the options, and what lets one process at a time build and keep an engine."""
        if not callable(self.settings):
            return self.settings, nullcontext()
        # The names that providers give to engines cover the graph's names and shapes, and not its weights.
        key = sha256("\n".join((sha256_of_model(path), cuda.driver.name, version)).encode()).hexdigest()[:32]
        folder = writable_folder(cache_folder("onnxruntime") / key)
        return self.settings(folder), locked(folder)


CUDA = GpuBackend(
    Provider(
        "CUDAExecutionProvider",
        "CUDA provider",
        "onnxruntime_providers_cuda",
        "pip install 'onnxruntime-gpu[cuda,cudnn]'",
    ),
    "pip uninstall onnxruntime, then pip install --force-reinstall onnxruntime-gpu, which owns the same module",
    {
        # No more than is asked for: each lane has an arena of its own, and powers of two would waste up to half of it.
        "arena_extend_strategy": "kSameAsRequested",
        # A rule, not a measurement: all lanes take the same algorithm, so a tile's result is the same in each, and no
        # workspace of gigabytes is tried out.
        "cudnn_conv_algo_search": "HEURISTIC",
        # Else FP32 is computed with 10 bits of mantissa.
        "use_tf32": "0",
    },
)
TENSORRT = GpuBackend(
    Provider(
        "TensorrtExecutionProvider",
        "TensorRT provider",
        "onnxruntime_providers_tensorrt",
        "pip install 'onnxruntime-gpu[cuda,cudnn]' and the TensorRT 10 that it was built with",
    ),
    "pip uninstall onnxruntime, then pip install --force-reinstall onnxruntime-gpu, which owns the same module",
    # The precision is the graph's: trt_fp16_enable would let TensorRT choose others.
    lambda folder: {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(folder)},
    package="tensorrt",
)
TENSORRT_RTX = GpuBackend(
    Provider(
        "NvTensorRTRTXExecutionProvider",
        "TensorRT for RTX provider",
        "onnxruntime_providers_nv_tensorrt_rtx",
        "install the TensorRT for RTX that it was built with",
    ),
    "build ONNX Runtime with --use_nv_tensorrt_rtx, as onnxruntime-gpu comes without it",
    lambda folder: {"nv_runtime_cache_path": str(folder)},
    package="tensorrt_rtx",
)
