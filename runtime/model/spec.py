"""The model spec: the metadata that a runtime needs, stored as JSON in the model file.

`ModelSpec` holds geometry, normalisation, classes and numeric types. Everything else follows from it: the tensors of
the graph (`tensors`), and the tiles of a frame (`plan`). The annotations are the schema by which `from_json` validates
a file, which may come from anywhere: types, ranges and choices first, then the rules of `__post_init__`.

>>> spec = ModelSpec(tile=(572, 572), halo=92, grid=16, batch=2)
>>> spec.tensors().output.shape
(2, 2, 388, 388)
>>> len(spec.plan((2048, 2048)))
36
>>> ModelSpec.from_json(spec.to_json()) == spec
True
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from unetrt.runtime.errors import ModelFileError, OptionError, one_line
from unetrt.runtime.geometry.plan import BORDERS, Border, Geometry, TilePlan
from unetrt.runtime.geometry.unet_shape import MAX_CLASSES, UNetShape
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.records import parse, validated

Head = Literal["logits", "probabilities", "labels"]
HEADS: tuple[Head, ...] = get_args(Head)
Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
InputType = Literal["float32", "uint8", "uint16"]
INPUT_TYPES: tuple[InputType, ...] = get_args(InputType)
Annotation = Literal["instances", "classes"]
ANNOTATIONS: tuple[Annotation, ...] = get_args(Annotation)

Method = Literal["components", "cores"]
METHODS: tuple[Method, ...] = get_args(Method)
# Classes of the decoding `cores`.
BACKGROUND, RIM, CORE = range(3)
CORE_CLASSES = ("background", "rim", "core")
# Limits of what a model file may ask of a decoding, in pixels.
MAX_REACH, MAX_AREA = 1024, 1 << 20

# Schema 3: `verification`. Schema 2: `decoding`; schema 1 had only its reach, as `separation_border`.
SCHEMA = 3
KEY = "unetrt"  # in the ONNX file's metadata_props
INPUT, OUTPUT = "frame", "scores"  # names of the graph's input and output

# Upper limit of pixels, channels and tiles: above that of any model, and below what overflows an engine's sizes.
MAX_COUNT = 1 << 20
# Depth of the deepest U-Net that fits a tile of MAX_COUNT pixels: its halo is 6 * 2^depth - 4.
MAX_DEPTH = 16
# Elements of an array that ONNX Runtime and TensorRT can index with 32 bits.
MAX_ELEMENTS = (1 << 31) - 1

Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
PositiveCount = Annotated[int, Meta(ge=1, le=MAX_COUNT)]


class Tensor(NamedTuple):
    """The input or the output of a model's graph: name, shape (batch first) and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.name} {self.shape} {self.dtype}"

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def zeros(self) -> NDArray[Any]:
        """Return an array of zeros of this shape and dtype."""
        return np.zeros(self.shape, self.dtype)


class Tensors(NamedTuple):
    """Input and output of a model's graph, in this order."""

    input: Tensor
    output: Tensor

    @property
    def nbytes(self) -> int:
        """Size of both in bytes."""
        return self.input.nbytes + self.output.nbytes

    def mismatch(self, given: Iterable[str]) -> str | None:
        """Return a description of how a graph's tensors differ from these; None if they are equal.

        `given` are the graph's inputs, then its outputs, as `str(Tensor)` writes them: name, shape, dtype.
        """
        found, expected = list(given), [str(tensor) for tensor in self]
        if found == expected:
            return None
        return f"its graph has {', '.join(found) or 'no tensors'}, its spec says {', '.join(expected)}"


