import io
from functools import partial

import numpy as np
import pytest
import tifffile
from PIL import EpsImagePlugin, Image

from tests import requirements
from tests.runtime.damage import refusals
from unetrt.runtime.errors import FrameError, OutputError
from unetrt.runtime.files.images import read_labels, read_stack, require_distinct, stack_shape
from unetrt.runtime.files.outputs import places
from unetrt.runtime.files.outputs.label_tiff import write_labels
from unetrt.runtime.files.sources import ImageSource, list_images, source_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "options", "order", "read"),
    [
        ((5, 7), {}, (0, 1), (1, 1, 5, 7)),
        ((3, 5, 7), {"photometric": "minisblack"}, (0, 1, 2), (3, 1, 5, 7)),
        ((5, 7, 3), {"photometric": "rgb"}, (2, 0, 1), (1, 3, 5, 7)),
        ((2, 3, 5, 7), {"imagej": True, "metadata": {"axes": "TCYX"}}, (0, 1, 2, 3), (2, 3, 5, 7)),
        ((2, 4, 5, 7), {"ome": True, "metadata": {"axes": "TZYX"}}, (0, 1, 2, 3), (8, 1, 5, 7)),
        ((2, 4, 5, 7), {"ome": True, "metadata": {"axes": "CZYX"}}, (1, 0, 2, 3), (4, 2, 5, 7)),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_tiffs_own_axes_decide(tmp_path, shape, options, order, read, dtype):
    pixels = RNG.integers(0, 200, shape).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    stack = read_stack(tmp_path / "a.tif")
    assert stack.dtype == dtype
    assert stack_shape(tmp_path / "a.tif") == stack.shape
    np.testing.assert_array_equal(stack, pixels.transpose(order).reshape(read))


@pytest.mark.parametrize(
    ("pixels", "read"),
    [
        (RNG.integers(0, 255, (5, 7), np.uint8), (1, 1, 5, 7)),
        (RNG.integers(0, 65535, (5, 7), np.uint16), (1, 1, 5, 7)),
        (RNG.integers(0, 255, (5, 7, 3), np.uint8), (1, 3, 5, 7)),
    ],
)
def test_png(tmp_path, pixels, read):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    stack = read_stack(tmp_path / "a.png")
    assert (stack.shape, stack.dtype) == (read, pixels.dtype)
    assert stack_shape(tmp_path / "a.png") == read
    np.testing.assert_array_equal(np.squeeze(stack), pixels if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0))


def test_a_palette_png_gives_its_indices(tmp_path):
    pixels = RNG.integers(0, 3, (5, 7), np.uint8)
    image = Image.fromarray(pixels, mode=None)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tif", b"not a tiff", "a.tif cannot be read"),
        ("a.tif", b"", "a.tif cannot be read"),
        ("a.tif", b"II*\0\0\0\0\0", "a.tif holds no image: save it again"),
        ("a.png", b"not a png", "a.png is not an image"),
        ("a.png", b"", "a.png is not an image"),
    ],
)
def test_what_is_no_image(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FrameError, match=message):
        read_stack(tmp_path / name)
    assert stack_shape(tmp_path / name) is None


@pytest.mark.parametrize(
    ("shape", "read"), [((5, 7), (1, 1, 5, 7)), ((3, 5, 7), (3, 1, 5, 7)), ((2, 5, 7, 3), (2, 3, 5, 7))]
)
def test_shapes_of_arrays_are_read_without_pixels(tmp_path, shape, read):
    zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
    pixels = RNG.integers(0, 200, shape).astype(np.uint16)
    np.save(tmp_path / "a.npy", pixels)
    store = zarr.open(tmp_path / "a.zarr", mode="w", shape=shape, dtype=np.uint16)
    store[...] = pixels
    for name in ("a.npy", "a.zarr"):
        assert stack_shape(tmp_path / name) == read_stack(tmp_path / name).shape == read
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:100])
    assert stack_shape(tmp_path / "cut.npy") is None
    np.save(tmp_path / "odd.npy", np.zeros((2, 2, 2, 2, 2)))
    np.save(tmp_path / "objects.npy", np.array([[None]]), allow_pickle=True)
    for name in ("odd.npy", "objects.npy", "none.tif", "none.png", "none.zarr"):
        assert stack_shape(tmp_path / name) is None


def test_the_shape_is_read_from_the_header_alone(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 300, 400), np.uint16), photometric="minisblack")
    Image.fromarray(RNG.integers(0, 255, (300, 400), np.uint8)).save(tmp_path / "a.png")
    for name, number in (("a.tif", 2), ("a.png", 1)):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        assert stack_shape(tmp_path / name) == (number, 1, 300, 400)
        with pytest.raises(FrameError):
            read_stack(tmp_path / name)


def _write(path, pixels):
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    elif path.stem == "plain":
        tifffile.imwrite(path, pixels)
    else:
        write_labels(path, pixels)


@pytest.mark.filterwarnings("ignore")  # the decoders' remarks about damaged files
@pytest.mark.parametrize("name", ["plain.tif", "compressed.tif", "a.png"])
def test_a_damaged_image_is_read_or_refused_in_one_way(tmp_path, name):
    """Any byte may be wrong, and the file may end anywhere: an array or a FrameError, nothing else."""
    _write(tmp_path / name, RNG.integers(0, 255, (64, 64), np.uint8))
    assert refusals(tmp_path / name) > 50


def test_lzw_is_read_where_its_codec_is_and_else_names_the_extra(tmp_path, monkeypatch):
    pixels = RNG.integers(0, 9, (64, 64), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_stack(tmp_path / "a.tif")[0, 0], pixels)

    def missing(*_):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", missing)
    with pytest.raises(FrameError, match=r"needs: pip install 'unetrt\[codecs\]'"):
        read_stack(tmp_path / "a.tif")


