"""Networks of torchvision, of timm, and of the user's own, by the name that ``model.name`` gives them.

Nothing is downloaded: the weights are random.
"""

from __future__ import annotations

import copy
import difflib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from hpcdat.config.sections import LIBRARIES
from hpcdat.errors import InputError
from hpcdat.user_code import call, code_fingerprint, load_callable

KEY = "model.name"
"""The setting that names a network, for messages."""
GIVEN = {
    "torchvision": ("num_classes", "weights", "pretrained", "progress"),
    "timm": ("num_classes", "in_chans", "pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir"),
}
"""Arguments of the libraries' functions that are no ``model.options``: they follow from other settings."""
Build = Callable[..., Any]
"""A network's constructor; called with ``num_classes``, ``in_channels`` and the options."""

_BUILT: WeakSet[nn.Module] = WeakSet()


def find_network(name: str, folders: Sequence[Path]) -> Build:
    """Import what a name with a colon refers to, without building it.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME`` or ``MODULE:CALLABLE``.
        folders: for modules of the user's own, see ``module_path`` of a job.

    Raises:
        InputError: there is no such network, or its library is not installed.
    """
    library, _, network = name.partition(":")
    if library == "torchvision":
        return _of_torchvision(network)
    if library == "timm":
        return _of_timm(network)
    return load_callable(KEY, name, folders, libraries=LIBRARIES)


def code_of_network(name: str, folders: Sequence[Path]) -> str | None:
    """What decides, next to the settings, which network a name is; None for a name without a colon.

    Args:
        name, folders: see :func:`find_network`; the network has been built.

    Returns:
        The library's version, or a hash of the user's own code.
    """
    library = name.partition(":")[0]
    if library == name:
        return None
    if library in GIVEN:
        return f"{library} {importlib.metadata.version(library)}"
    return code_fingerprint(name, folders)


def build_network(
    name: str, build: Build, channels: int, num_classes: int, options: dict[str, Any]
) -> nn.Module:
    """A network from normalised images (N, channels, H, W) to logits (N, num_classes).

    Args:
        name, build: see :func:`find_network`.
        channels: 1 or 3.
        num_classes: number of logits.
        options: further arguments of the network.

    Returns:
        The network, its weights drawn from the global random generators, contiguous and in float32.

    Raises:
        InputError: it cannot be built, or is none that can be trained here.
    """
    library = name.partition(":")[0]
    given = [key for key in options if key in GIVEN.get(library, ("num_classes", "in_channels"))]
    if given:
        raise InputError(f"model.options: {given[0]} is not allowed: {_instead(given[0])}")
    _check_options(name, build, options)
    network = call(KEY, name, build, num_classes=num_classes, in_channels=channels, **copy.deepcopy(options))
    if not isinstance(network, nn.Module):
        hint = ": return an instance of it" if isinstance(network, type) else ""
        found = f"the class {network.__name__}" if isinstance(network, type) else type(network).__name__
        raise InputError(f"{KEY}: {name} returned {found}, expected a torch.nn.Module{hint}")
    if network in _BUILT:
        raise InputError(
            f"{KEY}: {name} returned the same module as in an earlier call: it must build a new one each time"
        )
    _BUILT.add(network)
    _check_tensors(name, network)
    return network


def _instead(option: str) -> str:
    if option in ("num_classes", "in_chans", "in_channels"):
        return "it follows from the data (data.channels, and the classes of the images)"
    return "nothing is downloaded; weights are read from a file (model.pretrained)"


def _check_options(name: str, build: Build, options: dict[str, Any]) -> None:
    """Check that a user's callable takes the arguments that it is called with.

    The functions of the libraries pass theirs on, so their errors come from inside.
    """
    try:
        parameters = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):
        return
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    named = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    for key in ("num_classes", "in_channels"):
        if key not in named:
            raise InputError(
                f"{KEY}: {name} takes no argument {key}: it is called as "
                "callable(num_classes=..., in_channels=..., **options)"
            )
    for key in options:
        if key not in named:
            known = [each for each in named if each not in ("num_classes", "in_channels")]
            raise InputError(
                f"model.options: {name} takes no {key}{_nearest(key, known)}; it has "
                f"{', '.join(known) or 'no options'}"
            )


