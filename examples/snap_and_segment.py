"""Snap one image and segment it.

    python examples/snap_and_segment.py model.onnx
    python examples/snap_and_segment.py model.onnx --config MyMicroscope.cfg

Prints the number of objects and writes snap.tif and labels.tif. Without a configuration it uses Micro-Manager's demo
microscope, whose camera shows stripes. Needs: pip install 'unetrt[cpu,acquire]'
"""

import argparse
from pathlib import Path

import tifffile
from pymmcore_plus import CMMCorePlus

from unetrt.runtime import Segmenter, write_labels


def main() -> None:
    """Snap, segment, count, write."""
    arguments = parse()
    core = CMMCorePlus()
    core.loadSystemConfiguration(arguments.config)
    with Segmenter(arguments.model) as segmenter:  # loads the model once, for any number of frames
        frame = core.snap()
        found = segmenter.objects(frame)

    height, width = frame.shape
    print(f"{width} x {height} pixels: {found.count} objects in {found.timings.total:.2f} s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(arguments.out / "snap.tif", frame)
    write_labels(arguments.out / "labels.tif", found.labels)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.onnx from `unetrt export`, or an engine from `unetrt build`")
    parser.add_argument("--config", default="MMConfig_demo.cfg", help="Micro-Manager configuration")
    parser.add_argument("--out", type=Path, default=Path(), help="output folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
