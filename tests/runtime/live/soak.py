"""Submits frames at twice the sustainable rate, and prints their outcomes and memory use.

python soak.py MODEL SECONDS
"""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

from unetrt.runtime import LiveSegmenter, Segmenter

FRAMES = [np.random.default_rng(seed).integers(0, 4000, (200, 300)).astype(np.uint16) for seed in range(4)]
# Seconds in which the sustainable rate is measured.
MEASURED = 2.0
# Seconds between two measurements of memory.
LOOK = 0.1


def resident() -> int:
    """Return the resident memory of this process, bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def sustainable(segmenter: Segmenter) -> float:
    """Return the sustainable rate, frames per second: one frame is always queued."""
    with LiveSegmenter(segmenter, policy="block", capacity=1) as live:
        live.submit(FRAMES[0]).result(60)
        begin, done = time.perf_counter(), 0
        while time.perf_counter() - begin < MEASURED:
            live.submit(FRAMES[done % len(FRAMES)])
            done += 1
        live.flush()
        return done / (time.perf_counter() - begin)


def soak(segmenter: Segmenter, policy: str, seconds: float, rate: float) -> dict:
    """Submit `rate` frames a second; read results, statuses and memory meanwhile."""
    memory, read = [], []
    live = LiveSegmenter(segmenter, policy=policy, normalisation="running")
    results = live.results(capacity=4)
    reader = threading.Thread(target=lambda: read.append(sum(1 for _ in results)))
    reader.start()
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
    live.close()
    reader.join(30)
    status = live.status()
    counts = {name: getattr(status, name) for name in ("submitted", "done", "dropped", "failed", "pending")}
    return {"policy": policy, "asked": submitted, **counts, "read": read[0] + results.missed, "memory": memory}


def main() -> None:
    """Soak each policy that drops frames for half of the time, after a warm-up."""
    model, seconds = sys.argv[1], float(sys.argv[2])
    with Segmenter(model) as segmenter:
        # Warm-up: the first growth of caches is not measured.
        soak(segmenter, "latest", min(seconds / 6, 10), 2 * sustainable(segmenter))
        runs = [
            soak(segmenter, policy, seconds / 2, 2 * sustainable(segmenter)) for policy in ("latest", "drop_oldest")
        ]
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    sys.stdout.write(json.dumps({"runs": runs, "threads": threads}))


if __name__ == "__main__":
    main()
