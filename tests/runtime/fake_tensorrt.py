"""A fake of TensorRT's runtime, for machines without a GPU: its engines are ONNX files, which ONNX Runtime computes.

A pass is given to a stream of the fake CUDA driver, and computed when that gets to it.
"""

import enum
from types import ModuleType

import numpy as np
import onnxruntime

from tests.runtime.cuda.fake_driver import AskedForError

TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16}
SCRATCH = 4096


class FakeTensorRt(ModuleType):
    """The module.

    `flaws` are what goes wrong: `load`, `context`, `address`, `enqueue`, `capture`, `cache`, `validity`, `suboptimal`,
    or a member of EngineInvalidityDiagnostics.
    """

    def __init__(self, driver, version="10.13.3.9", rtx=False, flaws=()):
        super().__init__("fake_tensorrt")
        self.driver, self.flaws, self.rtx, self.__version__ = driver, set(flaws), rtx, version
        self.live: list[str] = []
        self.loads = 0
        self.compiled = b""  # what the runtime cache holds

    class ILogger:
        def __init__(self):
            pass

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC = 0
        USER_MANAGED = 2

    class EngineValidity(enum.Enum):
        VALID = 0
        SUBOPTIMAL = 1
        INVALID = 2

    class EngineInvalidityDiagnostics(enum.IntEnum):
        VERSION_MISMATCH = 1
        UNSUPPORTED_CC = 2
        OLD_CUDA_DRIVER = 4
        OLD_CUDA_RUNTIME = 8
        INSUFFICIENT_GPU_MEMORY = 16
        MALFORMED_ENGINE = 32
        CUDA_ERROR = 64

    class CudaGraphStrategy(enum.Enum):
        DISABLED = 0
        WHOLE_GRAPH_CAPTURE = 1

    def nptype(self, kind):
        return kind

    def Runtime(self, logger):  # noqa: N802
        return RuntimeForRtx(self, logger) if self.rtx else Runtime(self, logger)


class Counted:
    """Something of TensorRT's that must be gone in the end, and before what it was made from."""

    def __init__(self, trt, kind):
        self.trt, self.kind = trt, kind
        trt.driver.require_current(kind)
        trt.live.append(kind)

    def __del__(self):
        self.trt.driver.require_current(f"the end of {self.kind}")
        self.trt.live.remove(self.kind)


class Runtime(Counted):
    def __init__(self, trt, logger):
        super().__init__(trt, "runtime")
        self.logger = logger

    def deserialize_cuda_engine(self, content):
        if "load" in self.trt.flaws:
            self.logger.log(1, "the engine was built for another device")
            return None
        self.trt.loads += 1
        return ICudaEngine(self.trt, content, self.logger)


class RuntimeForRtx(Runtime):
    engine_header_size = 64

    def get_engine_validity(self, header):
        self.trt.driver.require_current("get_engine_validity")
        assert len(header) == self.engine_header_size
        causes = sum(kind for kind in self.trt.EngineInvalidityDiagnostics if kind.name in self.trt.flaws)
        if "validity" in self.trt.flaws:
            self.logger.log(0, "the GPU does not say what it is")
        kinds = self.trt.EngineValidity
        if causes or "validity" in self.trt.flaws:
            return kinds.INVALID, causes
        return kinds.SUBOPTIMAL if "suboptimal" in self.trt.flaws else kinds.VALID, 0


class ICudaEngine(Counted):
    def __init__(self, trt, content, logger):
        super().__init__(trt, "engine")
        self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        self.logger, self.device_memory_size_v2 = logger, SCRATCH
        self._ends = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors = len(self._ends)

    def get_tensor_name(self, index):
        return self._ends[index].name

    def get_tensor_shape(self, name):
        end = self._end(name)
        return (*end.shape, 2) if end.type == "tensor(uint16)" else tuple(end.shape)

    def get_tensor_dtype(self, name):
        kind = TYPES[self._end(name).type]
        return np.uint8 if kind is np.uint16 else kind

    def create_runtime_config(self):
        return IRuntimeConfig(self.trt)

    def create_execution_context(self, settings):
        strategy = settings.strategy if isinstance(settings, IRuntimeConfig) else settings
        assert strategy is self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if "context" in self.trt.flaws:
            self.logger.log(1, "no room for a context")
            return None
        return IExecutionContext(self.trt, self)

    def _end(self, name):
        return next(end for end in self._ends if end.name == name)


class IRuntimeConfig(Counted):
    def __init__(self, trt):
        assert trt.rtx
        super().__init__(trt, "configuration")
        self.strategy = self.cache = None
        self.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return IRuntimeCache(self.trt)

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class IRuntimeCache(Counted):
    def __init__(self, trt):
        super().__init__(trt, "cache")
        self.content = b""

    def deserialize(self, content):
        self.content = bytes(content) if "cache" not in self.trt.flaws else b""
        self.trt.compiled = self.content
        return "cache" not in self.trt.flaws

    def serialize(self):
        return self.content or b"compiled"


class IExecutionContext(Counted):
    def __init__(self, trt, engine):
        super().__init__(trt, "context")
        self.engine, self._addresses, self._memory = engine, {}, None

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        if "address" in self.trt.flaws:
            self.engine.logger.log(1, "no such tensor")
        return "address" not in self.trt.flaws

    def set_device_memory(self, memory, size):
        assert size >= SCRATCH
        self._memory = memory

    def execute_async_v3(self, stream_handle):
        self.trt.driver.require_current("execute_async_v3")
        capturing = self.trt.driver.is_capturing(stream_handle)
        if "enqueue" in self.trt.flaws or (capturing and "capture" in self.trt.flaws):
            self.engine.logger.log(1, "cannot be captured" if capturing else "a kernel is missing")
            return False
        assert self._memory
        # The context may be gone when the stream gets here: it must be kept.
        try:
            self.trt.driver.compute(stream_handle, self._compute)
        except AskedForError as error:
            self.engine.logger.log(1, str(error))
            return False
        return True

    def _compute(self):
        session = self.engine.session
        frames, scores = (self._array(end) for end in (session.get_inputs()[0], session.get_outputs()[0]))
        scores[...] = session.run(None, {session.get_inputs()[0].name: frames})[0]

    def _array(self, end):
        return self.trt.driver.array(self._addresses[end.name], end.shape, TYPES[end.type])
