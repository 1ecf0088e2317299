"""One case of the GPU benchmark: frames of a size and a kind of input, through all contenders in the same rounds."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.gpu_engine import BACKENDS, first_session, wrong_labels
from unetrt.benchmarks.gpu_goals import BUSY, COMPILED, EAGER, MATMUL, useful_flops, verdicts
from unetrt.benchmarks.gpu_ours import Ours, stack_of
from unetrt.benchmarks.gpu_torch import Matmul, per_frame
from unetrt.benchmarks.measure import interleaved
from unetrt.benchmarks.networks import drawn_frame, write_model
from unetrt.benchmarks.planned_tiles import PlannedTiles
from unetrt.benchmarks.usual_loop import UsualLoop
from unetrt.export.options import Options
from unetrt.runtime.planner import Budget, best_tile
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.spec import InputType, ModelSpec
from unetrt.trainer.checkpoint import Checkpoint

LOOP, COMPILED_TILES, ALONE, PRODUCT = "eager", "compiled", "compiled, pass alone", "matmul"
# The eager loop takes this share of a stack: it is slow, and its frames are all alike to it.
FEWER = 8

Runs = dict[str, Callable[[], float]]


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
class Bench:
    """What all cases share.

    Attributes
    ----------
    checkpoint
        The network, with a fixed normalisation: no contender spends its time on measuring grey values.
    device
        torch's.
    rounds
        Of all contenders in turn.
    latencies
        Frames that are segmented one by one.
    memory
        Bytes that the planner may fill.
    backends
        In the order in which they are tried.
    compiled
        Whether torch.compile is used.
    side
        Of the matrices of the yardstick.
    """

    checkpoint: Checkpoint
    device: torch.device
    rounds: int
    latencies: int
    memory: int = 8 * 2**30
    backends: Sequence[str] = BACKENDS
    compiled: bool = True
    side: int = 8192

    def measure(self, case: Case, folder: Path) -> dict[str, Any]:
        """Return all that JSON stores of a case; the model file is left in `folder`.

        Raises
        ------
        BackendUnavailableError
            No engine runs the model; the message says why.
        ParityError
            unetrt's labels are another network's; nothing is timed then.
        OutOfMemoryError
            The lanes do not fit.
        """
        frame, model = drawn_frame(case.size, 1), folder / "model.onnx"
        write_model(self.checkpoint, self._options(case), model)
        session, refused = first_session(model, self.backends)
        with session, ExitStack() as opened:
            stack = stack_of(frame, case.frames)
            ours = [Ours(opened.enter_context(Segmenter(session, lanes=lanes)), stack, lanes) for lanes in case.lanes]
            wrong = wrong_labels([one.segmenter for one in ours], self.checkpoint, frame, self.device)
            matmul = Matmul(self.device, self.side)
            runs: Runs = {PRODUCT: matmul, **self._torch(session.spec, stack)}
            runs |= {one.name: one.sustained for one in ours}
            figures = interleaved(runs, self.rounds)
            for one in ours:
                one.one_by_one(self.latencies)
            about = {"session": session.name, "refused": refused, "pixels_off": wrong}
            return {**about, **self._result(case, figures, ours, matmul.flops)}

    def _options(self, case: Case) -> Options:
        budget = Budget(self.memory, case.batch, max(case.lanes), itemsize=2)
        tile = best_tile([case.size], self.checkpoint.shape, budget).tile
        return Options(tile, "fp16", "labels", case.batch, case.input)

    def _torch(self, spec: ModelSpec, stack: NDArray[Any]) -> Runs:
        loop = UsualLoop(self.checkpoint.network().to(self.device), self.checkpoint.normalisation)
        fed = replace(spec, input_dtype="float32", batch=1)
        tiles = PlannedTiles(self.checkpoint.network().to(self.device), fed, torch.float16, compiled=self.compiled)
        few = stack[: max(1, len(stack) // FEWER)]
        return {
            LOOP: lambda: per_frame(loop, few, self.device),
            COMPILED_TILES: lambda: per_frame(tiles, stack, self.device),
            ALONE: tiles.alone,
        }

    def _result(self, case: Case, figures: dict[str, Figure], ours: list[Ours], product: int) -> dict[str, Any]:
        """Return the figures, and the goals held against the fastest of ours."""
        shape, rate = self.checkpoint.shape, product / figures[PRODUCT].median
        told = {one.name: one.to_dict(figures[one.name], shape, rate) for one in ours}
        best = min(told, key=lambda name: figures[name].median)
        reached = {BUSY: told[best]["busy"], MATMUL: told[best]["matmul_share"]}
        for goal, other in ((EAGER, LOOP), (COMPILED, COMPILED_TILES)):
            reached[goal] = (figures[other] / figures[best]).median
        return {
            "case": case.name,
            **asdict(case),
            "tile": ours[0].segmenter.spec.tile,
            "useful_flops": useful_flops(shape, case.size),
            "unetrt": told,
            "torch": {name: asdict(figures[name]) for name in (LOOP, COMPILED_TILES, ALONE)},
            "matmul_teraflops": asdict(product / 1e12 / figures[PRODUCT]),
            "fastest": best,
            "verdicts": [verdict.to_dict() for verdict in verdicts(reached)],
        }