def test_what_would_be_read_in_part_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for side in (8, 9):
            tiff.write(np.zeros((side, side), np.uint8))
    with pytest.raises(FrameError, match=r"a.tif holds 2 images of different kinds"):
        read_stack(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 5, 5), np.uint8), "2 frames: save labels as one grey plane"),
        (np.full((5, 5), 0.5, np.float32), "not labels: use whole numbers"),
        (np.full((5, 5), -1, np.int16), "not labels: use whole numbers"),
        (np.full((5, 5), 1e300), "a.tif holds float64 values that are not labels: use whole numbers"),
        (np.full((5, 5), np.inf), "a.tif holds float64 values that are not labels: use whole numbers"),
    ],
)
def test_what_are_no_labels(tmp_path, labels, message):
    tifffile.imwrite(tmp_path / "a.tif", labels, photometric="minisblack")
    with pytest.raises(FrameError, match=message):
        read_labels(tmp_path / "a.tif")


def test_grey_labels_saved_as_colours_are_read(tmp_path):
    labels = RNG.integers(0, 9, (5, 7), np.uint8)
    Image.fromarray(np.stack([labels] * 3, axis=-1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), labels)


@pytest.mark.parametrize(
    ("names", "kinds", "more", "message"),
    [
        (["b", "montage"], ["labels"], {"overlays": True, "sheet": True}, r"montage.tif would become overlays/montage"),
        (["x", "x/0001"], ["outlines"], {}, "x.tif, if it is a stack, and .*0001.tif would both become .*x/0001.png"),
        (["x", "x.ome.zarr/a"], ["ome-zarr"], {}, "a.tif would be written into ome-zarr/x.ome.zarr, which .*x.tif"),
        (["s" * 248], ["geojson"], {}, "sss.geojson, of 256 bytes, is too long for the name of a file"),
    ],
)
def test_files_of_other_kinds_that_would_collide(tmp_path, names, kinds, more, message):
    sources = [ImageSource(tmp_path / f"{name}.tif", name) for name in names]
    with pytest.raises(OutputError, match=message):
        require_distinct(sources, tmp_path / "out", partial(places, kinds, **more))
    for source in sources:
        if source.name != "montage" and len(source.name) < 200:
            require_distinct([source], tmp_path / "out", partial(places, kinds, **more))
    require_distinct(sources, tmp_path / "out")


def test_names_that_differ_in_case_are_two_files_where_the_disk_says_so(tmp_path):
    sources = [ImageSource(tmp_path / f"{folder}/a.tif", f"{name}") for folder, name in (("1", "a"), ("2", "A"))]
    (tmp_path / "letters").mkdir()
    if (tmp_path / "LETTERS").exists():
        with pytest.raises(OutputError, match="would both become"):
            require_distinct(sources, tmp_path / "letters")
    else:
        require_distinct(sources, tmp_path / "letters")


def test_an_image_inside_a_folder_that_would_be_replaced(tmp_path):
    image = ImageSource(tmp_path / "ome-zarr" / "a.ome.zarr" / "labels" / "objects", "a")
    for sources, inputs in (([image], []), ([source_of("a.tif")], [image])):
        with pytest.raises(OutputError, match="a.ome.zarr holds an input and would be replaced: choose another"):
            require_distinct(sources, tmp_path, partial(places, ["ome-zarr"]), inputs=inputs)


def test_files_that_would_collide_or_be_overwritten(tmp_path):
    with pytest.raises(OutputError, match=r"would both become a.tif"):
        require_distinct([source_of(tmp_path / name) for name in ("a.tif", "a.png")], tmp_path / "out")
    with pytest.raises(OutputError, match="would be overwritten"):
        require_distinct([source_of(tmp_path / "a.tif")], tmp_path)
    overlays = [source_of(tmp_path / "overlays" / "a.png")]
    with pytest.raises(OutputError, match="would be overwritten"):
        require_distinct(overlays, tmp_path, partial(places, ["labels"], overlays=True))
    require_distinct(overlays, tmp_path)
    with pytest.raises(OutputError, match="would be overwritten"):
        require_distinct([source_of(tmp_path / "b.tif")], tmp_path, inputs=[source_of(tmp_path / "b.tif")])
    with pytest.raises(OutputError, match="a.tif is an input and would be overwritten"):
        require_distinct([source_of(tmp_path / "new" / "a.png")], tmp_path, inputs=[source_of(tmp_path / "a.tif")])


def test_images_of_a_folder_are_sorted_and_others_left_out(tmp_path):
    for name in ("b.tif", "a.PNG", "notes.txt", ".hidden.tif"):
        (tmp_path / name).touch()
    assert [source.path.name for source in list_images(tmp_path)] == ["a.PNG", "b.tif"]
    with pytest.raises(FrameError, match="does not exist"):
        list_images(tmp_path / "none")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def in_format(name):
    file = io.BytesIO()
    Image.new("L", (8, 8), 7).save(file, name)
    return file.getvalue()


@pytest.mark.parametrize("name", ["EPS", "BMP", "GIF", "ICO", "JPEG", "PDF", "PPM", "TGA", "TIFF", "WEBP"])
@pytest.mark.parametrize("suffix", [".png", ".PNG", ".eps"])
def test_a_file_is_what_its_suffix_says(tmp_path, monkeypatch, name, suffix):
    """Pillow starts Ghostscript, `gs`, for PostScript."""
    started, program = tmp_path / "started", tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(POSTSCRIPT if name == "EPS" else in_format(name))
    with pytest.raises(FrameError, match=f"a{suffix} is not an image: .tif, .tiff, .* are read"):
        read_stack(path)
    assert stack_shape(path) is None
    assert not started.exists()
