"""Averages of the weights over training: exponential (EMA), or of the ends of epochs (SWA).

Sources: Polyak and Juditsky 1992; Izmailov et al. 2018 (SWA); Rebuffi et al. 2021 (EMA in adversarial
training). The warm-up of the decay is that of TensorFlow's ExponentialMovingAverage.

All workers hold equal weights after every update, so they form equal averages without communication. Running
statistics of batch norm differ between workers within an epoch, so they are averaged at the ends of epochs,
where the workers have agreed on them. For this reason the state is not that of torch's ``AveragedModel``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hpcdat.config.averaging import Averaging


class AveragedWeights:
    """The averages of a model's parameters and buffers.

    EMA: after update t = 0 the average is the weights themselves, after each later one, with
    d_t = min(decay, (1 + t) / (10 + t))::

        average <- d_t average + (1 - d_t) weights

    Floating-point buffers, such as running statistics, are averaged at the end of each epoch with the product
    of the d_t of its updates in place of d_t. SWA: parameters and floating-point buffers are averaged equally
    over the ends of epochs. Running statistics are averaged too; Izmailov et al. recompute them with the
    averaged weights. Other buffers, such as counts, are those of the model.

    Args:
        model: on the device, in training.
        settings: the job's ``averaging`` section.

    Attributes:
        updates: times that parameters were averaged; 0: there are no averages yet.
    """

    def __init__(self, model: nn.Module, settings: Averaging) -> None:
        self.model, self.settings = model, settings
        weights: dict[str, Tensor] = {n: t for n, t in _state(model).items() if isinstance(t, nn.Parameter)}
        self._weights = _Average(lambda: weights)
        # Found again each time, since new tensors may take the place of buffers.
        self._buffers = _Average(
            lambda: {n: t for n, t in _state(model).items() if not isinstance(t, nn.Parameter)}
        )
        self.updates, self._retained = 0, 0.0

    def after_update(self) -> None:
        """Average the weights after an update by the optimiser, if the job asks for an EMA."""
        if self.settings.ema is None:
            return
        if self.updates == 0:
            self._begin()
        else:
            decay = min(self.settings.ema, (1 + self.updates) / (10 + self.updates))
            self._weights.move(1 - decay)
            self._retained *= decay
        self.updates += 1

    def end_epoch(self, epoch: int) -> None:
        """Average at the end of an epoch, when the workers agree in all buffers.

        Args:
            epoch: number of epochs done.
        """
        if self.settings.ema is not None and self.updates:
            self._buffers.move(1 - self._retained)
            self._retained = 1.0
        if self.settings.swa_from is not None and epoch >= self.settings.swa_from:
            if self.updates == 0:
                self._begin()
            self.updates += 1
            for average in (self._weights, self._buffers):
                average.move(1 / self.updates)

    def tensors(self) -> dict[str, Tensor]:
        """What is equal on all workers at any time, by name; empty if there are no averages yet."""
        return {**self._weights.values, **self._buffers.values}

    def state(self) -> dict[str, Tensor] | None:
        """The state of a model with the averaged weights, for a checkpoint or an evaluation.

        Call it when the workers agree in all buffers of the model. Shares memory with the averages and the
        model.

        Returns:
            Tensors under the names that the model's own state has; None if there are no averages yet.
        """
        if not self.updates:
            return None
        buffers = self._buffers.moved(1 - self._retained) if self.settings.ema else self._buffers.values
        averages = {**self._weights.values, **buffers}
        names = {id(tensor): name for name, tensor in _state(self.model).items()}
        own = self.model.state_dict(keep_vars=True).items()
        # Tied weights have one average and several names.
        return {
            name: averages[names[id(t)]] if id(t) in names else t for name, t in own if isinstance(t, Tensor)
        }

    def progress(self) -> dict[str, Any]:
        """What :meth:`restore` needs in addition to :meth:`state` to continue; empty without averages."""
        if not self.updates:
            return {}
        return {"updates": self.updates, "retained": self._retained, "buffers": self._buffers.values}

    def restore(self, state: dict[str, Tensor] | None, progress: dict[str, Any]) -> None:
        """Take back what :meth:`state` and :meth:`progress` returned.

        Raises:
            ValueError: they do not belong to this model.
        """
        self.updates, self._retained = 0, 0.0
        self._weights.values, self._buffers.values = {}, {}
        if state is None:
            return
        try:
            self._weights.restore(state)
            self._buffers.restore(progress["buffers"])
            self.updates, self._retained = int(progress["updates"]), float(progress["retained"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"averaged weights of another model: {error!r}") from None

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Give the model the averaged weights and buffers inside the block; there must be averages."""
        averaged = self.state()
        assert averaged is not None
        own = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        averaged = {name: t.detach().clone() for name, t in averaged.items()}
        self.model.load_state_dict(averaged)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def _begin(self) -> None:
        self._weights.begin()
        self._buffers.begin()
        self._retained = 0.0


class _Average:
    """Averages of some tensors.

    Args:
        source: returns the tensors as they are now, by name.

    Attributes:
        values: the averages by name; empty before :meth:`begin`.
    """

    def __init__(self, source: Callable[[], dict[str, Tensor]]) -> None:
        self.source = source
        self.values: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Start from the tensors themselves."""
        self.values = {name: t.detach().clone() for name, t in self.source().items()}

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move each average towards its tensor by this share of their distance."""
        if self.values:
            source = self.source()
            torch._foreach_lerp_(list(self.values.values()), [source[name] for name in self.values], share)

    @torch.no_grad()
    def moved(self, share: float) -> dict[str, Tensor]:
        """What :meth:`move` would make of the averages."""
        source = self.source()
        return {name: average.lerp(source[name], share) for name, average in self.values.items()}

    def restore(self, values: dict[str, Tensor]) -> None:
        """Take back averages, among which there may be others; KeyError if one is missing."""
        self.values = {
            name: torch.empty_like(t).copy_(values[name].detach()) for name, t in self.source().items()
        }


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state that are averaged, each under its first name."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            named.setdefault(id(tensor), (name, tensor))
    return dict(named.values())
