"""Kinds of option values that several commands share.

Raw frames from a user's files, one by one.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from unetrt.runtime.errors import OptionError

Size = tuple[int, int]


class SizeType(click.ParamType):  # type: ignore[type-arg]
    """Height and width in pixels: `572` for a square, `2048x1536` for height x width."""

    name = "HxW"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Size:  # noqa: ARG002
        """Return (height, width)."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", str(value).strip().lower())  # noqa: RUF001
        if match is None:
            raise OptionError(f"{value!r} is no size: write 572, or 2048x1536 for height x width")
        height, width = int(match[1]), int(match[2] or match[1])
        if min(height, width) < 1:
            raise OptionError(f"{value!r} is no size: both sides are at least 1 px")
        return height, width


class MemoryType(click.ParamType):  # type: ignore[type-arg]
    """Bytes: `800MiB`, `8GiB`, `8GB`, or a plain number of bytes."""

    name = "BYTES"
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}  # noqa: RUF012

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ARG002
        """Return the number of bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip().lower())
        if match is None or match[2] not in self.units:
            raise OptionError(f"{value!r} is no amount of memory: write 800MiB or 8GiB")
        return int(float(match[1]) * self.units[match[2]])


class BackendOptionType(click.ParamType):  # type: ignore[type-arg]
    """An option of a backend: `prefer_nhwc=1`."""

    name = "NAME=VALUE"

    def convert(
        self,
        value: object,
        param: click.Parameter | None,  # noqa: ARG002
        ctx: click.Context | None,  # noqa: ARG002
    ) -> tuple[str, str]:
        """Return (name, value)."""
        if isinstance(value, tuple):
            return value
        name, equals, given = (part.strip() for part in str(value).partition("="))
        if not (name and equals and given):
            raise OptionError(f"{value!r} is no option of a backend: write NAME=VALUE, such as prefer_nhwc=1")
        return name, given


SIZE = SizeType()
MEMORY = MemoryType()
# For all commands that choose a backend.
backend_option = click.option(
    "--backend-option",
    "backend_options",
    type=BackendOptionType(),
    multiple=True,
    help="Of the backend's own, such as prefer_nhwc=1 for onnxruntime-cuda; repeatable [default: what is fastest].",
)


def given_options(pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return a backend's options by name; raises OptionError where one is given twice."""
    options = dict(pairs)
    if len(options) < len(pairs):
        names = [name for name, _ in pairs]
        raise OptionError(
            f"--backend-option {next(n for n in names if names.count(n) > 1)} is given twice: give it once"
        )
    return options


# How many images of a folder are looked at, evenly spaced.
MOST = 16


def raw_frames(images: Path, channels: int) -> Iterator[Any]:
    """Iterate over images of a file or folder as raw frames (C, H, W), of a stack the first; at most `MOST`, spread."""
    from unetrt.runtime.files.images import list_images, read_frames
    from unetrt.runtime.pixels.frames import as_frame

    frame_axes = 2 if channels == 1 else 3
    paths = list_images(images)
    for path in paths[:: -(-len(paths) // MOST)]:
        stack = read_frames(path, channels)
        yield as_frame(stack if stack.ndim == frame_axes else stack[0], channels)
