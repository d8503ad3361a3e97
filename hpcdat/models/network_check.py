"""One pass of a network before training, which finds what would fail, or go wrong silently, later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hpcdat.errors import InputError
from hpcdat.models.networks import KEY, buffers_of
from hpcdat.user_code import describe_failure

IMAGES = 2
"""Images of the pass; from one alone, batch norm may get a single value for each channel."""

SIZE_OPTIONS = {"torchvision": "image_size", "timm": "img_size"}
"""Names of the option for the size of images, in the networks that are built for one size."""


def check_network(
    name: str,
    model: nn.Module,
    shape: tuple[int, int, int],
    num_classes: int,
    size_from: str = "data.image_size",
) -> None:
    """Check what a network returns, and what it changes, in a pass in training and one in evaluation mode.

    Args:
        name: of the network, for messages.
        model: from images in [0, 1] to logits, on its device; it is as before in the end.
        shape: of an image: channels, height, width.
        num_classes: number of logits.
        size_from: setting that has height and width, for messages.

    Raises:
        InputError: the network fails, does not return logits (N, num_classes), does not let gradients through
            to the images, or changes buffers that a checkpoint or an attack could not restore.
    """
    check = _Check(name, shape, num_classes, size_from)
    images = torch.rand(IMAGES, *shape, device=next(model.parameters()).device)
    keys, derived = list(model.state_dict()), buffers_of(model, persistent=False)
    with _preserved(model) as before:
        check.run(model.train(), images)
        if added := [key for key in model.state_dict() if key not in keys]:
            raise check.error(f"a pass adds {added[0]} to its state: register it when the network is built")
        if changed := _changed(derived, before, model):
            raise check.error(
                f"training changes the buffer {changed}, which is not persistent, so no checkpoint would "
                "hold it: register it with persistent=True"
            )
    with _preserved(model) as before, torch.enable_grad():
        images.requires_grad_()
        logits = check.run(model.eval(), images)
        gradient = None
        if logits.requires_grad:
            (gradient,) = torch.autograd.grad(logits.sum(), images, allow_unused=True)
        if gradient is None:
            raise check.error(
                "no gradient reaches the images, so they cannot be attacked: freeze layers with "
                "requires_grad_(False), not with torch.no_grad() or detach()"
            )
        if changed := _changed(before, before, model):
            raise check.error(
                f"a pass in evaluation mode changes the buffer {changed}, so attacks and evaluations would "
                "change the network: change it only if self.training"
            )


class _Check:
    """The passes of one network, and what is wrong with it as an error."""

    def __init__(self, name: str, shape: tuple[int, int, int], num_classes: int, size_from: str) -> None:
        self.name, self.shape, self.num_classes, self.size_from = name, shape, num_classes, size_from

    def error(self, problem: str) -> InputError:
        return InputError(f"{KEY}: {self.name}: {problem}")

    def run(self, model: nn.Module, images: Tensor) -> Tensor:
        """The logits of some images."""
        mode = "training" if model.training else "evaluation"
        try:
            with torch.set_grad_enabled(not model.training):
                logits = model(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            pixels = "x".join(map(str, self.shape))
            option = SIZE_OPTIONS.get(self.name.partition(":")[0])
            hint = f"; its size may be one of model.options ({option})" if option else ""
            raise self.error(
                f"fails on images of {pixels} (data.channels, {self.size_from}): {describe_failure(error)}"
                + (hint if isinstance(error, AssertionError) else "")
            ) from None
        expected = f"expected logits (N, {self.num_classes}), N the number of images"
        if not isinstance(logits, Tensor):
            raise self.error(
                f"returns {_describe(logits)} in {mode} mode, {expected}: return the logits alone (of "
                "torchvision's GoogLeNet and Inception with model.options: {aux_logits: false})"
            )
        if logits.shape != (len(images), self.num_classes):
            raise self.error(
                f"returns a tensor {tuple(logits.shape)} for {len(images)} images in {mode} mode, {expected}"
            )
        if not logits.is_floating_point():
            raise self.error(f"returns {str(logits.dtype).removeprefix('torch.')} numbers, {expected}")
        if _are_probabilities(logits):
            raise self.error(
                f"returns probabilities in {mode} mode, {expected}: leave out the softmax, which is part of "
                "the loss"
            )
        return logits


def _are_probabilities(logits: Tensor) -> bool:
    """Whether every row has numbers from 0 to 1 that add up to 1."""
    sums = logits.detach().float().sum(1)
    return bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _describe(found: object) -> str:
    kind = type(found).__name__
    return f"a {kind} of {len(found)}" if isinstance(found, tuple | list | dict) else f"a {kind}"


def _changed(names: dict[str, Tensor], before: dict[str, Tensor], model: nn.Module) -> str | None:
    """The first of these buffers that is not as before."""
    now = buffers_of(model)
    return next((n for n in names if n in before and not _same(now.get(n), before[n])), None)


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


@contextmanager
def _preserved(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Restore modes and buffers of a model after the block; yields copies of the buffers."""
    modes = [(module, module.training) for module in model.modules()]
    own = [(module, {**module._buffers}) for module in model.modules()]
    copies = {name: t.detach().clone() for name, t in model.named_buffers()}
    originals = buffers_of(model)
    try:
        yield copies
    finally:
        with torch.no_grad():
            for name, copied in copies.items():
                originals[name].copy_(copied)
        for module, buffers in own:
            for name, buffer in buffers.items():
                if name in module._buffers:
                    module._buffers[name] = buffer
        for module, mode in modes:
            module.training = mode
