"""The model spec: what a model file says about itself, so that nothing about it has to be guessed.

Types and ranges of what a spec holds as JSON: a file may come from anywhere, and JSON can say anything.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import ModelFileError, UnetrtError
from unetrt.runtime.geometry.geometry import Geometry
from unetrt.runtime.geometry.plan import BORDERS, Border, TilePlan
from unetrt.runtime.geometry.unet_shape import MAX_CLASSES, UNetShape
from unetrt.runtime.pixels.normalisation import Normalisation

Head = Literal["logits", "probabilities", "labels"]
HEADS: tuple[Head, ...] = get_args(Head)
Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
InputType = Literal["float32", "uint8", "uint16"]
INPUT_TYPES: tuple[InputType, ...] = get_args(InputType)

SCHEMA = 1
Annotation = Literal["instances", "classes"]
ANNOTATIONS: tuple[Annotation, ...] = get_args(Annotation)
KEY = "unetrt"  # in the ONNX file's metadata_props
INPUT, OUTPUT = "frame", "scores"  # names of the graph's input and output


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
        """Return how a graph's tensors differ from these, None where they are the same.

        `given` are the graph's inputs, then its outputs, as `str(Tensor)` writes them: name, shape, dtype.
        """
        found, expected = list(given), [str(tensor) for tensor in self]
        if found == expected:
            return None
        return f"its graph has {', '.join(found) or 'no tensors'}, its spec says {', '.join(expected)}"


@dataclass(frozen=True)
class ModelSpec:
    """All that a runtime must know of a model, JSON in the model file's metadata.

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
        What comes out: `logits` and `probabilities` are (batch, classes, h, w) float32, `labels` (batch, h, w) uint8.
    precision
        What the graph computes in.
    input_dtype
        The graph's input: `float32` takes normalised grey values, `uint8` and `uint16` take raw ones and normalise them
        in the graph, which only constants measured beforehand allow (mode `fixed`).
    border
        What lies beyond the frame.
    annotation
        What the network was trained on: `instances`, whose class map is to be taken apart into objects, or `classes`.
    separation_border
        Width in pixels of the background that training cut between touching objects; 0 for class maps.
    network
        Depth and base of a U-Net of ours; empty for others.
    training
        What is worth knowing of the training.
    weights_sha256
        Hash of the weights, in hexadecimal.
    written_by
        Version of unetrt that wrote the file.
    """

    tile: tuple[int, int]
    halo: int
    grid: int
    channels: int = 1
    classes: tuple[str, ...] = ("background", "foreground")
    normalisation: Normalisation = field(default_factory=Normalisation)
    batch: int = 1
    head: Head = "logits"
    precision: Precision = "fp32"
    input_dtype: InputType = "float32"
    border: Border = "reflect"
    annotation: Annotation = "instances"
    separation_border: int = 0
    network: Mapping[str, int] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    written_by: str = ""

    def __post_init__(self) -> None:
        for side in self.tile:
            self.geometry.require(side)
        known: tuple[tuple[str, str, tuple[str, ...]], ...] = (
            ("head", self.head, HEADS),
            ("precision", self.precision, PRECISIONS),
            ("input dtype", self.input_dtype, INPUT_TYPES),
            ("border", self.border, BORDERS),
            ("annotation", self.annotation, ANNOTATIONS),
        )
        for what, value, choices in known:
            if value not in choices:
                raise ModelFileError(f"{what} {value!r} is unknown here: {', '.join(choices)}")
        if (
            min(self.batch, self.channels) < 1
            or not 2 <= len(self.classes) <= MAX_CLASSES
            or self.separation_border < 0
        ):
            raise ModelFileError(
                f"batch {self.batch}, channels {self.channels}, {len(self.classes)} classes and a separation border of "
                f"{self.separation_border} px make no model"
            )
        for name in self.classes:
            if not is_text(name) or not name.strip():
                raise ModelFileError(f"class name {name!r} is none: use letters on one line")
        if self.takes_raw and self.normalisation.mode != "fixed":
            raise ModelFileError(
                f"input {self.input_dtype} normalises in the graph, which sees one tile, but normalisation "
                f"{self.normalisation.mode} is measured on the whole frame: use input float32, or normalisation fixed"
            )

    @property
    def takes_raw(self) -> bool:
        """Whether the graph takes raw grey values and normalises them itself."""
        return self.input_dtype != "float32"

    @property
    def geometry(self) -> Geometry:
        """Halo and grid; the tile itself says which remainder is legal."""
        return Geometry(self.halo, self.grid, self.tile[0] % self.grid)

    @property
    def shape(self) -> UNetShape | None:
        """The U-Net's numbers, or None for a network that is not ours."""
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

    def plan(self, size: tuple[int, int]) -> TilePlan:
        """Return the tile plan for frames of a height and width in pixels; raises TileError and FrameError."""
        return TilePlan(size, self.tile, self.geometry, self.border)

    def new_input(self) -> NDArray[Any]:
        """Return an array of zeros for the network's input; see `tensors`."""
        return self.tensors().input.zeros()

    def new_output(self) -> NDArray[Any]:
        """Return an array of zeros for the network's output; see `tensors`."""
        return self.tensors().output.zeros()

    def to_json(self) -> str:
        """Return the spec as JSON, the form it has in a model file."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields |= {"network": dict(self.network), "training": dict(self.training)}
        return json.dumps({"schema": SCHEMA, **fields, "normalisation": self.normalisation.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Return the spec that `to_json` wrote.

        Raises
        ------
        ModelFileError
            The text is not a spec, or of a schema that this version does not know.
        """
        try:
            stored = json.loads(text)
            schema = stored.pop("schema")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelFileError(f"the model's spec is not readable: {error!r}") from error
        if type(schema) is not int or schema != SCHEMA:
            wrote = " ".join(str(stored.get("written_by") or "another version").split())[:60]
            raise ModelFileError(f"the spec has schema {schema!r:.60}, written by {wrote}; this version reads {SCHEMA}")
        try:
            require_types(stored)
            pairs: dict[str, Any] = {"tile": tuple(stored.pop("tile")), "classes": tuple(stored.pop("classes"))}
            return cls(**pairs, normalisation=Normalisation.from_dict(stored.pop("normalisation")), **stored)
        except UnetrtError as error:
            raise ModelFileError(f"the model's spec makes no sense: {error}") from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelFileError(f"the model's spec is not whole: {error!r}") from error


