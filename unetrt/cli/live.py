"""`unetrt live`."""

import logging
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.runtime.errors import OptionError

if TYPE_CHECKING:
    from unetrt.live_view.figures import Observer
    from unetrt.live_view.run import Source
    from unetrt.runtime.live.live_segmenter import LiveSegmenter
    from unetrt.runtime.live.results import ResultOutput

# Exit status of a run that Ctrl-C cut short, as of every command.
CUT_SHORT = 130


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
@click.option(
    "--as", "kind", type=click.Choice(["instances", "classes"]), help="[default: what the model was trained on]"
)
@click.option("--save", type=click.Path(path_type=Path), metavar="PATH", help="labels.ome.zarr, labels.ome.tiff, DIR.")
@click.option("--view", is_flag=True, help="Show frames and labels in a browser on this machine.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Of --view [default: any that is free].")
@click.option("--backend", default="auto", show_default=True, help="tensorrt, onnxruntime-cuda, onnxruntime (CPU), ...")
@click.option("--device", type=int, metavar="N", help="GPU, as CUDA counts [default: the first, or the CPU].")
@click.option("--lanes", type=int, default=2, show_default=True, help="Passes in flight at once.")
def command(model: Path, **choices: Any) -> None:
    """Segment with MODEL what a camera sees (--config), or image files in its place (--replay), while it comes.

    At a terminal, counts, rates and times are drawn in place; elsewhere they are a line every few seconds. What gives
    way when frames come faster than they are segmented is the policy: all but the newest (latest), what has waited
    longest (drop_oldest), or the source, which waits (block).

    --save writes labels into one OME-Zarr or OME-TIFF, by its name; for a replay also into a folder, DIR/NAME.tif for
    each image as `unetrt predict` does, without the frames that were dropped.

    Ctrl-C ends it: frames that wait are dropped, files are whole. The exit status is then 130 if the run had an end of
    its own, and 0 if it had none.
    """
    from unetrt.runtime.sessions import engines

    # What is logged of a lost frame is in the view, and in the line at the end.
    logging.getLogger("unetrt.live").setLevel(logging.CRITICAL + 1)
    _require_sense(choices)
    if choices["backend"] not in engines():
        raise OptionError(f"backend {choices['backend']!r} does not segment: use one of {', '.join(engines())}")
    if choices["view"]:
        import starlette  # noqa: F401 - says so now if it is missing, not after an engine was built
        import uvicorn  # noqa: F401
    with ExitStack() as stack:
        _run(model, *_ends(choices, stack), choices, stack)


def _require_sense(choices: dict[str, Any]) -> None:
    """Refuse combinations of options that mean nothing."""
    given = {name for name in ("exposure", "loop", "port") if choices[name]}
    if (choices["config"] is None) == (choices["replay"] is None):
        raise OptionError("give either --config FILE, for a camera, or --replay FOLDER, for images in its place")
    for option, needed in {"exposure": "config", "loop": "replay", "port": "view"}.items():
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


def _ends(choices: dict[str, Any], stack: ExitStack) -> "tuple[Source, ResultOutput | None]":
    """Return where frames come from and where labels go."""
    from unetrt.live_view.replay import Replay
    from unetrt.live_view.saving import output_for
    from unetrt.runtime.images import list_images

    files = None if choices["replay"] is None else list_images(choices["replay"])
    output = output_for(choices["save"], files, loop=choices["loop"]) if choices["save"] else None
    if files is not None:
        return Replay(files, choices["fps"], loop=choices["loop"], most=choices["frames"]), output
    from unetrt.live_view.camera import Camera

    return stack.enter_context(Camera(choices["config"], choices["exposure"], most=choices["frames"])), output


def _run(
    model: Path, source: "Source", output: "ResultOutput | None", choices: dict[str, Any], stack: ExitStack
) -> None:
    """Load the model, run, and say what it came to."""
    from unetrt.live_view.figures import Observer
    from unetrt.live_view.lines import summary
    from unetrt.live_view.verdict import verdict

    observer = Observer()
    live = stack.enter_context(_live(model, observer, output, choices))
    if choices["view"]:
        _show_in_browser(live, choices["port"] or 0, stack)
    try:
        stopped = _watched(model, source, live, observer, choices)
    finally:
        live.close(drain=False)
        status = live.status()
        name = live.segmenter.session.name
        for said in [*summary(observer.look(status), name), *_saved(output, choices)]:
            click.echo(said)
    for error in source.unread.values() if len(source.unread) > 1 else ():
        click.echo(f"left out: {error}", err=True)
    if failed := verdict(status, observer.failure, source.unread):
        raise failed
    endless = choices["frames"] is choices["seconds"] is None and (choices["config"] is not None or choices["loop"])
    if stopped and not endless:
        raise click.exceptions.Exit(CUT_SHORT)


def _live(model: Path, observer: "Observer", output: "ResultOutput | None", choices: dict[str, Any]) -> "LiveSegmenter":
    from unetrt.runtime.live.live_segmenter import LiveSegmenter

    named = {name: choices[name] for name in ("policy", "kind", "normalisation", "backend", "device", "lanes")}
    outputs = [] if output is None else [output]
    return LiveSegmenter(model, capacity=choices["queue"], on_result=observer.result, outputs=outputs, **named)


def _show_in_browser(live: "LiveSegmenter", port: int, stack: ExitStack) -> None:
    from unetrt.live_view.browser import BrowserView

    view = stack.enter_context(BrowserView(live, port=port))
    click.echo(f"showing at {view.url}")
    view.show()


def _watched(
    model: Path, source: "Source", live: "LiveSegmenter", observer: "Observer", choices: dict[str, Any]
) -> bool:
    """Run until the end, with a view on standard error; return whether the user asked for it."""
    from rich.console import Console

    from unetrt.live_view.run import run
    from unetrt.live_view.terminal import view_for
    from unetrt.trainer.stopping import stop_request

    title = f"{source.name} -> {model.name}, {live.segmenter.session.name}, policy {choices['policy']}"
    with stop_request() as request, view_for(Console(stderr=True), title, "Ctrl-C ends it") as view:
        return run(
            source,
            live,
            lambda: view.show(observer.look(live.status())),
            seconds=choices["seconds"],
            asked=lambda: request.asked,
        )


def _saved(output: Any, choices: dict[str, Any]) -> list[str]:
    """Return what was stored where."""
    from unetrt.live_view.label_files import LabelFiles
    from unetrt.live_view.lines import counted

    if isinstance(output, LabelFiles):
        return [f"{counted(output.written, 'label file')} -> {choices['save']}", *output.partial]
    return [f"labels -> {choices['save']}"] if output is not None and choices["save"].exists() else []
