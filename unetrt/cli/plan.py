"""`unetrt plan`."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.cli.options import MEMORY, SIZE, Size
from unetrt.runtime.errors import BackendUnavailableError, ModelFileError, OptionError
from unetrt.runtime.files.atomic import require_place

if TYPE_CHECKING:
    from unetrt.cli.plan_network import Network
    from unetrt.runtime.calibration import Calibration
    from unetrt.runtime.planner import Budget

ROWS = 8
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 4}


@click.command("plan")
@click.argument("frames", type=SIZE, nargs=-1, required=True)
@click.option("--model", type=click.Path(path_type=Path), help="Plan for this model or checkpoint.")
@click.option("--depth", default=4, show_default=True, help="Poolings, without --model.")
@click.option("--base", default=64, show_default=True, help="Feature channels of the first level, without --model.")
@click.option("--channels", default=1, show_default=True, help="Of a frame, without --model.")
@click.option("--classes", default=2, show_default=True, help="Without --model.")
@click.option("--memory", type=MEMORY, default="8GiB", show_default=True, help="For activations of all lanes.")
@click.option("--batch", default=1, show_default=True, help="Tiles in one pass.")
@click.option("--lanes", default=1, show_default=True, help="Passes in flight at once; 1 on a CPU.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), help="[default: the model file's, or fp32]")
@click.option("--measure", is_flag=True, help="Time passes on this machine and keep what they say of others.")
@click.option("--backend", default="auto", show_default=True, help="Whose seconds: onnxruntime (CPU), tensorrt, ...")
@click.option("--device", type=int, metavar="N", help="GPU, as CUDA counts [default: the first, or the CPU].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(frames: tuple[Size, ...], model: Path | None, measure: bool, as_json: bool, **choices: Any) -> None:
    """Show the legal tiles for FRAMES, sizes such as 2048x2048, cheapest first.

    Cheapest is the least arithmetic, until --measure has timed passes of this network here (a minute or two; TensorRT
    first builds an engine for each tile). Then it is the least time, predicted by what was measured, for this and for
    every later plan of such a network. How far predictions are off is shown on ten tiles that they were not made from;
    where one is off by more than 15 %, they are not used.

    `unetrt export` plans by arithmetic all the same, so that a file does not depend on where it was made: give it the
    tile of your choice.
    """
    from unetrt.cli.plan_network import network_of
    from unetrt.cli.plan_table import print_comparison, print_plan
    from unetrt.runtime.planner import Budget, best_tile, candidates, cost_of

    network = network_of(model, **{key: choices.pop(key) for key in ("depth", "base", "channels", "classes")})
    precision = choices["precision"] or network.precision
    budget = Budget(choices["memory"], choices["batch"], choices["lanes"], BYTES[precision])
    place = {"name": choices["backend"], "precision": precision, "device": choices["device"]}
    calibration = _measure(network, frames, budget, **place) if measure else _kept(network, budget, **place)
    relied_on = calibration if calibration and calibration.reliable else None
    costs = (frames, network.shape, budget, relied_on.model if relied_on else None)
    best = best_tile(*costs)
    rows = _front(candidates(*costs), best)
    if as_json:
        known = calibration and calibration.to_dict()
        said = {"best": asdict(best), "candidates": [asdict(row) for row in rows], "calibration": known}
        click.echo(json.dumps(said, indent=2))
        return
    if measure and calibration:
        print_comparison(calibration, network.measured_as)
    usual = cost_of((572, 572), *costs) if network.shape.geometry.is_legal(572) else None
    print_plan(rows, best, usual, budget, relied_on)


def _measure(
    network: "Network", frames: tuple[Size, ...], budget: "Budget", name: str, precision: str, device: int | None
) -> "Calibration":
    from unetrt.benchmarks.calibrate import calibrate
    from unetrt.cli.plan_bar import bar
    from unetrt.runtime.setting import Setting, chosen_backend

    if precision == "int8":
        raise OptionError("int8 takes its ranges from frames, and none are given here: measure with --precision fp32")
    setting = Setting.here(chosen_backend(name, device), network.shape, precision, budget.batch, device)
    require_place(setting.path)
    with bar() as progress:
        calibration = calibrate(network.checkpoint(), setting, frames, budget, device, progress)
    if calibration.reliable:  # else what was kept before may be better
        calibration.save()
    return calibration


def _kept(network: "Network", budget: "Budget", name: str, precision: str, device: int | None) -> "Calibration | None":
    """Return what an earlier --measure has kept of such a network, if anything."""
    from unetrt.runtime.calibration import any_kept, kept
    from unetrt.runtime.sessions import AUTO
    from unetrt.runtime.setting import Setting, chosen_backend

    if name == AUTO and not any_kept():  # engines take long to import
        return None
    with suppress(*((BackendUnavailableError,) if name == AUTO else ())):
        setting = Setting.here(chosen_backend(name, device), network.shape, precision, budget.batch, device)
        try:
            return kept(setting)
        except ModelFileError as error:
            click.echo(f"ignored: {error}", err=True)
    return None


def _front(ranked: list[Any], best: Any) -> list[Any]:
    """Keep the tiles that no other beats in both cost and memory: the best, its forerunner, and some below it."""
    front: list[Any] = []
    for one in ranked:
        if not front or one.memory < front[-1].memory:
            front.append(one)
    at = front.index(best)
    return front[max(0, at - 1) : at + ROWS]
