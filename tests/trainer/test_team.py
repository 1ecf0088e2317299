"""Two real processes, started by torchrun, against one with the same global batch."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from unetrt.runtime.errors import OptionError
from unetrt.trainer.checkpoint import load
from unetrt.trainer.learner import Team, alone

OPTIONS = "--depth 1 --base 4 --tile 60 --batch 2 --steps 6 --no-mixed --rate 0.01 --no-export --seed 3"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def train(drawn_folder, out, *launcher):
    command = [sys.executable, *launcher, "-m", "unetrt", "train", str(drawn_folder), "-o", str(out), *OPTIONS.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return load(out / "last.safetensors"), done.stdout


def test_two_processes_learn_what_one_would(drawn_folder, tmp_path):
    one, _ = train(drawn_folder, tmp_path / "one")
    two, said = train(drawn_folder, tmp_path / "two", *TORCHRUN)
    np.testing.assert_allclose(two.state["losses"], one.state["losses"], rtol=1e-4)
    for name, weights in one.weights.items():
        np.testing.assert_allclose(two.weights[name], weights, atol=2e-4, err_msg=name)
    assert said.count("training on") == 1, "only the leader speaks"


def test_all_stop_after_the_same_step_and_leave_together(drawn_folder, tmp_path):
    """torchrun passes the interrupt on to its processes; the leader decides for all of them."""
    command = [sys.executable, *TORCHRUN, "-m", "unetrt", "train", str(drawn_folder), "-o", str(tmp_path / "run")]
    options = OPTIONS.replace("--steps 6", "--steps 100000").split()
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    last = tmp_path / "run" / "last.safetensors"
    begin = time.monotonic()
    while not last.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() - begin < 120
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert said.count("stopped after step") == 1
    assert "under torchrun again" in said
    assert "terminate called" not in said
    assert f"stopped after step {load(last).training['steps']};" in said


def test_a_batch_is_shared_evenly():
    teams = [Team(rank, 3, torch.device("cpu")) for rank in range(3)]
    assert [index for team in teams for index in team.share(6)] == list(range(6))
    with pytest.raises(OptionError, match="a batch of 4 does not divide among 3 processes: use --batch 3 or"):
        teams[0].share(4)
    assert alone().share(4) == range(4)
