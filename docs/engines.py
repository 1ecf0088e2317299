"""Measures the engine sizes and build times in docs/export.md. Run it on an idle machine.

python docs/engines.py      builds real engines, and writes benchmarks/results/engines.json and the table
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch

from unetrt.export.graph import build_graph
from unetrt.export.onnx_model import describe
from unetrt.export.quantisation import quantised
from unetrt.runtime.engines.build import build
from unetrt.runtime.engines.engine_file import BuildOptions, facts_of
from unetrt.runtime.engines.flavours import AUTO, usable_flavour
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.machine import processor, this_machine
from unetrt.runtime.model.spec import PRECISIONS, ModelSpec
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.unet import UNet

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "engines.json"
PAGE = Path(__file__).with_name("export.md")
MARKS = ("<!-- engines -->\n", "<!-- /engines -->\n")

# Networks of the recipes, with the tile of the paper.
NETWORKS = {"modern": (UNetShape(3, 16), (572, 572)), "paper": (UNetShape(), (572, 572))}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"head": "labels"},
    {"input_dtype": "uint16"},
    {"batch": 4},
)
# Number of builds; the median time is reported.
REPEATS = 5


def measured() -> dict[str, Any]:
    """Build every variant; return sizes in bytes, times in seconds, machine and versions."""
    machine = this_machine()
    flavour = usable_flavour(AUTO, machine)
    versions = {flavour.title: flavour.version, "torch": torch.__version__, "onnx": onnx.__version__}
    return {"machine": str(machine), "processor": processor(), "versions": versions, "engines": list(_engines())}


def _engines() -> Iterator[dict[str, Any]]:
    for network, (shape, tile) in NETWORKS.items():
        for precision in PRECISIONS:
            for variant in VARIANTS:
                spec = replace(_spec(shape, tile), precision=precision, **variant)
                with TemporaryDirectory() as folder:
                    model = Path(folder) / "model.onnx"
                    onnx.save(_model(shape, spec), model)
                    yield {"network": network, "precision": precision, **variant, **_built(model, spec)}


def _spec(shape: UNetShape, tile: tuple[int, int]) -> ModelSpec:
    fixed = Normalisation("fixed", offset=(400.0,), scale=(0.0003,))
    geometry = shape.geometry
    return ModelSpec(tile=tile, halo=geometry.halo, grid=geometry.grid, normalisation=fixed)


def _model(shape: UNetShape, spec: ModelSpec) -> onnx.ModelProto:
    """Return a network with random weights, which affect neither size nor time."""
    model = build_graph(UNet(shape).initialise(torch.Generator().manual_seed(0)).eval(), spec)
    if spec.precision == "int8":
        drawn = np.random.default_rng(0).integers(0, 4000, (1, *spec.core)).astype(np.uint16)
        model = quantised(model, spec, [drawn])
        describe(model, spec)
    return model


def _built(model: Path, spec: ModelSpec) -> dict[str, Any]:
    machine = this_machine()
    facts = facts_of(model, spec, usable_flavour(AUTO, machine), machine, BuildOptions())
    seconds, engine = [], b""
    for _ in range(REPEATS):
        begin = time.perf_counter()
        engine = build(model, facts)
        seconds.append(round(time.perf_counter() - begin, 3))
    return {"model_bytes": model.stat().st_size, "engine_bytes": len(engine), "seconds": seconds}


def table(results: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = ["| network | precision | variant | model | engine | built in |", "| --- | --- | --- | --- | --- | --- |"]
    for engine in results["engines"]:
        shown = {"head": "{}", "input_dtype": "{} input", "batch": "batch {}"}
        variant = ", ".join(text.format(engine[name]) for name, text in shown.items() if name in engine)
        sizes = " | ".join(f"{engine[name] / 1e6:.1f} MB" for name in ("model_bytes", "engine_bytes"))
        seconds = f"{median(engine['seconds']):.2f} s"
        lines.append(f"| {engine['network']} | {engine['precision']} | {variant} | {sizes} | {seconds} |")
    return "\n".join(lines) + "\n"


def page(text: str, results: dict[str, Any]) -> str:
    """Return the page with its table replaced by one of these results."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + table(results) + MARKS[1] + rest.split(MARKS[1])[1]


if __name__ == "__main__":
    found = measured()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
