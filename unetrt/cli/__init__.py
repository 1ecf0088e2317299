"""The command line: a click group whose commands are modules of this package, imported when they are called.

`unetrt --help` imports none of them, and none of numpy, torch or an inference engine. `main` turns every expected error
into one line on standard error and an exit code; other exceptions keep their traceback.

Commands print with `echo`, as text from files and options may hold control sequences for the terminal.

Options that several commands share are here too, so that they have the same help everywhere: `engine_options` adds
--backend, --backend-option, --device and --lanes, and passes them as one `EngineOptions`; `reading_options` adds those
of image files, a `Reading`.
"""

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from importlib import import_module
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from unetrt._exit_codes import STOPPED_BY, exit_code
from unetrt._version import __version__
from unetrt.cli._shutdown import HANGUP, StopSignal, ignore_hangups, stop_signals
from unetrt.runtime.errors import (
    OptionError,
    TrainingStoppedError,
    UnetrtError,
    is_out_of_memory,
    one_line,
    printable,
)
from unetrt.runtime.files.outputs import KINDS

if TYPE_CHECKING:
    from unetrt.runtime.segment.segmenter import Segmenter

    _ParamType = click.ParamType[Any, Any]
else:
    _ParamType = click.ParamType  # generic only in recent versions of click

Size = tuple[int, int]
# Exit code of a command whose terminal was closed; None on Windows.
HUNG_UP = STOPPED_BY + HANGUP if HANGUP else None
# Largest part of a message of another library that is shown, in characters.
SHOWN = 200
Command = TypeVar("Command", bound=Callable[..., Any])
BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
# Largest whole and decimal number of an option, unless the option has its own limit.
MOST = 10**9
# Largest side of a size, in pixels, as the planner's; it is not imported, since that imports numpy.
MAX_SIDE = 1 << 24
# 1 EiB.
MOST_BYTES = 2**60


def echo(text: object, err: bool = False) -> None:
    """Print lines of text; all other control characters, and what the stream cannot encode, are escaped.

    Parameters
    ----------
    text
        Text that may quote files and options.
    err
        Whether to print on standard error.
    """
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    shown = str(text)
    if not shown.replace("\n", "").isprintable():
        shown = printable(shown, keep="\n")
    click.echo(shown.encode(encoding, "backslashreplace").decode(encoding), err=err)  # noqa: TID251


class Parsed(_ParamType):
    """The type of an option whose text a function parses; the function raises OptionError for invalid text.

    The name of the option precedes the message. A default that is not text is the option's value as it is.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, _ctx: click.Context | None) -> Any:
        """Return the value of the option."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value.strip())
        except OptionError as error:
            if param is None:
                raise
            name = param.opts[-1] if isinstance(param, click.Option) else param.human_readable_name
            raise OptionError(f"{name}: {error}") from error


def whole(least: int = -MOST, most: int = MOST) -> Parsed:
    """Return the type of an option that is a whole number from `least` to `most`, in decimal digits."""
    return Parsed("integer", partial(_whole_of, least=least, most=most))


def real(least: float = -MOST, most: float = MOST, *, above: float = -inf, below: float = inf) -> Parsed:
    """Return the type of an option that is a decimal number from `least` to `most`, `above` and `below` excluded.

    Numbers other than 0 between -1 / MOST and 1 / MOST are refused too: their squares underflow in float32.
    """
    return Parsed("float", partial(_real_of, least=max(least, above), most=min(most, below), open_=(above, below)))


def _whole_of(text: str, least: int, most: int) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,40}", text) and least <= int(text) <= most:
        return int(text)
    raise OptionError(f"{text!r:.60} is not valid: use a whole number from {least} to {most}")


def _real_of(text: str, least: float, most: float, open_: tuple[float, float]) -> float:
    if number := re.fullmatch(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})(e[+-]?[0-9]{1,4})?", text.lower()):
        value = float(number[0])
        if least <= value <= most and value not in open_ and (value == 0 or abs(value) * MOST >= 1):
            return value
    low, high = ("above" if least in open_ else "from"), ("below" if most in open_ else "to")
    raise OptionError(f"{text!r:.60} is not valid: use a decimal number {low} {least:g} {high} {most:g}")


