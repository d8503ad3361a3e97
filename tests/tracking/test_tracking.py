"""What the trackers of a run hold: what its metrics hold, each point once, whatever happens to the run."""

import os
import socket
import sys
import threading

import pytest
import torch
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpcdat.commands.evaluate import evaluate
from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import Stopped
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.hardware import usage
from hpcdat.storage import folder_lock
from hpcdat.storage.run_folder import Result, RunFolder
from hpcdat.tracking import tracking as module
from hpcdat.tracking.curves import CURVES, point_of
from hpcdat.tracking.tracking import OFFLINE, Tracking, record_result, settings_of
from tests.conftest import DEMO, Never, run_here
from tests.tracking.stand_in_wandb import StandIn

SMALL = ["epochs=2", "batch_size=50", "data.train_images=200", "data.test_images=50", "attack.steps=1"]
SMALL += ["evaluation.steps=1", "evaluation.every=1", "schedule.decay_epochs=[]"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Variables that the trackers set are removed after a test."""
    for name in (*OFFLINE, "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def wandb(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.delitem(sys.modules, "hpcdat.tracking.wandb_tracker", raising=False)
    yield stand_in
    sys.modules.pop("hpcdat.tracking.wandb_tracker", None)


@pytest.fixture
def no_network(monkeypatch):
    """Counts the attempts to reach another machine, which fail."""
    attempts = []

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        allowed = getattr(socket.socket, name)

        def guarded(self, *arguments, allowed=allowed):
            # Sockets in the file system are for other processes of this machine.
            return (allowed if self.family == socket.AF_UNIX else refuse)(self, *arguments)

        monkeypatch.setattr(socket.socket, name, guarded)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


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


class AfterSteps:
    """A stop request that is made after a number of polls."""

    def __init__(self, steps):
        self.left = steps

    @property
    def requested(self):
        self.left -= 1
        return self.left < 0


def test_a_run_that_stops_and_resumes_is_in_all_trackers_and_computes_as_without_them(
    tmp_path, wandb, no_network
):
    trackers = "trackers=[tensorboard, mlflow, wandb]"
    job = read_job(DEMO, [f"run_dir={tmp_path / 'run'}", trackers, *SMALL])
    with pytest.raises(Stopped, match="epoch 2"):
        train(job, SingleProcess(), AfterSteps(9))
    check(job.run_dir, READ)
    (run,) = mlflow_runs(job.run_dir)
    assert run.info.status == "KILLED"
    result = train(job, SingleProcess(), Never())
    check(job.run_dir, READ)
    for files in ("tensorboard/*", "wandb/offline-run-*"):
        assert len(list(job.run_dir.glob(files))) == 1
    (run,) = mlflow_runs(job.run_dir)
    assert run.info.status == "FINISHED" and run.data.params["attack.eps"] == str(job.attack.eps)
    assert wandb.axes == {"*": "epoch"}
    config = wandb.configs[(job.run_dir / "trackers.txt").read_text().strip()]
    assert config.pop("exit_code") == 0 and config == settings_of(job)
    for read in READ.values():
        final = {name: value for name, _, value in read(job.run_dir) if "final/" in name}
        assert final["final/TA_percent"] == pytest.approx(100 * result.ta)
        assert final["final/RA_percent"] == pytest.approx(100 * result.ra)
        assert final["final/epoch_seconds"] == pytest.approx(result.total)
        # Not measured.
        assert "final/AA_percent" not in final
    assert no_network == []
    (line, *_) = RunFolder(job.run_dir).metrics("epoch")
    without_curve = {"event", "epoch", "left_out_images", "megabytes_busiest_card", "correct", "workers"}
    assert set(line) - set(CURVES["epoch"]) == without_curve

    plain = read_job(DEMO, [f"run_dir={tmp_path / 'plain'}", *SMALL])
    train(plain, SingleProcess(), Never())
    one, other = (RunFolder(folder).newest_checkpoint().model for folder in (job.run_dir, plain.run_dir))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (plain.run_dir / "trackers.txt").exists()


class Zone:
    """A counter of energy that has moved on by five joules whenever it is read."""

    domain, wraps_at, joules = "package", 2**40, 0

    def read(self):
        self.joules += 5
        return self.joules * 1_000_000


def test_of_several_workers_one_feeds_the_trackers_and_a_later_evaluation_adds_to_them(tmp_path, monkeypatch):
    # As where two emulated nodes are one machine.
    monkeypatch.setattr(usage, "find_zones", lambda: [Zone()])
    job = read_job(DEMO, [f"run_dir={tmp_path / 'run'}", "trackers=[tensorboard, mlflow]", *SMALL])
    run_threads(loopback(2, node_of=[0, 1]), lambda workers: train(job, workers, Never()))
    check(job.run_dir)
    epochs = RunFolder(job.run_dir).metrics("epoch")
    assert all(line["package_joules"] >= 5 and line["dram_joules"] is None for line in epochs)
    stored = RunFolder(job.run_dir).read_result()
    assert stored.package_wh == pytest.approx(sum(line["package_joules"] for line in epochs) / 3600)
    assert stored.gpu_wh is stored.dram_wh is None and stored.images_per_second > 0
    before = in_mlflow(job.run_dir)
    assert {name for name, *_ in before if "Wh" in name} == {"energy/processors_Wh", "final/processors_Wh"}
    request = EvaluationRequest()
    result = evaluate(job.run_dir, ["data.test_images=20"], request, SingleProcess(), Never())
    check(job.run_dir)
    assert result.others and sorted(in_mlflow(job.run_dir)) == sorted(before)
    (run,) = mlflow_runs(job.run_dir)
    assert run.info.status == "FINISHED"


class Session:
    """One start of a run, without its training: writes metrics and checkpoints until it is killed.

    Args:
        folder: of the run.
        size: of the metrics at its last checkpoint.
    """

    def __init__(self, folder, size, names):
        self.folder, self.size, self.seconds = RunFolder(folder), size, os.urandom(1)[0]
        self.folder.truncate_metrics(size)
        job = read_job(DEMO, [f"run_dir={folder}"])
        self.tracking = Tracking(job, self.folder, names)
        self.tracking.begin()

    def epoch(self, epoch, **more):
        line = {"event": "epoch", "epoch": epoch, "cost": 1 / epoch, "total_seconds": self.seconds, **more}
        self.folder.log(**line)

    def evaluate(self, epoch, *, held_out=False):
        ta, ra = epoch / 10, epoch / 20
        self.folder.log(event="evaluation", epoch=epoch, ta=ta, ra=ra, held_out=held_out)

    def save(self):
        self.size = self.folder.metrics_bytes()
        self.folder.saved()

    def kill(self):
        """End without closing; what was handed over arrives."""
        for feed in self.tracking._feeds:
            feed._calls.put(None)
            feed._thread.join(60)
        return self.size


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_killed_run_that_repeats_an_epoch_has_it_once(tmp_path, wandb, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    folder = tmp_path / "run"
    folder.mkdir()
    names = list(READ)
    first = Session(folder, 0, names)
    first.epoch(1)
    first.save()
    first.evaluate(1)
    first.evaluate(1, held_out=True)
    # Killed before its checkpoint: the next start trains this epoch again.
    first.epoch(2)
    size = first.kill()
    assert ("train/cost", 2) not in {point[:2] for read in READ.values() for point in read(folder)}

    second = Session(folder, size, names)
    assert second.folder.lines() == [
        {"event": "epoch", "epoch": 1, "cost": 1, "total_seconds": first.seconds}
    ]
    second.evaluate(1)
    second.evaluate(1, held_out=True)
    second.epoch(2)
    second.save()
    # Killed between checkpoint and trackers: these get the epoch from the next start.
    for follower in second.folder.followers[:]:
        second.folder.followers.remove(follower)
    second.epoch(3)
    second.save()
    size = second.kill()

    third = Session(folder, size, names)
    third.evaluate(3)
    third.epoch(4)
    third.folder.log(event="overfitting", epoch=4, ra=0.1, best_ra=0.5)
    # As after catastrophic overfitting: no checkpoint, and the epoch before is evaluated again.
    third.evaluate(3)
    third.tracking.conclude(result(epoch=3), finished=True)
    third.tracking.close()
    check(folder, names)
    assert {epoch for name, epoch, _ in in_mlflow(folder) if name == "train/cost"} == {1, 2, 3, 4}
    assert third.folder.followers == []


def test_times_of_earlier_points_stay_in_tensorboard(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()

    def times():
        read = EventAccumulator(str(folder / "tensorboard")).Reload()
        return [event.wall_time for event in read.Scalars("train/cost")]

    first = Session(folder, 0, ["tensorboard"])
    first.epoch(1)
    first.save()
    size, before = first.kill(), times()
    Session(folder, size, ["tensorboard"]).kill()
    assert times() == before and len(before) == 1


def test_a_tracker_that_is_added_later_gets_the_whole_run_and_an_older_checkpoint_takes_nothing_back(
    tmp_path,
):
    folder = tmp_path / "run"
    folder.mkdir()
    first = Session(folder, 0, ["mlflow"])
    first.epoch(1)
    first.save()
    size = first.size
    first.epoch(2)
    first.save()
    first.kill()
    # The newest checkpoint is damaged.
    second = Session(folder, size, ["tensorboard", "mlflow"])
    check(folder, ["tensorboard"]) if second.kill() else None
    third = Session(folder, size, ["tensorboard", "mlflow"])
    third.epoch(2)
    third.save()
    third.kill()
    check(folder, ["tensorboard"])
    assert sorted(p[:2] for p in in_mlflow(folder)) == sorted(in_metrics(folder))


def result(**values):
    fields = {"method": "dat-pgd", "seed": 0, "p": 1, "q": 1, "batches": 1, "batch": 50, "images": 50}
    fields |= {"ta": 0.9, "ra": 0.5, "attack": "PGD-1", "communication": 0.0, "total": 1.0}
    fields |= {"exchange": "ring, 32 bits", "megabytes": 0.0, "epoch": 2}
    return Result(**fields | values)


def test_a_later_result_replaces_the_earlier_one(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    job = read_job(DEMO, [f"run_dir={folder.path}", "trackers=[tensorboard, mlflow]"])
    energy = {"gpu_wh": 12.5, "images_per_second": 1000.0}
    for aa in (None, 0.25):
        record_result(job, folder, result(aa=aa, **energy))
    expected = {"final/TA_percent": 90, "final/RA_percent": 50, "final/AA_percent": 25}
    expected |= {"final/epoch_seconds": 1, "final/communication_seconds": 0}
    expected |= {"final/images_per_second": 1000, "final/gpus_Wh": 12.5}
    assert {name: value for name, _, value in in_tensorboard(folder.path)} == expected
    assert sorted(in_mlflow(folder.path)) == sorted((name, 2, value) for name, value in expected.items())


def test_trackers_of_a_run_in_training_are_left_to_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folder_lock, "SECONDS_TO_ACQUIRE", 0)
    monkeypatch.setattr(folder_lock.fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(11, "busy")))
    folder = RunFolder(tmp_path)
    (tmp_path / ".lock").write_text("process 7 on a")
    record_result(read_job(DEMO, [f"run_dir={tmp_path}", "trackers=[mlflow]"]), folder, result())
    assert "the trackers do not get this result" in capsys.readouterr().err
    assert not (tmp_path / "mlflow").exists()


class Broken:
    """A tracker that fails or hangs at a call."""

    name, call, error, calls = "", "", None, ()

    def __init__(self, run):
        type(self).calls = []

    def _do(self, what):
        self.calls.append(what)
        if what == self.call:
            if self.error is None:
                self.hangs.wait(60)
            else:
                raise self.error

    def begin(self, points):
        self._do("begin")

    def add(self, point):
        self._do("add")

    def summarise(self, epoch, results):
        self._do("summarise")

    def close(self, *, finished):
        self._do("close")


@pytest.mark.parametrize("call", ["begin", "add", "summarise", "close"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit(1), None])
def test_a_tracker_that_fails_or_hangs_is_named_once_and_keeps_nobody_waiting(
    tmp_path, monkeypatch, capsys, call, error
):
    kind = type("Kind", (Broken,), {"call": call, "error": error, "hangs": threading.Event()})
    monkeypatch.setattr(module, "_load", lambda name: kind)
    monkeypatch.setattr(module, "SECONDS_TO_CLOSE", 0.2 if error is None else 60)
    session = Session(tmp_path, 0, ["mlflow"])
    for epoch in (1, 2):
        session.epoch(epoch)
        session.save()
    session.tracking.conclude(result(), finished=True)
    session.tracking.close()
    kind.hangs.set()
    (line,) = capsys.readouterr().err.splitlines()
    if error is None:
        assert line.startswith("warning: tracker mlflow has not written everything within 0.2 s; the run is")
    else:
        assert line.startswith(
            f"warning: tracker mlflow failed and is not used any more: {error}; the run is"
        )
        assert kind.calls[-1] == call and kind.calls.count(call) == 1
    assert len(session.folder.metrics("epoch")) == 2


@pytest.mark.parametrize(
    "name, package", [("tensorboard", "tensorboard"), ("mlflow", "mlflow-skinny"), ("wandb", "wandb")]
)
def test_a_tracker_that_is_not_installed_is_refused_before_the_run_begins(
    tmp_path, monkeypatch, name, package
):
    monkeypatch.delitem(sys.modules, f"hpcdat.tracking.{name}_tracker", raising=False)
    for known in [each for each in sys.modules if each.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, name, None)
    done = run_here("train", DEMO, f"run_dir={tmp_path / 'run'}", f"trackers=[{name}]")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.splitlines()[-1] == (
        f"hpcdat: trackers: {name} is not installed: pip install {package}, or leave it out: trackers=[]"
    )


def test_a_library_that_breaks_while_it_is_imported_is_refused_with_its_reason(monkeypatch, tmp_path):
    (tmp_path / "wandb.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    for known in [each for each in sys.modules if each == "wandb" or each.endswith("wandb_tracker")]:
        monkeypatch.delitem(sys.modules, known)
    done = run_here("train", DEMO, f"run_dir={tmp_path / 'run'}", "trackers=[wandb]")
    assert done.returncode == 2
    assert "wandb cannot be imported (No module named 'a_module_that_is_missing'): pip" in done.stderr


def test_an_unknown_tracker_is_refused():
    done = run_here("train", DEMO, "--set", "trackers=[tensorbord]")
    assert done.returncode == 2 and "trackers" in done.stderr and "tensorboard" in done.stderr


def test_curves_have_one_name_each_that_all_trackers_take():
    names = [name for curves in CURVES.values() for name, _ in curves.values()]
    assert len(set(names)) == len(names)
    assert all(name.replace("/", "").replace("_", "").isalnum() for name in names)


def test_wandb_itself_writes_a_folder_offline(tmp_path, no_network):
    pytest.importorskip("wandb")
    session = Session(tmp_path, 0, ["wandb"])
    session.epoch(1)
    session.save()
    session.tracking.conclude(result(), finished=True)
    session.tracking.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"train/cost" in file.read_bytes() and b"final/TA_percent" in file.read_bytes()
    assert no_network == []
