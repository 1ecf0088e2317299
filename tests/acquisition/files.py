"""Reads the files of an acquisition with libraries that did not write them."""

import csv

import zarr


def positions_of(path):
    """Return the array of each stage position of an OME-Zarr, in their order."""
    group = zarr.open_group(path, mode="r")
    names = [""] if "0" in group.array_keys() else sorted(set(group.group_keys()) - {"OME", "tables"})
    return [group[f"{name}/0".lstrip("/")][...] for name in names]


def rows_of(path):
    """Return the rows of a table of frames, as dictionaries."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
