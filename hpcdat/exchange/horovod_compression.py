"""The quantizer as a compressor for any Horovod script: ``DistributedOptimizer(..., compression=...)``."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from hpcdat.errors import InputError
from hpcdat.exchange.codecs import Quantized, can_compile
from hpcdat.exchange.counter_rng import split_key
from hpcdat.exchange.protocols import lanes_for
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.exchange.resolve import pays_to_compile
from hpcdat.seeds import derive


class QuantizedSum:
    """Sends gradients as codes of few bits that Horovod's all-reduce adds: the protocol ``ring``, one-sided.

    It implements Horovod's ``compress``/``decompress`` interface; unlike Horovod's compressors it is an
    instance, since it has state. ``op=hvd.Sum`` is required, since Horovod would otherwise divide the codes;
    the decoded sum is divided here. Tensors of one dimension (biases, batch norm) are summed without
    compression. The backward pass must reach the parameters in the same order on all workers, since workers
    agree on norms in that order.

    Args:
        bits: of a code, 1 to 8 or 16.
        norm, block: of the :class:`~hpcdat.exchange.quantizer.Quantizer`.
        seed: of the random numbers, combined with the rank and the number of the call.
        average: whether to divide by the number of workers.

    Raises:
        ImportError: Horovod is not installed.

    Example:
        In a script that ``mpirun`` or ``horovodrun`` starts:

        >>> import horovod.torch as hvd
        >>> from hpcdat import QuantizedSum
        >>> hvd.init()
        >>> model = torch.nn.Linear(4, 3)
        >>> hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        >>> optimizer = hvd.DistributedOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1),
        ...     named_parameters=model.named_parameters(),
        ...     op=hvd.Sum,
        ...     compression=QuantizedSum(bits=8),
        ... )
        >>> model(torch.full((2, 4), hvd.rank() + 1.0)).sum().backward()
        >>> optimizer.step()  # the gradient is 2 * mean(1, ..., M) for each weight
        >>> expected = torch.full((3, 4), float(hvd.size() + 1))
        >>> bool(torch.allclose(model.weight.grad, expected, rtol=0.02))
        True
    """

    def __init__(
        self,
        bits: int = 8,
        *,
        norm: Literal["max", "l2"] = "max",
        block: int = 512,
        seed: int = 0,
        average: bool = True,
    ) -> None:
        import horovod.torch as hvd

        self._hvd = hvd
        self.average, self.seed = average, seed
        quantizer = Quantizer(bits, norm, block)
        self._codecs = {
            compiled: Quantized(quantizer, compiled=compiled) for compiled in (False, can_compile())
        }
        self._calls = 0

    def compress(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """A gradient as integer words; all workers call this for the same parameter.

        Args:
            tensor: floating point, any shape.

        Returns:
            Words (n,), int32 or int64, to be summed over the workers, and the context for
            :meth:`decompress`.
        """
        if tensor.dim() <= 1:
            return tensor, None
        self._calls += 1
        codec = self._codecs[pays_to_compile(tensor.numel())]
        vector = tensor.flatten().to(torch.float32)
        norms = codec.norms(vector)
        norms = self._hvd.allreduce(
            torch.where(norms.isfinite(), norms, torch.inf),
            op=self._hvd.Max,
            name=f"norms of gradient {self._calls}",
        )
        lanes = lanes_for(codec.quantizer, self._hvd.size())
        key = split_key(derive(self.seed, "compression", self._calls, self._hvd.rank()), tensor.device)
        words = codec.to_lanes(vector, norms, key, lanes)
        # The extra word is M after a sum, so that decompress notices any other operation.
        return torch.cat([words, words.new_ones(1)]), (codec, norms, lanes, tensor)

    def decompress(self, words: Tensor, context: Any) -> Tensor:
        """The gradient's mean (or sum) over the workers, in its original shape and dtype.

        Raises:
            InputError: the words were not summed over all workers.
        """
        size = self._hvd.size()
        if context is None:
            return words / size if self.average else words
        codec, norms, lanes, tensor = context
        if words[-1].item() != size:
            raise InputError(
                "QuantizedSum needs hvd.DistributedOptimizer(..., op=hvd.Sum): it averages itself"
            )
        total = codec.from_lanes(words[:-1], norms, lanes, tensor.numel(), size)
        result: Tensor = (total / size if self.average else total).view_as(tensor).to(tensor.dtype)
        return result