def size_of(text: str) -> Size:
    """Return (height, width) in pixels of `572`, a square, or `2048x1536`, height x width."""
    match = re.fullmatch(r"0*([1-9][0-9]{0,7})(?:[x\N{MULTIPLICATION SIGN}]0*([1-9][0-9]{0,7}))?", text.lower())
    if match is None or max(map(int, match.groups("1"))) > MAX_SIDE:
        raise OptionError(
            f"{text!r:.60} is not a size: write 572, or 2048x1536 for height x width, each from 1 to {MAX_SIDE} px"
        )
    return int(match[1]), int(match[2] or match[1])


def bytes_of(text: str) -> int:
    """Return the bytes of `800MiB`, `8GiB`, `8GB`, or a plain number of bytes."""
    match = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([a-z]*)", text.lower())
    amount = float(match[1]) * BYTES[match[2]] if match and match[2] in BYTES else 0
    if not 1 <= amount <= MOST_BYTES:
        raise OptionError(f"{text!r:.60} is not an amount of memory: write 800MiB or 8GiB, from 1 B to 1 EiB")
    return int(amount)


def backend_option_of(text: str) -> tuple[str, str]:
    """Return (name, value) of `prefer_nhwc=1`."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise OptionError(f"{text!r:.60} is not a backend option: write NAME=VALUE, such as prefer_nhwc=1")
    return name, value


def index_or_name(text: str) -> int | str:
    """Return the index of `3`, or a name."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else text


