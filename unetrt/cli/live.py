"""`unetrt live`: segment a camera, or replayed files, with a view, files of labels and a summary.

In order: options are checked; source and output are opened, which finds what cannot work before minutes are spent on
loading a model; the model is loaded; a thread feeds frames while the main thread updates the view; a summary is
printed, and the run's error or exit status follows. Until the model is loaded Ctrl-C interrupts at once, afterwards it
sets a flag.
"""

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import click

from unetrt.cli import (
    MODEL,
    SIZE,
    Size,
    backend_name_option,
    backend_option,
    device_option,
    echo,
    given_options,
    kind_option,
    lanes_option,
    reading_options,
    real,
    whole,
)
from unetrt.cli._shutdown import ShutdownRequest, StopSignal, shutdown_request
from unetrt.runtime.errors import FrameError, InferenceError, OptionError, OutputError, UnetrtError

if TYPE_CHECKING:
    from unetrt.live_view.sources import FrameSource
    from unetrt.live_view.terminal import Observer
    from unetrt.runtime import LiveSegmenter, LiveStatus, ResultOutput
    from unetrt.runtime.files.formats import Reading
    from unetrt.runtime.files.sources import ImageSource

# Seconds between two updates of the view.
PERIOD = 0.25
# Frames per second of a replay, unless given.
FPS = 10.0
# Options that have no effect without another one.
NEEDS = {
    **dict.fromkeys(("camera", "exposure"), "config"),
    **dict.fromkeys(("loop", "fps"), "replay"),
    **dict.fromkeys(("axes", "channel", "series", "select", "missing-chunks", "max-image-memory"), "replay"),
    **dict.fromkeys(("port", "no-token"), "view"),
    "overwrite": "save",
}


@dataclass(frozen=True)
class LiveOptions:
    """The options of `unetrt live`, named as on the command line; `queue` is the capacity of the queue.

    `fps` is None for a camera. `fps` and `policy` are None until `_checked` has chosen the default.
    """

    config: str | None
    camera: str | None
    exposure: float | None
    replay: Path | None
    fps: float | None
    loop: bool
    frames: int | None
    seconds: float | None
    policy: str | None
    queue: int | None
    normalisation: Literal["model", "running"]
    kind: Literal["instances", "classes"] | None
    save: Path | None
    overwrite: bool
    view: bool
    port: int | None
    no_token: bool
    frame: Size | None
    reading: "Reading"
    backend: str
    backend_options: Mapping[str, str]
    device: int | None
    lanes: int

    @property
    def is_endless(self) -> bool:
        """Whether only Ctrl-C ends the run."""
        return self.frames is self.seconds is None and (self.config is not None or self.loop)


@click.command("live")
@click.argument("model", type=MODEL)
@click.option("--config", metavar="FILE", help="Micro-Manager configuration of a camera, such as MMConfig_demo.cfg.")
@click.option("--camera", metavar="LABEL", help="Device label of the camera, of a configuration with several.")
@click.option("--exposure", type=real(above=0), metavar="MS", help="Exposure time of the camera.")
@click.option("--replay", type=click.Path(path_type=Path), metavar="FOLDER", help="Replay images instead of a camera.")
@click.option(
    "--fps", type=real(0), metavar="N",
    help="Frames per second of a replay; 0: as fast as they are segmented. [default: 10]",
)  # fmt: skip
@click.option("--loop", is_flag=True, help="Repeat the replay endlessly.")
@click.option("--frames", type=whole(1), metavar="N", help="End after N frames.")
@click.option("--seconds", type=real(above=0), metavar="S", help="End after S seconds.")
@click.option(
    "--policy",
    type=click.Choice(["latest", "drop_oldest", "block"]),
    help="Action when the queue is full. [default: latest; with --fps 0: block]",
)
@click.option(
    "--queue", type=whole(), metavar="N", help="Maximum number of queued frames. [default: 1 for latest, else 8]"
)
@click.option(
    "--normalisation",
    type=click.Choice(["model", "running"]),
    default="model",
    show_default=True,
    help="Normalise each frame as the model specifies, or with averages over the stream.",
)
@kind_option
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Save labels to a store, NAME.ome.zarr, or to a folder.",
)
@click.option("--overwrite", is_flag=True, help="Let --save replace an existing file.")
@click.option("--view", is_flag=True, help="Show frames and labels in a browser on this machine.")
@click.option("--port", type=whole(0, 65535), metavar="N", help="Port of --view. [default: any free port]")
@click.option("--no-token", is_flag=True, help="Let every user of this machine see the page of --view.")
@click.option("--frame-size", "frame", type=SIZE, help="Plan the tile for such frames. [default: the file's tile]")
@reading_options
@backend_name_option
@backend_option
@device_option
@lanes_option
def command(model: Path, **choices: Any) -> None:
    """Segment a camera (--config) or replayed image files (--replay) with MODEL, frame by frame.

    At a terminal, counts, rates and latencies are updated in place; in a log they are one line every five seconds. When
    frames come faster than they are segmented, --policy decides: keep only the newest frame (latest), drop the frame
    queued longest (drop_oldest), or let the source wait (block).

    --save writes all labels to one OME-Zarr, NAME.ome.zarr. For a replay, it can also write to a folder: DIR/NAME.tif
    for each image, as `unetrt predict` does. Images whose frames were dropped get no file.

    Ctrl-C ends the run: queued frames are dropped, and files are complete. The exit status is then 130, or 0 for an
    endless run. SIGTERM and a closed terminal end it likewise, with 143 and 129.
    """
    options = _checked(LiveOptions(**{**choices, "backend_options": given_options(choices["backend_options"])}))
    # Lost frames are counted in the view and in the summary.
    logging.getLogger("unetrt.live").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", "Unexpected error during TIFF write")  # of ome-writers' thread
    with ExitStack() as stack:
        # Until the model is loaded Ctrl-C interrupts; but an import can swallow that, and then the flag remains set.
        request = stack.enter_context(shutdown_request(immediate=True))
        source, output = _opened(options, stack)
        _run(model, source, output, options, request, stack)


