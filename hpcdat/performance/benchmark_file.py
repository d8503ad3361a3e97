"""The file that every benchmark writes with ``--json``, and ``hpcdat report --benchmark`` reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpcdat.config.yaml_text import dotted
from hpcdat.errors import InputError
from hpcdat.storage.atomic_files import write_output

Value = str | bool | int | float | None
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Row(BaseModel):
    """One measurement.

    Attributes:
        parameters: what was measured: collective, protocol, bits, bytes and so on. Rows of two files are of
            the same thing if all of these are equal.
        seconds: of each repetition after the warm-up, of the slowest worker, in the order of measurement.
        per_round: how many repetitions followed one another directly. Between these rounds other rows were
            measured. The last round may have fewer.
        figures: what follows from them or was counted in the same repetitions: bandwidths in bytes/s, errors,
            bytes sent. None: could not be measured, which is not 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: dict[str, Value]
    seconds: Annotated[list[Seconds], Field(min_length=1)]
    per_round: Annotated[int, Field(ge=1)] = 1
    figures: dict[str, float | None] = {}

    @property
    def medians_of_rounds(self) -> list[float]:
        """In seconds, in the order of measurement."""
        starts = range(0, len(self.seconds), self.per_round)
        return [median(self.seconds[start : start + self.per_round]) for start in starts]

    @property
    def median(self) -> float:
        """In seconds."""
        return median(self.seconds)

    @property
    def p99(self) -> float:
        """The smallest of the measured seconds that 99 % of the repetitions did not exceed."""
        return sorted(self.seconds)[math.ceil(0.99 * len(self.seconds)) - 1]

    @property
    def variation(self) -> float | None:
        """Coefficient of variation, standard deviation over mean; None for one repetition."""
        if len(self.seconds) < 2 or not any(self.seconds):
            return None
        return stdev(self.seconds) / fmean(self.seconds)


class BenchmarkFile(BaseModel):
    """What a benchmark measured, and on what.

    Attributes:
        format, version: of this file.
        benchmark: its name, that of the script in ``benchmarks/``.
        date: of the measurement, ISO 8601 with the offset to UTC.
        environment: that of :func:`hpcdat.distributed.environment.describe_environment`.
        settings: those of the whole run, such as workers, device and repetitions.
        rows: the measurements.
        ratios: those that the benchmark's help explains. None: could not be measured; ``notes`` says why.
        notes: what a reader of the numbers has to know: a machine that was not quiet, counters that could not
            be read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["hpcdat benchmark"] = "hpcdat benchmark"
    version: Literal[1] = 1
    benchmark: Annotated[str, Field(min_length=1)]
    date: str
    environment: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row]
    ratios: dict[str, float | None] = {}
    notes: list[str] = []

    @classmethod
    def of(
        cls,
        benchmark: str,
        environment: dict[str, Any],
        settings: dict[str, Any],
        rows: Sequence[Row],
        ratios: dict[str, float | None] | None = None,
        notes: Sequence[str] = (),
    ) -> BenchmarkFile:
        """The file of a measurement that has just ended."""
        now = datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
        return cls(
            benchmark=benchmark,
            date=now,
            environment=environment,
            settings=settings,
            rows=list(rows),
            ratios=ratios or {},
            notes=list(notes),
        )

    def write(self, path: Path) -> None:
        """Save it as JSON.

        Raises:
            InputError: it cannot be written.
        """
        write_output(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> BenchmarkFile:
        """Read a file written by :meth:`write`.

        Raises:
            InputError: it cannot be read, or is not a benchmark file.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = dotted(first["loc"])
            raise InputError(f"{path} is not a benchmark file: {key and f'{key}: '}{first['msg']}") from None
        except UnicodeDecodeError:
            raise InputError(f"{path} is not a benchmark file: it is not text") from None
