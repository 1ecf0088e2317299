"""Two real processes, started by torchrun, against one with the same global batch."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from unetrt.runtime.errors import OptionError
from unetrt.trainer.checkpoint import load
from unetrt.trainer.team import Team, alone

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


def test_a_batch_is_shared_evenly():
    teams = [Team(rank, 3, torch.device("cpu")) for rank in range(3)]
    assert [index for team in teams for index in team.share(6)] == list(range(6))
    with pytest.raises(OptionError, match="a batch of 4 does not divide among 3 processes: use --batch 3 or"):
        teams[0].share(4)
    assert alone().share(4) == range(4)