class ModelPath(click.Path):
    """The type of a path of a model; the name of a model that comes with unetrt becomes the path of its file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        from unetrt.runtime.model.onnx_file import resolved

        return resolved(os.fsdecode(super().convert(value, param, ctx)))


MODEL = ModelPath()
SIZE = Parsed("HxW", size_of)
MEMORY = Parsed("BYTES", bytes_of)


@dataclass(frozen=True)
class EngineOptions:
    """Where a model runs, as `LiveSegmenter` and `Segmenter` name it.

    Attributes
    ----------
    backend
        The inference engine; `auto` takes the first usable one.
    backend_options
        Options that only this backend has, by name.
    device
        CUDA device index; None takes the first GPU, or the CPU.
    lanes
        Passes in flight at once.
    """

    backend: str = "auto"
    backend_options: dict[str, str] = field(default_factory=dict)
    device: int | None = None
    lanes: int = 2

    def require_backend(self) -> None:
        """Raise OptionError unless there is a backend of this name."""
        from unetrt.runtime.sessions import engines, unknown

        if self.backend not in engines():
            raise unknown(self.backend)

    def segmenter(self, model: Path) -> "Segmenter":
        """Open a model file or an engine."""
        from unetrt.runtime.segment.segmenter import Segmenter

        return Segmenter(
            model, backend=self.backend, backend_options=self.backend_options, device=self.device, lanes=self.lanes
        )


backend_name_option = click.option(
    "--backend",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Inference engine: tensorrt, onnxruntime-cuda, openvino, onnxruntime; auto: the first usable one.",
)
backend_option = click.option(
    "--backend-option",
    "backend_options",
    type=Parsed("NAME=VALUE", backend_option_of),
    multiple=True,
    help="Option of the backend, such as prefer_nhwc=1 for onnxruntime-cuda; repeatable. [default: the fastest]",
)
device_option = click.option(
    "--device", type=whole(0), metavar="N", help="CUDA device index. [default: the first GPU, or the CPU]"
)
lanes_option = click.option("--lanes", type=whole(), default=2, show_default=True, help="Passes in flight at once.")
kind_option = click.option(
    "--as",
    "kind",
    type=click.Choice(["instances", "classes"]),
    help="Labels to write. [default: the kind that the model was trained on]",
)


image_memory_option = click.option(
    "--max-image-memory",
    type=MEMORY,
    help="Largest image that is read, in memory. [default: 2GiB, or 16 times the file's size if that much is free]",
)
axes_option = click.option(
    "--axes",
    metavar="LETTERS",
    help="Axes of image files, a letter each, such as YXC or TZCYX: rows Y, columns X, channels C, frames T Z N P. "
    "[default: as files say, else (N, H, W), (N, C, H, W), or channels last]",
)
channel_option = click.option(
    "--channel",
    type=Parsed("N|NAME", index_or_name),
    multiple=True,
    help="Channel of images to read, by its index from 0 or its name; repeatable. [default: all]",
)
series_option = click.option(
    "--series",
    type=Parsed("N|NAME", index_or_name),
    help="Image to read of files that hold several: index from 0, or name. [default: all fields of an acquisition]",
)
select_option = click.option(
    "--select",
    multiple=True,
    metavar="AXIS=SLICE|NAMES",
    help="What to process: a Python slice or an index of an axis of frames, such as T=0:10 or Z=3, or a pattern for "
    "the names of images, such as 'plate/B/*'; repeatable. [default: all]",
)
missing_chunks_option = click.option(
    "--missing-chunks",
    type=click.Choice(["refuse", "fill"]),
    help="Chunks, strips and tiles of images that are not stored: an error, or the fill value. [default: refuse]",
)
saved_option = click.option(
    "--save",
    "saved",
    type=click.Choice(list(KINDS)),
    multiple=True,
    help=f"Files to write; repeatable: {', '.join(f'{name} ({kind.what})' for name, kind in KINDS.items())}. "
    "[default: labels]",
)
montage_option = click.option(
    "--montage", is_flag=True, help="Write overlays/montage.png: all overlays, with the number of objects."
)


def reading_options(command: Command) -> Callable[..., Any]:
    """Add the options of how image files are read to a command, which gets them as `reading`, a `Reading`."""

    @wraps(command)
    def with_reading(
        *,
        max_image_memory: int | None,
        series: int | str | None,
        axes: str | None,
        channel: tuple[int | str, ...],
        select: tuple[str, ...],
        missing_chunks: str | None,
        **others: Any,
    ) -> Any:
        from unetrt.runtime.files.formats import AS_STORED, Reading

        given: dict[str, Any] = {
            "max_image_memory": max_image_memory,
            "series": series,
            "axes": axes and axes.strip().upper(),
            "channel": channel or None,
            "select": select or None,
            "missing_chunks": missing_chunks,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return command(reading=Reading(**given) if given else AS_STORED, **others)

    options = (axes_option, channel_option, series_option, select_option, missing_chunks_option, image_memory_option)
    made: Callable[..., Any] = with_reading
    for option in reversed(options):
        made = option(made)
    return made


def label_rule_options(command: Command) -> Command:
    """Add the options of `LabelRule` to a command, which gets them as `masks` and `threshold`."""
    masks = click.option(
        "--masks/--ids",
        default=None,
        help="Masks: in label files with a single value besides 0, connected components are the objects. Ids: each "
        "value is one object, and values are not checked.",
    )
    threshold = click.option(
        "--threshold",
        type=real(0, above=0),
        metavar="VALUE",
        help="Make masks of the annotations: values from VALUE on are foreground, whose connected components are the "
        "objects.",
    )
    return masks(threshold(command))


def engine_options(command: Command) -> Callable[..., Any]:
    """Add the options of a session to a command, which gets them as `engine`, an `EngineOptions`."""

    @wraps(command)
    def with_engine(
        *,
        backend: str,
        backend_options: tuple[tuple[str, str], ...],
        device: int | None,
        lanes: int,
        **others: Any,
    ) -> Any:
        return command(engine=EngineOptions(backend, given_options(backend_options), device, lanes), **others)

    return backend_name_option(backend_option(device_option(lanes_option(with_engine))))


def given_options(pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return backend options by name; raises OptionError where a name occurs twice."""
    options = dict(pairs)
    if len(options) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise OptionError(f"--backend-option {twice} is given twice: give it once")
    return options


