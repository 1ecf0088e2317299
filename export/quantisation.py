"""INT8: pairs of QuantizeLinear and DequantizeLinear around the convolutions, by ONNX Runtime's quantiser.

Symmetric, weights per output channel: what TensorRT computes in INT8. The up-convolutions, a thirtieth of the
arithmetic, stay in FP32, and so does the last layer, whose output decides.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from unetrt.export.tiles import tile_batches
from unetrt.runtime.model.spec import INPUT, ModelSpec

# Layers that keep FP32 although they are convolutions.
KEPT = ("classify",)

# The share of an activation's values, in percent, that its range must hold. The full range wasted steps on a few bright
# pixels: 0.6 % of the pixels of drawn cells changed class with it, 0.4 % with this.
PERCENTILE = 99.99

# Batches that ranges are measured on, at most, spread over the frames' tiles: they settle long before.
CALIBRATION_BATCHES = 32


def quantised(model: onnx.ModelProto, spec: ModelSpec, frames: Sequence[NDArray[Any]]) -> onnx.ModelProto:
    """Return the INT8 model of an FP32 one.

    Parameters
    ----------
    model
        An FP32 graph of ours.
    spec
        Its spec.
    frames
        Raw frames (C, H, W), from whose tiles the ranges of the activations are measured.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with TemporaryDirectory(prefix="unetrt-") as folder, _quiet():
        # Files, not the model itself: of one in memory, older ONNX Runtimes write copies that onnx does not read.
        plain, out = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, plain)
        quantize_static(
            plain,
            out,
            _reader(spread(list(tile_batches(spec, frames)), CALIBRATION_BATCHES)),
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
                "CalibStridedMinMax": 1,  # one batch at a time: it holds every activation of what it is given
            },
        )
        return onnx.load(out)


def spread(batches: list[NDArray[Any]], count: int) -> list[NDArray[Any]]:
    """Return `count` of the batches, evenly spaced, or all where there are fewer."""
    chosen = np.linspace(0, len(batches) - 1, min(count, len(batches))).round().astype(int)
    return [batches[index] for index in chosen]


def _reader(batches: list[NDArray[Any]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._left = iter(batches[start_index:end_index])

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self._left, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the user what the quantiser prints, and its advice to fuse layers, which would take their names."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        root.setLevel(level)
