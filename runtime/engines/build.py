"""Builds an engine: model file in, serialised TensorRT engine out.

One code path serves TensorRT 10, TensorRT 11 and TensorRT for RTX. The build runs on a separate thread, so that the
caller can interrupt it; `Progress` connects the two. TensorRT's errors are `collected`, so that the exception can quote
them. TensorRT's measurements of kernels are kept in a timing
cache for the next build on the same GPU::

    engine = build(Path("model.onnx"), facts, Progress(print))
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from traceback import clear_frames
from typing import Any, NamedTuple

import numpy as np

from unetrt.runtime.engines.engine_file import BuildOptions, Facts, engine_tensors
from unetrt.runtime.engines.flavours import collected, first_error, logger_of, named_flavour
from unetrt.runtime.errors import EngineError, OutOfMemoryError, OutputError, UnetrtError, is_out_of_memory
from unetrt.runtime.files.atomic import cache_folder, cached_file, locked, read_cached
from unetrt.runtime.model.byte_pairs import as_byte_pairs
from unetrt.runtime.model.integrity import sha256_of_model
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.safety import require_safe
from unetrt.runtime.model.spec import Tensor

log = logging.getLogger("unetrt.tensorrt")

# Seconds between checks for KeyboardInterrupt during a build.
POLL_INTERVAL = 0.1
# Limit of a timing cache in bytes; those of some hundred layers take a megabyte.
LARGEST = 1 << 28

# Makes a device current on the thread that enters it.
DeviceContext = Callable[[], AbstractContextManager[Any]]


class Phase(NamedTuple):
    """The progress of one phase of a build, which may be nested in another.

    Attributes
    ----------
    name, parent
        TensorRT's names of the phase and of the phase that contains it; empty at the top level.
    done, steps
        Completed steps, and all steps; equal when the phase has ended.
    """

    name: str
    parent: str
    done: int
    steps: int


class Progress:
    """Connects a build in flight with its caller; thread-safe.

    Parameters
    ----------
    report
        Called at each step, on a thread of TensorRT. An exception cancels the build and is raised by `build`.
    """

    def __init__(self, report: Callable[[Phase], None] | None = None) -> None:
        self._report = report or (lambda _phase: None)
        self._cancelled = threading.Event()
        self._phases: dict[str, tuple[str, int]] = {}
        self.error: BaseException | None = None

    def cancel(self) -> None:
        """Request the build to end at its next step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Record that a phase has begun."""
        self._phases[name] = parent or "", steps
        self._call_report(name, 0)

    def step(self, name: str, step: int) -> bool:
        """Record that a step, counted from 0, is complete; return whether to continue."""
        self._call_report(name, step + 1)
        return not self.cancelled

    def finish(self, name: str) -> None:
        """Record that a phase has ended, with or without all of its steps."""
        self._call_report(name, self._phases[name][1])

    def _call_report(self, name: str, done: int) -> None:
        parent, steps = self._phases[name]
        try:
            self._report(Phase(name, parent, min(done, steps), steps))
        except BaseException as error:  # noqa: BLE001 - it cannot pass through TensorRT; `build` raises it
            self.error = error
            self.cancel()


def build(
    model: Path, facts: Facts, progress: Progress | None = None, device_context: DeviceContext = nullcontext
) -> bytes:
    """Return the serialised engine of a model file.

    KeyboardInterrupt on the calling thread cancels the build.

    Parameters
    ----------
    model
        An ONNX file that `unetrt export` wrote.
    facts
        What to build; the flavour must be installed.
    progress
        Receives every step.
    device_context
        Entered on the building thread: makes the device current on which TensorRT measures kernels. TensorRT for RTX
        needs no device.

    Raises
    ------
    ModelFileError
        The file is not a unetrt model, or not safe to read.
    EngineError
        TensorRT refuses the model or the options (the message quotes its first error), or the file has changed.
    OutOfMemoryError
        Memory ran out.
    """
    progress = progress or Progress()
    with ThreadPoolExecutor(1, thread_name_prefix="unetrt-build") as worker:
        building = worker.submit(_Build(model, facts, progress).run, device_context)
        try:
            while not building.done():
                wait([building], timeout=POLL_INTERVAL)
        except BaseException:
            progress.cancel()
            raise
        if progress.error is not None:
            raise progress.error
        return building.result()


class _Build:
    """One build, on one thread."""

    def __init__(self, model: Path, facts: Facts, progress: Progress) -> None:
        self._model, self._facts, self._progress = model, facts, progress
        self._flavour = named_flavour(facts.flavour)
        self._spec = read_spec(model)
        self._errors: list[str] = []

    def run(self, device_context: DeviceContext) -> bytes:
        """Parse, build, serialise."""
        try:
            with device_context(), collected(self._errors):
                return self._run()
        except BaseException as error:
            # A traceback would keep the builder alive. If it were freed while another builder logs, which TensorRT does
            # under the lock that freeing takes, both threads would deadlock.
            clear_frames(error.__traceback__)
            raise

    def _run(self) -> bytes:
        trt = self._flavour.load()
        builder = trt.Builder(logger_of(trt))
        # Since TensorRT 11 all networks are strongly typed.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, builder.logger)
        if not parser.parse(self._onnx(), str(self._model.absolute())):
            raise self._error([_parser_error(parser.get_error(index)) for index in range(parser.num_errors)])
        self._require_spec(trt, network)
        config = builder.create_builder_config()
        configure(trt, config, self._facts.options)
        monitor = config.progress_monitor = _new_monitor(trt, self._progress)
        # TensorRT for RTX measures no kernels at build time, and warns about a timing cache.
        times = None if self._flavour.portable else TimingCache(self._facts)
        if times:
            times.attach(config)
        self._errors.clear()  # errors of the parser that did not stop it are not the reason of a failed build
        engine = builder.build_serialized_network(network, config)
        del monitor
        if engine is None:
            raise self._error(self._errors)
        if sha256_of_model(self._model) != self._facts.model:
            raise EngineError(f"{self._model} was changed while its engine was built: build it again")
        if times:
            times.keep(config)
        return bytes(engine)

    def _onnx(self) -> bytes:
        require_safe(self._model)
        content = self._model.read_bytes()
        return as_byte_pairs(content) if self._spec.input_dtype == "uint16" else content

    def _require_spec(self, trt: Any, network: Any) -> None:
        """Compare the network with its spec: sessions allocate memory by the spec."""
        given = [network.get_input(index) for index in range(network.num_inputs)]
        given += [network.get_output(index) for index in range(network.num_outputs)]
        shown = [str(Tensor(one.name, tuple(one.shape), np.dtype(trt.nptype(one.dtype)))) for one in given]
        if mismatch := engine_tensors(self._spec).mismatch(shown):
            raise EngineError(f"{self._model}: {mismatch}; export it again")

    def _error(self, messages: list[str]) -> UnetrtError:
        """Return the error for a build that failed with these messages of TensorRT."""
        first = first_error(messages or self._errors)
        if is_out_of_memory(first):
            return OutOfMemoryError(f"{self._model}: {first}; use a smaller tile or batch, or --workspace")
        limited = self._facts.options.workspace is not None
        advice = "; use a larger --workspace, or omit it" if limited else ""
        return EngineError(f"{self._flavour.title} cannot build {self._model}: {first}{advice}")


def _parser_error(error: Any) -> str:
    """Return an error of TensorRT's parser, with its node."""
    try:
        node = " ".join(filter(None, (error.node_operator(), error.node_name())))
        return f"at {node}: {error.desc()}" if node else str(error.desc())
    except UnicodeDecodeError:
        return "the name of a node is not UTF-8"


