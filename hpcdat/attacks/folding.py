"""The network that an attack sees in evaluation mode: batch norm is folded into the layers in front of it.

An attack calls the same network again and again, and its weights do not change meanwhile. In evaluation mode
batch norm is a constant affine map, so it can be folded once for all calls; see
:mod:`hpcdat.models.folded_layers`.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from hpcdat.attacks.pgd import attacked
from hpcdat.errors import first_line
from hpcdat.models.float32 import without_tf32
from hpcdat.models.folded_layers import AffineNorm, FoldedLayer, has_hooks, is_affine, is_weighted
from hpcdat.models.normalization import Normalization
from hpcdat.models.pixel_model import PixelModel
from hpcdat.models.random_numbers import seeded
from hpcdat.models.split_batch_norm import BatchNorm, Branch, routed
from hpcdat.models.tracing import CannotFoldError, constants, traced, unchanged

RELUS = (nn.functional.relu, torch.relu, "relu")
"""ReLU as a function and as a method of tensors."""
CHECKED_IMAGES = 4
"""Images that a folded network is compared with the plain one on."""


class Folding(NamedTuple):
    """What :func:`fold` has found.

    Attributes:
        network: the folded network; None if there is nothing to fold, or folding is impossible.
        remark: why it is impossible; empty otherwise.
    """

    network: FoldedNetwork | None = None
    remark: str = ""

    def current(self, model: nn.Module) -> nn.Module:
        """The network to attack in evaluation mode: the folded one, with the weights of now, or the model."""
        return self.network.refreshed() if self.network else model


def fold(model: nn.Module, images: Tensor, branch: Branch = "clean") -> Folding:
    """Fold the batch norm of a model in evaluation mode.

    On a CPU the folded network has its channels last, where convolutions are faster and nothing is converted
    between them, if the model allows it.

    Args:
        model: from images to logits, on its device; it is left as it was.
        images: some, (N, C, H, W) in [0, 1], N >= 1, on which the folded network must agree with the model.
        branch: of split batch norm.
    """
    if not any(isinstance(module, BatchNorm) for module in model.modules()):
        return Folding()
    # Networks that view activations in the usual layout do not take another.
    layouts = (True, False) if images.device.type == "cpu" and images.dim() == 4 else (False,)
    for channels_last in layouts:
        try:
            folded = FoldedNetwork(model, branch, channels_last=channels_last)
            if folded.layers:
                folded.check(images[:CHECKED_IMAGES])
            return Folding(folded if folded.layers else None)
        except CannotFoldError as error:
            why = error
    return Folding(remark=f"attacks take the network as it is, without folding its batch norm: {why}")


class FoldedNetwork(nn.Module):
    """A model in evaluation mode with its batch norm folded; it shares all other layers with the model.

    Args:
        model: from images to logits. Of a :class:`~hpcdat.models.pixel_model.PixelModel`, normalisation,
            precision and layout are kept.
        branch: of split batch norm.
        channels_last: whether images, and so activations, are stored with channels last, in any case.

    Attributes:
        layers: those that stand for batch norm.

    Raises:
        CannotFoldError: the network cannot be traced.
    """

    network: nn.Module

    def __init__(self, model: nn.Module, branch: Branch = "clean", *, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last = channels_last
        # In a tuple, so that it is no submodule: only what the trace calls is part of this network.
        self._plain, self._branch = (model,), branch
        self._trace()

    def _trace(self) -> None:
        (model,) = self._plain
        device = next((t.device for t in model.buffers()), torch.device("cpu"))
        with attacked(model, "eval"), routed(model, self._branch), seeded(1, device):
            inner = model[1] if isinstance(model, PixelModel) else model
            graph = traced(inner)
            self._held = constants(inner)
        self.layers = _fold_layers(graph)
        self.network = graph
        if isinstance(model, PixelModel):
            normalization = cast(Normalization, model[0])
            self.network = PixelModel(normalization, graph, model.precision, model.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in [0, 1], by the weights of the latest refresh."""
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(x)
        return logits

    def refreshed(self) -> nn.Module:
        """This network, after folding the current weights and statistics of the model.

        A trace holds the values that numbers and texts among the attributes of a network had; if one has
        changed, the model is traced again, and itself returned if that fails.
        """
        if any(vars(module).get(key) != value for (module, key), value in self._held.items()):
            try:
                self._trace()
            except CannotFoldError:
                return self._plain[0]
        for layer in self.layers:
            layer.refresh()
        return self

    def check(self, images: Tensor) -> None:
        """Check that logits and gradients of the images are those of the model, but for rounding.

        With machine precision u, rounding makes a relative error of the order of u times the number of layers
        in the logits, far below sqrt(u). It may move a ReLU or a maximum over its kink, which changes the
        gradient by this unit's share: u^(1/4) allows for some. What a trace misses, such as blocks without
        gradients, or numbers that are drawn anew in each pass, makes errors of the order of 1.

        Args:
            images: (N, C, H, W), N >= 1.

        Raises:
            CannotFoldError: they differ, or a pass fails or changes the network.
        """
        (model,) = self._plain
        folded: nn.Module = self.refreshed()
        if isinstance(model, PixelModel):
            # Without its autocast, so that both compute in the precision of the weights.
            images, model = model[0](images), model[1]
            folded = self.network[1]  # type: ignore[index]
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        try:
            with (
                attacked(model, "eval"),
                routed(model, self._branch),
                # Its rounding alone can exceed the bounds.
                without_tf32(),
                # Not the seed of the trace, which may hold a number that was drawn.
                seeded(2, images.device),
                unchanged(model),
            ):
                expected, found = _answers(model, images.contiguous()), _answers(folded, images)
        except (torch.OutOfMemoryError, CannotFoldError):
            raise
        except Exception as error:
            raise CannotFoldError(first_line(error)) from None
        u = torch.finfo(expected[0].dtype).eps
        bounds = {"logits": u**0.5, "gradients": u**0.25}
        for (what, bound), one, other in zip(bounds.items(), expected, found, strict=True):
            # A difference that is not a number is not within the bound either.
            if not (one - other).norm() <= bound * one.norm():
                raise CannotFoldError(f"{what} of the traced network are not those of the network")


