"""The smoothed classifier and CERTIFY's sampling: Cohen et al. 2019, Sec. 3.2.2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpcdat.seeds import derive


class SmoothedClassifier:
    """g(x) = argmax_c P(f(x + eta) = c) with eta ~ N(0, sigma^2 I); noisy images are not clipped.

    Noise is a function of seed, image and batch of samples, so it does not depend on the worker; a GPU draws
    different numbers from a CPU.

    Args:
        model: f, from images (N, C, H, W) to logits (N, classes), in evaluation mode.
        sigma: standard deviation of the noise, [0, 1] units, > 0.
        classes: number of logits.
        batch_size: samples at a time, >= 1.
        seed: the job's.
    """

    def __init__(self, model: nn.Module, sigma: float, *, classes: int, batch_size: int, seed: int) -> None:
        self.model, self.sigma, self.classes = model, sigma, classes
        self.batch_size, self.seed = batch_size, seed

    def certify(self, x: Tensor, *, n0: int, n: int, image: int) -> tuple[int, int]:
        """Choose class A and count it, as CERTIFY does.

        Args:
            x: one image, (C, H, W).
            n0: samples for the choice of class A; of equally frequent classes the first is chosen.
            n: further samples, from which its probability is estimated.
            image: position of x among the test images, for the noise.

        Returns:
            Class A, and how many of the n samples are of class A.
        """
        top = self.sample(x, n0, "selection", image).argmax(0, keepdim=True)
        count = self.sample(x, n, "estimate", image).gather(0, top)
        # One wait for the device, not one for each number.
        chosen, counted = torch.cat([top, count]).tolist()
        return chosen, counted

    @torch.no_grad()
    def sample(self, x: Tensor, n: int, purpose: str, image: int) -> Tensor:
        """SAMPLEUNDERNOISE: how many of n noisy images are classified as each class, int64 (classes,)."""
        generator = torch.Generator(x.device)
        classes = torch.arange(self.classes, device=x.device)
        counts = torch.zeros_like(classes)
        for number, start in enumerate(range(0, n, self.batch_size)):
            generator.manual_seed(derive(self.seed, f"certification {purpose}", image, number))
            shape = (min(self.batch_size, n - start), *x.shape)
            noise = torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)
            logits = self.model(noise.mul_(self.sigma).add_(x))
            # Not bincount, which waits for the device.
            counts += (logits.argmax(1)[:, None] == classes).sum(0)
        return counts
