from pathlib import Path

import numpy as np
import pytest

from unetrt.benchmarks.job import Job
from unetrt.benchmarks.worker import Worker
from unetrt.runtime.errors import InferenceError

pytestmark = pytest.mark.alone

SLEEPERS = "tests.benchmarks.sleepers"


def test_a_contender_is_timed_in_its_own_process(tmp_path):
    with Worker(SLEEPERS, Job(tmp_path)) as worker:
        assert worker.seconds("long") > 3 * worker.seconds("short")
        np.testing.assert_array_equal(worker.labels("labels"), np.eye(3))
    worker.close()


@pytest.mark.parametrize(("name", "message"), [("fail", "ZeroDivisionError: division by zero"), ("die", "died")])
def test_a_contender_that_fails_says_how(tmp_path, name, message):
    with Worker(SLEEPERS, Job(tmp_path)) as worker, pytest.raises(InferenceError, match=message):
        worker.seconds(name)


def test_a_contender_that_cannot_load_says_how():
    with pytest.raises(InferenceError, match="FileNotFoundError: none"):
        Worker(SLEEPERS, Job(Path("none")))
