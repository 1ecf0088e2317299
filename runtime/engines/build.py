"""How far a build is, and how to end it early.

TensorRT's messages: to the log, and its errors to whoever has to explain them.

There is one logger for each TensorRT in a process. TensorRT wants that, and says so of another one while it holds a
lock of its own; a thread that frees something of TensorRT's meanwhile waits for that lock, with Python's in its hand.

TensorRT's timing cache: what it has measured of kernels, for the next build on the same GPU.

Model file in, TensorRT engine out: one code path for TensorRT 10, TensorRT 11 and TensorRT for RTX.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from textwrap import shorten
from traceback import clear_frames
from typing import Any, NamedTuple

from unetrt.runtime.engines.engine_file import bindings
from unetrt.runtime.engines.facts import BuildOptions, Facts
from unetrt.runtime.engines.flavours import named_flavour
from unetrt.runtime.errors import EngineError, OutOfMemoryError, OutputError, UnetrtError
from unetrt.runtime.files.atomic import cache_folder, locked, whole_file
from unetrt.runtime.model.byte_pairs import as_byte_pairs
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.safety import require_safe, sha256_of_model


class Phase(NamedTuple):
    """One step of one of a build's phases, which may lie within another.

    Attributes
    ----------
    name, parent
        What TensorRT calls the phase and the one around it; no parent: empty.
    done, steps
        Steps that are done, and all of them; equal when the phase ends.
    """

    name: str
    parent: str
    done: int
    steps: int


Report = Callable[[Phase], None]


class Progress:
    """What a build in flight and who waits for it share; safe to use from any thread.

    Parameters
    ----------
    report
        Called at each step, on a thread of TensorRT's; what it raises cancels the build and comes out of it.
    """

    def __init__(self, report: Report | None = None) -> None:
        self._report = report or (lambda _phase: None)
        self._cancelled = threading.Event()
        self._parents: dict[str, tuple[str, int]] = {}
        self.error: BaseException | None = None

    def cancel(self) -> None:
        """Ask the build to end at its next step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether the build was asked to end."""
        return self._cancelled.is_set()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Note that a phase has begun."""
        self._parents[name] = parent or "", steps
        self._say(name, 0)

    def step(self, name: str, step: int) -> bool:
        """Note that a step, counted from 0, is done; return whether to go on."""
        self._say(name, step + 1)
        return not self.cancelled

    def finish(self, name: str) -> None:
        """Note that a phase has ended, all its steps done or not."""
        self._say(name, self._parents[name][1])

    def _say(self, name: str, done: int) -> None:
        parent, steps = self._parents[name]
        try:
            self._report(Phase(name, parent, min(done, steps), steps))
        except BaseException as error:  # noqa: BLE001 - it cannot pass through TensorRT, and is raised after it
            self.error = error
            self.cancel()


def monitor_of(trt: Any, progress: Progress) -> Any:
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


log = logging.getLogger("unetrt.tensorrt")

# TensorRT's severities: internal error, error, warning, info, verbose.
LEVELS = (logging.CRITICAL, logging.ERROR, logging.INFO, logging.DEBUG, logging.DEBUG)
# Characters of one message that an error shows.
SHOWN = 240

_loggers: dict[str, Any] = {}
_one = threading.Lock()
# Where errors go: of each thread, and of all, for TensorRT's own threads.
_mine = threading.local()
_all: list[list[str]] = []


def logger_of(trt: Any) -> Any:
    """Return the ILogger of a TensorRT: it passes messages on to the log, and errors to whoever collects them."""
    with _one:
        if trt.__name__ not in _loggers:
            _loggers[trt.__name__] = _new_logger(trt)
        return _loggers[trt.__name__]


@contextmanager
def collected(errors: list[str] | None = None) -> Iterator[list[str]]:
    """Collect the errors that TensorRT tells this thread inside, or threads of its own, which nobody else collects."""
    errors = [] if errors is None else errors
    stack: list[list[str]] = _mine.__dict__.setdefault("stack", [])
    stack.append(errors)
    _all.append(errors)
    try:
        yield errors
    finally:
        stack.pop()
        _all[:] = [other for other in _all if other is not errors]


def first_of(errors: list[str]) -> str:
    """Return the first of TensorRT's errors, of which the others mostly follow, short enough for a line."""
    return shorten(errors[0], SHOWN) if errors else "it gives no reason"


def tells_of_memory(message: str) -> bool:
    """Tell whether a message says that memory ran out."""
    lower = message.lower()
    return "memory" in lower and ("out of" in lower or "alloc" in lower)


def _new_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            level = LEVELS[min(int(severity), len(LEVELS) - 1)]
            if level >= logging.ERROR:
                for errors in _mine.__dict__.get("stack", [])[-1:] or list(_all):
                    errors.append(msg)
                level = logging.INFO  # whoever called raises it
            log.log(level, "%s", msg)

    return Logger()


