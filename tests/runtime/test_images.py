import numpy as np
import pytest
import tifffile
from PIL import Image

from unetrt.runtime.errors import FrameError, OutputError
from unetrt.runtime.images import list_images, read_labels, read_stack, require_distinct, write_labels, write_png

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "options", "read"),
    [
        ((5, 7), {}, (1, 1, 5, 7)),
        ((3, 5, 7), {"photometric": "minisblack"}, (3, 1, 5, 7)),
        ((5, 7, 3), {"photometric": "rgb"}, (1, 3, 5, 7)),
        ((2, 3, 5, 7), {"imagej": True, "metadata": {"axes": "TCYX"}}, (2, 3, 5, 7)),
        ((2, 4, 5, 7), {"ome": True, "metadata": {"axes": "TZYX"}}, (8, 1, 5, 7)),
        ((2, 4, 5, 7), {"ome": True, "metadata": {"axes": "CZYX"}}, (4, 2, 5, 7)),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_tiffs_own_axes_decide(tmp_path, shape, options, read, dtype):
    pixels = RNG.integers(0, 200, shape).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    stack = read_stack(tmp_path / "a.tif")
    assert (stack.shape, stack.dtype) == (read, dtype)
    assert sorted(stack.ravel()) == sorted(pixels.ravel())


def test_channels_of_a_tiff_keep_their_order(tmp_path):
    pixels = RNG.integers(0, 200, (2, 3, 5, 7)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "TCYX"})
    np.testing.assert_array_equal(read_stack(tmp_path / "a.tif"), pixels)


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
        ("a.png", b"not a png", "a.png is not an image"),
        ("a.png", b"", "a.png is not an image"),
    ],
)
def test_what_is_no_image(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FrameError, match=message):
        read_stack(tmp_path / name)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_truncated_image_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    pixels = RNG.integers(0, 255, (64, 64), np.uint8)
    (tifffile.imwrite if suffix == ".tif" else lambda p, x: Image.fromarray(x).save(p))(path, pixels)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FrameError, match="cannot be read"):
        read_stack(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 5, 5), np.uint8), "2 frames of 1 channels: labels are one plane"),
        (np.full((5, 5), 0.5, np.float32), "no labels: use whole numbers"),
        (np.full((5, 5), -1, np.int16), "no labels: use whole numbers"),
    ],
)
def test_what_are_no_labels(tmp_path, labels, message):
    tifffile.imwrite(tmp_path / "a.tif", labels, photometric="minisblack")
    with pytest.raises(FrameError, match=message):
        read_labels(tmp_path / "a.tif")


@pytest.mark.parametrize(("highest", "dtype"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (70000, "uint32")])
def test_labels_are_written_in_the_smallest_dtype(tmp_path, highest, dtype):
    labels = np.zeros((6, 5), np.int32)
    labels[2, 3] = highest
    write_labels(tmp_path / "deep" / "a.tif", labels)
    assert tifffile.imread(tmp_path / "deep" / "a.tif").dtype == dtype
    np.testing.assert_array_equal(read_labels(tmp_path / "deep" / "a.tif"), labels)


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(AttributeError):
        write_png(tmp_path / "a.png", "no picture")
    assert list(tmp_path.iterdir()) == []


def test_files_that_would_collide_or_be_overwritten(tmp_path):
    with pytest.raises(OutputError, match=r"would both become a.tif"):
        require_distinct([tmp_path / "a.tif", tmp_path / "a.png"], tmp_path / "out")
    with pytest.raises(OutputError, match="would overwrite it"):
        require_distinct([tmp_path / "a.tif"], tmp_path)


def test_images_of_a_folder_are_sorted_and_others_left_out(tmp_path):
    for name in ("b.tif", "a.PNG", "notes.txt", ".hidden.tif"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.PNG", "b.tif"]
    with pytest.raises(FrameError, match="does not exist"):
        list_images(tmp_path / "none")