@dataclass(frozen=True)
class Decoding:
    """How a class map becomes objects.

    Attributes
    ----------
    method
        `components` or `cores`, see `unetrt.runtime.model.objects`.
    reach
        Largest distance in pixels over which an object grows. `cores`: Euclidean. `components`: along either axis, the
        width of the border that training cut between touching objects; 0 grows nothing.
    bridge
        Cores are widened by this number of pixels, within the foreground, before they are connected: a core that the
        network broke in two stays one object. Only for `cores`.
    smallest
        Minimum area of a core in pixels. An object of a smaller core joins the neighbour with which it shares the
        longest border, of those with larger cores; without such a neighbour it remains. Only for `cores`.
    area
        Minimum area of an object in pixels; smaller ones become background.

    Raises
    ------
    OptionError
        The method is unknown, or a number is out of range.
    """

    method: Method = "components"
    reach: Annotated[int, Meta(ge=0, le=MAX_REACH)] = 0
    bridge: Annotated[int, Meta(ge=0, le=MAX_REACH)] = 0
    smallest: Annotated[int, Meta(ge=0, le=MAX_AREA)] = 0
    area: Annotated[int, Meta(ge=0, le=MAX_AREA)] = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(f"decoding {self.method!r:.60} is unknown: use {' or '.join(METHODS)}")
        for name, most in (("reach", MAX_REACH), ("bridge", MAX_REACH), ("smallest", MAX_AREA), ("area", MAX_AREA)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise OptionError(f"{name} of a decoding must be 0 to {most} (got {value})")
        if self.method == "components" and (self.bridge or self.smallest):
            raise OptionError("bridge and smallest are for decoding by cores: use 0 for components")


@dataclass(frozen=True)
class Approximation:
    """Why tiles of a network do not equal one pass over the frame, and how much they differ.

    Attributes
    ----------
    cause
        What makes an output pixel depend on the whole frame.
    disagreement
        Share of the pixels, 0 to 1, whose class differed between tiles and one pass, over all frames measured.
    frames
        Number of frames measured.

    Raises
    ------
    OptionError
        A number is out of range, or the cause is not printable.
    """

    cause: str
    disagreement: Annotated[float, Meta(ge=0, le=1)]
    frames: Annotated[int, Meta(ge=1, le=MAX_COUNT)]

    def __post_init__(self) -> None:
        if not 0 <= self.disagreement <= 1 or not 1 <= self.frames <= MAX_COUNT:
            raise OptionError(
                f"disagreement must be 0 to 1 (got {self.disagreement!r:.60}), frames 1 to {MAX_COUNT} (got "
                f"{self.frames!r:.60})"
            )
        if not self.cause.strip() or not self.cause.isprintable():
            raise OptionError(f"invalid cause {self.cause!r:.60}: use printable characters on one line")

    def __str__(self) -> str:
        frames = "1 frame" if self.frames == 1 else f"{self.frames} frames"
        return (
            f"tiles are approximate, as {self.cause:.200}: {self.disagreement:.2%} of the pixels of {frames} had "
            "another class in tiles than in one pass"
        )


@dataclass(frozen=True)
class Verification:
    """The comparison that a model file passed when it was written.

    Attributes
    ----------
    reference
        What its output was compared with.
    measured
        The largest differences found, by name. An export has `max_error` and `mean_error` of a probability, `flips`,
        the share of pixels that change class, and `iou` of the worst class; an adopted network has `difference`, a
        share of the output's range.
    thresholds
        Limits of these by the same names: at most, and for `iou` at least.
    frames, pixels
        Number of frames and of pixels compared; 0 where noise was.
    frames_sha256
        SHA-256 of the raw frames (shape, dtype and values of each), in hexadecimal; empty for noise.
    date
        Day of the comparison in UTC, such as 2026-03-31.

    Raises
    ------
    ModelFileError
        A text does not fit on a terminal's line.
    """

    reference: str
    measured: Mapping[str, float]
    thresholds: Mapping[str, float]
    frames: Annotated[int, Meta(ge=0)]
    pixels: Annotated[int, Meta(ge=0)]
    frames_sha256: str
    date: str

    def __post_init__(self) -> None:
        _require_printable(self.reference, self.frames_sha256, self.date, *self.measured, *self.thresholds)


def _require_printable(*texts: str) -> None:
    for text in texts:
        if not text.isprintable():
            raise ModelFileError(f"invalid text {text!r:.60}: use printable characters on one line")


# Plans by frame size: thousands of frames share a few sizes.
_plan = lru_cache(maxsize=64)(TilePlan)


@dataclass(frozen=True)
class ModelSpec:
    """Description of a model, stored as JSON in its file.

    Attributes
    ----------
    tile
        Height and width of the network's input, in pixels.
    halo, grid
        Context on each side and period of the pooling lattice, in pixels.
    channels
        Channels of a frame.
    classes
        Class names, background first.
    normalisation
        How grey values become network input.
    batch
        Tiles in one pass.
    head
        The graph's output: `logits` and `probabilities` are (batch, classes, h, w) float32, `labels` (batch, h, w)
        uint8.
    precision
        Numeric type in which the graph computes.
    input_dtype
        The graph's input: `float32` is normalised grey values; `uint8` and `uint16` are raw ones, which the graph
        normalises. That requires constants measured beforehand (mode `fixed`).
    border
        How a frame continues beyond its edges.
    annotation
        Kind of annotation that the network was trained on: `instances`, for which the class map is split into objects,
        or `classes`.
    decoding
        How classes become objects.
    network
        `depth` and `base` of a U-Net that unetrt trained; empty for other networks.
    training
        Summary of the training.
    weights_sha256
        SHA-256 of the weights, in hexadecimal.
    written_by
        Version of unetrt that wrote the file.
    verification
        The comparison that the file passed; None for files of earlier versions. Another tile keeps that of the file it
        was made from, with which it agrees on a drawn frame.
    approximate
        Set if tiles do not equal one pass over the frame; None if they do. The file then has no such entry.
    """

    tile: tuple[Count, Count]
    halo: Count
    grid: PositiveCount
    channels: Count = 1
    classes: tuple[str, ...] = ("background", "foreground")
    normalisation: Normalisation = field(default_factory=Normalisation)
    batch: Count = 1
    head: Head = "logits"
    precision: Precision = "fp32"
    input_dtype: InputType = "float32"
    border: Border = "reflect"
    annotation: Annotation = "instances"
    decoding: Decoding = field(default_factory=Decoding)
    network: Mapping[str, Count] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    written_by: str = ""
    verification: Verification | None = None
    approximate: Approximation | None = None

    def __post_init__(self) -> None:
        for name, least in (("grid", 1), ("batch", 1), ("channels", 1)):
            if getattr(self, name) < least:
                raise ModelFileError(f"{name} must be at least {least} (got {getattr(self, name)})")
        for side in self.tile:
            self.geometry.require(side)
        self._require_choices()
        self._require_texts()
        if self.network and not (1 <= self.network.get("depth", 0) <= MAX_DEPTH and self.network.get("base", 0) >= 1):
            raise ModelFileError(
                f"network must be empty, or depth from 1 to {MAX_DEPTH} and base at least 1 (got {self.network!r:.60})"
            )
        self._require_decodable()
        self._require_constants()
        elements = self.batch * max(self.channels, len(self.classes)) * math.prod(self.tile)
        if elements > MAX_ELEMENTS:
            raise ModelFileError(
                f"tile, batch, channels and classes make {elements} values: {MAX_ELEMENTS} at most; use a smaller tile "
                "or batch"
            )

    def _require_choices(self) -> None:
        choices: Mapping[str, tuple[str, ...]] = {
            "head": HEADS,
            "precision": PRECISIONS,
            "input_dtype": INPUT_TYPES,
            "border": BORDERS,
            "annotation": ANNOTATIONS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ModelFileError(f"{name} {getattr(self, name)!r} is unknown: use {', '.join(known)}")

    def _require_texts(self) -> None:
        """Raise ModelFileError for class names that are missing, and for texts that do not fit on a terminal's line."""
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise ModelFileError(f"classes must be 2 to {MAX_CLASSES}, background first (got {len(self.classes)})")
        for name in self.classes:
            if not name.strip() or not name.isprintable():
                raise ModelFileError(f"invalid class name {name!r:.60}: use printable characters on one line")
        _require_printable(self.weights_sha256, self.written_by)

    def _require_decodable(self) -> None:
        if self.decoding.method == "cores" and len(self.classes) != len(CORE_CLASSES):
            raise ModelFileError(
                f"decoding cores needs the {len(CORE_CLASSES)} classes {', '.join(CORE_CLASSES)} "
                f"(got {len(self.classes)}): use decoding components"
            )

    def _require_constants(self) -> None:
        """Raise ModelFileError if the normalisation does not match the channels or the input."""
        for name in ("offset", "scale"):
            constants = getattr(self.normalisation, name)
            if constants and len(constants) != self.channels:
                raise ModelFileError(
                    f"normalisation needs one {name} per channel: {self.channels} (got {len(constants)})"
                )
        if self.takes_raw and self.normalisation.mode != "fixed":
            raise ModelFileError(
                f"input {self.input_dtype} is normalised in the graph, which sees one tile, but normalisation "
                f"{self.normalisation.mode} is measured on the whole frame: use input float32, or normalisation fixed"
            )

    @property
    def takes_raw(self) -> bool:
        """Whether the graph takes raw grey values and normalises them."""
        return self.input_dtype != "float32"

    @property
    def geometry(self) -> Geometry:
        """Halo, grid, and the remainder of legal sides, which follows from the tile."""
        return Geometry(self.halo, self.grid, self.tile[0] % self.grid)

    @property
    def shape(self) -> UNetShape | None:
        """Shape of a U-Net that unetrt trained, None for other networks."""
        if not self.network:
            return None
        return UNetShape(self.network["depth"], self.network["base"], self.channels, len(self.classes))

    @property
    def core(self) -> tuple[int, int]:
        """Height and width of the network's output, in pixels."""
        return self.geometry.core(self.tile[0]), self.geometry.core(self.tile[1])

    def tensors(self) -> Tensors:
        """Return the graph's input and output: names, shapes and dtypes that a model file must have.

        The input is (batch, C, h, w) of the input dtype. The output is (batch, h, w) uint8 for head `labels`, else
        (batch, classes, h, w) float32, where h and w are those of the core.
        """
        labels = self.head == "labels"
        scores = (self.batch, *self.core) if labels else (self.batch, len(self.classes), *self.core)
        return Tensors(
            Tensor(INPUT, (self.batch, self.channels, *self.tile), np.dtype(self.input_dtype)),
            Tensor(OUTPUT, scores, np.dtype(np.uint8 if labels else np.float32)),
        )

    def plan(self, size: tuple[int, ...]) -> TilePlan:
        """Return the tile plan for frames of size (height, width) in pixels; raises TileError and FrameError."""
        height, width = size
        return _plan((height, width), self.tile, self.geometry, self.border)

    def new_input(self) -> NDArray[Any]:
        """Return an array of zeros for the network's input; see `tensors`."""
        return self.tensors().input.zeros()

    def new_output(self) -> NDArray[Any]:
        """Return an array of zeros for the network's output; see `tensors`."""
        return self.tensors().output.zeros()

    def to_json(self) -> str:
        """Return the spec as JSON, as it is stored in a model file."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields |= {"network": dict(self.network), "training": dict(self.training)}
        if (approximate := fields.pop("approximate")) is not None:
            fields["approximate"] = asdict(approximate)
        return json.dumps(
            {
                "schema": SCHEMA,
                **fields,
                "decoding": asdict(self.decoding),
                "normalisation": self.normalisation.to_dict(),
                "verification": asdict(self.verification) if self.verification else None,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Return the spec that `to_json` wrote.

        Raises
        ------
        ModelFileError
            The text is not a valid spec, or its schema is unknown to this version.
        """
        what = "the model's spec"
        stored = parse(text, what)
        if "schema" not in stored:
            raise ModelFileError(f"{what} is invalid: missing schema; export the model again")
        schema = stored.pop("schema")
        if schema == 1 and type(schema) is int:
            stored["decoding"] = {"method": "components", "reach": stored.pop("separation_border", 0)}
        elif type(schema) is not int or not 2 <= schema <= SCHEMA:
            wrote = one_line(str(stored.get("written_by") or "another version"), 60)
            raise ModelFileError(
                f"{what} has schema {schema!r:.60}, written by {wrote}; this version reads 1 to {SCHEMA}: install that "
                "version, or export the model again"
            )
        for name, part in (("classes", stored), ("normalisation", stored), ("mode", stored.get("normalisation"))):
            if isinstance(part, dict) and name not in part:  # no defaults in a file
                raise ModelFileError(f"{what} is invalid: missing {name}; export the model again")
        return validated(stored, cls, what)
