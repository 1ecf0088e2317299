"""Starting a training from a trained network: a checkpoint, the folder of a run, or a model file that unetrt exported.

Weights are read from an ONNX file without an ONNX library: each convolution has the name of its layer in the network
(`unetrt.export.graph`), and its second and third input are its weights and biases. Layers whose shape or meaning
differs in the new training (`contracting.0.0` with other channels, `classify` with other classes) are drawn anew.

>>> start = Pretrained.read("model.onnx")
>>> start.weights_for(channels=1, class_names=("background", "foreground"))
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetrt.runtime.engines import SUFFIXES
from unetrt.runtime.errors import ModelFileError, OptionError
from unetrt.runtime.model.byte_pairs import INITIALIZER, NODE, TENSOR_RAW
from unetrt.runtime.model.integrity import StoredTensor, external_files
from unetrt.runtime.model.onnx_file import (
    GRAPH,
    NODE_INPUT,
    NODE_NAME,
    SUFFIX,
    Message,
    WireError,
    bundled_advice,
    bundled_path,
    opened,
    read_spec,
    resolved,
)
from unetrt.runtime.model.safety import require_safe
from unetrt.runtime.pixels.normalisation import MODES, Mode
from unetrt.trainer.checkpoint import Checkpoint, load
from unetrt.trainer.unet import UNet

Weights = dict[str, NDArray[np.float32]]

# Layers that depend on the channels of the frames, and on the classes.
FIRST, LAST = "contracting.0.0.", "classify."
# Beginnings of the names of all layers with weights, see `unetrt.trainer.unet`.
LAYERS = ("contracting.", "up.", "expanding.", "classify")
# TensorProto.DataType -> dtype of its raw data; bfloat16 is the upper half of a float32.
BFLOAT16 = 16
STORED: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 10: np.dtype("<f2"), BFLOAT16: np.dtype("<u2")}


@dataclass(frozen=True)
class StartedFrom:
    """The origin of a training's initial weights, as its summary stores it.

    Attributes
    ----------
    name
        Name of a model that comes with unetrt, or of a file or folder.
    weights_sha256
        SHA-256 of the weights of the network that was trained there, in hexadecimal.
    """

    name: str
    weights_sha256: str


@dataclass(frozen=True)
class Pretrained:
    """A trained network that a training starts from.

    Attributes
    ----------
    origin
        Where it comes from.
    network
        Shape, weights in float32, class names and normalisation.
    precision
        Precision of the stored weights.
    """

    origin: StartedFrom
    network: Checkpoint = field(repr=False)
    precision: str = "fp32"

    @classmethod
    def read(cls, path: str | Path) -> "Pretrained":
        """Read a checkpoint, the folder of a run, an FP32, FP16 or bfloat16 model file, or a model's name.

        Raises
        ------
        ModelFileError
            There is no such file, it holds no U-Net that unetrt trained, or its weights are damaged.
        OptionError
            Its weights are quantised.
        """
        path = resolved(path)
        if path.suffix.lower() == SUFFIX:
            return _of_model_file(path)
        if path.suffix.lower() in SUFFIXES:
            raise ModelFileError(f"{path} is an engine: start from the ONNX file that it was built from")
        if not path.exists():
            raise ModelFileError(
                f"{path} does not exist: start from a model file, a checkpoint or the folder of a run{bundled_advice()}"
            )
        network = load(path)
        return cls(StartedFrom(path.resolve().name, network.weights_sha256()), network)

    def weights_for(self, channels: int, class_names: tuple[str, ...]) -> Weights:
        """Return the weights that a network for these channels and classes starts from, by name."""
        drawn = self._drawn_anew(channels, class_names)
        return {name: array for name, array in self.network.weights.items() if not name.startswith(drawn)}

    def describe(self, channels: int, class_names: tuple[str, ...]) -> str:
        """Return a line about the origin, and about layers that are drawn anew."""
        drawn, shape = self._drawn_anew(channels, class_names), self.network.shape
        differences = {
            FIRST: f"{shape.channels} channels there, {channels} here",
            LAST: f"{', '.join(self.network.class_names)} there, {', '.join(class_names)} here",
        }
        about = f"{self.origin.name} (depth {shape.depth}, base {shape.base})"
        if self.precision != "fp32":
            about += f", weights cast from {self.precision}"
        return about + "".join(f"; layer {name.rstrip('.')} drawn anew: {differences[name]}" for name in drawn)

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return options of a recipe, by name, with the depth, base and normalisation of this network.

        Raises
        ------
        OptionError
            Another depth or base is given.
        """
        shape = {"depth": self.network.shape.depth, "base": self.network.shape.base}
        for name, size in shape.items():
            if given.get(name) not in (None, size):
                raise OptionError(
                    f"--{name} {given[name]} does not fit {self.origin.name}, a network of depth {shape['depth']} and "
                    f"base {shape['base']}: use --{name} {size}, or leave it out"
                )
        return {**given, **shape, "normalisation": given.get("normalisation") or self._mode()}

    def _mode(self) -> Mode:
        """Return the mode of normalisation in the training; an export may have replaced it by constants."""
        recipe = self.network.training.get("recipe")
        trained = recipe.get("normalisation") if isinstance(recipe, dict) else None
        return trained if trained in MODES else self.network.normalisation.mode

    def _drawn_anew(self, channels: int, class_names: tuple[str, ...]) -> tuple[str, ...]:
        """Return prefixes of the names of weights that do not fit."""
        fits = {FIRST: channels == self.network.shape.channels, LAST: class_names == self.network.class_names}
        return tuple(name for name, fit in fits.items() if not fit)


