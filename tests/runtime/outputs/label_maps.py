"""Labels with all that outlines can have: holes, islands in holes, parts that touch in corners, the frame's edge."""

import numpy as np


def drawn(text):
    """Return labels from a text of digits; points are background."""
    return np.array([[0 if one == "." else int(one) for one in row] for row in text.split()], np.int32)


MAPS = {
    "a pixel": drawn("1"),
    "a row": drawn("..3333"),
    "the whole frame": drawn("22 22 22"),
    "touching": drawn("1122 1132 1133"),
    "a hole": drawn("..... .111. .1.1. .111. ....."),
    "a hole and an island in it": drawn("1111111 1.....1 1.111.1 1.1.1.1 1.111.1 1.....1 1111111"),
    "an object in a hole": drawn("11111 11211 11111"),
    "parts far apart": drawn("1..1 .... 1..2"),
    "parts that touch in a corner": drawn("11.. 11.. ..11 ..11"),
    "a hole that touches the outside in a corner": drawn("1111 1..1 1.11 111."),
    "holes that touch in a corner": drawn("1111 1.11 11.1 1111"),
    "a chequered board": drawn("1.1.1 .1.1. 1.1.1 .1.1."),
    "two labels crossed": drawn("12 21"),
    "gaps in rows": drawn("1....1 ...... 1....1"),
}


def random_maps(count, seed=0):
    """Yield small random labels, some of them enlarged."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        labels = rng.integers(0, rng.integers(2, 5), rng.integers(1, 13, 2)).astype(np.int32)
        yield np.kron(labels, np.ones(rng.integers(1, 5, 2), np.int32)) if number % 2 else labels
