"""The run folder: settings, environment, metrics, checkpoints and the result of one run."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError

from hpcdat.config.job import Job
from hpcdat.config.job_file import JobError, read_job, write_job
from hpcdat.config.sections import by_name
from hpcdat.errors import InputError
from hpcdat.storage.atomic_files import append_text, write_text
from hpcdat.storage.folder_lock import keep_others_out

if TYPE_CHECKING:
    from hpcdat.storage.checkpoint_format import Checkpoint
    from hpcdat.storage.checkpoint_rotation import Checkpoints

State = Literal["new", "unfinished", "finished"]


class RunError(InputError):
    """A run folder that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Result:
    """The end of a run, as its table shows it.

    Attributes:
        method: by its name in the DAT paper.
        seed: of the job.
        p, q: nodes, and workers a node.
        batches: of a step; fewer than workers where some attack for others.
        batch: images of each.
        images: test images.
        ta, ra: standard and robust test accuracy, in [0, 1].
        attack: the attack that RA was measured with, in words.
        communication: C, seconds an epoch, median; None before the first epoch is done.
        total: T, seconds an epoch, communication included, median; likewise.
        exchange: protocol and bits, in words.
        megabytes: MiB that all workers together send in an iteration, computed; likewise.
        epoch: epochs that were trained.
        aa, aa_images: robust accuracy under AutoAttack, in [0, 1], and the images it was measured on; None
            where it was not measured.
    """

    method: str
    seed: int
    p: int
    q: int
    batches: int
    batch: int
    images: int
    ta: float
    ra: float
    attack: str
    communication: float | None
    total: float | None
    exchange: str
    megabytes: float | None
    epoch: int
    aa: float | None = None
    aa_images: int | None = None


RESULT = TypeAdapter(Result)


