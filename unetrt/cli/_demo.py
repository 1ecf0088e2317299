"""The demo: real nuclei with the model that comes with unetrt; then draw, train, export, segment and check.

>>> Demo(Path("demo-out"), steps=500, seed=0).run(print)["exactness"]["exact"]
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
from unetrt.runtime.errors import GateError, OutputError, ParityError
from unetrt.runtime.files.atomic import whole_file, writable_folder
from unetrt.runtime.files.images import Output, predict_file, read_labels
from unetrt.runtime.files.outputs import Outputs
from unetrt.runtime.files.outputs.label_tiff import write_labels
from unetrt.runtime.files.outputs.pictures import write_png
from unetrt.runtime.files.sources import list_images
from unetrt.runtime.machine import processor
from unetrt.runtime.model.onnx_file import bundled_path
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.drawing import overlay
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.trainer import checkpoint as checkpoints
from unetrt.trainer.drawn_cells import Drawing, draw
from unetrt.trainer.evaluation import Tally, evaluate_instances, pooled
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
# The least SEG of the drawn frame: below, its objects are not found.
LEAST_SEG = 0.8
# The model of the first part; images and labels of real nuclei are in `models/examples` beside it.
MODEL = "nuclei"
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
        GateError
            SEG of the drawn frame is below `LEAST_SEG`.
        OutputError
            The folder holds files that are not a demo's.
        """
        begin = time.perf_counter()
        self._claim()
        say(f"1/5 segmenting real nuclei with the model {MODEL}")
        real = self._segment_nuclei(say)
        first = round(time.perf_counter() - begin, 1)
        say(f"2/5 drawing {IMAGES} images and a frame of {FRAME[0]} x {FRAME[1]} px")
        self._draw_images()
        scene = draw(FRAME, seed=self._seed + 1000)
        say(f"3/5 training for {self._steps} steps")
        trained = self._train()
        model = self._out / "model.onnx"
        tile = planned_tile(trained)
        say(f"4/5 exporting with a tile of {tile[0]} x {tile[1]} px")
        parity = export(trained, model, Options(tile))
        say("5/5 segmenting, and checking against one pass over the whole frame")
        with Segmenter(model) as segmenter:
            found = segmenter.objects(scene.frame)
            scores = segmenter.scores(scene.frame)
            report = {
                "exactness": exactness(scores, whole_frame_scores(trained, scene.frame), segmenter.spec),
                "quality": quality(found.labels, scene),
                "nuclei": real,
                "seconds": {"nuclei": first, "segment": round(found.timings.total, 3)},
                "parity": str(parity),
                "training": trained.training["validation"] | {"steps": trained.training["steps"]},
            }
            report |= {"frame": FRAME, "tile": tile, "environment": environment(segmenter.session.name)}
        self._write_images(scene, found.labels)
        report["seconds"]["everything"] = round(time.perf_counter() - begin, 1)
        with whole_file(self._out / "report.json") as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")
        _require_exact(report)
        _require_objects(report)
        return report

    def _claim(self) -> None:
        """Create and mark the folder; raises OutputError unless it is new, empty or an earlier demo's."""
        marker = writable_folder(self._out) / MARKER
        if not marker.exists() and any(self._out.iterdir()):
            raise OutputError(f"{self._out} holds files that are not a demo's: choose a new folder with --out")
        marker.touch()

    def _segment_nuclei(self, say: Say) -> dict[str, Any]:
        """Write labels and overlays of the example images to nuclei/; print and return their scores."""
        examples, folder = bundled_path(MODEL).parent / "examples", writable_folder(self._out / "nuclei")
        tallies = {}
        with Segmenter(MODEL) as segmenter:
            for source in list_images(examples / "images"):
                labels = predict_file(segmenter, source, Output(Outputs(folder)))
                tallies[source.name] = evaluate_instances(
                    labels, read_labels(examples / "labels" / source.path.name), warping=False
                )
                say(f"    {_scores_line(tallies[source.name])}  {folder / 'overlays' / source.name}.png")
        everything = pooled(list(tallies.values()))
        say(f"    {_scores_line(everything)}  all")
        return {name: everything.to_dict()[name] for name in ("iou", "seg", "objects", "found", "merged", "split")}

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
        # FP32 on every processor, so that all machines train the same network.
        recipe = RECIPES[DEFAULT_RECIPE].with_options(mixed=False)
        training = Training(*source.read(self._seed), recipe, run)
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


def _scores_line(tally: Tally) -> str:
    objects = tally.objects
    assert objects is not None
    return (
        f"{objects.found:4d} objects, {objects.objects:4d} annotated: SEG {objects.seg or 0:.3f}, {objects.merged:2d} "
        f"merged, {objects.split:2d} split"
    )


def _require_objects(report: dict[str, Any]) -> None:
    seg = report["quality"]["seg"]
    if seg < LEAST_SEG:
        raise GateError(
            f"SEG of the drawn frame is {seg:.3f} after {report['training']['steps']} steps, at least {LEAST_SEG:.2f} "
            "is expected: train for more steps (--steps), or please report this with report.json"
        )


def _require_exact(report: dict[str, Any]) -> None:
    exact = report["exactness"]
    if not exact["exact"]:
        raise ParityError(
            f"stitched tiles differ from one pass by {exact['max_logit_difference']:.2g} in a logit and in "
            f"{exact['share_of_pixels_of_another_class']:.2%} of the classes: please report this with report.json"
        )
