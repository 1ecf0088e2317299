"""Options that several commands share: their types, and the options of a session.

`engine_options` adds --backend, --backend-option, --device and --lanes to a command and hands them over as one
`EngineOptions`, so that all commands that open a session have the same options with the same help.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from unetrt.runtime.errors import OptionError

if TYPE_CHECKING:
    from unetrt.runtime.segment.segmenter import Segmenter

    _ParamType = click.ParamType[Any, Any]
else:
    _ParamType = click.ParamType  # generic only in recent versions of click

Size = tuple[int, int]
Command = TypeVar("Command", bound=Callable[..., Any])
BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class Parsed(_ParamType):
    """The type of an option whose text a function parses; the function raises OptionError for invalid text.

    A default that is not text is the option's value as it is.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> Any:
        """Return the value of the option."""
        return self._parse(value.strip()) if isinstance(value, str) else value


def size_of(text: str) -> Size:
    """Return (height, width) in pixels of `572`, a square, or `2048x1536`, height x width."""
    match = re.fullmatch(r"0*([1-9]\d*)(?:[x\N{MULTIPLICATION SIGN}]0*([1-9]\d*))?", text.lower())
    if match is None:
        raise OptionError(f"{text!r} is not a size: write 572, or 2048x1536 for height x width, each at least 1 px")
    return int(match[1]), int(match[2] or match[1])


def bytes_of(text: str) -> int:
    """Return the bytes of `800MiB`, `8GiB`, `8GB`, or a plain number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.lower())
    if match is None or match[2] not in BYTES:
        raise OptionError(f"{text!r} is not an amount of memory: write 800MiB or 8GiB")
    return int(float(match[1]) * BYTES[match[2]])


def backend_option_of(text: str) -> tuple[str, str]:
    """Return (name, value) of `prefer_nhwc=1`."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise OptionError(f"{text!r} is not a backend option: write NAME=VALUE, such as prefer_nhwc=1")
    return name, value


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
    "--device", type=int, metavar="N", help="CUDA device index. [default: the first GPU, or the CPU]"
)
lanes_option = click.option("--lanes", type=int, default=2, show_default=True, help="Passes in flight at once.")
kind_option = click.option(
    "--as",
    "kind",
    type=click.Choice(["instances", "classes"]),
    help="Labels to write. [default: the kind that the model was trained on]",
)


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
