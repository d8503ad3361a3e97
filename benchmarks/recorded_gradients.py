"""Gradients of M workers at the same weights: normal numbers, and those of networks in training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hpcdat.data.cifar import read_cifar
from hpcdat.models import build_model

Gradients = list[Tensor]
"""A matrix (M, n) for each parameter tensor, float32: a row for each worker."""

NORMAL = {"normal, independent": 0.0, "normal, half in common": 0.5}
"""By name, the share of the workers' variance that is the same on all of them."""
COUNT = 2**16
"""Normal numbers in a gradient."""
BATCH = 32
"""Images of a worker's batch."""


def normal(share: float, workers: int, seed: int) -> Gradients:
    """Normal numbers of variance 1, of which a share is a vector that all workers have in common."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(COUNT, generator=generator)
    own = torch.randn(workers, COUNT, generator=generator)
    return [share**0.5 * common + (1 - share) ** 0.5 * own]


def of_digits(workers: int, seed: int) -> Gradients:
    """Gradients of the digits' network after some training on scikit-learn's digits."""
    digits = load_digits()
    x = torch.from_numpy(digits.images / 16).float()[:, None]
    return _recorded("digits-cnn", 1.0, x, torch.from_numpy(digits.target), 100, workers, seed)


def of_cifar(root: Path, workers: int, seed: int) -> Gradients:
    """Gradients of a pre-activation ResNet-18 of a quarter of its width, after some training on CIFAR-10."""
    train, _ = read_cifar("cifar10", root, download=False)
    assert train.pixels is not None
    chosen = np.random.default_rng(seed).permutation(len(train))[:5000]
    x = torch.from_numpy(train.pixels[chosen]).permute(0, 3, 1, 2).float() / 255
    return _recorded("preact-resnet18", 0.25, x, torch.from_numpy(train.labels[chosen]), 100, workers, seed)


def _recorded(
    name: str, width: float, x: Tensor, y: Tensor, steps: int, workers: int, seed: int
) -> Gradients:
    """Train by SGD with momentum, then take each worker's gradient of its own batch of other images.

    Tensors of one dimension, which are exchanged exactly, are left out.
    """
    channels = x.shape[1]
    model = build_model(
        name,
        channels=channels,
        num_classes=10,
        mean=[0.5] * channels,
        std=[0.25] * channels,
        seed=seed,
        width=width,
    )
    weights = [p for p in model.parameters() if p.dim() > 1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = _batches(len(y), np.random.default_rng(seed))
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(model, x, y, next(batches)).backward()
        optimizer.step()
    rows = [torch.autograd.grad(_loss(model, x, y, next(batches)), weights) for _ in range(workers)]
    return [torch.stack([row[number].flatten() for row in rows]) for number in range(len(weights))]


def _batches(count: int, random: np.random.Generator) -> Iterator[Tensor]:
    """Batches without end, each image once in a pass."""
    while True:
        yield from torch.from_numpy(random.permutation(count)[: count // BATCH * BATCH]).split(BATCH)


def _loss(model: nn.Module, x: Tensor, y: Tensor, batch: Tensor) -> Tensor:
    return cross_entropy(model(x[batch]), y[batch])
