"""Files of `--save` in napari's viewer model, in a process of its own: labels lie over the image at the right scale."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from tests import requirements
from unetrt.runtime.files.outputs.label_zarr import write_metadata, write_zarr
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.outputs.zarr_pyramid import Pyramid
from unetrt.runtime.files.pixel_size import PixelSize

pytestmark = pytest.mark.skipif(not find_spec("napari"), reason=requirements.NAPARI)

OPENED = """
import json, sys
import numpy as np
from napari.components import ViewerModel
from npe2 import PluginManager

PluginManager.instance().discover()
viewer = ViewerModel()
viewer.open(sys.argv[1], plugin="napari-ome-zarr")
print(json.dumps([
    [type(layer).__name__, layer.scale.tolist(), layer.extent.world.tolist(), [str(unit) for unit in layer.units],
     int(np.asarray(layer.data[0] if layer.multiscale else layer.data).sum())]
    for layer in viewer.layers
]))
"""


def layers_of(path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPENED, path], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("shape", "axes", "size", "scale", "unit"),
    [
        ((300, 320), None, PixelSize(0.5, 0.25), [0.5, 0.25], "micrometer"),
        ((2, 3, 40, 50), "TZYX", PixelSize(500, 250, 2000, unit="nm"), [1, 2, 0.5, 0.25], "micrometer"),
        ((300, 320), None, None, [1, 1], "pixel"),
    ],
)
def test_labels_lie_over_the_image_at_the_right_scale(tmp_path, shape, axes, size, scale, unit):
    labels = np.zeros(shape, np.int32)
    labels[..., 5:20, 10:40] = 7
    frames = np.ones((labels[..., 0, 0].size, 1, *shape[-2:]), np.uint16)
    write_zarr(tmp_path / "a.ome.zarr", LabelledImage("a", labels, frames=frames, axes=axes, pixel_size=size))
    image, objects = layers_of(tmp_path / "a.ome.zarr")
    assert (image[0], objects[0]) == ("Image", "Labels")
    assert image[1] == objects[1] == scale
    assert image[2] == objects[2]
    assert image[3][-1] == objects[3][-1] == unit
    assert objects[4] == labels.sum()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_without_an_image_are_shown_at_the_right_scale(tmp_path, version):
    """The image group refers to the arrays of the labels."""
    pixels = np.zeros((2, 300, 320), np.uint32)
    pixels[:, 5:20, 10:40] = 2**31 + 7
    size = PixelSize(0.5, 0.25, 2)
    labels = Pyramid(tmp_path / "a.ome.zarr", pixels.shape, "uint32", "ZYX", size, (128, 128), (256, 256), version)
    labels.create()
    labels.fill(pixels)
    write_metadata(labels, "a")
    image, objects = layers_of(tmp_path / "a.ome.zarr")
    assert (image[0], objects[0]) == ("Image", "Labels")
    assert image[1] == objects[1] == [2, 0.5, 0.25]
    assert image[2] == objects[2]
    assert image[3] == objects[3] == ["micrometer"] * 3
    assert objects[4] == pixels.sum()
