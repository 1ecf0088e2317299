"""What a lab gets from a short training on its own computer, on real images; run with `make test-slow`."""

import json

import pytest

from tests.conftest import NUCLEI
from unetrt.__main__ import main

# Five minutes on two cores that multiply bfloat16; a budget of minutes would let a slow machine miss the scores.
STEPS = 4000


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_short_training(tmp_path, capsys):
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
        ("train", train, "--val", val, "--separation-border", 3, "--steps", STEPS, "-o", run),
        ("export", run, "-o", model),
        ("predict", model, val / "images", "-o", out, "--min-area", 20),
        ("eval", out, val / "labels", "--json"),
    )
    for command in commands:
        capsys.readouterr()
        assert main([str(word) for word in command]) == 0
    pooled = json.loads(capsys.readouterr().out)["pooled"]
    assert pooled["iou"] >= 0.80
    assert pooled["seg"] >= 0.70
    assert pooled["ap"]["0.50"] >= 0.70
    # Plain Otsu merges 440 of these 1056 nuclei.
    assert pooled["merged"] < 220
