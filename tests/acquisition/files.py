"""Reads the files of an acquisition with libraries that did not write them."""

import csv

import tifffile
import zarr


def positions_of(path):
    """Return the array of each stage position, in their order, of an OME-Zarr, an OME-TIFF or a folder of them."""
    if path.name.endswith(".zarr"):
        group = zarr.open_group(path, mode="r")
        names = [""] if "0" in group.array_keys() else sorted(set(group.group_keys()) - {"OME"})
        return [group[f"{name}/0".lstrip("/")][...] for name in names]
    folder = path.with_name(path.name.split(".")[0])
    files = sorted(folder.iterdir()) if folder.is_dir() else [path]
    return [tifffile.imread(file, series=0) for file in files]


def rows_of(path):
    """Return the rows of a table of frames, as dictionaries."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
