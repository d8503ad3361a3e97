"""What the trackers of a run have recorded, read back."""

import os
import sys

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpcdat.storage.run_folder import RunFolder
from hpcdat.tracking.curves import point_of


def in_metrics(folder):
    """The points of a run's metrics: values by curve and epoch."""
    points = {}
    for point in filter(None, map(point_of, RunFolder(folder).lines())):
        points |= {(name, point.epoch): value for name, value in point.values.items()}
    return points


def in_tensorboard(folder):
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(name, e.step, e.value) for name in read.Tags()["scalars"] for e in read.Scalars(name)]


def in_mlflow(folder):
    (run,) = mlflow_runs(folder)
    client = MlflowClient((folder / "mlflow").as_uri())
    histories = [client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
    return [(one.key, one.step, one.value) for history in histories for one in history]


def mlflow_runs(folder):
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient((folder / "mlflow").as_uri())
    return client.search_runs([client.get_experiment_by_name("hpcdat").experiment_id])


def in_wandb(folder):
    """Rows of the stand-in: of the folder that is left, or of the server."""
    stand_in, id = sys.modules["wandb"], (folder / "trackers.txt").read_text().strip()
    offline = [rows for place, rows in stand_in.files.items() if place.exists() and "offline" in place.name]
    rows = offline[-1] if os.environ["WANDB_MODE"] == "offline" else stand_in.rows[id]
    points = [(k, row["epoch"], v) for row in rows for k, v in row.items() if k != "epoch"]
    return points + [(name, 0, value) for name, value in stand_in.results[id].items()]


READ = {"tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb}


def check(folder, names=("tensorboard", "mlflow")):
    """Each tracker holds the points of the metrics, each once."""
    expected = in_metrics(folder)
    for name in names:
        curves = [(curve, epoch, v) for curve, epoch, v in READ[name](folder) if "final/" not in curve]
        assert sorted((curve, epoch) for curve, epoch, _ in curves) == sorted(expected), name
        for curve, epoch, value in curves:
            # TensorBoard keeps float32.
            assert value == pytest.approx(expected[curve, epoch], rel=1e-6), (name, curve)