def _answers(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of images, and the gradient of half their squared norm."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(images)
        (gradient,) = torch.autograd.grad(logits.square().sum() / 2, images)
    return logits.detach(), gradient


def _fold_layers(traced: fx.GraphModule) -> list[FoldedLayer | AffineNorm]:
    """Replace batch norm in a graph, in place; the layers that stand for it."""
    graph = traced.graph
    layers: list[FoldedLayer | AffineNorm] = []
    for node in list(graph.nodes):
        norm = _called(traced, node)
        if norm is None or not is_affine(norm):
            continue
        _append_children(graph, node, norm)
        relu = _relu_behind(traced, node)
        if relu is not None:
            relu.replace_all_uses_with(node)
            graph.erase_node(relu)
        in_front = node.args[0]
        layer = _called(traced, in_front) if len(in_front.users) == 1 else None
        new: FoldedLayer | AffineNorm
        if layer is not None and is_weighted(layer):
            new = FoldedLayer(layer, norm, relu is not None)
            node.replace_all_uses_with(in_front)
            graph.erase_node(node)
            node = in_front
        else:
            new = AffineNorm(norm, relu is not None)
        node.target = f"folded_{len(layers)}"
        traced.add_submodule(node.target, new)
        layers.append(new)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return layers


def _append_children(graph: fx.Graph, node: fx.Node, norm: nn.Module) -> None:
    """Call what a batch norm applies to its result behind it."""
    last = node
    for name, _ in norm.named_children():
        with graph.inserting_after(last):
            child = graph.call_module(f"{node.target}.{name}", (last,))
        last.replace_all_uses_with(child, delete_user_cb=partial(operator.is_not, child))
        last = child


def _called(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls with a single operand."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    return traced.get_submodule(str(node.target))


def _relu_behind(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The ReLU that is the only user of a node's result, if there is one."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    module = _called(traced, user)
    if module is not None:
        return user if type(module) is nn.ReLU and not has_hooks(module) else None
    return user if user.op != "output" and user.target in RELUS else None
