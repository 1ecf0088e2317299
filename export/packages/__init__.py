"""Packages: an exported model in the form that other programs load.

`KINDS` is the table of package formats; `write` imports the module of one and calls its `write`. Importing this package
imports none of them.

>>> write("triton", "model.onnx", "models", name="cells", instances=2)  # doctest: +SKIP
PosixPath('models/cells/1')
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unetrt.runtime.errors import OptionError, shown

__all__ = ["KINDS", "Kind", "named_kind", "write"]


@dataclass(frozen=True)
class Kind:
    """One package format.

    Attributes
    ----------
    name
        Its name on the command line.
    place
        File or folder that the command line writes by default.
    module
        The module that implements it, with a function `write` and a dataclass of choices.
    choices
        Name of that dataclass.
    needs_frame
        Whether the package shows the model on a raw frame.
    suffix
        Suffix of the package's file; empty for a folder.
    """

    name: str
    place: Path
    module: str
    choices: str
    needs_frame: bool = False
    suffix: str = ""

    def choose(self, **chosen: Any) -> Any:
        """Return the dataclass of choices; raises OptionError for an unknown name or a value that does not fit."""
        choices = getattr(importlib.import_module(self.module), self.choices)
        known = [field.name for field in fields(choices)]
        if unknown := sorted(set(chosen) - set(known)):
            raise OptionError(f"a {self.name} package has no {', '.join(unknown)}: it takes {', '.join(known)}")
        return choices(**chosen)


KINDS = (
    Kind(
        "bioimageio",
        Path("model.zip"),
        "unetrt.export.packages.bioimageio",
        "Metadata",
        needs_frame=True,
        suffix=".zip",
    ),
    Kind("triton", Path("models"), "unetrt.export.packages.triton", "Serving"),
)


def named_kind(kind: str) -> Kind:
    """Return the kind of a name; raises OptionError for an unknown name."""
    for known in KINDS:
        if isinstance(kind, str) and known.name == kind:
            return known
    raise OptionError(f"package kind {shown(kind)} is unknown: use one of {', '.join(known.name for known in KINDS)}")


def write(kind: str, model: str | Path, out: str | Path, frames: Sequence[NDArray[Any]] = (), **chosen: Any) -> Path:
    """Make a package of an exported ONNX file.

    Parameters
    ----------
    kind
        A name in `KINDS`.
    model
        An ONNX file that `unetrt export` wrote.
    out
        The .zip of a bioimageio package, or the model repository of a triton one.
    frames
        Raw frames (C, H, W) for kinds that need one; the first in which the model finds something becomes the example.
    **chosen
        Fields of the kind's dataclass: `bioimageio.Metadata`, `triton.Serving`.

    Returns
    -------
    The file or folder that was written. On an error nothing is left behind.

    Raises
    ------
    OptionError
        The kind is unknown, or a choice does not fit it.
    ModelFileError
        The file is not a model of unetrt.
    FrameError
        A frame does not fit the model, or the model finds nothing in any.
    OutputError
        The package cannot be written to `out`, or exists there.
    """
    known = named_kind(kind)
    choices = known.choose(**chosen)
    shown = (frames,) if known.needs_frame else ()
    written: Path = importlib.import_module(known.module).write(Path(model), Path(out), *shown, choices)
    return written
