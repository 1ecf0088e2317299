"""What `unetrt predict --block` writes, opened by programs that others wrote: labels, axes and pixel size."""

from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest
import tifffile

from tests import requirements
from tests.napari.test_saved_files import layers_of
from unetrt.__main__ import main
from unetrt.runtime import Segmenter

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages that open the files

IMAGES = {"YX": (150, 270), "TZYX": (2, 3, 150, 270)}
# Size of a pixel along each axis, in µm; of time, without a unit.
SIZES = {"T": 1, "Z": 2, "Y": 0.5, "X": 0.25}


CASES = [("0.4", "YX"), ("0.5", "TZYX")]
OTHERS = [pytest.param(case, marks=pytest.mark.slow) for case in product(["0.4", "0.5"], IMAGES) if case not in CASES]


@pytest.fixture(scope="module", params=[*CASES, *OTHERS], ids=" ".join)
def predicted(request, tiny_model, tmp_path_factory):
    """Folder, version, axes and labels of an image with a pixel size that was segmented in blocks."""
    version, axes = request.param
    folder = tmp_path_factory.mktemp("predicted")
    image = np.random.default_rng(0).integers(0, 4000, IMAGES[axes]).astype(np.uint16)
    image[..., 20:90, 30:140] += 4000
    units = {f"PhysicalSize{axis}{unit}": "µm" if unit else SIZES[axis] for axis in "XYZ" for unit in ("", "Unit")}
    tifffile.imwrite(folder / "a.ome.tif", image, tile=(64, 64), metadata={"axes": axes, **units})
    saved = ["--save", "labels", "--save", "ome-zarr", "--no-overlays"]
    where = [str(folder / "a.ome.tif"), "-o", str(folder), "--block", "64x64", "--zarr-version", version]
    assert main(["predict", str(tiny_model), *where, *saved, "--backend", "onnxruntime"]) == 0
    with Segmenter(tiny_model, backend="onnxruntime") as segmenter:
        return folder, version, axes, segmenter.objects(image).labels


def test_yaozarrs_finds_no_fault(predicted):
    yaozarrs = pytest.importorskip("yaozarrs", reason=requirements.OME_ZARR_WRITER)
    folder, version, axes, _ = predicted
    for part in ("", "labels/objects"):
        yaozarrs.validate_zarr_store(str(folder / "ome-zarr/a.ome.zarr" / part))
        group = yaozarrs.open_group(str(folder / "ome-zarr/a.ome.zarr" / part))
        assert group.ome_version() == version
        (scales,) = group.ome_metadata().multiscales
        assert "".join(axis.name for axis in scales.axes).upper() == axes
        assert scales.datasets[0].coordinateTransformations[0].scale == [SIZES[axis] for axis in axes]


def test_ngff_zarr_finds_no_fault(predicted):
    ngff_zarr = pytest.importorskip("ngff_zarr", reason=requirements.NGFF_ZARR)
    folder, _, axes, labels = predicted
    for part in ("", "labels/objects"):
        first = ngff_zarr.from_ngff_zarr(str(folder / "ome-zarr/a.ome.zarr" / part), validate=True).images[0]
        assert first.scale == {axis.lower(): SIZES[axis] for axis in axes}
        np.testing.assert_array_equal(np.asarray(first.data), labels)


def test_ome_zarr_py_reads_labels(predicted):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    folder, _, axes, labels = predicted
    path = folder / "ome-zarr/a.ome.zarr"
    nodes = {node.zarr.path.rpartition("a.ome.zarr")[2]: node for node in Reader(parse_url(path))()}
    assert set(nodes) == {"", "/labels", "/labels/objects"}
    for name in ("", "/labels/objects"):
        assert "".join(axis["name"] for axis in nodes[name].metadata["axes"]).upper() == axes
        (scale, *_), _ = nodes[name].metadata["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [SIZES[axis] for axis in axes]}
        np.testing.assert_array_equal(np.asarray(nodes[name].data[0]), labels)
        assert nodes[name].data[1].shape == (*labels.shape[:-2], 75, 135)


@pytest.mark.skipif(not find_spec("napari"), reason=requirements.NAPARI)
def test_napari_shows_labels_at_the_right_scale(predicted):
    folder, _, axes, labels = predicted
    for name, scale, extent, units, total in layers_of(folder / "ome-zarr/a.ome.zarr"):
        assert (scale, total) == ([SIZES[axis] for axis in axes], labels.sum())
        assert extent[1][-1] == pytest.approx(270 * 0.25, abs=0.25), name
        assert units[-2:] == ["micrometer"] * 2


def test_tifffile_reads_tiles_and_levels(predicted):
    folder, _, axes, labels = predicted
    with tifffile.TiffFile(folder / "a.tif") as file:
        (series,) = file.series
        assert (series.axes, file.pages[0].is_tiled) == (axes, True)
        assert [level.shape for level in series.levels] == [labels.shape, (*labels.shape[:-2], 75, 135)]
        np.testing.assert_array_equal(series.asarray(), labels)
        assert file.pages[0].get_resolution("micrometer") == pytest.approx((4, 2))


def test_bioio_reads_labels_and_pixel_size(predicted):
    from bioio_ome_tiff import Reader

    folder, _, axes, labels = predicted
    image = Reader(folder / "a.tif")
    assert tuple(image.physical_pixel_sizes) == (2, 0.5, 0.25)
    np.testing.assert_array_equal(image.get_image_data(axes), labels)
