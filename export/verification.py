"""Runs the parity gate on a written file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from numpy.typing import NDArray

from unetrt.export.consistency import require_same_labels, require_same_slots
from unetrt.export.graph import describe
from unetrt.export.layers import first_explosion
from unetrt.export.parity import Parity, Thresholds, compare
from unetrt.export.tiles import tile_batches
from unetrt.export.twins import in_float32, with_scores
from unetrt.runtime.errors import ParityError
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.sessions import open_session
from unetrt.trainer.checkpoint import Checkpoint
from unetrt.trainer.torch_session import TorchSession

# What ONNX Runtime's arithmetic may differ by from place to place of a batch, as a share of the largest value.
SAME = 1e-3
# What computes the exported file here, whatever else is installed: the same on all machines.
GATE = "onnxruntime"
# What helps where a precision is the likely cause.
ADVICE = {
    "fp16": "; where an activation leaves the range of FP16, --precision bf16 or fp32 helps",
    "bf16": "; where 8 bits of each value are too few, --precision fp16 or fp32 helps",
    "int8": "; where 255 steps are too few, more --images to measure their size on, or --precision fp16 helps",
}


def verify(
    checkpoint: Checkpoint,
    path: Path,
    spec: ModelSpec,
    frames: Sequence[NDArray[Any]],
    thresholds: Thresholds,
) -> Parity:
    """Compare an exported file with its network in FP32.

    What is compared is the file's graph: where it is in FP16 or bfloat16, in float32 with every operator's result
    rounded; where it has a labels head, the scores before it, as an argmax hides NaN. Then the file itself, but for
    one in bfloat16, must give the same classes.

    Parameters
    ----------
    checkpoint
        The network, with the normalisation that it was trained with.
    path
        The file, in a folder for temporary files.
    spec
        What the file must say of itself.
    frames
        Raw frames (C, H, W), at least one.
    thresholds
        What it may differ by.

    Raises
    ------
    ParityError
        It differs by more; the message names each threshold missed and the first layer that goes wrong.
    """
    if read_spec(path) != spec:
        raise ParityError("the file does not say of itself what it was exported with")
    with TemporaryDirectory(dir=path.parent) as copies:
        computable = _computable(path, Path(copies))
        scores = _scores(computable, Path(copies))
        parity = _compare(checkpoint, spec, scores, frames, thresholds)
        with open_session(scores, GATE) as exported:
            for other, most in _others(path, computable, scores, thresholds):
                with open_session(other, GATE) as labels:
                    require_same_labels(exported, labels, frames, most)
            require_same_slots(exported, next(tile_batches(spec, frames[:1]))[0], SAME)
    return parity


def _compare(
    checkpoint: Checkpoint, spec: ModelSpec, scores: Path, frames: Sequence[NDArray[Any]], thresholds: Thresholds
) -> Parity:
    """Hold a file that gives scores against the network; raises ParityError as `verify` does."""
    network = TorchSession(checkpoint.network(), _trained(checkpoint, spec))
    with network as reference, open_session(scores, GATE) as exported:
        parity = compare(reference, exported, frames)
    if misses := parity.misses(thresholds):
        cause = _cause(checkpoint, spec, scores, frames[parity.worst])
        missed = "; ".join(misses)
        raise ParityError(
            f"the {spec.precision} export does not answer as the network it was made from: {missed}; {cause}"
        )
    return parity


def _trained(checkpoint: Checkpoint, spec: ModelSpec) -> ModelSpec:
    """Return how the network itself is fed, for the same tile and batch."""
    normalisation = checkpoint.normalisation
    return replace(spec, head="logits", precision="fp32", input_dtype="float32", normalisation=normalisation)


def _others(path: Path, computable: Path, scores: Path, thresholds: Thresholds) -> list[tuple[Path, float]]:
    """Return what must give the same classes as the scores that were compared, and how many pixels may differ."""
    others = [] if computable == scores else [(computable, 0.0)]
    if path not in (computable, scores) and read_spec(path).precision != "bf16":
        others.append((path, thresholds.flips))
    return others


def _computable(path: Path, copies: Path) -> Path:
    """Return a file that ONNX Runtime computes as it is meant: the file itself, or one in float32 that rounds."""
    spec = read_spec(path)
    if spec.precision not in ("fp16", "bf16"):
        return path
    return _copied(in_float32(onnx.load(path)), replace(spec, precision="fp32"), copies / "float32.onnx")


def _scores(path: Path, copies: Path) -> Path:
    """Return a file that gives scores: the file itself, or one without the argmax of a labels head."""
    spec = read_spec(path)
    if spec.head != "labels":
        return path
    return _copied(with_scores(onnx.load(path)), replace(spec, head="logits"), copies / "scores.onnx")


def _copied(model: onnx.ModelProto, spec: ModelSpec, path: Path) -> Path:
    describe(model, spec)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def _cause(checkpoint: Checkpoint, spec: ModelSpec, scores: Path, frame: NDArray[Any]) -> str:
    """Return what makes the export go wrong on a frame (C, H, W), and what helps."""
    export = replace(read_spec(scores), precision=spec.precision)
    fed_alike = replace(_trained(checkpoint, spec), normalisation=spec.normalisation)
    layer = first_explosion(checkpoint.network(), fed_alike, onnx.load(scores), export, frame)
    if layer is not None:
        return f"the first layer to go wrong is {layer}{ADVICE.get(spec.precision, '')}"
    if spec.normalisation == checkpoint.normalisation:
        return f"no layer stands out, the error grows evenly{ADVICE.get(spec.precision, '')}"
    return (
        "its normalisation is frozen, which fits frames that are lit alike; the network's own, "
        f"{checkpoint.normalisation.mode}, is measured on each: export with --input float32 and without --normalisation"
    )
