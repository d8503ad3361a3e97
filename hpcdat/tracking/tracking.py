"""Feed the trackers of a run, in threads of their own that neither stop nor delay it."""

from __future__ import annotations

import importlib
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from operator import methodcaller
from typing import Any, NamedTuple

from hpcdat.config.job import Job
from hpcdat.config.sections import by_name
from hpcdat.errors import InputError, first_line, shorten
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.folder_lock import lock_folder
from hpcdat.storage.run_folder import Result, RunFolder
from hpcdat.tracking.curves import point_of, results_of
from hpcdat.tracking.tracker import Point, Setting, TrackedRun, Tracker

SECONDS_TO_CLOSE = 20.0
"""How long the end of a run waits for all its trackers together."""

OFFLINE = {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "offline",
}
"""Environment variables, unless the user has set them: no network, no statistics of use, short waits."""


class Library(NamedTuple):
    """A tracker's library.

    Attributes:
        module: imported by its tracker.
        tracker: module and class in this package.
        package: to install.
    """

    module: str
    tracker: tuple[str, str]
    package: str


LIBRARIES = {
    "tensorboard": Library("tensorboard", ("tensorboard_tracker", "TensorBoardTracker"), "tensorboard"),
    "mlflow": Library("mlflow", ("mlflow_tracker", "MlflowTracker"), "mlflow-skinny"),
    "wandb": Library("wandb", ("wandb_tracker", "WandbTracker"), "wandb"),
}
"""By the names in a job's ``trackers``."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the trackers of a job can be imported.

    Raises:
        InputError: a library is not installed or cannot be imported.
    """
    for name in names:
        _load(name)


def _load(name: str) -> type[Any]:
    """The class of a tracker."""
    for variable, value in OFFLINE.items():
        os.environ.setdefault(variable, value)
    library = LIBRARIES[name]
    module, kind = library.tracker
    try:
        found: type[Any] = getattr(importlib.import_module(f"hpcdat.tracking.{module}"), kind)
        return found
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == library.module:
            why = "is not installed"
        else:
            why = f"cannot be imported ({shorten(first_line(error))})"
    raise InputError(f"trackers: {name} {why}: pip install {library.package}, or leave it out: trackers=[]")


class Tracking:
    """The trackers of a run, on the worker that writes its folder.

    Args:
        job: resolved.
        folder: of the run.
        names: the trackers; none on the other workers.

    Raises:
        InputError: as :func:`check_trackers`.
    """

    def __init__(self, job: Job, folder: RunFolder, names: Sequence[str]) -> None:
        self._job, self._folder = job, folder
        self._kinds = {name: _load(name) for name in names}
        self._feeds: list[_Feed] = []
        self._held: list[Point] = []
        self._given: set[tuple[str, int]] = set()
        self._finished = False

    def begin(self) -> None:
        """Open the trackers, and give them what the run has recorded so far.

        Call this when the metrics have been truncated to those of the checkpoint that the run resumes from.

        Raises:
            InputError, OSError: the run's records cannot be read or written.
        """
        if not self._kinds:
            return
        run = TrackedRun(self._folder.path, self._run_id(), settings_of(self._job))
        points = [new for line in self._folder.lines() if (new := self._new_point(line))]
        self._feeds = [_Feed(name, kind(run)) for name, kind in self._kinds.items()]
        self._each(lambda tracker: tracker.begin(points))
        self._folder.followers.append(self)

    def logged(self, line: Mapping[str, Any]) -> None:
        """Take a line of the metrics.

        An epoch is held until a checkpoint has been written, after which it is not trained again.

        Args:
            line: as written.
        """
        point = self._new_point(line)
        if point is None:
            return
        self._held.append(point)
        # An evaluation gives the same values when it is repeated.
        if line["event"] == "evaluation" and len(self._held) == 1:
            self.saved()

    def saved(self) -> None:
        """Take note that all lines so far stay: a checkpoint has been written, or the run has ended."""
        points, self._held = self._held, []
        for point in points:
            self._each(methodcaller("add", point))

    def conclude(self, result: Result, *, finished: bool) -> None:
        """Record the result of the run.

        Args:
            result: of the run.
            finished: whether the run has ended.
        """
        assert result.epoch is not None  # of a run
        epoch = result.epoch
        self.saved()
        self._finished = finished
        self._each(lambda tracker: tracker.summarise(epoch, results_of(result)))

    def close(self) -> None:
        """Close the trackers; what one has not written after :data:`SECONDS_TO_CLOSE` stays unwritten."""
        if self in self._folder.followers:
            self._folder.followers.remove(self)
        finished = self._finished
        self._each(lambda tracker: tracker.close(finished=finished))
        deadline = time.monotonic() + SECONDS_TO_CLOSE
        for feed in self._feeds:
            feed.end(deadline)
        self._feeds = []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for feed in self._feeds:
            feed.put(call)

    def _new_point(self, line: Mapping[str, Any]) -> Point | None:
        """The point of a line, without values that the same epoch has had."""
        point = point_of(line)
        if point is None:
            return None
        values = {k: v for k, v in point.values.items() if (k, point.epoch) not in self._given}
        self._given |= {(name, point.epoch) for name in values}
        return Point(point.epoch, values) if values else None

    def _run_id(self) -> str:
        """The id of the run, from its folder."""
        file = self._folder.tracking_file
        if not file.exists():
            write_text(file, uuid.uuid4().hex + "\n")
        return file.read_text().strip()


def record_result(job: Job, folder: RunFolder, result: Result) -> None:
    """Give the result of a run to its trackers after a later evaluation, such as AutoAttack's.

    Args:
        job: of the evaluation, resolved.
        folder: of the run.
        result: of the run.

    Raises:
        InputError, OSError: the run's records cannot be read or written.
    """
    try:
        lock = lock_folder(folder.path)
    except InputError as error:
        # Its training writes the same files, and gives its trackers its result at its end.
        print(f"warning: the trackers do not get this result: {error}", file=sys.stderr, flush=True)
        return
    with lock, closing(Tracking(job, folder, job.trackers)) as tracking:
        tracking.begin()
        tracking.conclude(result, finished=bool(folder.metrics("finished")))


class _Feed:
    """A thread that makes the calls of one tracker, in order, until one fails."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[Tracker], None]) -> None:
        if not self._failed:
            self._calls.put(call)

    def end(self, deadline: float) -> None:
        self._calls.put(None)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"has not written everything within {SECONDS_TO_CLOSE:g} s")

    def _work(self) -> None:
        for call in iter(self._calls.get, None):
            if self._failed:
                continue
            try:
                call(self._tracker)
            except (Exception, SystemExit) as error:
                self._failed = True
                self._warn(f"failed and is not used any more: {shorten(first_line(error))}")

    def _warn(self, what: str) -> None:
        advice = "the run is not affected; its next start or evaluation records what is missing"
        print(f"warning: tracker {self._name} {what}; {advice}", file=sys.stderr, flush=True)


def settings_of(job: Job) -> dict[str, Setting]:
    """The settings of a job by dotted name, as trackers take them."""
    named = {key: value for key, (value, _) in by_name(job).items()}
    return {
        key: value if isinstance(value, bool | int | float | str) else "none" if value is None else str(value)
        for key, value in named.items()
    }