def _of_model_file(path: Path) -> Pretrained:
    spec = read_spec(path)
    name = path.stem if path == bundled_path(path.stem) else path.name
    if spec.precision == "int8":
        raise OptionError(f"{path} holds weights in int8, which are too coarse to start from: give its checkpoint")
    if spec.shape is None:
        raise ModelFileError(f"{path} holds a network of another toolkit: start from one that `unetrt train` trained")
    weights = _read_weights(path)
    network = Checkpoint(
        spec.shape, weights, spec.classes, spec.normalisation, spec.annotation, spec.decoding, training=spec.training
    )
    _require_shapes(path, network)
    if spec.precision == "fp32" and network.weights_sha256() != spec.weights_sha256:
        raise ModelFileError(f"{path} holds other weights than its spec says (SHA-256): export or copy it again")
    return Pretrained(StartedFrom(name, spec.weights_sha256), network, spec.precision)


def _require_shapes(path: Path, network: Checkpoint) -> None:
    """Raise ModelFileError where weights are missing, or have other shapes than in a network of this shape."""
    try:
        with torch.device("meta"):  # shapes without memory: a spec may state a network far larger than its weights
            expected = {name: tuple(tensor.shape) for name, tensor in UNet(network.shape).state_dict().items()}
    except (RuntimeError, TypeError, OverflowError) as error:
        shape = network.shape
        raise ModelFileError(
            f"{path}: its spec states a network of depth {shape.depth} and base {shape.base}, larger than torch can "
            "describe: export it again"
        ) from error
    found = {name: array.shape for name, array in network.weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ModelFileError(
                f"{path} holds {name} of shape {found.get(name, 'none')}, and its spec needs "
                f"{expected.get(name, 'none')}: export it again"
            )


def _read_weights(path: Path) -> Weights:
    """Return the weights of the convolutions in a model file, by their names in the network."""
    require_safe(path)
    if external_files(path):
        raise ModelFileError(f"{path} keeps weights in other files: start from its checkpoint, or export it again")
    with opened(path) as model:
        graph = model.inside(model.only(GRAPH))
        tensors: dict[str, Message] = {}
        layers: dict[str, list[str]] = {}
        for part in graph.fields():
            if part.number == INITIALIZER:
                tensor = graph.inside(part)
                tensors[StoredTensor.read(tensor).name] = tensor
            elif part.number == NODE:
                name, inputs = _layer(graph.inside(part))
                layers[name] = inputs[1:]
        return {
            f"{layer}.{kind}": _values(tensors[tensor])
            for layer, inputs in layers.items()
            for kind, tensor in zip(("weight", "bias"), inputs, strict=False)
            if layer.startswith(LAYERS) and tensor in tensors
        }


def _layer(node: Message) -> tuple[str, list[str]]:
    """Return the name of a node and the names of its inputs."""
    fields = list(node.fields())
    name, inputs = (
        [node.read(part).decode(errors="replace") for part in fields if part.number == number]
        for number in (NODE_NAME, NODE_INPUT)
    )
    return "".join(name), inputs


def _values(tensor: Message) -> NDArray[np.float32]:
    """Return the values of a floating-point TensorProto as float32."""
    stored = StoredTensor.read(tensor)
    if stored.data_type not in STORED or stored.raw is None:
        raise WireError(f"its weights {stored.name} are not raw floating-point numbers")
    values: NDArray[Any] = np.frombuffer(tensor.read(tensor.only(TENSOR_RAW)), STORED[stored.data_type])
    if stored.data_type == BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    weights: NDArray[np.float32] = values.astype(np.float32).reshape(stored.dims)
    return weights
