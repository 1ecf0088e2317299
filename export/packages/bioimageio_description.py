"""What a bioimage.io package says of a model: the content of its bioimageio.yaml (model format 0.5)."""

import json
from typing import Any

from unetrt.export.packages.bioimageio_metadata import Metadata
from unetrt.runtime.model.spec import INPUT, KEY, OUTPUT, ModelSpec
from unetrt.runtime.pixels.normalisation import Normalisation

# Files of a package.
WEIGHTS, README, COVER = "model.onnx", "README.md", "cover.png"
TEST_INPUT, TEST_OUTPUT = "test_input.npy", "test_output.npy"

# The format adds it to every denominator and wants it positive; here none is added, so: nothing in float32.
EPSILON = 1e-12
# What a precision below fp32 may differ by from machine to machine: the most that the format allows, which for the
# absolute difference is less than 1 % of the largest value of the test output.
RELATIVE, ABSOLUTE, PER_MILLION = 0.01, 0.009, 1000


def describe(spec: ModelSpec, metadata: Metadata, opset: int, largest: float) -> dict[str, Any]:
    """Return the content of bioimageio.yaml, without the version of the format.

    Parameters
    ----------
    spec
        The packaged model's, with batch 1.
    metadata
        What its makers say.
    opset
        Of the ONNX file.
    largest
        Value of the test output.
    """
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
        "inputs": [_input(spec)],
        "outputs": [_output(spec)],
        "weights": {"onnx": {"source": WEIGHTS, "opset_version": opset}},
        "config": {**_tolerance(spec, largest), KEY: json.loads(spec.to_json())},
    }


def _tolerance(spec: ModelSpec, largest: float) -> dict[str, Any]:
    """Widen the format's usual tolerance (1e-3) for what computes in a lower precision, differently on each machine."""
    if spec.precision == "fp32":
        return {}
    tolerance = {
        "relative_tolerance": RELATIVE,
        "absolute_tolerance": 0.0 if spec.head == "labels" else max(0.0, ABSOLUTE * largest),
        "mismatched_elements_per_million": PER_MILLION,
    }
    return {"bioimageio": {"reproducibility_tolerance": [tolerance]}}


def _input(spec: ModelSpec) -> dict[str, Any]:
    """Describe the tile: of one size, as the graph has it."""
    sides = zip(("y", "x"), spec.tile, strict=True)
    return {
        "id": INPUT,
        "description": f"a tile of the frame, mirrored ({spec.border}) where it reaches past the frame's border",
        "axes": [
            {"type": "batch", "size": 1},
            {"type": "channel", "channel_names": [f"channel{index}" for index in range(spec.channels)]},
            *({"type": "space", "id": axis, "size": side} for axis, side in sides),
        ],
        "data": {"type": spec.input_dtype},
        "preprocessing": [] if spec.takes_raw else _preprocessing(spec.normalisation),
        "test_tensor": {"source": TEST_INPUT},
    }


def _output(spec: ModelSpec) -> dict[str, Any]:
    """Describe the core: unpadded convolutions crop the halo in the network, which the format says with an offset."""
    core = [
        {"type": "space", "id": axis, "size": {"tensor_id": INPUT, "axis_id": axis, "offset": -2 * spec.halo}}
        for axis in ("y", "x")
    ]
    classes = {"type": "channel", "channel_names": list(spec.classes)}
    data: dict[str, dict[str, Any]] = {
        "labels": {"type": "uint8", "values": list(spec.classes)},
        "probabilities": {"type": "float32", "range": [0, 1]},
        "logits": {"type": "float32"},
    }
    return {
        "id": OUTPUT,
        "description": f"{spec.head} of the tile without its halo of {spec.halo} px a side",
        "axes": [{"type": "batch", "size": 1}, *([] if spec.head == "labels" else [classes]), *core],
        "data": data[spec.head],
        "test_tensor": {"source": TEST_OUTPUT},
    }


def _preprocessing(normalisation: Normalisation) -> list[dict[str, Any]]:
    """Say the normalisation in the format's words, each channel on its own, statistics over the whole sample."""
    joint: dict[str, Any] = {"axes": ["y", "x"], "eps": EPSILON}
    if normalisation.mode in ("percentile", "running"):
        ranks = {"min_percentile": normalisation.low, "max_percentile": normalisation.high}
        return [{"id": "scale_range", "kwargs": {**joint, **ranks}}]
    if normalisation.mode == "zscore":
        return [{"id": "zero_mean_unit_variance", "kwargs": joint}]
    # (x - offset) * scale is x * gain + offset, with the offset scaled.
    shifts = [-offset * scale for offset, scale in zip(normalisation.offset, normalisation.scale, strict=True)]
    gains = list(normalisation.scale)
    if set(gains) == {1.0} and not any(shifts):
        return []  # the format refuses what changes nothing
    return [{"id": "scale_linear", "kwargs": {"axis": "channel", "gain": gains, "offset": shifts}}]


def _summary(spec: ModelSpec) -> str:
    depth = f" of depth {spec.network['depth']}" if spec.network else ""
    return f"A U-Net{depth} that segments {spec.channels}-channel micrographs into {', '.join(spec.classes)}."[:1024]
