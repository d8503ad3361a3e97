"""The exported weights in plain PyTorch: hpcdat is not imported."""

import network
import torch
from digits import load
from safetensors.torch import load_file

model = network.build(num_classes=10, in_channels=1, width=32).eval()
model.load_state_dict(load_file("runs/own-model.safetensors"))
_, test = load()
x = (torch.from_numpy(test.images).permute(0, 3, 1, 2) / 255 - 0.3) / 0.4
accuracy = (model(x).argmax(1) == torch.from_numpy(test.targets)).float().mean().item()
print(f"TA in plain PyTorch: {100 * accuracy:.2f} %")
