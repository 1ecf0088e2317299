"""Segment in a separate process: the acquisition program keeps its interpreter lock, and survives an engine's crash.

    python examples/with_processes.py model.onnx

Frames and labels cross in shared memory, without copies through a pipe; the pipe carries numbers of places in it. The
child process opens the model: a `LiveSegmenter` cannot be sent to it. Needs: pip install 'unetrt[cpu,acquire]'
"""

import argparse
import multiprocessing
import os
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from pymmcore_plus import CMMCorePlus

from unetrt.runtime import LiveResult, LiveSegmenter, UnetrtError

PLACES = 4  # for frames in the shared memory; while none is free, frames are dropped


def main() -> None:
    """Snap frames, and hand those to the child for which there is a place."""
    arguments = parse()
    core = CMMCorePlus()
    core.loadSystemConfiguration(arguments.config)
    first = core.snap()
    memory = SharedMemory(create=True, size=PLACES * (first.nbytes + 4 * first.size))
    frames, labels = arrays(memory, first.shape, first.dtype)
    context = multiprocessing.get_context("spawn")  # engines have threads, which a fork would not copy
    pipe, its_end = context.Pipe()
    layout = (memory.name, first.shape, first.dtype)
    child = context.Process(target=segment, args=(its_end, str(arguments.model), layout), daemon=True)
    child.start()
    its_end.close()  # so that `recv` raises EOFError if the child dies
    free, dropped = list(range(PLACES)), 0
    try:
        print(pipe.recv())
        for number in range(arguments.frames):
            frame = core.snap()
            while pipe.poll():
                free.append(show(pipe.recv(), labels))
            if free:
                frames[free[-1]] = frame
                pipe.send((free.pop(), number))
            else:
                dropped += 1
        while len(free) < PLACES:
            free.append(show(pipe.recv(), labels))
        pipe.send(None)
        print(f"{arguments.frames} frames: {arguments.frames - dropped} segmented, {dropped} dropped")
    except (EOFError, ConnectionError):
        print("the child process has ended")
    child.join()
    frames = labels = None  # memory that an array uses cannot be closed
    memory.close()
    memory.unlink()


def show(answer: tuple[int, int, str], labels: Any) -> int:
    """Print a result, and return its place in the memory, which is free again."""
    place, number, summary = answer
    print(f"frame {number}: {summary}, {np.mean(labels[place] > 0):.0%} of the frame")
    return place


def segment(pipe: Connection, model: str, layout: tuple[str, tuple[int, ...], np.dtype[Any]]) -> None:
    """Segment frames of the shared memory until None comes; this is the child process."""

    def answer(result: LiveResult) -> None:
        """Write labels to the shared memory; called on the live segmenter's own thread."""
        place, number = result.index
        labels[place] = 0 if result.labels is None else result.labels
        pipe.send((place, number, str(result.error or f"{result.objects} objects")))

    try:
        # The queue has room for all places, so that `block` never waits, and no frame is dropped here.
        live = LiveSegmenter(model, policy="block", capacity=PLACES, kind="instances", on_result=answer)
    except UnetrtError as error:
        raise SystemExit(str(error)) from None
    memory = SharedMemory(layout[0])
    frames, labels = arrays(memory, *layout[1:])
    with live:
        pipe.send(f"opened in process {os.getpid()}")
        for place, number in iter(pipe.recv, None):
            live.submit(frames[place], (place, number), copy=False)  # the parent leaves it alone until the answer
    frames = labels = None
    memory.close()


def arrays(memory: SharedMemory, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return the frames and the labels in the shared memory, (PLACES, H, W) each."""
    frames = np.ndarray((PLACES, *shape), dtype, memory.buf)
    return frames, np.ndarray(frames.shape, np.int32, memory.buf, offset=frames.nbytes)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.onnx from `unetrt export`, or an engine from `unetrt build`")
    parser.add_argument("--config", default="MMConfig_demo.cfg", help="Micro-Manager configuration")
    parser.add_argument("--frames", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
