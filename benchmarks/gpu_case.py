"""One case of the GPU benchmark: frames of a size and a kind of input, through all contenders in the same rounds."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from numpy.typing import NDArray

from unetrt.benchmarks.checks import MOST_WRONG
from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.gpu_goals import BUSY, COMPILED, EAGER, MATMUL, useful_flops, verdicts
from unetrt.benchmarks.gpu_ours import COUNTED, WARM_UP, Ours, stack_of
from unetrt.benchmarks.networks import drawn_frame, write_model
from unetrt.benchmarks.planned_tiles import PlannedTiles
from unetrt.benchmarks.synchronised import timed
from unetrt.benchmarks.usual_loop import UsualLoop
from unetrt.export.exporter import Options, spec_for
from unetrt.runtime.errors import BackendUnavailableError, OptionError, OutOfMemoryError, ParityError, UnetrtError
from unetrt.runtime.geometry.planner import Budget, best_tile
from unetrt.runtime.model.spec import InputType, ModelSpec
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import Session, open_session
from unetrt.trainer.checkpoint import Checkpoint
from unetrt.trainer.torch_session import TorchSession
from unetrt.trainer.validation import wrong_pixels

LOOP, COMPILED_TILES, ALONE, PRODUCT = "eager", "compiled", "compiled, pass alone", "matmul"
# In the order in which they are tried.
BACKENDS = ("tensorrt", "onnxruntime-cuda")
# The eager loop takes this share of a stack: it is slow, and its frames are all alike to it.
FEWER = 8
# Products that are timed together.
PRODUCTS = 10
# Letters of an error of torch's that are kept: a compiler says pages.
QUOTED = 300


@dataclass(frozen=True)
class Case:
    """What is measured together.

    Attributes
    ----------
    size
        Height and width of the frames, in pixels; they are uint16.
    input
        What the network takes.
    lanes
        Each number is measured.
    batch
        Tiles in a pass.
    frames
        In a stack.
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


