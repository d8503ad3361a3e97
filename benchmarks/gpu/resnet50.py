"""Images per second of training steps of ResNet-50, as the section ``step`` measures them.

PGD-4 on 85 images of 224x224, as in the DAT paper.

Ratios:

- ``resnet50_share_of_peak``: FLOP/s of the trainer's step, compiled and in bfloat16, over those of the
  fastest matrix product or convolution in bfloat16. Operations are those of convolutions and matrix products.
"""

from __future__ import annotations

from gpu import step
from gpu.section import Call, Keep, Measured, Table


def measure(call: Call, before: Measured, keep: Keep) -> None:
    """Time the steps of ResNet-50."""
    settings = ["exchange.protocol=ring", "model.name=resnet50", "data.image_size=224", "batch_size=85"]
    if call.tiny:
        settings += ["model.name=preact-resnet18", "model.width=0.1", "data.image_size=32", "batch_size=2"]
    step.measure_steps(call.job("imagenet-dat-pgd.yaml", *step.RANDOM_IMAGES, *settings), call, keep)


def ratios(measured: Measured) -> dict[str, float | str]:
    """The share of the card's peak."""
    return {"resnet50_share_of_peak": measured["share_of_bfloat16_peak"][step.OURS]}


def tables(measured: Measured) -> dict[str, Table]:
    """Images per second of the steps of all kinds."""
    return step.tables(measured)
