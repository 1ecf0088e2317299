"""A model as a bioimage.io package: a .zip in the model zoo's format 0.5, validated by the format's own library.

The package holds an ONNX file, its description, a README, a cover image, and a pair of arrays with which any program
can test that it runs the model as it should: one raw block of a real frame, and the file's output for it. The file is
the model with batch 1, made to take blocks (`unetrt.export.packages._blocks`): what bioimageio.core stitches of them is
what `Segmenter` returns.
"""

import gc
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from unetrt.export.packages._blocks import IMAGE, SEGMENTATION, Blocks, in_blocks, require_same
from unetrt.runtime.errors import FrameError, ModelFileError, OptionError
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.geometry.plan import Tile, TilePlan
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.retiled import retiled
from unetrt.runtime.model.spec import KEY, ModelSpec
from unetrt.runtime.pixels.drawing import overlay
from unetrt.runtime.pixels.frames import as_frame, require_raw
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.pixels.scores import best_class, require_finite_scores
from unetrt.runtime.sessions import Session, open_session

__all__ = ["Citation", "Metadata", "write"]

Array = NDArray[Any]

# The model with batch 1, from which the package's is made; not in the package.
NETWORK = "network.onnx"
# Files of a package.
WEIGHTS, README, COVER = "model.onnx", "README.md", "cover.png"
TEST_INPUT, TEST_OUTPUT = "test_input.npy", "test_output.npy"
# Side of each half of the cover, in pixels: the model zoo asks for 2:1 and less than 500 kB.
COVER_SIDE = 256

NAME = re.compile(r"[A-Za-z0-9_+() -]{5,128}")

# The format adds this to every denominator and requires it to be positive. unetrt adds nothing: 1e-12 is lost in
# float32.
EPSILON = 1e-12
# Tolerances of the test output: relative, and elements in a million that may differ by more. In a precision below fp32,
# results differ between machines. The format allows an absolute one of 1 % of the largest value.
FP32, LOWER = (1e-3, 100), (1e-2, 1000)
ABSOLUTE_FP32, ABSOLUTE = 1e-3, 0.009


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
        A name that the format refuses, a list that is none, or text that is not printable.
    """

    name: str = "U-Net segmentation"
    authors: tuple[str, ...] = ()
    license: str | None = None
    description: str = ""
    cite: tuple[Citation, ...] = (PAPER,)
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_text("name", self.name)
        if not NAME.fullmatch(self.name):
            raise OptionError(
                f"the name {self.name!r:.60} does not fit bioimage.io: use 5 to 128 letters, digits, spaces and "
                "_ + - ( )"
            )
        for what, several in (("authors", self.authors), ("tags", self.tags), ("cite", self.cite)):
            if not isinstance(several, Sequence) or isinstance(several, str | bytes):
                raise OptionError(f"{what} must be a list (got {several!r:.60}): give a list, also of one")
        for text in (*self.authors, *self.tags):
            _require_text("author or tag", text)
        if wrong := [author for author in self.authors if not author.strip() or "/" in author]:
            raise OptionError(f"author {wrong[0]!r:.60} does not fit bioimage.io: use a name without slashes")
        for entry in self.cite:
            if not isinstance(entry, Citation):
                raise OptionError(f"cite must be a list of Citation (got {entry!r:.60})")
            _require_text("citation", entry.text)
            _require_text("doi", entry.doi)
        if self.license is not None:
            _require_text("license", self.license)
        _require_text("description", self.description, lines=True)


def _require_text(what: str, text: object, lines: bool = False) -> None:
    """Raise OptionError unless this is printable text on one line, or on several."""
    if not isinstance(text, str):
        raise OptionError(f"{what} must be text (got {text!r:.60})")
    if not all(line.isprintable() for line in (text.split("\n") if lines else [text])):
        raise OptionError(f"{what} {text!r:.60} is not printable: use printable characters")


def write(model: Path, out: Path, frames: Sequence[Array], metadata: Metadata | None = None) -> Path:
    """Write a package that the format's own library validates. Needs no network.

    Parameters
    ----------
    model
        An ONNX file that `unetrt export` wrote. It is packaged with batch 1, the only fixed batch of the format.
    out
        The .zip; replaced if it exists. On an error an existing file is left as it was.
    frames
        Raw frames (C, H, W); a block of the first in which the model finds something becomes the test input.
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
    TileError
        The network has one tile, and tiles of that cannot be placed next to each other.
    GateError
        The model gives another result in blocks.
    OptionError
        The format refuses a part of the metadata; the message names it.
    OutputError
        The file cannot be written.
    """
    if out.suffix != ".zip":
        raise OptionError(f"{out} is not a .zip, as bioimage.io packages are: use {out.name}.zip")
    metadata = metadata or Metadata()
    with whole_file(out) as temporary:
        made = temporary.parent / "content"  # removed with the temporary file
        made.mkdir()
        content = _fill(made, model, frames, metadata)
        with _collected():
            refusal = _package(content, made, temporary)
        if refusal is not None:
            raise OptionError(_in_one_line(refusal, metadata))
    return out


def _fill(folder: Path, model: Path, frames: Sequence[Array], metadata: Metadata) -> dict[str, Any]:
    """Write the package's files into a folder, and return their description."""
    blocks = _network(model, folder / NETWORK)
    spec, weights = blocks.spec, folder / WEIGHTS
    with open_session(folder / NETWORK, "onnxruntime") as session:
        raw, image, core = _test_pair(session, blocks, frames)
    onnx.save(in_blocks(onnx.load(folder / NETWORK), spec), weights)
    require_same(weights, spec, image, core)
    output = _with_halo(core, blocks)
    np.save(folder / TEST_INPUT, raw)
    np.save(folder / TEST_OUTPUT, output)
    _draw_cover(folder / COVER, blocks, raw, core)
    (folder / README).write_text(_readme(blocks, metadata), encoding="utf-8")
    opsets = onnx.load(weights, load_external_data=False).opset_import
    opset = next(entry.version for entry in opsets if entry.domain in ("", "ai.onnx"))
    return _description(blocks, metadata, opset, largest=float(output.max()))


