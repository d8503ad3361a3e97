"""Trackers that fail, hang or are missing: named once, and the run is as without them."""

import sys
import threading

import pytest

from hpcdat.tracking import tracking as module
from tests.conftest import DEMO, run_here
from tests.tracking.session import Session, result


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