class TimingCache:
    """A file of measured times that builds in any number of processes share.

    A file that is damaged, or cannot be written, costs the time to measure again and nothing else.

    Parameters
    ----------
    facts
        Of the engine to be built: times hold for one GPU, driver and version of TensorRT.
    """

    def __init__(self, facts: Facts) -> None:
        machine = facts.machine
        parts = (facts.flavour, facts.version, machine.gpu or "no-gpu", machine.driver, machine.os)
        name = "_".join(part.replace(" ", "-").replace("/", "-") for part in parts if part)
        self.path = cache_folder("timing") / f"{name}.cache"

    def attach(self, config: Any) -> None:
        """Give a TensorRT IBuilderConfig what is known so far."""
        times = config.create_timing_cache(self._read()) or config.create_timing_cache(b"")
        config.set_timing_cache(times, False)

    def keep(self, config: Any) -> None:
        """Add what a build has measured to what other builds have added meanwhile, and write that."""
        with suppress(OutputError, OSError), locked(self.path):
            times = config.get_timing_cache()
            others = config.create_timing_cache(self._read())
            if others is not None:
                times.combine(others, ignore_mismatch=False)
            with whole_file(self.path) as temporary:
                temporary.write_bytes(bytes(times.serialize()))

    def _read(self) -> bytes:
        with suppress(OSError):
            return Path(self.path).read_bytes()
        return b""


# What makes a device current on the thread that enters it.
Within = Callable[[], AbstractContextManager[Any]]
# Seconds between looks at whether the user has interrupted.
PATIENCE = 0.1


def build(model: Path, facts: Facts, progress: Progress | None = None, within: Within = nullcontext) -> bytes:
    """Return the serialised engine of a model file.

    The build runs on a thread of its own; KeyboardInterrupt on the calling thread cancels it.

    Parameters
    ----------
    model
        An ONNX file of ours.
    facts
        What to build; the flavour must be installed.
    progress
        Told of every step.
    within
        Entered on the building thread: makes the device current that TensorRT is to build on. RTX builds on none.

    Raises
    ------
    ModelFileError
        The file is not a model of ours, or not safe to read.
    EngineError
        TensorRT refuses the model or the options (the message is its first), or the file is not that of the facts.
    OutOfMemoryError
        There was too little memory.
    """
    progress = progress or Progress()
    with ThreadPoolExecutor(1, thread_name_prefix="unetrt-build") as worker:
        building = worker.submit(_within, within, _Build(model, facts, progress).run)
        try:
            while not building.done():
                wait([building], timeout=PATIENCE)
        except BaseException:
            progress.cancel()
            raise
        if progress.error is not None:
            raise progress.error
        return building.result()


def _within(within: Within, run: Callable[[], bytes]) -> bytes:
    with within():
        return run()


class _Build:
    """One build, on one thread."""

    def __init__(self, model: Path, facts: Facts, progress: Progress) -> None:
        self._model, self._facts, self._progress = model, facts, progress
        self._flavour = named_flavour(facts.flavour)
        self._spec = read_spec(model)
        self._errors: list[str] = []

    def run(self) -> bytes:
        """Parse, build, serialise."""
        try:
            with collected(self._errors):
                return self._run()
        except BaseException as error:
            # A builder that an error held on to could be freed at any time, also in the middle of another builder's
            # message, which comes under the lock that freeing takes.
            clear_frames(error.__traceback__)
            raise

    def _run(self) -> bytes:
        trt = self._flavour.load()
        builder = trt.Builder(logger_of(trt))
        # Since TensorRT 11 there are no other networks.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, builder.logger)
        if not parser.parse(self._onnx(), str(self._model.absolute())):
            raise self._error([_described(parser.get_error(index)) for index in range(parser.num_errors)])
        self._require_spec(trt, network)
        config = builder.create_builder_config()
        configure(trt, config, self._facts.options)
        monitor = config.progress_monitor = monitor_of(trt, self._progress)
        # TensorRT for RTX measures nothing before it is on the target, and warns of whoever gives it times.
        times = None if self._flavour.portable else TimingCache(self._facts)
        if times:
            times.attach(config)
        self._errors.clear()  # what did not keep the model from being read is not why it cannot be built
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
        """Hold the network against its spec: what runs it allocates by the spec."""
        ends = [network.get_input(index) for index in range(network.num_inputs)]
        ends += [network.get_output(index) for index in range(network.num_outputs)]
        given = [(end.name, tuple(end.shape), trt.nptype(end.dtype)) for end in ends]
        expected = [(name, end.shape, end.dtype) for name, end in bindings(self._spec).items()]
        if given != expected:
            raise EngineError(f"{self._model}: its graph has {given}, its spec says {expected}; export it again")

    def _error(self, messages: list[str]) -> UnetrtError:
        """Return what the user is told of a build that failed with these messages of TensorRT's."""
        first = first_of(messages or self._errors)
        if tells_of_memory(first):
            return OutOfMemoryError(f"{self._model}: {first}; use a smaller tile or batch, or --workspace")
        limited = self._facts.options.workspace is not None
        advice = "; try a larger --workspace, or none" if limited else ""
        return EngineError(f"{self._flavour.title} cannot build {self._model}: {first}{advice}")


def _described(error: Any) -> str:
    """Return what TensorRT's parser has to say, and of which node."""
    try:
        node = " ".join(filter(None, (error.node_operator(), error.node_name())))
        return f"at {node}: {error.desc()}" if node else str(error.desc())
    except UnicodeDecodeError:
        return "a node has a name that is no text"


def configure(trt: Any, config: Any, options: BuildOptions) -> None:
    """Put the options of a build into a TensorRT IBuilderConfig."""
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