@dataclass(frozen=True)
class GoalsBench:
    """What all cases share: the network, and what was exported, compiled or computed of it before.

    Attributes
    ----------
    checkpoint
        The network, with a fixed normalisation: no contender spends its time on measuring grey values.
    device
        torch's.
    folder
        Where the exported models lie; it outlives the cases.
    rounds
        Of all contenders in turn.
    latencies
        Frames that are segmented one by one.
    memory
        Bytes that the planner may fill with the lanes that are open at once: those of one contender.
    backends
        In the order in which they are tried.
    compiled
        Whether torch.compile is used.
    side
        Of the square matrices of the yardstick: large enough that a GPU computes at its full rate.
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
    _truths: dict[tuple[int, int], NDArray[Any]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for name in self.backends:
            if name not in BACKENDS and self.device.type == "cuda":
                raise OptionError(f"{name} does not compute on a GPU: use {' or '.join(BACKENDS)}")

    def measure(self, case: Case) -> dict[str, Any]:
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
            ours = [Ours(session, stack_of(frame, case.frames), lanes) for lanes in case.lanes]
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

    def model(self, case: Case) -> Path:
        """Return the exported file of a case; of cases with the same tile, batch and input it is one file."""
        budget = Budget(self.memory, case.batch, max(case.lanes), itemsize=2)
        height, width = best_tile([case.size], self.checkpoint.shape, budget).tile
        path = self.folder / f"{height}x{width}-{case.batch}-{case.input}.onnx"
        if not path.exists():
            write_model(self.checkpoint, Options((height, width), "fp16", "labels", case.batch, case.input), path)
        return path

    def truth(self, frame: NDArray[Any]) -> NDArray[Any]:
        """Return the scores (classes, H, W) of one FP32 pass over a drawn frame (H, W); made once for each size."""
        height, width = frame.shape
        if (height, width) not in self._truths:
            geometry = self.checkpoint.shape.geometry
            whole = spec_for(self.checkpoint, Options((geometry.side_for(height), geometry.side_for(width))))
            exactly = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
            with exactly, TorchSession(self.checkpoint.network().to(self.device), whole) as session:
                self._truths[height, width] = Segmenter(session, lanes=1).scores(frame)
            self.settle()
        return self._truths[height, width]

    def settle(self) -> None:
        """Give the memory that torch keeps for later back to the device: engines take theirs past torch."""
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
        values: dict[str, list[float]] = defaultdict(list)
        for number in range(self.rounds):
            latencies = self.latencies if number == self.rounds - 1 else 0
            values[PRODUCT].append(_round_of(self._product))
            runs: dict[str, Callable[[], float]] = self._torch(spec, stack)
            runs |= {one.name: partial(one.round, latencies) for one in ours}
            for name, run in runs.items():
                if name not in left_out:
                    with _left_out(name, left_out):
                        values[name].append(run())
                self.settle()
        if not any(one.name not in left_out for one in ours):
            raise OutOfMemoryError("; ".join(left_out.values()))
        return {name: Figure.of(rounds) for name, rounds in values.items() if name not in left_out}

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
    def _product(self) -> "Matmul":
        return Matmul(self.device, self.side)

    def _compiled(self, spec: ModelSpec) -> PlannedTiles:
        """Return torch with the tile of a spec, compiled once for each."""
        if spec.tile not in self._tiles:
            fed = replace(spec, input_dtype="float32", batch=1)
            net = self.checkpoint.network().to(self.device)
            self._tiles[spec.tile] = PlannedTiles(net, fed, torch.float16, compiled=self.compiled)
        return self._tiles[spec.tile]

    def _result(self, case: Case, figures: Mapping[str, Figure], ours: list[Ours]) -> dict[str, Any]:
        """Return the figures, and the goals held against the fastest of ours."""
        shape, rate = self.checkpoint.shape, self._product.flops / figures[PRODUCT].median
        told = {one.name: one.to_dict(figures[one.name], shape, rate) for one in ours}
        best = min(ours, key=lambda one: figures[one.name].median)
        kernels = best.kernels()
        reached = {BUSY: kernels["busy"], MATMUL: told[best.name]["matmul_share"]}
        for goal, other in ((EAGER, LOOP), (COMPILED, COMPILED_TILES)):
            reached[goal] = (figures[other] / figures[best.name]).median if other in figures else None
        return {
            "case": case.name,
            **asdict(case),
            "tile": best.session.spec.tile,
            "useful_flops": useful_flops(shape, case.size),
            "unetrt": told,
            "torch": {name: asdict(figures[name]) for name in (LOOP, COMPILED_TILES, ALONE) if name in figures},
            "matmul_teraflops": asdict(self._product.flops / 1e12 / figures[PRODUCT]),
            "fastest": best.name,
            "kernels": kernels,
            "verdicts": [verdict.to_dict() for verdict in verdicts(reached)],
        }


class Matmul:
    """A dense product of random FP16 matrices, as fast as torch's library does it.

    Parameters
    ----------
    device
        Where.
    side
        Rows and columns.
    """

    def __init__(self, device: torch.device, side: int) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self._a, self._b = (
            torch.randn(side, side, generator=generator, device=device, dtype=torch.float16) for _ in range(2)
        )
        self.flops = 2 * side**3

    def __call__(self) -> float:
        """Return the seconds of one product."""

        def products() -> None:
            for _ in range(PRODUCTS):
                self._a @ self._b

        return timed(products, self._a.device) / PRODUCTS


def per_frame(segment: Callable[[NDArray[Any]], object], frames: NDArray[Any], device: torch.device) -> float:
    """Return the seconds that a contender takes for one of the frames (N, H, W)."""

    def all_of_them() -> None:
        for frame in frames:
            segment(frame)

    return timed(all_of_them, device) / len(frames)


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
        They are more than `MOST_WRONG`.
    """
    wrong = wrong_pixels(labels, truth)
    if wrong > MOST_WRONG:
        raise ParityError(f"{wrong:.2%} of the labels of {name} are not those of one FP32 pass over the frame")
    return wrong


def _proven(session: Session) -> Session:
    """Return a session that has computed a pass; close one that does not."""
    try:
        (lane,) = session.lanes(1)
        with closing(lane):
            lane.launch()
            lane.wait()
    except BaseException:
        session.close()
        raise
    return session


@contextmanager
def _left_out(name: str, reasons: dict[str, str]) -> Iterator[None]:
    """Note why a contender fails inside: torch's own errors, and lack of memory; anything else of ours is raised."""
    try:
        yield
    except OutOfMemoryError as error:
        reasons[name] = str(error)
    except RuntimeError as error:
        if isinstance(error, UnetrtError):
            raise
        reasons[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:QUOTED]}"


def _round_of(run: Callable[[], float]) -> float:
    """Return the median seconds of the counted runs of a round."""
    return median([run() for _ in range(WARM_UP + COUNTED)][WARM_UP:])
