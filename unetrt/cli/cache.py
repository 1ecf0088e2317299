"""The command `unetrt cache`: list and clear cached engines, retiled models, and choices of ONNX Runtime's options."""

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from unetrt.cli import echo
from unetrt.runtime.errors import ModelFileError, OptionError, OutputError, printable

if TYPE_CHECKING:
    from pathlib import Path

    from unetrt.runtime.engines.engine_file import Sidecar

# Longest description of an entry, in characters: the path of a model has up to 4096.
WIDEST = 1000


@click.group("cache")
def command() -> None:
    """List or clear the caches of engines, of models with other tiles, and of ONNX Runtime's options."""


@command.command("list")
def listed() -> None:
    """List engines and models with other tiles, the last used first, then options of ONNX Runtime."""
    from unetrt.runtime.engines.cache import EngineCache
    from unetrt.runtime.sessions import onnxruntime_options, retile

    cache, total = EngineCache(), 0
    for entry in cache.entries():
        total += entry.size
        about = "not readable" if entry.sidecar is None else _about(entry.sidecar)
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        echo(f"{entry.path.stem[:12]}  {entry.size / 1e6:8.1f} MB  used {used}  {printable(about, WIDEST)}")
    for path in retile.kept():
        with suppress(OSError):
            echo(f"{path.stem[:12]}  {path.stat().st_size / 1e6:8.1f} MB  used {_day(path)}  {_tile(path)}")
    for path, choice in onnxruntime_options.choices():
        about = "not readable" if choice is None else f"{choice.source}: {choice}"
        echo(f"{path.stem[:12]}  options  tried {_day(path)}  {printable(about, WIDEST)}")
    echo(f"{total / 1e6:.1f} MB in {cache.folder}")


def _tile(path: "Path") -> str:
    """Return a description of a model file of the cache."""
    from unetrt.runtime.model.onnx_file import read_spec

    try:
        spec = read_spec(path)
    except ModelFileError:
        return "not readable"
    return f"model with tile {spec.tile[0]}x{spec.tile[1]} x {spec.batch}, {spec.precision}"


def _day(path: "Path") -> str:
    """Return the time of a file's last write; empty where another process has deleted it."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    except OSError:
        return ""


@command.command("clear")
@click.argument("keys", nargs=-1)
def clear(keys: tuple[str, ...]) -> None:
    """Delete entries whose keys begin with one of KEYS, or all."""
    from unetrt.runtime.engines.cache import EngineCache
    from unetrt.runtime.sessions import onnxruntime_options, retile

    cache = EngineCache()
    if "" in keys:
        raise OptionError("an empty key matches every engine: to delete all, give no keys")
    before = {entry.path for entry in cache.entries()}
    gone = cache.clear(keys)
    known = [*retile.kept(), *(path for path, _ in onnxruntime_options.choices())]
    tiles, choices = retile.clear(keys), onnxruntime_options.clear(keys)
    left = [path for path in (*before, *known) if path not in {*gone, *tiles, *choices}]
    left = [path for path in left if not keys or path.name.startswith(keys)]
    if keys and not gone and not left and not tiles and not choices:
        raise OptionError(f"no key begins with {' or '.join(keys)}: `unetrt cache list` shows the keys")
    echo(f"{len(gone)} engines deleted from {cache.folder}")
    if tiles:
        echo(f"{len(tiles)} models with other tiles deleted from {retile.folder()}")
    if choices:
        echo(f"{len(choices)} choices of ONNX Runtime's options deleted from {onnxruntime_options.folder()}")
    if left:
        raise OutputError(
            f"{len(left)} could not be deleted, such as {left[0]}: is it open in another program, or a folder?"
        )


def _about(sidecar: "Sidecar") -> str:
    from unetrt.runtime.engines.engine_file import targets

    facts, machine = sidecar.facts, sidecar.facts.machine
    height, width = facts.tile
    what = f"{height}x{width} x {facts.batch}, {facts.precision}"
    return (
        f"{sidecar.source}: {what}, {facts.flavour} {facts.version}, {machine.gpu or f'for GPUs of {targets(facts)}'}"
    )
