"""`unetrt plan`."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from unetrt.cli import MEMORY, MODEL, SIZE, Size, backend_name_option, device_option, echo, whole
from unetrt.runtime.errors import BackendUnavailableError, ModelFileError, OptionError
from unetrt.runtime.files.atomic import require_writable, scratch_folder
from unetrt.runtime.geometry.unet_shape import UNetShape

if TYPE_CHECKING:
    from unetrt.runtime.geometry.planner import Budget, PlannedTile, TileTime
    from unetrt.runtime.model.spec import Precision
    from unetrt.runtime.sessions.measured import Setting
    from unetrt.trainer.checkpoint import Checkpoint

    # What a plan is made for, and the times that it uses.
    Timed = tuple[Budget, Setting | None, tuple[TileTime, ...]]

ROWS = 8
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 4}
# The tile of the paper, which the best is compared with.
USUAL = (572, 572)


@dataclass(frozen=True)
class PlanOptions:
    """The arguments of `unetrt plan`; `precision` None is the model file's."""

    frames: tuple[Size, ...]
    model: Path | None
    depth: int
    base: int
    channels: int
    classes: int
    memory: int
    batch: int
    lanes: int
    precision: str | None
    measure: bool
    backend: str
    device: int | None
    as_json: bool


@dataclass(frozen=True)
class PlannedNetwork:
    """A network to plan for.

    Attributes
    ----------
    shape
        Its depth, base, channels and classes.
    precision
        Precision of its arithmetic, unless the user chooses another.
    model
        Its model file, if it is one whose tile can be changed.
    checkpoint
        Its checkpoint, if it was given as one.
    """

    shape: UNetShape
    precision: str = "fp32"
    model: Path | None = None
    checkpoint: "Checkpoint | None" = None

    @classmethod
    def load(cls, path: Path) -> "PlannedNetwork":
        """Return the network of a model file, a checkpoint or a training's folder."""
        if path.suffix.lower() == ".onnx":
            from unetrt.runtime.model.integrity import external_files
            from unetrt.runtime.model.onnx_file import read_spec

            spec = read_spec(path)
            if spec.shape is None:
                raise OptionError(f"{path} is not a U-Net of ours, so its cost is unknown: plan for one with --depth")
            return cls(spec.shape, spec.precision, None if external_files(path) else path)
        from unetrt.trainer.checkpoint import load

        checkpoint = load(path)
        return cls(checkpoint.shape, checkpoint=checkpoint)

    def model_file(self, precision: str, folder: Path) -> tuple[Path, str]:
        """Return a model file of this network in a precision, written to `folder` if need be, and what is in it.

        Without a file or a checkpoint of that precision, an untrained network of the same shape is as fast.
        """
        if self.model is not None and precision == self.precision:
            return self.model, f"{self.model}, with each tile"
        if precision == "int8":
            raise OptionError(
                "int8 takes its ranges from frames, and none are given here: measure an int8 model file that holds its "
                "weights, or --precision fp32"
            )
        from unetrt.export.exporter import Options, spec_for
        from unetrt.export.graph import build_graph
        from unetrt.trainer.checkpoint import untrained_checkpoint

        checkpoint, path = self.checkpoint or untrained_checkpoint(self.shape), folder / "network.onnx"
        smallest = self.shape.geometry.smallest
        spec = spec_for(checkpoint, Options((smallest, smallest), precision=cast("Precision", precision)))
        path.write_bytes(build_graph(checkpoint.network(), spec).SerializeToString())
        return path, "the checkpoint's network" if self.checkpoint else "an untrained network of the same shape"


@click.command("plan")
@click.argument("frames", type=SIZE, nargs=-1, required=True)
@click.option("--model", type=MODEL, help="Plan for this model file or checkpoint.")
@click.option("--depth", type=whole(), default=4, show_default=True, help="Number of poolings, without --model.")
@click.option(
    "--base", type=whole(), default=64, show_default=True, help="Feature channels of the first level, without --model."
)
@click.option("--channels", type=whole(), default=1, show_default=True, help="Channels of a frame, without --model.")
@click.option("--classes", type=whole(), default=2, show_default=True, help="Classes, without --model.")
@click.option(
    "--memory", type=MEMORY, default="8GiB", show_default=True, help="Memory limit for the activations of all lanes."
)
@click.option("--batch", type=whole(), default=1, show_default=True, help="Tiles in one pass.")
@click.option("--lanes", type=whole(), default=1, show_default=True, help="Passes in flight at once; 1 on a CPU.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Precision of the network. [default: the model file's, or fp32]",
)
@click.option("--measure", is_flag=True, help="Time the best tiles on this machine, and keep the times.")
@backend_name_option
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(**options: Any) -> None:
    """Show the best legal tiles for FRAMES, sizes such as 2048x2048.

    The best tile needs the least arithmetic of those that fit into memory. With --measure, the best few are timed on
    this machine, and the fastest is the best; if times differ by less than their noise, the tile with less arithmetic
    is chosen. This takes one or two minutes, more for networks whose passes take seconds each; TensorRT also builds an
    engine for each tile. Later plans for such a network use the measured times.

    `unetrt export` always plans by arithmetic, so that a file does not depend on the machine that wrote it: pass
    another tile with --tile.
    """
    _plan(PlanOptions(**options))


