"""A small convolutional network for 8x8 digits."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Three 3x3 convolutions with batch norm, two of them followed by pooling, and a linear layer.

    Args:
        channels: of the input.
        num_classes: number of logits.
        width: channels of the first convolution; the others have twice as many.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(channels, width),
            *_block(width, 2 * width),
            nn.MaxPool2d(2),
            *_block(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(2),
        )
        self.classifier = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, channels, H, W), H and W at least 4."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
