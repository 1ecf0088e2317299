"""`unetrt cache`."""

import time
from typing import TYPE_CHECKING

import click

from unetrt.runtime.errors import OptionError

if TYPE_CHECKING:
    from unetrt.runtime.engines.engine_file import Sidecar


@click.group("cache")
def command() -> None:
    """List or clear the engines that are kept."""


@command.command("list")
def listed() -> None:
    """List the engines of the cache, the last used first."""
    from unetrt.runtime.engines.cache import EngineCache

    cache, total = EngineCache(), 0
    for entry in cache.entries():
        total += entry.size
        about = "not readable" if entry.sidecar is None else _about(entry.sidecar)
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        click.echo(f"{entry.path.stem[:12]}  {entry.size / 1e6:8.1f} MB  used {used}  {about}")
    click.echo(f"{total / 1e6:.1f} MB in {cache.folder}")


@command.command("clear")
@click.argument("keys", nargs=-1)
def clear(keys: tuple[str, ...]) -> None:
    """Delete the engines whose keys begin with KEYS, as `unetrt cache list` shows them, or all."""
    from unetrt.runtime.engines.cache import EngineCache

    cache = EngineCache()
    gone = cache.clear(keys)
    if keys and not gone:
        raise OptionError(f"no engine's key begins with {' or '.join(keys)}: `unetrt cache list` shows them")
    click.echo(f"{len(gone)} engines deleted from {cache.folder}")


def _about(sidecar: "Sidecar") -> str:
    facts, machine = sidecar.facts, sidecar.facts.machine
    height, width = facts.tile
    what = f"{height}x{width} x {facts.batch}, {facts.precision}"
    return f"{sidecar.source}: {what}, {facts.flavour} {facts.version}, {machine.gpu or 'any GPU'}"
