"""Loads every model of a folder in one process, as a host program would, and prints a JSON line for each.

    python -m tests.runtime.model_files.loading_child FOLDER BACKEND FIRST

A crash ends it: the line that says "begins" of the model that did it has no successor. FIRST is where to go on.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np

from unetrt.runtime.errors import UnetrtError
from unetrt.runtime.model.integrity import external_files, sha256_of_model
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.sessions import BACKENDS, open_session

# What the weights are in files that nobody may read.
CANARY = 1234.5677
MEMORY = 4 << 30
SECONDS = 30

folder, engine, first = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
(backend,) = (one for one in BACKENDS if one.name == engine)
assert backend.probe() is None  # and so the engine's own modules are read before anybody watches
# An engine prints what it thinks of a model: that goes to standard error.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

read_outside = []
watching = False


def watch(event, arguments):
    if watching and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path = Path(os.fsdecode(arguments[0]))
        if not path.resolve().is_relative_to(folder):
            read_outside.append(str(path))


def say(**facts):
    print(json.dumps(facts), file=answers, flush=True)


def outcome(step, *arguments):
    """Return what a step gives, and None or the error that it is allowed to raise."""
    try:
        return step(*arguments), None
    except UnetrtError as error:
        return None, f"{type(error).__name__}: {error}"


def scores_of(path):
    with open_session(path, engine) as session:
        (lane,) = session.lanes(1)
        return lane.run(np.ones_like(lane.input)).copy()


def load(path):
    if path.name.startswith("control-crash"):
        os.abort()
    if path.name.startswith("control-read"):
        (folder.parent / "w.bin").read_bytes()
    errors = {step.__name__: outcome(step, path)[1] for step in (read_spec, external_files, sha256_of_model)}
    scores, errors["open_session"] = outcome(scores_of, path)
    canary = scores is not None and bool(np.isclose(scores.astype(float), CANARY).any())
    return {"errors": errors, "canary": canary}


sys.addaudithook(watch)
resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
for number, path in enumerate(sorted(folder.glob("*.onnx"))[first:], first):
    say(number=number, name=path.name, begins=True)
    signal.alarm(SECONDS)
    read_outside.clear()
    watching = True
    try:
        result = load(path)
    except BaseException as defect:  # noqa: BLE001 - whatever it is, it is what the test looks for
        result = {"defect": f"{type(defect).__name__}: {defect}"}
    watching = False
    signal.alarm(0)
    say(number=number, name=path.name, outside=read_outside, **result)
