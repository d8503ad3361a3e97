"""What grows with the number of workers M: host time, control messages, memory and checkpoints.

``python benchmarks/scale.py [--workers M,M] [--feedback] [--real M,M] [--out FOLDER] [--json PATH]`` trains a
small network of digits for a few epochs of four steps, two images a worker, and measures one worker at a time:
worker 0 and one other, each in a process of its own. The other workers are simulated: messages take no time,
a sum is M times this worker's part, and worker 0 gathers M copies of what it sends. Up to 256 workers, all
ranks also train together as threads of one process, where every number of messages and bytes must be the same.

For every phase (an epoch's begin, a step, an epoch's end, a checkpoint after an epoch, one within an epoch,
an evaluation): seconds, number of collectives, and bytes that the worker gives and gets; gradients are not
counted. The assignment of 1,281,167 images to a worker is timed too, without dividing them among the workers
(``shares``) and dividing them into a part for each (``own shares``). ``--feedback`` quantises gradients to 8
bits with error feedback, whose residuals are part of a checkpoint.

``--real`` then trains on so many processes over MPI on this machine, and compares the seconds of a core that
a step takes, in the thread that trains, with those of the same step among simulated workers.

Ratios: ``worker_seconds_*``, ``worker_bytes_*``, ``worker_messages_*`` and ``worker_memory`` are exponents of
M on the worker that is not worker 0, fitted to all M by least squares of logarithms; ``rank0_*`` those of
worker 0; ``rank0_*_per_worker`` the bytes or microseconds that each further worker costs it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor

from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.data.images import Images
from hpcdat.data.sampler import training_shares
from hpcdat.distributed.communicator import JSON, Communicator, Pending
from hpcdat.distributed.counting import Counted
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.launcher import launched
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import Completed, SingleProcess
from hpcdat.errors import Stopped
from hpcdat.models import build_model_for
from hpcdat.performance.microbenchmarks import SimulatedCommunicator
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.step import Algorithm1
from hpcdat.training.trainer import Trainer
from hpcdat.training.validation import ImageSplits

JOB = Path(__file__).resolve().parents[1] / "jobs" / "demo.yaml"
CPU = torch.device("cpu")
WORKERS = (6, 36, 256, 1536, 4096)
MOST_TOGETHER = 256
"""Largest number of ranks that train as threads of one process."""
PER_NODE = 6
BATCH, STEPS, EPOCHS = 2, 4, 6
"""Images a worker and step, steps an epoch, and epochs, of which the first is not measured."""
TEST_IMAGES, TEST_BATCH = 96, 16
"""Six batches: with every M, the workers measured have one."""
IMAGENET = 1_281_167
SETTINGS = [
    *("method=dat-fgsm", "attack.steps=null", "early_stopping.fgsm_guard=false", "model.width=8"),
    *(f"batch_size={BATCH}", f"epochs={EPOCHS}", "schedule.decay_epochs=[]", "data.loader=device"),
    *("evaluation.every=1", "evaluation.steps=1", f"evaluation.batch_size={TEST_BATCH}"),
]
FEEDBACK = ["exchange.bits=8", "exchange.protocol=sharded_server", "exchange.error_feedback=true"]
PHASES = {
    "begin": "epoch's begin",
    "step": "step",
    "end": "epoch's end",
    "checkpoint": "checkpoint",
    "checkpoint within": "checkpoint within an epoch",
    "evaluation": "evaluation",
}
