"""A fake of ONNX Runtime's build for GPUs: its CPU provider, on a fake device's memory, when the stream comes to it.

What it says where something is missing is what onnxruntime-gpu 1.31.1 said without CUDA, without cuDNN, and on a driver
that finds no GPU.
"""

import sys
import weakref

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

PROVIDER = "CUDAExecutionProvider"
# The options that it took there, of those that are used; others it refused.
OPTIONS = {"device_id", "user_compute_stream", "arena_extend_strategy", "cudnn_conv_algo_search", "use_tf32"}
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


def _preload(cuda=True, cudnn=True):
    sys.stdout.write("Failed to load libcufft.so.12\n")


class FakeGpuBuild:
    """Stands in for the module's functions. `flaw` names what goes wrong when something is loaded, or in a pass."""

    def __init__(self, monkeypatch, driver):
        self.driver, self.flaw, self.loaded = driver, None, []
        self.living = weakref.WeakSet()
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
        if unknown := set(settings) - OPTIONS:
            raise RuntimeError(f'Unknown provider option: "{unknown.pop()}".\n')
        real = self._real(path, providers=["CPUExecutionProvider"])  # first, as a file is read before it is placed
        if self.flaw in REFUSALS:
            kind, said = REFUSALS[self.flaw]
            raise kind(said)
        engine = FakeGpuEngine(self, real, settings)
        self.living.add(engine)
        return engine


class FakeGpuEngine:
    def __init__(self, build, real, settings):
        self._build, self._real, self._settings = build, real, settings
        self.get_inputs, self.get_outputs = real.get_inputs, real.get_outputs
        weakref.finalize(self, self._freed, build.driver, int(settings.get("user_compute_stream", 0)))

    @staticmethod
    def _freed(driver, stream):
        if stream and stream not in driver.live:
            driver.violations.append("a session outlived its stream")

    def get_providers(self):
        return ["CPUExecutionProvider"] if self._build.flaw == "silent" else [PROVIDER, "CPUExecutionProvider"]

    def io_binding(self):
        return FakeBinding(self._build.driver, self._real.io_binding())

    def run_with_iobinding(self, binding, options):
        driver = self._build.driver
        if self._build.flaw in PASSES:
            kind, said = PASSES[self._build.flaw]
            raise kind(said)
        if options.get_run_config_entry("disable_synchronize_execution_providers") != "1":
            driver.violations.append("a pass was waited for")
        driver.compute(
            int(self._settings["user_compute_stream"]), lambda: self._real.run_with_iobinding(binding.on_the_cpu)
        )


class FakeBinding:
    """Binds what is said to lie on the fake device, which is memory of the host."""

    def __init__(self, driver, real):
        self._driver, self.on_the_cpu = driver, real

    def bind_input(self, name, *place_and_tensor):
        self.on_the_cpu.bind_input(name, "cpu", 0, *self._tensor(*place_and_tensor))

    def bind_output(self, name, *place_and_tensor):
        self.on_the_cpu.bind_output(name, "cpu", 0, *self._tensor(*place_and_tensor))

    def _tensor(self, kind, index, *tensor):
        if (kind, index) != ("cuda", self._driver.index):
            self._driver.violations.append(f"bound to {kind} {index}")
        return tensor
