"""`unetrt live`.

A run of `unetrt live`, from what is asked before the model is loaded to what is said at the end.
"""

import logging
import warnings
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt._exit_codes import STOPPED
from unetrt.cli.options import (
    backend_name_option,
    backend_option,
    device_option,
    given_options,
    kind_option,
    lanes_option,
)
from unetrt.runtime.errors import OptionError

if TYPE_CHECKING:
    from unetrt.live_view.run import Source
    from unetrt.live_view.terminal import Observer
    from unetrt.runtime.live.live_segmenter import LiveSegmenter
    from unetrt.runtime.live.results import ResultOutput
    from unetrt.trainer.stopping import StopRequest


@click.command("live")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--config", metavar="FILE", help="Micro-Manager configuration, such as MMConfig_demo.cfg: its camera.")
@click.option("--exposure", type=click.FloatRange(0, min_open=True), metavar="MS", help="Of the camera.")
@click.option("--replay", type=click.Path(path_type=Path), metavar="FOLDER", help="Images in the place of a camera.")
@click.option(
    "--fps", type=click.FloatRange(0), default=10, show_default=True, metavar="N", help="Of a replay; 0: as segmented."
)
@click.option("--loop", is_flag=True, help="Replay again and again.")
@click.option("--frames", type=click.IntRange(1), metavar="N", help="End after so many frames.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), metavar="S", help="End after so many seconds.")
@click.option(
    "--policy",
    type=click.Choice(["latest", "drop_oldest", "block"]),
    help="What gives way when frames come too fast [default: latest; with --fps 0: block].",
)
@click.option("--queue", type=int, metavar="N", help="Frames that may wait [default: 1 for latest, else 8].")
@click.option(
    "--normalisation",
    type=click.Choice(["model", "running"]),
    default="model",
    show_default=True,
    help="Of grey values: each frame as the model says, or an average over the stream.",
)
@kind_option
@click.option("--save", type=click.Path(path_type=Path), metavar="PATH", help="labels.ome.zarr, labels.ome.tiff, DIR.")
@click.option("--overwrite", is_flag=True, help="Let --save replace an OME-Zarr or OME-TIFF.")
@click.option("--view", is_flag=True, help="Show frames and labels in a browser on this machine.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Of --view [default: any that is free].")
@backend_name_option
@backend_option
@device_option
@lanes_option
def command(model: Path, **choices: Any) -> None:
    """Segment with MODEL what a camera sees (--config), or image files in its place (--replay), while it comes.

    At a terminal, counts, rates and times are drawn in place; elsewhere they are a line every few seconds. What gives
    way when frames come faster than they are segmented is the policy: all but the newest (latest), what has waited
    longest (drop_oldest), or the source, which waits (block).

    --save writes labels into one OME-Zarr or OME-TIFF, by its name; for a replay also into a folder, DIR/NAME.tif for
    each image as `unetrt predict` does (those of earlier runs are replaced), without the frames that were dropped.

    Ctrl-C ends it: frames that wait are dropped, files are whole. The exit status is then 130 if the run had an end of
    its own, and 0 if it had none.
    """
    from unetrt.runtime.sessions import engines, unknown

    # What is logged of a lost frame is in the view, and in the line at the end.
    logging.getLogger("unetrt.live").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", "Unexpected error during TIFF write")  # ome-writers, from a thread of its own
    _require_sense(choices)
    choices["backend_options"] = given_options(choices["backend_options"])
    if choices["backend"] not in engines():
        raise unknown(choices["backend"])
    if choices["view"]:
        import starlette  # noqa: F401 - says so now if it is missing, not after an engine was built
        import uvicorn  # noqa: F401
    run_live(model, choices)


def _require_sense(choices: dict[str, Any]) -> None:
    """Refuse combinations of options that mean nothing."""
    given = {name for name in ("exposure", "loop", "port", "overwrite") if choices[name]}
    if (choices["config"] is None) == (choices["replay"] is None):
        raise OptionError("give either --config FILE, for a camera, or --replay FOLDER, for images in its place")
    for option, needed in {"exposure": "config", "loop": "replay", "port": "view", "overwrite": "save"}.items():
        if option in given and not choices[needed]:
            raise OptionError(f"--{option} is for --{needed} only")
    for option in ("fps", "seconds", "exposure"):
        if not isfinite(choices[option] or 0):
            raise OptionError(f"--{option} {choices[option]} does not work: give a finite number")
    if choices["replay"] is None:
        choices["fps"] = None
    elif not choices["fps"] and choices["policy"] not in (None, "block"):
        raise OptionError(
            f"--fps 0 gives frames as fast as they are segmented, so that none gives way as with --policy "
            f"{choices['policy']}: leave out --policy, or give the camera's --fps"
        )
    choices["policy"] = choices["policy"] or ("block" if choices["fps"] == 0 else "latest")


def run_live(model: Path, choices: dict[str, Any]) -> None:
    """Run `unetrt live` with its options, by name; raises what the run comes to."""
    from unetrt.trainer.stopping import stop_request

    with ExitStack() as stack:
        # Until the model is loaded Ctrl-C does what it always does; but an import can swallow that.
        request = stack.enter_context(stop_request(at_once=True))
        source, output = _ends(choices, stack)
        _run(model, source, output, choices, request, stack)


def _ends(choices: dict[str, Any], stack: ExitStack) -> "tuple[Source, ResultOutput | None]":
    """Return where frames come from and where labels go; refuse what cannot work before a model is loaded."""
    from unetrt.live_view.saving import output_for, size_of
    from unetrt.live_view.sources import Replay
    from unetrt.runtime.files.images import list_images

    if choices["view"]:
        from unetrt.live_view.browser import require_port

        require_port(choices["port"] or 0)
    files = None if choices["replay"] is None else list_images(choices["replay"])
    if files is not None and len(files) == 1:
        size_of(files[0])
    place, loop, most = choices["save"], choices["loop"], choices["frames"]
    output = output_for(place, files, loop=loop, most=most, overwrite=choices["overwrite"]) if place else None
    if files is not None:
        return Replay(files, choices["fps"], loop=loop, most=most), output
    from unetrt.live_view.sources import Camera

    return stack.enter_context(Camera(choices["config"], choices["exposure"], most=most)), output


def _run(
    model: Path,
    source: "Source",
    output: "ResultOutput | None",
    choices: dict[str, Any],
    request: "StopRequest",
    stack: ExitStack,
) -> None:
    """Load the model, run, and say what it came to."""
    from unetrt.live_view.run import verdict
    from unetrt.live_view.terminal import Observer, summary

    observer = Observer()
    live = stack.enter_context(_live(model, observer, output, choices))
    request.wait_from_now()
    if choices["view"]:
        _show_in_browser(live, choices["port"] or 0, stack)
    try:
        stopped = _watched(model, source, live, observer, choices, request)
    finally:
        live.close(drain=False)
        status = live.status()
        name = live.segmenter.session.name
        for said in [*summary(observer.look(status), name), *_saved(output, choices["save"], status.done)]:
            click.echo(said)
    for error in source.unread.values() if len(source.unread) > 1 else ():
        click.echo(f"skipped: {error}", err=True)
    if failed := verdict(status, observer.failure, source.unread):
        raise failed
    endless = choices["frames"] is choices["seconds"] is None and (choices["config"] is not None or choices["loop"])
    if stopped and not endless:
        raise click.exceptions.Exit(STOPPED)


def _live(model: Path, observer: "Observer", output: "ResultOutput | None", choices: dict[str, Any]) -> "LiveSegmenter":
    from unetrt.runtime.live.live_segmenter import LiveSegmenter

    names = ("policy", "kind", "normalisation", "backend", "backend_options", "device", "lanes")
    named = {name: choices[name] for name in names}
    outputs = [] if output is None else [output]
    return LiveSegmenter(model, capacity=choices["queue"], on_result=observer.result, outputs=outputs, **named)


def _show_in_browser(live: "LiveSegmenter", port: int, stack: ExitStack) -> None:
    from unetrt.live_view.browser import BrowserView

    view = stack.enter_context(BrowserView(live, port=port))
    click.echo(f"showing at {view.url}")
    view.show()


def _watched(
    model: Path,
    source: "Source",
    live: "LiveSegmenter",
    observer: "Observer",
    choices: dict[str, Any],
    request: "StopRequest",
) -> bool:
    """Run until the end, with a view on standard error; return whether the user asked for it."""
    from rich.console import Console

    from unetrt.live_view.run import run
    from unetrt.live_view.terminal import view_for

    title = f"{source.name} -> {model.name}, {live.segmenter.session.name}, policy {choices['policy']}"
    with view_for(Console(stderr=True), title, "Ctrl-C ends it") as view:
        return run(
            source,
            live,
            lambda: view.show(observer.look(live.status())),
            seconds=choices["seconds"],
            asked=lambda: request.asked,
        )


def _saved(output: Any, place: Path, done: int) -> list[str]:
    """Return what was stored where, of so many frames that have labels."""
    from unetrt.live_view.saving import LabelFiles
    from unetrt.live_view.terminal import counted

    if isinstance(output, LabelFiles):
        return [f"{counted(output.written, 'label file')} -> {place}", *output.partial]
    return [f"labels -> {place}"] if output is not None and done else []
