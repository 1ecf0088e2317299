"""Tile geometry: which tiles are legal, where they lie in a frame, and what a tile costs."""
