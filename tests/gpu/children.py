"""Processes of tests: what is to be seen is their end, or what a process meets for the first time."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 120


def command(module, *arguments):
    return [sys.executable, "-W", "error", "-m", module, *map(str, arguments)]


def started(module, *arguments, **variables):
    """A process whose output is read as it comes."""
    return subprocess.Popen(
        command(module, *arguments),
        env=os.environ | variables,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process, patience=PATIENCE):
    """What a process said until its end, on standard output and error; one that does not end is killed."""
    try:
        return process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


def child(module, *arguments, **variables):
    """A process that has ended."""
    process = started(module, *arguments, **variables)
    out, error = said(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)
