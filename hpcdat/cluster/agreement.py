"""All workers hold the same model: made equal at the start, averaged where they may differ, checked."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from hpcdat.cluster.workers import Workers
from hpcdat.errors import WorkerError


def make_equal(workers: Workers, model: nn.Module) -> None:
    """Give every worker the parameters and buffers of worker 0."""
    workers.broadcast([t.detach() for t in named_state(model).values()], "initial parameters and buffers")


@torch.no_grad()
def average_batch_norm(workers: Workers, model: nn.Module) -> None:
    """Replace the running statistics of batch norm by their mean over the workers.

    In training each worker keeps statistics of its own images; averaged, every worker evaluates
    the same function. The count of batches becomes the largest, since a worker may have had no
    image in the last, short batch of an epoch.
    """
    statistics, counts = [], []
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            statistics += [module.running_mean, module.running_var]
            counts.append(module.num_batches_tracked)
    if not statistics:
        return
    workers.sum(statistics, "batch-norm statistics")
    torch._foreach_div_(statistics, workers.size)
    for count, largest in zip(counts, workers.max(torch.stack(counts), "batch-norm counts"), strict=True):
        count.copy_(largest)


def check_equal(workers: Workers, model: nn.Module) -> None:
    """Compare a hash of every parameter and buffer over the workers.

    Raises:
        WorkerError: on all workers, with the names of the tensors that differ.
    """
    state = named_state(model)
    hashes = torch.tensor([_fingerprint(tensor) for tensor in state.values()], dtype=torch.int64)
    # The maximum of (h, ~h) over the workers is (h, ~h) only if all have the same h.
    largest = workers.max(torch.cat([hashes, ~hashes]), "hashes of parameters and buffers")
    same = largest[: len(hashes)] == ~largest[len(hashes) :]
    differing = [name for name, equal in zip(state, same.tolist(), strict=True) if not equal]
    if differing:
        shown = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        raise WorkerError(
            f"the workers no longer hold the same model: {shown} differ. The run stops, since its "
            "results would mean nothing; unequal library versions or faulty memory can be the cause.",
            everywhere=True,
        )


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, in the order of the model."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _fingerprint(tensor: Tensor) -> int:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)
