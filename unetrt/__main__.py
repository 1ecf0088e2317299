"""Entry point of the program `unetrt` and of `python -m unetrt`."""

import os
import sys

from unetrt.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    status = main()
    if sys.argv[1:2] == ["train"] and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        # Under torchrun, DistributedDataParallel's threads outlive destroy_process_group(), and the C++ runtime may
        # abort ("terminate called") while the interpreter shuts down around them: leave without a shutdown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
