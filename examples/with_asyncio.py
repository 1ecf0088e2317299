"""Segment a camera's frames in an asyncio program: the event loop never waits for the model.

    python examples/with_asyncio.py model.onnx
    python examples/with_asyncio.py model.onnx --frames 50 --deadline 0.05

Each frame has a task that awaits its result. A result that is not there by the deadline is of no use to it: the task
cancels its future, which drops the frame from the queue. Needs: pip install 'unetrt[cpu,acquire]'
"""

import argparse
import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from pymmcore_plus import CMMCorePlus

from unetrt.runtime import LiveSegmenter


async def main() -> None:
    """Snap frames at an interval, and decide on each result."""
    arguments = parse()
    core = CMMCorePlus()
    core.loadSystemConfiguration(arguments.config)
    # Opening a model takes seconds, so a thread does it. `drop_oldest` queues several frames, `latest` only one.
    live = await asyncio.to_thread(LiveSegmenter, arguments.model, policy="drop_oldest", kind="instances")
    ended_well = False
    try:
        async with asyncio.TaskGroup() as tasks:
            decisions = []
            for number in range(arguments.frames):
                frame = await asyncio.to_thread(core.snap)
                decisions.append(tasks.create_task(decide(live, frame, number, arguments.deadline)))
                await asyncio.sleep(arguments.interval)
        ended_well = True
    finally:  # also when this task was cancelled, as Ctrl+C does
        await asyncio.to_thread(live.close, drain=ended_well)
    print(", ".join(f"{count} {outcome}" for outcome, count in Counter(task.result() for task in decisions).items()))
    status = live.status()
    print(f"{status.submitted} frames: {status.done} segmented, {status.dropped} dropped, {status.failed} failed")


async def decide(live: LiveSegmenter, frame: Any, number: int, deadline: float) -> str:
    """Await the result of a frame, for `deadline` seconds."""
    try:
        # asyncio.timeout cancels what is awaited here, and wrap_future passes that on to the live segmenter.
        async with asyncio.timeout(deadline):
            result = await asyncio.wrap_future(live.submit(frame, number))
    except TimeoutError:
        return "too late"
    print(f"frame {number}: {result.outcome}, {result.objects} objects")
    return "in time"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.onnx from `unetrt export`, or an engine from `unetrt build`")
    parser.add_argument("--config", default="MMConfig_demo.cfg", help="Micro-Manager configuration")
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--interval", type=float, default=0.1, help="seconds between frames")
    parser.add_argument("--deadline", type=float, default=30, help="seconds in which a result is of use")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
