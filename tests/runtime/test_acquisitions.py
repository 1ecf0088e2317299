"""Several images in a TIFF, and an image in several TIFFs: each plane is read once, at its place, or is missed."""

import struct
from contextlib import suppress

import numpy as np
import pytest
import tifffile

from tests.runtime.acquisitions import (
    OME,
    SIZE,
    ome_xml,
    plane,
    stack,
    write_frames,
    write_ndtiff,
    write_pages,
    write_positions,
    write_series,
    write_stack,
)
from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.files import acquisitions, formats
from unetrt.runtime.files.formats import Reading
from unetrt.runtime.files.images import read_image, read_stack, require_distinct, stack_shape
from unetrt.runtime.files.sources import list_images


def named(place, **options):
    """Return the images of a folder or file by name, after reading them."""
    sources = list_images(place, Reading(**options))
    for source in sources:
        assert stack_shape(source) == read_stack(source).shape
    return {source.name: read_stack(source) for source in sources}


def require(found, expected):
    assert list(found) == list(expected)
    for name, pixels in expected.items():
        np.testing.assert_array_equal(found[name], pixels, err_msg=name)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_set_in_a_folder_is_one_image_and_a_file_alone_gives_its_planes(tmp_path, channels):
    files = write_frames(tmp_path, 4, channels)
    require(named(tmp_path), {"x_T0": stack(t=range(4), c=range(channels))})
    (source,) = list_images(tmp_path)
    assert (source.path, source.files) == (files[0], tuple(files[1:]))
    for time, file in enumerate(files):
        require(named(file), {f"x_T{time}": stack(t=[time], c=range(channels))})
        np.testing.assert_array_equal(read_stack(file), stack(t=[time], c=range(channels)))


def test_a_set_that_lacks_a_file_names_the_planes(tmp_path):
    files = write_frames(tmp_path)
    files[2].unlink()
    (source,) = list_images(tmp_path)
    with pytest.raises(FrameError, match=r"lacks 1 of its 4 planes \(T=2\), which are in x_T2.ome.tif: put .* beside"):
        read_stack(source)
    for file in (files[1], files[3]):
        file.unlink()
    require(named(tmp_path), {"x_T0": stack()})


def test_files_of_a_set_and_others_lie_in_one_folder(tmp_path):
    write_frames(tmp_path)
    tifffile.imwrite(tmp_path / "a.tif", plane(7))
    tifffile.imwrite(tmp_path / "z.tif", plane(8))
    require(named(tmp_path), {"a": stack(7), "x_T0": stack(t=range(4)), "z": stack(8)})


def test_a_renamed_file_is_itself(tmp_path):
    first, *_ = write_frames(tmp_path / "set")
    first.rename(tmp_path / "renamed.tif")
    require(named(tmp_path / "renamed.tif"), {"renamed": stack()})
    data = [('IFD="0"', "old.ome.tif", "urn:1")]
    write_pages(tmp_path / "new.tif", [plane(3)], ome_xml([("x", {}, data)]))
    require(named(tmp_path / "new.tif"), {"new": stack(3)})
    data = [('IFD="0"', "old.ome.tif", "urn:1"), ('IFD="0" FirstT="1"', "other.ome.tif", "urn:2")]
    write_pages(tmp_path / "new.tif", [plane(3)], ome_xml([("x", {"T": 2}, data)]))
    with pytest.raises(FrameError, match="describes planes of old.ome.tif, other.ome.tif and none of this file"):
        read_stack(tmp_path / "new.tif")


@pytest.mark.parametrize("split", [1, 2])
def test_positions_are_images(tmp_path, split):
    files = write_positions(tmp_path, 3, split)
    expected = {f"a_MMStack_Pos{number}": stack(number, t=range(2)) for number in range(3)}
    require(named(tmp_path), expected)
    assert {source.acquisition for source in list_images(tmp_path)} == {"a_MMStack_Pos0"}
    require(named(files[0]), {"a_MMStack_Pos0": stack(0, t=range(2) if split == 1 else [0])})
    require(named(tmp_path, series=1), {"a_MMStack_Pos1": expected["a_MMStack_Pos1"]})
    require(named(tmp_path, series="pos2"), {"a_MMStack_Pos2": expected["a_MMStack_Pos2"]})
    # A position without its file is no part of the others.
    files[split].unlink()
    found = [source.name for source in list_images(tmp_path)]
    assert found == [*expected][::2] if split == 1 else [*expected]