# Above what any model has, and below what overflows an engine's sizes: pixels, channels, tiles.
MAX_COUNT = 1 << 20
# Of the deepest U-Net that fits a tile of MAX_COUNT pixels: its halo is 6 * 2^depth - 4.
MAX_DEPTH = 16
# float32's own limit: what is larger is infinite in the network.
MAX_FLOAT = 3.4028234e38
# Elements of an array that ONNX Runtime and TensorRT can count in 32 bits.
MAX_ELEMENTS = (1 << 31) - 1
# Characters of a wrong value that an error shows.
SHOWN = 60


class Rule(NamedTuple):
    """What a value must be: a test and, for the error, words."""

    holds: Callable[[Any], bool]
    words: str


def is_count(value: Any) -> bool:
    """Tell whether a value is an integer, no bool, from 0 to MAX_COUNT."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def is_text(value: Any) -> bool:
    """Tell whether a value is text that fits on a line of a terminal: no control characters, no half of a pair."""
    return isinstance(value, str) and value.isprintable()


def is_real(value: Any) -> bool:
    """Tell whether a value is a number, no bool, that float32 can hold: finite."""
    return type(value) in (int, float) and -MAX_FLOAT <= value <= MAX_FLOAT


def is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Tell whether a value is a list whose elements all pass a test."""
    return isinstance(value, list) and all(holds(element) for element in value)


def is_network(value: Any) -> bool:
    """Tell whether a value is empty or holds depth and base of a U-Net."""
    if not isinstance(value, dict) or not all(is_count(number) for number in value.values()):
        return False
    return not value or (1 <= value.get("depth", 0) <= MAX_DEPTH and value.get("base", 0) >= 1)


COUNT = Rule(is_count, f"a whole number from 0 to {MAX_COUNT}")
TEXT = Rule(is_text, "text on one line")
REAL = Rule(is_real, "a finite number")
REALS = Rule(lambda value: is_list(value, is_real), "a list of finite numbers")
SPEC: Mapping[str, Rule] = {
    "tile": Rule(lambda value: is_list(value, is_count) and len(value) == 2, "height and width in pixels"),
    "halo": COUNT,
    "grid": Rule(lambda value: is_count(value) and value > 0, f"a whole number from 1 to {MAX_COUNT}"),
    "channels": COUNT,
    "classes": Rule(lambda value: is_list(value, is_text), "a list of names"),
    "normalisation": Rule(lambda value: isinstance(value, dict), "a group of settings"),
    "batch": COUNT,
    **dict.fromkeys(("head", "precision", "input_dtype", "border", "annotation", "weights_sha256", "written_by"), TEXT),
    "separation_border": COUNT,
    "network": Rule(is_network, f"empty, or depth (1 to {MAX_DEPTH}) and base of a U-Net"),
    "training": Rule(lambda value: isinstance(value, dict), "a group of facts"),
}
NORMALISATION: Mapping[str, Rule] = {"mode": TEXT, "low": REAL, "high": REAL, "offset": REALS, "scale": REALS}


def require_types(stored: Mapping[str, Any]) -> None:
    """Raise ModelFileError where a field of a spec, as JSON gave it, has a wrong type or is out of all range.

    Fields that are missing or unknown are not its business.
    """
    require(stored, SPEC, "")
    normalisation = stored.get("normalisation", {})
    require(normalisation, NORMALISATION, "normalisation's ")
    tile, channels, classes = stored.get("tile", [1, 1]), stored.get("channels", 1), stored.get("classes", [])
    elements = math.prod((stored.get("batch", 1), max(channels, len(classes)), *tile))
    if elements > MAX_ELEMENTS:
        raise ModelFileError(f"tile, batch, channels and classes make {elements} values: {MAX_ELEMENTS} at most")
    constants = [len(normalisation[name]) for name in ("offset", "scale") if name in normalisation]
    if any(count != channels for count in constants):
        raise ModelFileError(f"normalisation has {constants} constants: offset and scale are {channels} each")


def require(stored: Mapping[str, Any], rules: Mapping[str, Rule], whose: str) -> None:
    """Raise ModelFileError where a field, as JSON gave it, breaks its rule; `whose` is put before its name."""
    for name, rule in rules.items():
        if name in stored and not rule.holds(stored[name]):
            given = repr(stored[name])
            raise ModelFileError(f"{whose}{name} is {given[:SHOWN]}: it must be {rule.words}")
