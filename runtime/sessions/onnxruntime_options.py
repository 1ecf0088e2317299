"""Options of ONNX Runtime's CUDA provider: sets of them are tried once for a model on a GPU, and the fastest is kept.

Which layout of activations, and whether a fused convolution, is the fastest depends on the GPU, cuDNN and the network.
So each set of `SETS` computes the same structured tile, after a warm-up, `PASSES` times; the median counts. A set whose
answer is not that of the first set within `TOLERANCES`, which fails, or which this ONNX Runtime does not know, is
passed over. The choice is a JSON file in the user's cache, under a key over all that it depends on, as that of an
engine. It also says how much memory a warm lane takes on the device.

Options that the user gives are taken as they are, on top of the first set: then nothing is compared.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.engines.facts import key_of
from unetrt.runtime.errors import OptionError, OutputError, UnetrtError
from unetrt.runtime.files.atomic import cache_folder, locked, whole_file
from unetrt.runtime.machine import Machine, format_bytes, this_machine
from unetrt.runtime.model.safety import external_files, sha256_of_model
from unetrt.runtime.model.spec import ModelSpec, Precision
from unetrt.runtime.pixels.scores import best_class, softmax
from unetrt.runtime.sessions.cuda import CudaSession, Need
from unetrt.runtime.sessions.onnxruntime_libraries import cudnn_version
from unetrt.runtime.sessions.protocol import Lane

log = logging.getLogger("unetrt")

Options = Mapping[str, str]
Array = NDArray[Any]

# What a user may give: the options of ONNX Runtime 1.31 (cuda_execution_provider_info.cc), except those for device,
# stream and allocator, which are the lane's.
KNOWN = (
    "arena_extend_strategy", "cudnn_conv1d_pad_to_nc1d", "cudnn_conv_algo_search", "cudnn_conv_use_max_workspace",
    "do_copy_in_default_stream", "enable_cuda_graph", "enable_cudnn", "enable_skip_layer_norm_strict_mode",
    "fuse_conv_bias", "gpu_mem_limit", "prefer_nhwc", "sdpa_kernel", "tunable_op_enable",
    "tunable_op_max_tuning_duration_ms", "tunable_op_tuning_enable", "use_ep_level_unified_stream", "use_tf32",
)  # fmt: skip
PLAIN = {
    # No more than is asked for: each lane has an arena of its own, and powers of two would waste up to half of it.
    "arena_extend_strategy": "kSameAsRequested",
    # A rule, not a measurement: all lanes take the same algorithm, so a tile's result is the same in each. With cuDNN 9
    # EXHAUSTIVE is a rule too, cuDNN's slower one (HeurMode B in place of A, in ONNX Runtime's conv.cc).
    "cudnn_conv_algo_search": "HEURISTIC",
}
# Fused only in NHWC: in NCHW ONNX Runtime adds the output's memory to the bias (conv.cc hands it to cuDNN as Z).
NHWC, FUSED, SLOWER_RULE = {"prefer_nhwc": "1"}, {"fuse_conv_bias": "1"}, {"cudnn_conv_algo_search": "EXHAUSTIVE"}
# Name -> what it adds to `PLAIN`. The first is what the others are held against.
SETS: dict[str, Options] = {
    "plain": {},
    "nhwc": NHWC,
    "nhwc-fused": NHWC | FUSED,
    "nhwc-exhaustive": NHWC | SLOWER_RULE,
    "nhwc-fused-exhaustive": NHWC | FUSED | SLOWER_RULE,
}
REFERENCE = next(iter(SETS))
GIVEN = "given"  # the name of a user's own set

# Timed passes of each set.
PASSES = 10
# A set that has ended so many processes is passed over.
DEATHS = 2
# Bytes by which a lane's arena may grow at least beyond what it took when it was measured.
MARGIN = 64 * 2**20
# Part of every key: raised when the same conditions no longer give the same choice.
METHOD = 1
SCHEMA = 1


class Tolerance(NamedTuple):
    """What a set's answer may differ by.

    Attributes
    ----------
    error, mean
        Largest and mean difference of a probability.
    flips
        Share of pixels that change class.
    """

    error: float
    flips: float
    mean: float = inf


# Those of the export's parity gate: two ways to compute a network in 16 bits are as far apart as each is from FP32.
# In FP32 the mean tells TF32: where cuDNN has no kernel without tensor cores, ONNX Runtime takes one with them after
# all (conv.cc, "Try fallback").
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-3, 1e-4, mean=1e-5),
    "fp16": Tolerance(5e-2, 2e-3),
    "bf16": Tolerance(0.3, 1e-2),
    "int8": Tolerance(0.8, 2e-2),
}


def require_options(options: Options) -> None:
    """Raise OptionError where ONNX Runtime's CUDA provider has no option of a name, or it is not the user's to set."""
    for name in options:
        if name not in KNOWN:
            raise OptionError(f"onnxruntime-cuda has no backend option {name!r}: use one of {', '.join(KNOWN)}")


def base(precision: Precision) -> dict[str, str]:
    """Return the options of the first set, for what a graph computes in.

    Without TF32 FP32 is FP32, and is not computed with 10 bits of mantissa. But ONNX Runtime then keeps cuDNN from
    tensor cores for all types (conv_transpose.cc and conv.cc deselect cuDNN's note TENSOR_CORE): 16-bit graphs, whose
    convolutions TF32 does not concern, leave it as it is.
    """
    return PLAIN if precision in ("fp16", "bf16") else PLAIN | {"use_tf32": "0"}


@dataclass(frozen=True)
class Conditions:
    """All that a choice depends on.

    Attributes
    ----------
    model
        SHA-256 of the ONNX file and its external data, in hexadecimal.
    tile, batch, precision
        Of the model; its hash covers them, but says nothing to people.
    onnxruntime, cudnn
        Their versions; cuDNN's is empty where it is not known.
    machine
        The GPU, its driver and the system.
    given
        The user's options, sorted.
    """

    model: str
    tile: tuple[int, int]
    batch: int
    precision: str
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
        about = (sha256_of_model(path), spec.tile, spec.batch, spec.precision)
        return cls(*about, onnxruntime.__version__, cudnn_version(), machine, tuple(sorted(given.items())))

    @property
    def path(self) -> Path:
        """Where the choice is kept."""
        return folder() / f"{key_of(METHOD, self)}.json"


@dataclass(frozen=True)
class Trial:
    """What became of one set.

    Attributes
    ----------
    name
        The set's.
    seconds
        Median of a pass; None where the set is not usable.
    why_not
        One sentence, where it is not.
    """

    name: str
    seconds: float | None
    why_not: str = ""

    def __str__(self) -> str:
        return f"{self.name} {1e3 * self.seconds:.3g} ms" if self.seconds else f"{self.name} not ({self.why_not})"


@dataclass(frozen=True)
class Choice:
    """What the trials came to.

    Attributes
    ----------
    chosen
        The name of the set to use.
    lane
        Bytes that a warm lane takes on the device, without its tiles: weights, activations, workspace; 0 if unknown.
    trials
        Of each set.
    source
        The model file, as it was called.
    """

    chosen: str
    lane: int
    trials: tuple[Trial, ...]
    source: str

    def __str__(self) -> str:
        return f"{self.chosen} ({', '.join(map(str, self.trials))}; a lane takes {format_bytes(self.lane)})"


def folder() -> Path:
    """Return where choices are kept."""
    return cache_folder("onnxruntime")


class Trials:
    """The sets of options for one model on one device.

    Parameters
    ----------
    path, spec
        The model file.
    device
        Where it is to run.
    given
        The user's options; then there is one set, of these.
    opened
        Opens a session with options, and so many bytes that each of its lanes is known to take.
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
        """Return the choice of earlier trials; None where there is none, or it is damaged."""
        try:
            choice = _read(self._conditions.path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log.info("%s is not usable (%s): the options are tried again", self._conditions.path, repr(error)[:80])
            return None
        return choice if choice.chosen in self._sets else None

    def choice(self) -> Choice:
        """Try the sets, unless another process does so meanwhile, and keep what they come to.

        Raises
        ------
        UnetrtError
            What the first set raises: the model does not run here.
        """
        path = self._conditions.path
        with ExitStack() as stack:
            with suppress(OutputError):  # no place for locks: at worst two processes try the same
                stack.enter_context(locked(path))
            if kept := self.kept():
                return kept
            choice = self._tried(_Unfinished(path.with_suffix(".trying")))
            _keep(path, choice, self._conditions)
            return choice

    def options(self, choice: Choice) -> dict[str, str]:
        """Return all options of a lane: the chosen set's, and a bound of its arena."""
        bound = {"gpu_mem_limit": str(choice.lane + max(choice.lane // 4, MARGIN))} if choice.lane else {}
        return bound | self._options(choice.chosen)

    def _options(self, name: str) -> dict[str, str]:
        return {**base(self._spec.precision), **self._sets[name]}

    def _tried(self, unfinished: "_Unfinished") -> Choice:
        if len(self._sets) > 1:
            log.info("%d sets of ONNX Runtime's options are tried for %s, this once", len(self._sets), self._path)
        first, *others = self._sets
        trial, reference = self._first(first)
        trials = [trial]
        for name in others:
            if blind := reference.blind:
                trials.append(Trial(name, None, blind))
            elif unfinished.deaths[name] >= DEATHS:
                trials.append(Trial(name, None, "the process ended twice while it was tried"))
            else:
                with unfinished.noted(name):
                    trials.append(self._attempt(name, reference))
            if trials[-1].why_not:
                log.info("options %s are passed over: %s", name, trials[-1].why_not)
        unfinished.forget()
        chosen = min(trials, key=lambda one: one.seconds or np.inf).name
        choice = Choice(chosen, self._measured(chosen), tuple(trials), str(self._path))
        log.info("ONNX Runtime's options for %s: %s", self._path, choice)
        return choice

    def _first(self, name: str) -> tuple[Trial, "_Reference"]:
        """Return how fast the first set is, and what it answers to the first tile that shows something."""
        with self._lane(name) as lane:
            for tile in tiles_for(self._spec):
                seconds = _timed(lane, tile)
                if shows_classes(self._spec, lane.output):
                    break
            return Trial(name, seconds), _Reference(self._spec, tile, lane.output.copy())

    def _attempt(self, name: str, reference: "_Reference") -> Trial:
        """Return how fast another set is, or why it is not usable."""
        try:
            with self._lane(name) as lane:
                seconds = _timed(lane, reference.tile)
                why_not = difference(self._spec, reference.answer, lane.output)
                return Trial(name, None if why_not else seconds, why_not)
        except UnetrtError as error:
            return Trial(name, None, str(error))  # the error itself would hold what is on the device

    @contextmanager
    def _lane(self, name: str) -> Iterator[Lane]:
        """Yield a warm lane of a set; nothing of it is left on the device afterwards."""
        with self._opened(self._options(name), self._weights()) as session:
            (lane,) = session.lanes(1)
            yield lane

    def _measured(self, name: str) -> int:
        """Return the bytes that a warm lane takes, without its tiles; libraries have loaded their kernels before."""
        with self._opened(self._options(name), 0) as session:
            before, _ = self._device.memory()
            lanes = session.lanes(1)
            after, _ = self._device.memory()
            del lanes
        taken = before - after - Need.of(self._spec, 0, 1).staging
        # Another program may have freed memory meanwhile.
        return taken if taken >= self._weights() else self._estimated()

    def _weights(self) -> int:
        """Return about the bytes of the weights: those of the files that hold them."""
        return sum(file.stat().st_size for file in (self._path, *external_files(self._path)))

    def _estimated(self) -> int:
        """Return about what a lane takes, from the network's shape; the weights alone where that is not known."""
        shape, itemsize = self._spec.shape, 2 if self._spec.precision in ("fp16", "bf16") else 4
        activations = shape.activation_bytes(*self._spec.tile, itemsize) * self._spec.batch if shape else 0
        return self._weights() + activations


class _Reference(NamedTuple):
    """A tile, and the first set's answer, which the others are held against."""

    spec: ModelSpec
    tile: Array
    answer: Array

    @property
    def blind(self) -> str:
        """Why a wrong answer might not differ from it; empty where it would."""
        if self.spec.head == "labels" and self.spec.precision == "fp32":
            return "labels do not show whether FP32 was computed with TF32"
        shows = shows_classes(self.spec, self.answer)
        return "" if shows else f"the answer of {REFERENCE} shows nothing that could be compared"


def _timed(lane: Lane, tile: Array) -> float:
    """Return the median of `PASSES` passes of a tile, in seconds of the device's clock."""
    lane.input[...] = tile
    seconds = []
    for _ in range(PASSES):
        lane.launch()
        lane.wait()
        seconds.append(lane.passed.compute)
    return median(seconds)


def difference(spec: ModelSpec, expected: Array, given: Array) -> str:
    """Return one phrase that says how an answer differs by more than it may; empty where it does not.

    Parameters
    ----------
    spec
        The model's: its head and precision.
    expected, given
        What two sets of options make of the same tiles, as `ModelSpec.new_output` has it. `expected` is finite.
    """
    limits = TOLERANCES[spec.precision]
    if spec.head == "labels":
        flips = float((expected != given).mean())
    else:
        if not np.isfinite(given.sum()):
            return "it gives NaN or infinity"
        pairs = [
            (_probabilities(spec, one), _probabilities(spec, other)) for one, other in zip(expected, given, strict=True)
        ]
        errors = [np.abs(one - other) for one, other in pairs]
        error, mean = float(np.max(errors)), float(np.mean(errors))
        if not error <= limits.error:
            return f"a probability differs by {error:.2g} (at most {limits.error:g})"
        if not mean <= limits.mean:
            return f"probabilities differ by {mean:.2g} on average (at most {limits.mean:g}), as with TF32"
        flips = float(np.mean([best_class(one) != best_class(other) for one, other in pairs]))
    return "" if flips <= limits.flips else f"{flips:.2%} of the pixels change class (at most {limits.flips:.2g})"


def _probabilities(spec: ModelSpec, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    return softmax(scores.copy()) if spec.head == "logits" else scores


def shows_classes(spec: ModelSpec, answer: Array) -> bool:
    """Tell whether an answer is one that others can be held against.

    Scores must be finite. Labels of one class alone are also what NaN gives, so there must be two.
    """
    return len(np.unique(answer)) > 1 if spec.head == "labels" else bool(np.isfinite(answer.sum()))


def tiles_for(spec: ModelSpec) -> Iterator[Array]:
    """Yield structured tiles, (batch, C, h, w) of the input's dtype, that differ in their grey values: deterministic.

    Discs of several sizes on a background with a slope and grain, another one for each tile and channel.
    """
    height, width = spec.tile
    y, x = np.mgrid[:height, :width].astype(np.float32)
    pattern = np.empty(spec.new_input().shape, np.float32)
    for number in np.ndindex(pattern.shape[:2]):
        phase = 1 + sum(number)
        discs = np.cos(2 * np.pi * x / (17 + 4 * phase)) * np.cos(2 * np.pi * y / (23 + 2 * phase))
        grain = (x * 7919 + y * 104729 + 31 * phase) % 251 / 251
        pattern[number] = 0.7 * np.clip(4 * discs, 0, 1) + 0.2 * x / width + 0.1 * grain
    # Bright on dark and dark on bright; as percentiles and as deviations from a mean.
    for low, high in ((0, 1), (-1, 3), (1, 0), (3, -1)):
        normalised = low + (high - low) * pattern
        yield _raw(spec, normalised) if spec.takes_raw else normalised


def _raw(spec: ModelSpec, normalised: NDArray[np.float32]) -> Array:
    """Return the raw grey values that a graph normalises to these, as far as their type has them."""
    offset, scale = (np.array(side, np.float32) for side in (spec.normalisation.offset, spec.normalisation.scale))
    raw = normalised / scale[:, None, None] + offset[:, None, None]
    pixels: Array = np.clip(raw, 0, np.iinfo(spec.input_dtype).max).astype(spec.input_dtype)
    return pixels


class _Unfinished:
    """Notes in a file which set is being tried: one that kills the process `DEATHS` times is not tried again.

    Once is forgiven: the process may have been ended for another reason.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.deaths: Counter[str] = Counter()
        with suppress(OSError, UnicodeDecodeError):
            self.deaths.update(path.read_text(encoding="utf-8").split())

    @contextmanager
    def noted(self, name: str) -> Iterator[None]:
        self._write(self.deaths + Counter([name]))
        try:
            yield
        finally:
            self._write(self.deaths)

    def forget(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write(self, deaths: Counter[str]) -> None:
        with suppress(OutputError, OSError), whole_file(self._path) as temporary:
            temporary.write_text("\n".join(sorted(deaths.elements())), encoding="utf-8")


def _keep(path: Path, choice: Choice, conditions: Conditions) -> None:
    stored = {"schema": SCHEMA, **asdict(choice), "conditions": asdict(conditions)}
    try:
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    except (OutputError, OSError) as error:
        log.info("the choice of ONNX Runtime's options is not kept: %s", error)


def _read(path: Path) -> Choice:
    """Return a choice; raises OSError, ValueError, KeyError or TypeError where the file is not a whole one."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["schema"] != SCHEMA:
        raise ValueError(f"schema {stored['schema']!r:.20}")
    trials = tuple(Trial(str(one["name"]), _seconds(one["seconds"]), str(one["why_not"])) for one in stored["trials"])
    choice = Choice(str(stored["chosen"]), stored["lane"], trials, str(stored["source"]))
    usable = [one.name for one in trials if one.seconds is not None]
    if choice.chosen not in usable or type(choice.lane) is not int or choice.lane < 0:
        raise ValueError("it contradicts itself")
    return choice


def _seconds(stored: Any) -> float | None:
    if stored is not None and not (isinstance(stored, float) and isfinite(stored) and stored > 0):
        raise ValueError(f"{stored!r:.20} seconds")
    return stored


def choices() -> list[tuple[Path, Choice | None]]:
    """Return the files of the cache and their choices, None for a damaged one."""
    found = []
    for path in sorted(folder().glob("*.json")):
        choice = None
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            choice = _read(path)
        found.append((path, choice))
    return found


def clear(keys: Sequence[str] = ()) -> list[Path]:
    """Delete the choices whose keys begin with one of `keys`, or all, and what trials that were killed left.

    Returns
    -------
    The files of choices that are gone: one that cannot be deleted keeps no other.
    """
    gone = []
    for path in (*folder().glob("*.trying"), *folder().glob("*.json")):
        if keys and not path.name.startswith(tuple(keys)):
            continue
        with suppress(OSError):
            path.unlink(missing_ok=True)
            gone += [path] if path.suffix == ".json" else []
    return gone
