"""Zarr arrays in folders: no file in one blocks the reader, and no chunk decodes to more than the array declares.

A chunk that is a named pipe would be waited for endlessly, a link to /dev/zero fills the memory, and a few kilobytes
can decompress to gigabytes. `open_zarr` therefore reads through `CheckedStore`, or `CheckedAddress` at an address of
fsspec. They refuse files that are not regular or too large, and chunks that are missing, and replace each compressor in
the metadata by a bounded codec, `BoundedCodec` (Zarr 3) or `BoundedCompressor` (Zarr 2).
"""

import bz2
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, prod
from pathlib import Path
from typing import Any, Self

import numcodecs
import numpy as np
import zarr
from numcodecs.abc import Codec
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.registry import get_codec_class, register_codec
from zarr.storage import FsspecStore, LocalStore

from unetrt.runtime.errors import FrameError, is_out_of_memory, one_line
from unetrt.runtime.files.atomic import require_regular
from unetrt.runtime.files.formats import UNNAMED, ZARR_FILES
from unetrt.runtime.files.selection import Index, ranges_at
from unetrt.runtime.machine import format_bytes

# Largest metadata file in bytes: that of a plate with thousands of images has some 20 MiB.
METADATA = 64 * 2**20
# Copies of the metadata of all members, which may be a million.
CONSOLIDATED = {".zmetadata"}
# Largest ratio of a decoded chunk to its declared size, and bytes beyond that, for headers, padding and checksums.
SLACK, HEADER = 2, 2**18
# Largest ratio of a file to its chunk: in the worst case a shard stores 16 bytes of index for each pixel.
INDEX = 32
# Names of the codecs that decompress; Zarr 3 has some of numcodecs with a prefix.
COMPRESSORS = {"gzip", "zlib", "bz2", "lzma", "zstd", "blosc", "lz4"}
PREFIX = "numcodecs."
# Name of both bounded codecs.
BOUNDED = "unetrt.bounded"


class Address(str):
    """Address of a folder in a file system of fsspec, such as ``"s3://bucket/image.zarr"``."""

    __slots__ = ()

    def __truediv__(self, name: str) -> "Address":
        return Address(f"{self.rstrip('/')}/{name}") if name else self


def open_zarr(path: Path | Address) -> Any:
    """Open a folder as a Zarr array or group, read-only; reads no pixels.

    Reading chunks, here and later, raises FrameError for a file that is not regular, or a chunk that is too large or
    missing.
    """
    store: Store
    if isinstance(path, Address):
        store = CheckedAddress.from_url(path, read_only=True)
    else:
        store = CheckedStore(path, read_only=True)
    return zarr.open(store, mode="r")


class _FileChecks:
    """What a store checks of the files in it.

    Attributes
    ----------
    most
        Largest file of a chunk in bytes; known once the metadata of an array are read.
    fill
        Whether chunks without a file have the fill value. By the rules of Zarr they do, but a lost chunk looks the
        same.
    """

    most: float = inf
    fill: bool = False

    def require_size(self, key: str, size: int, *, more: str = "") -> None:
        """Raise FrameError for a file of `size` bytes that is larger than it can be; `more` precedes the size."""
        if size > (METADATA if _is_metadata(key) else self.most):
            much = f"{more}{format_bytes(size)}"
            raise FrameError(f"holds {key} of {much}, more than it can be for what the array declares")

    def require_optional(self, key: str) -> None:
        """Raise FrameError for a file that is not there, unless it is metadata or a chunk with the fill value."""
        if not (self.fill or _is_metadata(key) or key.rpartition("/")[2] in CONSOLIDATED):
            raise FrameError(
                f"lacks the chunk {key}: save it again, or give --missing-chunks fill (missing_chunks) to read it as "
                "the fill value"
            )

    def bounded(self, content: bytes) -> bytes:
        """Return metadata with bounded compressors, without copies of the metadata of members."""
        stored = json.loads(content)
        if isinstance(stored, dict):
            stored.pop("consolidated_metadata", None)
            if stored.get("node_type") == "array":
                shape = stored["chunk_grid"]["configuration"]["chunk_shape"]
                itemsize = _itemsize(stored["data_type"])
                stored["codecs"] = _bounded_codecs(stored["codecs"], shape, itemsize)
                self.most = INDEX * itemsize * prod(shape) + HEADER
            elif "chunks" in stored:
                size = _itemsize(stored["dtype"]) * prod(stored["chunks"])
                stored["compressor"] = _bounded_compressor(stored["compressor"], size)
                stored["filters"] = [_bounded_compressor(one, size) for one in stored["filters"] or []] or None
                self.most = INDEX * size + HEADER
        return json.dumps(stored).encode()


def _is_metadata(key: str) -> bool:
    return key.rpartition("/")[2] in ZARR_FILES


