"""The command line. Each command is a module of this package, imported when it is called."""

import logging
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from unetrt._version import __version__

# name -> one line for `unetrt --help`, so that it imports none of the commands.
COMMANDS = {
    "demo": "Draw cells, train, export, segment and check, without any data.",
    "train": "Train a U-Net on a folder with images/ and labels/.",
    "export": "Turn a checkpoint into a verified ONNX file.",
    "adopt": "Turn an ONNX file of another toolkit into a model file.",
    "build": "Build a TensorRT engine of a model.",
    "package": "Put a model into the form that other programs load.",
    "predict": "Segment images with an exported model.",
    "live": "Segment what a camera sees, or a replay of files, while it comes.",
    "eval": "Score predicted labels against true ones.",
    "plan": "Show which tile segments frames of a size fastest.",
    "info": "Show what a model file or a checkpoint says of itself.",
    "cache": "List or clear engines and choices that are kept.",
    "bench": "Time unetrt beside torch and MONAI on this machine.",
}

# Packages that only some commands need -> the extra that brings them.
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
# Exit status of who was asked to stop: 128 and the number of SIGINT, as shells have it.
STOPPED = 130


class Commands(click.Group):
    """A group that knows its commands by name and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"unetrt.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="unetrt")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """From a folder of annotated images to a segmenter inside the microscope's acquisition program."""
    if debug:
        click.get_current_context().obj = "debug"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 for a failed gate, 2 for bad input, 130 when interrupted.

    Every error is one line on standard error, without a traceback unless `--debug` is given.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # What tifffile notes of a damaged file is in the one line that the file gets.
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
    """Tell whether an error is the user's, or came of it: an import that is interrupted fails in ways of its own."""
    while error is not None:
        if isinstance(error, click.Abort | KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explained(error: BaseException) -> tuple[str, int] | None:
    """Return what to tell the user and the exit status; None for what only a traceback explains: a defect."""
    from unetrt.runtime.errors import UnetrtError

    if _interrupted(error):
        return "stopped by the user", STOPPED
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, UnetrtError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        return (f"this needs {package}: pip install 'unetrt[{EXTRAS[package]}]'", 2) if package in EXTRAS else None
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}", 2
    return None
