"""Run folders: creating, resuming, overwriting."""

import json
import shutil
from pathlib import Path

import pytest

from hpcdat.config.job_file import read_job
from hpcdat.storage.run_folder import RunError, RunFolder
from tests.conftest import DEMO


@pytest.fixture
def begin(tmp_path):
    """Begins or resumes a run in one folder."""

    def with_settings(*settings, overwrite=False):
        job = read_job(DEMO, [f"run_dir={tmp_path}/run", *settings])
        return RunFolder(job.run_dir).begin(job, {}, overwrite=overwrite)

    return with_settings


def test_what_training_does_not_depend_on_may_change_and_is_printed(begin, tmp_path, capsys):
    assert begin() == "new"
    RunFolder(tmp_path / "run").checkpoints.epoch_file.touch()
    changes = ["data.corrupt=skip", "stall_timeout=900", "skipped_steps=20", "data.threads=4"]
    changes += ["checkpoint_minutes=5", "certification.n=10", "evaluation.batch_size=10"]
    assert begin(*changes, f"data.root={tmp_path}") == "unfinished"
    printed = capsys.readouterr().out
    assert "data.corrupt: stop -> skip" in printed and "certification.n: 100000 -> 10" in printed
    assert RunFolder(tmp_path / "run").read_job([]).stall_timeout == 900
    with pytest.raises(RunError, match=r"other settings \(seed: 0 -> 1\): use the same settings"):
        begin(*changes, "seed=1", "data.threads=8", f"data.root={tmp_path}")


def test_a_run_that_never_trained_holds_no_other_settings(begin, tmp_path):
    begin("model.pretrained=there-is-none.pth")
    folder = RunFolder(tmp_path / "run")
    folder.choice_file.write_text("of other settings")
    assert begin() == "new" and not folder.choice_file.exists()
    assert folder.read_job([]).model.pretrained is None
    folder.environment_file.unlink()
    with pytest.raises(RunError, match="other settings"):
        # Perhaps somebody's own job.yaml.
        begin("seed=1")


@pytest.mark.parametrize("removed", range(5))
def test_an_overwriting_start_that_is_killed_is_done_by_the_next_one(begin, tmp_path, monkeypatch, removed):
    """Whatever is left: the old run is not resumed, and its remains do not count as foreign files."""
    begin()
    folder, left = RunFolder(tmp_path / "run"), iter(range(removed))
    folder.checkpoints.epoch_file.write_bytes(b"old")
    folder.log(event="finished")

    def killed_later(work):
        def remove(*arguments):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return work(*arguments)

        return remove

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", killed_later(Path.unlink))
        patched.setattr(shutil, "rmtree", killed_later(shutil.rmtree))
        begin(overwrite=True)
    assert begin() == "new" and not folder.metrics_file.exists() and not folder.checkpoints.exist()


def test_a_run_of_another_version_is_refused_with_the_version_that_wrote_it(begin, tmp_path):
    begin()
    folder = RunFolder(tmp_path / "run")
    folder.metrics_file.write_text('{"event": "epoch"}\n')
    folder.job_file.write_text(folder.job_file.read_text() + "colour: blue\n")
    written_by_another = {"packages": {"hpcdat": "0.0.9"}, "git_commit": "abc"}
    folder.environment_file.write_text(json.dumps(written_by_another))
    expected = r"unknown key.*\(the run was written by hpcdat 0\.0\.9 of commit abc; this is hpcdat "
    with pytest.raises(RunError, match=expected):
        folder.read_job([])
    with pytest.raises(RunError, match=expected):
        begin()
    folder.environment_file.write_text("{}")
    with pytest.raises(RunError, match="unknown key") as refused:
        folder.read_job([])
    assert "written by" not in str(refused.value)
