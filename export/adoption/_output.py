"""What the output of a foreign network is, judged by its values, and never by the operators that compute them.

A sigmoid may be written with exp or tanh, and a label map may be float. So the network runs on frames of noise of
several amplitudes and on constant frames (`frames`), and the range of each channel decides: `require_fit` returns the
kind of the output, and refuses a head that does not fit it. An output that is neither logits nor probabilities nor
labels is refused with what would be accepted. `require_repeatable` refuses a network that draws at random.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from unetrt.export.adoption._foreign import Foreign, Runner, Size, output_shape
from unetrt.runtime.errors import ModelFileError, OptionError, ParityError
from unetrt.runtime.model.spec import ModelSpec

Array = NDArray[Any]
# Labels, one channel of scores of the foreground, or one channel of scores for each class.
Kind = Literal["labels", "channel", "channels"]

SCORES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")

# Amplitudes of noise: as after normalisation, above it, and where only what is bounded stays small.
AMPLITUDES = (1, 20)
EXTREME = 1000
# Grey values of constant frames.
CONSTANTS = (0, 1, -1, 20, -20)
# Scores that sum to 1 this closely at every pixel are probabilities; the range of one channel may exceed 0 ... 1 by it.
SUMS_TO_ONE = 1e-2
# Range of a probability that an interpolation behind it may have widened: it cannot be told from logits.
NEARLY = (-0.25, 1.25)
# A tanh reaches this near to -1 and 1; values that come this near to 0 from below are bounded by it.
SATURATED, BOUNDED = 0.95, 1e-3

REMEDY = (
    "export the values before the last activation and use --head logits, or those of a sigmoid or soft-max and use "
)
REMEDY += "--head probabilities"


@dataclass(frozen=True)
class Values:
    """The range of a network's output over all frames.

    Attributes
    ----------
    low, high
        Least and largest value of each channel, (C,) float64.
    whole
        Whether all values are whole numbers.
    off
        Largest distance from 1 of the sum over the channels of a pixel.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    whole: bool
    off: float

    @property
    def varied(self) -> NDArray[np.bool_]:
        """Whether each channel has more than one value, (C,)."""
        return self.high > self.low

    @property
    def unit(self) -> NDArray[np.bool_]:
        """Whether each channel lies between 0 and 1, (C,)."""
        return (self.low >= -SUMS_TO_ONE) & (self.high <= 1 + SUMS_TO_ONE)

    @property
    def reach(self) -> str:
        """The range of all channels, for messages."""
        return f"from {self.low.min():.4g} to {self.high.max():.4g}"


def noise(spec: ModelSpec, size: Size) -> Iterator[Array]:
    """Yield frames of noise (C, *size) float32, with amplitudes as after normalisation and above."""
    random = np.random.default_rng(2015)
    shape = (spec.channels, *size)
    yield random.random(shape, np.float32)
    for amplitude in AMPLITUDES:
        yield amplitude * random.standard_normal(shape, np.float32)
    if spec.normalisation.mode == "fixed":
        # The largest float16 is 65504.
        for brightest in (255, 4095) if spec.precision == "fp16" else (255, 65535):
            frame = random.integers(0, brightest, shape, endpoint=True).astype(np.float32)
            yield spec.normalisation.measure(frame).apply(frame)


def frames(spec: ModelSpec, size: Size) -> Iterator[Array]:
    """Yield the frames (C, *size) float32 that show the range of an output: noise, stronger noise and constants."""
    yield from noise(spec, size)
    shape = (spec.channels, *size)
    yield EXTREME * np.random.default_rng(2016).standard_normal(shape, np.float32)
    for constant in CONSTANTS:
        yield np.full(shape, constant, np.float32)


def require_repeatable(foreign: Foreign, network: ModelProto, size: Size) -> None:
    """Run a network twice on each of two frames of noise, and compare the bits.

    Parameters
    ----------
    foreign
        The network.
    network
        Its static graph for one tile.
    size
        Height and width of the tile, in pixels.

    Raises
    ------
    ModelFileError
        They differ, or an operator draws at random, whether or not these frames show it.
    """
    drawing = _drawing(foreign.model.graph) or _drawing(network.graph)
    if drawing is None:
        run, random = Runner(network), np.random.default_rng(2017)
        for amplitude in AMPLITUDES:
            image = amplitude * random.standard_normal((1, foreign.channels, *size), np.float32)
            first, second = run(image)[0], run(image)[0]
            if first.tobytes() != second.tobytes():
                drawing = "an operator"
    if drawing is not None:
        raise ModelFileError(
            f"{foreign.name}: {drawing} draws at random, so the same frame gives another answer each time: export the "
            "network in evaluation mode (net.eval() in torch), without noise"
        )


