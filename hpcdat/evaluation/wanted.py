"""What is to be measured beside TA and RA, read from the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from hpcdat.errors import InputError
from hpcdat.job import Job, fraction

T = TypeVar("T", int, float)


@dataclass(frozen=True)
class Wanted:
    """Measurements beside TA and RA.

    Attributes:
        autoattack: images for AutoAttack, of each class as many; None: none.
        radii: of a sweep over eps, [0, 1] units, increasing.
        steps: of a sweep over steps, increasing.
    """

    autoattack: int | Literal["all"] | None = None
    radii: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()


def read_wanted(autoattack: str | None, sweep_eps: str | None, sweep_steps: str | None, job: Job) -> Wanted:
    """Read the options of ``hpcdat evaluate``.

    Args:
        autoattack: a number of images, or ``all``.
        sweep_eps: radii with commas, such as ``0,2/255,4/255``.
        sweep_steps: numbers of steps with commas.
        job: that they are for.

    Raises:
        InputError: one of them cannot be read or makes no sense.
    """
    images = autoattack
    if images not in (None, "all"):
        if not images.isdecimal() or int(images) == 0:
            raise InputError(f"--autoattack {autoattack}: expected a number of images, or all")
        images = int(images)
    radii = _numbers(
        sweep_eps,
        lambda text: float(fraction(text)),
        "--sweep-eps",
        "radii in [0, 1] pixel units with commas, such as 0,2/255,4/255",
        lambda eps: 0 <= eps <= (1 if job.attack.norm == "linf" else float("1e4")),
    )
    steps = _numbers(sweep_steps, int, "--sweep-steps", "numbers of steps with commas", lambda n: n > 0)
    return Wanted(images, radii, steps)


def _numbers(
    text: str | None, read: Callable[[str], T], option: str, expected: str, fits: Callable[[T], bool]
) -> tuple[T, ...]:
    """Different numbers in increasing order."""
    if text is None:
        return ()
    try:
        numbers = [read(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(map(fits, numbers)):
        raise InputError(f"{option} {text}: expected {expected}")
    return tuple(sorted(set(numbers)))
