"""Two cameras at once: one live segmenter takes the frames of both, and keeps them apart.

    python examples/two_cameras.py model.onnx

Adds a second demo camera to Micro-Manager's demo microscope, and joins both to one device, the Multi Camera. Each
result names the camera of its frame; averages of the brightness, gaps in image numbers and the positions of labels in
stored files are kept per camera. Needs: pip install 'unetrt[cpu,acquire]'
"""

import argparse
from collections import defaultdict
from pathlib import Path

from pymmcore_plus import CMMCorePlus
from useq import MDASequence

from unetrt.runtime import LiveResult, LiveSegmenter


def main() -> None:
    """Acquire with both cameras, and print the objects in the frames of each."""
    arguments = parse()
    core = CMMCorePlus()
    core.loadSystemConfiguration(arguments.config)
    join(core, "Camera", "Camera-2")
    objects: dict[str, list[int]] = defaultdict(list)  # camera -> number of objects in each of its frames

    def count(result: LiveResult) -> None:
        """Note a result under its camera; called on the live segmenter's own thread."""
        objects[result.stream.camera].append(result.objects or 0)

    plan = MDASequence(time_plan={"interval": arguments.interval, "loops": arguments.frames})  # type: ignore[arg-type]
    # Both frames of a time point come at once: `latest` would let the second replace the first.
    with LiveSegmenter(
        arguments.model, policy="drop_oldest", kind="instances", normalisation=arguments.normalisation, on_result=count
    ) as live:
        core.mda.run(plan, output=[live])
    for camera, counts in sorted(objects.items()):
        print(f"{camera}: objects in {len(counts)} frames: {', '.join(map(str, counts))}")
    status = live.status()
    print(f"{status.submitted} frames: {status.done} segmented, {status.dropped} dropped, {status.failed} failed")


def join(core: CMMCorePlus, first: str, second: str) -> None:
    """Make the core's camera a Multi Camera of two: of a size, and of a pixel type."""
    core.loadDevice(second, "DemoCamera", "DCam")
    core.initializeDevice(second)
    core.setProperty(second, "PixelType", core.getProperty(first, "PixelType"))
    core.setExposure(second, core.getExposure(first))
    core.loadDevice("Both", "Utilities", "Multi Camera")
    core.initializeDevice("Both")
    for number, camera in enumerate((first, second), 1):
        core.setProperty("Both", f"Physical Camera {number}", camera)
    core.setCameraDevice("Both")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.onnx from `unetrt export`, or an engine from `unetrt build`")
    parser.add_argument("--config", default="MMConfig_demo.cfg", help="Micro-Manager configuration with a `Camera`")
    parser.add_argument("--frames", type=int, default=4, help="frames of each camera")
    parser.add_argument("--interval", type=float, default=0.2, help="seconds between frames")
    parser.add_argument("--normalisation", default="model", choices=["model", "running"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
