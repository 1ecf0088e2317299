"""A model as a bioimage.io package: a .zip in the model zoo's format 0.5, which its community's programs read."""

import gc
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

import numpy as np
import onnx
from bioimageio.spec import (
    InvalidDescr,
    ValidationContext,
    ValidationSummary,
    build_description,
    load_description,
    save_bioimageio_package,
)
from bioimageio.spec.model.v0_5 import ModelDescr
from numpy.typing import NDArray

from unetrt.export.packages import sample
from unetrt.export.packages.batch_axis import copy_model, with_batch
from unetrt.export.packages.bioimageio_description import (
    COVER,
    README,
    TEST_INPUT,
    TEST_OUTPUT,
    WEIGHTS,
    describe,
)
from unetrt.export.packages.bioimageio_metadata import Citation, Metadata
from unetrt.export.packages.bioimageio_readme import readme
from unetrt.runtime.errors import ModelFileError, OptionError
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.sessions import open_session

__all__ = ["Citation", "Metadata", "write"]


def write(model: Path, out: Path, frames: Sequence[NDArray[Any]], metadata: Metadata | None = None) -> Path:
    """Write a package that the format's own library calls valid. Needs no network.

    Parameters
    ----------
    model
        An ONNX file that `unetrt export` wrote. One of a larger batch is packaged with batch 1, the only fixed one that
        the format knows.
    out
        The .zip; replaced if it exists. On any error nothing new is left behind.
    frames
        Raw frames (C, H, W); a tile of the first that shows something becomes the test input.
    metadata
        What only the model's makers know.

    Returns
    -------
    `out`

    Raises
    ------
    ModelFileError
        The file is not a model of ours.
    FrameError
        A frame does not fit the model, or shows nothing.
    OptionError
        The format refuses something of the metadata; the message says what.
    OutputError
        The place cannot be written to.
    """
    if out.suffix != ".zip":
        raise OptionError(f"{out} is no .zip, which bioimage.io packages are: use {out.name}.zip")
    metadata = metadata or Metadata()
    with TemporaryDirectory(ignore_cleanup_errors=True) as made, whole_file(out) as temporary:
        content = _fill(Path(made), model, frames, metadata)
        with _collected():
            refusal = _package(content, Path(made), temporary)
        if refusal is not None:
            raise OptionError(_in_one_line(refusal, metadata))
    return out


def _fill(folder: Path, model: Path, frames: Sequence[NDArray[Any]], metadata: Metadata) -> dict[str, Any]:
    """Write the package's files into a folder, and return what describes them."""
    weights, spec = folder / WEIGHTS, read_spec(model)
    if spec.precision == "bf16":
        raise ModelFileError(f"{model} computes in bfloat16, which bioimage.io's programs cannot: export it in fp32")
    if spec.batch == 1:
        copy_model(model, weights)
    else:
        onnx.save(with_batch(model, 1), weights)
    with open_session(weights, "onnxruntime") as session:
        spec, shown = session.spec, sample.take(session, frames)
    np.save(folder / TEST_INPUT, shown.input)
    np.save(folder / TEST_OUTPUT, shown.output)
    shown.cover(folder / COVER, spec)
    (folder / README).write_text(readme(spec, metadata), encoding="utf-8")
    opsets = onnx.load(weights, load_external_data=False).opset_import
    opset = next(entry.version for entry in opsets if entry.domain in ("", "ai.onnx"))
    return describe(spec, metadata, opset, largest=float(shown.output.max()))


def _package(content: dict[str, Any], folder: Path, target: Path) -> ValidationSummary | None:
    """Write the .zip and read it back; return what the format's library says where it refuses something."""
    content = {**content, "format_version": ModelDescr.implemented_format_version}
    with ValidationContext(root=folder, log_warnings=False):
        description = build_description(content)
        if isinstance(description, InvalidDescr):
            return description.validation_summary
        save_bioimageio_package(description, output_path=target, allow_invalid=True)
    summary = load_description(target).validation_summary
    return summary if summary.status == "failed" else None


@contextmanager
def _collected() -> Iterator[None]:
    """Close what the format's library leaves open: Windows neither renames nor removes open files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()


def _in_one_line(summary: ValidationSummary, metadata: Metadata) -> str:
    """Say the first thing that was refused."""
    entry = next(error for detail in summary.details for error in detail.errors)
    place = str(entry.loc[0]) if entry.loc else "the whole"
    if place == "license":
        # The library lists every licence that there is.
        near = get_close_matches(metadata.license or "", re.findall(r"'([^']+)'", entry.msg))
        advice = " or ".join(near) or "one from spdx.org/licenses"
        return f"license {metadata.license!r} is no SPDX identifier: use {advice}"
    return f"bioimage.io refuses the package: {place}: {shorten(entry.msg, 300)}"
