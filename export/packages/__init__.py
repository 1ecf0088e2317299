"""Packages: an exported model in the form that other programs load.

Importing this package imports none of the kinds.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unetrt.runtime.errors import OptionError

__all__ = ["KINDS", "Kind", "named_kind", "write"]


@dataclass(frozen=True)
class Kind:
    """One kind of package.

    Attributes
    ----------
    name
        What the user writes.
    module
        Where it is implemented: a module with `write`, and a dataclass of what can be chosen.
    choices
        The name of that dataclass.
    for_whom
        One line for help texts: what appears, and who reads it.
    needs_frame
        Whether it takes a raw frame to show the model on.
    suffix
        What its file is called; empty for a folder.
    """

    name: str
    module: str
    choices: str
    for_whom: str
    needs_frame: bool = False
    suffix: str = ""

    def write(self, model: Path, out: Path, frames: Sequence[NDArray[Any]], **chosen: Any) -> Path:
        """Write the package; arguments and errors as for the function `write` of this package."""
        choice = self.choose(**chosen)
        shown = (frames,) if self.needs_frame else ()
        written: Path = importlib.import_module(self.module).write(model, out, *shown, choice)
        return written

    def choose(self, **chosen: Any) -> Any:
        """Return the kind's dataclass of what is chosen; raises OptionError where that makes no such package."""
        choices = getattr(importlib.import_module(self.module), self.choices)
        known = [field.name for field in fields(choices)]
        if unknown := sorted(set(chosen) - set(known)):
            raise OptionError(f"a {self.name} package has no {', '.join(unknown)}: it takes {', '.join(known)}")
        return choices(**chosen)


KINDS = (
    Kind(
        "bioimageio",
        "unetrt.export.packages.bioimageio",
        "Metadata",
        "a .zip for the bioimage.io model zoo and the programs that read it",
        needs_frame=True,
        suffix=".zip",
    ),
    Kind(
        "triton",
        "unetrt.export.packages.triton",
        "Serving",
        "a folder in a model repository of NVIDIA's Triton inference server",
    ),
)


def write(kind: str, model: str | Path, out: str | Path, frames: Sequence[NDArray[Any]] = (), **chosen: Any) -> Path:
    """Turn an exported ONNX file into a package.

    Parameters
    ----------
    kind
        A name from `KINDS`.
    model
        An ONNX file that `unetrt export` wrote.
    out
        Where the package goes: a .zip for bioimageio, the model repository for triton.
    frames
        Raw frames (C, H, W), of which the first that shows something becomes the example, for kinds that need one.
    **chosen
        Fields of the kind's dataclass: `bioimageio.Metadata`, `triton.Serving`.

    Returns
    -------
    What was written. On any error nothing is left behind.

    Raises
    ------
    OptionError
        There is no such kind, or what was chosen makes no such package.
    ModelFileError
        The file is not a model of ours.
    FrameError
        A frame does not fit the model, or shows nothing.
    OutputError
        The place cannot be written to, or is taken.
    """
    return named_kind(kind).write(Path(model), Path(out), frames, **chosen)


def named_kind(kind: str) -> Kind:
    """Return the kind of that name; raises OptionError where there is none."""
    for known in KINDS:
        if known.name == kind:
            return known
    raise OptionError(f"package kind {kind!r} is unknown: use one of {', '.join(known.name for known in KINDS)}")
