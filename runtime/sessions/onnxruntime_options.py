"""Options of ONNX Runtime's CUDA provider: chosen once for each model and GPU, by trial.

The fastest layout of activations, and whether fused convolutions help, depend on GPU, cuDNN and network. So each set of
`SETS` computes the same drawn tile `PASSES` times; the fastest median wins. A set is skipped if its output disagrees
with that of the first set (`agreement`), if it fails, or if the installed ONNX Runtime does not support it. The choice
is a JSON file in the user's cache, named by a hash of everything that it depends on. It also records the device memory
of a warm lane.

Options that the user passes are added to the first set and used as they are, without comparison.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.engines.engine_file import ModelFacts, key_of, model_facts
from unetrt.runtime.errors import ModelFileError, OptionError, OutputError, UnetrtError, printable
from unetrt.runtime.files.atomic import cache_folder, cached_file, locked, read_cached
from unetrt.runtime.machine import Machine, format_bytes, this_machine
from unetrt.runtime.model.integrity import external_files
from unetrt.runtime.model.spec import ModelSpec, Precision
from unetrt.runtime.records import parse, to_json, validated
from unetrt.runtime.sessions import Lane
from unetrt.runtime.sessions.agreement import difference, shows_classes, tiles_for
from unetrt.runtime.sessions.cuda import CudaSession
from unetrt.runtime.sessions.onnxruntime_libraries import cudnn_version

log = logging.getLogger("unetrt")

Options = Mapping[str, str]
Array = NDArray[Any]

# Options that users may set: those of ONNX Runtime 1.31 (cuda_execution_provider_info.cc) except device, stream and
# allocator, which the lane sets.
KNOWN = (
    "arena_extend_strategy", "cudnn_conv1d_pad_to_nc1d", "cudnn_conv_algo_search", "cudnn_conv_use_max_workspace",
    "do_copy_in_default_stream", "enable_cuda_graph", "enable_cudnn", "enable_skip_layer_norm_strict_mode",
    "fuse_conv_bias", "gpu_mem_limit", "prefer_nhwc", "sdpa_kernel", "tunable_op_enable",
    "tunable_op_max_tuning_duration_ms", "tunable_op_tuning_enable", "use_ep_level_unified_stream", "use_tf32",
)  # fmt: skip
PLAIN = {
    # Each lane has its own arena; growing it by powers of two would waste up to half of it.
    "arena_extend_strategy": "kSameAsRequested",
    # A heuristic, not a measurement: all lanes use the same algorithm, so a tile has the same result in each. With
    # cuDNN 9, EXHAUSTIVE is a heuristic too, a slower one (HeurMode B instead of A, in ONNX Runtime's conv.cc).
    "cudnn_conv_algo_search": "HEURISTIC",
}
# Fused only in NHWC: in NCHW ONNX Runtime adds the output's memory to the bias (conv.cc passes it to cuDNN as Z).
NHWC, FUSED, SLOWER_HEURISTIC = {"prefer_nhwc": "1"}, {"fuse_conv_bias": "1"}, {"cudnn_conv_algo_search": "EXHAUSTIVE"}
# Name -> options added to `PLAIN`. The first is the reference for the others' answers.
SETS: dict[str, Options] = {
    "plain": {},
    "nhwc": NHWC,
    "nhwc-fused": NHWC | FUSED,
    "nhwc-exhaustive": NHWC | SLOWER_HEURISTIC,
    "nhwc-fused-exhaustive": NHWC | FUSED | SLOWER_HEURISTIC,
}
REFERENCE = next(iter(SETS))
GIVEN = "given"  # name of the set of a user's options

# Timed passes of each set.
PASSES = 10
# A set during whose trial this many processes ended is passed over.
DEATHS = 2
# Seconds to wait for another process that tries them.
TRIALS_WAIT = 600.0
# Limit of a file of the cache in bytes; a choice takes about 1 kB.
LARGEST = 1 << 20
# Bytes by which a lane's arena may at least grow beyond its measured size.
MARGIN = 64 * 2**20
# Part of every key: increased when the same conditions no longer lead to the same choice.
METHOD = 1
SCHEMA = 1


def require_options(options: Options) -> None:
    """Raise OptionError for an option that the CUDA provider does not have, or that users may not set."""
    for name in options:
        if name not in KNOWN:
            raise OptionError(f"onnxruntime-cuda has no backend option {name!r}: use one of {', '.join(KNOWN)}")


def base(precision: Precision) -> dict[str, str]:
    """Return the options of the first set for a graph's precision.

    TF32 is disabled for FP32 graphs: it rounds factors to 10 bits of mantissa. ONNX Runtime then keeps cuDNN from
    tensor cores for all types (conv_transpose.cc and conv.cc deselect cuDNN's note TENSOR_CORE), so 16-bit graphs,
    which TF32 does not affect, keep the default.
    """
    return PLAIN if precision in ("fp16", "bf16") else PLAIN | {"use_tf32": "0"}


@dataclass(frozen=True)
class Conditions(ModelFacts):
    """Everything that a choice depends on.

    Attributes
    ----------
    onnxruntime, cudnn
        Their versions; cuDNN's is empty where unknown.
    machine
        The GPU, its driver and the system.
    given
        The user's options, sorted.
    """

    onnxruntime: str
    cudnn: str
    machine: Machine
    given: tuple[tuple[str, str], ...]

    @classmethod
    def here(cls, path: Path, spec: ModelSpec, device: CudaDevice, given: Options) -> "Conditions":
        """Return those of a model file on a device."""
        import onnxruntime

        machine = this_machine(device.driver.index)
        machine = replace(machine, gpu=machine.gpu or device.driver.name)
        return cls(
            *model_facts(path, spec), onnxruntime.__version__, cudnn_version(), machine, tuple(sorted(given.items()))
        )

    @property
    def path(self) -> Path:
        """The file of the choice."""
        return folder() / f"{key_of(METHOD, self)}.json"


@dataclass(frozen=True)
class Trial:
    """The result of trying one set.

    Attributes
    ----------
    name
        The set.
    seconds
        Median time of a pass; None where the set is not usable.
    why_not
        One sentence where it is not usable, else empty.
    """

    name: str
    seconds: Annotated[float, Meta(gt=0)] | None
    why_not: str = ""

    def __str__(self) -> str:
        return f"{self.name} {1e3 * self.seconds:.3g} ms" if self.seconds else f"{self.name} not ({self.why_not})"


@dataclass(frozen=True)
class Choice:
    """The result of all trials, a JSON record.

    Attributes
    ----------
    chosen
        Name of the set to use.
    lane
        Device memory of a warm lane without its input and output (weights, activations, workspace), in bytes; 0 if
        unknown.
    trials
        One for each set.
    source
        Path of the model file.
    """

    chosen: str
    lane: Annotated[int, Meta(ge=0)]
    trials: tuple[Trial, ...]
    source: str

    def __post_init__(self) -> None:
        if self.chosen not in [trial.name for trial in self.trials if trial.seconds is not None]:
            raise ValueError(f"chosen {self.chosen!r:.60} was not tried with success")

    def __str__(self) -> str:
        return f"{self.chosen} ({', '.join(map(str, self.trials))}; a lane takes {format_bytes(self.lane)})"

    def save(self, path: Path, conditions: Conditions) -> None:
        """Write the record; failure to do so is logged."""
        stored = {"schema": SCHEMA, **asdict(self), "conditions": conditions}
        try:
            with cached_file(path) as temporary:
                temporary.write_text(to_json(stored) + "\n", encoding="utf-8")
        except (OutputError, OSError) as error:
            log.info("the choice of ONNX Runtime's options is not kept: %s", error)

    @classmethod
    def load(cls, path: Path) -> "Choice":
        """Return the record in a file; raises OSError, or ModelFileError where it is damaged."""
        stored = parse(read_cached(path, LARGEST), path.name)
        if stored.pop("schema", None) != SCHEMA:
            raise ModelFileError(f"{path.name} does not have schema {SCHEMA}: it is made again")
        return validated(stored, cls, path.name, unknown=True)


def folder() -> Path:
    """Return the folder of choices."""
    return cache_folder("onnxruntime")


def choices() -> list[tuple[Path, Choice | None]]:
    """Return the files of the cache and their choices, None for a damaged one."""
    found = []
    for path in sorted(folder().glob("*.json")):
        choice = None
        with suppress(OSError, ModelFileError):
            choice = Choice.load(path)
        found.append((path, choice))
    return found


def clear(keys: Sequence[str] = ()) -> list[Path]:
    """Delete the choices whose keys begin with one of `keys`, or all, and the notes of killed trials.

    Returns
    -------
    The deleted files of choices; a file that cannot be deleted does not keep others from being deleted.
    """
    gone = []
    for path in (*folder().glob("*.trying"), *folder().glob("*.json")):
        if keys and not path.name.startswith(tuple(keys)):
            continue
        with suppress(OSError):
            path.unlink(missing_ok=True)
            gone += [path] if path.suffix == ".json" else []
    return gone


class Trials:
    """The sets of options for one model on one device.

    Parameters
    ----------
    path, spec
        The model file.
    device
        Where it runs.
    given
        The user's options; if any, they are the only set.
    opened
        Opens a session, given options and the device memory that each lane is known to take, in bytes.
    """

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        device: CudaDevice,
        given: Options,
        opened: Callable[[Options, int], CudaSession],
    ) -> None:
        self._path, self._spec, self._device, self._opened = path, spec, device, opened
        self._sets = {GIVEN: given} if given else SETS
        self._conditions = Conditions.here(path, spec, device, given)

    def kept(self) -> Choice | None:
        """Return the choice of earlier trials; None if it does not exist or is damaged."""
        path = self._conditions.path
        try:
            choice = Choice.load(path)
        except FileNotFoundError:
            return None
        except (OSError, ModelFileError) as error:
            log.info("%s is not usable (%s): the options are tried again", path, str(error)[:80])
            return None
        return choice if choice.chosen in self._sets else None

    def choice(self) -> Choice:
        """Try the sets and save the choice; another process that does so at the same time is waited for.

        Raises
        ------
        UnetrtError
            The first set failed: the model does not run here.
        """
        path = self._conditions.path
        with ExitStack() as stack:
            with suppress(OutputError):  # without a lock, two processes may both try
                stack.enter_context(locked(path, TRIALS_WAIT))
            if kept := self.kept():
                return kept
            choice = self._tried(_Attempts(path.with_suffix(".trying")))
            choice.save(path, self._conditions)
            return choice

    def options(self, choice: Choice) -> dict[str, str]:
        """Return all options of a lane: the chosen set, and a limit of its arena."""
        bound = {"gpu_mem_limit": str(choice.lane + max(choice.lane // 4, MARGIN))} if choice.lane else {}
        return bound | self._options(choice.chosen)

    def _options(self, name: str) -> dict[str, str]:
        return {**base(self._spec.precision), **self._sets[name]}

    def _tried(self, attempts: "_Attempts") -> Choice:
        if len(self._sets) > 1:
            path = printable(str(self._path))
            log.info("trying %d sets of ONNX Runtime's options for %s, once", len(self._sets), path)
        first, *others = self._sets
        trial, reference = self._first(first)
        trials = [trial]
        for name in others:
            if blind := reference.blind:
                trials.append(Trial(name, None, blind))
            elif attempts.deaths[name] >= DEATHS:
                trials.append(Trial(name, None, "the process ended twice while it was tried"))
            else:
                with attempts.recorded(name):
                    trials.append(self._attempt(name, reference))
            if trials[-1].why_not:
                log.info("options %s are passed over: %s", name, trials[-1].why_not)
        attempts.forget()
        chosen = min(trials, key=lambda one: one.seconds or np.inf).name
        choice = Choice(chosen, self._measured(chosen), tuple(trials), str(self._path))
        log.info("ONNX Runtime's options for %s: %s", printable(str(self._path)), choice)
        return choice

    def _first(self, name: str) -> tuple[Trial, "_Reference"]:
        """Return the time of the first set, and its answer to the first tile that discriminates."""
        with self._lane(name) as lane:
            for tile in tiles_for(self._spec):
                seconds = _timed(lane, tile)
                if shows_classes(self._spec, lane.output):
                    break
            return Trial(name, seconds), _Reference(self._spec, tile, lane.output.copy())

    def _attempt(self, name: str, reference: "_Reference") -> Trial:
        """Return the time of another set, or why it is not usable."""
        try:
            with self._lane(name) as lane:
                seconds = _timed(lane, reference.tile)
                why_not = difference(self._spec, reference.answer, lane.output)
                return Trial(name, None if why_not else seconds, why_not)
        except UnetrtError as error:
            return Trial(name, None, str(error))  # the error itself would hold device memory

    @contextmanager
    def _lane(self, name: str) -> Iterator[Lane]:
        """Yield a warm lane of a set; afterwards all its device memory is free."""
        with self._opened(self._options(name), self._weights()) as session:
            (lane,) = session.lanes(1)
            yield lane

    def _measured(self, name: str) -> int:
        """Return the bytes of a warm lane without input and output; libraries have loaded their kernels before."""
        with self._opened(self._options(name), 0) as session:
            before, _ = self._device.memory()
            lanes = session.lanes(1)
            after, _ = self._device.memory()
            del lanes
        taken = before - after - self._spec.tensors().nbytes
        # Another program may have freed memory in the meantime.
        return taken if taken >= self._weights() else self._estimated()

    def _weights(self) -> int:
        """Return the approximate bytes of the weights: the size of the files that hold them."""
        return sum(file.stat().st_size for file in (self._path, *external_files(self._path)))

    def _estimated(self) -> int:
        """Return the approximate bytes of a lane, from the network's shape; weights alone where that is unknown."""
        shape, itemsize = self._spec.shape, 2 if self._spec.precision in ("fp16", "bf16") else 4
        activations = shape.activation_bytes(*self._spec.tile, itemsize) * self._spec.batch if shape else 0
        return self._weights() + activations


class _Reference(NamedTuple):
    """A tile, and the first set's answer to it, with which the others are compared."""

    spec: ModelSpec
    tile: Array
    answer: Array

    @property
    def blind(self) -> str:
        """Why a wrong answer might not differ from this one; empty where it would."""
        if self.spec.head == "labels" and self.spec.precision == "fp32":
            return "labels do not show whether FP32 was computed with TF32"
        shows = shows_classes(self.spec, self.answer)
        return "" if shows else f"the answer of {REFERENCE} has nothing to compare"


def _timed(lane: Lane, tile: Array) -> float:
    """Return the median time of `PASSES` passes of a batch (batch, C, h, w), in seconds by CUDA events."""
    seconds = []
    for _ in range(PASSES):
        lane.run(tile)
        seconds.append(lane.passed.compute)
    return median(seconds)


class _Attempts:
    """Records in a file which set is being tried, so that one that kills the process `DEATHS` times is passed over.

    The first time is forgiven: the process may have ended for another reason.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.deaths: Counter[str] = Counter()
        with suppress(OSError, UnicodeDecodeError):
            self.deaths.update(read_cached(path, LARGEST).decode().split())

    @contextmanager
    def recorded(self, name: str) -> Iterator[None]:
        """Count a death of this set unless the body ends, with or without an exception."""
        self._write(self.deaths + Counter([name]))
        try:
            yield
        finally:
            self._write(self.deaths)

    def forget(self) -> None:
        """Delete the file."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write(self, deaths: Counter[str]) -> None:
        with suppress(OutputError, OSError), cached_file(self._path) as temporary:
            temporary.write_text("\n".join(sorted(deaths.elements())), encoding="utf-8")
