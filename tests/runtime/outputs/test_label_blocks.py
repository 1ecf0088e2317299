"""Labels that are not in memory: written by blocks as OME-Zarr and as tiled OME-TIFF, and opened by other programs."""

import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context

import numpy as np
import pytest
import tifffile
import zarr

from tests import requirements
from unetrt.runtime.errors import FrameError, OptionError, OutputError, UnetrtError
from unetrt.runtime.files.images import layout_of, read_label_stack
from unetrt.runtime.files.outputs import label_tiff
from unetrt.runtime.files.outputs.label_tiff import write_label_levels, write_labels
from unetrt.runtime.files.outputs.label_zarr import write_metadata
from unetrt.runtime.files.outputs.zarr_pyramid import Pyramid, halved
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.geometry.blocks import BlockPlan
from unetrt.runtime.geometry.plan import Geometry, TilePlan

RNG = np.random.default_rng(0)
SIZE = PixelSize(0.5, 0.25, 2)
VERSIONS = ("0.4", "0.5")
WHOLE = (slice(0, 64), slice(0, 64))


def numbers(rows, columns):
    """Pixels that are their coordinates, every fifth of them background."""
    down, across = np.arange(rows.start, rows.stop)[:, None], np.arange(columns.start, columns.stop)
    return np.where((down + across) % 5, down * 100_000 + across, 0).astype(np.uint32)


def whole(shape):
    return np.broadcast_to(numbers(slice(0, shape[-2]), slice(0, shape[-1])), shape)


def write_region(labels, rows, columns, plane):
    labels.write(rows, columns, numbers(rows, columns), plane)


def written(store, shape, axes="YX", version="0.4", *, dtype="uint32", **others):
    """A finished OME-Zarr of `numbers`, written region by region, the last region first."""
    labels = Pyramid(store, shape, dtype, axes, chunk=(64, 128), block=(128, 256), version=version, **others)
    labels.create()
    for level in range(len(labels.shapes)):
        for plane, region in product(np.ndindex(shape[:-2]), reversed(list(labels.regions(level)))):
            write_region(labels, *region, plane) if level == 0 else labels.coarsen(level, *region, plane)
    write_metadata(labels, "a")
    return labels


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [(700, 900), (2, 3, 300, 257), (64, 64), (1, 1), (1, 1500)])
def test_levels_that_are_written_by_blocks_equal_those_of_the_whole(tmp_path, version, shape):
    labels = written(tmp_path / "a.ome.zarr", shape, "TZYX"[-len(shape) :], version)
    expected = whole(shape)
    for level in labels.levels:
        np.testing.assert_array_equal(level[...], expected)
        expected = halved(expected, "mode")
    assert labels.shapes[-1][-1] <= 256


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pool", [ThreadPoolExecutor, partial(ProcessPoolExecutor, mp_context=get_context("spawn"))])
def test_blocks_of_a_plan_are_written_by_several_workers(tmp_path, pool, version):
    plan = BlockPlan(TilePlan((1100, 1300), (300, 300), Geometry.unet(depth=2)), (500, 500))
    chunk = plan.chunk(128)
    labels = Pyramid(tmp_path / "a", (1100, 1300), "uint32", chunk=chunk, block=plan.size, version=version)
    labels.create()
    with pool(2) as workers:
        writing = [workers.submit(write_region, labels, block.rows, block.columns, ()) for block in plan]
        assert len([one.result(60) for one in writing]) == len(plan) > 4
        expected = whole(labels.shape)
        for level in range(1, len(labels.shapes)):
            coarsening = [workers.submit(labels.coarsen, level, *region) for region in labels.regions(level)]
            assert len([one.result(60) for one in coarsening]) == len(list(labels.regions(level)))
            expected = halved(expected, "mode")
            np.testing.assert_array_equal(labels.levels[level][...], expected)
    np.testing.assert_array_equal(labels.levels[0][...], whole(labels.shape))


