"""Runs the parity gate on a written file: what the file says of itself is what is verified."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from unetrt.export.graph import describe
from unetrt.export.layers import first_explosion
from unetrt.export.parity import Parity, Thresholds, compare, require_same_labels
from unetrt.export.twins import in_float32, with_scores
from unetrt.runtime.errors import ParityError
from unetrt.runtime.onnx_file import read_spec
from unetrt.runtime.sessions import open_session
from unetrt.runtime.spec import ModelSpec
from unetrt.trainer.checkpoint import Checkpoint
from unetrt.trainer.torch_session import TorchSession

# What helps where a precision is the likely cause.
ADVICE = {
    "fp16": "; where an activation leaves the range of FP16, --precision bf16 or fp32 helps",
    "bf16": "; where 8 bits of each value are too few, --precision fp16 or fp32 helps",
    "int8": "; where 255 steps are too few, more --images to measure their size on, or --precision fp16 helps",
}


def verify(checkpoint: Checkpoint, path: Path, frames: Sequence[NDArray[Any]], thresholds: Thresholds) -> Parity:
    """Compare an exported file with its network in FP32.

    Where ONNX Runtime cannot compute the file (bfloat16), or it hides its scores (a labels head), copies of it are
    written beside it, in which nothing else differs.

    Parameters
    ----------
    checkpoint
        The network, with the normalisation that it was trained with.
    path
        The file, in a folder for temporary files.
    frames
        Raw frames (C, H, W), at least one.
    thresholds
        What it may differ by.

    Raises
    ------
    ParityError
        It differs by more; the message names each threshold missed and the first layer that goes wrong.
    """
    spec = read_spec(path)
    trained = _trained(checkpoint, spec)
    computable = _computable(path)
    scores = _scores(computable)
    with TorchSession(checkpoint.network(), trained) as reference, open_session(scores) as exported:
        parity = compare(reference, exported, frames)
        if misses := parity.misses(thresholds):
            cause = _cause(checkpoint, spec, scores, frames[parity.worst])
            raise ParityError(
                f"the {spec.precision} export does not answer as the network it was made from: "
                f"{'; '.join(misses)}; {cause}"
            )
        if scores != computable:
            with open_session(computable) as labels:
                require_same_labels(exported, labels, frames[0])
    return parity


def _trained(checkpoint: Checkpoint, spec: ModelSpec) -> ModelSpec:
    """Return how the network itself is fed, for the same tile and batch."""
    normalisation = checkpoint.normalisation
    return replace(spec, head="logits", precision="fp32", input_dtype="float32", normalisation=normalisation)


def _computable(path: Path) -> Path:
    """Return a file that ONNX Runtime can compute: the file itself, or one in float32 that rounds as bfloat16 does."""
    spec = read_spec(path)
    if spec.precision != "bf16":
        return path
    return _written(in_float32(onnx.load(path)), replace(spec, precision="fp32"), path.with_name("float32.onnx"))


def _scores(path: Path) -> Path:
    """Return a file that gives scores: the file itself, or one without the argmax of a labels head."""
    spec = read_spec(path)
    if spec.head != "labels":
        return path
    return _written(with_scores(onnx.load(path)), replace(spec, head="logits"), path.with_name("scores.onnx"))


def _written(model: onnx.ModelProto, spec: ModelSpec, path: Path) -> Path:
    describe(model, spec)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def _cause(checkpoint: Checkpoint, spec: ModelSpec, scores: Path, frame: NDArray[Any]) -> str:
    """Return what makes the export go wrong on a frame (C, H, W), and what helps."""
    trained = checkpoint.normalisation
    if spec.normalisation != trained:
        return (
            f"its normalisation is frozen, which fits frames that are lit alike; the network's own, {trained.mode}, is "
            "measured on each: export with --input float32 and without --normalisation"
        )
    export = replace(read_spec(scores), precision=spec.precision)
    layer = first_explosion(checkpoint.network(), _trained(checkpoint, spec), onnx.load(scores), export, frame)
    where = f"the first layer to go wrong is {layer}" if layer else "no layer stands out, the error grows evenly"
    return f"{where}{ADVICE.get(spec.precision, '')}"
