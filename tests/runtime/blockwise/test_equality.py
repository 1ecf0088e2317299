"""Files of a run over blocks are those of the whole image, byte for byte, whatever the blocks."""

import subprocess
import sys

import numpy as np
import pytest
import tifffile

from unetrt.runtime import Segmenter
from unetrt.runtime.blockwise.run import Blockwise, predict_blocks
from unetrt.runtime.files.images import Output, predict_file
from unetrt.runtime.files.outputs import opened_outputs
from unetrt.runtime.model.onnx_file import resolved

KINDS = ["labels", "geojson", "table"]


@pytest.fixture(scope="module")
def nuclei():
    with Segmenter(resolved("nuclei")) as segmenter:
        yield segmenter


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A mosaic of a picture of nuclei, cut so that no block ends where the mosaic repeats."""
    path = tmp_path_factory.mktemp("image") / "mosaic.tif"
    picture = tifffile.imread(resolved("nuclei").parent / "examples/images/a7a581e6.tif")
    tifffile.imwrite(path, np.tile(picture, (2, 2))[:900, :1000], tile=(256, 256))
    return path


def written(folder, segmenter, image, how=None, kinds=KINDS, **output):
    """Segment an image, as a whole or in blocks; return the content of each file by its name."""
    with opened_outputs(folder, kinds, channels=1, confident=True, overlays=True, sheet=1) as files:
        if how is None:
            predict_file(segmenter, image, Output(files, **output))
        else:
            predict_blocks(segmenter, resolved("nuclei"), image, Output(files, **output), how)
    found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    found["labels"] = tifffile.imread(folder / "mosaic.tif").tobytes()
    del found["mosaic.tif"]  # tiled, with coarser levels, or in strips
    return found


@pytest.mark.parametrize(("block", "workers"), [((1, 1), 3), ((300, 700), 1), ((5000, 5000), 3)])
def test_blocks_give_the_files_of_the_whole_image(tmp_path, nuclei, image, block, workers):
    whole = written(tmp_path / "whole", nuclei, image)
    assert written(tmp_path / "blocks", nuclei, image, Blockwise(block, workers)) == whole
    pictures = {"overlays/mosaic.png", "overlays/montage.png"}
    assert set(whole) == {"labels", "objects.csv", "geojson/mosaic.geojson"} | pictures


def test_blocks_give_the_class_map_of_the_whole_image(tmp_path, nuclei, image):
    kinds = ["labels", "geojson"]
    whole = written(tmp_path / "whole", nuclei, image, kinds=kinds, kind="classes")
    blocks = written(tmp_path / "blocks", nuclei, image, Blockwise((300, 300)), kinds=kinds, kind="classes")
    assert blocks == whole


def test_blocks_on_this_machine_need_no_cluster(tmp_path, image):
    """Importing distributed takes time and memory."""
    run = (
        "import sys; from unetrt.runtime import segment_large; segment_large('nuclei', *sys.argv[1:], block=(600, 600))"
    )
    program = f"{run}; raise SystemExit('distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program, image, tmp_path], check=False).returncode == 0
