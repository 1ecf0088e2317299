"""A model as a bioimage.io package: a .zip in the model zoo's format 0.5, validated by the format's own library.

The package holds the ONNX file with batch 1, its description, a README, a cover image, and a pair of arrays with which
any program can test that it runs the model as it should: one raw tile of a real frame, and the model's output for it.
"""

import gc
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
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
from PIL import Image

from unetrt.export.onnx_model import copy_file, save, with_batch
from unetrt.runtime.errors import FrameError, ModelFileError, OptionError
from unetrt.runtime.files.atomic import scratch_folder, whole_file
from unetrt.runtime.geometry.plan import Tile
from unetrt.runtime.model.objects import overlay
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import INPUT, KEY, OUTPUT, ModelSpec
from unetrt.runtime.pixels.frames import as_frame, require_raw
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.pixels.scores import best_class, require_finite_scores
from unetrt.runtime.sessions import Session, open_session

__all__ = ["Citation", "Metadata", "write"]

Array = NDArray[Any]

# Files of a package.
WEIGHTS, README, COVER = "model.onnx", "README.md", "cover.png"
TEST_INPUT, TEST_OUTPUT = "test_input.npy", "test_output.npy"
# Side of each half of the cover, in pixels: the model zoo asks for 2:1 and less than 500 kB.
COVER_SIDE = 256

NAME = re.compile(r"[A-Za-z0-9_+() -]{5,128}")

# The format adds this to every denominator and requires it to be positive. unetrt adds nothing: 1e-12 is lost in
# float32.
EPSILON = 1e-12
# Tolerances of a precision below fp32, whose results differ between machines: the largest that the format allows. The
# absolute tolerance must be below 1 % of the largest value of the test output.
RELATIVE, ABSOLUTE, PER_MILLION = 0.01, 0.009, 1000


@dataclass(frozen=True)
class Citation:
    """A publication to cite.

    Attributes
    ----------
    text
        Authors, title, year.
    doi
        Its digital object identifier.
    """

    text: str
    doi: str


PAPER = Citation(
    "Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015",
    "10.1007/978-3-319-24574-4_28",
)


@dataclass(frozen=True)
class Metadata:
    """Information about a model that its file does not contain.

    Attributes
    ----------
    name
        5 to 128 letters, digits, spaces and _ + - ( ).
    authors
        Names of persons.
    license
        An SPDX identifier, such as CC-BY-4.0; None leaves it out.
    description
        One or two sentences; empty for one made from the spec.
    cite
        Publications.
    tags
        Search terms in addition to those made from the spec.

    Raises
    ------
    OptionError
        A name that the format refuses.
    """

    name: str = "U-Net segmentation"
    authors: tuple[str, ...] = ()
    license: str | None = None
    description: str = ""
    cite: tuple[Citation, ...] = (PAPER,)
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise OptionError(
                f"the name {self.name!r} does not fit bioimage.io: use 5 to 128 letters, digits, spaces and _ + - ( )"
            )
        if wrong := [author for author in self.authors if not author.strip() or "/" in author]:
            raise OptionError(f"author {wrong[0]!r} does not fit bioimage.io: give a person's name, without slashes")


def write(model: Path, out: Path, frames: Sequence[Array], metadata: Metadata | None = None) -> Path:
    """Write a package that the format's own library validates. Needs no network.

    Parameters
    ----------
    model
        An ONNX file that `unetrt export` wrote. It is packaged with batch 1, the only fixed batch of the format.
    out
        The .zip; replaced if it exists. On an error an existing file is left as it was.
    frames
        Raw frames (C, H, W); a tile of the first in which the model finds something becomes the test input.
    metadata
        Name, authors and so on.

    Returns
    -------
    `out`

    Raises
    ------
    ModelFileError
        The file is not a model of unetrt, or computes in bfloat16.
    FrameError
        A frame does not fit the model, or the model finds nothing in any.
    OptionError
        The format refuses a part of the metadata; the message names it.
    OutputError
        The file cannot be written.
    """
    if out.suffix != ".zip":
        raise OptionError(f"{out} is not a .zip, as bioimage.io packages are: use {out.name}.zip")
    metadata = metadata or Metadata()
    with scratch_folder() as made, whole_file(out) as temporary:
        content = _fill(made, model, frames, metadata)
        with _collected():
            refusal = _package(content, made, temporary)
        if refusal is not None:
            raise OptionError(_in_one_line(refusal, metadata))
    return out