class RunFolder:
    """The files of a run, each in its place.

    Args:
        path: the job's ``run_dir``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job_file = path / "job.yaml"
        self.environment_file = path / "environment.json"
        self.metrics_file = path / "metrics.jsonl"
        self.result_file = path / "result.json"
        self.table_file = path / "result.md"
        self.evaluation_file = path / "evaluation.json"
        self.outcomes_folder = path / "evaluation"
        self.choice_file = path / "exchange.json"
        self.certification_folder = path / "certification"
        self.slurm_folder = path / "slurm"

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""
        # They need torch, for which a table of results should not wait.
        from hpcdat.storage.checkpoint_rotation import Checkpoints

        return Checkpoints(self.path / "checkpoints")

    def begin(self, job: Job, environment: dict[str, Any], *, overwrite: bool) -> State:
        """Make the folder, or take up the run in it; settings that changed and may are told.

        Args:
            job: the resolved job.
            environment: of this start.
            overwrite: remove an earlier run of this folder.

        Returns:
            Whether the run is new, can go on from a checkpoint, or is finished already.

        Raises:
            RunError: the folder holds something else, or a run with other settings.
            InputError: another process trains in it.
        """
        try:
            # Until this process ends.
            self._lock = keep_others_out(self.path)
        except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise RunError(f"run_dir {self.path} cannot be made: {error.strerror}") from None
        changed: list[str] = []
        # Hidden files are those of a write that was killed; a script was there before its run.
        held = [f for f in self.path.iterdir() if not f.name.startswith(".") and f != self.slurm_folder]
        # As long as this file is there, what an earlier start was to remove may be there in part.
        removing = self.path / ".overwrite"
        if held and not (self.job_file.exists() or removing.exists()):
            raise RunError(f"run_dir {self.path} holds files that no run wrote: choose another folder")
        if removing.exists() or (held and overwrite):
            removing.touch()
            for file in held:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            removing.unlink()
        elif self._never_trained():
            # Such as one that was to start from weights that are not there; other settings choose anew.
            self.choice_file.unlink(missing_ok=True)
        elif held:
            changed = self._check_same(job)
        if self.metrics("finished"):
            return "finished"
        if changed:
            print(f"the run goes on with other settings: {', '.join(changed)}", flush=True)
        write_text(self.job_file, write_job(job))
        self.checkpoints.folder.mkdir(exist_ok=True)
        write_text(self.environment_file, json.dumps(environment, indent=2) + "\n")
        return "unfinished" if self.checkpoints.exist() else "new"

    def log(self, **metrics: Any) -> None:
        """Append one line to the metrics; it is on disk when this returns.

        Raises:
            OSError: it could not be written; names the file.
        """
        append_text(self.metrics_file, json.dumps(metrics) + "\n")

    def metrics_bytes(self) -> int:
        """Length of the metrics so far."""
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def forget_metrics_after(self, size: int) -> None:
        """Cut off the metrics of steps that will be done again."""
        if self.metrics_bytes() > size:
            with self.metrics_file.open("r+b") as file:
                file.truncate(size)

    def metrics(self, event: str) -> list[dict[str, Any]]:
        """The lines of one kind, in the order they were written.

        Raises:
            RunError: the file is damaged.
        """
        if not self.metrics_file.exists():
            return []
        try:
            # A line without its end was being written when the run was killed.
            whole = self.metrics_file.read_text().split("\n")[:-1]
            lines = [json.loads(line) for line in whole]
            return [line for line in lines if line["event"] == event]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.metrics_file} cannot be read: {error!r}") from None

    def checkpoint_of_result(self, job: Job) -> Checkpoint:
        """The checkpoint that an evaluation is of: the best if early stopping chooses it, else the newest.

        Raises:
            CheckpointError: there is none that is whole.
        """
        if job.early_stopping.chooses_weights and self.checkpoints.best_file.exists():
            return self.checkpoints.best()
        return self.newest_checkpoint()

    def newest_checkpoint(self) -> Checkpoint:
        """The newest checkpoint that is whole.

        Raises:
            CheckpointError: there is none.
        """
        return self.checkpoints.newest(lambda line: print(line, file=sys.stderr))

    def environment(self) -> dict[str, Any]:
        """What the training ran on, as it was recorded at its latest start.

        Raises:
            RunError: the record is missing or damaged.
        """
        try:
            environment: dict[str, Any] = json.loads(self.environment_file.read_text())
            return environment
        except (OSError, ValueError) as error:
            raise RunError(f"{self.environment_file} cannot be read: {error}") from None

    def write_result(self, result: Result, table: str) -> None:
        """Write the result as JSON and as a Markdown table."""
        write_text(self.table_file, table + "\n")
        write_text(self.result_file, json.dumps(asdict(result), indent=2) + "\n")

    def read_result(self) -> Result:
        """The result of a finished or evaluated run.

        Raises:
            RunError: there is none yet.
        """
        try:
            return RESULT.validate_json(self.result_file.read_bytes())
        except FileNotFoundError:
            if not self.job_file.exists():
                raise RunError(f"{self.path} is not the folder of a run: it has no job.yaml") from None
            raise RunError(
                f"{self.path} has no result yet: run `hpcdat evaluate {self.path}` first"
            ) from None
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise RunError(f"{self.result_file} cannot be read: {told}") from None
        except OSError as error:
            raise RunError(f"{self.result_file} cannot be read: {error}") from None

    def read_job(self, settings: list[str]) -> Job:
        """The job of this run.

        The length of a step of the evaluation's attack follows other steps and another radius where it
        was left out when the run was made.

        Raises:
            RunError: the folder is not a run's.
            JobError: a setting is wrong.
        """
        if not self.job_file.exists():
            raise RunError(f"{self.path} is not the folder of a run: it has no job.yaml")
        if read_job(self.job_file).evaluation.has_usual_step_size:
            settings = ["evaluation.step_size=null", *settings]
        return read_job(self.job_file, settings)

    def _never_trained(self) -> bool:
        """Whether a run ended before its first checkpoint, so that there is nothing to go on with."""
        began = self.checkpoints.exist() or self.metrics_file.exists()
        return self.environment_file.exists() and not began

    def _check_same(self, job: Job) -> list[str]:
        """The settings that have changed and may."""
        advice = "choose another run_dir, or start over with --overwrite"
        try:
            before = by_name(read_job(self.job_file))
        except JobError as error:
            raise RunError(f"{error}\n{advice}") from None
        changed = [
            (f"{key}: {before[key][0]} -> {value}", may_change)
            for key, (value, may_change) in by_name(job).items()
            if before[key][0] != value
        ]
        refused = [text for text, may_change in changed if not may_change]
        if refused:
            raise RunError(
                f"the run in {self.path} has other settings ({', '.join(refused)}): "
                f"use the same to go on with it, {advice}"
            )
        return [text for text, _ in changed]
