"""Checkpoints: complete or absent, verified, saved in pairs, and free of code."""

import dataclasses
import functools
import hashlib
import io
import json
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdat import __version__
from hpcdat.storage.atomic_files import write_atomically
from hpcdat.storage.checkpoint_format import (
    FORMAT,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_resumable,
    save_checkpoint,
)
from hpcdat.storage.checkpoint_rotation import Checkpoints
from hpcdat.storage.worker_rows import read_row


def at(epoch, step=0, workers=4):
    return Checkpoint(
        model={"w": torch.arange(3.0) + epoch},
        optimizer={"state": {0: {"m": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "t": 3}]},
        epoch=epoch,
        step=step,
        workers=workers,
        classes=["cat", "dog"],
        images=100,
        metrics_bytes=17,
    )


def forged(state, version=FORMAT):
    """A file with a checksum that is right."""
    header = {"hpcdat-checkpoint": version, "sha256": hashlib.sha256(state).hexdigest()}
    return json.dumps(header).encode() + b"\n" + state


def test_what_is_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path / "c.pt", at(2, 5))
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded.model["w"], torch.arange(3.0) + 2)
    assert (loaded.epoch, loaded.step, loaded.workers, loaded.classes) == (2, 5, 4, ["cat", "dog"])
    assert loaded.optimizer["param_groups"] == [{"lr": 0.1, "t": 3}]
    assert loaded.totals["cost"] == 0 and loaded.metrics_bytes == 17


def test_averaged_weights_are_saved_bit_for_bit(tmp_path):
    averaged = {"w": torch.tensor([0.1, -0.0, 1e-45])}
    progress = {"updates": 3, "retained": 0.1, "buffers": {"b": torch.tensor(0.3)}}
    save_checkpoint(tmp_path / "c.pt", dataclasses.replace(at(2), averaged=averaged, averaging=progress))
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded.averaged["w"].view(torch.int32), averaged["w"].view(torch.int32))
    assert loaded.averaging == progress


def test_a_checkpoint_of_format_8_has_no_averaged_weights(tmp_path):
    """As written before there were any."""
    buffer = io.BytesIO()
    torch.save({k: v for k, v in vars(at(2, 5)).items() if not k.startswith("averag")}, buffer)
    (tmp_path / "c.pt").write_bytes(forged(buffer.getvalue(), 8))
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded.model["w"], torch.arange(3.0) + 2) and loaded.step == 5
    assert loaded.averaged is None and loaded.averaging == {}


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

    buffer = io.BytesIO()
    torch.save({"model": Evil()}, buffer)
    for state in (pickle.dumps(Evil(), protocol=2), buffer.getvalue()):
        (tmp_path / "evil.pt").write_bytes(forged(state))
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            load_checkpoint(tmp_path / "evil.pt")
    assert not marker.exists()


def test_every_altered_byte_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, at(1))
    whole = path.read_bytes()
    for place in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"c\.pt: "):
            load_checkpoint(path)
        path.write_bytes(whole[:place])
        with pytest.raises(CheckpointError, match=r"c\.pt: "):
            load_checkpoint(path)


@functools.cache
def state_of_a_checkpoint():
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "c.pt", at(1))
        return (Path(folder) / "c.pt").read_bytes().split(b"\n", 1)[1]


