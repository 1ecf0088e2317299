"""A fake of ONNX Runtime's build for GPUs: its CPU provider, on a fake device's memory, when the stream comes to it.

What it says where something is missing is what onnxruntime-gpu 1.31.1 said without CUDA, without cuDNN, and on a driver
that finds no GPU.
"""

import gc
import sys
import weakref
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tests.runtime.cuda.fake_driver import FakeDriver
from unetrt.runtime.sessions import onnxruntime_gpu

PROVIDER = "CUDAExecutionProvider"
# The options that it took there; others it refused.
OPTIONS = {
    "device_id", "user_compute_stream", "arena_extend_strategy", "cudnn_conv1d_pad_to_nc1d", "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace", "do_copy_in_default_stream", "enable_cuda_graph", "enable_cudnn",
    "enable_skip_layer_norm_strict_mode", "fuse_conv_bias", "gpu_mem_limit", "prefer_nhwc", "sdpa_kernel",
    "tunable_op_enable", "tunable_op_max_tuning_duration_ms", "tunable_op_tuning_enable", "use_ep_level_unified_stream",
    "use_tf32",
}  # fmt: skip
ODD_OPTION = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static "
    "onnxruntime::CUDAExecutionProviderInfo onnxruntime::CUDAExecutionProviderInfo::FromProviderOptions(const "
    "onnxruntime::ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : provider_options_utils.h:182 Parse "
    'Unknown provider option: "{}".\n'
)
CUDA_CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, Status> "
    "onnxruntime::CudaCall(ERRTYPE, const char*, int) [with ERRTYPE = cudaError; bool THRW = true] CUDA failure {}: {} "
    "; GPU=0 ; hostname=lab ; file=/onnxruntime_src/cuda_execution_provider.cc ; line=355 ; expr=cudaCall(); \n\n"
)
REFUSALS = {
    "left to the CPU": (
        state.Fail,
        "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU EP, "
        "but fallback to CPU EP has been explicitly disabled by the user.",
    ),
    "no kernel": (
        state.NotImplemented,
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Conv(22) node with name 'c'",
    ),
    "no device": (RuntimeError, CUDA_CALL.format(100, "no CUDA-capable device is detected")),
    "old driver": (
        RuntimeError,
        "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 [ONNXRuntimeError] : 1 : "
        'FAIL : provider_options_utils.h:187 Parse Failed to parse provider option "device_id": '
        + CUDA_CALL.format(35, "CUDA driver version is insufficient for CUDA runtime version"),
    ),
    "no memory": (RuntimeError, CUDA_CALL.format(2, "out of memory")),
}
PASSES = {
    "full arena": (
        RuntimeError,
        "Error in execution: Non-zero status code returned while running Conv node. Name:'c' Status Message: "
        "bfc_arena.cc:376 void* BFCArena::AllocateRawInternal(size_t) Failed to allocate memory for requested buffer "
        "of size 4294967296\n",
    ),
    "lost": (RuntimeError, "Error in execution: " + CUDA_CALL.format(719, "unspecified launch failure")),
}


@dataclass
class Behaviour:
    """What a session with certain options does.

    Attributes
    ----------
    seconds
        What a pass takes, by the device's clock.
    answer
        `right`, `nan`, `other` (other classes), or `blank` (the first class everywhere).
    takes
        Bytes of the device's memory.
    loads, runs
        What goes wrong when it is loaded, or in a pass: a key of `REFUSALS`, of `PASSES`.
    """

    seconds: float = 0.0
    answer: str = "right"
    takes: int = 0
    loads: str | None = None
    runs: str | None = None


def _preload(cuda=True, cudnn=True):
    sys.stdout.write("Failed to load libcufft.so.12\n")


