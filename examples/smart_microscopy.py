"""The segmentation decides what is acquired next: a field with many objects gets a z-stack.

    python examples/smart_microscopy.py model.onnx --many 40
    python examples/smart_microscopy.py model.onnx --many 40 --config MyMicroscope.cfg
    python examples/smart_microscopy.py model.onnx --many 40 --fields FOLDER

Surveys fields one after the other. The demo microscope looks the same everywhere; with --fields each image of a folder
(grey, all of one size) is what the camera sees at one place of the stage. Needs: pip install 'unetrt[cpu,acquire]'
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue

from pymmcore_plus.experimental.unicore import UniMMCore
from useq import MDAEvent

from unetrt.runtime import LiveResult, LiveSegmenter
from unetrt.runtime.acquisition import Replay, load_replay_camera
from unetrt.runtime.files.images import list_images

STOP = None
STEP, DISTANCE = 2.0, 500.0  # µm, between planes and between fields


class Survey:
    """Decides event by event; `live` calls `decide`, the acquisition takes from `queue`."""

    def __init__(self, fields: int, many: int, focus: float) -> None:
        self.fields, self.many, self.focus = fields, many, focus
        self.queue: Queue[MDAEvent | None] = Queue()
        self.look_at(0)

    def decide(self, result: LiveResult) -> None:
        """Order what comes after a result, on the live segmenter's thread: the acquisition waits for it, not in it."""
        if "z" in result.index:
            return
        field, objects = result.index["p"], result.objects or 0  # a field that failed has none
        crowded = objects > self.many
        print(f"field {field}: {objects} objects{', a z-stack' if crowded else ''}")
        for plane in range(5 if crowded else 0):
            self.queue.put(self.event(field, {"z": plane}, (plane - 2) * STEP))
        self.look_at(field + 1)

    def look_at(self, field: int) -> None:
        """Order the survey of a field, or the end."""
        self.queue.put(self.event(field, {}, 0.0) if field < self.fields else STOP)

    def orders(self, patience: float) -> Iterator[MDAEvent]:
        """Yield what was ordered, until the end was; after a camera that failed nothing more is ordered."""
        try:
            while (event := self.queue.get(timeout=patience)) is not STOP:
                yield event
        except Empty:
            print(f"no result for {patience:.0f} s: this is the end")

    def event(self, field: int, plane: dict[str, int], height: float) -> MDAEvent:
        """Return an order for one image, `height` µm above the focus."""
        index = {"p": field, **plane}
        return MDAEvent(index=index, x_pos=field * DISTANCE, y_pos=0, z_pos=self.focus + height)  # type: ignore[arg-type]


def main() -> None:
    """Survey all fields."""
    arguments = parse()
    core = UniMMCore()  # as CMMCorePlus, and takes cameras that are written in Python
    core.loadSystemConfiguration(arguments.config)
    fields = 4
    if arguments.fields:
        replay = Replay(list_images(arguments.fields))
        fields = len(replay.files)
        load_replay_camera(core, replay)
        core.mda.events.eventStarted.connect(lambda event: replay.rewind(event.index["p"]))
    survey = Survey(fields, arguments.many, core.getZPosition())
    images: list[MDAEvent] = []
    core.mda.events.frameReady.connect(lambda _, event: images.append(event))
    # `latest` may drop planes, which nobody waits for, but never a survey: no frame comes after it before its result.
    with LiveSegmenter(arguments.model, policy="latest", kind="instances", on_result=survey.decide) as live:
        core.mda.run(survey.orders(arguments.patience), output=[live])
    print(f"{len(images)} images of {fields} fields, {sum('z' in event.index for event in images) // 5} z-stacks")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.onnx from `unetrt export`, or an engine from `unetrt build`")
    parser.add_argument("--many", type=int, default=20, metavar="N", help="a field with more objects gets a z-stack")
    parser.add_argument("--patience", type=float, default=60, metavar="S", help="seconds that a result may take")
    parser.add_argument("--config", default="MMConfig_demo.cfg", help="a microscope's configuration")
    parser.add_argument("--fields", type=Path, metavar="FOLDER", help="images that the camera shows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
