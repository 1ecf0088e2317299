"""The benchmarks of this repository, by name.

python -m unetrt.benchmarks weight-map --json benchmarks/results/weight-map.json
python -m unetrt.benchmarks history benchmarks/results/cpu.json
"""

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import click

from unetrt.benchmarks.acquisition_cases import FramesAccounted, FrameToDecision
from unetrt.benchmarks.blocks import BlockMemory, BlockSpeed
from unetrt.benchmarks.cases import BenchCase, measure
from unetrt.benchmarks.history import FILE, HistoryEntry, add, keep
from unetrt.benchmarks.live_cases import LiveSubmit, LiveThroughput
from unetrt.benchmarks.result import load
from unetrt.benchmarks.runtime_cases import ClassMapDecoding, HostPath
from unetrt.benchmarks.saving import SavedFiles
from unetrt.benchmarks.terminal import OneLine, figures_table
from unetrt.benchmarks.training_cases import AugmentedTiles, WeightMap
from unetrt.runtime.files.atomic import require_writable

CASES: tuple[type[BenchCase], ...] = (
    WeightMap,
    AugmentedTiles,
    HostPath,
    LiveSubmit,
    LiveThroughput,
    FrameToDecision,
    FramesAccounted,
    ClassMapDecoding,
    SavedFiles,
    BlockSpeed,
    BlockMemory,
)
PATH = click.Path(path_type=Path)


@click.group()
def main() -> None:
    """Run a benchmark of this repository, each round in a fresh process."""


@main.command("history", cls=OneLine)
@click.argument("path", type=PATH)
def history(path: Path) -> None:
    """Add what `unetrt bench --json PATH` measured to the history beside PATH, once, under the name of the file."""
    result, place = load(path), path.with_name(FILE)
    new = add(HistoryEntry.of(path.stem, result), place)
    click.echo(f"{place} {'now has' if new else 'already had'} the run of {result.when}")


def _command(case: type[BenchCase]) -> click.Command:
    """Return the command of a case: its fields are the options."""

    def run(rounds: int, json_path: Path | None, **options: Any) -> None:
        from rich.console import Console

        if json_path is not None:
            require_writable(json_path.parent)
        result = measure(case(**options), rounds)
        if json_path is not None:
            keep(result, json_path)
        Console(width=100).print(figures_table(result))

    params = [param for one in fields(case) if (param := _param(one)) is not None]
    shared = [
        click.Option(["--rounds"], type=click.IntRange(1), default=case.ROUNDS, show_default=True, help="Processes."),
        click.Option(["--json", "json_path"], type=PATH, help="Write all figures as JSON, and extend the history."),
    ]
    return OneLine(case.NAME, params=[*params, *shared], callback=run, help=case.HELP)


def _param(one: "Field[Any]") -> click.Parameter | None:
    """Return a field as an option, or as an argument where it has no default; None for one without a flag."""
    if one.default is MISSING:
        return click.Argument([one.name], type=PATH)
    for flag, text in one.metadata.items():
        several = isinstance(one.default, tuple)
        kind = type(one.default[0] if several else one.default)
        return click.Option(
            [flag, one.name], type=kind, default=one.default, multiple=several, show_default=True, help=text
        )
    return None


for _case in CASES:
    main.add_command(_command(_case))

if __name__ == "__main__":
    main()