def test_no_two_blocks_of_a_plan_write_one_file(tmp_path):
    for version, block in product(VERSIONS, ((300, 300), (500, 800))):
        plan = BlockPlan(TilePlan((1000, 1300), (300, 300), Geometry.unet(depth=2)), block)
        store, sides = tmp_path / f"{version} {block[0]}", {"chunk": plan.chunk(128), "block": plan.size}
        labels = Pyramid(store, (1000, 1300), "uint8", version=version, **sides)
        labels.create()
        seen = {}.items()
        for part in plan:
            labels.write(part.rows, part.columns, np.ones(part.size, np.uint8))
            files = {
                path: path.stat().st_mtime_ns for path in (store / "labels/objects/0").rglob("*") if path.is_file()
            }
            assert seen <= files.items(), "a file is written again"
            seen = files.items()
        assert (labels.levels[0][...] == 1).all()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unfinished_image_is_no_image_and_goes_on_where_it_was(tmp_path, version):
    labels = Pyramid(tmp_path / "a", (300, 400), "uint32", chunk=(64, 64), block=(128, 128), version=version)
    labels.create()
    regions = list(labels.regions(0))
    write_region(labels, *regions[0], ())
    with pytest.raises(FrameError, match="is a Zarr group without an OME-Zarr image"):
        read_label_stack(tmp_path / "a")
    again = pickle.loads(pickle.dumps(labels))
    again.create()
    np.testing.assert_array_equal(again.levels[0][regions[0]], numbers(*regions[0]))
    other = Pyramid(tmp_path / "a", (300, 401), "uint32", chunk=(64, 64), block=(128, 128), version=version)
    with pytest.raises(OutputError, match=r"a holds an unfinished image of uint32 \(300, 400\) .*: remove it first"):
        other.create()
    write_metadata(labels, "a")
    assert layout_of(tmp_path / "a").shape == (300, 400)
    for path in ("labels/objects", ""):
        with pytest.raises(OutputError, match="a exists: give another name, or remove it first"):
            Pyramid(tmp_path / "a", (300, 400), "uint32", version=version, path=path).create()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["folder", "text", "file", "memory", "store"])
def test_any_store_is_written(tmp_path, version, kind):
    store = {
        "folder": tmp_path / "a",
        "text": str(tmp_path / "a"),
        "file": f"file://{tmp_path}/a",
        "memory": f"memory://{tmp_path.name}/a",
        "store": zarr.storage.MemoryStore(),
    }[kind]
    written(store, (300, 400), version=version)
    group = zarr.open_group(store, mode="r")
    np.testing.assert_array_equal(group["labels/objects/0"][...], whole((300, 400)))
    about = group.attrs.asdict()
    assert about.get("ome", about)["multiscales"][0]["datasets"][1]["path"] == "labels/objects/1"


STACKS = {"a frame": ((300, 400), "YX"), "time and planes": ((2, 3, 300, 257), "TZYX"), "planes": ((3, 40, 50), "ZYX")}


@pytest.fixture(
    params=[*product(VERSIONS, STACKS, ["uint32"]), *product(VERSIONS, ["planes"], ["uint64"])], ids=" ".join
)
def stored(request, tmp_path):
    version, stack, dtype = request.param
    shape, axes = STACKS[stack]
    written(tmp_path / "a.ome.zarr", shape, axes, version, pixel_size=SIZE, dtype=dtype)
    return tmp_path / "a.ome.zarr", shape, axes


def test_unetrt_reads_what_it_wrote(stored):
    path, shape, axes = stored
    for part in ("", "labels/objects", "labels/objects/0"):
        layout = layout_of(path / part)
        assert (layout.shape, layout.axes) == (shape, axes)
        assert (layout.pixel_size.y, layout.pixel_size.x) == (0.5, 0.25)
    np.testing.assert_array_equal(read_label_stack(path).reshape(shape), whole(shape))


