"""Segmentation of frames of any size: tiles cut, computed on lanes, and stitched."""
