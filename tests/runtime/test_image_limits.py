"""Image files that declare more than they hold, or that are no regular files: one line, without memory and waits."""

import bz2
import json
import lzma
import os
import re
import socket
import struct
import tracemalloc
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests import requirements
from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.files import formats
from unetrt.runtime.files.formats import Reading
from unetrt.runtime.files.images import read_frames, read_label_stack, read_labels, read_stack, stack_shape
from unetrt.runtime.files.sources import list_images

# Memory in bytes that refusing a file may take; each file below would take `LARGE` and more.
FEW = 64 * 2**20
LARGE = 128 * 2**20
KINDS = ("tif", "png", "npy", "zarr")


@pytest.fixture
def little_memory():
    """Measure what Python, numpy and the decoders allocate in the test."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < FEW, f"{peak / 2**20:.0f} MiB"


def tiff(path, tags=(), data=b"x", shape=(100, 100), compression=1):
    """Write a TIFF of one grey strip with any contents; `tags` are (code, type, values) and replace others."""
    height, width = shape
    usual = [(256, 4, [width]), (257, 4, [height]), (258, 3, [8]), (259, 3, [compression]), (262, 3, [1])]
    usual += [(273, 4, [8]), (277, 3, [1]), (278, 4, [height]), (279, 4, [len(data)])]
    found = {code: (kind, values) for code, kind, values in [*usual, *tags] if values}
    for code in [code for code, _, values in tags if not values]:
        del found[code]
    entries, rest = b"", b""
    beyond = 8 + len(data) + 2 + 12 * len(found) + 4
    for code, (kind, values) in sorted(found.items()):
        raw = struct.pack(f"<{len(values)}{ {2: 'B', 3: 'H', 4: 'I'}[kind] }", *values)
        place = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", beyond + len(rest))
        rest += raw if len(raw) > 4 else b""
        entries += struct.pack("<HHI", code, kind, len(values)) + place
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    path.write_bytes(head + struct.pack("<H", len(found)) + entries + bytes(4) + rest)


def ome(path, content, **sizes):
    sizes = {"SizeX": 10, "SizeY": 10, "SizeC": 1, "SizeT": 1, "SizeZ": 1} | sizes
    pixels = " ".join(f'{name}="{value}"' for name, value in sizes.items())
    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" {pixels}>{content}</Pixels></Image></OME>'
    )
    described(path, text)


def described(path, text):
    tiff(path, [(270, 2, [*text.encode(), 0])], bytes(100), (10, 10))


def png(path, shape, *chunks):
    header = struct.pack(">IIBBBBB", shape[1], shape[0], 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(110))), (b"IEND", b""))
    ))  # fmt: skip


def npy(path, shape, version=1, kind="|u1"):
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + header)


def missing_tiles(path):
    tifffile.imwrite(path, np.zeros((32, 32), np.uint8), tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["ImageLength"].overwrite(8_000_000)


def zarr_array(path, shape=(100, 100), chunks=None, dtype="uint8", content=None, **options):
    """Create a Zarr array; `content` becomes its first chunk."""
    zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
    zarr.create_array(path, shape=shape, chunks=chunks or shape, dtype=dtype, **options)
    if content is not None:
        chunk = path / ("0.0" if options.get("zarr_format") == 2 else "c/0/0")
        chunk.parent.mkdir(parents=True, exist_ok=True)
        chunk.write_bytes(content)
    return path


@cache
def compressed(new, *arguments):
    """Return `LARGE` zeros, compressed by a new compressor."""
    compressor = new(*arguments)
    return b"".join([compressor.compress(bytes(2**24)) for _ in range(LARGE // 2**24)] + [compressor.flush()])


ZLIB, GZIP = (zlib.compressobj, 6), (zlib.compressobj, 6, zlib.DEFLATED, 31)


def zstd():
    return pytest.importorskip("imagecodecs").zstd_encode(bytes(LARGE))


def zstd_without_size():
    """A frame of RLE blocks, without the size of its content (RFC 8878, 3.1.1)."""
    block = struct.pack("<I", 2**17 << 3 | 1 << 1)[:3] + b"\0"
    return b"\x28\xb5\x2f\xfd\0\x50" + 2000 * block + struct.pack("<I", 1 | 1 << 1)[:3] + b"\0"


def embedded(name):
    """Return a file whose header declares 60,000 x 60,000 pixels."""
    side = struct.pack(">H", 60000)
    if name == "jpeg":
        return b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x0b\x08" + side + side + b"\1\1\x11\0"
    if name == "png":
        return b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + 2 * struct.pack(">I", 60000) + b"\x08\0\0\0\0"
    return b"\xff\x4f\xff\x51\0\x29\0\0" + 2 * struct.pack(">I", 60000) + bytes(24) + b"\0\1"


def v2(name):
    numcodecs = pytest.importorskip("numcodecs")
    return {"zarr_format": 2, "compressors": numcodecs.get_codec({"id": name})}


def sharded(path):
    """A shard whose only inner chunk decompresses to `LARGE` bytes; the index is at its end."""
    zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
    content = compressed(bz2.BZ2Compressor, 1)
    zarr_array(path, chunks=(100, 100), shards=(100, 100), compressors=None)
    about = json.loads((path / "zarr.json").read_text())
    inner = about["codecs"][0]["configuration"]
    inner["codecs"] = [*inner["codecs"], {"name": "numcodecs.bz2", "configuration": {"level": 1}}]
    inner["index_codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    (path / "zarr.json").write_text(json.dumps(about))
    (path / "c" / "0").mkdir(parents=True)
    (path / "c" / "0" / "0").write_bytes(content + struct.pack("<QQ", 0, len(content)))
    return zarr


LAUGHS = "".join(f'<!ENTITY {chr(98 + n)} "{10 * f"&{chr(97 + n)};"}">' for n in range(9))
ROOM = r"declares .* GiB in memory, and holds \d+ bytes: at most 2.0 GiB are read; --max-image-memory "
DECODED = "chunk that decompresses to more than the"
# Name of the file -> what writes it, what the message says.
FILES = {
    "pixels.tif": (lambda path: tiff(path, shape=(60000, 60000)), ROOM),
    "tile.tif": (
        lambda path: tiff(path, [(322, 4, [65536]), (323, 4, [65536]), (324, 4, [8]), (325, 4, [1]), (273, 4, []),
                                 (278, 4, []), (279, 4, [])], compression=8),
        "65536 x 65536 .*" + ROOM[9:],
    ),
    "deflate.tif": (lambda path: tiff(path, data=compressed(*ZLIB), compression=8), "cannot be read"),
    "packbits.tif": (lambda path: tiff(path, data=b"\x81\0" * 2**20, compression=32773), "cannot be read"),
    "zstd.tif": (lambda path: tiff(path, data=zstd(), compression=50000), "cannot be read"),
    "jpeg.tif": (lambda path: tiff(path, data=embedded("jpeg"), compression=7), "tile of 60000 x 60000 pixels in"),
    "jpeg2000.tif": (lambda path: tiff(path, data=embedded("jp2"), compression=34712), "tile of 60000 x 60000 pixels"),
    "embedded.tif": (lambda path: tiff(path, data=embedded("png"), compression=34933), "tile of 60000 x 60000 pixels"),
    "planes.ome.tif": (lambda path: ome(path, "", SizeT=40000, SizeZ=30000), "more than 2097152 planes"),
    "plane.ome.tif": (
        lambda path: ome(path, '<TiffData IFD="0" PlaneCount="&#57;99999999"></TiffData>'),
        "OME metadata of more than 2097152 planes",
    ),
    "laughs.ome.tif": (
        lambda path: described(path, f'<!DOCTYPE OME [<!ENTITY a "xxxxxxxxx">{LAUGHS}]><OME><Image ID="&j;"/></OME>'),
        "OME metadata with a document type",
    ),
    "long.ome.tif": (lambda path: ome(path, f"<!--{40 * 2**20 * 'x'}-->"), "description .* at most 33554432 are read"),
    "pixels.png": (lambda path: png(path, (60000, 60000)), ROOM),
    "text.png": (
        lambda path: png(path, (10, 10), (b"zTXt", b"a\0\0" + compressed(*ZLIB))),
        "cannot be read: .*too large",
    ),
    "profile.png": (
        lambda path: png(path, (10, 10), (b"iCCP", b"a\0\0" + compressed(*ZLIB))),
        "cannot be read: .*too large",
    ),
    "missing.tif": (missing_tiles, "declares 1000000 strips or tiles and holds 4: save it again"),
    "texts.npy": (lambda path: npy(path, (45000, 45000), kind="|S0"), "holds values of type .S0, which are no pixels"),
    "pixels.npy": (lambda path: npy(path, (100000, 100000)), "is cut off: it declares 10000000000 bytes"),
    "more.npy": (lambda path: npy(path, (2**63 - 1, 2**63 - 1), version=2), "is cut off"),
    "negative.npy": (lambda path: npy(path, (-(2**40), 5)), "cannot be read"),
    "header.npy": (lambda path: path.write_bytes(b"\x93NUMPY\2\0\xff\xff\xff\xff{"), "is cut off in its header"),
    "sparse3.zarr": (lambda path: zarr_array(path, (50000, 50000), (500, 500)), ROOM),
    "sparse2.zarr": (lambda path: zarr_array(path, (50000, 50000), (500, 500), zarr_format=2), ROOM),
    "sharded.zarr": (lambda path: zarr_array(path, (50000, 50000), (500, 500), shards=(5000, 5000)), ROOM),
    "frames.zarr": (lambda path: zarr_array(path, (2**31 - 1, 1, 1), (1000, 1, 1)), ROOM.replace("2.0", "2.0")),
    "chunk.zarr": (lambda path: zarr_array(path, chunks=(50000, 50000)), "50000 x 50000 .*" + ROOM[9:]),
    "gzip.zarr": (
        lambda path: zarr_array(path, (1000, 1000), content=compressed(*GZIP),
                                compressors={"name": "gzip", "configuration": {"level": 1}}),
        "gzip " + DECODED,
    ),
    "zstd.zarr": (lambda path: zarr_array(path, content=zstd()), "zstd " + DECODED),
    "stream.zarr": (lambda path: zarr_array(path, content=zstd_without_size()), "zstd " + DECODED),
    "blosc.zarr": (
        lambda path: zarr_array(path, content=b"\2\1\x21\1" + struct.pack("<III", 2**31 - 1, 2**20, 30) + bytes(30),
                                compressors={"name": "blosc", "configuration": {}}),
        "blosc " + DECODED,
    ),
    "lz4.zarr": (lambda path: zarr_array(path, content=b"\xff\xff\xff\x7fx", **v2("lz4")), "lz4 " + DECODED),
    "zlib.zarr": (
        lambda path: zarr_array(path, (1000, 1000), content=compressed(*ZLIB), **v2("zlib")),
        "zlib " + DECODED,
    ),
    "bz2.zarr": (
        lambda path: zarr_array(path, content=compressed(bz2.BZ2Compressor, 1), **v2("bz2")),
        "bz2 " + DECODED,
    ),
    "lzma.zarr": (
        lambda path: zarr_array(path, content=compressed(lzma.LZMACompressor, lzma.FORMAT_XZ, -1, 0), **v2("lzma")),
        "lzma " + DECODED,
    ),
    "long.zarr": (lambda path: zarr_array(path, content=bytes(2**24)), "holds c/0/0 of 16 MiB, more than it can be"),
    "shard.zarr": (sharded, "bz2 " + DECODED),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of zarr about codecs outside the specification
@pytest.mark.parametrize(("write", "message"), FILES.values(), ids=FILES)
def test_what_a_header_declares_is_not_believed(tmp_path, request, write, message):
    path = tmp_path / request.node.callspec.id
    write(path)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError) as refused:
            read_stack(path)
        stack_shape(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert re.search(f"^{re.escape(str(path))} .*{message}", str(refused.value)), refused.value
    assert "\n" not in str(refused.value)
    # A description is read whole before its length is known.
    assert peak < (6 * 40 * 2**20 if "long.ome" in path.name else FEW), f"{peak / 2**20:.0f} MiB"


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_image_that_is_there_is_read_and_the_option_sets_another_limit(tmp_path, monkeypatch, kind):
    """With a limit of 1000 bytes in place of 2 GiB."""
    monkeypatch.setattr(formats, "ROOM", 1000)
    monkeypatch.setattr(formats, "PER_FRAME", 1)
    path, pixels = tmp_path / f"a.{kind}", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    write_plain(path, pixels)
    np.testing.assert_array_equal(read_stack(path)[0, 0], pixels)
    np.testing.assert_array_equal(read_stack(path, Reading(64 * 64))[0, 0], pixels)
    for read in (read_stack, read_labels, read_label_stack, lambda *most: read_frames(most[0], 1, most[1])):
        with pytest.raises(FrameError, match="at most 4 KiB are read"):
            read(path, Reading(64 * 64 - 1))
    monkeypatch.setattr(formats, "free_memory", lambda: 3000)
    with pytest.raises(FrameError, match="at most 3 KiB are read"):
        read_stack(path)
    for wrong in (0, -1, 1.5, "2GiB"):
        with pytest.raises(OptionError, match="max_image_memory must be a number of bytes above 0"):
            read_stack(path, Reading(wrong))


def write_plain(path, pixels):
    """Write pixels (H, W) in the format of a suffix."""
    match path.suffix:
        case ".npy":
            np.save(path, pixels)
        case ".png":
            Image.fromarray(pixels).save(path)
        case ".zarr":
            zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
            zarr.create_array(path, data=pixels, chunks=(10, 64))
        case _:
            tifffile.imwrite(path, pixels)


def test_a_sparse_file_holds_what_it_takes_on_the_disk(tmp_path, monkeypatch, little_memory):
    npy(tmp_path / "a.npy", (60000, 60000))
    os.truncate(tmp_path / "a.npy", 2**32)
    if (tmp_path / "a.npy").stat().st_blocks * 512 > 2**30:
        pytest.skip("this disk has no sparse files")
    with pytest.raises(FrameError, match=ROOM):
        read_stack(tmp_path / "a.npy")


def test_a_png_larger_than_pillows_limit_is_read(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    png_of = Image.fromarray(pixels)
    png_of.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_stack(tmp_path / "a.png")[0, 0], pixels)
    assert not recwarn


@pytest.mark.parametrize("fill", [0, 7])
def test_a_zarr_array_without_chunks_is_its_fill_value(tmp_path, fill):
    zarr_array(tmp_path / "a.zarr", (300, 200), (100, 100), fill_value=fill)
    assert (read_stack(tmp_path / "a.zarr", Reading(missing_chunks="fill")) == fill).all()
    assert (read_labels(tmp_path / "a.zarr") == fill).all()


COMPRESSED = {
    **{f"{name} 2": lambda name=name: v2(name) for name in ("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd")},
    "none 2": lambda: {"zarr_format": 2, "compressors": None},
    "filters 2": lambda: {**v2("zlib"), "filters": [pytest.importorskip("numcodecs").Delta(dtype="u2")]},
    "blosc 3": lambda: {"compressors": {"name": "blosc", "configuration": {}}},
    "gzip 3": lambda: {"compressors": {"name": "gzip", "configuration": {"level": 5}}},
    "zstd 3": dict,
    "none 3": lambda: {"compressors": None},
    "numcodecs 3": lambda: {"compressors": {"name": "numcodecs.bz2", "configuration": {"level": 5}}},
    "shards 3": lambda: {"shards": (64, 64)},
}


@pytest.mark.filterwarnings("ignore")  # of zarr about codecs outside the specification
@pytest.mark.parametrize("options", COMPRESSED.values(), ids=COMPRESSED)
@pytest.mark.parametrize("flat", [True, False])
def test_compressed_zarr_arrays_are_read_as_zarr_reads_them(tmp_path, options, flat):
    zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
    pixels = np.random.default_rng(0).integers(0, 60000, (100, 130)).astype(np.uint16)
    pixels[32:] = 5 if flat else pixels[32:]
    array = zarr.create_array(tmp_path / "a.zarr", shape=pixels.shape, chunks=(32, 32), dtype="uint16", **options())
    array[...] = pixels
    np.testing.assert_array_equal(read_stack(tmp_path / "a.zarr")[0, 0], pixels)


def test_members_of_a_zarr_group_are_not_counted(tmp_path, little_memory):
    """The consolidated metadata of a group may describe a million arrays."""
    zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
    scales = [{"axes": ["y", "x"], "datasets": [{"path": "0"}], "version": "0.5"}]
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", attributes={"ome": {"multiscales": scales}})
    group.create_array("0", data=np.ones((8, 8), np.uint8))
    about = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    metadata = {str(number): dict(about) for number in range(1000)}
    about["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": metadata}
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(about))
    assert read_stack(tmp_path / "a.zarr").shape == (1, 1, 8, 8)
    with (tmp_path / "a.zarr" / "zarr.json").open("a") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(FrameError, match="holds zarr.json of 65 MiB"):
        read_stack(tmp_path / "a.zarr")


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def bound(path):
    with socket.socket(socket.AF_UNIX) as server:
        folder = Path.cwd()
        os.chdir(path.parent)  # the path of a socket is short
        try:
            server.bind(path.name)
        finally:
            os.chdir(folder)


def loop(path):
    path.symlink_to(path)


OTHERS = {
    "pipe": (pipe, "is a named pipe: give a regular file"),
    "device": (endless, "is a device: give a regular file"),
    "socket": (bound, "is a socket: give a regular file"),
    "loop": (loop, "cannot be read: Too many levels"),
    "broken link": (lambda path: path.symlink_to("none"), "cannot be read: No such file"),
    "folder": (Path.mkdir, "is a folder: give a regular file"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
@pytest.mark.parametrize(("make", "message"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("kind", ["tif", "png", "npy"])
def test_only_regular_files_are_opened(tmp_path, make, message, kind):
    path = tmp_path / f"a.{kind}"
    make(path)
    assert [source.path for source in list_images(tmp_path)] == [path]
    with pytest.raises(FrameError, match=f"a.{kind} {message}"):
        read_stack(path)
    assert stack_shape(path) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
@pytest.mark.parametrize("make", [pipe, endless])
@pytest.mark.parametrize("file", ["zarr.json", "c/0/0", ".zarray", "0.0", ".zattrs"])
def test_only_regular_files_are_opened_in_a_zarr_folder(tmp_path, little_memory, make, file):
    path = zarr_array(tmp_path / "a.zarr", zarr_format=3 if file in ("zarr.json", "c/0/0") else 2) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)
    with pytest.raises(FrameError, match=f"a.zarr holds {file}, which is a .*: give a regular file"):
        read_stack(tmp_path / "a.zarr")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
@pytest.mark.parametrize("name", ["other.tif", "&#111;ther.tif"])
def test_the_files_of_an_image_in_several_files_are_regular(tmp_path, name):
    described = '<TiffData IFD="0" FirstT="{}" PlaneCount="1"><UUID FileName="{}">urn:uuid:{}</UUID></TiffData>'
    files = [("0", "a.ome.tif"), ("1", name)]
    ome(tmp_path / "a.ome.tif", "".join(described.format(at, file, at) for at, file in files), SizeT=2)
    pipe(tmp_path / "other.tif")
    (source,) = list_images(tmp_path)
    with pytest.raises(FrameError, match="a.ome.tif .* refers to .*other.tif, which is a named pipe"):
        read_stack(source)
    assert read_stack(tmp_path / "a.ome.tif").shape == (1, 1, 10, 10)


def test_links_to_regular_files_are_read(tmp_path):
    zarr_array(tmp_path / "a.zarr", (8, 8), compressors=None, content=bytes([3] * 64))
    tifffile.imwrite(tmp_path / "a.tif", np.full((8, 8), 3, np.uint8))
    for kind in ("tif", "zarr"):
        (tmp_path / f"b.{kind}").symlink_to(tmp_path / f"a.{kind}")
        assert (read_stack(tmp_path / f"b.{kind}") == 3).all()


def test_a_folder_that_contains_itself_is_listed_once(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint8))
    (tmp_path / "again").symlink_to(tmp_path)
    assert [source.path for source in list_images(tmp_path)] == [tmp_path / "a.tif"]
