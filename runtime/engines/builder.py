"""Model file in, TensorRT engine out: one code path for TensorRT 10, TensorRT 11 and TensorRT for RTX."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from traceback import clear_frames
from typing import Any

from unetrt.runtime.engines.bindings import bindings
from unetrt.runtime.engines.facts import Facts
from unetrt.runtime.engines.flavours import named_flavour
from unetrt.runtime.engines.messages import collected, first_of, logger_of, tells_of_memory
from unetrt.runtime.engines.options import BuildOptions
from unetrt.runtime.engines.progress import Progress, monitor_of
from unetrt.runtime.engines.timing_cache import TimingCache
from unetrt.runtime.errors import EngineError, OutOfMemoryError, UnetrtError
from unetrt.runtime.model_files.byte_pairs import as_byte_pairs
from unetrt.runtime.model_files.external_data import require_safe, sha256_of_model
from unetrt.runtime.model_files.onnx_file import read_spec

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
