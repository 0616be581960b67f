"""How a process that tests start ends."""

from __future__ import annotations

import os
import sys


def leave() -> None:
    """End this process, whose work is done, without tearing the interpreter down.

    torch may abort there ("terminate called without an active exception") once a model has been
    wrapped in DistributedDataParallel or FSDP, without AdaptMix too: 1 of 12 runs of a few lines.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
