"""The backward pass, written out: torch's engine asks CUDA for its streams before it starts."""

from collections import Counter

import torch


def gradients_of(output, leaves=None, hooks=()):
    """Gradients of a scalar by its leaves.

    Args:
        output: of a forward pass.
        leaves: those whose gradients are wanted; None: all, which are added to ``.grad``.
        hooks: by the node that computed a tensor, what replaces the gradient with respect to it.

    Returns:
        The gradients by leaf.
    """
    hooks = dict(hooks)
    found, arrived, missing = {}, {output.grad_fn: [torch.ones_like(output)]}, _edges_into(output.grad_fn)
    ready = [output.grad_fn]
    with torch.no_grad():
        while ready:
            node = max(ready, key=lambda one: one._sequence_nr())
            ready.remove(node)
            gradients = arrived.pop(node, None)
            if gradients is None:
                continue
            if node in hooks:
                gradients = [hooks[node](gradients[0])]
            if hasattr(node, "variable"):
                found[node.variable] = gradients[0]
                if leaves is None:
                    _accumulate(node.variable, gradients[0])
                continue
            given = (node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node)(
                *gradients
            )
            given = given if isinstance(given, tuple) else (given,)
            for (following, place), gradient in zip(node.next_functions, given, strict=False):
                if following is None:
                    continue
                if gradient is not None:
                    _add(arrived.setdefault(following, []), place, _fitting(following, place, gradient))
                missing[following] -= 1
                if not missing[following]:
                    ready.append(following)
    return found if leaves is None else {leaf: found[leaf] for leaf in leaves}


def _edges_into(root):
    counts, seen, left = Counter(), {root}, [root]
    while left:
        for node, _ in left.pop().next_functions:
            if node is not None:
                counts[node] += 1
                if node not in seen:
                    seen.add(node)
                    left.append(node)
    return counts


def _add(gradients, place, gradient):
    gradients.extend([None] * (place + 1 - len(gradients)))
    before = gradients[place]
    gradients[place] = gradient if before is None else before + gradient


def _fitting(node, place, gradient):
    """The gradient in the shape and dtype of what the node returned in the forward pass."""
    expected = node._input_metadata[place]
    if gradient.shape != torch.Size(expected.shape):
        gradient = gradient.sum_to_size(expected.shape)
    return gradient.to(expected.dtype)


def _accumulate(leaf, gradient):
    assert gradient.device == leaf.device
    leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
    for hook in (leaf._post_accumulate_grad_hooks or {}).values():
        hook(leaf)
