"""TensorRT's messages, of the real one, which needs no GPU to say something."""

import logging
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from tests import requirements
from unetrt.runtime.engines.flavours import collected, first_error, logger_of

AT_ONCE = """
import logging, sys, threading, time
import tensorrt_rtx
from unetrt.runtime.engines.flavours import logger_of

logging.basicConfig(level=logging.INFO, filename=sys.argv[1])
sys.setswitchinterval(1e-5)
end = time.monotonic() + 3

def makes_and_frees(kind):
    while time.monotonic() < end:
        made = getattr(tensorrt_rtx, kind)(logger_of(tensorrt_rtx))
        time.sleep(0.0005)
        del made

threads = [threading.Thread(target=makes_and_frees, args=(kind,)) for kind in ("Runtime", "Builder", "Runtime")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_making_and_freeing_in_several_threads_does_not_hang(tmp_path):
    """With a logger for each, TensorRT's lock and Python's are soon waited for crosswise."""
    pytest.importorskip("tensorrt_rtx", reason=requirements.RTX)
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, str(tmp_path / "log")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "differs" not in (tmp_path / "log").read_text()


class ILogger:
    def __init__(self):
        pass


@pytest.fixture
def tell():
    """Says something as TensorRT does."""
    logger = logger_of(SimpleNamespace(__name__="a fake TensorRT", ILogger=ILogger))
    return logger.log


def test_there_is_one_logger():
    trt = SimpleNamespace(__name__="another fake TensorRT", ILogger=ILogger)
    assert logger_of(trt) is logger_of(trt)


def test_errors_go_to_who_collects_on_their_thread(tell, caplog):
    with caplog.at_level(logging.INFO, "unetrt.tensorrt"), collected() as outer:
        tell(1, "first")
        with collected() as inner:
            tell(1, "second")
            tell(3, "nothing to worry about")
        tell(0, "third")
    with caplog.at_level(logging.INFO, "unetrt.tensorrt"):
        tell(1, "nobody collects")
    assert (outer, inner) == (["first", "third"], ["second"])
    assert "nobody collects" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_control_characters_in_a_message_are_escaped(tell, caplog):
    with caplog.at_level(logging.INFO, "unetrt.tensorrt"):
        tell(2, "node \x1b[2J")
    assert caplog.messages == [r"node \x1b[2J"]


def test_errors_of_tensorrts_own_threads_go_to_all(tell):
    with collected() as errors:
        thread = threading.Thread(target=tell, args=(1, "from within"))
        thread.start()
        thread.join()
    assert errors == ["from within"]


def test_threads_that_collect_hear_only_their_own(tell):
    heard = []

    def work():
        with collected() as mine:
            tell(1, "mine")
        heard.append(mine)

    with collected() as errors:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert (errors, heard) == ([], [["mine"]])


def test_a_line_is_short():
    assert first_error([]) == "it states no reason"
    assert len(first_error(["word " * 500])) <= 240
