"""The demo: draw, train, export, segment and check, without any data.

>>> Demo(Path("demo-out"), steps=1000, seed=0).run(print)["exactness"]["exact"]
True
"""

import json
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from unetrt._version import __version__
from unetrt.cli.train import run_with_bar
from unetrt.export.exporter import Options, export, planned_tile
from unetrt.runtime.errors import OutputError, ParityError
from unetrt.runtime.files.atomic import whole_file, writable_folder
from unetrt.runtime.files.images import write_labels, write_png
from unetrt.runtime.machine import processor
from unetrt.runtime.model.objects import instances, overlay
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.trainer import checkpoint as checkpoints
from unetrt.trainer.drawn_cells import Drawing, draw
from unetrt.trainer.evaluation import evaluate_instances
from unetrt.trainer.recipe import DEFAULT_RECIPE, RECIPES
from unetrt.trainer.run import DataSource, TrainingBudget, TrainingRun
from unetrt.trainer.training import Training
from unetrt.trainer.validation import whole_frame_scores, wrong_pixels

# File that marks a folder as a demo's, which may be overwritten.
MARKER = ".unetrt-demo"
# Number of training and of validation images, and their side in pixels.
IMAGES, VALIDATION, SIDE = 16, 4, 384
# Height and width of the frame: larger than a tile, and no multiple of a stride.
FRAME = (1100, 1300)
# Largest difference of a logit that another order of summation may cause: absolute, or as a share of the largest logit.
EXACT, EXACT_SHARE = 1e-4, 1e-5

Say = Callable[[str], None]
Labels = NDArray[np.int32]
Scores = NDArray[np.float32]


class Demo:
    """One run of the demo.

    Parameters
    ----------
    out
        Folder for data/, model.onnx, overlay.png, curves.png, report.json and the rest.
    steps
        Length of the training.
    seed
        Seed of the drawings and of the training.
    """

    def __init__(self, out: Path, steps: int, seed: int) -> None:
        self._out, self._steps, self._seed = out, steps, seed

    def run(self, say: Say) -> dict[str, Any]:
        """Run all steps and return the report.

        Parameters
        ----------
        say
            Prints a line of progress.

        Raises
        ------
        ParityError
            The stitched result differs from the result of one pass.
        OutputError
            The folder holds files that are not a demo's.
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
            found = instances(labels.labels, segmenter.spec.decoding)
            report = {
                "exactness": exactness(scores, whole_frame_scores(trained, scene.frame), segmenter.spec),
                "quality": quality(found, scene),
                "seconds": {"segment": round(labels.timings.total, 3)},
                "parity": str(parity),
                "training": trained.training["validation"] | {"steps": trained.training["steps"]},
            }
            report |= {"frame": FRAME, "tile": tile, "environment": environment(segmenter.session.name)}
        self._write_images(scene, found)
        report["seconds"]["everything"] = round(time.perf_counter() - begin, 1)
        with whole_file(self._out / "report.json") as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")
        return _require_exact(report)

    def _claim(self) -> None:
        """Create and mark the folder; raises OutputError unless it is new, empty or an earlier demo's."""
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
        source = DataSource(self._out / "data" / "train", self._out / "data" / "val")
        run = TrainingRun(self._out, self._seed, source=source)
        training = Training(*source.read(self._seed), RECIPES[DEFAULT_RECIPE], run)
        return checkpoints.load(run_with_bar(training, TrainingBudget(steps=self._steps)))

    def _write_images(self, scene: Drawing, found: Labels) -> None:
        tifffile.imwrite(self._out / "frame.tif", scene.frame, photometric="minisblack")
        write_labels(self._out / "instances.tif", found)
        write_png(self._out / "overlay.png", overlay(scene.frame, found))


def environment(engine: str) -> dict[str, Any]:
    """Return the processor and the versions that produced a report; `engine` is the name of the session."""
    return {
        "engine": engine,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": {
            "unetrt": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def exactness(stitched: Scores, whole: Scores, spec: ModelSpec) -> dict[str, Any]:
    """Compare stitched logits with those of one pass, both (classes, H, W) float32."""
    error = float(np.abs(stitched - whole).max())
    changed = wrong_pixels(stitched.argmax(axis=0), whole)
    stride = [spec.geometry.stride(side) for side in spec.tile]
    return {
        "max_logit_difference": error,
        "share_of_pixels_of_another_class": changed,
        "stride": stride,
        "exact": error <= max(EXACT, EXACT_SHARE * float(np.abs(whole).max())) and changed == 0,
    }


def quality(found: Labels, scene: Drawing) -> dict[str, Any]:
    """Score instances (H, W) int32 against the drawn ones."""
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