def _plan(options: PlanOptions) -> None:
    from unetrt.runtime.geometry.planner import Budget, best_tile, candidates, cost_of, pareto_front

    network = (
        PlannedNetwork.load(options.model)
        if options.model
        else PlannedNetwork(UNetShape(options.depth, options.base, options.channels, options.classes))
    )
    precision = options.precision or network.precision
    budget = Budget(options.memory, options.batch, options.lanes, BYTES[precision])
    timed = _measure if options.measure else _kept
    budget, setting, times = timed(network, options, budget, precision)
    given = (options.frames, network.shape, budget, times)
    best, ranked = best_tile(*given), candidates(*given)
    front = pareto_front(ranked)
    first = next(index for index, one in enumerate(front) if one.memory <= budget.memory)
    front = front[max(0, first - 1) : first + ROWS]
    rows = [one for one in ranked if one in front or one.seconds is not None]
    if options.as_json:
        measured = {"setting": asdict(setting), "tiles": [asdict(one) for one in times]} if setting and times else None
        plan = {"best": asdict(best), "candidates": [asdict(row) for row in rows], "measured": measured}
        echo(json.dumps(plan, indent=2))
        return
    usual = cost_of(USUAL, *given) if network.shape.geometry.is_legal(USUAL[0]) else None
    _print(rows, best, usual, budget, len(options.frames))
    echo(_source(best, setting, times))


def _measure(network: PlannedNetwork, options: PlanOptions, budget: "Budget", precision: str) -> "Timed":
    """Time the tiles that are worth it, and keep the times; a CPU's budget is what is free there."""
    from rich.console import Console
    from rich.progress import Progress

    from unetrt.runtime.geometry.planner import candidates, worth_timing
    from unetrt.runtime.machine import format_bytes
    from unetrt.runtime.sessions import chosen_backend
    from unetrt.runtime.sessions.measured import Setting, keep, measure

    backend = chosen_backend(options.backend, options.device)
    setting = Setting.here(backend, network.shape, precision, budget, options.device)
    require_writable(setting.path.parent)
    possible = budget if backend.gpu else budget.within_free_memory()
    tiles = worth_timing(candidates(options.frames, network.shape, possible), possible.memory)
    console = Console(stderr=True)
    with (
        scratch_folder() as folder,
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task(f"timing {len(tiles)} tiles", total=None)
        model, what = network.model_file(precision, folder)
        times = measure(
            model, tiles, setting, options.device,
            lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    echo(f"timed: {what}", err=True)
    if possible.memory < budget.memory:
        echo(f"planned for {format_bytes(possible.memory)}, as no more memory is free here", err=True)
    return possible, setting, keep(setting, times)


def _kept(network: PlannedNetwork, options: PlanOptions, budget: "Budget", precision: str) -> "Timed":
    """Use the times that earlier runs with --measure have kept of such a network."""
    from unetrt.runtime.sessions import AUTO, chosen_backend
    from unetrt.runtime.sessions.measured import Setting, folder, kept

    automatic = options.backend == AUTO
    if automatic and not any(folder().glob("*.json")):  # engines take long to import
        return budget, None, ()
    with suppress(*((BackendUnavailableError,) if automatic else ())):
        backend = chosen_backend(options.backend, options.device)
        setting = Setting.here(backend, network.shape, precision, budget, options.device)
        try:
            return budget, setting, kept(setting)
        except ModelFileError as error:
            echo(f"ignored: {error}; --measure replaces it", err=True)
    return budget, None, ()


def _print(
    rows: "list[PlannedTile]", best: "PlannedTile", usual: "PlannedTile | None", budget: "Budget", frames: int
) -> None:
    """Print the tiles with the best one marked, and how it compares with the usual tile."""
    from rich.console import Console
    from rich.table import Table

    from unetrt.runtime.machine import format_bytes

    timed = any(row.seconds is not None for row in rows)
    time = "time" if frames == 1 else f"time, {frames} frames"
    table = Table("tile", "passes", "GMAC", "useful", "memory", *([time] if timed else []), "")
    for row in [*rows, *([usual] if usual and usual not in rows else [])]:
        fits = "" if row.memory <= budget.memory else "does not fit"
        mark = "best" if row == best else ("the paper's" if row == usual else fits)
        table.add_row(
            f"{row.tile[0]}x{row.tile[1]}", str(row.passes), f"{row.macs / 1e9:.0f}", f"{row.useful:.1%}",
            format_bytes(row.memory), *([_time(row)] if timed else []), mark,
        )  # fmt: skip
    Console().print(table)
    if usual:
        times = ""
        if best.seconds is not None and usual.seconds is not None:
            times = f" and {best.seconds / usual.seconds:.0%} of their time"
        echo(f"the best tile needs {best.macs / usual.macs:.0%} of the arithmetic of 572-tiles{times}")


def _time(row: "PlannedTile") -> str:
    if row.seconds is None:
        return ""
    size = f"{row.seconds:.2f} s" if row.seconds >= 1 else f"{row.seconds * 1e3:.3g} ms"
    return f"{size} ± {row.noise / row.seconds:.0%}"


def _source(best: "PlannedTile", setting: "Setting | None", times: "tuple[TileTime, ...]") -> str:
    if best.seconds is None:
        why = "the tile of least arithmetic was not" if times else "no tile of such a network was"
        return f"ranked by arithmetic: {why} measured on this machine (--measure)"
    days = sorted({one.measured_on for one in times})
    return (
        f"times measured on {' to '.join(days[:1] + days[1:][-1:])} on this machine ({setting})\n"
        "of tiles whose times overlap, the one of less arithmetic is the best"
    )
