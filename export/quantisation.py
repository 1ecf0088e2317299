"""INT8 quantisation with ONNX Runtime's quantiser: QuantizeLinear and DequantizeLinear around the convolutions.

Symmetric, with one scale for each output channel of the weights, as TensorRT computes in INT8. The up-convolutions (a
thirtieth of the arithmetic) and the last layer, which decides the class, stay in FP32.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from unetrt.export._inspection import tile_batches
from unetrt.runtime.files.atomic import scratch_folder
from unetrt.runtime.model.spec import INPUT, ModelSpec

# Convolutions that stay in FP32.
KEPT = ("classify",)
# Share of an activation's values, in percent, that its range must hold. The full range spends steps on a few bright
# pixels: with it 0.6 % of the pixels of drawn cells change class, with this 0.4 %.
PERCENTILE = 99.99
# Most batches that ranges are measured on, evenly spaced over the frames' tiles; ranges settle with far fewer.
CALIBRATION_BATCHES = 32


def quantised(model: onnx.ModelProto, spec: ModelSpec, frames: Sequence[NDArray[Any]]) -> onnx.ModelProto:
    """Return the INT8 model of an FP32 model that `build_graph` made.

    Parameters
    ----------
    model
        The FP32 model.
    spec
        Its spec.
    frames
        Raw frames (C, H, W), on whose tiles the ranges of the activations are measured.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with scratch_folder() as folder, _quiet():
        # Files, because older ONNX Runtimes write copies of a model in memory that onnx does not read.
        plain, out = folder / "fp32.onnx", folder / "int8.onnx"
        onnx.save(model, plain)
        quantize_static(
            plain,
            out,
            CalibrationBatches(spread(list(tile_batches(spec, frames)), CALIBRATION_BATCHES)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=list(KEPT),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "CalibPercentile": PERCENTILE,
                "CalibStridedMinMax": 1,  # one batch at a time, since all its activations are kept
            },
        )
        return onnx.load(out)


def spread(batches: list[NDArray[Any]], count: int) -> list[NDArray[Any]]:
    """Return `count` evenly spaced batches, or all if there are fewer."""
    chosen = np.linspace(0, len(batches) - 1, min(count, len(batches))).round().astype(int)
    return [batches[index] for index in chosen]


class CalibrationBatches:
    """Batches as ONNX Runtime's quantiser reads them; the contract is `onnxruntime.quantization.CalibrationDataReader`.

    Parameters
    ----------
    batches
        Inputs of the model, (batch, C, h, w) of its input dtype.
    """

    def __init__(self, batches: Sequence[NDArray[Any]]) -> None:
        self._batches = batches
        self._remaining = iter(batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Select the batches that `get_next` returns."""
        self._remaining = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch by input name, or None after the last."""
        batch = next(self._remaining, None)
        return None if batch is None else {INPUT: batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the quantiser prints, such as its advice to fuse layers, which would lose their names."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        root.setLevel(level)
