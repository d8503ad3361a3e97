"""What the trackers of a run hold: what its metrics hold, each point once, whatever happens to the run."""

import pytest
import torch
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
from hpcdat.storage.run_folder import RunFolder
from hpcdat.tracking.curves import CURVES
from hpcdat.tracking.tracking import record_result, settings_of
from tests.conftest import DEMO, Never
from tests.tracking.records import READ, check, in_metrics, in_mlflow, in_tensorboard, mlflow_runs
from tests.tracking.session import Session, result
from tests.training.test_resume import AfterPolls

SMALL = ["epochs=2", "batch_size=50", "data.train_images=200", "data.test_images=50", "attack.steps=1"]
SMALL += ["evaluation.steps=1", "evaluation.every=1", "schedule.decay_epochs=[]"]


def test_a_run_that_stops_and_resumes_is_in_all_trackers_and_computes_as_without_them(
    tmp_path, wandb, no_network
):
    trackers = "trackers=[tensorboard, mlflow, wandb]"
    job = read_job(DEMO, [f"run_dir={tmp_path / 'run'}", trackers, *SMALL])
    with pytest.raises(Stopped, match="epoch 2"):
        train(job, SingleProcess(), AfterPolls(5))
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


def test_a_later_result_replaces_the_earlier_one(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    job = read_job(DEMO, [f"run_dir={folder.path}", "trackers=[tensorboard, mlflow]"])
    energy = {"gpu_wh": 12.5, "images_per_second": 1000.0}
    for aa in (None, 0.25):
        record_result(job, folder, result(aa=aa, fast_bound=0.375, **energy))
    expected = {"final/TA_percent": 90, "final/RA_percent": 50, "final/AA_percent": 25}
    expected |= {"final/fast_bound_percent": 37.5}
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
