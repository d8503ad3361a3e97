"""A network of one's own: from normalised images (N, in_channels, 8, 8) to logits (N, num_classes)."""

from torch import nn


def build(num_classes, in_channels, width=32, dropout=0.1):
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.GroupNorm(4, 2 * width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * width * 16, num_classes),
    )