def test_yaozarrs_finds_no_fault(stored):
    yaozarrs = pytest.importorskip("yaozarrs", reason=requirements.OME_ZARR_WRITER)
    for part in ("", "labels/objects"):
        yaozarrs.validate_zarr_store(str(stored[0] / part))


@pytest.mark.filterwarnings("ignore")  # of the packages that it uses
def test_ngff_zarr_finds_no_fault_and_the_pixel_size(stored):
    ngff_zarr = pytest.importorskip("ngff_zarr", reason=requirements.NGFF_ZARR)
    path, shape, axes = stored
    for part in ("", "labels/objects"):
        first = ngff_zarr.from_ngff_zarr(str(path / part), validate=True).images[0]
        sizes = {"t": 1, "z": 2, "y": 0.5, "x": 0.25}
        assert first.scale == {axis: sizes[axis] for axis in axes.lower()}
        assert {unit for axis, unit in first.axes_units.items() if axis != "t"} == {"micrometer"}
        np.testing.assert_array_equal(np.asarray(first.data), whole(shape))


@pytest.mark.filterwarnings("ignore")
def test_ome_zarr_py_reads_labels_and_levels(stored):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    path, shape, axes = stored
    nodes = {node.zarr.path.rpartition("a.ome.zarr")[2]: node for node in Reader(parse_url(path))()}
    for name in ("", "/labels/objects"):
        assert [axis["name"] for axis in nodes[name].metadata["axes"]] == list(axes.lower())
        expected = whole(shape)
        for level in nodes[name].data:
            np.testing.assert_array_equal(np.asarray(level), expected)
            expected = halved(expected, "mode")


@pytest.mark.parametrize("version", VERSIONS)
def test_labels_of_64_bits_are_stored(tmp_path, version):
    labels = Pyramid(tmp_path / "a", (64, 64), "uint64", version=version)
    labels.create()
    pixels = np.arange(64 * 64, dtype=np.uint64).reshape(64, 64) + np.uint64(2**63)
    labels.write(*WHOLE, pixels)
    write_metadata(labels, "a")
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a/labels/objects/0", mode="r")[...], pixels)
    with pytest.raises(
        FrameError, match=r"must be uint8, uint16 or uint32 \(got uint64\): OME has no integers of 64 bit"
    ):
        write_label_levels(tmp_path / "a.tif", labels.levels)
    assert not (tmp_path / "a.tif").exists()


PYRAMIDS = {
    "axes that do not fit": ({"axes": "ZYX"}, FrameError, r"axes must be 2 letters of TCZYX in this order.*got 'ZYX'"),
    "axes in another order": ({"axes": "XY"}, FrameError, "axes must be 2 letters of TCZYX in this order.*got 'XY'"),
    "no pixels": ({"shape": (0, 64)}, FrameError, r"an image must have pixels along all axes \(got \(0, 64\)"),
    "no integers": ({"dtype": "float32"}, FrameError, r"labels must be integers \(got float32\)"),
    "another version": ({"version": "0.6"}, OptionError, r"version must be 0.4 or 0.5 \(got '0.6'\)"),
    "no grey values": ({"dtype": "bool", "reduction": "mean"}, FrameError, r"must be integers or floats \(got bool\)"),
    "no store": ({"store": 3}, OptionError, r"store must be a folder, an address or a store of zarr \(got 3\)"),
    "no pixel size": ({"pixel_size": 0.65}, OptionError, r"pixel_size must be a PixelSize, .*got 0.65"),
    "no chunks": (
        {"chunk": (0, 64)},
        OptionError,
        r"chunk must be a height and a width in pixels, from 1 \(got \(0, 64",
    ),
    "one number": ({"block": 64}, OptionError, r"block must be a height and a width in pixels, from 1 \(got 64"),
    "blocks of broken chunks": (
        {"chunk": (16, 16), "block": (24, 64)},
        OptionError,
        r"block must be a multiple of chunk, 16: use 32 \(got 24\)",
    ),
}


