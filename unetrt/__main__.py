"""The program `unetrt`."""

import sys

from unetrt.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
