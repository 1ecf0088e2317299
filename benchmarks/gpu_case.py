"""The runtime's speed on a GPU, against its goals: what `unetrt bench --goals` measures.

A case is a size of frames and a kind of input. All its contenders take turns round by round: unetrt with each number
of lanes (`Ours`), torch eager and compiled, and a dense product as the yardstick. Each is alone on the device while it
runs. Exported models and compiled networks are shared between cases of one tile (`GoalsBench`).
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetrt.benchmarks.bench import MOST_WRONG
from unetrt.benchmarks.environment import gpu_environment, gpu_state, require_gpu
from unetrt.benchmarks.figures import Figure
from unetrt.benchmarks.gpu_goals import BUSY, COMPILED, EAGER, MATMUL, frame_flops, rates, useful_flops, verdicts
from unetrt.benchmarks.gpu_profile import profiled
from unetrt.benchmarks.journal import REASON, Journal, Patience
from unetrt.benchmarks.limits import Matmul, timed
from unetrt.benchmarks.networks import drawn_frame, undecided, write_model
from unetrt.benchmarks.ours import PHASES
from unetrt.benchmarks.processes import summary
from unetrt.benchmarks.torch_contenders import PlannedTiles, UsualLoop
from unetrt.export.exporter import Options
from unetrt.runtime.errors import BackendUnavailableError, OptionError, OutOfMemoryError, ParityError, UnetrtError
from unetrt.runtime.files.atomic import scratch_folder
from unetrt.runtime.geometry.planner import Budget, best_tile
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.spec import InputType, ModelSpec
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import Session, open_session
from unetrt.runtime.timings import Timings
from unetrt.trainer.checkpoint import Checkpoint
from unetrt.trainer.validation import whole_frame_scores, wrong_pixels

KIND, SCHEMA = "unetrt bench --goals", 2
LOOP, COMPILED_TILES, ALONE, PRODUCT = "eager", "compiled", "compiled, pass alone", "matmul"
# In the order in which they are tried.
BACKENDS = ("tensorrt", "onnxruntime-cuda")
# Runs of a contender in each round: uncounted, then counted.
WARM_UP, COUNTED = 1, 2
# The eager loop segments this share of a stack: it is slow, and its time does not depend on the frames.
FEWER = 8
# Single frames, for latencies: enough for a 99th percentile.
LATENCIES = 100
# Share of the free memory that the planner may fill; engines need some for themselves, torch for its contenders.
FILLED = 0.4

Show = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class GoalCase:
    """What is measured together.

    Attributes
    ----------
    size
        Height and width of the uint16 frames, in pixels.
    input
        Data type of the network's input.
    lanes
        Numbers of lanes, each of which is measured.
    batch
        Tiles in a pass.
    frames
        Frames in a stack.
    """

    size: tuple[int, int]
    input: InputType
    lanes: tuple[int, ...] = (1, 2, 4)
    batch: int = 1
    frames: int = 16

    @property
    def name(self) -> str:
        """The case, in a few words."""
        return f"{self.size[0]} x {self.size[1]}, {self.input} input, batch {self.batch}"


LARGE, SMALL = (2048, 2048), (1024, 1024)
CASES = (
    GoalCase(LARGE, "uint16", frames=16),
    GoalCase(SMALL, "uint16", frames=48),
    GoalCase(LARGE, "float32", frames=16),
    GoalCase(SMALL, "float32", frames=48),
    GoalCase(SMALL, "uint16", lanes=(2,), batch=4, frames=48),
)


@dataclass
class Ours:
    """A session with a number of lanes, which are open only while they are measured.

    Attributes
    ----------
    session
        The loaded model.
    stack
        Raw frames (N, H, W).
    lanes
        Number of lanes.
    timings
        Timings of each counted run of the stack.
    latencies
        Seconds of each frame that was segmented alone.
    """

    session: Session
    stack: NDArray[Any]
    lanes: int
    timings: list[Timings] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The contender's name."""
        return f"unetrt, {self.lanes} {'lane' if self.lanes == 1 else 'lanes'}"

    def open(self) -> Segmenter:
        """Open the lanes; the Segmenter, as a context, closes them and frees their memory on the device."""
        return Segmenter(self.session, lanes=self.lanes)

    def labels(self, frame: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the labels of a frame (H, W), uint8."""
        with self.open() as segmenter:
            return segmenter.segment(frame).labels

    def round(self, latencies: int = 0) -> float:
        """Segment the stack, warmed up, and then single frames, as a camera delivers them.

        Parameters
        ----------
        latencies
            Number of single frames.

        Returns
        -------
        Seconds of one frame of the stack, the median of the counted runs.
        """
        with self.open() as segmenter:
            runs = [segmenter.segment(self.stack).timings for _ in range(WARM_UP + COUNTED)][WARM_UP:]
            for number in range(latencies):
                begin = time.perf_counter()
                segmenter.segment(self.stack[number % len(self.stack)])
                self.latencies.append(time.perf_counter() - begin)
        self.timings += runs
        return median(timings.total for timings in runs) / len(self.stack)

    def kernels(self) -> dict[str, Any]:
        """Return the profile (`profiled`) of one more run of the stack, as profiling would slow a timed one."""
        with self.open() as segmenter:
            segmenter.segment(self.stack)
            return profiled(lambda: segmenter.segment(self.stack))

    def phases(self) -> dict[str, float]:
        """Return the median seconds of a frame in each phase; those in lanes overlap."""
        return {
            phase: median(getattr(timings, phase) / len(self.stack) for timings in self.timings) for phase in PHASES
        }

    def in_flight(self) -> float:
        """Return the median share of time in which a pass is in flight, from a run's first pass to its last."""
        return median(timings.in_flight / timings.span for timings in self.timings)

    def to_dict(self, seconds: Figure, shape: UNetShape, matmul: float) -> dict[str, Any]:
        """Return what JSON stores.

        Parameters
        ----------
        seconds
            Seconds of one frame of the stack.
        shape
            The network.
        matmul
            Rate of the dense FP16 product in the same rounds, in FLOP/s.
        """
        spec, frame = self.session.spec, (self.stack.shape[-2], self.stack.shape[-1])
        flops = frame_flops(spec, shape, frame)
        passes = median(timings.in_flight / len(self.stack) for timings in self.timings)
        p50, p99 = np.percentile(self.latencies, [50, 99]).tolist() if self.latencies else (None, None)
        return {
            "lanes": self.lanes,
            "batch": spec.batch,
            "tile": spec.tile,
            "input": spec.input_dtype,
            "seconds": asdict(seconds),
            "per_second": rates(seconds, flops, frame),
            "in_flight": self.in_flight(),
            "matmul_share": flops / seconds.median / matmul,
            "matmul_share_in_flight": flops / passes / matmul,
            "phases": self.phases(),
            "latency": {"p50": p50, "p99": p99, "frames": len(self.latencies)},
        }


@dataclass(frozen=True)
class GoalsBench:
    """What all cases share: the network, and what was exported, compiled or computed of it before.

    Attributes
    ----------
    checkpoint
        The network, with a fixed normalisation: no contender spends time on measuring grey values.
    device
        torch's.
    folder
        For the exported models; it outlives the cases.
    rounds
        Rounds of all contenders in turn.
    latencies
        Frames that are segmented one by one.
    memory
        Bytes that the planner may fill with the lanes of one contender.
    backends
        In the order in which they are tried.
    compiled
        Whether torch.compile is used.
    side
        Side of the square matrices of the yardstick: large enough that a GPU reaches its full rate.
    """

    checkpoint: Checkpoint
    device: torch.device
    folder: Path
    rounds: int
    latencies: int
    memory: int = 8 * 2**30
    backends: Sequence[str] = BACKENDS
    compiled: bool = True
    side: int = 8192
    _tiles: dict[tuple[int, int], PlannedTiles] = field(default_factory=dict, init=False)
    _truths: dict[tuple[int, ...], NDArray[Any]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for name in self.backends:
            if name not in BACKENDS and self.device.type == "cuda":
                raise OptionError(f"{name} does not compute on a GPU: use {' or '.join(BACKENDS)}")

    def measure(self, case: GoalCase) -> dict[str, Any]:
        """Return all that JSON stores of a case.

        Raises
        ------
        BackendUnavailableError
            No engine runs the model; the message says why.
        ParityError
            unetrt's labels are another network's; nothing is timed then.
        OutOfMemoryError
            Not even the fewest lanes fit.
        """
        frame = drawn_frame(case.size, 1)
        session, refused = first_session(self.model(case), self.backends)
        with session:
            ours = [Ours(session, shifted_stack(frame, case.frames), lanes) for lanes in case.lanes]
            left_out: dict[str, str] = {}
            wrong = self._checked(ours, frame, left_out)
            figures = self._in_rounds(ours, left_out)
            return {
                "session": session.name,
                "refused": refused,
                "pixels_off": wrong,
                "left_out": left_out,
                **self._result(case, figures, [one for one in ours if one.name in figures]),
            }

    def model(self, case: GoalCase) -> Path:
        """Return the exported file of a case; cases with the same tile, batch and input share it."""
        budget = Budget(self.memory, case.batch, max(case.lanes), itemsize=2)
        height, width = best_tile([case.size], self.checkpoint.shape, budget).tile
        path = self.folder / f"{height}x{width}-{case.batch}-{case.input}.onnx"
        if not path.exists():
            write_model(self.checkpoint, Options((height, width), "fp16", "labels", case.batch, case.input), path)
        return path

    def truth(self, frame: NDArray[Any]) -> NDArray[Any]:
        """Return the scores (classes, H, W) of one FP32 pass over a drawn frame (H, W); computed once for each size."""
        if frame.shape not in self._truths:
            self._truths[frame.shape] = whole_frame_scores(self.checkpoint, frame, self.device)
            self.settle()
        return self._truths[frame.shape]

    def settle(self) -> None:
        """Return the memory that torch caches to the device: engines allocate theirs outside of torch."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _checked(self, ours: list[Ours], frame: NDArray[Any], left_out: dict[str, str]) -> float:
        """Return the largest share of wrong labels; contenders whose lanes do not fit are left out, with the reason."""
        truth, wrong = self.truth(frame), []
        for one in ours:
            with _left_out(one.name, left_out):
                wrong.append(require_right(one.session.name, one.labels(frame), truth))
        if not wrong:
            raise OutOfMemoryError("; ".join(left_out.values()))
        return max(wrong)

    def _in_rounds(self, ours: list[Ours], left_out: dict[str, str]) -> dict[str, Figure]:
        """Run all contenders in turn, round by round; each has its lanes, or torch's memory, while it runs alone.

        A contender that fails, of torch or for lack of memory, is left out with the reason.
        """
        stack, spec = ours[0].stack, ours[0].session.spec
        runs = self._torch(spec, stack)
        runs |= {one.name: partial(self._round, one) for one in ours if one.name not in left_out}
        steps: dict[str, Callable[[], Any]] = {PRODUCT: lambda: _round_of(self._product)}
        steps |= {name: partial(self._attempted, name, run) for name, run in runs.items()}
        journal = Journal()
        journal.take_turns(self.rounds, steps)
        left_out |= {name: reason for name in runs if (reason := journal.reason(name)) is not None}
        if all(one.name in left_out for one in ours):
            raise OutOfMemoryError("; ".join(left_out.values()))
        return {name: Figure.of(journal.rounds(name)) for name in steps if name not in left_out}

    def _round(self, one: Ours) -> float:
        """Return the seconds of one frame in a round of ours; the last round measures latencies too."""
        is_last = len(one.timings) == COUNTED * (self.rounds - 1)
        return one.round(self.latencies if is_last else 0)

    def _attempted(self, name: str, run: Callable[[], float]) -> float | dict[str, str]:
        """Return the seconds of a run, or why the contender fails."""
        reasons: dict[str, str] = {}
        try:
            with _left_out(name, reasons):
                return run()
        finally:
            self.settle()
        return {REASON: reasons[name]}

    def _torch(self, spec: ModelSpec, stack: NDArray[Any]) -> dict[str, Callable[[], float]]:
        """Return a round of each of torch's contenders: it returns the seconds of one frame of (N, H, W)."""
        few = stack[: max(1, len(stack) // FEWER)]
        return {
            LOOP: lambda: _round_of(lambda: per_frame(self._loop, few, self.device)),
            COMPILED_TILES: lambda: _round_of(lambda: per_frame(self._compiled(spec), stack, self.device)),
            ALONE: lambda: _round_of(lambda: self._compiled(spec).alone()),
        }

    @cached_property
    def _loop(self) -> UsualLoop:
        return UsualLoop(self.checkpoint.network().to(self.device), self.checkpoint.normalisation)

    @cached_property
    def _product(self) -> Matmul:
        return Matmul(self.device, self.side)

    def _compiled(self, spec: ModelSpec) -> PlannedTiles:
        """Return torch with the tile of a spec, compiled once for each."""
        if spec.tile not in self._tiles:
            fed = replace(spec, input_dtype="float32", batch=1)
            net = self.checkpoint.network().to(self.device)
            self._tiles[spec.tile] = PlannedTiles(net, fed, torch.float16, compiled=self.compiled)
        return self._tiles[spec.tile]

    def _result(self, case: GoalCase, figures: Mapping[str, Figure], ours: list[Ours]) -> dict[str, Any]:
        """Return the figures, and the verdicts on the goals of the fastest of ours."""
        shape, rate = self.checkpoint.shape, self._product.flops / figures[PRODUCT].median
        found = {one.name: one.to_dict(figures[one.name], shape, rate) for one in ours}
        best = min(ours, key=lambda one: figures[one.name].median)
        kernels = best.kernels()
        reached = {BUSY: kernels["busy"], MATMUL: found[best.name]["matmul_share"]}
        for goal, other in ((EAGER, LOOP), (COMPILED, COMPILED_TILES)):
            reached[goal] = (figures[other] / figures[best.name]).median if other in figures else None
        return {
            "case": case.name,
            **asdict(case),
            "tile": best.session.spec.tile,
            "useful_flops": useful_flops(shape, case.size),
            "unetrt": found,
            "torch": {name: asdict(figures[name]) for name in (LOOP, COMPILED_TILES, ALONE) if name in figures},
            "matmul_teraflops": asdict(self._product.flops / 1e12 / figures[PRODUCT]),
            "fastest": best.name,
            "kernels": kernels,
            "verdicts": [verdict.to_dict() for verdict in verdicts(reached)],
        }


def per_frame(segment: Callable[[NDArray[Any]], object], frames: NDArray[Any], device: torch.device) -> float:
    """Return a contender's seconds for one of the frames (N, H, W)."""

    def segment_all() -> None:
        for frame in frames:
            segment(frame)

    return timed(segment_all, device) / len(frames)


def first_session(model: Path, backends: Sequence[str] = BACKENDS) -> tuple[Session, dict[str, str]]:
    """Return a session of the first engine that computes a pass, and why those before do not, by their names.

    Raises
    ------
    BackendUnavailableError
        None does.
    """
    refused: dict[str, str] = {}
    for backend in backends:
        try:
            return _proven(open_session(model, backend)), refused
        except UnetrtError as error:
            refused[backend] = str(error)
    raise BackendUnavailableError("; ".join(f"{backend}: {reason}" for backend, reason in refused.items()))


def require_right(name: str, labels: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the share of labels (H, W) that are not those of scores (classes, H, W).

    Raises
    ------
    ParityError
        It is above `MOST_WRONG`.
    """
    wrong = wrong_pixels(labels, truth)
    if wrong > MOST_WRONG:
        raise ParityError(f"{wrong:.2%} of the labels of {name} are not those of one FP32 pass over the frame")
    return wrong


def shifted_stack(frame: NDArray[Any], count: int) -> NDArray[Any]:
    """Return a stack (count, H, W) of a frame (H, W) shifted sideways, so that no two are the same."""
    return np.stack([np.roll(frame, 37 * number, axis=1) for number in range(count)])


def _proven(session: Session) -> Session:
    """Return a session that has computed a pass; close one that does not."""
    try:
        session.run(session.spec.new_input())
    except BaseException:
        session.close()
        raise
    return session


@contextmanager
def _left_out(name: str, reasons: dict[str, str]) -> Iterator[None]:
    """Note why a contender fails inside: torch's errors, and lack of memory; other errors of ours are raised."""
    try:
        yield
    except OutOfMemoryError as error:
        reasons[name] = str(error)
    except RuntimeError as error:
        if isinstance(error, UnetrtError):
            raise
        reasons[name] = summary(error)


def _round_of(run: Callable[[], float]) -> float:
    """Return the median seconds of the counted runs of a round."""
    return median([run() for _ in range(WARM_UP + COUNTED)][WARM_UP:])


def goals(
    base: int,
    depth: int,
    rounds: int,
    backends: Sequence[str],
    show: Show,
    cases: Sequence[GoalCase] = CASES,
    **kept: Any,
) -> dict[str, Any]:
    """Return what JSON stores of all cases on the GPU, shown one by one.

    Parameters
    ----------
    base, depth
        Feature channels of the network's first level, and its number of poolings.
    rounds
        Rounds of all contenders in turn.
    backends
        Engines in the order in which they are tried; all of them if empty.
    show
        Called with each case.
    cases
        What is measured.
    kept
        `path` and `patience` of `measured`.

    Raises
    ------
    BackendUnavailableError
        torch finds no GPU.
    OptionError
        An engine does not compute on a GPU.
    """
    device = require_gpu()
    free, _ = torch.cuda.mem_get_info(device)
    with scratch_folder() as folder:
        network = undecided(base, depth, fixed=True)
        filled = int(FILLED * free)
        bench = GoalsBench(network, device, folder, rounds, LATENCIES, filled, tuple(backends) or BACKENDS)
        return measured(bench, cases, show, **kept)


def measured(
    bench: GoalsBench,
    cases: Sequence[GoalCase],
    show: Show,
    path: Path | None = None,
    patience: Patience | None = None,
) -> dict[str, Any]:
    """Return what JSON stores; a case that fails is named and the others run.

    Parameters
    ----------
    bench, cases, show
        What is measured, and the callback for each case.
    path
        File of the journal, which a later run can resume; None for none.
    patience
        Time limit, and whether to resume; stored failures are tried again.
    """
    environment = gpu_environment(bench.device) if bench.device.type == "cuda" else {}
    about = {
        "network": asdict(bench.checkpoint.shape),
        **{name: environment.get(name) for name in ("gpu", "capability", "versions")},
        "rounds": bench.rounds,
        "backends": bench.backends,
        "cases": [asdict(case) for case in cases],
    }
    fixed = {"kind": KIND, "schema": SCHEMA, "environment": environment}
    journal = Journal(path, about, patience, lambda journal: {**fixed, "failed": _failures(journal.results)})
    for name in _failures(journal.results):
        del journal.results[name]
    for case in cases:
        result = journal.take(case.name, partial(_attempted, bench, case))
        if result and "failed" not in result:
            show(result)
    return journal.to_dict()


def _failures(results: dict[str, Any]) -> dict[str, str]:
    """Return why cases could not be measured, by their names."""
    return {name: case["failed"] for name, case in results.items() if "failed" in case}


def _attempted(bench: GoalsBench, case: GoalCase) -> dict[str, Any]:
    """Return a case's figures with the device's state before and after, or why it failed."""
    cuda = bench.device.type == "cuda"
    before = gpu_state(bench.device) if cuda else {}
    try:
        result = bench.measure(case)
    except (UnetrtError, RuntimeError) as error:  # RuntimeError: torch's own, out of memory among them
        return {"failed": f"{type(error).__name__}: {error}", "states": [before]}
    finally:
        gc.collect()  # what a failed case held
        bench.settle()
    return {**result, "states": [before, gpu_state(bench.device) if cuda else {}]}