def _network(model: Path, path: Path) -> Blocks:
    """Write a model with batch 1, and the tile of a usual block, to `path`; return its blocks."""
    spec = read_spec(model)
    if spec.precision == "bf16":
        raise ModelFileError(f"{model} computes in bfloat16, which bioimage.io's programs cannot: export it in fp32")
    if spec.batch == 1:
        copy_file(model, path)
    else:
        save(with_batch(model, 1), path)
    blocks = Blocks(replace(spec, batch=1))
    if blocks.of_any_side:
        path.write_bytes(retiled(path, blocks.tile, 1))
    return Blocks(replace(blocks.spec, tile=blocks.tile))


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
        return f"license {metadata.license!r:.60} is not an SPDX identifier: use {advice}"
    return f"bioimage.io refuses the package: {place}: {shorten(entry.msg, 300)}"


# The test pair and the cover ------------------------------------------------------------------------------------------


def _test_pair(session: Session, blocks: Blocks, frames: Sequence[Array]) -> tuple[Array, Array, Array]:
    """Return a raw block, the same as the graph takes it, and the model's output for its inner part.

    The first two are (1, C, y, x) of the spec's input dtype. The block is the one of most contrast in the first frame
    in which the model finds something. It is normalised as if it were the whole frame, as a program does that is given
    the block alone.

    Raises
    ------
    FrameError
        A frame does not fit the model, or the output is uniform for every frame and so would test nothing.
    """
    spec = session.spec
    height, width = blocks.inner
    for frame in frames:
        raw = _block_of_contrast(blocks, np.asarray(frame))
        image = raw if spec.takes_raw else spec.normalisation(raw)
        tile: Array = spec.new_input()[0]
        given = image[:, blocks.margin :, blocks.margin :][:, : tile.shape[1], : tile.shape[2]]
        tile[:, : given.shape[1], : given.shape[2]] = given
        core = session.run(tile)[..., :height, :width]
        if spec.head != "labels":
            require_finite_scores(core)
        if np.ptp(raw) > 0 and np.ptp(core) > 0:
            return raw[None], image[None], core
    raise FrameError(
        f"the output of the model is constant on {len(frames)} frames, which tests nothing: give one that shows objects"
    )


def _block_of_contrast(blocks: Blocks, frame: Array) -> Array:
    """Cut the block (C, y, x) whose inner part has the largest deviation, mirrored at the frame's borders."""
    spec = blocks.spec
    if frame.ndim != 3 or frame.shape[0] != spec.channels:
        raise FrameError(f"the frame has shape {frame.shape}: a package needs ({spec.channels}, H, W)")
    frame = as_frame(frame, spec.channels)
    if spec.takes_raw:
        require_raw(frame.dtype, spec.input_dtype)

    def contrast(tile: Tile) -> float:
        return float(frame[:, tile.rows.core, tile.columns.core].std())

    cut: Array = np.empty((spec.channels, *blocks.sides), spec.input_dtype)
    plan = TilePlan(frame.shape[-2:], blocks.sides, blocks.geometry, spec.border)
    max(plan, key=contrast).cut(frame, cut)
    return cut


