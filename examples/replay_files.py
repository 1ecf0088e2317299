"""Replay image files through Micro-Manager's acquisition engine: test a program on real images without a microscope.

    python examples/replay_files.py model.onnx FOLDER

A Python camera shows the images of the folder (grey TIFF, PNG, NPY, Zarr), bit for bit; each file is one acquisition,
with all planes of a stack. Writes labels/NAME.tif, the same labels as `unetrt predict`.
Needs: pip install 'unetrt[cpu,acquire]'
"""

import argparse
from pathlib import Path

import numpy as np
from pymmcore_plus.experimental.unicore import UniMMCore
from useq import MDASequence

from unetrt.runtime import LiveSegmenter, list_images, write_labels
from unetrt.runtime.acquisition import Replay, load_replay_camera


def main() -> None:
    """Replay a folder."""
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    core = UniMMCore()  # a CMMCorePlus that supports cameras written in Python
    # Files can wait: with the policy block, and as a slot on the thread of the acquisition, no frame is dropped.
    with LiveSegmenter(arguments.model, policy="block") as live:
        for name in ("sequenceStarted", "frameReady", "sequenceFinished"):
            getattr(core.mda.events, name).connect(getattr(live, name))
        for file in list_images(arguments.folder):
            replay = Replay([file])
            load_replay_camera(core, replay, exposure=arguments.exposure)
            frames = replay.count()
            results = live.results(capacity=frames)
            core.mda.run(MDASequence(time_plan={"interval": 0, "loops": frames}))  # type: ignore[arg-type]
            live.flush()
            results.close()
            labels = [result.labels for result in results if result.labels is not None]
            if len(labels) < frames:
                print(f"{file.path.name}: {live.status().last_error}")
                continue
            write_labels(arguments.out / f"{file.name}.tif", np.stack(labels) if frames > 1 else labels[0])
            print(f"{file.path.name}: {frames} frames, {sum(int(plane.max()) for plane in labels)} objects")
    print(f"{live.status().done} frames -> {arguments.out}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.onnx from `unetrt export`, or an engine from `unetrt build`")
    parser.add_argument("folder", type=Path, help="folder of images, or one file")
    parser.add_argument("--exposure", type=float, default=10, help="exposure time in milliseconds")
    parser.add_argument("--out", type=Path, default=Path("labels"), help="folder for the labels")
    return parser.parse_args()


if __name__ == "__main__":
    main()