def _checked(options: LiveOptions) -> LiveOptions:
    """Return options with all defaults; raises OptionError for a combination without meaning."""
    from unetrt.runtime.sessions import engines, unknown

    if (options.config is None) == (options.replay is None):
        raise OptionError("give either --config FILE, for a camera, or --replay FOLDER, for image files")
    for option, needed in NEEDS.items():
        if _is_given(options, option) and not getattr(options, needed):
            raise OptionError(f"--{option} has no effect without --{needed}: leave out --{option}")
    if options.backend not in engines():
        raise unknown(options.backend)
    if options.view:
        import starlette  # noqa: F401 - if it is missing, say so before an engine is built
        import uvicorn  # noqa: F401
    if options.replay is None:
        return replace(options, fps=None, policy=options.policy or "latest")
    options = replace(options, fps=FPS if options.fps is None else options.fps)
    if options.fps == 0 and options.policy not in (None, "block"):
        raise OptionError(
            f"--fps 0 replays frames as fast as they are segmented, so that --policy {options.policy} never drops one: "
            "leave out --policy, or give the camera's --fps"
        )
    return replace(options, policy=options.policy or ("latest" if options.fps else "block"))


def _is_given(options: LiveOptions, option: str) -> bool:
    """Return whether an option was given on the command line, or has another value than its default."""
    from unetrt.runtime.files.formats import AS_STORED

    name = option.replace("-", "_")
    if hasattr(AS_STORED, name):
        return bool(getattr(options.reading, name) != getattr(AS_STORED, name))
    return not any(getattr(options, name) is absent for absent in (None, False))  # 0 is given


def _opened(options: LiveOptions, stack: ExitStack) -> "tuple[FrameSource, ResultOutput | None]":
    """Return the source of frames and the output of labels; raises what would fail after the model is loaded."""
    from unetrt.live_view.saving import output_for, size_of
    from unetrt.live_view.sources import Camera, FileReplay
    from unetrt.runtime.files.sources import list_images

    if options.view:
        from unetrt.live_view.browser import require_port

        require_port(options.port or 0)
    files = None if options.replay is None else list_images(options.replay, options.reading, results=options.save)
    if files is not None and len(files) == 1:
        size_of(files[0], options.reading)
    loop, most = options.loop, options.frames
    output = None
    if options.save is not None:
        output = output_for(
            options.save, files, loop=loop, most=most, overwrite=options.overwrite, reading=options.reading
        )
    if files is not None:
        return FileReplay(files, options.fps or 0, loop=loop, most=most, reading=options.reading), output
    assert options.config is not None
    return stack.enter_context(Camera(options.config, options.exposure, most=most, camera=options.camera)), output


def _run(
    model: Path,
    source: "FrameSource",
    output: "ResultOutput | None",
    options: LiveOptions,
    request: ShutdownRequest,
    stack: ExitStack,
) -> None:
    """Load the model, run, print the summary, and raise the error or exit status of the run."""
    from unetrt.live_view.terminal import Observer, summary

    observer = Observer()
    live = stack.enter_context(_live(model, observer, output, options))
    request.defer()
    if options.view:
        _show_in_browser(live, options, stack)
    try:
        stopped = _watch(model, source, live, observer, options, request)
    finally:
        live.close(drain=False)
        status = live.status()
        for line in [*summary(observer.look(status), live.segmenter.session.name), *_saved(output, options, status)]:
            echo(line)
    for error in source.unread.values() if len(source.unread) > 1 else ():
        echo(f"skipped: {error}", err=True)
    if failed := verdict(status, observer.failure, source.unread):
        raise failed
    ended_by = StopSignal(request.number or signal.SIGINT)
    if stopped and not (options.is_endless and ended_by.number == signal.SIGINT):
        raise click.exceptions.Exit(ended_by.status)


