"""Segment a time-lapse while it runs; raw data and labels are stored.

    python examples/time_lapse.py model.onnx
    python examples/time_lapse.py model.onnx --config MyMicroscope.cfg --frames 100 --interval 5

Writes raw.ome.zarr, labels.ome.zarr with the same axes, and labels.csv, with the number of objects in each frame, or
the reason why it has no labels. The camera never waits: when 8 frames are queued, `drop_oldest` drops the oldest.
Needs: pip install 'unetrt[cpu,acquire]'
"""

import argparse
from pathlib import Path

from pymmcore_plus import CMMCorePlus
from useq import MDASequence

from unetrt.runtime import LiveResult, LiveSegmenter
from unetrt.runtime.acquisition import LabelWriter


def main() -> None:
    """Acquire, and print the number of frames of each outcome."""
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    writer = LabelWriter(arguments.out / "labels.ome.zarr")
    core = CMMCorePlus()
    core.loadSystemConfiguration(arguments.config)
    plan = MDASequence(time_plan={"interval": arguments.interval, "loops": arguments.frames})  # type: ignore[arg-type]
    # The end of `with` waits until all frames are segmented and stored.
    with LiveSegmenter(arguments.model, policy="drop_oldest", outputs=[writer], on_result=report) as live:
        core.mda.run(plan, output=[arguments.out / "raw.ome.zarr", live])
    status = live.status()
    print(f"{status.submitted} frames: {status.done} segmented, {status.dropped} dropped, {status.failed} failed")
    if status.last_error:
        print(status.last_error)


def report(result: LiveResult) -> None:
    """Print a result; called on the live segmenter's own thread."""
    print(f"t={result.index['t']}: {result.outcome}, {result.objects} objects, {result.latency * 1e3:.0f} ms")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.onnx from `unetrt export`, or an engine from `unetrt build`")
    parser.add_argument("--config", default="MMConfig_demo.cfg", help="Micro-Manager configuration")
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between frames")
    parser.add_argument("--out", type=Path, default=Path(), help="output folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