class CheckedStore(_FileChecks, LocalStore):
    """A folder whose files are regular and of bounded size, and whose compressors are bounded."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the content of a file, None where there is none."""
        path = self.root / key
        if key.rpartition("/")[2] in CONSOLIDATED or path.is_dir() or not (path.exists() or path.is_symlink()):
            self.require_optional(key)
            return None
        self.require_size(key, require_regular(path, f"holds {key}, which ").stat().st_size)
        if not _is_metadata(key):
            return await super().get(key, prototype, byte_range)
        return (prototype or default_buffer_prototype()).buffer.from_bytes(self.bounded(path.read_bytes()))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of files, as `get`."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]


class CheckedAddress(_FileChecks, FsspecStore):
    """A folder at an address, whose files are of bounded size, and whose compressors are bounded."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the content of a file, None where there is none."""
        if key.rpartition("/")[2] in CONSOLIDATED:
            return None
        most = METADATA if _is_metadata(key) else self.most
        if byte_range is None and most != inf:
            byte_range = RangeByteRequest(0, int(most) + 1)
        found = await super().get(key, prototype, byte_range)
        if found is None:
            self.require_optional(key)
            return None
        self.require_size(key, len(found), more="more than ")
        return prototype.buffer.from_bytes(self.bounded(found.to_bytes())) if _is_metadata(key) else found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of files, as `get`."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]


class ZarrPixels:
    """The pixels of an array, read by chunks.

    Parameters
    ----------
    array
        An array that `open_zarr` opens, or a member of a group.
    axes
        A letter for each of its axes.
    fill
        Whether chunks that are not stored have the fill value; they are an error otherwise.
    """

    def __init__(self, array: zarr.Array[Any], axes: str, *, fill: bool) -> None:
        self._array, self._axes = array, axes
        array.store.fill = fill  # type: ignore[attr-defined] # of a CheckedStore

    def __getitem__(self, index: Index, /) -> Any:
        """Return a part of the pixels; raises FrameError with the place of a chunk that cannot be read."""
        try:
            return np.asarray(self._array[index])
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise self._located(index, error) from error

    def _located(self, index: Index, error: Exception) -> FrameError:
        """Return the error of the first chunk in a part that cannot be read, after `error` for the whole part."""
        shape, sizes = self._array.shape, getattr(self._array, "shards", None) or self._array.chunks
        chunks = [
            range(indices[0] // size, indices[-1] // size + 1)
            for indices, size in zip(ranges_at(shape, index), sizes, strict=True)
        ]
        for place in product(*chunks):
            begins = [at * size for at, size in zip(place, sizes, strict=True)]
            box = [slice(at, min(at + size, side)) for at, size, side in zip(begins, sizes, shape, strict=True)]
            try:
                self._array[tuple(box)]
            except FrameError as found:
                return FrameError(f"{found} ({self._named(box)})")
            except Exception as found:  # noqa: BLE001 - as any decoder raises
                return FrameError(f"cannot be read ({self._named(box)}): {one_line(found)}")
        return FrameError(f"cannot be read: {one_line(error)}")

    def _named(self, box: Sequence[slice]) -> str:
        """Return the place of a chunk, such as ``"T 3:4, rows 0:256, columns 512:768"``."""
        names, axes = {"Y": "rows", "X": "columns"}, self._axes
        if set(axes) == {"Q"}:
            axes = UNNAMED.get(len(axes), axes)
        return ", ".join(
            f"{names.get(axis, axis)} {part.start}:{part.stop}" for axis, part in zip(axes, box, strict=True)
        )


def _itemsize(dtype: Any) -> int:
    """Return the bytes of a pixel, 16 for a dtype that numpy does not know by this name."""
    try:
        return int(np.dtype(dtype).itemsize)
    except (TypeError, ValueError):
        return 16


def _bounded_codecs(codecs: list[Any], chunk: list[int], itemsize: int) -> list[Any]:
    """Return codecs of Zarr 3, also those inside shards, with bounded compressors."""
    bounded = []
    for codec in codecs:
        name = codec if isinstance(codec, str) else codec["name"]
        configuration = {} if isinstance(codec, str) else codec.get("configuration", {})
        if name == "sharding_indexed":
            inner = _bounded_codecs(configuration["codecs"], configuration["chunk_shape"], itemsize)
            codec = {"name": name, "configuration": {**configuration, "codecs": inner}}  # noqa: PLW2901
        elif name.removeprefix(PREFIX) in COMPRESSORS:
            most = SLACK * itemsize * prod(chunk) + HEADER
            codec = {"name": BOUNDED, "configuration": {"codec": codec, "most": most}}  # noqa: PLW2901
        bounded.append(codec)
    return bounded


def _bounded_compressor(config: dict[str, Any] | None, size: int) -> dict[str, Any] | None:
    """Return a compressor or filter of Zarr 2, bounded where it decompresses chunks of `size` bytes."""
    if config is None or config["id"] not in COMPRESSORS:
        return config
    return {"id": BOUNDED, "inner": config, "most": SLACK * size + HEADER}


@dataclass(frozen=True)
class BoundedCodec(BytesBytesCodec):
    """A compressor of Zarr 3 whose chunks decode to at most `most` bytes; it encodes nothing."""

    inner: BytesBytesCodec
    name: str
    settings: Mapping[str, Any]
    most: int
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Return the codec that `_bounded_codecs` writes."""
        codec, most = data["configuration"]["codec"], data["configuration"]["most"]
        codec = {"name": codec} if isinstance(codec, str) else codec
        settings = codec.get("configuration", {})
        inner: Any = get_codec_class(codec["name"]).from_dict(codec)
        return cls(inner, codec["name"].removeprefix(PREFIX), settings, most)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Return the size of an encoded chunk in bytes."""
        size: int = self.inner.compute_encoded_size(input_byte_length, chunk_spec)
        return size

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: Any) -> Buffer:
        content = chunk_bytes.to_bytes()
        if self.name in STREAMS:
            whole = _decompressed(content, self.name, self.settings, self.most)
            buffer: Buffer = chunk_spec.prototype.buffer.from_bytes(whole)
            return buffer
        _require_size(content, self.name, self.most)
        (decoded,) = await self.inner.decode([(chunk_bytes, chunk_spec)])
        assert decoded is not None
        return decoded


