"""The run folder: settings, environment, metrics, checkpoints and the result of one run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from hpcdat import __version__
from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.config.job_file import JobError, read_evaluation_job, read_job, write_job
from hpcdat.errors import InputError, shorten
from hpcdat.storage.atomic_files import append_text, write_text
from hpcdat.storage.changed_settings import compare_settings
from hpcdat.storage.evaluated import Concluded, WeightsResult
from hpcdat.storage.folder_lock import lock_folder
from hpcdat.storage.follower import Follower

if TYPE_CHECKING:
    from hpcdat.storage.checkpoint_format import Checkpoint
    from hpcdat.storage.checkpoint_rotation import Checkpoints

State = Literal["new", "unfinished", "finished"]
ResultT = TypeVar("ResultT", bound=Concluded)


class RunError(InputError):
    """A run folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Result(Concluded):
    """The result of a run, as its table shows it: what its own job measured, and other evaluations.

    Attributes:
        method: name of the method in the DAT paper.
        seed: the job's seed.
        p, q: number of nodes, and of workers per node.
        batches: number of batches per step; fewer than workers if some workers attack for others.
        batch: number of images per batch.
        communication: C, median seconds per epoch; None before the first epoch is done.
        total: T, median seconds per epoch, communication included; None as above.
        exchange: description of protocol and bits.
        megabytes: MiB that all workers together send per iteration, computed; None as above.
        chosen_on_test: whether the weights were chosen by their RA on the test images.
        images_per_second: images that all workers together train on, median of the epochs; None as above.
        gpu_wh: energy of the training on all GPUs, watt-hours; None if it was not measured in all epochs.
        package_wh, dram_wh: likewise of the processors and the memory of all nodes.
        flops: floating-point operations of the training on all workers, attacks and updates; None if they
            were not counted in all epochs.
    """

    method: str
    seed: int
    p: int
    q: int
    batches: int
    batch: int
    communication: float | None
    total: float | None
    exchange: str
    megabytes: float | None
    chosen_on_test: bool = False
    images_per_second: float | None = None
    gpu_wh: float | None = None
    package_wh: float | None = None
    dram_wh: float | None = None
    flops: int | None = None


RESULT_ADAPTER = TypeAdapter(Result)
"""Reads and validates the result.json of a run."""
WEIGHTS_RESULT_ADAPTER = TypeAdapter(WeightsResult)
"""Reads and validates the result.json of an evaluation of given weights."""