def test_files_with_the_same_metadata_and_uuid_are_told_apart_by_name(tmp_path):
    files = [tmp_path / f"Pos{number}.ome.tif" for number in range(3)]
    images = [(path.stem[:4], {}, [('IFD="0"', path.name, f"urn:uuid:{n}")]) for n, path in enumerate(files)]
    for number, path in enumerate(files):
        write_pages(path, [plane(number)], ome_xml(images, "urn:uuid:0"))
    require(named(tmp_path), {f"Pos{number}": stack(number) for number in range(3)})
    require(named(files[1]), {"Pos1": stack(1)})


def test_the_images_of_a_file_are_read_and_picked(tmp_path):
    path = write_series(tmp_path / "a.ome.tif")
    expected = {f"a_Pos{number}": stack(number, t=range(2)) for number in range(3)}
    require(named(path), expected)
    require(named(tmp_path), expected)
    assert {source.acquisition for source in list_images(path)} == {"a"}
    for series in (1, "Pos1"):
        require(named(path, series=series), {"a_Pos1": expected["a_Pos1"]})
        np.testing.assert_array_equal(read_stack(path, Reading(series=series)), expected["a_Pos1"])
    with pytest.raises(FrameError, match=r"a.ome.tif holds 3 images \(Pos0, Pos1, Pos2\): --series .* picks one"):
        read_stack(path)
    assert stack_shape(path) is None
    for series in (3, "Pos3"):
        message = f"--series .series. {series!r} is no image of .*a.ome.tif, which holds 0 Pos0, 1 Pos1, 2 Pos2"
        with pytest.raises(OptionError, match=message):
            list_images(path, Reading(series=series))
    for wrong in (-1, 1.5, True):
        with pytest.raises(OptionError, match="series must be the index of an image, from 0, or its name"):
            Reading(series=wrong)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["", ""], ["a_0", "a_1"]),
        (["x", "x"], ["a_0", "a_1"]),
        (["../x", "b:&quot;c"], ["a__x", "a_b__c"]),
        (["a_left", "a_right"], ["a_left", "a_right"]),
        (["left", "Left"], ["a_0", "a_1"]),  # one file where names ignore case
        (["\u00e9", "e\u0301"], ["a_0", "a_1"]),
        (["x&#9;\u009b\u202ey", "b"], ["a_x___y", "a_b"]),
        (["\U0001f52c" * 90, "\u00e9" * 51], ["a_" + "\U0001f52c" * 25, "a_" + "\u00e9" * 50]),
    ],
)
def test_names_of_images_are_names_of_files(tmp_path, names, expected):
    found = list_images(write_series(tmp_path / "a.ome.tif", names, 1))
    assert [source.name for source in found] == expected
    require_distinct(found, tmp_path / "out")


def test_the_name_of_an_image_is_short_enough_for_a_file(tmp_path):
    stem = "s" * 230
    found = list_images(write_series(tmp_path / f"{stem}.ome.tif", ["b" * 90, "c" * 90], 1))
    assert [source.name for source in found] == [f"{stem}_0", f"{stem}_1"]


