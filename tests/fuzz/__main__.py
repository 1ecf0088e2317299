"""The fuzzer: `make fuzz`, or `python -m tests.fuzz --cases 10000 --seed 0`.

Damaged models, images, checkpoints and sidecars, and random options, go through the commands in a pool of processes.
Counted are crashes, hangs, tracebacks, cases beyond the limit of memory, and messages that are not one line. The input
of each is kept in a folder; `--only NUMBER` runs one case again. The exit code is 1 if there is any.
"""

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from tests.fuzz.inputs import KINDS, kind_of, write_originals

ROOT = Path(__file__).parents[2]
TROUBLES = ("crash", "hang", "traceback", "memory", "message")
# Seconds that a case may take. One that takes longer is run a second time: a machine may be busy for a moment.
LIMIT = 20.0
# Seconds in which a process has loaded all engines.
START = 300.0


class Worker:
    """A process that runs cases; replaced when a case ends it.

    Parameters
    ----------
    seed, originals
        As for `inputs.case`.
    place
        Folder of its files.
    """

    def __init__(self, seed, originals, place):
        self._command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.worker", str(seed), originals, place]
        self._place = place
        self._process = None

    def run(self, case, limit):
        """Run a case; return its outcome. One that ended the process, or took too long, is a trouble."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        self._process.stdin.write(f"{case}\n")
        answer, late = self._answer(limit)
        if answer:
            return json.loads(answer)
        code = self._process.wait()
        self.close()
        trouble, fault = ("hang", f"longer than {limit:g} s") if late else ("crash", f"return code {code}")
        return {"case": str(case), "status": None, "seconds": limit, "memory": 0, "trouble": trouble, "fault": fault}

    def keep(self, folder):
        """Copy the files of the last case."""
        shutil.copytree(self._place / "case", folder, dirs_exist_ok=True, symlinks=True)
        shutil.copy(self._place / "log", folder / "log")

    def close(self):
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()

    def _start(self):
        shutil.rmtree(self._place, ignore_errors=True)
        self._place.mkdir(parents=True)
        own = {"XDG_CACHE_HOME": str(self._place / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        with (self._place / "log").open("w") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=os.environ | own, text=True, bufsize=1, stderr=log,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        answer, _ = self._answer(START)
        assert answer == "ready\n", (self._place / "log").read_text()[-2000:]

    def _answer(self, limit):
        """Return the next line, empty where the process ended; and whether it was ended for the time it took."""
        process, late = self._process, threading.Event()
        timer = threading.Timer(limit, lambda: (late.set(), process.kill()))
        timer.start()
        try:
            return process.stdout.readline(), late.is_set()
        finally:
            timer.cancel()


@dataclass
class Report:
    """The outcomes of a run, one for each case."""

    outcomes: list = field(default_factory=list)

    @property
    def troubles(self):
        """The outcomes that are a trouble."""
        return [one for one in self.outcomes if one["trouble"]]

    def lines(self):
        """The table: a row for each kind of input."""
        heading = ("", "cases", "refused", *TROUBLES, "slowest", "memory")
        yield "".join(f"{word:>12s}" for word in heading)
        for kind in (*KINDS, "all"):
            mine = [one for one in self.outcomes if kind in ("all", one["kind"])]
            counts = Counter(one["trouble"] for one in mine)
            refused = sum(one["status"] in (1, 2) for one in mine)
            slowest = max((one["seconds"] for one in mine), default=0)
            largest = max((one["memory"] for one in mine), default=0) / 2**20
            figures = [len(mine), refused, *(counts[name] for name in TROUBLES)]
            most = f"{slowest:.1f} s", f"{largest:.0f} MiB"
            yield "".join(f"{figure!s:>12s}" for figure in (kind, *figures, *most))


def fuzz(cases, seed, findings, processes=2, limit=LIMIT, show=lambda line: None, originals=None):
    """Run cases in a pool of processes.

    Parameters
    ----------
    cases
        Numbers of cases, or names of controls.
    seed
        Together with the number it determines a case.
    findings
        Folder for the input of each case that is a trouble.
    processes
        How many run at once.
    limit
        Seconds that a case may take.
    show
        Called with a line for each trouble.
    originals
        Folder of `write_originals`; None writes one.
    """
    todo, report = queue.SimpleQueue(), Report()
    for one in cases:
        todo.put(one)
    with TemporaryDirectory(prefix="unetrt-fuzz-") as folder:
        if originals is None:
            originals = Path(folder) / "originals"
            write_originals(originals)
        errors = []

        def work(number):
            worker = Worker(seed, originals, Path(folder) / f"worker-{number}")
            try:
                while not todo.empty():
                    _run_one(worker, todo.get_nowait(), seed, findings, limit, report, show)
            except queue.Empty:
                pass
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)
            finally:
                worker.close()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(processes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
    return report


def _run_one(worker, case, seed, findings, limit, report, show):
    outcome = worker.run(case, limit)
    if outcome["trouble"] == "hang":
        outcome = worker.run(case, limit)
    outcome["kind"] = kind_of(case) if isinstance(case, int) else "control"
    report.outcomes.append(outcome)
    if outcome["trouble"]:
        folder = findings / f"{seed}-{case}-{outcome['trouble']}"
        worker.keep(folder)
        (folder / "outcome.json").write_text(json.dumps(outcome, indent=2))
        last = outcome["fault"].strip().splitlines()[-1][:160]
        show(f"{outcome['trouble']} in case {case} ({outcome['kind']}): {last}; input in {folder}")


def main():
    """Parse the command line, run, and print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="how many, in turn of each kind")
    parser.add_argument("--first", type=int, default=0, help="the number of the first")
    parser.add_argument("--only", type=int, help="one case, by its number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that a case may take")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="folder for their input")
    given = parser.parse_args()
    numbers = range(given.first, given.first + given.cases) if given.only is None else [given.only]
    begin = time.perf_counter()
    report = fuzz(numbers, given.seed, given.findings, given.processes, given.limit, click.echo)
    for line in report.lines():
        click.echo(line)
    click.echo(f"{len(report.outcomes)} cases in {time.perf_counter() - begin:.0f} s, seed {given.seed}")
    return 1 if report.troubles else 0


if __name__ == "__main__":
    sys.exit(main())
