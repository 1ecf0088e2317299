"""A trained network adapts to images of another kind with fewer images and steps; run with `make test-slow`.

python -m pytest -s -m slow tests/slow/test_fine_tuning.py

prints the scores. UNETRT_SEEDS=3 trains with three seeds.
"""

import csv
import os

import click
import numpy as np
import pytest

from tests.conftest import NUCLEI
from unetrt.__main__ import main
from unetrt.trainer.checkpoint import LAST, load

# The kind of image that the source never sees, by height and width in pixels, and how many of them are annotated.
KIND, ANNOTATED = ("520", "696"), 5
SOURCE_STEPS, STEPS = 1500, 300
SEEDS = range(int(os.environ.get("UNETRT_SEEDS", "1")))


def names(part, is_kind):
    with (NUCLEI / part / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return sorted(row["name"] for row in rows if ((row["height"], row["width"]) == KIND) == is_kind)


def linked(folder, part, chosen):
    """Return a folder with the named images of a part of the data."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
        for name in chosen:
            (folder / kind / f"{name}.tif").symlink_to(NUCLEI / part / kind / f"{name}.tif")
    return folder


def trained(*arguments):
    """Train; return the scores after the last step."""
    assert main(["train", *map(str, arguments), "--no-export"]) == 0
    return load(arguments[arguments.index("-o") + 1] / LAST).training["validation"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_five_images_of_another_kind(tmp_path):
    if not NUCLEI.is_dir():
        pytest.skip(f"{NUCLEI} does not exist: set UNETRT_NUCLEI")
    source, others = tmp_path / "source", linked(tmp_path / "others", "train", names("train", False))
    few = linked(tmp_path / "few", "train", names("train", True)[:ANNOTATED])
    held = linked(tmp_path / "held", "val", names("val", True))
    trained(others, "--val", held, "--steps", SOURCE_STEPS, "-o", source)
    scores = {"from the source": [], "from scratch": []}
    for seed in SEEDS:
        for name, start in (("from the source", ("--from", source)), ("from scratch", ())):
            run = tmp_path / f"{name} {seed}"
            found = trained(few, "--val", held, "--steps", STEPS, "--seed", seed, *start, "-o", run)
            scores[name].append([found["iou"], found["seg"], found["ap"], found["merged"]])
    means = {name: np.mean(rows, axis=0) for name, rows in scores.items()}
    shown = load(source / LAST).training["validation"]
    click.echo(f"\nsource alone: {shown}")
    for name, (iou, seg, ap, merged) in means.items():
        click.echo(f"{name}: IoU {iou:.3f}  SEG {seg:.3f}  AP {ap:.3f}  merged {merged:.0f}")
    gain = means["from the source"] - means["from scratch"]
    assert gain[1] >= 0.02, "SEG"
    assert gain[2] >= 0.02, "AP"
