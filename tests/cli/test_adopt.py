"""`unetrt adopt` at the shell: what it prints, what it refuses, and that `predict` takes what it wrote."""

import re

import numpy as np
import onnx
import pytest
import tifffile

from tests.export.adoption.foreign_nets import CASES, save
from unetrt.__main__ import main
from unetrt.runtime.model.onnx_file import read_spec

GIVEN = "adopt fcn.onnx --tile 64x80 --classes background,cell --head logits"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a foreign network, to work in."""
    save(CASES["fcn"].network(), tmp_path / "fcn.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_prints_what_it_measured_and_the_next_command_works(place, capsys):
    assert main([*GIVEN.split(), "-o", "m.onnx", "--normalisation", "percentile:2:98", "--halo", "20"]) == 0
    told, measured, compared, remark, following = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"m.onnx: tile 64x80, core 24x40, halo 20, grid 4, fp32, logits, \d\.\d MB", told)
    radius = CASES["fcn"].radius
    assert measured == f"measured: an output pixel depends on pixels up to {radius} px away; the grid is 4 px"
    assert re.fullmatch(
        r"tiles against one pass over a larger image: max difference \d.* of the output's range", compared
    )
    assert remark == "remark: halo 20 is larger than needed: --halo 12 is exact too, and faster"
    normalisation = read_spec("m.onnx").normalisation
    assert (normalisation.mode, normalisation.low, normalisation.high) == ("percentile", 2, 98)
    tifffile.imwrite("a.tif", np.arange(100 * 90, dtype=np.uint16).reshape(100, 90))
    assert following == "next: unetrt predict m.onnx IMAGES -o DIR"
    assert main(["predict", "m.onnx", "a.tif", "-o", "labels"]) == 0
    assert (place / "labels" / "a.tif").is_file()


REFUSED = {
    "a halo that is too small": ("--normalisation zscore --halo 4", "halo 4 is too small: .* use --halo 12$"),
    "no normalisation": ("", "Missing option '--normalisation'"),
    "another normalisation": ("--normalisation minmax", "'minmax' is not a normalisation: write fixed:OFFSET:SCALE"),
    "constants that are none": ("--normalisation fixed:a:b", "'fixed:a:b' is not a normalisation"),
    "percentiles the wrong way": ("--normalisation percentile:99:1", "percentiles 99.0 and 1.0 are invalid"),
    "one class": ("--normalisation zscore --classes cell", "'cell' are not class names: write two or more"),
    "classes of one name": ("--normalisation zscore --classes a,a", "'a,a' are not class names"),
    "a halo below zero": ("--normalisation zscore --halo -1", "'-1' is not valid: use a whole number from 0"),
    "over the input": ("--normalisation zscore -o fcn.onnx", "is read for this, and would be overwritten"),
    "into a file": ("--normalisation zscore -o fcn.onnx/m.onnx", "cannot write to fcn.onnx: .*not a folder"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_one_line_exit_2_and_nothing_left(place, capsys, options, message):
    before = [(path, path.stat().st_mtime_ns) for path in place.iterdir()]
    assert main([*GIVEN.split(), "-o", "new/m.onnx", *options.split()]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(f"^Error: .*{message}", line), line
    assert [(path, path.stat().st_mtime_ns) for path in place.iterdir()] == before


@pytest.mark.parametrize(
    "command", ["build fcn.onnx -o new/m.engine", "predict fcn.onnx IMAGES -o new", "info fcn.onnx"]
)
def test_a_file_that_is_not_adopted_yet_points_to_adopt(place, capsys, command):
    tifffile.imwrite(place / "IMAGES", np.zeros((90, 90), np.uint8))
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search("fcn.onnx carries no unetrt spec.*of another toolkit with `unetrt adopt fcn.onnx`$", line), line
    assert not (place / "new").exists()


def test_one_of_several_outputs(place, capsys):
    model = onnx.load("fcn.onnx")
    model.graph.node.append(onnx.helper.make_node("Sigmoid", ["mask"], ["mask_probabilities"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("mask_probabilities", 1, ["n", 2, "h", "w"]))
    onnx.save(model, "fcn.onnx")
    told = [*GIVEN.split(), "-o", "m.onnx", "--normalisation", "zscore"]
    assert main(told) == 2
    line = capsys.readouterr().err
    assert re.search(r"has 2 outputs \(mask \(n, 2, .*\), mask_pr.*\): choose one with --output mask$", line.strip()), (
        line
    )
    assert main([*told, "--output", "mask"]) == 0


def test_constants_of_each_channel(place):
    assert main([*GIVEN.split(), "-o", "m.onnx", "--normalisation", "fixed:100,200:0.01,0.02"]) == 2
    assert main([*GIVEN.split(), "-o", "m.onnx", "--normalisation", "fixed:100:0.01"]) == 0
    assert (read_spec("m.onnx").normalisation.offset, read_spec("m.onnx").normalisation.scale) == ((100,), (0.01,))
