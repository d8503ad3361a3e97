"""Arithmetic of a measurement: the same whoever measures."""

from __future__ import annotations

import torch


def round_alike(device: torch.device) -> str:
    """Let this process round its sums as any other that measures on such a device.

    On a CPU each worker computes with one thread, since threads divide sums among them; more workers make a
    measurement faster. On a GPU cuDNN takes the same algorithm every time, and float32 is whole: no TF32.

    Args:
        device: where this worker computes.

    Returns:
        What to tell a user whose cores thus lie idle; empty if none do.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        return ""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if threads == 1:
        return ""
    return (
        f"a worker measures with one thread, lest numbers depend on threads; {threads} times as many workers "
        "(-np) use all cores"
    )
