"""MLflow: files in the run's folder, or the server of ``MLFLOW_TRACKING_URI``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from hpcdat.tracking.tracker import Point, TrackedRun

EXPERIMENT = "hpcdat"
"""The experiment of all runs, unless ``MLFLOW_EXPERIMENT_NAME`` names another."""
TAG = "hpcdat.run"
"""Tag of MLflow's run by which later starts find it."""
MOST_PER_CALL = 1000
"""Metrics that MLflow takes in one call."""
MOST_PARAMETERS_PER_CALL = 100
"""Parameters that MLflow takes in one call."""


class MlflowTracker:
    """Writes RUN/mlflow, or to a server.

    MLflow cannot remove points. So a value of an epoch that is trained again, which differs in its seconds
    only, is not recorded a second time.

    Args:
        run: to record.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._recorded: dict[str, dict[int, float]] = {}

    def begin(self, points: Sequence[Point]) -> None:  # noqa: D102
        local = (self._run.folder / "mlflow").resolve().as_uri()
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or local)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([number], f"tags.`{TAG}` = '{self._run.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            for metric in found[0].data.metrics:
                history = self._client.get_metric_history(self._id, metric)
                self._recorded[metric] = {one.step: one.value for one in history}
        else:
            made = self._client.create_run(number, tags={TAG: self._run.id}, run_name=self._run.folder.name)
            self._id = made.info.run_id
            parameters = [Param(key, str(value)) for key, value in self._run.settings.items()]
            for first in range(0, len(parameters), MOST_PARAMETERS_PER_CALL):
                self._client.log_batch(self._id, params=parameters[first : first + MOST_PARAMETERS_PER_CALL])
        self._record({(name, point.epoch): value for point in points for name, value in point.values.items()})

    def add(self, point: Point) -> None:  # noqa: D102
        self._record({(name, point.epoch): value for name, value in point.values.items()})

    def summarise(self, epoch: int, results: Mapping[str, float]) -> None:  # noqa: D102
        # The newest value counts; an earlier evaluation may have had other settings.
        for name, value in results.items():
            if self._recorded.get(name, {}).get(epoch) != value:
                self._recorded.pop(name, None)
        self._record({(name, epoch): value for name, value in results.items()})

    def close(self, *, finished: bool) -> None:  # noqa: D102
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")

    def _record(self, values: Mapping[tuple[str, int], float]) -> None:
        """Record values by curve and epoch, without those that are there."""
        now = int(1000 * time.time())
        metrics = []
        for (name, epoch), value in values.items():
            if epoch not in self._recorded.setdefault(name, {}):
                self._recorded[name][epoch] = value
                metrics.append(Metric(name, value, now, epoch))
        for first in range(0, len(metrics), MOST_PER_CALL):
            self._client.log_batch(self._id, metrics=metrics[first : first + MOST_PER_CALL])