def _live(model: Path, observer: "Observer", output: "ResultOutput | None", options: LiveOptions) -> "LiveSegmenter":
    from unetrt.runtime import LiveSegmenter

    return LiveSegmenter(
        model,
        policy=options.policy or "latest",
        capacity=options.queue,
        kind=options.kind,
        normalisation=options.normalisation,
        on_result=observer.result,
        outputs=[] if output is None else [output],
        frame=options.frame,
        backend=options.backend,
        backend_options=options.backend_options,
        device=options.device,
        lanes=options.lanes,
    )


def _show_in_browser(live: "LiveSegmenter", options: LiveOptions, stack: ExitStack) -> None:
    from unetrt.live_view.browser import BrowserView

    view = stack.enter_context(BrowserView(live, port=options.port or 0, token=not options.no_token))
    echo(f"showing at {view.url}")
    view.show()


def _watch(
    model: Path,
    source: "FrameSource",
    live: "LiveSegmenter",
    observer: "Observer",
    options: LiveOptions,
    request: ShutdownRequest,
) -> bool:
    """Run until the end, with a view on standard error; return whether Ctrl-C ended it."""
    from rich.console import Console

    from unetrt.live_view.terminal import view_for

    title = f"{source.name} -> {model.name}, {live.segmenter.session.name}, policy {options.policy}"
    with view_for(Console(stderr=True), title, "Ctrl-C ends it") as view:
        return feed(source, live, lambda: view.show(observer.look(live.status())), request, options.seconds)


def feed(
    source: "FrameSource",
    live: "LiveSegmenter",
    show: Callable[[], None],
    request: ShutdownRequest,
    seconds: float | None = None,
) -> bool:
    """Feed a live segmenter until the source ends, the time is over, or a stop is requested; then close it.

    Parameters
    ----------
    source
        Source of frames.
    live
        The live segmenter; closed on return, with its outputs. Queued frames are segmented first, unless a stop was
        requested.
    show
        Called four times a second, and once at the end.
    request
        Set when the run is to stop.
    seconds
        Duration of the run; None: no limit.

    Returns
    -------
    Whether a stop was requested.

    Raises
    ------
    Exception
        What the source raised; frames submitted before are segmented.
    """
    stop = threading.Event()
    until = perf_counter() + (seconds or float("inf"))
    feeding = _start(source, live, stop)
    try:
        while not (request.made or _is_finished(feeding, live)):
            if perf_counter() >= until:
                stop.set()
            show()
    finally:
        stop.set()
        stopped = request.made
        live.close(drain=not stopped and feeding.done())  # releases a source that waits for room
    while not feeding.done():  # in steps: on Windows Ctrl-C does not end a wait without a timeout
        wait_for([feeding], PERIOD)
    show()
    feeding.result()
    return stopped


def _start(source: "FrameSource", live: "LiveSegmenter", stop: threading.Event) -> Future[None]:
    """Start a source on a daemon thread: a camera that hangs cannot keep the process alive."""
    feeding: Future[None] = Future()

    def run() -> None:
        try:
            source.feed(live, stop)
        except BaseException as error:  # noqa: BLE001 - raised by the future's `result`
            feeding.set_exception(error)
        else:
            feeding.set_result(None)

    threading.Thread(target=run, name="unetrt-source", daemon=True).start()
    return feeding


def _is_finished(feeding: Future[None], live: "LiveSegmenter") -> bool:
    """Wait for a moment; return whether all frames were submitted and segmented."""
    wait_for([feeding], PERIOD)
    return feeding.done() and live.flush(PERIOD)


def _saved(output: "ResultOutput | None", options: LiveOptions, status: "LiveStatus") -> list[str]:
    """Return lines that say which labels were saved."""
    from unetrt.live_view.saving import LabelFiles
    from unetrt.live_view.terminal import counted

    if isinstance(output, LabelFiles):
        return [f"{counted(output.written, 'label file')} -> {options.save}", *output.partial]
    return [f"labels -> {options.save}"] if output is not None and status.done else []


def verdict(
    status: "LiveStatus", failure: BaseException | None, unread: "Mapping[ImageSource, FrameError]"
) -> UnetrtError | None:
    """Return the error that a run ends with; None if there was none. Dropped frames are not an error.

    Parameters
    ----------
    status
        Status of the closed live segmenter.
    failure
        Error of the last failed frame.
    unread
        Files that could not be read -> why.
    """
    from unetrt.live_view.terminal import counted
    from unetrt.runtime.errors import one_line

    if status.output_errors:
        return OutputError(f"labels were lost {counted(status.output_errors, 'time')}; last error: {status.last_error}")
    if failure is not None:
        kind = type(failure) if isinstance(failure, UnetrtError) else InferenceError
        return kind(f"{status.failed} of {status.submitted} frames failed; the last: {one_line(failure, kind=True)}")
    if len(unread) == 1:
        return next(iter(unread.values()))
    if unread:
        return FrameError(f"{len(unread)} images could not be read, the first: {next(iter(unread.values()))}")
    return None