class BoundedCompressor(Codec):  # type: ignore[misc] # numcodecs has no types
    """A compressor of Zarr 2 whose chunks decode to at most `most` bytes; it encodes nothing."""

    codec_id = BOUNDED

    def __init__(self, inner: Mapping[str, Any], most: int) -> None:
        self.inner, self.most = dict(inner), most

    def encode(self, buf: Any) -> Any:
        """Raise NotImplementedError: arrays are read only."""
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Return a decoded chunk."""
        name, content = self.inner["id"], bytes(buf)
        if name in STREAMS:
            return _decompressed(content, name, self.inner, self.most)
        _require_size(content, name, self.most)
        return numcodecs.get_codec(dict(self.inner)).decode(content, out)


register_codec(BOUNDED, BoundedCodec)
numcodecs.register_codec(BoundedCompressor)


def _inflater(_settings: Mapping[str, Any]) -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS | 32)  # recognises the headers of zlib and gzip


def _lzma(settings: Mapping[str, Any]) -> Any:
    how = settings.get("format", lzma.FORMAT_XZ)
    return lzma.LZMADecompressor(how, filters=settings.get("filters") if how == lzma.FORMAT_RAW else None)


# Compressors without a reliable size in the header -> a decompressor that stops at a length.
STREAMS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "gzip": _inflater,
    "zlib": _inflater,
    "bz2": lambda _settings: bz2.BZ2Decompressor(),
    "lzma": _lzma,
}


def _decompressed(content: bytes, name: str, settings: Mapping[str, Any], most: int) -> bytes:
    """Decompress a chunk of one or more streams, and raise FrameError beyond `most` bytes."""
    parts: list[bytes] = []
    left = most
    while content:
        stream = STREAMS[name](settings)
        parts.append(stream.decompress(content, left + 1))
        left -= len(parts[-1])
        if left < 0:
            raise _too_large(name, most)
        if not stream.eof:
            raise FrameError(f"has a chunk whose {name} stream is cut off")
        content = stream.unused_data.lstrip(b"\0")
    return b"".join(parts)


def _require_size(content: bytes, name: str, most: int) -> None:
    """Raise FrameError if the header of a chunk says that it decodes to more than `most` bytes."""
    # Blosc: `nbytes` (README_CHUNK_FORMAT.rst of c-blosc); LZ4: the length that numcodecs writes first.
    begin = {"blosc": 4, "lz4": 0}.get(name)
    size = _size_of_zstd(content) if begin is None else int.from_bytes(content[begin : begin + 4], "little")
    if size > most:
        raise _too_large(name, most)


def _too_large(name: str, most: int) -> FrameError:
    return FrameError(f"has a {name} chunk that decompresses to more than the {most} bytes that the array declares")


ZSTD_MAGIC = 0xFD2FB528
# Largest block of Zstandard in bytes (RFC 8878, section 3.1.1.2.4).
ZSTD_BLOCK = 2**17


def _size_of_zstd(content: bytes) -> int:
    """Return at least the decompressed size of Zstandard frames in bytes (RFC 8878, section 3.1.1)."""
    total, at = 0, 0
    while int.from_bytes(content[at : at + 4], "little") == ZSTD_MAGIC:
        descriptor = content[at + 4] if len(content) > at + 4 else 0
        single = descriptor >> 5 & 1
        at += 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
        width = (single, 2, 4, 8)[descriptor >> 6]
        declared = int.from_bytes(content[at : at + width], "little") + (256 if width == 2 else 0)
        largest, at = _blocks_of_zstd(content, at + width)
        at += 4 * (descriptor >> 2 & 1)  # checksum
        total += declared if width else largest
    return total


def _blocks_of_zstd(content: bytes, at: int) -> tuple[int, int]:
    """Return at least the size of the blocks of a frame in bytes, and the index after them."""
    total, last = 0, False
    while not last and at < len(content):
        header = int.from_bytes(content[at : at + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        total += ZSTD_BLOCK if kind == 2 else size  # compressed; else as is, or one byte that is repeated
        at += 3 + (1 if kind == 1 else size)
    return total, at