@pytest.mark.parametrize("case", PYRAMIDS)
def test_a_layout_that_cannot_be_stored_is_refused(tmp_path, case):
    given, kind, said = PYRAMIDS[case]
    with pytest.raises(kind, match=said):
        Pyramid(**{"store": tmp_path / "a", "shape": (64, 64), "dtype": "uint8", **given})


REGIONS = {
    "between chunks": ((slice(8, 64), slice(0, 64)), {}, OptionError, "multiples of 16 x 16 pixels, .*got 8 to 64"),
    "a part of a chunk": ((slice(0, 24), slice(0, 64)), {}, OptionError, "multiples of 16 x 16 pixels.*got 0 to 24"),
    "outside": ((slice(0, 64), slice(64, 80)), {}, OptionError, "or with the image of 64 x 64.*got 64 to 80"),
    "a plane too many": (WHOLE, {"plane": (0,)}, OptionError, r"plane must be an index for each axis .*got \(0,\)"),
    "another size": ((slice(0, 32), slice(0, 64)), {}, FrameError, r"those of the region, \(32, 64\) \(got \(64, 64\)"),
    "too high": (WHOLE, {"pixels": np.full((64, 64), 256)}, FrameError, "of uint8 .got int64, from 256 to 256"),
    "negative": (WHOLE, {"pixels": np.full((64, 64), -1)}, FrameError, "of uint8 .got int64, from -1 to -1"),
    "fractions": (WHOLE, {"pixels": np.full((64, 64), 0.5)}, FrameError, "of uint8 .got float64, from 0.5 to 0.5"),
}


@pytest.mark.parametrize("case", REGIONS)
def test_a_region_that_does_not_fit_is_refused(tmp_path, case):
    region, given, kind, said = REGIONS[case]
    labels = Pyramid(tmp_path / "a", (64, 64), "uint8", chunk=(16, 16), block=(32, 32))
    labels.create()
    with pytest.raises(kind, match=said):
        labels.write(*region, **{"pixels": np.ones((64, 64), np.uint8), **given})
    assert not labels.levels[0][...].any()


def test_a_shard_is_written_at_once(tmp_path):
    labels = Pyramid(tmp_path / "a", (64, 64), "uint8", chunk=(16, 16), block=(32, 32), version="0.5")
    labels.create()
    with pytest.raises(OptionError, match=r"multiples of 32 x 32 pixels, .*got 16 to 32"):
        labels.write(slice(16, 32), slice(0, 32), np.ones((16, 32), np.uint8))


def test_labels_that_were_not_created_are_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write .*/a: "):
        Pyramid(tmp_path / "a", (64, 64), "uint8").write(*WHOLE, np.ones((64, 64), np.uint8))


def test_an_address_that_cannot_be_reached_is_named():
    from fsspec.registry import known_implementations, register_implementation

    register_implementation("nowhere", "no_such_module.NoFileSystem", errtxt="Install no-such-module", clobber=True)
    for address, said in (("nowhere://a", "Install no-such-module"), ("unknown://a", "Protocol not known: unknown")):
        with pytest.raises(OutputError, match=f"cannot write {address}: {said}"):
            Pyramid(address, (64, 64), "uint8").create()
    known_implementations.pop("nowhere")


def noise(rows, columns):
    return RNG.integers(0, 2**32, (rows.stop - rows.start, columns.stop - columns.start), np.uint32)


@pytest.mark.parametrize("version", VERSIONS)
def test_on_a_full_disk_what_was_written_stays(small_disk, version):
    labels = Pyramid(small_disk / "a", (3000, 3000), "uint32", chunk=(512, 512), block=(1024, 1024), version=version)
    labels.create()
    done = {}
    with pytest.raises(OutputError, match=r"cannot write .*disk/a: No space left on device"):
        for rows, columns in labels.regions(0):
            pixels = noise(rows, columns)
            labels.write(rows, columns, pixels)
            done[rows.start, columns.start] = pixels
    assert len(done) >= 3
    for (top, left), pixels in done.items():
        found = labels.levels[0][top : top + pixels.shape[0], left : left + pixels.shape[1]]
        np.testing.assert_array_equal(found, pixels)