def _with_halo(core: Array, blocks: Blocks) -> Array:
    """Return the output of the package's graph, which has a halo of zeros and one channel of labels."""
    core = core[:, None] if blocks.spec.head == "labels" else core
    return np.pad(core, [(0, 0), (0, 0), *([(blocks.geometry.halo,) * 2] * 2)])


def _draw_cover(path: Path, blocks: Blocks, raw: Array, core: Array) -> None:
    """Draw the middle of the inner part of a test pair, input and labels side by side, into an image file."""
    labels = core[0] if blocks.spec.head == "labels" else best_class(core[0])
    halo = blocks.geometry.halo
    frame = raw[0][:, halo:, halo:]
    side = min(labels.shape)
    row, column = ((length - side) // 2 for length in labels.shape)
    middle = (..., slice(row, row + side), slice(column, column + side))
    halves = [overlay(frame[middle], shown[middle]) for shown in (np.zeros_like(labels), labels)]
    Image.fromarray(np.concatenate(halves, axis=1)).resize((2 * COVER_SIDE, COVER_SIDE)).save(path)


# The description: the content of bioimageio.yaml ----------------------------------------------------------------------


def _description(blocks: Blocks, metadata: Metadata, opset: int, largest: float) -> dict[str, Any]:
    """Return the content of bioimageio.yaml, without the format's version.

    Parameters
    ----------
    blocks
        Those of the packaged model.
    metadata
        Name, authors and so on.
    opset
        Opset of the ONNX file.
    largest
        Largest value of the test output.
    """
    spec = blocks.spec
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
        "inputs": [_input(blocks)],
        "outputs": [_output(blocks)],
        "weights": {"onnx": {"source": WEIGHTS, "opset_version": opset}},
        "config": {**_tolerance(spec, largest), KEY: json.loads(spec.to_json())},
    }


def _tolerance(spec: ModelSpec, largest: float) -> dict[str, Any]:
    """Return the tolerance of the test output, whose largest value is given: that of the format may be too large."""
    relative, per_million = FP32 if spec.precision == "fp32" else LOWER
    absolute = max(0.0, ABSOLUTE * largest)
    if spec.precision == "fp32":
        absolute = min(absolute, ABSOLUTE_FP32)
    tolerance = {
        "relative_tolerance": 0.0 if spec.head == "labels" else relative,
        "absolute_tolerance": 0.0 if spec.head == "labels" else absolute,
        "mismatched_elements_per_million": per_million,
    }
    return {"bioimageio": {"reproducibility_tolerance": [tolerance]}}


def _input(blocks: Blocks) -> dict[str, Any]:
    """Describe the input: a block.

    The graph of a U-Net takes any side, but with others than multiples of the grid blocks leave the lattice.
    """
    spec, sizes = blocks.spec, list[Any](blocks.sides)
    if blocks.of_any_side:
        sizes = [{"min": blocks.geometry.smallest, "step": spec.grid}] * 2
    return {
        "id": IMAGE,
        "description": f"a block of the frame, mirrored ({spec.border}) where it reaches past the frame's border",
        "axes": [
            {"type": "batch", "size": 1},
            {"type": "channel", "channel_names": [f"channel{index}" for index in range(spec.channels)]},
            *({"type": "space", "id": axis, "size": size} for axis, size in zip(("y", "x"), sizes, strict=True)),
        ],
        "data": {"type": spec.tensors().input.dtype.name},
        "pad": {"mode": spec.border},
        "preprocessing": [] if spec.takes_raw else _preprocessing(spec.normalisation),
        "test_tensor": {"source": TEST_INPUT},
    }