def test_a_file_with_one_image_has_the_index_0(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", plane())
    np.save(tmp_path / "b.npy", plane())
    write_series(tmp_path / "c.ome.tif", ["x"])
    assert [source.name for source in list_images(tmp_path, Reading(series=0))] == ["a", "b", "c"]
    for name in ("a.tif", "b.npy", "c.ome.tif"):
        with pytest.raises(OptionError, match=f"1 is no image of .*{name}"):
            list_images(tmp_path / name, Reading(series=1))


def test_images_of_different_kinds_are_picked_by_their_index(tmp_path):
    path = tmp_path / "a.tif"
    write_pages(path, [plane(), plane(1, size=(9, 8))], "")
    require(named(path, series=1), {"a": stack(1, size=(9, 8))})
    with pytest.raises(FrameError, match=r"a.tif holds 2 images of different kinds: --series"):
        read_stack(path)


@pytest.mark.parametrize("companion", ["x.companion.ome", "x_T0.ome.tif"])
def test_the_metadata_of_a_set_can_be_in_one_file(tmp_path, companion):
    files = write_frames(tmp_path, 3)
    with tifffile.TiffFile(files[0]) as tiff:
        text = tiff.pages.first.description
    for time, file in enumerate(files):
        if file.name != companion:
            binary = f'<BinaryOnly MetadataFile="{companion}" UUID="urn:uuid:9"/>'
            write_pages(file, [plane(t=time)], OME.format(f' UUID="urn:uuid:{time}"', binary))
    if companion.endswith(".ome"):
        (tmp_path / companion).write_text(text)
        require(named(tmp_path / companion), {"x_T0": stack(t=range(3))})
    require(named(tmp_path), {"x_T0": stack(t=range(3))})
    require(named(files[1]), {"x_T1": stack(t=[1])})
    (tmp_path / companion).unlink()
    require(named(files[2]), {"x_T2": stack(t=[2])})
    binary = '<BinaryOnly MetadataFile="x.companion.ome" UUID="urn:uuid:9"/>'
    write_pages(files[1], [plane(), plane()], OME.format("", binary))
    with pytest.raises(FrameError, match="holds 2 planes that x.companion.ome describes, which is missing: put it"):
        read_stack(files[1])


def test_a_companion_file_alone(tmp_path):
    (tmp_path / "x.companion.ome").write_text(ome_xml([("x", {}, [('IFD="0"', "a.ome.tif", "urn:1")])]))
    with pytest.raises(FrameError, match="x.companion.ome describes images in other files, and none of those is in"):
        list_images(tmp_path / "x.companion.ome")
    (source,) = list_images(tmp_path)
    with pytest.raises(FrameError, match="x.companion.ome describes the images of other files"):
        read_stack(source)


@pytest.mark.parametrize(
    ("described", "sizes", "message"),
    [
        (['IFD="0"', 'IFD="1" FirstT="1"', 'IFD="2" FirstT="3"'], {"T": 4}, r"lacks 1 of its 4 planes \(T=2\): save"),
        (['IFD="0" PlaneCount="3"'], {"T": 5}, r"lacks 2 of its 5 planes \(T=3, T=4\): save it again"),
        (['IFD="0" PlaneCount="6"'], {"T": 3, "C": 2}, r"lacks 3 of its 6 planes \(T=1 C=1, T=2 C=0, T=2 C=1\)"),
        (['IFD="7"'], {}, r"lacks 1 of its 1 planes"),
    ],
)
def test_planes_that_are_missing_are_named(tmp_path, described, sizes, message):
    path = tmp_path / "a.ome.tif"
    text = ome_xml([("x", sizes, [(one, None, "") for one in described])])
    write_pages(path, [plane(t=time) for time in range(3)], text)
    with pytest.raises(FrameError, match=message):
        read_stack(path)


@pytest.mark.parametrize(
    ("data", "sizes", "message"),
    [
        ('IFD="-1"', {}, "OME metadata with IFD='-1': it must be a whole number from 0"),
        ('IFD="0" FirstT="-1"', {"T": 3}, "FirstT='-1'"),
        ('IFD="0" PlaneCount="-3"', {"T": 3}, "PlaneCount='-3'"),
        ("", {"T": -3}, "SizeT='-3': it must be a whole number from 1"),
        ("", {"Z": 0}, "SizeZ='0': it must be a whole number from 1"),
        ("", {"T": "three"}, "SizeT='three'"),
    ],
)
def test_numbers_that_are_no_places_of_planes_are_refused(tmp_path, data, sizes, message):
    path = tmp_path / "a.ome.tif"
    write_pages(path, [plane(t=time) for time in range(3)], ome_xml([("x", sizes, [(data, None, "")])]))
    for source in [path, *list_images(tmp_path)]:
        with pytest.raises(FrameError, match=f"a.ome.tif has {message}" if "OME" in message else message):
            read_stack(source)


def test_an_order_of_dimensions_that_is_none_is_refused(tmp_path):
    path = tmp_path / "a.ome.tif"
    for order in ("XYABC", "XYZZT", ""):
        text = ome_xml([("x", {"T": 3}, [("", None, "")])]).replace("XYZCT", order)
        write_pages(path, [plane(t=time) for time in range(3)], text)
        with pytest.raises(FrameError, match=f"DimensionOrder='{order}': it must be XY and a permutation of ZCT"):
            read_stack(path)


def test_samples_that_the_pages_do_not_have_are_refused(tmp_path):
    path = tmp_path / "a.ome.tif"
    text = ome_xml([("x", {"C": 3}, [("", None, "")])], about='><Channel SamplesPerPixel="3"/')
    write_pages(path, [plane(c=channel) for channel in range(3)], text)
    with pytest.raises(FrameError, match="describes 3 samples per pixel, and its pages have 1: save it again"):
        read_stack(path)


def test_files_of_other_folders_are_images_of_their_own(tmp_path):
    other = tmp_path / "b" / "x.ome.tif"
    for name in ("../b/x.ome.tif", str(other)):
        described = [('IFD="0"', "a.ome.tif", "urn:1"), ('IFD="0" FirstT="1"', name, "urn:2")]
        write_pages(tmp_path / "a" / "a.ome.tif", [plane()], ome_xml([("x", {"T": 2}, described)], "urn:1"))
        write_pages(other, [plane(t=1)], ome_xml([("x", {}, [('IFD="0"', None, "")])], "urn:2"))
        require(named(tmp_path), {"a/a": stack(), "b/x": stack(t=[1])})


@pytest.mark.parametrize("data", ["", 'IFD="0"', 'FirstT="0"', 'IFD="0" PlaneCount="3"', 'NumPlanes="3"'])
def test_the_planes_of_an_element_are_counted_as_the_specification_says(tmp_path, data):
    path, count = tmp_path / "a.ome.tif", 1 if data == 'IFD="0"' else 3
    write_pages(path, [plane(t=time) for time in range(3)], ome_xml([("x", {"T": count}, [(data, None, "")])]))
    np.testing.assert_array_equal(read_stack(path), stack(t=range(count)))


def test_order_of_dimensions(tmp_path):
    text = ome_xml([("x", {"T": 2, "C": 2, "Z": 3}, [("", None, "")])])
    pages = [plane(t=t, z=z, c=c) for z in range(3) for t in range(2) for c in range(2)]
    write_pages(tmp_path / "a.ome.tif", pages, text.replace("XYZCT", "XYCTZ"))
    layout = read_image(tmp_path / "a.ome.tif").layout
    assert (layout.frames, layout.stack) == ((("Z", 3), ("T", 2)), (6, 2, *SIZE))
    expected = np.concatenate([stack(t=range(2), z=[z], c=range(2)) for z in range(3)])
    np.testing.assert_array_equal(read_stack(tmp_path / "a.ome.tif"), expected)


def test_micro_managers_stacks_without_ome(tmp_path):
    summary = {"MicroManagerVersion": "2", "Frames": 2, "StagePositions": [{"Label": "left"}, {"Label": "right"}]}
    several = [(field, t, 0, c) for field in range(2) for t in range(2) for c in range(2)]
    write_stack(tmp_path / "one" / "b_MMStack.tif", several, summary)
    whole = {"b_MMStack_left": stack(0, range(2), c=range(2)), "b_MMStack_right": stack(1, range(2), c=range(2))}
    require(named(tmp_path / "one"), whole)
    for number in range(2):
        for part in range(2):
            name = f"c_MMStack_Pos{number}{'_1' if part else ''}.tif"
            write_stack(tmp_path / "set" / name, [(number, part, 0, c) for c in range(2)], summary)
    expected = {f"c_MMStack_Pos{number}": stack(number, range(2), c=range(2)) for number in range(2)}
    require(named(tmp_path / "set"), expected)
    require(named(tmp_path / "set" / "c_MMStack_Pos1_1.tif"), {"c_MMStack_Pos1_1": stack(1, [1], c=range(2))})
    write_stack(tmp_path / "holes" / "d_MMStack.tif", [(0, 0, 0, 0), (0, 0, 0, 1), (0, 1, 0, 0)], summary)
    with pytest.raises(FrameError, match=r"lacks 1 of its 4 planes \(T=1 C=1\): save it again"):
        read_stack(tmp_path / "holes" / "d_MMStack.tif")


def test_ndtiff(tmp_path):
    write_ndtiff(tmp_path)
    expected = {f"NDTiffStack_P{field}": stack(field, range(2), c=range(2)) for field in range(2)}
    require(named(tmp_path), expected)
    alone = {f"NDTiffStack_1_P{field}": stack(field, [1], c=range(2)) for field in range(2)}
    require(named(tmp_path / "NDTiffStack_1.tif"), alone)
    (tmp_path / "NDTiff.index").unlink()
    with pytest.raises(FrameError, match="holds 4 planes that NDTiff.index describes, which is missing"):
        read_stack(tmp_path / "NDTiffStack.tif")


def test_levels_and_overviews_are_no_images(tmp_path):
    with tifffile.TiffWriter(tmp_path / "pyramid.ome.tif", ome=True) as tiff:
        for number in range(2):
            levels = [np.stack([plane(number, t, size=(side, side)) for t in range(2)]) for side in (64, 32)]
            tiff.write(levels[0], subifds=1, metadata={"axes": "TYX"})
            tiff.write(levels[1], subfiletype=1)
    found = named(tmp_path / "pyramid.ome.tif")
    assert [pixels.shape for pixels in found.values()] == [(2, 1, 64, 64)] * 2
    write_series(tmp_path / "slide.ome.tif", ["slide", "label image", "macro image"], 1)
    require(named(tmp_path / "slide.ome.tif"), {"slide": stack()})
    with tifffile.TiffWriter(tmp_path / "slide.svs") as tiff:
        about = {"description": "Aperio Image Library\r\n|MPP = 0.5", "metadata": None}
        tiff.write(plane(size=(256, 256)), tile=(64, 64), **about)
        tiff.write(plane(size=(32, 32)))
        tiff.write(plane(size=(128, 128)), tile=(64, 64))
        tiff.write(plane(size=(16, 16)), subfiletype=1)
        tiff.write(plane(size=(16, 32)), subfiletype=9)
    require(named(tmp_path / "slide.svs"), {"slide": stack(size=(256, 256))})
    with tifffile.TiffWriter(tmp_path / "hamamatsu.tif") as tiff:
        for side, magnification in ((256, 20.0), (128, 10.0), (48, -1.0)):
            tags = [(271, 2, 0, "Hamamatsu", True), (65420, 4, 1, 1, True), (65421, 11, 1, magnification, True)]
            tiff.write(plane(size=(side, side)), extratags=tags, metadata=None)
    require(named(tmp_path / "hamamatsu.tif"), {"hamamatsu": stack(size=(256, 256))})
    with tifffile.TiffWriter(tmp_path / "preview.tif") as tiff:
        tiff.write(plane(), metadata=None)
        tiff.write(plane(size=(6, 5)), subfiletype=1, metadata=None)
    require(named(tmp_path / "preview.tif"), {"preview": stack()})


def test_hyperstacks_of_imagej(tmp_path):
    pixels = np.stack([stack(t=[t], z=range(3), c=range(2)) for t in range(4)])
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "TZCYX"})
    image = read_image(tmp_path / "a.tif")
    assert image.layout.frames == (("T", 4), ("Z", 3))
    np.testing.assert_array_equal(image.pixels, stack(t=range(4), z=range(3), c=range(2)))


