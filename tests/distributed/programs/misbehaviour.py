"""Programs that do what a program must not do."""

import os
import signal
import time

import torch

from hpcdat import seeds


def identify(workers, patch):
    """Which process this is, and what a program before could have spoilt."""
    return {"pid": os.getpid(), "dtype": str(torch.get_default_dtype()), "seed": seeds.derive(0, "x")}


def spoil(workers, patch, how):
    """Change what other programs rely on, and end in this way."""
    torch.set_default_dtype(torch.float64)
    seeds.derive = lambda *_: 7
    if how == "fail" and workers.rank == 1:
        raise ValueError("no good")
    if how == "kill" and workers.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang" and workers.rank == 1:
        time.sleep(600)
    if how != "return":
        workers.all_gather_object(None, "never complete")


def patch_all(workers, patch):
    """Change the same, but by ``patch`` and with an end."""
    patch.setattr(seeds, "derive", lambda *_: 7)
    return seeds.derive(0, "x")