def test_a_tiff_on_a_full_disk_leaves_nothing(small_disk):
    with pytest.raises(OutputError, match=r"cannot write .*disk/a.tif: No space left on device"):
        write_label_levels(small_disk / "a.tif", [noise(slice(0, 3000), slice(0, 3000))])
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_disk_that_is_read_only_is_named(small_disk, version):
    labels = Pyramid(small_disk / "a", (64, 64), "uint8", version=version)
    labels.create()
    labels.write(*WHOLE, np.ones((64, 64), np.uint8))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    other = Pyramid(small_disk / "b", (64, 64), "uint8", version=version)
    for write in (
        other.create,
        lambda: labels.write(*WHOLE, np.full((64, 64), 2, np.uint8)),
        lambda: write_metadata(labels, "a"),
        lambda: write_label_levels(small_disk / "a.tif", labels.levels),
    ):
        with pytest.raises(OutputError, match=r"disk.*: (Read-only file system|no permission)"):
            write()
    assert (labels.levels[0][...] == 1).all()


def test_a_damaged_chunk_is_named(tmp_path):
    labels = Pyramid(tmp_path / "a", (300, 300), "uint32", chunk=(128, 128), block=(128, 128), name="the labels")
    labels.create()
    for region in labels.regions(0):
        write_region(labels, *region, ())
    chunk = tmp_path / "a/labels/objects/0/1/1"
    chunk.write_bytes(chunk.read_bytes()[:50])
    with pytest.raises(OutputError, match="cannot write the labels: "):
        labels.coarsen(1, slice(0, 150), slice(0, 150))
    with pytest.raises(FrameError, match="labels cannot be read in rows from 128 and columns from 128: "):
        write_label_levels(tmp_path / "a.tif", labels.levels)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("stack", STACKS)
