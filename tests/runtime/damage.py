"""Damaged copies of image files."""

import numpy as np

from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.images import read_stack


def refusals(path, rounds=150, flips=3):
    """Return how many of `rounds` damaged copies of a file are refused in one line; others are read.

    Each has `flips` bytes with other values, and every second one ends early.
    """
    rng, whole, refused = np.random.default_rng(1), bytearray(path.read_bytes()), 0
    for _ in range(rounds):
        damaged = whole.copy()
        for at in rng.integers(0, len(whole), flips):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(0, len(whole))] if rng.random() < 0.5 else damaged)
        try:
            read_stack(path)
        except FrameError as error:
            refused += "\n" not in str(error)
    return refused
