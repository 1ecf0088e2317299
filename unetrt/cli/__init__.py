"""The command line: a click group whose commands are modules of this package, imported when they are called.

`unetrt --help` imports none of them, and none of numpy, torch or an inference engine. `main` turns every expected error
into one line on standard error and an exit code; other exceptions keep their traceback.
"""

import logging
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from unetrt._exit_codes import STOPPED, exit_code
from unetrt._version import __version__
from unetrt.runtime.errors import UnetrtError

# Command -> its line in `unetrt --help`.
COMMANDS = {
    "demo": "Draw cells, train, export, segment and check; needs no data.",
    "train": "Train a U-Net on a folder with images/ and labels/.",
    "export": "Convert a checkpoint to a verified ONNX file.",
    "adopt": "Convert an ONNX file of another toolkit to a model file.",
    "build": "Build the TensorRT engine of a model.",
    "package": "Package a model for bioimage.io or NVIDIA Triton.",
    "predict": "Segment images with a model.",
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
    "edt": "train",
    "matplotlib": "train",
    "onnx": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "openvino": "cpu",
    "pymmcore_plus": "acquire",
    "safetensors": "train",
    "starlette": "view",
    "tensorboard": "tensorboard",
    "torch": "train",
    "uvicorn": "view",
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

    Every error is one line on standard error, without a traceback unless `--debug` is given.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # The error of a damaged file includes what tifffile logs about it.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    try:
        status = cli.main(arguments, prog_name="unetrt", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except (Exception, KeyboardInterrupt) as error:
        explained = _explained(error)
        if explained is None or ("--debug" in arguments and not isinstance(error, click.ClickException)):
            raise
        message, status = explained
        label = "" if status == STOPPED else "Error: "
        click.echo(label + " ".join(message.split()), err=True)
        return status
    return status if isinstance(status, int) else 0


def _interrupted(error: BaseException | None) -> bool:
    """Return whether an error is, or was caused by, Ctrl-C: an interrupted import can fail with any exception."""
    while error is not None:
        if isinstance(error, click.Abort | KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explained(error: BaseException) -> tuple[str, int] | None:
    """Return the message and exit code of an expected error; None for a defect, whose traceback is shown."""
    if _interrupted(error):
        return "stopped by the user", STOPPED
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, UnetrtError):
        return str(error), exit_code(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        return (f"this needs {package}: pip install 'unetrt[{EXTRAS[package]}]'", 2) if package in EXTRAS else None
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}", 2
    return None
