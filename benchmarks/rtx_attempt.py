"""One attempt to run a model with TensorRT for RTX on the GPU at hand, in a process of its own.

python -m unetrt.benchmarks.rtx_attempt MODEL CAPABILITY      prints what came of it as JSON
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.cuda.implementations import open_driver
from unetrt.runtime.cuda.resources import Buffer, LibraryObjects, Stream
from unetrt.runtime.engines.messages import collected, logger_of
from unetrt.runtime.errors import EngineError, UnetrtError

# In the words of ComputeCapability; for the first nothing is named.
UNNAMED = "none named"
BUILD, LOAD, CONTEXT, PASS = "build", "deserialise", "context", "pass"


@dataclass
class Outcome:
    """What came of an attempt.

    Attributes
    ----------
    capability
        What the engine was built for.
    seconds
        Of each step that succeeded, by its name.
    failed
        The step that did not; empty where all did.
    messages
        TensorRT's errors, and ours, in order.
    """

    capability: str
    seconds: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    messages: list[str] = field(default_factory=list)

    def take(self, name: str, step: Callable[[], Any]) -> None:
        """Take a step, unless one failed before; it fails by raising or by returning None, as TensorRT does."""
        if self.failed:
            return
        begin = time.perf_counter()
        try:
            with collected(self.messages):
                if step() is None:
                    self.failed = name
        except (UnetrtError, AttributeError, RuntimeError, TypeError) as error:
            self.failed = name
            self.messages.append(f"{type(error).__name__}: {error}")
        else:
            self.seconds[name] = round(time.perf_counter() - begin, 4)


class Attempt:
    """The steps from a model file to one pass.

    Parameters
    ----------
    trt
        TensorRT for RTX.
    """

    def __init__(self, trt: Any) -> None:
        self.trt, self.logger = trt, logger_of(trt)
        self.plan: Any = None

    def build(self, model: Path, capability: str) -> Any:
        """Build an engine."""
        trt, builder = self.trt, self.trt.Builder(self.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse(model.read_bytes(), str(model)):
            raise EngineError(str(parser.get_error(0).desc()))
        config = builder.create_builder_config()
        if capability != UNNAMED:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
        self.plan = builder.build_serialized_network(network, config)
        return self.plan

    def load(self) -> Any:
        """Load it on the first GPU."""
        self.device = CudaDevice(open_driver(0, os.environ))
        self.objects = LibraryObjects(self.device).add(lambda: self.trt.Runtime(self.logger))
        self.objects.add(lambda: self.objects[0].deserialize_cuda_engine(self.plan))
        return self.objects[1]

    def context(self) -> Any:
        """Make a context, which compiles for the device."""
        self.objects.add(self.objects[1].create_execution_context)
        return self.objects[2]

    def run(self) -> bool | None:
        """Compute zeros, and wait."""
        with self.device.current(), self.device.stream() as stream, ExitStack() as memory:
            for index in range(self.objects[1].num_io_tensors):
                memory.enter_context(self._bound(index, stream))
            started = self.objects[2].execute_async_v3(stream.handle)
            stream.synchronize()
        return started or None

    def _bound(self, index: int, stream: Stream) -> Buffer:
        """Return zeros for one end of the engine."""
        engine = self.objects[1]
        name = engine.get_tensor_name(index)
        size = self.trt.volume(engine.get_tensor_shape(name)) * engine.get_tensor_dtype(name).itemsize
        buffer = self.device.buffer(size)
        self.device.driver.fill(buffer.handle, 0, size, stream.handle)
        self.objects[2].set_tensor_address(name, buffer.handle)
        return buffer


def attempt(model: Path, capability: str) -> Outcome:
    """Return how far a model gets that is built for a capability."""
    import tensorrt_rtx

    outcome = Outcome(capability)
    tried = Attempt(tensorrt_rtx)
    outcome.take(BUILD, lambda: tried.build(model, capability))
    outcome.take(LOAD, tried.load)
    outcome.take(CONTEXT, tried.context)
    outcome.take(PASS, tried.run)
    return outcome


if __name__ == "__main__":
    logging.disable(logging.INFO)
    sys.stdout.write(json.dumps(asdict(attempt(Path(sys.argv[1]), sys.argv[2]))))
