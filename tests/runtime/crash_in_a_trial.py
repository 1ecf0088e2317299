"""Opens a model in a process that ends in a trial of options: python -m tests.runtime.crash_in_a_trial MODEL."""

import os
import sys

import pytest

from tests.runtime.fake_onnxruntime import Behaviour, Bench
from unetrt.runtime.sessions import open_session


def behaviour(settings):
    if settings.get("fuse_conv_bias") == "1" and settings["cudnn_conv_algo_search"] == "HEURISTIC":
        os._exit(77)
    return Behaviour()


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        Bench(patch).build.behaviour = behaviour
        open_session(sys.argv[1], "onnxruntime-cuda")
