"""Networks as graphs of calls, by torch.fx, without leaving traces in the networks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from hpcdat.errors import first_line
from hpcdat.models.folded_layers import has_hooks
from hpcdat.models.split_batch_norm import BatchNorm, SplitBatchNorm

CONSTANTS = (bool, int, float, str, type(None))
"""Types of attributes whose values a trace holds."""
MADE_BY_TORCH = "_tensor_constant"
"""Beginning of the attributes in which torch.fx keeps tensors that a forward pass makes of constants."""
ONE_AT_A_TIME = threading.Lock()
"""Held while a network is traced: torch.fx replaces ``nn.Module.__call__`` meanwhile, for all threads."""


class CannotFoldError(Exception):
    """A network cannot be folded; the message is the reason."""


class _Tracer(fx.Tracer):
    """Traces a network down to torch's layers and batch norms.

    Buffers are operands of the trace, not constants.
    """

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module's forward pass is not looked into."""
        return isinstance(m, BatchNorm) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record the call of a module, or what its forward pass calls."""
        if threading.get_ident() != self._thread:
            # A module of another thread, such as one that transforms images.
            return forward(*args, **kwargs)
        if has_hooks(m) and not self.is_leaf_module(m, ""):
            raise CannotFoldError(f"a {type(m).__name__} has hooks, which would not be called")
        return super().call_module(m, forward, args, kwargs)


def traced(network: nn.Module) -> fx.GraphModule:
    """The calls of a network as a graph, which shares its layers.

    Raises:
        CannotFoldError: what it calls depends on numbers in its input, or a pass changes the network.
    """
    if has_hooks(network):
        raise CannotFoldError(f"the {type(network).__name__} has hooks, which would not be called")
    try:
        with ONE_AT_A_TIME, unchanged(network):
            graph = _Tracer().trace(network)
            module = fx.GraphModule(network, graph)
            for name in [name for name in vars(network) if name.startswith(MADE_BY_TORCH)]:
                delattr(network, name)
    except CannotFoldError:
        raise
    except Exception as error:
        raise CannotFoldError(f"torch.fx cannot trace it: {first_line(error)}") from None
    return module


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Restore the attributes of a network, and lists, dictionaries and sets that are attributes.

    Raises:
        CannotFoldError: the block has changed one.
    """
    before = {module: dict(vars(module)) for module in _own_modules(network)}
    contents = [
        (key, value, value.copy())
        for attributes in before.values()
        for key, value in attributes.items()
        if isinstance(value, list | dict | set)
    ]
    changed = []
    try:
        yield
    finally:
        for module, attributes in before.items():
            now = vars(module)
            changed += [key for key in {*now, *attributes} if now.get(key) is not attributes.get(key)]
            now.clear()
            now.update(attributes)
        for key, value, saved in contents:
            if list(map(id, _flat(value))) != list(map(id, _flat(saved))):
                changed.append(key)
                value.clear()
                value.extend(saved) if isinstance(value, list) else value.update(saved)
    if changed:
        raise CannotFoldError(f"a pass changes the attribute {changed[0]}")


def _flat(container: list[Any] | dict[Any, Any] | set[Any]) -> list[Any]:
    return [*container, *(container.values() if isinstance(container, dict) else ())]


def _own_modules(network: nn.Module) -> list[nn.Module]:
    """The modules whose forward passes may hold anything: those that are not torch's."""
    return [m for m in network.modules() if not type(m).__module__.startswith("torch.nn.")]


def constants(network: nn.Module) -> dict[tuple[nn.Module, str], Any]:
    """The attributes whose values a trace holds, by module and name."""
    return {
        (module, key): value
        for module in _own_modules(network)
        if not isinstance(module, SplitBatchNorm | BatchNorm)
        for key, value in vars(module).items()
        if key != "training" and isinstance(value, CONSTANTS)
    }
