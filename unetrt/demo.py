"""The demo: the whole path without any data, each step as a user would take it."""

import json
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from unetrt.cli.training_bar import run_with_bar
from unetrt.export.exporter import export, planned_tile
from unetrt.export.options import Options
from unetrt.export.whole_frame import whole_frame_scores, wrong_pixels
from unetrt.runtime.artifacts import whole_file, writable_folder
from unetrt.runtime.errors import OutputError, ParityError
from unetrt.runtime.images import write_labels, write_png
from unetrt.runtime.instance_labels import instances
from unetrt.runtime.overlay import overlay
from unetrt.runtime.processor import cores, processor
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.spec import ModelSpec
from unetrt.trainer import checkpoint as checkpoints
from unetrt.trainer.budget import Budget
from unetrt.trainer.drawn_cells import Drawing, draw
from unetrt.trainer.evaluation import evaluate_instances
from unetrt.trainer.job import Source
from unetrt.trainer.recipe import DEFAULT_RECIPE, RECIPES
from unetrt.trainer.run import Run
from unetrt.trainer.training import Training

# Says that a folder is a demo's, to be drawn over.
MARKER = ".unetrt-demo"
# Training images and their side; the last ones are for validation.
IMAGES, VALIDATION, SIDE = 16, 4, 384
# Larger than one tile in both directions, and a multiple of nothing.
FRAME = (1100, 1300)
# What another order of summation may change in a logit: so much, or this share of the largest where that is more.
EXACT, EXACT_SHARE = 1e-4, 1e-5

Say = Callable[[str], None]


class Demo:
    """Draws, trains, exports, segments and checks.

    Parameters
    ----------
    out
        Folder for data/, model.onnx, overlay.png, curves.png, report.json and the rest.
    steps
        How long to train: in steps, so that a slow machine takes longer and gets the same.
    seed
        Of drawings and training.
    """

    def __init__(self, out: Path, steps: int, seed: int) -> None:
        self._out, self._steps, self._seed = out, steps, seed

    def run(self, say: Say) -> dict[str, Any]:
        """Do everything and return the report.

        Raises
        ------
        ParityError
            The stitched result is not the whole-image result.
        OutputError
            The folder holds something that no demo made.
        """
        begin = time.perf_counter()
        self._claim()
        say(f"1/4 drawing {IMAGES} images and a frame of {FRAME[0]} x {FRAME[1]} px")
        self._draw_images()
        scene = draw(FRAME, seed=self._seed + 1000)
        say(f"2/4 training for {self._steps} steps")
        trained = self._train()
        model = self._out / "model.onnx"
        tile = planned_tile(trained)
        say(f"3/4 exporting with a tile of {tile[0]} x {tile[1]} px")
        parity = export(trained, model, Options(tile))
        say("4/4 segmenting, and checking against one pass over the whole frame")
        with Segmenter(model) as segmenter:
            labels = segmenter.segment(scene.frame)
            scores = segmenter.scores(scene.frame)
            found = instances(labels.labels, segmenter.spec.separation_border)
            report = {
                "exactness": exactness(scores, whole_frame_scores(trained, scene.frame), segmenter.spec),
                "quality": quality(found, scene),
                "seconds": {"segment": round(labels.timings.total, 3)},
                "parity": str(parity),
                "training": trained.training["validation"] | {"steps": trained.training["steps"]},
            }
        report |= {"frame": FRAME, "tile": tile, "environment": _environment()}
        self._leave(scene, found)
        report["seconds"]["everything"] = round(time.perf_counter() - begin, 1)
        with whole_file(self._out / "report.json") as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")
        return _require_exact(report)

    def _claim(self) -> None:
        """Take the folder, if it is new, empty or an earlier demo's: what is in it will be overwritten."""
        marker = writable_folder(self._out) / MARKER
        if not marker.exists() and any(self._out.iterdir()):
            raise OutputError(f"{self._out} holds files that are not a demo's: choose a new folder with --out")
        marker.touch()

    def _draw_images(self) -> None:
        for part in ("train", "val"):
            shutil.rmtree(self._out / "data" / part, ignore_errors=True)
            for kind in ("images", "labels"):
                (self._out / "data" / part / kind).mkdir(parents=True)
        for number in range(IMAGES + VALIDATION):
            folder = self._out / "data" / ("train" if number < IMAGES else "val")
            drawing = draw((SIDE, SIDE), seed=self._seed + number)
            tifffile.imwrite(folder / "images" / f"{number:03d}.tif", drawing.frame, photometric="minisblack")
            write_labels(folder / "labels" / f"{number:03d}.tif", drawing.labels)

    def _train(self) -> checkpoints.Checkpoint:
        source = Source(self._out / "data" / "train", self._out / "data" / "val")
        run = Run(self._out, self._seed, origin=source.to_dict())
        training = Training(*source.load(self._seed), RECIPES[DEFAULT_RECIPE], run)
        return checkpoints.load(run_with_bar(training, Budget(steps=self._steps)))

    def _leave(self, scene: Drawing, found: Any) -> None:
        tifffile.imwrite(self._out / "frame.tif", scene.frame, photometric="minisblack")
        write_labels(self._out / "instances.tif", found)
        write_png(self._out / "overlay.png", overlay(scene.frame, found))


def _environment() -> dict[str, Any]:
    """Return the facts that the report's seconds depend on."""
    return {
        "processor": processor(),
        "processors": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("unetrt", "torch", "numpy")},
    }


def exactness(stitched: Any, whole: Any, spec: ModelSpec) -> dict[str, Any]:
    """Compare stitched logits with those of one pass, both (classes, H, W)."""
    error = float(np.abs(stitched - whole).max())
    changed = wrong_pixels(stitched.argmax(axis=0), whole)
    stride = [spec.geometry.stride(side) for side in spec.tile]
    return {
        "max_logit_difference": error,
        "share_of_pixels_of_another_class": changed,
        "stride": stride,
        "exact": error <= max(EXACT, EXACT_SHARE * float(np.abs(whole).max())) and changed == 0,
    }


def quality(found: Any, scene: Drawing) -> dict[str, Any]:
    """Score instances (H, W) against the drawn truth."""
    scores = evaluate_instances(found, scene.labels, warping=False).to_dict()
    return {
        "foreground_iou": round(scores["iou"], 4),
        "seg": round(scores["seg"], 4),
        "average_precision": round(scores["ap"]["0.50"], 4),
        "cells_drawn": scores["objects"],
        "cells_found": scores["found"],
        "cells_merged": scores["merged"],
    }


def _require_exact(report: dict[str, Any]) -> dict[str, Any]:
    exact = report["exactness"]
    if not exact["exact"]:
        raise ParityError(
            f"stitched tiles differ from one pass by {exact['max_logit_difference']:.2g} in a logit and in "
            f"{exact['share_of_pixels_of_another_class']:.2%} of the classes: please report this with report.json"
        )
    return report
