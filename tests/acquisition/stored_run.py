"""Stores numbered frames of two positions until it is killed: python -m tests.acquisition.stored_run STORE.ome.zarr

Frame n holds n + 1 + (row + column) % 5 at position n % 2, every 10th fails, and its labels are its values modulo 7.
"""

import sys

import numpy as np

from tests.acquisition.segmenters import segmenter
from unetrt.runtime import LiveSegmenter
from unetrt.runtime.acquisition import AcquisitionStore

SIZE = (64, 96)
FAILS = 10


def frame_of(number):
    rows, columns = np.indices(SIZE)
    return (number + 1 + (rows + columns) % 5).astype(np.uint16)


def main(path):
    fails = segmenter(fails=lambda number: number % FAILS == 0)
    with LiveSegmenter(fails, policy="block", kind="classes", outputs=[AcquisitionStore(path)]) as live:
        live.sequenceStarted()
        for number in range(100_000):
            live.submit(frame_of(number), {"p": number % 2, "n": number}, copy=False)


if __name__ == "__main__":
    main(sys.argv[1])
