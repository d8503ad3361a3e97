"""Networks as users write them, for `model.name: tests.own_networks:NAME`; images are 8 pixels wide."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18


class Attention(nn.Module):
    """Patches, attention with layer norm and dropout, learned positions; no batch norm."""

    def __init__(self, num_classes, in_channels, width=16, dropout=0.1):
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, 4, stride=4)
        self.positions = nn.Parameter(torch.zeros(1, 4, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        normed = self.norm(tokens)
        return self.head((tokens + self.attention(normed, normed, normed)[0]).mean(1))


class Odd(nn.Module):
    """Everything that parameters and buffers can be, and no batch norm."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.first = nn.Linear(64 * in_channels, 16)
        self.again = nn.Linear(64 * in_channels, 16)
        self.again.weight = self.first.weight
        self.turned = nn.Parameter(torch.randn(16, 12).div(4).t())
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.head = nn.Linear(12, num_classes)
        self.register_buffer("nothing", None)
        self.register_buffer("positions", torch.arange(3).expand(2, 3))
        self.register_buffer("rotations", torch.ones(2, dtype=torch.complex64), persistent=False)
        self.register_buffer("mask", torch.ones(16, dtype=torch.bool))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        x = x.flatten(1)
        hidden = self.first(x).tanh() + self.again(x).relu()
        if self.training:
            self.passes += 1
            # Not in place: a new tensor takes the buffer's name.
            self.mean = self.mean.lerp(hidden.detach().mean(0), 0.1)
        hidden = self.frozen(hidden * self.mask - self.mean)
        return self.head((hidden @ self.turned.t()) * self.scale)


def frozen_backbone(num_classes, in_channels):
    """A trained head on a backbone with batch norm that is not trained."""
    backbone = nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    return nn.Sequential(backbone.requires_grad_(False), nn.Linear(8 * 36, num_classes))


def frozen_resnet18(num_classes, in_channels):
    """torchvision's ResNet-18, of which only the head is trained."""
    network = resnet18(num_classes=num_classes)
    network.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    network.requires_grad_(False).fc.requires_grad_(True)
    return network


class Branching(nn.Module):
    """What it computes depends on the numbers in its input, which torch.compile does not capture."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.head = nn.Linear(64 * in_channels, num_classes)

    def forward(self, x):
        logits = self.head(x.flatten(1))
        return 2 * logits if logits.sum().item() > 0 else logits


class Recording(nn.Module):
    """Keeps the shapes of what it is given; with batch norm."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.hidden, self.norm = nn.Linear(64 * in_channels, 16), nn.BatchNorm1d(16)
        self.head, self.seen = nn.Linear(16, num_classes), []

    def forward(self, x):
        self.seen.append(x.shape)
        return self.head(self.norm(self.hidden(x.flatten(1))).relu())


class Centred(nn.Module):
    """Batch norm, and a running mean of its own, of which training makes a new tensor."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.hidden, self.norm = nn.Linear(64 * in_channels, 16), nn.BatchNorm1d(16)
        self.head = nn.Linear(16, num_classes)
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        hidden = self.norm(self.hidden(x.flatten(1))).relu()
        if self.training:
            self.mean = self.mean.lerp(hidden.detach().mean(0), 0.1)
        return self.head(hidden - self.mean)


class Drawn(nn.Module):
    """Draws from every global generator, while it is built and in each pass in training."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.order = random.sample(range(64 * in_channels), 64 * in_channels)
        self.register_buffer(
            "signs", torch.from_numpy(np.random.choice([-1.0, 1.0], 64 * in_channels)).float()
        )
        self.head = nn.Linear(64 * in_channels, num_classes)

    def forward(self, x):
        x = x.flatten(1)[:, self.order] * self.signs
        if self.training:
            x = x * (random.random() + np.random.rand() + torch.rand(()))
        return self.head(x)


def reads_values(num_classes, in_channels):
    """Reads numbers of a tensor while it is built, as on torch's meta device is impossible."""
    rates = [rate.item() for rate in torch.linspace(0, 0.1, 2)]
    return nn.Sequential(nn.Flatten(), nn.Dropout(rates[1]), nn.Linear(64 * in_channels, num_classes))


class Recomputed(nn.Module):
    """Its gradients arrive once for each pass: torch's older form of checkpointing."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.first, self.second = nn.Linear(64 * in_channels, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        hidden = self.first(x.flatten(1)).relu()
        if self.training and torch.is_grad_enabled():
            hidden = checkpoint(self.second, hidden, use_reentrant=True)
        else:
            hidden = self.second(hidden)
        return self.head(hidden)


def batch_norm(num_classes, in_channels):
    """One batch norm, in two places."""
    norm = nn.BatchNorm1d(16)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64 * in_channels, 16),
        norm,
        nn.ReLU(),
        nn.Sequential(nn.Linear(16, 16), norm),
        nn.Linear(16, num_classes),
    )


class Wrong(nn.Module):
    """A linear network that does one thing that cannot be trained here."""

    def __init__(self, num_classes, in_channels, what):
        super().__init__()
        self.what = what
        self.flat = nn.Flatten()
        self.head = nn.Linear(64 * in_channels, num_classes)
        self.register_buffer("count", torch.zeros(()), persistent=what != "derived")
        self.register_buffer("late", None)
        if what == "half":
            self.head.half()
        if what == "lazy":
            self.head = nn.LazyLinear(num_classes)
        if what == "empty":
            del self.head

    def forward(self, x):
        if self.what == "size" and x.shape[-1] != 32:
            raise AssertionError("expected 32 pixels")
        if self.what == "detached":
            x = x.detach()
        logits = self.head(self.flat(x))
        if self.what == "counts" or (self.what == "derived" and self.training):
            self.count += 1
        if self.what == "late":
            self.late = torch.ones(2)
        return {
            "tuple": (logits, logits),
            "auxiliary": (logits, logits) if self.training else logits,
            "mapping": {"logits": logits},
            "features": logits[:, :1],
            "one": logits.sum(),
            "probabilities": logits.softmax(1),
            "classes": logits.argmax(1)[:, None].expand_as(logits),
        }.get(self.what, logits)


BUILT = []


def the_same(num_classes, in_channels):
    """Builds a network once."""
    if not BUILT:
        BUILT.append(nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes)))
    return BUILT[0]


def nothing(num_classes, in_channels):
    nn.Linear(64, num_classes)


def a_class(num_classes, in_channels):
    return Attention


def other_arguments(classes):
    return nn.Linear(64, classes)


def fails(num_classes, in_channels):
    raise KeyError("of the user")