def _output(blocks: Blocks) -> dict[str, Any]:
    """Describe the output: as large as the block, of which the halo is no result.

    Labels have a channel too: bioimageio.core 0.11 leaves an output without one out of a result in blocks.
    """
    spec, halo = blocks.spec, blocks.geometry.halo
    cut = {"halo": halo} if halo else {}
    sides = [
        {"type": "space", "id": axis, "size": {"tensor_id": IMAGE, "axis_id": axis, "offset": 0}, **cut}
        for axis in ("y", "x")
    ]
    names = ["class"] if spec.head == "labels" else list(spec.classes)
    values: dict[str, dict[str, Any]] = {"labels": {"values": list(spec.classes)}, "probabilities": {"range": [0, 1]}}
    return {
        "id": SEGMENTATION,
        "description": f"{spec.head} of the block, zero in its halo of {halo} px a side",
        "axes": [{"type": "batch", "size": 1}, {"type": "channel", "channel_names": names}, *sides],
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

{channels} channel(s) in, {classes} out ({head}), computed in {precision}.{warning}

## Use

model.onnx takes blocks of a frame, whose result is what remains without {halo} px on each side (zeros). The stitched
result is that of one pass over the whole frame if

- the frame is mirrored ({border}) beyond its borders;
- {normalisation};
- the results of blocks begin at multiples of {grid} px, the last one too: frames with other sides are lengthened.

{sizes}

bioimageio.core does this with `pipeline.predict_sample_with_blocking(sample)` for frames whose sides are multiples of
{grid} px and at least those of a block. For a frame (C, H, W) of any size:

```python
from bioimageio.core import Sample, Tensor, create_prediction_pipeline, load_model_description

HALO, GRID, MODE = {halo}, {grid}, "{border}"
BLOCK = {{"y": {block[0]}, "x": {block[1]}}}


def segment(pipeline, frame):
    sides = dict(zip("yx", frame.shape[1:]))
    lengths = {{axis: max(-(-(side + HALO) // GRID) * GRID, BLOCK[axis]) for axis, side in sides.items()}}
    image = Tensor.from_numpy(frame[None], dims=("batch", "channel", "y", "x"))
    sample = Sample(members={{"image": image}}, stat={{}}, id=None)
    pipeline.apply_preprocessing(sample)  # before the frame is lengthened
    sample = sample.pad({{"image": {{axis: (0, lengths[axis] - sides[axis]) for axis in sides}}}}, MODE)
    blocks = {{"image": {{"batch": 1, "channel": len(frame), **BLOCK}}}}
    result = pipeline.predict_sample_with_fixed_blocking(sample, blocks, skip_preprocessing=True)
    return result.members["segmentation"].to_numpy()[0, :, : sides["y"], : sides["x"]]


with create_prediction_pipeline(load_model_description("PACKAGE.zip")) as pipeline:
    segmentation = segment(pipeline, frame)
```

Number objects in the stitched result: a step of post-processing sees one block. unetrt itself runs the file that this
package was made from.

## Validation

test_input.npy is a block of a real frame, test_output.npy the output of model.onnx for it in ONNX Runtime. To judge the
model on your own images, segment some that you have annotated and compare: `unetrt eval LABELS TRUTH`.

Trained: {training}.
"""
ANY_SIDE = "Sides of blocks are multiples of {grid} px, at least {least} px; {block[0]} x {block[1]} px is usual."
ONE_SIZE = "All blocks have {block[0]} x {block[1]} px (height x width)."
WHOLE_FRAME = "{mode} are measured on the whole frame: blocks that are normalised on their own disagree where they meet"
CONSTANT = "grey values are normalised with the constants of the description"
RAW = "grey values are raw, {dtype}: the network normalises them itself"


def _normalised(spec: ModelSpec) -> str:
    """Return one phrase about the normalisation."""
    if spec.takes_raw:
        return RAW.format(dtype=spec.input_dtype)
    if spec.normalisation.mode == "fixed":
        return CONSTANT
    return WHOLE_FRAME.format(mode="mean and deviation" if spec.normalisation.mode == "zscore" else "percentiles")


def _readme(blocks: Blocks, metadata: Metadata) -> str:
    """Return the README.md of a package."""
    spec = blocks.spec
    facts = [f"{key} {value}" for key, value in spec.training.items() if isinstance(value, int | float | str)]
    facts = [fact for fact in facts if fact.isprintable()]
    sizes = ANY_SIDE if blocks.of_any_side else ONE_SIZE
    return README_TEXT.format(
        name=metadata.name,
        channels=spec.channels,
        classes=", ".join(spec.classes),
        head=spec.head,
        precision=spec.precision,
        warning="" if spec.approximate is None else f" Note: {spec.approximate}.",
        halo=blocks.geometry.halo,
        grid=spec.grid,
        border=spec.border,
        block=blocks.sides,
        sizes=sizes.format(grid=spec.grid, least=blocks.geometry.smallest, block=blocks.sides),
        normalisation=_normalised(spec),
        training=", ".join(facts) or "not said",
    )
