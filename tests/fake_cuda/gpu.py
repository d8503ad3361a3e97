"""A fake GPU: tensors with device, shape and dtype, but without numbers, and a record of every wait.

FakeTensorMode raises where a tensor of the CPU meets one of the GPU. What the host would wait for is recorded
here, with the function of the package that waits, and answered with ones.
"""

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.fake_cuda.backward import gradients_of
from tests.fake_cuda.streams import Event, Streams

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten

SIZE_DEPENDS_ON_NUMBERS = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
}
"""Their CUDA kernels tell the host how large the result is."""


class FakeGpu:
    """Inside :meth:`running`, ``cuda:0`` is a fake device, and its waits are recorded.

    Attributes:
        waits: how often the host waited for the device, by place and operation.
        streams: its streams, and the races between them.
    """

    def __init__(self):
        self.waits = Counter()
        self.streams = Streams(_place)
        self._hooks = {}

    @contextmanager
    def running(self, patch):
        """Replace what asks CUDA itself, and enter the modes.

        Args:
            patch: pytest's monkeypatch.
        """
        self._patch(patch)
        with ExitStack() as stack:
            for mode in (MODE, _Waits(self), _Generators()):
                stack.enter_context(mode)
            yield self

    def wait(self, operation):
        self.waits[f"{_place()}: {operation}"] += 1
        self.streams.host_waits(for_all=operation == "synchronize")

    def _gradient(self, output, inputs):
        return (gradients_of(output, [inputs], self._hooks)[inputs],)

    def _backward(self, output):
        gradients_of(output, None, self._hooks)

    def _register_hook(self, tensor, hook):
        self._hooks[tensor.grad_fn] = hook

    def _patch(self, patch):
        patch.setattr(torch.autograd, "grad", self._gradient)
        patch.setattr(torch.Tensor, "backward", lambda output: self._backward(output))
        patch.setattr(torch.Tensor, "register_hook", lambda tensor, hook: self._register_hook(tensor, hook))
        patch.setattr(torch.cuda, "default_generators", (_Generator(CUDA),))
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
        if find_spec("triton"):
            for kernel in ("norms", "encode", "decode"):
                patch.setattr(f"hpcdat.exchange.triton_kernels.{kernel}", _Kernel(kernel, self.streams))
        patch.setattr(torch.cuda, "synchronize", lambda device=None: self.wait("synchronize"))
        streams = self.streams
        patch.setattr(torch.cuda, "Stream", lambda device=None: streams.new())
        patch.setattr(torch.cuda, "Event", lambda **_: Event(streams))
        patch.setattr(torch.cuda, "current_stream", lambda device=None: streams.current)
        patch.setattr(torch.cuda, "stream", streams.entered)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: streams.record(tensor, stream))
        patch.setattr(torch.Tensor, "numpy", _numpy)
        for name in ("item", "tolist"):
            patch.setattr(FakeTensor, name, self._reading(name), raising=False)

    def _reading(self, operation):
        def read(tensor):
            if tensor.is_cuda:
                self.wait(operation)
            return _ones(tensor).tolist()

        return read


class _Mode(FakeTensorMode):
    def __deepcopy__(self, memo):
        """A copy of a tensor belongs to the same mode."""
        return self


MODE = _Mode(allow_non_fake_inputs=False)
"""One for all tests, since the package caches some tensors."""


class _Waits(TorchDispatchMode):
    """Records operations for which the host waits, and stubs those that need numbers."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on_gpu = any(isinstance(t, torch.Tensor) and t.is_cuda for t in tree_leaves((args, kwargs)))
        if operation is aten._local_scalar_dense.default:
            if on_gpu:
                self.gpu.wait("number")
            return np.ones((), _numpy_dtype(args[0].dtype)).item()
        if operation is aten.equal.default:
            if on_gpu:
                self.gpu.wait("equal")
            return True
        if operation in SIZE_DEPENDS_ON_NUMBERS and on_gpu:
            self.gpu.wait(operation.overloadpacket.__name__)
            raise NotImplementedError(f"{operation}: {_place()}")
        if operation in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default) and on_gpu:
            args = (args[0], [self._position(index) for index in args[1]], *args[2:])
        # copy_ and _foreach_copy_ have it as their third argument, _to_copy as a keyword.
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if operation is aten._to_copy.default:
            self._copy(args[0], kwargs.get("device") or args[0].device, non_blocking)
        elif operation is aten.copy_.default:
            self._copy(args[1], args[0].device, non_blocking)
        elif operation is aten._foreach_copy_.default:
            for target, source in zip(args[0], args[1], strict=True):
                self._copy(source, target.device, non_blocking)
        results = operation(*args, **kwargs)
        self.gpu.streams.ran(operation, (args, kwargs), results)
        return results

    def _position(self, index):
        """A mask selects as many elements as its numbers say: here all."""
        if index is None or index.dtype != torch.bool:
            return index
        self.gpu.wait("mask")
        return torch.arange(len(index), device=index.device)

    def _copy(self, source, target, non_blocking):
        if source.is_cuda and target.type == "cpu":
            self.gpu.wait("copy to the host")
        elif target.type == "cuda" and not source.is_cuda and not non_blocking:
            # torch ends a blocking copy with cudaStreamSynchronize.
            self.gpu.wait("copy to the device")


class _Generator(torch.Generator):
    """A generator of the CPU that says it is the GPU's."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        self.place = torch.device(device)
        return self

    def __init__(self, device="cpu"):
        pass


class _Generators(TorchFunctionMode):
    """Checks that random numbers are drawn by the generator of their device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not None:
            assert generator.place.type == torch.device(kwargs.get("device", "cpu")).type, "generator"
        return function(*args, **kwargs)


class _Kernel:
    """A kernel of Triton that computes nothing, since its results have no numbers; it can be launched.

    Whatever it is given counts as written.
    """

    def __init__(self, name, streams):
        self.name, self.streams = name, streams

    def __getitem__(self, grid):
        return self

    def __call__(self, *arguments, **constants):
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        for tensor in tensors:
            assert tensor.is_cuda and tensor.is_contiguous()
        self.streams.touched(self.name, tensors, tensors)


def _numpy_dtype(dtype):
    return np.float32 if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")


def _numpy(tensor):
    assert not tensor.is_cuda, "numpy() of a tensor of the GPU"
    return _ones(tensor)


def _ones(tensor):
    return np.ones(tuple(tensor.shape), _numpy_dtype(tensor.dtype))


def _place():
    """The innermost function of the package that is running, with a name of its own."""
    frame = sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("hpcdat.") and not frame.f_code.co_name.startswith("<"):
            return f"{module.removeprefix('hpcdat.')}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "the test"
