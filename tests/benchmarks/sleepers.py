"""Contenders that only sleep, fail or die: for tests of the worker."""

import os
import time

import numpy as np


def contenders(job):
    if not job.folder.exists():
        raise FileNotFoundError(job.folder)
    return {
        "long": lambda: time.sleep(0.1),
        "short": lambda: time.sleep(0.01),
        "labels": lambda: np.eye(3, dtype=np.uint8),
        "fail": lambda: 1 / 0,
        "die": lambda: os._exit(9),
    }
