"""Options that several commands share, and the parsing of those of ``hpcdat evaluate``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from hpcdat.cli.worker_process import reported_once
from hpcdat.config.complaints import setting_names
from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.config.paths import expand
from hpcdat.config.scalars import fraction, number
from hpcdat.errors import InputError, shorten
from hpcdat.evaluation.request import FIGURE_3_RADII, FIGURE_3_STEPS, EvaluationRequest, SweepKind

T = TypeVar("T", int, float)


def path(text: str) -> Path:
    """Read the path of an argument or option, which the shell may not have expanded, as in ``--out=~/x``.

    A file whose own name has a dollar sign, as a shell's ``*`` may find it, is taken as it is.

    Raises:
        typer.Exit: a variable in it is not set; the message is on stderr.
    """
    if not text.startswith("~") and os.path.exists(text):  # noqa: PTH110  (Path.exists fails for long names)
        return Path(text)

    def read() -> Path:
        try:
            return Path(expand(text))
        except ValueError as error:
            raise InputError(f"{shorten(repr(text))}: {error}") from None

    return reported_once(read)


def complete_setting(incomplete: str) -> list[str]:
    """The settings whose names begin with what has been typed: ``attack.eps=``."""
    return [f"{name}=" for name in setting_names(Job) if name.startswith(incomplete)]


JobArgument = Annotated[
    Path, typer.Argument(metavar="JOB.yaml", help="The job.", show_default=False, parser=path)
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of the run.", show_default=False, parser=path)
]
SourceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|JOB.yaml",
        help="Folder of the run, or a job whose model has weights.",
        show_default=False,
        parser=path,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Override settings of the job.",
        show_default=False,
        autocompletion=complete_setting,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting: --set attack.eps=4/255.",
        autocompletion=complete_setting,
    ),
]
WorkersOption = Annotated[
    int,
    typer.Option("-np", "--workers", min=1, help="Start this many workers on this machine."),
]


def read_request(
    autoattack: str | None,
    sweep_eps: str | None,
    sweep_steps: str | None,
    job: EvaluationJob,
    *,
    sweep: SweepKind = "plain",
    figure_3: bool = False,
) -> EvaluationRequest:
    """Parse the options of ``hpcdat evaluate``.

    Args:
        autoattack: a number of images, or ``all``; None: as the job says.
        sweep_eps: radii separated by commas, such as ``0,2/255,4/255``.
        sweep_steps: numbers of steps separated by commas.
        job: resolved.
        sweep: kind of the sweeps.
        figure_3: sweep over the radii and steps of the DAT paper's Figure 3, unless others are given.

    Raises:
        InputError: an option cannot be parsed or is out of range.
    """
    images: int | Literal["all"] | None = job.evaluation.autoattack or None
    if autoattack == "all":
        images = "all"
    elif autoattack is not None:
        count = number(autoattack)
        if not isinstance(count, int) or count < 1:
            raise InputError(f"--autoattack {shorten(autoattack)}: expected a number of images, or all")
        images = count
    radii = _numbers(
        sweep_eps,
        fraction,
        "--sweep-eps",
        "radii in [0, 1] pixel units, separated by commas, such as 0,2/255,4/255",
        lambda eps: 0 <= eps <= (1 if job.evaluation.norm == "linf" else float("1e4")),
    )
    steps = _numbers(
        sweep_steps, _whole, "--sweep-steps", "numbers of steps, separated by commas", lambda n: n > 0
    )
    if figure_3:
        radii = radii or tuple(factor * job.evaluation.resolved_eps for factor in FIGURE_3_RADII)
        steps = steps or FIGURE_3_STEPS
        if job.evaluation.norm == "linf":
            radii = tuple(eps for eps in radii if eps <= 1)
    bound = job.evaluation.fast_bound
    return EvaluationRequest(autoattack=images, fast_bound=bound, radii=radii, steps=steps, sweep=sweep)


def _whole(text: str) -> int:
    value = number(text.strip())
    if not isinstance(value, int):
        raise ValueError
    return value


def _numbers(
    text: str | None, parse: Callable[[str], T], option: str, expected: str, is_valid: Callable[[T], bool]
) -> tuple[T, ...]:
    """The numbers without duplicates, in increasing order."""
    if text is None:
        return ()
    try:
        numbers = [parse(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(map(is_valid, numbers)):
        raise InputError(f"{option} {shorten(text)}: expected {expected}")
    return tuple(sorted(set(numbers)))