# Command -> its line in `unetrt --help`.
COMMANDS = {
    "demo": "Draw cells, train, export, segment and check; needs no data.",
    "train": "Train a U-Net on a folder with images/ and labels/.",
    "export": "Convert a checkpoint to a verified ONNX file.",
    "adopt": "Convert an ONNX file of another toolkit to a model file.",
    "retile": "Write a model file with another tile.",
    "build": "Build the TensorRT engine of a model.",
    "package": "Package a model for bioimage.io or NVIDIA Triton.",
    "models": "List the models that come with unetrt.",
    "predict": "Segment images with a model.",
    "convert": "Write labels for other programs: ImageJ, QuPath, napari, spreadsheets.",
    "live": "Segment the frames of a camera, or of image files, as they arrive.",
    "eval": "Score predicted labels against true labels.",
    "plan": "Show which tile segments frames of a given size fastest.",
    "info": "Show the metadata of a model, an engine or a checkpoint.",
    "cache": "List or clear cached engines and engine options.",
    "bench": "Compare the speed of unetrt, torch and MONAI on this machine.",
}

# Package that only some commands need -> the extra that installs it.
EXTRAS = {
    "bioimageio": "bioimageio",
    "dask": "distributed",
    "distributed": "distributed",
    "edt": "train",
    "fsspec": "distributed",
    "matplotlib": "train",
    "onnx": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "openvino": "cpu",
    "pyarrow": "parquet",
    "pymmcore_plus": "acquire",
    "roifile": "rois",
    "safetensors": "train",
    "starlette": "view",
    "tensorboard": "tensorboard",
    "torch": "train",
    "uvicorn": "view",
    "zarr": "zarr",
}


class Commands(click.Group):
    """A group that knows its commands by name and imports one when it is used."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"unetrt.cli.{cmd_name}").command
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="unetrt")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Train a U-Net on annotated images, export it, and segment microscope frames of any size with it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code, one of `unetrt._exit_codes`.

    Every error is one line on standard error, without a traceback unless `--debug` is given. So is a signal, where it
    raises an exception: see `stoppable_main`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # The error of a damaged file includes what tifffile logs about it.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    try:
        status = cli.main(arguments, prog_name="unetrt", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        echo(error.format_message(), err=True)
        return 2
    except (Exception, KeyboardInterrupt) as error:
        explained = _explained(error)
        if explained is None or ("--debug" in arguments and not isinstance(error, click.ClickException)):
            raise
        message, status = explained
        label = "" if status > STOPPED_BY else "Error: "
        echo(label + one_line(message), err=True)
        return status
    return status if isinstance(status, int) else 0


def stoppable_main() -> int:
    """Run `main` so that SIGINT, SIGTERM and SIGHUP end the command as an error does; return the exit code."""
    with stop_signals() as raised:
        try:
            status = main()
        except (Exception, StopSignal) as error:
            if not raised:
                raise
            message, status = _explained(raised[0]) or ("", 1)
            if not isinstance(error, StopSignal):  # else before the command began, or after its end
                echo(message, err=True)
        status = raised[0].status if raised and status else status
        if status == HUNG_UP:
            ignore_hangups()
    return status


def _stopped_by(error: BaseException | None) -> StopSignal | None:
    """Return the signal that an error is, or was caused by: an interrupted import can fail with any exception."""
    stop = None
    while error is not None:
        if isinstance(error, StopSignal):
            return error
        if isinstance(error, click.Abort | KeyboardInterrupt):
            stop = StopSignal(signal.SIGINT)
        error = error.__cause__ or error.__context__
    return stop


def _memory_error(error: BaseException | None) -> BaseException | None:
    """Return the failed allocation that an error is, or was caused by, if any: of an import it can be any exception."""
    while error is not None and not is_out_of_memory(error):
        error = error.__cause__ or error.__context__
    return error


def _explained(error: BaseException) -> tuple[str, int] | None:
    """Return the message and exit code of an expected error; None for a defect, whose traceback is shown."""
    if stop := _stopped_by(error):
        how = "stopped by the user" if stop.number == signal.SIGINT else f"stopped by {stop}"
        return str(error) if isinstance(error, TrainingStoppedError) else how, stop.status
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, UnetrtError):
        return str(error), exit_code(error)
    if memory := _memory_error(error):
        return f"memory ran out ({one_line(memory, SHOWN, kind=True)}): raise the limit, or give smaller images", 1
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in EXTRAS:
        return f"this needs {package}: pip install 'unetrt[{EXTRAS[package]}]'", 2
    return (f"{error.filename or 'a file'}: {error.strerror or error}", 2) if isinstance(error, OSError) else None
