"""The program `unetrt`."""

import os
import sys

from unetrt.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    status = main()
    if sys.argv[1:2] == ["train"] and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        # Under torchrun. DistributedDataParallel keeps threads of its process group to the last, whatever is destroyed,
        # and C++ may abort a process that tears itself down around them ("terminate called").
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
