"""Writers of acquisitions: OME-TIFF in one or several files, Micro-Manager's image stacks, NDTiff.

The pixels (H, W) of a plane hold its field, time, depth and channel as digits, and the column in the last one.
"""

import json
import struct

import numpy as np
import tifffile

SIZE = (12, 10)
OME = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{}>{}</OME>'


def plane(field=0, t=0, z=0, c=0, size=SIZE):
    """Return the pixels of a plane, uint16."""
    return np.broadcast_to(10 * (1000 * field + 100 * t + 10 * z + c) + np.arange(size[1]) % 10, size).astype(np.uint16)


def stack(field=0, t=(0,), z=(0,), c=(0,), size=SIZE):
    """Return the planes of a field as (N, C, H, W), depth within time."""
    return np.stack([[plane(field, time, depth, channel, size) for channel in c] for time in t for depth in z])


def ome_xml(images, uuid="", about=""):
    """Return OME-XML.

    Parameters
    ----------
    images
        For each its name, sizes {"T": 4}, and the TiffData elements: (attributes, file name or None, UUID).
    uuid, about
        Of the file; XML of the element Pixels.
    """
    parts = []
    for number, (name, sizes, planes) in enumerate(images):
        lengths = {"X": SIZE[1], "Y": SIZE[0], "Z": 1, "C": 1, "T": 1} | sizes
        size = " ".join(f'Size{axis}="{length}"' for axis, length in lengths.items())
        data = "".join(
            f"<TiffData {attributes}>"
            + ("" if file is None else f'<UUID FileName="{file}">{identity}</UUID>')
            + "</TiffData>"
            for attributes, file, identity in planes
        )
        parts.append(
            f'<Image ID="Image:{number}" Name="{name}"><Pixels ID="Pixels:{number}" DimensionOrder="XYZCT" '
            f'Type="uint16" {size}{about}>{data}</Pixels></Image>'
        )
    return OME.format(f' UUID="{uuid}"' if uuid else "", "".join(parts))


def write_pages(path, pages, text):
    """Write pages (N, H, W), which can differ in size, with a description of the first one."""
    path.parent.mkdir(exist_ok=True, parents=True)
    with tifffile.TiffWriter(path) as tiff:
        for number, page in enumerate(pages):
            description = text.encode() if number == 0 else None
            tiff.write(page, description=description, metadata=None, photometric="minisblack", contiguous=False)


def write_frames(folder, frames=4, channels=1):
    """Write one image as x_T0.ome.tif, x_T1.ome.tif ...: a frame in each file."""
    names = [f"x_T{time}.ome.tif" for time in range(frames)]
    described = [
        (f'IFD="{channel}" FirstT="{time}" FirstC="{channel}"', name, f"urn:uuid:{time}")
        for time, name in enumerate(names)
        for channel in range(channels)
    ]
    image = ("x", {"T": frames, "C": channels}, described)
    for time, name in enumerate(names):
        pages = [plane(t=time, c=channel) for channel in range(channels)]
        write_pages(folder / name, pages, ome_xml([image], f"urn:uuid:{time}"))
    return [folder / name for name in names]


def write_positions(folder, positions=3, split=1):
    """Write the positions of an acquisition, two frames each, in a file each, or with `split` 2 in a file per frame."""
    images, files = [], {}
    for number in range(positions):
        described = []
        for time in range(2):
            part = time if split == 2 else 0
            name = f"a_MMStack_Pos{number}{f'_{part}' if part else ''}.ome.tif"
            described.append((f'IFD="{0 if split == 2 else time}" FirstT="{time}"', name, f"urn:{name}"))
            files.setdefault(name, []).append(plane(number, time))
        images.append((f"Pos{number}", {"T": 2}, described))
    for name, pages in files.items():
        write_pages(folder / name, pages, ome_xml(images, f"urn:{name}"))
    return [folder / name for name in files]


def write_series(path, names=("Pos0", "Pos1", "Pos2"), times=2):
    """Write several images in one OME-TIFF."""
    images = [
        (name, {"T": times}, [(f'IFD="{number * times}" PlaneCount="{times}"', None, "")])
        for number, name in enumerate(names)
    ]
    pages = [plane(number, time) for number in range(len(names)) for time in range(times)]
    write_pages(path, pages, ome_xml(images))
    return path


def write_stack(path, planes, summary, *, index=True):
    """Write a Micro-Manager image stack, or without `index` an NDTiff file, of planes (field, t, z, c).

    Returns
    -------
    The offset of the pixels of each plane.
    """
    text = json.dumps(summary).encode()
    at = (40 if index else 24) + len(text)
    body, directories, pixels = b"", [], []
    for number, (field, t, z, c) in enumerate(planes):
        data = b'{"PixelSizeUm": 0.65}\0' + plane(field, t, z, c).tobytes()
        after = at + 2 + 12 * 10 + 4
        following = after + len(data) if number < len(planes) - 1 else 0
        directories.append(at)
        pixels.append(after + 22)
        body += _directory(after, following) + data
        at = after + len(data)
    if index:
        rows = [(c, z, t, field, offset) for (field, t, z, c), offset in zip(planes, directories, strict=True)]
        body += struct.pack("<II", 3453623, len(rows)) + b"".join(struct.pack("<IIIII", *row) for row in rows)
        marks = (54773648, at, 483765892, 0, 99384722, 0, 2355492, len(text))
    else:
        marks = (483729, 2, 2355492, len(text))
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(struct.pack(f"<4sI{len(marks)}I", b"II*\0", directories[0], *marks) + text + body)
    return pixels


def _directory(after, following):
    """Return the directory of a page whose metadata (22 bytes) and pixels are at `after`."""
    height, width = SIZE
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, after + 22), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 2 * height * width)]
    entries += [(51123, 2, 22, after)]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + packed + struct.pack("<I", following)


def write_ndtiff(folder, fields=2, times=2, channels=("DAPI", "GFP")):
    """Write an NDTiff folder: a file for each frame, with the planes of all positions, and the index."""
    index = b""
    for time in range(times):
        name = f"NDTiffStack{f'_{time}' if time else ''}.tif"
        planes = [(field, time, 0, channel) for field in range(fields) for channel in range(len(channels))]
        offsets = write_stack(folder / name, planes, {"a": 1}, index=False)
        for (field, _, _, channel), offset in zip(planes, offsets, strict=True):
            axes = json.dumps({"position": f"P{field}", "time": time, "channel": channels[channel]}).encode()
            index += struct.pack("<I", len(axes)) + axes + struct.pack("<I", len(name)) + name.encode()
            index += struct.pack("<8I", offset, SIZE[1], SIZE[0], 1, 0, 0, 0, 0)
    (folder / "NDTiff.index").write_bytes(index)
