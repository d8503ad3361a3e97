"""What a CUDA graph would capture of a function, recorded on the CPU, where it has numbers.

A graph holds operations with their numbers and the addresses of what they read and write; whatever else the
host does is done once, when it is captured. So a function may be captured if it reads nothing back, and if
its operations, numbers and addresses are the same in each call.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
READ_BY_HOST = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten._unique2.default,
}
"""A graph cannot contain them: the host waits for their results."""


class Capture(TorchDispatchMode):
    """Runs a function and records its operations.

    Args:
        function: without arguments; what it needs is in buffers.

    Attributes:
        result: what it returned.
        operations: each with its arguments and results, which stay allocated.

    Raises:
        AssertionError: the host reads a result.
    """

    def __init__(self, function):
        super().__init__()
        self.operations, self._made = [], {}
        with self:
            self.result = function()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation not in READ_BY_HOST, f"the host reads the result of {operation}"
        kwargs = kwargs or {}
        description = (str(operation), tree_map(self._described, (args, kwargs)))
        results = operation(*args, **kwargs)
        before = {_memory(t) for t in _tensors((args, kwargs))}
        made = [None if _memory(t) in before else t for t in _tensors(results)]
        for tensor in made:
            if tensor is not None:
                self._made[_memory(tensor)] = len(self._made)
        self.operations.append((description, operation, args, kwargs, results, made))
        return results

    @torch.no_grad()
    def replay(self):
        """Run the operations again on the same memory; returns the result."""
        for _, operation, args, kwargs, _, made in self.operations:
            again = _tensors(operation(*args, **kwargs))
            for target, value in zip(made, again, strict=True):
                if target is not None:
                    target.copy_(value)
        return self.result

    def _described(self, value):
        """What a graph holds of an argument: a number, an address, or a place among its own results."""
        if not isinstance(value, Tensor):
            return value
        form = (tuple(value.shape), value.stride(), value.dtype, value.storage_offset())
        if _memory(value) in self._made:
            return ("made", self._made[_memory(value)], *form)
        return ("outside", value.data_ptr(), *form)


def difference(one, other):
    """The first operation in which two captures differ, in words; empty if a graph could stand for both."""
    for (ours, *_), (theirs, *_) in zip(one.operations, other.operations, strict=False):
        if ours != theirs:
            return f"{ours} became {theirs}"
    if len(one.operations) != len(other.operations):
        return f"{len(one.operations)} operations became {len(other.operations)}"
    return ""


def _tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _memory(tensor):
    return tensor.untyped_storage()._cdata
