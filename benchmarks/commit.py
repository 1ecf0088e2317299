"""Which code was measured, as git has it."""

import subprocess
from pathlib import Path
from shutil import which

# What a measurement itself changes in a clone.
NOT_CODE = (":(exclude,top)benchmarks/results", ":(exclude,top)docs")


def commit_of(file: Path) -> str | None:
    """Return what git calls the code that holds a file, or None: no git, no clone, or a file that is not in it."""
    git = which("git")
    if git is None or _git(git, file, "ls-files", "--error-unmatch", file.name) is None:
        return None
    changed = _git(git, file, "status", "--porcelain", "--untracked-files=no", "--", ":/", *NOT_CODE)
    return f"{_git(git, file, 'rev-parse', '--short=10', 'HEAD')}{'-dirty' if changed else ''}"


def _git(git: str, file: Path, *arguments: str) -> str | None:
    done = subprocess.run([git, *arguments], cwd=file.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
