"""Submits frames at twice the sustainable rate, beside a browser view, a label writer and a slow output.

python -m tests.runtime.live.soak MODEL SECONDS FOLDER

Prints outcomes, memory use and the time that closing took. FOLDER receives the labels.
"""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

from tests.live_view.live_scenes import asked
from unetrt import BrowserView
from unetrt.runtime import LiveSegmenter, Segmenter
from unetrt.runtime.acquisition import LabelWriter

FRAMES = [np.random.default_rng(seed).integers(0, 4000, (200, 300)).astype(np.uint16) for seed in range(4)]
# Seconds in which the sustainable rate is measured.
MEASURED = 2.0
# Seconds between two measurements of memory.
LOOK = 0.1
# Seconds of each call of the slow output.
SLOW = 0.02


class Slow:
    """A slow output that checks that it hears of each frame once and in order."""

    def __init__(self):
        self.results, self.dropped_frames, self.calls, self.wrong = 0, 0, 0, []
        self._next = 0

    def result(self, result):
        self._expect(result.number, result.number)
        self.results += 1

    def dropped(self, frames):
        self._expect(frames.first, frames.last)
        self.dropped_frames += frames.count

    def _expect(self, first, last):
        if first != self._next:
            self.wrong.append((self._next, first))
        self._next = last + 1
        self.calls += 1
        time.sleep(SLOW)

    def sequence_started(self, sequence):
        pass

    def sequence_finished(self, sequence):
        pass

    def close(self):
        pass


def resident() -> int:
    """Return the resident memory of this process, bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def outputs(folder: Path, slow: Slow) -> list:
    """Return the outputs of each run."""
    return [LabelWriter(folder / "labels.ome.zarr", overwrite=True), slow]


def sustainable(segmenter: Segmenter, folder: Path) -> float:
    """Return the sustainable rate, frames per second: one frame is always queued."""
    with LiveSegmenter(segmenter, policy="block", capacity=1, outputs=outputs(folder, Slow())) as live:
        live.submit(FRAMES[0]).result(60)
        begin, done = time.perf_counter(), 0
        while time.perf_counter() - begin < MEASURED:
            live.submit(FRAMES[done % len(FRAMES)])
            done += 1
        live.flush()
        return done / (time.perf_counter() - begin)


def watch(view: BrowserView, stop: threading.Event, pictures: list) -> None:
    """Look at the page, as a browser does: fetch the newest picture again and again."""
    while not stop.is_set():
        with asked(view, "/picture?after=-1") as response:
            if response.status == 200:
                pictures.append(len(response.read()))
        stop.wait(0.1)


def soak(segmenter: Segmenter, policy: str, seconds: float, rate: float, folder: Path) -> dict:
    """Submit `rate` frames a second; read results, pictures, statuses and memory meanwhile."""
    memory, read, pictures, stop, slow = [], [], [], threading.Event(), Slow()
    live = LiveSegmenter(segmenter, policy=policy, normalisation="running", outputs=outputs(folder, slow))
    results = live.results(capacity=4)
    view = BrowserView(live)
    threads = [
        threading.Thread(target=lambda: read.append(sum(1 for _ in results))),
        threading.Thread(target=watch, args=(view, stop, pictures)),
    ]
    for thread in threads:
        thread.start()
    begin = time.perf_counter()
    due, look, submitted = begin, begin, 0
    while (now := time.perf_counter()) - begin < seconds:
        if now >= look:
            look += LOOK
            memory.append(resident())
            status = live.status()
            assert status.submitted == status.done + status.dropped + status.failed + status.pending, status
        if now < due:
            time.sleep(due - now)
        due += 1 / rate
        # One in fifty is not a frame.
        live.submit(FRAMES[submitted % len(FRAMES)] if submitted % 50 else None, submitted)
        submitted += 1
    closing = time.perf_counter()
    live.close(drain=False)
    closed = time.perf_counter() - closing
    stop.set()
    for thread in threads:
        thread.join(30)
    view.close()
    status = live.status()
    counts = {name: getattr(status, name) for name in ("submitted", "done", "dropped", "failed", "pending")}
    heard = {"results": slow.results, "dropped_frames": slow.dropped_frames, "calls": slow.calls, "wrong": slow.wrong}
    found = {
        "closed": closed,
        "pictures": len(pictures),
        "output_errors": status.output_errors,
        "error": status.last_error,
    }
    read_or_missed = read[0] + results.missed
    return {"policy": policy, "asked": submitted, **counts, **heard, **found, "read": read_or_missed, "memory": memory}


def main() -> None:
    """Soak each policy that drops frames for half of the time, after a warm-up."""
    model, seconds, folder = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    with Segmenter(model) as segmenter:
        rate = 2 * sustainable(segmenter, folder)
        # Warm-up: the first growth of caches is not measured.
        soak(segmenter, "latest", min(max(seconds / 6, 5), 10), rate, folder)
        runs = [soak(segmenter, policy, seconds / 2, rate, folder) for policy in ("latest", "drop_oldest")]
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    sys.stdout.write(json.dumps({"rate": rate, "runs": runs, "threads": threads}))


if __name__ == "__main__":
    main()