def _of_torchvision(network: str) -> Build:
    from torchvision import models

    # Those for detection and segmentation return no logits, and download weights of their backbones.
    names = models.list_models(module=models)
    if network in models.list_models() and network not in names:
        raise InputError(
            f"{KEY}: torchvision:{network} does not classify images: it returns no logits (N, classes)"
        )
    if network not in names:
        raise InputError(f"{KEY}: torchvision has no network {network}{_nearest(network, names)}")

    def build(num_classes: int, in_channels: int, **options: Any) -> nn.Module:
        model: nn.Module = models.get_model(network, weights=None, num_classes=num_classes, **options)
        if in_channels != 3:
            _replace_first_convolution(f"torchvision:{network}", model, in_channels)
        return model

    return build


def _of_timm(network: str) -> Build:
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"{KEY}: timm:{network} needs the package timm ({error}): pip install timm"
        ) from None
    if not timm.is_model(network):
        raise InputError(f"{KEY}: timm has no network {network}{_nearest(network, timm.list_models())}")

    def build(num_classes: int, in_channels: int, **options: Any) -> nn.Module:
        model: nn.Module = timm.create_model(
            network, pretrained=False, num_classes=num_classes, in_chans=in_channels, **options
        )
        return model

    return build


def _nearest(name: str, names: Iterable[str]) -> str:
    """Names that begin with this one, the shortest first, then similar ones."""
    names = list(names)
    longer = sorted((each for each in names if each.startswith(name)), key=lambda each: (len(each), each))
    near = list(dict.fromkeys([*longer, *difflib.get_close_matches(name, names, n=3)]))[:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def first_convolution(network: nn.Module) -> str | None:
    """The name of a network's first convolution, which takes the colours; None if it has none."""
    return next((name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)), None)


def _replace_first_convolution(name: str, model: nn.Module, channels: int) -> None:
    """Give a network of colour images a first convolution for grey ones.

    Its weights are the sums over the colours, so that the network computes of a grey image what it would
    compute of the same image in colour.
    """
    place = first_convolution(model)
    layer = None if place is None else model.get_submodule(place)
    if not isinstance(layer, nn.Conv2d) or layer.in_channels != 3 or layer.groups != 1:
        raise InputError(
            f"{KEY}: {name} has no first convolution of 3 channels that could be replaced by one of "
            f"data.channels {channels}: set data.channels to 3"
        )
    with torch.no_grad():
        layer.weight = nn.Parameter(layer.weight.sum(1, keepdim=True))
    layer.in_channels = channels


def _check_tensors(name: str, network: nn.Module) -> None:
    """Check that parameters and buffers can be sent and trained, and make them contiguous."""
    if next(network.parameters(), None) is None:
        raise InputError(f"{KEY}: {name} has no parameters")
    for place, parameter in network.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise InputError(
                f"{KEY}: {name}: {place} belongs to a lazy layer, whose shape is unknown before its first "
                "pass: use a layer with given sizes"
            )
        if parameter.requires_grad and parameter.dtype != torch.get_default_dtype():
            raise InputError(
                f"{KEY}: {name}: {place} is {_short(parameter.dtype)}, expected "
                f"{_short(torch.get_default_dtype())}: call .float() (model.precision sets what is "
                "computed in bfloat16)"
            )
        # Views of other memory, transposed or expanded, could be neither sent nor restored in place.
        parameter.data = parameter.data.contiguous()
    for module in network.modules():
        for place, buffer in module.named_buffers(recurse=False):
            setattr(module, place, buffer.contiguous())


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def buffers_of(model: nn.Module, *, persistent: bool | None = None) -> dict[str, Tensor]:
    """The buffers of a model by name.

    Args:
        model: of any kind.
        persistent: only those that its state dictionary has, or only the others; None: all.
    """
    if persistent is None:
        return dict(model.named_buffers())
    names = model.state_dict().keys()
    return {name: t for name, t in model.named_buffers() if (name in names) == persistent}
