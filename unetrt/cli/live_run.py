"""A run of `unetrt live`, from what is asked before the model is loaded to what is said at the end."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.cli._shutdown import ShutdownRequest, shutdown_request

if TYPE_CHECKING:
    from unetrt.live_view.figures import Observer
    from unetrt.live_view.run import Source
    from unetrt.runtime.live.live_segmenter import LiveSegmenter
    from unetrt.runtime.live.results import ResultOutput

# Exit status of a run that Ctrl-C cut short, as of every command.
CUT_SHORT = 130


def run_live(model: Path, choices: dict[str, Any]) -> None:
    """Run `unetrt live` with its options, by name; raises what the run comes to."""
    with ExitStack() as stack:
        # Until the model is loaded Ctrl-C does what it always does; but an import can swallow that.
        request = stack.enter_context(shutdown_request(immediate=True))
        source, output = _ends(choices, stack)
        _run(model, source, output, choices, request, stack)


def _ends(choices: dict[str, Any], stack: ExitStack) -> "tuple[Source, ResultOutput | None]":
    """Return where frames come from and where labels go; refuse what cannot work before a model is loaded."""
    from unetrt.live_view.replay import Replay
    from unetrt.live_view.saving import output_for, size_of
    from unetrt.runtime.images import list_images

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
    from unetrt.live_view.camera import Camera

    return stack.enter_context(Camera(choices["config"], choices["exposure"], most=most)), output


def _run(
    model: Path,
    source: "Source",
    output: "ResultOutput | None",
    choices: dict[str, Any],
    request: ShutdownRequest,
    stack: ExitStack,
) -> None:
    """Load the model, run, and say what it came to."""
    from unetrt.live_view.figures import Observer
    from unetrt.live_view.lines import summary
    from unetrt.live_view.verdict import verdict

    observer = Observer()
    live = stack.enter_context(_live(model, observer, output, choices))
    request.defer()
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
        click.echo(f"left out: {error}", err=True)
    if failed := verdict(status, observer.failure, source.unread):
        raise failed
    endless = choices["frames"] is choices["seconds"] is None and (choices["config"] is not None or choices["loop"])
    if stopped and not endless:
        raise click.exceptions.Exit(CUT_SHORT)


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
    request: ShutdownRequest,
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
            asked=lambda: request.made,
        )


def _saved(output: Any, place: Path, done: int) -> list[str]:
    """Return what was stored where, of so many frames that have labels."""
    from unetrt.live_view.label_files import LabelFiles
    from unetrt.live_view.lines import counted

    if isinstance(output, LabelFiles):
        return [f"{counted(output.written, 'label file')} -> {place}", *output.partial]
    return [f"labels -> {place}"] if output is not None and done else []
