"""Runs cases of the fuzzer one after another in one process, as a host program would: a crash ends only this process.

    python -m tests.fuzz.worker SEED ORIGINALS PLACE

Reads a case number, or the name of a control, from each line of standard input, and writes a line of JSON for each.
The files of the last case stay in PLACE/case.
"""

import io
import json
import os
import resource
import shutil
import sys
import time
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from tests.fuzz.inputs import CONTROLS, case
from unetrt.__main__ import main

# Memory that one case may take, in bytes, beyond that of the process with all engines loaded. Address space is limited
# too, so that a case beyond all bounds does not take the machine with it.
MEMORY, SPACE = 1 << 30, 8 << 30
# Longest line of an error, in characters.
LONGEST = 2100
STATUS = Path("/proc/self/status")


def memory(field):
    """Return a figure of /proc/self/status, such as VmRSS, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def load_engines(originals, place):
    """Import and use what cases use, so that it counts neither for the first of them nor for its memory."""
    image, model = str(originals / "plain.tif"), str(originals / "unet.onnx")
    os.chdir(place)
    for backend in ("onnxruntime", "openvino"):
        assert quiet(["predict", model, image, "-o", f"first-{backend}", "--backend", backend])[0] == 0
    assert quiet(["info", str(originals / "run")])[0] == 0


def quiet(arguments):
    """Run a command; return its exit code, its output and its errors."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(arguments)
    return status, out.getvalue(), err.getvalue()


def fault_of(status, out, err):
    """What is wrong with the end of a command: nothing, or a sentence."""
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    if status not in (0, 1, 2):
        return f"exit code {status}"
    if len(errors) != (status != 0):
        return f"exit code {status} with {len(errors)} lines of error"
    if long := [line for line in err.splitlines() if len(line) > LONGEST]:
        return f"a line of {len(long[0])} characters: {long[0][:80]}"
    if odd := {letter for letter in out + err if not letter.isprintable() and letter not in "\n\r\t"}:
        return f"characters of control: {sorted(map(repr, odd))}"
    return None


def control(name):
    """Misbehave on purpose: a fuzzer that does not see this sees nothing."""
    if name == "crash":
        os.abort()
    if name == "hang":
        time.sleep(3600)
    if name == "memory":
        return 0, str(len(bytearray(b"1") * (MEMORY + (1 << 28)))), ""
    if name == "traceback":
        raise KeyError(name)
    return 2, "", "Error: one\nError: two\n"


def outcome(text, seed, originals, folder):
    """Run the case of a line of input; return what is to be known of it."""
    arguments = [text] if text in CONTROLS else case(seed, int(text), originals, folder)
    (folder / "arguments.json").write_text(json.dumps(arguments))  # of a case that ends this process, too
    if (folder / "cache").exists():
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak, VmHWM, begins anew
    begin, trouble, fault, status, err = time.perf_counter(), None, None, None, ""
    try:
        status, out, err = control(text) if text in CONTROLS else quiet(arguments)
        fault = fault_of(status, out, err)
        trouble = fault and "message"
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is what the fuzzer looks for
        trouble, fault = "traceback", "".join(traceback.format_exception(error))
    peak = memory("VmHWM") - before
    if peak > MEMORY:
        trouble, fault = "memory", f"{peak / 2**20:.0f} MiB"
    return {
        "case": text,
        "arguments": arguments,
        "status": status,
        "seconds": time.perf_counter() - begin,
        "memory": peak,
        "trouble": trouble,
        "fault": fault,
        "error": err[-LONGEST:],
    }


def serve(seed, originals, place):
    """Answer each line of standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print what they think of a model
    warnings.simplefilter("ignore")
    load_engines(originals, place)
    cache = os.environ["XDG_CACHE_HOME"]
    space = memory("VmSize") + SPACE
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    print("ready", file=answers, flush=True)
    folder = place / "case"
    for line in sys.stdin:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = cache
        print(json.dumps(outcome(line.strip(), seed, originals, folder)), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3]).resolve())