@given(st.data())
def test_a_forged_state_is_read_or_refused_and_nothing_else(data):
    """Altered, cut or invented bytes with a checksum that is right."""
    state = bytearray(state_of_a_checkpoint())
    for place in data.draw(st.lists(st.integers(0, len(state) - 1), max_size=3)):
        state[place] = data.draw(st.integers(0, 255))
    state = state[: data.draw(st.sampled_from([len(state), len(state) // 2, 0]))]
    state = data.draw(st.sampled_from([bytes(state), data.draw(st.binary(max_size=50))]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.pt"
        path.write_bytes(forged(state))
        try:
            assert isinstance(load_checkpoint(path), Checkpoint)
        except CheckpointError as error:
            assert "c.pt: " in str(error)


@pytest.mark.parametrize(
    "change",
    [
        *({"epoch": "two"}, {"model": 3}, {"statistics": ()}, {"statistics": {"file": [1]}}, {"extra": 1}),
        *({"totals": {"cost": "much"}}, {"history": {"robust": [1]}}, {"averaged": {"w": 1}}),
    ],
)
def test_a_state_of_wrong_kinds_is_refused(tmp_path, change):
    buffer = io.BytesIO()
    torch.save(vars(at(1)) | change, buffer)
    (tmp_path / "c.pt").write_bytes(forged(buffer.getvalue()))
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "c.pt")


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "c.pt"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(path)
    for content in (b"", b"hello", b"[1]\n", b"\xff\xfe\n"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not an hpcdat checkpoint"):
            load_checkpoint(path)
    buffer = io.BytesIO()
    torch.save({"model": {}}, buffer)
    path.write_bytes(forged(buffer.getvalue()))
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "header, writer",
    [
        ({"hpcdat-checkpoint": 1}, "a development version of hpcdat before 0.1.0, of 20 November 2026"),
        (
            {"hpcdat-checkpoint": 6},
            "a development version of hpcdat before 0.1.0, of 24 to 28 November 2026",
        ),
        ({"hpcdat-checkpoint": FORMAT + 1, "hpcdat": "9.1"}, "hpcdat 9.1"),
        ({"hpcdat-checkpoint": [6]}, "an unknown version of hpcdat"),
    ],
)
def test_another_format_is_refused_with_the_version_that_wrote_it(tmp_path, header, writer):
    path = tmp_path / "c.pt"
    path.write_bytes(json.dumps({"sha256": "", **header}).encode() + b"\n")
    with pytest.raises(CheckpointError) as failure:
        load_checkpoint(path)
    version = header["hpcdat-checkpoint"]
    assert str(failure.value) == (
        f"{path}: written by {writer} (checkpoint format {version}); "
        f"hpcdat {__version__} reads only formats 8, 9, 10 and {FORMAT}"
    )


def test_a_checkpoint_records_the_version_that_wrote_it(tmp_path):
    save_checkpoint(tmp_path / "c.pt", at(1))
    header = json.loads((tmp_path / "c.pt").read_bytes().split(b"\n", 1)[0])
    assert header["hpcdat"] == __version__


def test_the_newest_whole_checkpoint_that_fits_is_chosen(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert not checkpoints.exist()
    reported = []

    def chosen(workers=4):
        reported.clear()
        file = checkpoints.choose(lambda c: c.step == 0 or c.workers == workers, reported.append)
        loaded = load_checkpoint(file)
        return loaded.epoch, loaded.step

    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        chosen()
    for checkpoint in (at(1), at(2), at(2, 7)):
        checkpoints.save(checkpoint)
    assert chosen() == (2, 7) and reported == []
    assert chosen(workers=3) == (2, 0)
    checkpoints.step_file.write_bytes(b"torn")
    assert chosen() == (2, 0) and "step.pt" in reported[0] and "using the previous checkpoint" in reported[0]
    checkpoints.epoch_file.write_bytes(checkpoints.epoch_file.read_bytes()[:-1])
    assert chosen() == (1, 0) and len(reported) == 2
    checkpoints.epoch_before_file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step\.pt.*\n.*epoch\.pt.*damaged.*\n.*epoch-before"):
        chosen()
    checkpoints.save(at(3))
    assert chosen() == (3, 0) and not checkpoints.step_file.exists()


def blocks(workers=4, columns=3, row_bytes=7):
    """Row r holds 10 r, 10 r + 1, ...; in blocks of so many columns."""
    rows = 10 * torch.arange(workers)[:, None] + torch.arange(row_bytes)
    return iter(rows.to(torch.uint8).split(columns, 1))


def test_each_worker_reads_its_own_row(tmp_path):
    kept = Checkpoints(tmp_path)
    file = kept.save(at(2, 5), blocks())
    rows = load_resumable(file).worker_rows()
    assert (rows.workers, rows.row_bytes, rows.columns) == (4, 7, 3)
    assert [read_row(tmp_path, rows, rank).tolist() for rank in range(4)] == [
        list(range(10 * rank, 10 * rank + 7)) for rank in range(4)
    ]
    (tmp_path / rows.file).write_bytes(b"short")
    with pytest.raises(ValueError, match="too short for 4 rows of 7 bytes"):
        read_row(tmp_path, rows, 3)


def statistics_in(folder):
    return sorted(file.name for file in folder.glob("*statistics*"))


def test_statistics_are_there_as_long_as_their_checkpoint(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(at(1))
    assert statistics_in(tmp_path) == []
    kept.save(at(1, 3), blocks())
    first = statistics_in(tmp_path)
    kept.save(at(1, 4), blocks())
    second = statistics_in(tmp_path)
    assert len(first) == len(second) == 1 and first != second
    assert load_resumable(kept.step_file).statistics["file"] == second[0]
    kept.save(at(1), best=True)
    assert statistics_in(tmp_path) == second
    kept.save(at(2))
    assert statistics_in(tmp_path) == []
    kept.save(at(2, 1), iter(()))
    assert statistics_in(tmp_path) == [] and load_resumable(kept.step_file).worker_rows() is None


def test_rows_stay_as_long_as_any_of_the_checkpoints_that_have_some(tmp_path):
    """Those of the last two epochs, of the newest step and of the best epoch."""
    kept = Checkpoints(tmp_path)
    for checkpoint, best in ((at(1), False), (at(1), True), (at(2), False), (at(2, 1), False)):
        kept.save(checkpoint, blocks(), best=best)
    assert len(statistics_in(tmp_path)) == 4
    assert [load_resumable(file).epoch for file in (kept.best_file, kept.epoch_before_file)] == [1, 1]
    kept.save(at(3), blocks())
    kept.save(at(3), blocks(), best=True)
    files = (kept.best_file, kept.epoch_file, kept.epoch_before_file)
    names = {load_resumable(file).statistics["file"] for file in files}
    assert sorted(names) == statistics_in(tmp_path) and len(names) == 3


@pytest.mark.parametrize("damage", ["missing", "cut", "altered", "another file"])
def test_a_run_resumes_from_the_checkpoint_before_where_statistics_are_damaged(tmp_path, damage):
    kept, reported = Checkpoints(tmp_path), []
    kept.save(at(1))
    kept.save(at(1, 3), blocks())
    file = tmp_path / statistics_in(tmp_path)[0]
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "another file":
        described = load_checkpoint(kept.step_file)
        other = {**described.statistics, "file": "../secret"}
        save_checkpoint(kept.step_file, dataclasses.replace(described, statistics=other))
    else:
        file.write_bytes(whole[:-1] if damage == "cut" else whole[:-1] + b"x")
    assert kept.choose(lambda _: True, reported.append) == kept.epoch_file
    (complaint,) = reported
    assert "step.pt: damaged: its second file: " in complaint
    # An evaluation needs the averaged ones only, which are in the checkpoint itself.
    assert kept.newest(reported.append).step == 3


@pytest.mark.parametrize("replaced", ["statistics", "step"])
def test_a_kill_between_the_two_files_leaves_the_checkpoint_of_before(tmp_path, monkeypatch, replaced):
    """The process ends before a file gets its name, first that of the statistics, then the checkpoint's."""
    kept = Checkpoints(tmp_path)
    kept.save(at(1))
    kept.save(at(1, 3), blocks())
    replace = Path.replace

    class Killed(BaseException):
        """Not an error that anything handles."""

    def replace_or_die(path, target):
        if Path(target).name.startswith(replaced):
            raise Killed
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_or_die)
        # A kill removes nothing.
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            kept.save(at(1, 4), blocks(columns=2))
    reported = []
    assert kept.choose(lambda _: True, reported.append) == kept.step_file and reported == []
    assert load_resumable(kept.step_file).step == 3
    kept.save(at(1, 5), blocks())
    assert len(statistics_in(tmp_path)) == 1 and load_resumable(kept.step_file).step == 5


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at(1))
    checkpoints.save(at(1, 3))

    def full(descriptor):
        # The statistics still fit, the checkpoint does not.
        if not list(tmp_path.glob(".statistics-*")):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for checkpoint in (at(2), at(1, 9)):
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(checkpoint, blocks())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["epoch.pt", "step.pt"]
    assert load_checkpoint(checkpoints.step_file).step == 3