def _fill(folder: Path, model: Path, frames: Sequence[Array], metadata: Metadata) -> dict[str, Any]:
    """Write the package's files into a folder, and return their description."""
    weights, spec = folder / WEIGHTS, read_spec(model)
    if spec.precision == "bf16":
        raise ModelFileError(f"{model} computes in bfloat16, which bioimage.io's programs cannot: export it in fp32")
    if spec.batch == 1:
        copy_file(model, weights)
    else:
        save(with_batch(model, 1), weights)
    with open_session(weights, "onnxruntime") as session:
        spec = session.spec
        tile, output = _test_pair(session, frames)
    np.save(folder / TEST_INPUT, tile)
    np.save(folder / TEST_OUTPUT, output)
    _draw_cover(folder / COVER, spec, tile, output)
    (folder / README).write_text(_readme(spec, metadata), encoding="utf-8")
    opsets = onnx.load(weights, load_external_data=False).opset_import
    opset = next(entry.version for entry in opsets if entry.domain in ("", "ai.onnx"))
    return _description(spec, metadata, opset, largest=float(output.max()))


def _package(content: dict[str, Any], folder: Path, target: Path) -> ValidationSummary | None:
    """Write the .zip and read it back; return the library's summary if it refuses something."""
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
    """Close the files that the library leaves open: Windows neither renames nor removes open files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()


def _in_one_line(summary: ValidationSummary, metadata: Metadata) -> str:
    """Return the first error of a summary as one line."""
    entry = next(error for detail in summary.details for error in detail.errors)
    place = str(entry.loc[0]) if entry.loc else "the package"
    if place == "license":
        # The library lists every licence in its message.
        near = get_close_matches(metadata.license or "", re.findall(r"'([^']+)'", entry.msg))
        advice = " or ".join(near) or "one from spdx.org/licenses"
        return f"license {metadata.license!r} is not an SPDX identifier: use {advice}"
    return f"bioimage.io refuses the package: {place}: {shorten(entry.msg, 300)}"


# The test pair and the cover ------------------------------------------------------------------------------------------


def _test_pair(session: Session, frames: Sequence[Array]) -> tuple[Array, Array]:
    """Return a tile of raw grey values, (1, C, h, w) of the spec's input dtype, and the model's output for it.

    The tile is the one of most contrast in the first frame in which the model finds something. It is normalised as if
    it were the whole frame, as a program does that is given the tile alone.

    Raises
    ------
    FrameError
        A frame does not fit the model, or the output is uniform for every frame and so would test nothing.
    """
    spec = session.spec
    for frame in frames:
        tile = _tile_of_contrast(spec, frame)
        output = session.run(tile if spec.takes_raw else spec.normalisation(tile))
        if spec.head != "labels":
            require_finite_scores(output)
        if np.ptp(tile) > 0 and np.ptp(output) > 0:
            return tile[None], output
    raise FrameError(
        f"the output of the model is constant on {len(frames)} frames, which tests nothing: give one that shows objects"
    )


def _tile_of_contrast(spec: ModelSpec, frame: Array) -> Array:
    """Cut the tile (C, h, w) whose core has the largest standard deviation, mirrored at the frame's borders."""
    if frame.ndim != 3 or frame.shape[0] != spec.channels:
        raise FrameError(f"the frame has shape {frame.shape}: a package needs ({spec.channels}, H, W)")
    frame = as_frame(frame, spec.channels)
    if spec.takes_raw:
        require_raw(frame.dtype, spec.input_dtype)

    def contrast(tile: Tile) -> float:
        return float(frame[:, tile.rows.core, tile.columns.core].std())

    cut: Array = spec.new_input()[0]
    max(spec.plan(frame.shape[-2:]), key=contrast).cut(frame, cut)
    return cut


