"""What ``hpcdat submit --command evaluate`` (or ``certify``) puts into the queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import typer

from hpcdat.cli.certify import certification_settings, certify
from hpcdat.cli.evaluate import evaluate
from hpcdat.cli.options import read_request
from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.errors import InputError
from hpcdat.slurm.submit import Command
from hpcdat.storage.evaluation_folder import check_given, open_for_evaluation

CommandName = Literal["train", "evaluate", "certify"]
COMMANDS: dict[str, Callable[..., None]] = {"evaluate": evaluate, "certify": certify}
"""Commands that can be submitted in addition to ``train``."""
UsageError: Any = typer.BadParameter.__base__
"""Of click, or of typer's own copy of it."""
CERTIFY_OPTIONS = ("sigma", "n0", "n", "alpha", "every")
"""Options of ``hpcdat certify`` that are settings of the job."""


def read_evaluation(
    name: CommandName, source: Path, settings: Sequence[str], arguments: Sequence[str]
) -> tuple[EvaluationJob, Command]:
    """Read the evaluation that is to be submitted, and check what would fail in the queue.

    Args:
        name: of the command.
        source: the folder of a run or of an evaluation, or a job file whose model has weights.
        settings: ``key=value`` texts that override the job's.
        arguments: further ones, and the command's own options, such as ``--autoattack 1000``.

    Returns:
        The resolved job, whose ``run_dir`` is the folder of the results, and the command.

    Raises:
        InputError: an argument, the job or its weights cannot be used.
    """
    parsed = _parse(name, source, arguments)
    if parsed["workers"] != 1:
        raise InputError("-np: not allowed in a script; --nodes and --workers-per-node start the workers")
    positional: list[str] = parsed["settings"] or []
    settings = [*settings, *positional]
    own = (
        [] if name == "evaluate" else certification_settings(**{key: parsed[key] for key in CERTIFY_OPTIONS})
    )
    folder, job = open_for_evaluation(source, [*own, *settings], attacked=name == "evaluate")
    if not isinstance(job, Job) and job.model.pretrained is not None:
        check_given(job.model.pretrained)
    if name == "evaluate":
        given = (parsed["autoattack"], parsed["sweep_eps"], parsed["sweep_steps"])
        read_request(*given, job, sweep=parsed["sweep"], figure_3=parsed["figure_3"])
    options = tuple(argument for argument in arguments if argument not in positional)
    is_folder = source.is_dir()
    command = Command(name, folder.path if is_folder else None, tuple(settings) if is_folder else (), options)
    return job.model_copy(update={"run_dir": folder.path}), command


def _parse(name: CommandName, source: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The arguments by name, as the command itself reads them."""
    own = typer.Typer(add_completion=False)
    own.command()(COMMANDS[name])
    try:
        context = typer.main.get_command(own).make_context(f"hpcdat {name}", [str(source), *arguments])
    except UsageError as error:
        raise InputError(f"--command {name}: {error.format_message()}") from None
    return context.params