class FakeGpuBuild:
    """Stands in for the module's functions.

    `flaw` names what goes wrong when something is loaded, or in a pass; `behaviour` says it for each set of options.
    """

    def __init__(self, monkeypatch, driver):
        self.driver, self.flaw, self.loaded = driver, None, []
        self.living = weakref.WeakSet()
        self.options, self.behaviour = OPTIONS, lambda settings: Behaviour()
        self._real = onnxruntime.InferenceSession
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDER, "CPUExecutionProvider"])
        monkeypatch.setattr(onnxruntime, "InferenceSession", self._load)
        monkeypatch.setattr(onnxruntime, "preload_dlls", _preload)

    def _load(self, path, options, providers, enable_fallback=1):
        if providers == ["CPUExecutionProvider"]:
            return self._real(path, options, providers, enable_fallback=enable_fallback)
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        assert not enable_fallback
        ((name, settings),) = providers
        self.driver.require_current("a session")
        self.loaded.append(settings)
        assert name == PROVIDER
        if unknown := set(settings) - self.options:
            raise RuntimeError(ODD_OPTION.format(unknown.pop()))
        behaviour = self.behaviour(settings)
        real = self._real(path, providers=["CPUExecutionProvider"])  # first, as a file is read before it is placed
        free = self.driver.total - self.driver.taken
        full = "no memory" if behaviour.takes > min(free, int(settings.get("gpu_mem_limit", free))) else None
        if (flaw := self.flaw or behaviour.loads or full) in REFUSALS:
            kind, said = REFUSALS[flaw]
            raise kind(said)
        engine = FakeGpuEngine(self, real, settings, behaviour)
        self.living.add(engine)
        return engine


class FakeGpuEngine:
    def __init__(self, build, real, settings, behaviour):
        self._build, self._real, self._settings, self._behaviour = build, real, settings, behaviour
        self.get_inputs, self.get_outputs = real.get_inputs, real.get_outputs
        build.driver.taken += behaviour.takes
        stream = int(settings.get("user_compute_stream", 0))
        weakref.finalize(self, self._freed, build.driver, stream, behaviour.takes)

    @staticmethod
    def _freed(driver, stream, took):
        driver.taken -= took
        if stream and stream not in driver.live:
            driver.violations.append("a session outlived its stream")

    def get_providers(self):
        return ["CPUExecutionProvider"] if self._build.flaw == "silent" else [PROVIDER, "CPUExecutionProvider"]

    def io_binding(self):
        return FakeBinding(self._build.driver, self._real.io_binding())

    def run_with_iobinding(self, binding, options):
        driver = self._build.driver
        if (flaw := self._build.flaw or self._behaviour.runs) in PASSES:
            kind, said = PASSES[flaw]
            raise kind(said)
        if options.get_run_config_entry("disable_synchronize_execution_providers") != "1":
            driver.violations.append("a pass was waited for")
        driver.compute(int(self._settings["user_compute_stream"]), lambda: self._compute(binding))

    def _compute(self, binding):
        self._real.run_with_iobinding(binding.on_the_cpu)
        self._build.driver.ahead += self._behaviour.seconds
        output, answer = binding.output(), self._behaviour.answer
        if answer == "nan":  # of which an argmax makes the first class
            output[...] = np.nan if output.dtype == np.float32 else 0
        elif answer == "blank":
            output[...] = 0
        elif answer == "other":
            output[...] = output[:, ::-1].copy() if output.dtype == np.float32 else 1 - output


class FakeBinding:
    """Binds what is said to lie on the fake device, which is memory of the host."""

    def __init__(self, driver, real):
        self._driver, self.on_the_cpu, self._bound = driver, real, None

    def bind_input(self, name, *place_and_tensor):
        self.on_the_cpu.bind_input(name, "cpu", 0, *self._tensor(*place_and_tensor))

    def bind_output(self, name, *place_and_tensor):
        self._bound = place_and_tensor[2:]
        self.on_the_cpu.bind_output(name, "cpu", 0, *self._tensor(*place_and_tensor))

    def output(self):
        dtype, shape, address = self._bound
        return self._driver.array(address, shape, dtype)

    def _tensor(self, kind, index, *tensor):
        if (kind, index) != ("cuda", self._driver.index):
            self._driver.violations.append(f"bound to {kind} {index}")
        return tensor


class Bench:
    """A machine with a fake GPU and a fake build of ONNX Runtime on it."""

    def __init__(self, monkeypatch):
        self.driver = FakeDriver()
        self.driver.opened = 0
        monkeypatch.setattr(onnxruntime_gpu, "open_driver", lambda index, _: self._opened(index))
        monkeypatch.setattr(onnxruntime_gpu, "why_not", lambda: None)
        monkeypatch.setattr("unetrt.runtime.cuda.driver.why_not", lambda *_: None)
        self.build = FakeGpuBuild(monkeypatch, self.driver)

    def _opened(self, index):
        self.driver.index = index
        self.driver.opened += 1
        return self.driver

    def check(self):
        gc.collect()  # a traceback may hold some still
        assert self.driver.violations == []
        assert self.driver.live == {}
        assert self.driver.released == self.driver.opened > 0
        assert not self.build.living
