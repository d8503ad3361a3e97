"""Hashes of a model's parameters and buffers."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, in the order of the model."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def fingerprint(model: nn.Module) -> str:
    """A hash of all parameters and buffers: 16 hexadecimal digits."""
    text = "".join(f"{name}:{tensor_fingerprint(tensor)};" for name, tensor in named_state(model).items())
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def tensor_fingerprint(tensor: Tensor) -> int:
    """A hash of a tensor's bytes, in [-2^63, 2^63)."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return int.from_bytes(hashlib.blake2b(data.data, digest_size=8).digest(), "little", signed=True)
