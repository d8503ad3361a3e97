"""Check in an image that its packages import, and that Horovod, if it is there, can use MPI and Gloo."""

import importlib
import importlib.util

for name in ("hpcdat.cli", "torch.distributed", "torchvision"):
    importlib.import_module(name)
if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
    importlib.import_module("nvidia.dali")
if importlib.util.find_spec("horovod"):
    from horovod import torch as horovod

    importlib.import_module("mpi4py.MPI")
    if not (horovod.mpi_built() and horovod.gloo_built()):
        raise SystemExit("Horovod is built without MPI or without Gloo")
    print("hpcdat with Horovod and torch.distributed")
else:
    print("hpcdat with torch.distributed")
