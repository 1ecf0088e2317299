"""What a lab gets from five minutes on its own computer, on real images: minutes long, run with `make test-slow`."""

import json
import os
from pathlib import Path

import pytest

from unetrt.__main__ import main

# Fluorescent nuclei with instance labels, in train/ and val/; see the variable to point at a copy elsewhere.
NUCLEI = Path(os.environ.get("UNETRT_NUCLEI", Path(__file__).parents[3] / "shared" / "data" / "nuclei"))
MINUTES = "5"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_five_minutes_of_training(tmp_path, capsys):
    if not NUCLEI.is_dir():
        pytest.skip(f"{NUCLEI} does not exist: set UNETRT_NUCLEI")
    train, val, run, model, out = (
        NUCLEI / "train",
        NUCLEI / "val",
        tmp_path / "run",
        tmp_path / "m.onnx",
        tmp_path / "out",
    )
    commands = (
        ("train", train, "--val", val, "--minutes", MINUTES, "-o", run),
        ("export", run, "-o", model),
        ("predict", model, val / "images", "-o", out),
        ("eval", out, val / "labels", "--json"),
    )
    for command in commands:
        capsys.readouterr()
        assert main([str(word) for word in command]) == 0
    mean = json.loads(capsys.readouterr().out)["mean"]
    assert mean["iou"] >= 0.80
    assert mean["seg"] >= 0.68
