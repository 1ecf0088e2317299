"""The parity gate: a file is written only if its output on real frames matches that of its network.

`verify` runs the checkpoint's network in torch (FP32) and the exported graph in ONNX Runtime on the same raw frames,
and compares probabilities, classes and IoU with the `Thresholds` of the precision. What is compared is:

- the file's own graph; for FP16 and bfloat16 a copy in float32 that rounds after each operator;
- the scores; for a labels head, the input of its argmax, which would hide NaN. The file's labels must then be the
  best classes of these scores;
- the outputs for one tile in every slot of a batch, which must agree.

A refusal lists each threshold that is missed, names the first layer whose output is wrong, and proposes a remedy.

Thresholds can be changed up to their `CEILINGS`, and frames on which the network finds a single class are refused: with
both, a constant output never passes. What was measured, on which frames and with which thresholds, goes into the file
(`verification_of`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from unetrt.export._inspection import LayerError, first_explosion, in_float32, tile_batches, with_scores
from unetrt.export.onnx_model import describe, today
from unetrt.runtime.errors import OptionError, ParityError
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import ModelSpec, Precision, Verification
from unetrt.runtime.pixels.frames import as_image
from unetrt.runtime.pixels.scores import best_class, softmax
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import Session, open_session
from unetrt.trainer.checkpoint import Checkpoint
from unetrt.trainer.torch_session import TorchSession

Array = NDArray[Any]

# The backend that runs the exported file: the same on every machine, regardless of which others are installed.
BACKEND = "onnxruntime"
# Difference between the slots of a batch that ONNX Runtime's arithmetic may cause, as a share of the largest value.
SLOT_TOLERANCE = 1e-3
# Remedies if the precision is the likely cause.
ADVICE = {
    "fp16": "; if an activation exceeds the range of FP16, use --precision bf16 or fp32",
    "bf16": "; if 8 bits of significand are too few, use --precision fp16 or fp32",
    "int8": "; if 255 quantisation steps are too coarse, measure the ranges on more --images, or use --precision fp16",
}


@dataclass(frozen=True)
class Thresholds:
    """Limits on the difference between an export and its network.

    Attributes
    ----------
    error
        Largest difference of a probability.
    flips
        Largest share of pixels that change class.
    iou
        Least intersection over union of the worst class.
    """

    error: float
    flips: float
    iou: float

    @classmethod
    def of(
        cls,
        precision: Precision,
        max_error: float | None = None,
        max_flips: float | None = None,
        min_iou: float | None = None,
    ) -> "Thresholds":
        """Return the default thresholds of a precision, replaced by those that are given.

        Raises
        ------
        OptionError
            One exceeds its ceiling.
        """
        given = {"error": max_error, "flips": max_flips, "iou": min_iou}
        chosen = replace(DEFAULTS[precision], **{name: value for name, value in given.items() if value is not None})
        chosen.require_for(precision)
        return chosen

    def require_for(self, precision: Precision) -> None:
        """Raise OptionError where a threshold exceeds its ceiling for a precision."""
        ceilings = CEILINGS[precision]
        for option, value, least, most in (
            ("max-error", self.error, 0, ceilings.error),
            ("max-flips", self.flips, 0, ceilings.flips),
            ("min-iou", self.iou, ceilings.iou, 1),
        ):
            if not least <= value <= most:
                raise OptionError(
                    f"--{option} {value:g} is not a threshold of {precision}: use a number from {least:g} to {most:g}"
                )


# FP32 exports differ by summation order alone. FP16 keeps 11 bits of each activation, bfloat16 8: after twenty layers
# the error is about 1 % and 10 %. INT8 has 255 steps for all values of a layer: where two classes are about equally
# likely, a probability can change by any amount, so that flips and IoU decide.
DEFAULTS: dict[Precision, Thresholds] = {
    "fp32": Thresholds(error=1e-3, flips=1e-4, iou=0.999),
    "fp16": Thresholds(error=5e-2, flips=2e-3, iou=0.99),
    "bf16": Thresholds(error=0.3, flips=1e-2, iou=0.97),
    "int8": Thresholds(error=0.8, flips=2e-2, iou=0.95),
}
# The laxest thresholds that may be chosen: the defaults of the next coarser precision, since an export that needs more
# has not the precision that its file states. INT8 has no coarser one: about twice its own shares, and 0.9, beyond which
# the network is sure of one class and the export of another.
CEILINGS: dict[Precision, Thresholds] = {
    "fp32": DEFAULTS["fp16"],
    "fp16": DEFAULTS["bf16"],
    "bf16": DEFAULTS["int8"],
    "int8": Thresholds(error=0.9, flips=5e-2, iou=0.9),
}


@dataclass(frozen=True)
class Parity:
    """The difference between an export and its network.

    Attributes
    ----------
    frames, pixels
        Number of frames and of pixels compared.
    max_error, mean_error
        Absolute difference of the probabilities; NaN where a value is not finite.
    flips
        Share of pixels that change class.
    iou
        Intersection over union of the worst class present.
    not_finite
        Number of pixels at which the export's output is NaN or infinite.
    worst
        Index of the frame with the largest error.
    classes
        Number of classes that the network finds.
    """

    frames: int
    pixels: int
    max_error: float
    mean_error: float
    flips: float
    iou: float
    not_finite: int = 0
    worst: int = 0
    classes: int = 2

    def __str__(self) -> str:
        errors = f"max error {self.max_error:.1e}, mean {self.mean_error:.1e}"
        return f"{errors}, {self.flips:.4%} of {self.pixels} pixels change class, IoU {self.iou:.5f}"

    def misses(self, thresholds: Thresholds) -> list[str]:
        """Return one phrase for each threshold that is missed, or one about values that are not finite."""
        if self.not_finite:
            return [f"its output is NaN or infinite at {self.not_finite} of {self.pixels} pixels"]
        misses = []
        if not self.max_error <= thresholds.error:
            misses.append(f"a probability differs by {self.max_error:.2g} (at most {thresholds.error:g})")
        if not self.flips <= thresholds.flips:
            misses.append(f"{self.flips:.2%} of the pixels change class (at most {thresholds.flips:.2g})")
        if not self.iou >= thresholds.iou:
            misses.append(f"the worst class has IoU {self.iou:.4f} (at least {thresholds.iou:g})")
        return misses


def verify(
    checkpoint: Checkpoint, path: Path, spec: ModelSpec, frames: Sequence[Array], thresholds: Thresholds
) -> Parity:
    """Compare an exported file with its network in FP32.

    Parameters
    ----------
    checkpoint
        The network, with the normalisation that it was trained with.
    path
        The file, in a folder that may hold temporary files.
    spec
        The spec that the file must contain.
    frames
        Raw frames (C, H, W), at least one.
    thresholds
        Limits on the difference.

    Raises
    ------
    ParityError
        A threshold is missed, the file's spec, classes or batch slots are inconsistent, or a value is not finite.
    OptionError
        A threshold exceeds its ceiling, or the network finds a single class on the frames.
    """
    thresholds.require_for(spec.precision)
    _require_spec(read_spec(path), spec)
    with TemporaryDirectory(dir=path.parent) as folder:
        computable, scores = _copies(path, spec, Path(folder))
        # The network's input: always normalised frames, possibly with another normalisation than the export's.
        trained = replace(
            spec, head="logits", precision="fp32", input_dtype="float32", normalisation=checkpoint.normalisation
        )
        with open_session(scores, BACKEND) as exported:
            with TorchSession(checkpoint.network(), trained) as network:
                parity = compare(network, exported, frames)
            if misses := parity.misses(thresholds):
                fed_alike = replace(trained, normalisation=spec.normalisation)
                worst = frames[parity.worst]
                layer = first_explosion(checkpoint.network(), fed_alike, onnx.load(scores), spec, worst)
                raise ParityError(
                    f"the output of the {spec.precision} export differs from that of its network: "
                    f"{'; '.join(misses)}; {_cause(layer, checkpoint, spec)}"
                )
            if parity.classes < 2:
                raise OptionError(
                    "the network finds a single class on these frames, which verifies nothing: give frames that show "
                    "more with --images, or train it longer"
                )
            if scores != computable:
                _require_same_labels(exported, computable, frames, 0.0)
            if computable != path and spec.precision != "bf16":  # ONNX Runtime has no bfloat16 convolutions
                _require_same_labels(exported, path, frames, thresholds.flips)
            if spec.batch > 1:
                _require_same_slots(exported, next(tile_batches(spec, frames[:1]))[0])
    return parity


def verification_of(parity: Parity, thresholds: Thresholds, frames: Sequence[Array]) -> Verification:
    """Return the record of a comparison that `verify` made today on raw frames (C, H, W), as the file stores it."""
    digest = sha256()
    for frame in frames:
        digest.update(f"{frame.shape} {frame.dtype}".encode())
        digest.update(np.ascontiguousarray(frame).data)
    measured = {name: getattr(parity, name) for name in ("max_error", "mean_error", "flips", "iou")}
    limits = asdict(thresholds)
    return Verification(
        reference="the network in FP32",
        measured=measured,
        thresholds={"max_error": limits.pop("error"), **limits},
        frames=parity.frames,
        pixels=parity.pixels,
        frames_sha256=digest.hexdigest(),
        date=today(),
    )


def _copies(path: Path, spec: ModelSpec, folder: Path) -> tuple[Path, Path]:
    """Return a file with the numerics of a GPU in ONNX Runtime, and one whose output is its scores; may be `path`."""
    computable = path
    if spec.precision in ("fp16", "bf16"):
        spec, computable = replace(spec, precision="fp32"), folder / "float32.onnx"
        _save(in_float32(onnx.load(path)), spec, computable)
    scores = computable
    if spec.head == "labels":
        scores = folder / "scores.onnx"
        _save(with_scores(onnx.load(computable)), replace(spec, head="logits"), scores)
    return computable, scores


def _save(model: onnx.ModelProto, spec: ModelSpec, path: Path) -> None:
    describe(model, spec)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _cause(layer: LayerError | None, checkpoint: Checkpoint, spec: ModelSpec) -> str:
    """Return the likely cause of a failure, and a remedy."""
    advice = ADVICE.get(spec.precision, "")
    if layer is not None:
        return f"the first wrong layer is {layer}{advice}"
    if spec.normalisation == checkpoint.normalisation:
        return f"no single layer causes the error, which grows gradually{advice}"
    return (
        "its normalisation is frozen, which suits frames of equal illumination; that of the network, "
        f"{checkpoint.normalisation.mode}, is measured on each frame: export with --input float32 and without "
        "--normalisation"
    )


def compare(reference: Session, exported: Session, frames: Sequence[Array]) -> Parity:
    """Run frames through two sessions and compare the probabilities.

    Parameters
    ----------
    reference
        The network in FP32, with a head of logits.
    exported
        The export, with the same tile and batch and a head of logits or probabilities.
    frames
        Raw frames (C, H, W), at least one.
    """
    with Segmenter(reference) as truth, Segmenter(exported) as candidate:
        pairs = [_probabilities(truth, candidate, frame) for frame in frames]
    largest = [float(np.abs(expected - given).max()) for expected, given in pairs]
    total = sum(float(np.abs(expected - given).sum(dtype=np.float64)) for expected, given in pairs)
    labels = [(best_class(expected).ravel(), best_class(given).ravel()) for expected, given in pairs]
    truth_labels, given_labels = (np.concatenate(side) for side in zip(*labels, strict=True))
    return Parity(
        frames=len(frames),
        pixels=len(truth_labels),
        max_error=float(np.max(largest)),
        mean_error=total / sum(expected.size for expected, _ in pairs),
        flips=float((truth_labels != given_labels).mean()),
        iou=_worst_iou(truth_labels, given_labels),
        not_finite=sum(int(np.count_nonzero(np.isnan(given.sum(axis=0)))) for _, given in pairs),
        worst=int(np.argmax(np.nan_to_num(largest, nan=np.inf))),
        classes=len(np.unique(truth_labels)),
    )


def _probabilities(truth: Segmenter, candidate: Segmenter, frame: Array) -> tuple[Array, Array]:
    """Return the probabilities of both, (classes, H, W) float32; NaN where the candidate is not finite."""
    image = as_image(frame)
    expected, given = softmax(truth.scores(image)), candidate.scores(image)
    given[~np.isfinite(given)] = np.nan
    if candidate.spec.head == "logits":
        softmax(given)
    return expected, given


def _worst_iou(truth: Array, answer: Array) -> float:
    classes = np.unique(truth)
    return float(min(((truth == c) & (answer == c)).sum() / ((truth == c) | (answer == c)).sum() for c in classes))


def _require_spec(stored: ModelSpec, spec: ModelSpec) -> None:
    """Raise ParityError unless the spec stored in a file is the one it was exported with."""
    different = [field.name for field in fields(spec) if getattr(stored, field.name) != getattr(spec, field.name)]
    if different:
        raise ParityError(
            f"the spec in the exported file differs from that of the export in {', '.join(different)}: the two must be "
            "equal; export it again, and report a defect of unetrt if that fails too"
        )


def _require_same_labels(scores: Session, path: Path, frames: Sequence[Array], most: float) -> None:
    """Raise ParityError if the labels of a file are not the best classes of the scores that were compared.

    Parameters
    ----------
    scores
        The model that was compared with the network.
    path
        The file in question.
    frames
        Raw frames (C, H, W).
    most
        Share of the pixels that may differ.
    """
    with open_session(path, BACKEND) as labels, Segmenter(scores) as expected, Segmenter(labels) as given:
        images = [as_image(frame) for frame in frames]
        differ = [expected.segment(image).labels != given.segment(image).labels for image in images]
    share = np.concatenate([pixels.ravel() for pixels in differ]).mean()
    if share > most:
        raise ParityError(
            f"the file's labels differ from the best class of its scores at {share:.2%} of the pixels (at most "
            f"{most:.2%}): its head must choose the class of the highest score; with --head logits the runtime chooses"
        )


def _require_same_slots(session: Session, tile: Array) -> None:
    """Raise ParityError where the output for a tile, (C, h, w) of the input dtype, depends on its slot in the batch."""
    first, *others = session.run(tile).astype(np.float32)
    largest = np.abs(first).max()
    for slot, other in enumerate(others, start=1):
        if not np.abs(other - first).max() <= SLOT_TOLERANCE * largest:
            raise ParityError(
                f"the file's outputs for one tile differ between slot {slot} and slot 0 of its batch: the output for a "
                "tile must not depend on the other tiles of the batch; use --batch 1"
            )
