"""Pre-activation residual networks for small images (He et al. 2016b): ResNet-18 and Wide ResNet-28-10.

Both consist of a 3x3 convolution, stages of residual blocks, batch norm and ReLU, the mean over the pixels,
and a linear layer. Wide ResNets (Zagoruyko and Komodakis 2016) have fewer, wider stages.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu


class PreActBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), both convolutions 3x3.

    Where the shape changes, the shortcut is a 1x1 convolution of relu(bn(x)) in place of x.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        activated = relu(self.bn1(x))
        skipped = x if self.shortcut is None else self.shortcut(activated)
        features: Tensor = skipped + self.conv2(relu(self.bn2(self.conv1(activated))))
        return features


class PreActResNet(nn.Module):
    """A pre-activation residual network; every stage after the first halves height and width.

    Args:
        channels: of the input.
        num_classes: number of logits.
        stem: channels of the first convolution.
        widths: channels of each stage.
        blocks: residual blocks in each stage.
    """

    def __init__(
        self, channels: int, num_classes: int, *, stem: int, widths: Sequence[int], blocks: int
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        layers, inputs = [], stem
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(PreActBlock(inputs, width, stride=2 if stage and block == 0 else 1))
                inputs = width
        self.stages = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, channels, H, W)."""
        logits: Tensor = self.classifier(relu(self.norm(self.stages(self.stem(x)))).mean((2, 3)))
        return logits


def preact_resnet18(channels: int, num_classes: int, width: float = 1.0) -> PreActResNet:
    """Pre-activation ResNet-18, used for CIFAR in the DAT paper: 11.2 million parameters at width 1."""
    stem, *widths = _scaled(width, 64, 64, 128, 256, 512)
    return PreActResNet(channels, num_classes, stem=stem, widths=widths, blocks=2)


def wide_resnet28_10(channels: int, num_classes: int, width: float = 1.0) -> PreActResNet:
    """Wide ResNet-28-10 (Carmon et al. 2019; Table 3 of the DAT paper): 36.5 million parameters."""
    stem, *widths = _scaled(width, 16, 160, 320, 640)
    return PreActResNet(channels, num_classes, stem=stem, widths=widths, blocks=4)


def _scaled(width: float, *channels: int) -> list[int]:
    return [max(1, round(width * n)) for n in channels]
