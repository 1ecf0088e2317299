import os
import subprocess
import sys

import numpy as np
import pytest

from unetrt.trainer import weight_maps
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.targets import separation_weights
from unetrt.trainer.weight_maps import cached_separation_weights, prune

LABELS = draw((80, 90), seed=2).labels


@pytest.fixture
def counted(monkeypatch):
    """How often weights were really worked out."""
    calls = []

    def count(*arguments):
        calls.append(arguments)
        return separation_weights(*arguments)

    monkeypatch.setattr(weight_maps, "separation_weights", count)
    return calls


def test_the_same_labels_and_options_are_worked_out_once(tmp_path, counted):
    for _ in range(3):
        weights = cached_separation_weights(LABELS, 10.0, 5.0, tmp_path)
        np.testing.assert_array_equal(weights, separation_weights(LABELS, 10.0, 5.0))
    assert len(counted) == 1


CHANGES = {
    "w0": lambda labels: (labels, 9.0, 5.0),
    "sigma": lambda labels: (labels, 10.0, 4.0),
    "shape": lambda labels: (labels.T, 10.0, 5.0),
    "labels": lambda labels: (np.where(labels == 3, 0, labels).astype(np.int32), 10.0, 5.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_is_worked_out_anew(tmp_path, counted, change):
    cached_separation_weights(LABELS, 10.0, 5.0, tmp_path)
    changed = change(LABELS)
    np.testing.assert_array_equal(cached_separation_weights(*changed, tmp_path), separation_weights(*changed))
    assert len(counted) == 2


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_damaged_or_unwritable_cache_costs_time_and_nothing_else(tmp_path, counted, damage):
    folder = tmp_path / "cache"
    if damage is None:
        folder.write_text("a file where the folder should be")
    else:
        cached_separation_weights(LABELS, 10.0, 5.0, folder)
        next(folder.glob("*.npy")).write_bytes(damage)
    weights = cached_separation_weights(LABELS, 10.0, 5.0, folder)
    np.testing.assert_array_equal(weights, separation_weights(LABELS, 10.0, 5.0))


@pytest.mark.skipif(os.name != "posix", reason="modes and users of POSIX")
def test_a_cache_below_a_folder_that_may_not_be_entered(tmp_path):
    """As in a container that runs as somebody else: even asking whether the folder exists raises."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    program = (
        "import os, sys; from pathlib import Path; from unetrt.trainer.drawn_cells import draw; "
        "from unetrt.trainer.weight_maps import cached_separation_weights; labels = draw((40, 40), seed=2).labels; "
        "os.geteuid() or os.seteuid(65534); "
        "print(cached_separation_weights(labels, 10.0, 5.0, Path(sys.argv[1])).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, closed / "cache"], capture_output=True, text=True, check=False, timeout=120
    )
    closed.chmod(0o700)
    assert done.stdout.strip() == "(40, 40)", done.stderr


def test_the_longest_unused_go_first(tmp_path, counted):
    for w0 in (1.0, 2.0, 3.0):
        cached_separation_weights(LABELS, w0, 5.0, tmp_path)
    size = next(tmp_path.glob("*.npy")).stat().st_size
    cached_separation_weights(LABELS, 1.0, 5.0, tmp_path)  # used again: the newest now
    prune(tmp_path, keep=2 * size)
    assert len(list(tmp_path.glob("*.npy"))) == 2
    cached_separation_weights(LABELS, 1.0, 5.0, tmp_path)
    assert len(counted) == 3
