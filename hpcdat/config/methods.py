"""The training methods, by their names in the DAT and the ConAdv paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class Method:
    """The meaning of a method's name in the DAT paper (Sec. 6.1) or the ConAdv paper (Sec. 3).

    Attributes:
        oracle: inner maximisation oracle of (A1): several steps, one step, or none.
        optimizers: allowed optimisers, the default first; ``lamb`` is LALR, eq. (3) of DAT.
        centralised: trains on one node only, as conventional AT and Fast AT do.
        scaled_rate: the learning rate grows with the global batch, ``lr`` for every 256 images
            (large-batch SGD: Goyal et al. 2017, Xie et al. 2019).
        split: the cost is of clean and adversarial images, each with its own batch norm.
        delay: default tau of eq. (3) of ConAdv.
    """

    oracle: Literal["none", "pgd", "fgsm"]
    optimizers: tuple[str, ...]
    centralised: bool = False
    scaled_rate: bool = False
    split: bool = False
    delay: int = 0


METHODS: dict[str, Method] = {
    "plain": Method("none", ("lamb", "sgd", "lars")),
    "at": Method("pgd", ("sgd",), centralised=True),
    "fast-at": Method("fgsm", ("sgd",), centralised=True),
    "dat-pgd": Method("pgd", ("lamb",)),
    "dat-fgsm": Method("fgsm", ("lamb",)),
    "dat-pgd-without-lalr": Method("pgd", ("sgd",)),
    "dat-fgsm-without-lalr": Method("fgsm", ("sgd",)),
    "dat-lsgd": Method("pgd", ("sgd",), scaled_rate=True),
    "disadv": Method("fgsm", ("lars", "sgd", "lamb"), split=True),
    "conadv": Method("fgsm", ("lars", "sgd", "lamb"), split=True, delay=1),
}
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]