def _drawing(graph: GraphProto) -> str | None:
    """Return the first operator that draws at random, as `Operator "name"`; dropout does so in training mode."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            stored.update((node.output[0], each.t) for each in node.attribute if each.name == "value")
        training = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in stored
        if node.op_type in RANDOM or (training and numpy_helper.to_array(stored[node.input[2]]).any()):
            return f"{node.op_type} {node.name!r}"
    return None


def require_fit(network: ModelProto, spec: ModelSpec) -> Kind:
    """Return the kind of a network's output.

    Parameters
    ----------
    network
        The static graph for one tile.
    spec
        The spec whose head and classes the output must fit.

    Raises
    ------
    OptionError
        The output does not fit the head or the classes, or is neither logits nor probabilities nor labels.
    ParityError
        The output is not finite for any frame.
    """
    shape, values = output_shape(network), _values(network, spec)
    channels = shape[1] if len(shape) == 4 else 1
    if network.graph.output[0].type.tensor_type.elem_type not in SCORES:
        if channels != 1:
            raise OptionError(
                f"the output has {channels} channels of whole numbers, neither scores nor labels: export scores of "
                "floats, or one channel of labels and use --head labels"
            )
        if spec.head != "labels":
            raise OptionError(f"the output, shape {shape}, has one label a pixel, no scores: use --head labels")
        return _labels(values, spec)
    if channels == 1 and spec.head == "labels" and values.whole and values.varied.any():
        return _labels(values, spec)
    _require_classes(channels, spec)
    if not values.varied.any():
        raise OptionError(
            f"the output is {values.high.max() + 0.0:.4g} for every image of noise, so its head cannot be told: export "
            "integer labels for --head labels, or trained scores that vary for --head logits or --head probabilities"
        )
    (_require_channel if channels == 1 else _require_channels)(values, spec)
    return "channel" if channels == 1 else "channels"


def _values(network: ModelProto, spec: ModelSpec) -> Values:
    """Return the range of the output over all frames that the network can compute."""
    run = Runner(network)
    answers = (run(frame[None])[0] for frame in frames(spec, spec.tile))
    # A soft-max written with exp overflows on extreme values.
    found = [_channels_first(answer) for answer in answers if np.isfinite(answer).all()]
    if not found:
        raise not_finite()
    return Values(
        np.min([answer.min(axis=1) for answer in found], axis=0),
        np.max([answer.max(axis=1) for answer in found], axis=0),
        all((answer == np.round(answer)).all() for answer in found),
        max(float(np.abs(answer.sum(axis=0) - 1).max()) for answer in found),
    )


def _channels_first(answer: Array) -> NDArray[np.float64]:
    """Return an output (1, C, h, w) or (1, h, w) as (C, h * w)."""
    return answer.reshape(answer.shape[1] if answer.ndim == 4 else 1, -1).astype(np.float64)


def not_finite() -> ParityError:
    """Return the error for a network whose output is not finite."""
    return ParityError(
        "the network's output for noise holds NaN or infinity, so its tiles cannot be compared: check its weights, "
        "and that --normalisation is the one it was trained with"
    )


def _labels(values: Values, spec: ModelSpec) -> Kind:
    low, high = int(values.low.min()), int(values.high.max())
    if low < 0 or high >= len(spec.classes):
        raise OptionError(
            f"the output has label {low if low < 0 else high}, {len(spec.classes)} classes are named: name all"
            f"{', and export labels from 0 on' if low < 0 else ''}"
        )
    return "labels"


def _require_classes(channels: int, spec: ModelSpec) -> None:
    """Raise OptionError unless there is a channel for each class, or one for the foreground of two."""
    classes = len(spec.classes)
    if channels != classes and (channels, classes) != (1, 2):
        wanted = "two, background first, for one" if channels == 1 else f"{channels}, background first"
        raise OptionError(f"{classes} classes are named, the output has {channels} channels: name {wanted}")


def _require_channel(values: Values, spec: ModelSpec) -> None:
    """Raise OptionError unless one channel of scores fits the head."""
    low, high = values.low.min(), values.high.max()
    why = f"the output reaches {values.reach}"
    if values.unit.all():
        fitting = "--head labels or --head probabilities" if values.whole else "--head probabilities"
        why = f"the values of the output all lie between 0 and 1, as probabilities: use {fitting}"
    elif NEARLY[0] <= low and high <= NEARLY[1]:
        raise OptionError(f"{why}, as probabilities that an interpolation widened: clip them to 0 to 1, or {REMEDY}")
    elif low >= 0:
        raise OptionError(f"{why} and is never negative, as distances or grey values: {REMEDY}")
    elif -BOUNDED <= high <= 0:
        raise OptionError(f"{why} and is never above 0, as logarithms of probabilities: {REMEDY}")
    elif -1 - SUMS_TO_ONE <= low <= -SATURATED and SATURATED <= high <= 1 + SUMS_TO_ONE:
        raise OptionError(f"the output lies between -1 and 1, as a tanh: {REMEDY}")
    else:
        why = f"{why}, as logits: use --head logits"
    fit = "probabilities" if values.unit.all() else "logits"
    if spec.head == "labels":
        raise OptionError(f"the output is one channel of scores, no labels: use --head {fit}")
    if spec.head != fit:
        raise OptionError(why)


def _require_channels(values: Values, spec: ModelSpec) -> None:
    """Raise OptionError unless a channel of scores for each class fits the head."""
    probable = values.off < SUMS_TO_ONE and values.low.min() >= 0
    count, mixed = len(values.low), values.unit & values.varied
    if not probable and values.unit.all():
        raise OptionError(
            f"each of its {count} channels lies between 0 and 1, and they do not sum to 1, as sigmoids: if the "
            "channels are classes that exclude each other, export the values before the sigmoid and use --head logits; "
            "if each is a mask, export the one channel of the foreground and use --head probabilities"
        )
    largest = np.maximum(-values.low, values.high)
    if not probable and mixed.any() and largest.max() > 2:
        bounded, other = int(np.argmax(mixed)), int(np.argmax(largest))
        raise OptionError(
            f"channel {bounded} lies between 0 and 1, channel {other} reaches from {values.low[other]:.4g} to "
            f"{values.high[other]:.4g}, as a probability beside distances: export the channel of the probability alone "
            "and use --head probabilities, or one logit for each class and use --head logits"
        )
    if not probable and values.low.min() >= 0:
        raise OptionError(f"the output reaches {values.reach} and is never negative, as distances: {REMEDY}")
    if probable and spec.head == "logits":
        raise OptionError("the output is probabilities, which sum to 1 at each pixel: use --head probabilities")
    if not probable and spec.head == "probabilities":
        raise OptionError(
            "the output is not probabilities: its classes do not sum to 1 at each pixel; use --head logits"
        )
