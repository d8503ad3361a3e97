"""Compare a bound with a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Point:
    """One run, or several seeds of one, and the bound of it.

    Attributes:
        measured: the left-hand side, of each seed, (S,).
        bound: the theorem's right-hand side.
        inside: whether the weights stayed where the constants hold.
        still: the left-hand side of a run that never moves, if it has one.
        proved: where the theorem's right-hand side is not what its proof arrives at, that of the proof.
    """

    measured: Tensor
    bound: float
    inside: bool
    still: float | None = None
    proved: float | None = None


@dataclass
class Comparison:
    """Points along one setting; each list has one element a point.

    Attributes:
        of: the left-hand side of the bound, in words.
        along: what was varied.
        x: its values.
        measured, error: the mean over the seeds and its standard error, zero of a run without randomness.
        bound, inside, still, proved: as in ``Point``.
    """

    of: str
    along: str
    x: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    bound: list[float] = field(default_factory=list)
    inside: list[bool] = field(default_factory=list)
    still: list[float] = field(default_factory=list)
    proved: list[float] = field(default_factory=list)

    def add(self, x: float, point: Point) -> None:
        """One more."""
        measured = point.measured
        self.x.append(x)
        self.measured.append(measured.mean().item())
        self.error.append((measured.std() / len(measured) ** 0.5).item() if len(measured) > 1 else 0.0)
        self.bound.append(point.bound)
        self.inside.append(point.inside)
        if point.still is not None:
            self.still.append(point.still)
        if point.proved is not None:
            self.proved.append(point.proved)

    @property
    def ratios(self) -> list[float]:
        """Bound over measurement: below 1, the measurement is above the bound."""
        return _over(self.bound, self.measured)

    @property
    def violated(self) -> list[bool]:
        """Where the measurement is above the bound by more than twice its standard error."""
        return self.above(self.bound)

    @property
    def telling(self) -> list[bool]:
        """Where the bound lies below a run that never moves, so that such a run would break it."""
        return (
            [bound < still for bound, still in zip(self.bound, self.still, strict=True)] if self.still else []
        )

    def above(self, bound: Sequence[float]) -> list[bool]:
        """Where the measurement is above, and the assumptions hold."""
        values = zip(self.measured, self.error, bound, self.inside, strict=True)
        return [inside and measured - 2 * error > most for measured, error, most, inside in values]

    def summary(self, name: str) -> dict[str, float]:
        """Numbers for the report: how close the bound comes, and how often it is broken."""
        found: dict[str, float] = {
            f"{name}_least_ratio": min(self.ratios),
            f"{name}_largest_ratio": max(self.ratios),
            f"{name}_violated": sum(self.violated),
            f"{name}_outside": len(self.inside) - sum(self.inside),
        }
        if self.still:
            found[f"{name}_telling"] = sum(self.telling)
        if self.proved:
            found[f"{name}_least_ratio_proved"] = min(_over(self.proved, self.measured))
            found[f"{name}_violated_proved"] = sum(self.above(self.proved))
        return found


def compare(of: str, along: str, values: Sequence[float], point: Callable[[float], Point]) -> Comparison:
    """The points of some values.

    Args:
        of: the left-hand side of the bound, in words.
        along: what is varied.
        values: of it.
        point: runs with one of them.
    """
    comparison = Comparison(of, along)
    for value in values:
        comparison.add(value, point(value))
    return comparison


def _over(bound: Sequence[float], measured: Sequence[float]) -> list[float]:
    return [b / m for b, m in zip(bound, measured, strict=True)]