class RunFolder:
    """The folder of a run and the files in it.

    Args:
        path: the job's ``run_dir``.

    Attributes:
        followers: are given the metrics that :meth:`log` writes.
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
        self.tracking_file = path / "trackers.txt"
        self.followers: list[Follower] = []
        self.weights_file = path / "given-weights.json"

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""
        # Imported here, so that a table of results does not wait for torch.
        from hpcdat.storage.checkpoint_rotation import Checkpoints

        return Checkpoints(self.path / "checkpoints")

    @property
    def is_evaluation(self) -> bool:
        """Whether the folder is of an evaluation of given weights, not of a training run."""
        return self.weights_file.exists()

    def contents(self) -> list[Path]:
        """The files in the folder, without those that are there before a run or evaluation begins."""
        # Hidden files are left over from killed writes; hpcdat submit has written the Slurm folder.
        return [f for f in self.path.iterdir() if not f.name.startswith(".") and f != self.slurm_folder]

    def begin(self, job: Job, environment: dict[str, Any], *, overwrite: bool) -> State:
        """Create the folder, or prepare to resume the run in it; permitted changes of settings are printed.

        Args:
            job: the resolved job.
            environment: description of what this start runs on.
            overwrite: remove an earlier run in this folder.

        Returns:
            Whether the run is new, unfinished (it can resume from a checkpoint) or finished.

        Raises:
            RunError: the folder contains other files, or a run with other settings.
            InputError: another process is training in it.
        """
        try:
            # Held until this process exits.
            self._lock = lock_folder(self.path)
        except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise RunError(f"run_dir {self.path} cannot be created: {error.strerror}") from None
        changed: list[str] = []
        contents = self.contents()
        if self.is_evaluation:
            raise RunError(
                f"run_dir {self.path} holds an evaluation of given weights, not a training run: choose "
                "another folder"
            )
        # While this file exists, the earlier run may have been removed in part.
        removing = self.path / ".overwrite"
        if contents and not (self.job_file.exists() or removing.exists()):
            raise RunError(f"run_dir {self.path} contains files that are not a run: choose another folder")
        if removing.exists() or (contents and overwrite):
            removing.touch()
            for file in contents:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            removing.unlink()
        elif self._never_trained():
            # For example, its pretrained weights were missing. The exchange is chosen again.
            self.choice_file.unlink(missing_ok=True)
        elif contents:
            changed = self._check_same(job)
        if self.metrics("finished"):
            return "finished"
        if changed:
            print(f"resuming with changed settings: {', '.join(changed)}", flush=True)
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
        for follower in self.followers:
            follower.logged(metrics)

    def saved(self) -> None:
        """Take note that a checkpoint to resume from has been written."""
        for follower in self.followers:
            follower.saved()

    def metrics_bytes(self) -> int:
        """Length of the metrics file in bytes."""
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def truncate_metrics(self, size: int) -> None:
        """Truncate the metrics file, whose last lines belong to steps that will be repeated."""
        if self.metrics_bytes() > size:
            with self.metrics_file.open("r+b") as file:
                file.truncate(size)

    def metrics(self, event: str) -> list[dict[str, Any]]:
        """The metrics of one kind of event, in the order in which they were written.

        Raises:
            RunError: the file is damaged.
        """
        return [line for line in self.lines() if line["event"] == event]

    def lines(self) -> list[dict[str, Any]]:
        """All metrics, in the order in which they were written.

        Raises:
            RunError: the file is damaged.
        """
        if not self.metrics_file.exists():
            return []
        try:
            # An unterminated line was being written when the run was killed.
            complete = self.metrics_file.read_text().split("\n")[:-1]
            lines = [json.loads(line) for line in complete]
            if not all(isinstance(line, dict) and "event" in line for line in lines):
                raise ValueError("a line without event")
            return lines
        except (OSError, ValueError) as error:
            raise RunError(f"{self.metrics_file} cannot be read: {error!r}") from None

    def checkpoint_of_result(self, job: Job) -> Checkpoint:
        """The checkpoint to evaluate: the best one if early stopping chooses the weights, else the newest.

        Raises:
            CheckpointError: there is no readable one.
        """
        if job.early_stopping.chooses_weights and self.checkpoints.best_file.exists():
            return self.checkpoints.best()
        return self.newest_checkpoint()

    def newest_checkpoint(self) -> Checkpoint:
        """The newest readable checkpoint.

        Raises:
            CheckpointError: there is none.
        """
        return self.checkpoints.newest(lambda line: print(line, file=sys.stderr))

    def environment(self) -> dict[str, Any]:
        """The environment of the training, recorded at its latest start.

        Raises:
            RunError: the record is missing or damaged.
        """
        try:
            environment: dict[str, Any] = json.loads(self.environment_file.read_text())
            return environment
        except (OSError, ValueError) as error:
            raise RunError(f"{self.environment_file} cannot be read: {error}") from None

    def write_result(self, result: Concluded, table: str) -> None:
        """Write the result as JSON and as a Markdown table."""
        write_text(self.table_file, table + "\n")
        write_text(self.result_file, json.dumps(asdict(result), indent=2) + "\n")

    def read_result(self) -> Result:
        """The result of a finished or evaluated run.

        Raises:
            RunError: there is none yet.
        """
        self._check_training()
        return self._read_result(RESULT_ADAPTER)

    def read_any_result(self) -> Result | WeightsResult:
        """The result of a run, or of an evaluation of given weights.

        Raises:
            RunError: there is none yet.
        """
        return self.read_weights_result() if self.is_evaluation else self.read_result()

    def read_weights_result(self) -> WeightsResult:
        """The result of an evaluation of given weights.

        Raises:
            RunError: there is none yet.
        """
        return self._read_result(WEIGHTS_RESULT_ADAPTER)

    def _read_result(self, adapter: TypeAdapter[ResultT]) -> ResultT:
        try:
            return adapter.validate_json(self.result_file.read_bytes())
        except FileNotFoundError:
            if not self.job_file.exists():
                raise RunError(f"{self.path} is not the folder of a run: it has no job.yaml") from None
            raise RunError(
                f"{self.path} has no result yet: run `hpcdat evaluate {self.path}` first"
            ) from None
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise RunError(f"{self.result_file} cannot be read: {problems}{self._writer()}") from None
        except OSError as error:
            raise RunError(f"{self.result_file} cannot be read: {error}") from None

    def read_job(self, settings: list[str]) -> Job:
        """Read the job of this training run; otherwise as :meth:`read_evaluation_job`.

        Raises:
            RunError: also if the folder is of an evaluation of given weights.
        """
        self._check_training()
        job = self.read_evaluation_job(settings)
        assert isinstance(job, Job)
        return job

    def _check_training(self) -> None:
        if self.is_evaluation:
            raise RunError(f"{self.path} holds an evaluation of given weights, not a training run")

    def read_evaluation_job(self, settings: list[str]) -> EvaluationJob:
        """Read the job of this run, or of this evaluation of given weights, to evaluate the model.

        What the job did not set of the evaluation's attack follows from the new settings: the step size, the
        norm from ``attack.norm``, and the ball from ``evaluation.preset``.

        Args:
            settings: ``key=value`` texts that override the job's.

        Raises:
            RunError: the folder is not a run's, or images of the training would become test images.
            JobError: a setting is invalid.
        """
        if not self.job_file.exists():
            raise RunError(f"{self.path} is not the folder of a run: it has no job.yaml")
        try:
            before = self._read_own_job()
        except JobError as error:
            raise RunError(f"{error}{self._writer()}") from None
        job = self._read_own_job([*_left_out(before, settings), *settings])
        split = (job.data.test_fraction, job.data.test_seed)
        if job.data.test_fraction and split != (before.data.test_fraction, before.data.test_seed):
            raise RunError(
                "data.test_fraction, data.test_seed: not to be changed after training, which has seen images "
                "that would now be test images; set data.root or data.test to others"
            )
        return job

    def _read_own_job(self, settings: Sequence[str] = ()) -> EvaluationJob:
        read = read_evaluation_job if self.is_evaluation else read_job
        return read(self.job_file, settings)

    def _writer(self) -> str:
        """The hpcdat that wrote the run, for the end of a message; empty if that is unknown or this one."""
        try:
            environment = self.environment()
            version, commit = environment["packages"]["hpcdat"], environment.get("git_commit")
        except (RunError, KeyError, TypeError):
            return ""
        written_by = f"hpcdat {shorten(version)}" + (f" of commit {shorten(commit)}" if commit else "")
        return f" (the run was written by {written_by}; this is hpcdat {__version__})"

    def _never_trained(self) -> bool:
        """Whether a run started but ended before its first checkpoint and metrics."""
        trained = self.checkpoints.exist() or self.metrics_file.exists()
        return self.environment_file.exists() and not trained

    def _check_same(self, job: Job) -> list[str]:
        """The changed settings, all of which may change.

        Raises:
            RunError: a setting changed that may not, or the old settings cannot be read.
        """
        advice = "choose another run_dir, or start over with --overwrite"
        try:
            changed, refused = compare_settings(self.job_file, job, finished=bool(self.metrics("finished")))
        except JobError as error:
            raise RunError(f"{error}{self._writer()}\n{advice}") from None
        if refused:
            raise RunError(
                f"the run in {self.path} has other settings ({', '.join(refused)}): "
                f"use the same settings to resume it, {advice}"
            )
        return changed


def _left_out(before: EvaluationJob, settings: Sequence[str]) -> list[str]:
    """Settings that make what the job left out of its evaluation follow from others again."""
    keys = ["step_size"] if before.evaluation.has_usual_step_size else []
    if isinstance(before, Job) and before.evaluation.norm == before.attack.norm:
        keys.append("norm")
    if any(setting.partition("=")[0].strip() == "evaluation.preset" for setting in settings):
        keys += ["norm", "eps", "autoattack"]
    return [f"evaluation.{key}=null" for key in keys]
