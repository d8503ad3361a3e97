"""Checkpoints: whole or not there, and never code."""

import pickle

import pytest
import torch

from hpcdat.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from hpcdat.files import write_atomically


@pytest.fixture
def checkpoint():
    return Checkpoint(
        model={"w": torch.arange(3.0)},
        optimizer={"state": {0: {"m": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "t": 3}]},
        epoch=2,
        step=5,
        workers=4,
        classes=["cat", "dog"],
    )


def test_what_is_saved_is_loaded(tmp_path, checkpoint):
    save_checkpoint(tmp_path / "c.pt", checkpoint)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded.model["w"], checkpoint.model["w"])
    assert (loaded.epoch, loaded.step, loaded.workers, loaded.classes) == (2, 5, 4, ["cat", "dog"])
    assert loaded.optimizer["param_groups"] == checkpoint.optimizer["param_groups"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "c.pt"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the n")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_code_in_a_file_is_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (marker.write_text, ("x",))

    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump(Evil(), file)
    torch.save({"format": 1, "model": Evil()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(tmp_path / name)
    assert not marker.exists()


def test_broken_or_foreign_files_are_refused(tmp_path, checkpoint):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
    save_checkpoint(tmp_path / "c.pt", checkpoint)
    whole = (tmp_path / "c.pt").read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        (tmp_path / "c.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            load_checkpoint(tmp_path / "c.pt")
    torch.save({"format": 99}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of format 1"):
        load_checkpoint(tmp_path / "c.pt")
    torch.save({"format": 1, "model": {}}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="incomplete"):
        load_checkpoint(tmp_path / "c.pt")
