"""Twice as many frames as can be segmented, for a quarter of a minute; `make soak` takes ten minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.alone

SECONDS = float(os.environ.get("UNETRT_SOAK_SECONDS", "15"))
# Allowed growth of memory, and the part of a run that counts as warm-up.
GROWTH, WARM = 0.01, 0.3
# Percentile of memory that is compared: a low one excludes frames in flight.
LOW = 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.timeout(SECONDS + 120)
def test_memory_stays_flat_and_every_frame_is_accounted_for(tiny_model):
    program = Path(__file__).with_name("soak.py")
    done = subprocess.run(
        [sys.executable, program, tiny_model, str(SECONDS)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["threads"] == []
    for run in found["runs"]:
        assert run["submitted"] == run["asked"] == run["done"] + run["dropped"] + run["failed"]
        assert run["pending"] == 0
        assert run["read"] == run["done"] + run["failed"]
        # Twice the sustainable rate: about half is dropped; but that of a shared machine changes.
        assert min(run["done"], run["dropped"]) > 0.02 * run["submitted"]
        assert run["failed"] > 0
        warm = run["memory"][int(WARM * len(run["memory"])) :]
        first, last = (np.percentile(half, LOW) for half in (warm[: len(warm) // 2], warm[len(warm) // 2 :]))
        mebibytes = f"{first / 2**20:.1f} MiB, then {last / 2**20:.1f} MiB"
        sys.stdout.write(f"{run['policy']}: {run['submitted']} frames, {run['done']} done, {mebibytes}\n")
        assert last < (1 + GROWTH) * first