def _new_monitor(trt: Any, progress: Progress) -> Any:
    """Return a TensorRT IProgressMonitor that reports to `progress`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def configure(trt: Any, config: Any, options: BuildOptions) -> None:
    """Set the options of a build in a TensorRT IBuilderConfig."""
    flags = {"TF32": options.tf32, "VERSION_COMPATIBLE": options.version_compatible}
    for name, wanted in flags.items():
        (config.set_flag if wanted else config.clear_flag)(getattr(trt.BuilderFlag, name))
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.hardware_compatible != "none":
        levels = trt.HardwareCompatibilityLevel
        same = options.hardware_compatible == "same-capability"
        config.hardware_compatibility_level = levels.SAME_COMPUTE_CAPABILITY if same else levels.AMPERE_PLUS
    if options.capabilities:
        config.num_compute_capabilities = len(options.capabilities)
        for index, capability in enumerate(options.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), index)


class TimingCache:
    """TensorRT's timing cache: a file of measured kernel times that concurrent builds share.

    Where it is damaged or cannot be written, kernels are measured again.

    Parameters
    ----------
    facts
        Facts of the engine to be built: times are valid for one GPU, driver and version of TensorRT.
    """

    def __init__(self, facts: Facts) -> None:
        machine = facts.machine
        parts = (facts.flavour, facts.version, machine.gpu or "no-gpu", machine.driver, machine.os)
        name = "_".join(part.replace(" ", "-").replace("/", "-") for part in parts if part)
        self.path = cache_folder("timing") / f"{name}.cache"

    def attach(self, config: Any) -> None:
        """Pass the known times to a TensorRT IBuilderConfig."""
        times = config.create_timing_cache(self._read()) or config.create_timing_cache(b"")
        config.set_timing_cache(times, False)

    def keep(self, config: Any) -> None:
        """Merge the times that a build measured into the file, which other builds may have changed."""
        with suppress(OutputError, OSError), locked(self.path):
            times = config.get_timing_cache()
            others = config.create_timing_cache(self._read())
            if others is not None:
                times.combine(others, ignore_mismatch=False)
            with cached_file(self.path) as temporary:
                temporary.write_bytes(bytes(times.serialize()))

    def _read(self) -> bytes:
        with suppress(OSError):
            return read_cached(self.path, LARGEST)
        return b""