# Limits hold for each image and each file of a set.


def damaged_set(folder, damage):
    files = write_frames(folder)
    damage(files[2])
    (source,) = [source for source in list_images(folder) if source.files]
    return source


def strips(path):
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["RowsPerStrip"].overwrite(1)


def jpeg(path):
    """Replace a file by one whose strip is a JPEG of 60,000 x 60,000 pixels."""
    with tifffile.TiffFile(path) as tiff:
        text = tiff.pages.first.description
    write_pages(path, [plane()], text)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        page = tiff.pages[0]
        page.tags["Compression"].overwrite(7)
        tiff.filehandle.seek(page.dataoffsets[0])
        side = struct.pack(">H", 60000)
        tiff.filehandle.write(b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x0b\x08" + side + side + b"\1\1\x11\0")


DAMAGES = {
    "other size": (lambda path: write_pages(path, [plane(size=(6, 5))], ""), r"planes of \(12, 10\) uint16, and x_T2"),
    "no image": (lambda path: path.write_bytes(b"II*\0\0\0\0\0"), "refers to .*x_T2.ome.tif, which holds no image"),
    "no TIFF": (lambda path: path.write_bytes(b"text"), "refers to .*x_T2.ome.tif, which cannot be read: not a TIFF"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "refers to .*x_T2.ome.tif, which is a folder"),
    "broken link": (lambda path: (path.unlink(), path.symlink_to("no")), "x_T2.ome.tif, which cannot be read: No such"),
    "fewer pages": (lambda path: path.write_bytes(path.read_bytes()[:200]), "x_T0.ome.tif"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_of_a_set_is_named(tmp_path, damage, message):
    source = damaged_set(tmp_path, damage)
    with pytest.raises(FrameError, match=message) as refused:
        read_stack(source)
    assert "\n" not in str(refused.value)


def test_a_strip_that_is_an_image_file_is_measured_in_each_file(tmp_path):
    files = write_frames(tmp_path, 3)
    for file in files:
        jpeg(file)
    with tifffile.TiffFile(files[0], mode="r+b") as tiff:
        tiff.filehandle.seek(tiff.pages[0].dataoffsets[0] + 13)
        tiff.filehandle.write(struct.pack(">HH", *SIZE))
    (source,) = list_images(tmp_path)
    with pytest.raises(FrameError, match="has a tile of 60000 x 60000 pixels in place of"):
        read_stack(source)


def test_the_memory_of_a_set_and_of_each_image_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "PER_FRAME", 1)
    write_frames(tmp_path / "set")
    write_series(tmp_path / "a.ome.tif")
    for source in [*list_images(tmp_path / "set"), *list_images(tmp_path / "a.ome.tif")]:
        size = read_stack(source).nbytes
        assert read_stack(source, Reading(size)).nbytes == size
        with pytest.raises(FrameError, match="holds .* bytes: at most .* are read"):
            read_stack(source, Reading(size - 1))


def test_metadata_of_many_planes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(acquisitions, "PLANES", 50)
    summary = {"MicroManagerVersion": "2", "Frames": 1}
    write_stack(tmp_path / "a_MMStack.tif", [(0, 0, 0, 0), (0, 9, 9, 9)] + [(0, n, n, n) for n in range(1, 9)], summary)
    write_ndtiff(tmp_path / "b", times=60)
    write_pages(tmp_path / "c.ome.tif", [plane()], ome_xml([("x", {}, [('IFD="0"', None, "")] * 51)]))
    for path, message in (("a_MMStack.tif", "index of more"), ("c.ome.tif", "metadata of more")):
        with pytest.raises(FrameError, match=f"has .*{message} than 50 planes"):
            read_stack(tmp_path / path)
    assert stack_shape(tmp_path / "b" / "NDTiffStack.tif") is None


def test_files_outside_the_folder_are_not_opened(tmp_path):
    write_pages(tmp_path / "other.ome.tif", [plane(t=1)], "")
    for name in ("../other.ome.tif", str(tmp_path / "other.ome.tif")):
        data = [('IFD="0"', "a.ome.tif", "urn:1"), ('IFD="0" FirstT="1"', name, "urn:2")]
        write_pages(tmp_path / "set" / "a.ome.tif", [plane()], ome_xml([("x", {"T": 2}, data)], "urn:1"))
        require(named(tmp_path / "set"), {"a": stack()})
        write_pages(tmp_path / "set" / "a.ome.tif", [plane()], OME.format("", f'<BinaryOnly MetadataFile="{name}"/>'))
        require(named(tmp_path / "set"), {"a": stack()})


@pytest.mark.parametrize("kind", ["set", "positions", "series", "stack", "ndtiff"])
def test_damaged_acquisitions_are_read_or_refused_in_one_way(tmp_path, caplog, kind):
    """Any byte of any file may be wrong."""
    match kind:
        case "set":
            write_frames(tmp_path, 3)
        case "positions":
            write_positions(tmp_path, 2, 2)
        case "series":
            write_series(tmp_path / "a.ome.tif")
        case "stack":
            planes = [(field, t, 0, 0) for field in range(2) for t in range(2)]
            write_stack(tmp_path / "a_MMStack.tif", planes, {"MicroManagerVersion": "2", "Frames": 2})
        case _:
            write_ndtiff(tmp_path)
    caplog.set_level("CRITICAL")
    files, rng = sorted(tmp_path.iterdir()), np.random.default_rng(0)
    contents = [file.read_bytes() for file in files]
    for _ in range(60):
        which = rng.integers(len(files))
        damaged = bytearray(contents[which])
        for at in rng.integers(0, min(len(damaged), 1200), 3):
            damaged[at] = rng.integers(0, 256)
        files[which].write_bytes(damaged)
        for source in list_images(tmp_path):
            with suppress(FrameError):
                read_stack(source)
        files[which].write_bytes(contents[which])
