"""The training methods, by their names in the DAT and the ConAdv paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class Method:
    """The meaning of a method's name in the DAT paper (Sec. 6.1) or the ConAdv paper (Sec. 3).

    Attributes:
        oracle: inner maximisation oracle of (A1): several steps, one step, or none.
        optimizers: allowed optimisers, the default first.
        centralised: trains on one node only, as conventional AT and Fast AT do.
        scaled_rate: the learning rate grows with the global batch, ``lr`` for every :data:`REFERENCE_BATCH`
            images (large-batch SGD: Goyal et al. 2017, Xie et al. 2019).
        extra_warmup: at rates above :data:`EXTRA_WARMUP_ABOVE` training begins with
            :data:`EXTRA_WARMUP_EPOCHS` additional warm-up epochs (DAT, supplement 4.1).
        split: the cost is of clean and adversarial images, each with its own batch norm.
        delay: default tau of eq. (3) of ConAdv.
    """

    oracle: Literal["none", "pgd", "fgsm"]
    optimizers: tuple[str, ...]
    centralised: bool = False
    scaled_rate: bool = False
    extra_warmup: bool = False
    split: bool = False
    delay: int = 0


LALR = ("lamb", "lalr-momentum")
"""The optimisers that are eq. (3) of DAT, the paper's first."""

REFERENCE_BATCH = 256
"""Images of the global batch that the rate of a method with ``scaled_rate`` is for."""

EXTRA_WARMUP_EPOCHS = 5
"""Number of extra warm-up epochs, before the job's own."""

EXTRA_WARMUP_ABOVE = 0.2
"""Learning rate above which `extra_warmup` adds epochs."""

METHODS: dict[str, Method] = {
    "plain": Method("none", (*LALR, "sgd", "lars")),
    "at": Method("pgd", ("sgd",), centralised=True),
    "fast-at": Method("fgsm", ("sgd",), centralised=True),
    "dat-pgd": Method("pgd", LALR, extra_warmup=True),
    "dat-fgsm": Method("fgsm", LALR, extra_warmup=True),
    "dat-pgd-without-lalr": Method("pgd", ("sgd",)),
    "dat-fgsm-without-lalr": Method("fgsm", ("sgd",)),
    "dat-lsgd": Method("pgd", ("sgd",), scaled_rate=True),
    "disadv": Method("fgsm", ("lars", "sgd", *LALR), split=True),
    "conadv": Method("fgsm", ("lars", "sgd", *LALR), split=True, delay=1),
}
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]
