"""The random numbers that a model draws itself, such as those of dropout and stochastic depth."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators inside the block, and restore their states afterwards.

    Layers take no generator: they draw from torch's global ones, of the CPU and of their device; a network of
    the user's own may draw from Python's or NumPy's. With a seed of its own for each pass, what a pass draws
    does not depend on the passes before it, so a resumed run draws the same numbers and no state needs
    saving.

    Args:
        seed: >= 0, less than 2^63.
        device: of the model.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        # Not torch.manual_seed, which formats a stack trace at each call until CUDA is initialised.
        for generator in generators:
            generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(python)
        np.random.set_state(numpy)
