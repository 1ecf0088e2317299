"""The command `unetrt build`: a TensorRT engine from a model file."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.cli import MEMORY, MODEL, Parsed, echo, whole
from unetrt.runtime.engines import SUFFIXES
from unetrt.runtime.engines.engine_file import COMPATIBILITIES
from unetrt.runtime.engines.flavours import AUTO, NAMES
from unetrt.runtime.errors import BackendUnavailableError, OptionError, printable
from unetrt.runtime.files.atomic import require_place

if TYPE_CHECKING:
    from unetrt.runtime.engines.build import Phase, Progress
    from unetrt.runtime.engines.flavours import Flavour
    from unetrt.runtime.machine import Machine

# Longest name of a phase that is shown, in characters: some name a layer.
NAME = 60


def _capability_of(text: str) -> str:
    """Return the text of a compute capability."""
    if not re.fullmatch(r"[0-9]{1,2}\.[0-9]", text):
        raise OptionError(f"{text!r:.60} is not a compute capability: write one such as 8.9")
    return text


@click.command("build")
@click.argument("model", type=MODEL)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The engine file. [default: kept in the cache]")
@click.option(
    "--flavour",
    type=click.Choice([AUTO, *NAMES]),
    default=AUTO,
    show_default=True,
    help="TensorRT or TensorRT for RTX; auto: the first usable one.",
)
@click.option("--workspace", type=MEMORY, help="Largest workspace of a layer, such as 2GiB. [default: no limit]")
@click.option("--level", type=whole(), help="Optimisation level, 0 to 5; higher levels search longer. [default: 3]")
@click.option("--tf32", is_flag=True, help="Let FP32 convolutions round their factors to 10 bits of mantissa.")
@click.option("--version-compatible", is_flag=True, help="Allow newer releases of the same major version to load it.")
@click.option(
    "--hardware-compatible",
    type=click.Choice(COMPATIBILITIES),
    default="none",
    show_default=True,
    help="Allow other GPUs to load it (TensorRT).",
)
@click.option(
    "--capability",
    "capabilities",
    type=Parsed("X.Y", _capability_of),
    multiple=True,
    metavar="X.Y",
    help="Build for GPUs of this compute capability (TensorRT for RTX); repeatable. [default: 8.0, 8.6, 8.9, 12.0 and "
    "newer]",
)
@click.option("--force", is_flag=True, help="Build even if the engine exists.")
def command(model: Path, out: Path | None, flavour: str, force: bool, **requested: Any) -> None:
    """Build a TensorRT engine from MODEL, an ONNX file that `unetrt export` wrote.

    TensorRT builds on the target GPU. TensorRT for RTX builds without a GPU, for several GPUs. The
    sidecar OUT.json describes the engine. Without -o, the engine is kept in the cache, where `unetrt predict` finds it.
    """
    from unetrt.runtime.engines.cache import EngineCache, place
    from unetrt.runtime.engines.engine_file import BuildOptions, facts_of
    from unetrt.runtime.machine import this_machine
    from unetrt.runtime.model.onnx_file import read_spec

    if out is not None:
        _require_engine_place(out, model)
    spec, machine = read_spec(model), this_machine()
    options = BuildOptions(**requested)
    chosen = _flavour(flavour, machine, options.capabilities)
    options.require_for(chosen, machine)
    model = model.absolute()
    facts = facts_of(model, spec, chosen, machine, options)
    with _bar() as progress:
        if out is None:
            cache = EngineCache()
            why = f" ({cache.reason(model, facts)})"
            path, built = cache.obtain(model, facts, progress, force)
        else:
            why = ""
            path, built = out, place(out, model, facts, progress, force)
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    how = f"built{why}" if built else "is up to date (--force rebuilds it)"
    echo(f"{path} {how}: {size}, {spec.precision}, {chosen.title} {chosen.version}")


def _flavour(name: str, machine: "Machine", capabilities: tuple[str, ...]) -> "Flavour":
    """Return the flavour that builds; the error for a GPU that none supports says how to build for other GPUs."""
    from unetrt.runtime.engines.flavours import FLAVOURS, usable_flavour

    try:
        return usable_flavour(name, machine, capabilities)
    except BackendUnavailableError as error:
        others = [one for one in FLAVOURS if name in (AUTO, one.name) and one.why_not_on(machine)]
        if capabilities or not others or others[0].probe(machine):
            raise
        raise BackendUnavailableError(f"{error}; to build for others, name them, such as --capability 8.9") from error


def _require_engine_place(out: Path, model: Path) -> None:
    from unetrt.runtime.engines.engine_file import sidecar_path
    from unetrt.runtime.model.integrity import external_files

    sources = (model, *external_files(model)) if model.is_file() else ()
    for path in (out, sidecar_path(out)):
        require_place(path, sources)
    if out.suffix.lower() not in SUFFIXES:
        raise OptionError(f"{out} is not the name of an engine file: use {out.with_suffix('.engine')}")


@contextmanager
def _bar() -> Iterator["Progress"]:
    """Show the phases of a build as progress bars on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from unetrt.runtime.engines.build import Progress

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(phase: "Phase") -> None:
            if phase.name not in tasks:
                tasks[phase.name] = bars.add_task(printable(phase.name, NAME), total=phase.steps)
            bars.update(tasks[phase.name], completed=phase.done, total=phase.steps)
            if phase.parent and phase.done == phase.steps:
                bars.remove_task(tasks.pop(phase.name))

        yield Progress(show)
