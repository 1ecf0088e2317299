"""Smart microscopy: the segmentation decides what is acquired next. A field with many large objects gets a z-stack.

    python examples/smart_microscopy.py model.onnx --many 40
    python examples/smart_microscopy.py model.onnx --many 40 --config MyMicroscope.cfg
    python examples/smart_microscopy.py model.onnx --many 40 --fields FOLDER

Surveys fields one by one. The demo microscope shows the same image everywhere; with --fields each image of a folder
(grey, all of one size) is what the camera sees at one stage position. Needs: pip install 'unetrt[cpu,acquire]'
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue

import numpy as np
from pymmcore_plus.experimental.unicore import UniMMCore
from useq import MDAEvent

from unetrt.runtime import LiveResult, LiveSegmenter, list_images
from unetrt.runtime.acquisition import Replay, load_replay_camera

STOP = None
STEP, DISTANCE = 2.0, 500.0  # µm, between planes and between fields
LEAST = 20  # pixels; smaller objects do not count


class Survey:
    """Decides on each event: `live` calls `decide`, and the acquisition iterates over `orders`."""

    def __init__(self, fields: int, many: int, focus: float) -> None:
        self.fields, self.many, self.focus = fields, many, focus
        self.queue: Queue[MDAEvent | None] = Queue()
        self.look_at(0)

    def decide(self, result: LiveResult) -> None:
        """Queue the events that follow from a result; called on the live segmenter's thread."""
        if "z" in result.index:
            return
        field = result.index["p"]
        # Objects of more than LEAST pixels; a field that failed has no table.
        objects = 0 if result.table is None else np.count_nonzero(result.table["area"] > LEAST)
        crowded = objects > self.many
        print(f"field {field}: {objects} objects{', a z-stack' if crowded else ''}")
        for plane in range(5 if crowded else 0):
            self.queue.put(self.event(field, {"z": plane}, (plane - 2) * STEP))
        self.look_at(field + 1)

    def look_at(self, field: int) -> None:
        """Queue the survey of a field, or the end."""
        self.queue.put(self.event(field, {}, 0.0) if field < self.fields else STOP)

    def orders(self, patience: float) -> Iterator[MDAEvent]:
        """Yield queued events until the end, or until `patience` seconds pass: a failed camera gives no result."""
        try:
            while (event := self.queue.get(timeout=patience)) is not STOP:
                yield event
        except Empty:
            print(f"no result for {patience:.0f} s: stopping")

    def event(self, field: int, plane: dict[str, int], height: float) -> MDAEvent:
        """Return the event of one image, `height` µm above the focus."""
        index = {"p": field, **plane}
        return MDAEvent(index=index, x_pos=field * DISTANCE, y_pos=0, z_pos=self.focus + height)  # type: ignore[arg-type]


def main() -> None:
    """Survey all fields."""
    arguments = parse()
    core = UniMMCore()  # a CMMCorePlus that supports cameras written in Python
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
    # `latest` may drop planes of a z-stack, but never a survey: the next frame comes after its result.
    with LiveSegmenter(arguments.model, policy="latest", kind="instances", on_result=survey.decide) as live:
        core.mda.run(survey.orders(arguments.patience), output=[live])
    print(f"{len(images)} images of {fields} fields, {sum('z' in event.index for event in images) // 5} z-stacks")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.onnx from `unetrt export`, or an engine from `unetrt build`")
    parser.add_argument("--many", type=int, default=20, metavar="N", help="a field with more objects gets a z-stack")
    parser.add_argument("--patience", type=float, default=60, metavar="S", help="seconds to wait for a result")
    parser.add_argument("--config", default="MMConfig_demo.cfg", help="Micro-Manager configuration")
    parser.add_argument("--fields", type=Path, metavar="FOLDER", help="images for the camera to show")
    return parser.parse_args()


if __name__ == "__main__":
    main()