def _draw_cover(path: Path, spec: ModelSpec, tile: Array, output: Array) -> None:
    """Draw the middle of the core of a test pair, input and labels side by side, into an image file."""
    inner = slice(spec.halo, -spec.halo or None)
    frame = tile[0][..., inner, inner]
    labels = output[0] if spec.head == "labels" else best_class(output[0])
    side = min(spec.core)
    row, column = ((length - side) // 2 for length in spec.core)
    middle = (..., slice(row, row + side), slice(column, column + side))
    halves = [overlay(frame[middle], shown[middle]) for shown in (np.zeros_like(labels), labels)]
    Image.fromarray(np.concatenate(halves, axis=1)).resize((2 * COVER_SIDE, COVER_SIDE)).save(path)


# The description: the content of bioimageio.yaml ----------------------------------------------------------------------


def _description(spec: ModelSpec, metadata: Metadata, opset: int, largest: float) -> dict[str, Any]:
    """Return the content of bioimageio.yaml, without the format's version.

    Parameters
    ----------
    spec
        The packaged model's, with batch 1.
    metadata
        Name, authors and so on.
    opset
        Opset of the ONNX file.
    largest
        Largest value of the test output.
    """
    tasks = ["semantic-segmentation", *(["instance-segmentation"] if spec.annotation == "instances" else [])]
    licence = {"license": metadata.license} if metadata.license else {}
    return {
        "type": "model",
        "name": metadata.name,
        "description": metadata.description or _summary(spec),
        "authors": [{"name": name} for name in metadata.authors],
        "cite": [{"text": entry.text, "doi": entry.doi} for entry in metadata.cite],
        **licence,
        "tags": ["2d", "unet", "onnx", *tasks, *metadata.tags],
        "documentation": {"source": README},
        "covers": [{"source": COVER}],
        "inputs": [_input(spec)],
        "outputs": [_output(spec)],
        "weights": {"onnx": {"source": WEIGHTS, "opset_version": opset}},
        "config": {**_tolerance(spec, largest), KEY: json.loads(spec.to_json())},
    }


def _tolerance(spec: ModelSpec, largest: float) -> dict[str, Any]:
    """Widen the format's default tolerance (1e-3) for a precision below fp32."""
    if spec.precision == "fp32":
        return {}
    tolerance = {
        "relative_tolerance": RELATIVE,
        "absolute_tolerance": 0.0 if spec.head == "labels" else max(0.0, ABSOLUTE * largest),
        "mismatched_elements_per_million": PER_MILLION,
    }
    return {"bioimageio": {"reproducibility_tolerance": [tolerance]}}


def _input(spec: ModelSpec) -> dict[str, Any]:
    """Describe the input: a tile of fixed size."""
    sides = zip(("y", "x"), spec.tile, strict=True)
    return {
        "id": INPUT,
        "description": f"a tile of the frame, mirrored ({spec.border}) where it reaches past the frame's border",
        "axes": [
            {"type": "batch", "size": 1},
            {"type": "channel", "channel_names": [f"channel{index}" for index in range(spec.channels)]},
            *({"type": "space", "id": axis, "size": side} for axis, side in sides),
        ],
        "data": {"type": spec.tensors().input.dtype.name},
        "preprocessing": [] if spec.takes_raw else _preprocessing(spec.normalisation),
        "test_tensor": {"source": TEST_INPUT},
    }


def _output(spec: ModelSpec) -> dict[str, Any]:
    """Describe the output: the core of the tile; its sides are the tile's with an offset of minus two halos."""
    core = [
        {"type": "space", "id": axis, "size": {"tensor_id": INPUT, "axis_id": axis, "offset": -2 * spec.halo}}
        for axis in ("y", "x")
    ]
    classes = {"type": "channel", "channel_names": list(spec.classes)}
    values: dict[str, dict[str, Any]] = {"labels": {"values": list(spec.classes)}, "probabilities": {"range": [0, 1]}}
    return {
        "id": OUTPUT,
        "description": f"{spec.head} of the tile without its halo of {spec.halo} px a side",
        "axes": [{"type": "batch", "size": 1}, *([] if spec.head == "labels" else [classes]), *core],
        "data": {"type": spec.tensors().output.dtype.name, **values.get(spec.head, {})},
        "test_tensor": {"source": TEST_OUTPUT},
    }


def _preprocessing(normalisation: Normalisation) -> list[dict[str, Any]]:
    """Return the format's operations for a normalisation: each channel by itself, statistics over the whole sample."""
    joint: dict[str, Any] = {"axes": ["y", "x"], "eps": EPSILON}
    if normalisation.mode in ("percentile", "running"):
        ranks = {"min_percentile": normalisation.low, "max_percentile": normalisation.high}
        return [{"id": "scale_range", "kwargs": {**joint, **ranks}}]
    if normalisation.mode == "zscore":
        return [{"id": "zero_mean_unit_variance", "kwargs": joint}]
    # (x - offset) * scale = x * gain + shift, with gain = scale and shift = -offset * scale.
    shifts = [-offset * scale for offset, scale in zip(normalisation.offset, normalisation.scale, strict=True)]
    gains = list(normalisation.scale)
    if set(gains) == {1.0} and not any(shifts):
        return []  # the format refuses an operation that changes nothing
    return [{"id": "scale_linear", "kwargs": {"axis": "channel", "gain": gains, "offset": shifts}}]


def _summary(spec: ModelSpec) -> str:
    depth = f" of depth {spec.network['depth']}" if spec.network else ""
    return f"A U-Net{depth} that segments {spec.channels}-channel micrographs into {', '.join(spec.classes)}."[:1024]


# The README -----------------------------------------------------------------------------------------------------------

README_TEXT = """# {name}

{channels} channel(s) in, {classes} out ({head}), computed in {precision}.

## Use

The network takes tiles of exactly {tile[0]} x {tile[1]} px (height x width), one at a time. Its convolutions are
unpadded: the output is the middle {core[0]} x {core[1]} px of the tile, without {halo} px on each side. For a larger
frame, lay tiles at distances that are multiples of {grid} px, at most {stride[0]} px down and {stride[1]} px across,
and mirror the frame's border; the stitched result then equals one pass over the whole frame.

{normalisation}

`unetrt predict` does all this by itself with the file model.onnx, which carries its geometry and normalisation.

## Validation

test_input.npy is a tile of a real frame, test_output.npy the output of this file for it in ONNX Runtime. To judge the
model on your own images, segment some that you have annotated and compare: `unetrt eval LABELS TRUTH`.

Trained: {training}.
"""
WHOLE_FRAME = """Grey values are normalised by statistics of the sample ({mode}). Measure them on the whole frame, not
on each tile: tiles that are normalised on their own disagree where they meet."""
CONSTANT = "Grey values are normalised with constants, the same for every frame."
RAW = "Give raw {dtype} grey values: the network normalises them itself."


def _readme(spec: ModelSpec, metadata: Metadata) -> str:
    """Return the README.md of a package."""
    if spec.takes_raw:
        normalisation = RAW.format(dtype=spec.input_dtype)
    elif spec.normalisation.mode == "fixed":
        normalisation = CONSTANT
    else:
        normalisation = WHOLE_FRAME.format(mode=spec.normalisation.mode)
    facts = [f"{key} {value}" for key, value in spec.training.items() if isinstance(value, int | float | str)]
    return README_TEXT.format(
        name=metadata.name,
        channels=spec.channels,
        classes=", ".join(spec.classes),
        head=spec.head,
        precision=spec.precision,
        tile=spec.tile,
        core=spec.core,
        halo=spec.halo,
        grid=spec.grid,
        stride=[spec.geometry.stride(side) for side in spec.tile],
        normalisation=normalisation,
        training=", ".join(facts) or "not said",
    )