def test_a_tiff_of_levels_has_the_content_and_metadata_of_one_in_memory(tmp_path, version, stack):
    shape, axes = STACKS[stack]
    labels = written(tmp_path / "a", shape, axes, version)
    write_label_levels(tmp_path / "levels.tif", labels.levels, axes=axes, pixel_size=SIZE)
    write_labels(tmp_path / "whole.tif", whole(shape), axes=axes, pixel_size=SIZE)
    with tifffile.TiffFile(tmp_path / "levels.tif") as tiled, tifffile.TiffFile(tmp_path / "whole.tif") as expected:
        assert tiled.series[0].axes == axes
        assert tiled.pages[0].tile == tuple(
            min(64 * side, -(-shape[-3 + side] // 16) * 16) for side in (1, 2)
        )  # chunks
        for level, stored_level in zip(tiled.series[0].levels, labels.levels, strict=True):
            np.testing.assert_array_equal(level.asarray(), stored_level[...])
        np.testing.assert_array_equal(tiled.series[0].asarray(), expected.series[0].asarray())
        for name in ("ResolutionUnit", "XResolution", "YResolution", "Compression", "PhotometricInterpretation"):
            assert tiled.pages[0].tags[name].value == expected.pages[0].tags[name].value
        comments = [tiff.ome_metadata for tiff in (tiled, expected)]
    uuids = [comment.partition('UUID="urn:uuid:')[2][:36] for comment in comments]
    assert comments[0].replace(uuids[0], uuids[1]) == comments[1]
    assert uuids[0] not in (uuids[1], label_tiff.UNKNOWN)


def test_the_same_levels_give_the_same_tiff(tmp_path):
    pixels = whole((300, 400))
    for name, labels in (("a.tif", pixels), ("b.tif", pixels), ("c.tif", pixels[::-1])):
        write_label_levels(tmp_path / name, [labels])
    first, second, third = ((tmp_path / name).read_bytes() for name in ("a.tif", "b.tif", "c.tif"))
    assert first == second
    assert tifffile.tiffcomment(tmp_path / "a.tif") != tifffile.tiffcomment(tmp_path / "c.tif") != third


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bioio_reads_tiles_and_pixel_size(tmp_path):
    from bioio_ome_tiff import Reader

    labels = written(tmp_path / "a", (2, 3, 300, 257), "TZYX")
    write_label_levels(tmp_path / "a.tif", labels.levels, axes="TZYX", pixel_size=SIZE)
    image = Reader(tmp_path / "a.tif")
    assert tuple(image.physical_pixel_sizes) == (2, 0.5, 0.25)
    np.testing.assert_array_equal(image.get_image_data("TZYX"), whole((2, 3, 300, 257)))


def test_large_levels_are_a_bigtiff(tmp_path, monkeypatch):
    labels = [whole((2, 300, 400)), whole((2, 150, 200))]
    size = sum(level.nbytes for level in labels)
    for most, is_big in ((size + 1, False), (size, True)):
        monkeypatch.setattr(label_tiff, "LARGE", most)
        write_label_levels(tmp_path / "a.tif", labels, pixel_size=PixelSize(1, 1, unit="µm"))
        with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
            assert (tiff.is_bigtiff, tiff.series[0].axes, len(tiff.series[0].levels)) == (is_big, "TYX", 2)
            assert label_tiff.UNKNOWN not in tiff.ome_metadata
        np.testing.assert_array_equal(read_label_stack(tmp_path / "a.tif"), labels[0])


LEVELS = {
    "no levels": ([], r"labels must be arrays with pixels, \(..., H, W\) \(got \[\]\)"),
    "no pixels": ([np.ones((0, 4), np.uint8)], r"labels must be arrays with pixels"),
    "signed": ([np.ones((4, 4), np.int32)], r"must be uint8, uint16 or uint32 \(got int32\)$"),
    "64 bits": ([np.ones((4, 4), np.uint64)], r"uint32 \(got uint64\): OME has no integers of 64 bits, write OME-Zarr"),
    "two dtypes": ([np.ones((4, 4), np.uint8), np.ones((2, 2), np.uint16)], "levels must have one dtype"),
    "other planes": ([np.ones((2, 4, 4), np.uint8), np.ones((1, 2, 2), np.uint8)], "the same axes before the rows"),
}


@pytest.mark.parametrize("case", LEVELS)
def test_levels_that_are_no_labels_are_refused(tmp_path, case):
    levels, said = LEVELS[case]
    with pytest.raises(FrameError, match=said):
        write_label_levels(tmp_path / "a.tif", levels)
    with pytest.raises(UnetrtError, match="pixel_size must be a PixelSize"):
        write_label_levels(tmp_path / "a.tif", levels, pixel_size=0.5)
    assert list(tmp_path.iterdir()) == []


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from unetrt.runtime.files.outputs.label_tiff import write_label_levels
from unetrt.runtime.files.outputs.label_zarr import write_metadata
from unetrt.runtime.files.outputs.zarr_pyramid import Pyramid

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

folder, version, side = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def write(name, side):
    labels = Pyramid(folder / name, (side, side), "uint32", chunk=(512, 512), block=(1024, 1024), version=version)
    labels.create()
    for rows, columns in labels.regions(0):
        down, across = (np.arange(part.start, part.stop, dtype=np.uint32) // 16 for part in (rows, columns))
        labels.write(rows, columns, down[:, None] * 512 + across)
    for level in range(1, len(labels.shapes)):
        for region in labels.regions(level):
            labels.coarsen(level, *region)
    write_metadata(labels, "a")
    write_label_levels(folder / f"{name}.tif", labels.levels)

write("small", 1024)  # imports what is imported on first use
before = peak()
write("large", side)
print((peak() - before) / (4 * 1024**2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("version", VERSIONS)
def test_memory_is_bounded_by_the_block(tmp_path, version):
    """The labels are 64 blocks; one more process than this measures its own peak."""
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, str(tmp_path), version, "8192"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 12, "blocks, beyond what one block takes"
