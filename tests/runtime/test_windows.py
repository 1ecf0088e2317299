"""Windows of images: equal to the parts of whole images, whatever the file, and clear where a part is missing."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests import requirements
from tests.runtime import test_microscopes as microscopes
from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.files.formats import AS_STORED, Reading
from unetrt.runtime.files.images import read_image
from unetrt.runtime.files.sources import list_images
from unetrt.runtime.files.windows import open_windows

# Each pixel is its own index in the array.
PLANE = np.arange(70 * 90, dtype=np.uint16).reshape(70, 90)
STACK = np.arange(2 * 3 * 70 * 90, dtype=np.uint16).reshape(2, 3, 70, 90)
COLOURS = (np.arange(70 * 90 * 3) % 251).astype(np.uint8).reshape(70, 90, 3)
DEEP = np.arange(20 * 70 * 90, dtype=np.uint32).reshape(20, 70, 90)
TILED = {"tile": (32, 16), "compression": "zlib"}


def tiff(pixels, **options):
    return lambda path: tifffile.imwrite(path.with_suffix(".tif"), pixels, **options)


def ome(pixels, axes, **options):
    return lambda path: tifffile.imwrite(path.with_suffix(".ome.tif"), pixels, metadata={"axes": axes}, **options)


def pyramid(path):
    with tifffile.TiffWriter(path.with_suffix(".ome.tif"), bigtiff=True) as file:
        file.write(STACK[0], subifds=1, metadata={"axes": "CYX"}, **TILED)
        file.write(STACK[0, :, ::2, ::2], subfiletype=1, **TILED)


def separate_strips(path):
    """Write pages of strips that are not one after the other: the first strip is at the end."""
    path = path.with_suffix(".tif")
    tifffile.imwrite(path, STACK[0], rowsperstrip=16, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page in file.pages:
            content = file.filehandle
            content.seek(page.dataoffsets[0])
            strip = content.read(16 * 90 * 2)
            end = content.seek(0, 2)
            content.write(strip)
            offsets = [page.dataoffsets[0] + 16 * 90 * 2 * index for index in range(5)]
            page.tags["StripOffsets"].overwrite([end, *offsets[1:]])


def set_of_files(path):
    uuids = ["urn:uuid:00000000-0000-0000-0000-00000000000" + str(number) for number in range(2)]
    planes = "".join(
        f'<TiffData FirstC="{channel}" FirstT="{number}" IFD="{channel}" PlaneCount="1">'
        f'<UUID FileName="a_{number}.ome.tif">{uuids[number]}</UUID></TiffData>'
        for number in range(2)
        for channel in range(3)
    )
    for number in range(2):
        text = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuids[number]}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="90" SizeY="70" '
            f'SizeC="3" SizeZ="1" SizeT="2">{planes}</Pixels></Image></OME>'
        )
        file = path.with_name(f"a_{number}.ome.tif")
        tifffile.imwrite(file, STACK[number], description=text, metadata=None, photometric="minisblack", **TILED)


def ome_zarr(version, **options):
    def write(path):
        zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
        axes = [
            {"name": name, "type": kind}
            for name, kind in zip("tcyx", ("time", "channel", "space", "space"), strict=True)
        ]
        scales = [{"axes": axes, "datasets": [{"path": "0"}]}]
        group = zarr.open_group(path.with_suffix(".zarr"), mode="w", zarr_format=2 if version < "0.5" else 3)
        group.attrs.update({"multiscales": scales} if version < "0.5" else {"ome": {"multiscales": scales}})
        group.create_array("0", data=STACK, **options)

    return write


def plain_zarr(**options):
    def write(path):
        zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
        zarr.create_array(path.with_suffix(".zarr"), data=STACK, **options)

    return write


def npy(pixels):
    return lambda path: np.save(path.with_suffix(".npy"), pixels)


def czi(path):
    planes = {(None, time, channel, 0): STACK[time, channel] for time in range(2) for channel in range(2)}
    microscopes.czi(path.with_suffix(".czi"), planes)


def nd2(path):
    microscopes.nd2(path.with_suffix(".nd2"), np.moveaxis(STACK[:, :2], 1, -1).copy())


FILES = {
    "tiles": (tiff(PLANE, **TILED), (32, 16)),
    "strips": (tiff(PLANE, compression="zlib", rowsperstrip=16), (16, 90)),
    "one strip": (tiff(PLANE), (1, 90)),
    "one compressed strip": (tiff(PLANE, compression="zlib", rowsperstrip=70), (70, 90)),
    "LZW with a predictor": (tiff(PLANE, compression="lzw", predictor=True, tile=(32, 16)), (32, 16)),
    "big endian": (tiff(PLANE, byteorder=">"), (1, 90)),
    "big endian tiles": (tiff(PLANE, byteorder=">", **TILED), (32, 16)),
    "bits": (tiff(PLANE % 3 == 0), (70, 90)),
    "big endian pages": (ome(STACK, "TCYX", byteorder=">"), (1, 90)),
    "deep volume": (tiff(DEEP, photometric="minisblack", tile=(16, 32, 16), compression="zlib"), (32, 16)),
    "colours": (tiff(COLOURS, photometric="rgb", **TILED), (32, 16)),
    "colours in one strip": (tiff(COLOURS, photometric="rgb"), (1, 90)),
    "separate colours": (
        tiff(COLOURS.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", **TILED), (32, 16),
    ),
    "JPEG": (tiff(COLOURS, photometric="ycbcr", tile=(32, 16), compression="jpeg"), (32, 16)),
    "ImageJ": (tiff(STACK, imagej=True), (1, 90)),
    "pages": (tiff(STACK[0], photometric="minisblack", **TILED), (32, 16)),
    "volume": (tiff(STACK[0], photometric="minisblack", tile=(16, 32, 16), compression="zlib"), (32, 16)),
    "separate strips": (separate_strips, (16, 90)),
    "OME": (ome(STACK, "TCYX"), (1, 90)),
    "OME tiles": (ome(STACK, "TCYX", **TILED), (32, 16)),
    "OME colours": (ome(np.stack([COLOURS, COLOURS[::-1]]), "TYXS", photometric="rgb", **TILED), (32, 16)),
    "pyramid": (pyramid, (32, 16)),
    "several files": (set_of_files, (32, 16)),
    "OME-Zarr 0.4": (ome_zarr("0.4", chunks=(1, 1, 32, 16)), (32, 16)),
    "OME-Zarr 0.5": (ome_zarr("0.5", chunks=(1, 3, 32, 16)), (32, 16)),
    "shards": (ome_zarr("0.5", chunks=(1, 1, 32, 16), shards=(1, 3, 64, 64)), (64, 64)),
    "Zarr 2": (plain_zarr(chunks=(1, 2, 32, 16), zarr_format=2), (32, 16)),
    "Zarr 3": (plain_zarr(chunks=(2, 2, 32, 16)), (32, 16)),
    "numpy": (npy(STACK), (1, 90)),
    "numpy, columns first": (npy(np.asfortranarray(STACK)), (1, 90)),
    "numpy, big endian": (npy(PLANE.astype(">u2")), (1, 90)),
    "numpy, colours": (npy(COLOURS), (1, 90)),
    "bool": (npy(PLANE % 3 == 0), (1, 90)),
    "PNG": (lambda path: Image.fromarray(COLOURS).save(path.with_suffix(".png")), (70, 90)),
    "CZI": (czi, (70, 90)),
    "ND2": (nd2, (70, 90)),
}  # fmt: skip
PARTS = [
    (slice(0, 70), slice(0, 90)),
    (slice(0, 1), slice(89, 90)),
    (slice(31, 65), slice(15, 49)),
    (slice(32, 64), slice(16, 32)),
]


@contextmanager
def opened(place, reading=AS_STORED, **options):
    """Open the windows of the only image in a folder."""
    (source,) = list_images(place, reading)
    with open_windows(source, reading, **options) as windows:
        yield windows, read_image(source, reading)


@pytest.mark.parametrize(("write", "chunk"), FILES.values(), ids=FILES)
def test_windows_are_parts_of_the_image(tmp_path, write, chunk):
    write(tmp_path / "a")
    with opened(tmp_path) as (windows, whole):
        assert (windows.shape, windows.chunk) == (whole.pixels.shape, chunk)
        assert windows.layout == whole.layout
        for frame in range(len(whole.pixels)):
            for rows, columns in PARTS:
                window, expected = windows.read(frame, rows, columns), whole.pixels[frame, :, rows, columns]
                assert window.dtype == windows.dtype == expected.dtype
                np.testing.assert_array_equal(window, expected)


@pytest.mark.parametrize("channel", [(1,), (2, 0), (1, 2)])
@pytest.mark.parametrize(
    "kind", ["OME tiles", "colours", "separate colours", "OME-Zarr 0.5", "OME colours", "numpy, colours"]
)
def test_channels_of_windows(tmp_path, kind, channel):
    FILES[kind][0](tmp_path / "a")
    with opened(tmp_path, Reading(channel=channel)) as (windows, whole):
        assert windows.shape == whole.pixels.shape
        for frame in range(len(whole.pixels)):
            np.testing.assert_array_equal(windows.read(frame, *PARTS[2]), whole.pixels[(frame, slice(None), *PARTS[2])])


def test_axes_of_windows(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[0], photometric="minisblack", **TILED)
    for axes, shape in (("ZYX", (3, 1, 70, 90)), ("CYX", (1, 3, 70, 90)), ("YXC", (1, 90, 3, 70))):
        with opened(tmp_path, Reading(axes=axes)) as (windows, whole):
            assert windows.shape == whole.pixels.shape == shape
            np.testing.assert_array_equal(windows.read(0, slice(1, 3), slice(5, 60)), whole.pixels[0, :, 1:3, 5:60])


def test_a_series_of_windows(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        for value in range(2):
            file.write(STACK[value], metadata={"axes": "CYX"}, **TILED)
    for index, source in enumerate(list_images(tmp_path)):
        with open_windows(source) as windows:
            np.testing.assert_array_equal(windows.read(0, *PARTS[2]), STACK[(index, slice(None), *PARTS[2])])
    with open_windows(tmp_path / "a.ome.tif", Reading(series=1)) as windows:
        np.testing.assert_array_equal(windows.read(0, *PARTS[2]), STACK[(1, slice(None), *PARTS[2])])
    with pytest.raises(FrameError, match=r"a.ome.tif holds 2 images"), open_windows(tmp_path / "a.ome.tif"):
        pass


@pytest.mark.parametrize(
    "kind", ["tiles", "one strip", "OME tiles", "several files", "OME-Zarr 0.5", "numpy", "PNG", "CZI"]
)
def test_threads_read_at_once(tmp_path, kind):
    FILES[kind][0](tmp_path / "a")
    with opened(tmp_path) as (windows, whole), ThreadPoolExecutor(8) as threads:
        places = [
            (frame, slice(row, row + 7), slice(column, column + 9))
            for frame in range(len(whole.pixels))
            for row in range(0, 63, 7)
            for column in range(0, 81, 9)
        ]
        for (frame, *place), window in zip(
            places, threads.map(lambda place: windows.read(*place), places), strict=True
        ):
            np.testing.assert_array_equal(window, whole.pixels[(frame, slice(None), *place)])


BAD_WINDOWS = [
    (2, slice(0, 9), slice(0, 9), "the frame of a window must be 0 ... 1 .got 2"),
    (-1, slice(0, 9), slice(0, 9), "the frame of a window must be"),
    (0, slice(0, 71), slice(0, 9), "rows of a window must be in 0:70 .got 0:71"),
    (0, slice(0, 9), slice(-1, 9), "columns of a window must be in 0:90"),
    (0, slice(5, 5), slice(0, 9), "rows of a window must be"),
    (0, slice(None), slice(0, 9), "rows of a window must be"),
]


@pytest.mark.parametrize(("frame", "rows", "columns", "message"), BAD_WINDOWS)
def test_windows_outside_of_the_image(tmp_path, frame, rows, columns, message):
    np.save(tmp_path / "a.npy", STACK)
    with open_windows(tmp_path / "a.npy") as windows, pytest.raises(OptionError, match=message):
        windows.read(frame, rows, columns)


def arrays():
    zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
    dask = pytest.importorskip("dask.array", reason=requirements.DASK)
    yield STACK
    yield zarr.array(STACK, chunks=(1, 1, 32, 16))
    yield dask.from_array(STACK, chunks=(1, 1, 32, 16))


def test_windows_of_arrays():
    for array in arrays():
        with open_windows(array, channels=3) as windows:
            assert windows.shape == STACK.shape
            np.testing.assert_array_equal(windows.read(1, *PARTS[2]), STACK[(1, slice(None), *PARTS[2])])
        with open_windows(array, channels=1) as windows:
            assert windows.shape == (6, 1, 70, 90)
            np.testing.assert_array_equal(windows.read(4, *PARTS[2])[0], STACK[(1, 1, *PARTS[2])])
        with open_windows(array, Reading(axes="CTYX", select=("T=1:",))) as windows:
            assert windows.shape == (2, 2, 70, 90)
            np.testing.assert_array_equal(windows.read(1, *PARTS[2]), STACK[(slice(None), 2, *PARTS[2])])
    with (
        pytest.raises(FrameError, match=r"the image has shape .* 3 channels: this model takes"),
        open_windows(STACK, channels=2),
    ):
        pass


def test_windows_of_a_file_in_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py", reason=requirements.HDF5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = STACK
        with open_windows(file["a"], channels=3) as windows:
            np.testing.assert_array_equal(windows.read(1, *PARTS[2]), STACK[(1, slice(None), *PARTS[2])])


@pytest.fixture
def remote():
    """Yield the address of an empty folder in memory."""
    pytest.importorskip("zarr", reason=requirements.ZARR)
    fsspec = pytest.importorskip("fsspec", reason=requirements.DASK)
    files = fsspec.filesystem("memory")
    yield "memory://windows"
    files.rm("/windows", recursive=True)


@pytest.mark.parametrize("kind", ["OME-Zarr 0.4", "OME-Zarr 0.5", "shards", "Zarr 2", "Zarr 3"])
def test_windows_at_an_address(tmp_path, remote, kind):
    write, chunk = FILES[kind]
    write(tmp_path / "a")
    fsspec = pytest.importorskip("fsspec", reason=requirements.DASK)
    fsspec.filesystem("memory").put(str(tmp_path / "a.zarr"), "/windows/a.zarr", recursive=True)
    axes = Reading(axes="TCYX")
    for address in (f"{remote}/a.zarr", (tmp_path / "a.zarr").as_uri()):
        with open_windows(address, axes) as windows:
            assert (windows.shape, windows.chunk) == (STACK.shape, chunk)
            np.testing.assert_array_equal(windows.read(1, *PARTS[2]), STACK[(1, slice(None), *PARTS[2])])


REMOTE = {
    "missing": (lambda files, chunk: files.rm(chunk), r"lacks the chunk 1.0.2.4: .*T 1:2, C 0:3, rows 64:70, columns"),
    "large": (lambda files, chunk: files.pipe(chunk, bytes(2**21)), r"holds 1.0.2.4 of more than"),
    "damaged": (lambda files, chunk: files.pipe(chunk, b"abc"), r"cannot be read \(T 1:2, C 0:3, rows 64:70, columns"),
}


@pytest.mark.parametrize("kind", REMOTE)
def test_chunks_at_an_address_are_checked(tmp_path, remote, kind):
    damage, message = REMOTE[kind]
    ome_zarr("0.4", chunks=(1, 3, 32, 16))(tmp_path / "a")
    files = pytest.importorskip("fsspec", reason=requirements.DASK).filesystem("memory")
    files.put(str(tmp_path / "a.zarr"), "/windows/a.zarr", recursive=True)
    damage(files, "/windows/a.zarr/0/1.0.2.4")
    with open_windows(f"{remote}/a.zarr") as windows:
        assert windows.read(0, *PARTS[0]).shape == (3, 70, 90)
        with pytest.raises(
            FrameError, match=rf"^memory://windows/a.zarr \(frame 1, rows 0:70, columns 0:90\) {message}"
        ):
            windows.read(1, *PARTS[0])


def test_addresses_without_an_image(tmp_path, remote):
    ome_zarr("0.4", chunks=(1, 3, 32, 16))(tmp_path / "a")
    files = pytest.importorskip("fsspec", reason=requirements.DASK).filesystem("memory")
    files.put(str(tmp_path / "a.zarr" / ".zgroup"), "/windows/.zgroup")
    for address, message in {
        remote: "is a group without an image: give the address",
        f"{remote}/none.zarr": "cannot be read: ",
        "nothing://a.zarr": "cannot be read: Protocol not known: nothing",
    }.items():
        with pytest.raises(FrameError, match=f"^{address} {message}"), open_windows(address):
            pass


def test_opacity_and_grey_are_left_out_of_windows(tmp_path):
    grey = np.repeat(COLOURS[..., :1], 3, -1)
    opaque = np.concatenate([grey, np.full_like(grey[..., :1], 255)], -1)
    for name, pixels in {"grey": grey, "opaque": opaque}.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", **TILED)
        with open_windows(tmp_path / f"{name}.tif", channels=1) as windows:
            assert windows.shape == (1, 1, 70, 90)
            np.testing.assert_array_equal(windows.read(0, *PARTS[2])[0], grey[(*PARTS[2], 0)])
    with open_windows(tmp_path / "opaque.tif", channels=3) as windows:
        assert windows.shape == (1, 3, 70, 90)
        np.testing.assert_array_equal(windows.read(0, *PARTS[2])[1], grey[(*PARTS[2], 1)])
    with open_windows(tmp_path / "opaque.tif", channels=4) as windows:
        assert windows.shape == (1, 4, 70, 90)
    grey[40, 50, 1] += 1
    opaque[10, 5, 3] = 254
    for name, pixels in {"grey": grey, "opaque": opaque}.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", **TILED)
    with open_windows(tmp_path / "grey.tif", channels=1) as windows:
        assert windows.read(0, slice(0, 40), slice(0, 90)).shape == (1, 40, 90)
        with pytest.raises(FrameError, match=r"grey.tif \(frame 0, rows 40:41, columns 0:90\) has colours"):
            windows.read(0, slice(40, 41), slice(0, 90))
    with (
        open_windows(tmp_path / "opaque.tif", channels=3) as windows,
        pytest.raises(FrameError, match=r"opaque.tif \(frame 0, rows 0:20, columns 0:90\) has a last channel that"),
    ):
        windows.read(0, slice(0, 20), slice(0, 90))
    with (
        pytest.raises(FrameError, match=r"grey.tif has 3 channels: this model takes 2"),
        open_windows(tmp_path / "grey.tif", channels=2),
    ):
        pass


def without_segment(path, index=5, page=1):
    with tifffile.TiffFile(path, mode="r+b") as file:
        offsets, counts = (list(file.pages[page].tags[name].value) for name in ("TileOffsets", "TileByteCounts"))
        offsets[index] = counts[index] = 0
        file.pages[page].tags["TileOffsets"].overwrite(offsets)
        file.pages[page].tags["TileByteCounts"].overwrite(counts)


def test_a_missing_tile_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0] + 1, photometric="minisblack", **TILED)
    without_segment(path)
    lost = r"lacks the tile at rows 0:32, columns 80:90 of page 1: .* give --missing-chunks fill"
    with open_windows(path) as windows:
        assert windows.read(0, *PARTS[0]).shape == (1, 70, 90)
        assert windows.read(1, slice(0, 70), slice(0, 80)).all()
        with pytest.raises(FrameError, match=rf"a.tif \(frame 1, rows 20:30, columns 80:90\) {lost}"):
            windows.read(1, slice(20, 30), slice(80, 90))
    with pytest.raises(FrameError, match=rf"a.tif {lost}"):
        read_image(path)
    with opened(path, Reading(missing_chunks="fill")) as (windows, whole):
        assert not whole.pixels[1, 0, :32, 80:].any()
        assert whole.pixels[1, 0, 32:].all()
        np.testing.assert_array_equal(windows.read(1, *PARTS[0]), whole.pixels[1])
    np.testing.assert_array_equal(read_image(path, as_labels=True).pixels, whole.pixels)


CUT = {
    "tiles": r"is cut off: the tile at rows \d+:\d+, columns \d+:\d+ of page 0 end at byte \d+, and a.tif has \d+",
    "strips": r"is cut off: the strip at rows \d+:70, columns 0:90 of page 0 end",
    "one strip": r"is cut off: its pixels end at byte 1\d+, and a.tif has 10000",
}


@pytest.mark.parametrize("kind", CUT)
def test_a_file_that_is_cut_off(tmp_path, kind):
    path = tmp_path / "a.tif"
    FILES[kind][0](path.with_suffix(""))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(10000 if kind == "one strip" else size - 100)
    with open_windows(path) as windows, pytest.raises(FrameError, match=rf"a.tif \(frame 0, rows 0:70.*{CUT[kind]}"):
        windows.read(0, *PARTS[0])
    with pytest.raises(FrameError, match=r"a.tif (is cut off|cannot be read: )"):
        read_image(path, Reading(missing_chunks="fill"))


def test_a_numpy_file_that_is_cut_off_later(tmp_path):
    np.save(tmp_path / "a.npy", PLANE)
    with open_windows(tmp_path / "a.npy") as windows:
        with (tmp_path / "a.npy").open("r+b") as file:
            file.truncate(5000)
        with pytest.raises(
            FrameError, match=r"a.npy \(frame 0, rows .*\) is cut off: its pixels end at byte 12728, and"
        ):
            windows.read(0, *PARTS[0])


@pytest.fixture(params=[2, 3])
def image(request, tmp_path):
    zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
    names = {"dimension_names": "tcyx"} if request.param == 3 else {}
    array = zarr.create_array(
        tmp_path / "a.zarr", data=STACK + 1, chunks=(1, 3, 32, 16), zarr_format=request.param, **names
    )
    array.attrs["_ARRAY_DIMENSIONS"] = list("tcyx")
    return tmp_path / "a.zarr", tmp_path / "a.zarr" / ("c/1/0/2/4" if request.param == 3 else "1.0.2.4")


PLACE = r"\(T 1:2, C 0:3, rows 64:70, columns 64:80\)"


def test_a_missing_chunk_is_named(image):
    path, chunk = image
    chunk.unlink()
    lost = rf"lacks the chunk (c/1/0/2/4|1.0.2.4): .* give --missing-chunks fill .* {PLACE}$"
    with open_windows(path) as windows:
        assert windows.read(0, *PARTS[0]).all()
        assert windows.read(1, slice(0, 64), slice(0, 90)).all()
        with pytest.raises(FrameError, match=rf"a.zarr \(frame 1, rows 65:66, columns 60:90\) {lost}"):
            windows.read(1, slice(65, 66), slice(60, 90))
    with pytest.raises(FrameError, match=rf"a.zarr {lost}"):
        read_image(path)
    with opened(path, Reading(missing_chunks="fill")) as (windows, whole):
        assert not whole.pixels[1, :, 64:, 64:80].any()
        assert whole.pixels[1, :, :64].all()
        np.testing.assert_array_equal(windows.read(1, *PARTS[0]), whole.pixels[1])
    np.testing.assert_array_equal(read_image(path, as_labels=True).pixels, whole.pixels)


@pytest.mark.parametrize("keep", [0, 10, -20])
def test_a_damaged_chunk_is_named(image, keep):
    path, chunk = image
    chunk.write_bytes(chunk.read_bytes()[:keep])
    for read in (read_image, lambda path: read_image(path, Reading(missing_chunks="fill"))):
        with pytest.raises(FrameError, match=rf"a.zarr .*{PLACE}"):
            read(path)
    with open_windows(path) as windows:
        assert windows.read(0, *PARTS[0]).all()
        with pytest.raises(FrameError, match=rf"a.zarr \(frame 1, rows 65:66, columns 0:90\) .*{PLACE}"):
            windows.read(1, slice(65, 66), slice(0, 90))


def test_memory_is_that_of_windows(tmp_path):
    """A window takes the memory of its own pixels and of the tiles it touches, and not that of the image."""
    pixels = np.zeros((4096, 4096), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256), compression="zlib")
    tifffile.imwrite(tmp_path / "b.tif", pixels)
    np.save(tmp_path / "c.npy", pixels)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(FrameError, match="at most 1 MiB are read"):
            read_image(path, Reading(2**20))
        with open_windows(path, Reading(2**20)) as windows:
            windows.read(0, slice(0, 1), slice(0, 1))
            tracemalloc.start()
            windows.read(0, slice(300, 900), slice(300, 900))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 4 * 2**20, path
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression="zlib", rowsperstrip=4096)
    with (
        pytest.raises(FrameError, match=r"declares 4096 x 4096 .* or save it in tiles, as with: bfconvert -tilex"),
        open_windows(tmp_path / "a.tif", Reading(2**20)),
    ):
        pass
