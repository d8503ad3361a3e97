"""The file with the secret of a start is the user's alone."""

import os
import stat
import time

import pytest

from hpcdat.distributed.start_file import FOLDER, SECONDS_KEPT, Start, StartFile
from hpcdat.errors import InputError

START = Start("10.0.0.7", 4321, "ab" * 32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "starts"))
    return tmp_path / "starts"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_written_for_the_user_alone_and_read(folder):
    before = os.umask(0)
    try:
        file = StartFile("slurm-1.0")
        assert file.read() is None
        file.write(Start("10.0.0.6", 1, "of an earlier start"))
        file.write(START)
    finally:
        os.umask(before)
    assert (mode(folder), mode(file.path)) == (0o700, 0o600)
    assert StartFile("slurm-1.0").read(refresh=True) == START
    assert StartFile("slurm-1.1").read() is None
    assert list(folder.iterdir()) == [file.path], "no temporary file is left"
    file.remove()
    file.remove()
    assert list(folder.iterdir()) == []


def test_it_is_in_the_cache_of_the_user_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert StartFile("prterun-node1-7@1").path == tmp_path / "hpcdat" / "starts" / "prterun-node1-7@1.json"


@pytest.mark.parametrize("token", ["../../x", "a/b", "\n", "."])
def test_a_token_is_no_path(folder, token):
    assert StartFile(token).path.parent == folder


def test_the_secret_is_not_in_what_is_printed():
    assert START.secret not in repr(START)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620])
def test_a_file_that_others_may_use_is_refused(folder, bits):
    file = StartFile("slurm-1.0")
    file.write(START)
    file.path.chmod(bits)
    with pytest.raises(
        InputError, match=rf"^{file.path}: others may use it \(mode {bits:04o}\), .* chmod go= "
    ):
        file.read()


@pytest.mark.parametrize("bits", [0o755, 0o710, 0o777])
def test_a_folder_that_others_may_use_is_refused(folder, bits):
    folder.mkdir()
    folder.chmod(bits)
    with pytest.raises(InputError, match=rf"^{folder}: others may use it \(mode {bits:04o}\), .*{FOLDER}"):
        StartFile("slurm-1.0")


def test_a_link_is_not_followed(folder, tmp_path):
    file = StartFile("slurm-1.0")
    (tmp_path / "elsewhere").write_text('{"address": "10.6.6.6", "port": 1, "secret": ""}')
    file.path.symlink_to(tmp_path / "elsewhere")
    assert file.read() is None
    file.write(START)
    assert not file.path.is_symlink() and file.read() == START


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_what_belongs_to_another_user_is_refused(folder):
    file = StartFile("slurm-1.0")
    file.write(START)
    os.chown(file.path, 65534, 65534)
    with pytest.raises(InputError, match=f"^{file.path}: belongs to user 65534, not to 0"):
        file.read()
    os.chown(folder, 65534, 65534)
    with pytest.raises(InputError, match=f"^{folder}: belongs to user 65534, not to 0"):
        StartFile("slurm-1.0")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"address": "10.0.0.7"}', '"\\ud800"'])
def test_what_is_no_such_file_counts_as_none(folder, text):
    file = StartFile("slurm-1.0")
    file.path.write_text(text)
    file.path.chmod(0o600)
    assert file.read() is None


def test_where_no_file_can_be_written_the_variable_is_named(folder, tmp_path):
    folder.touch()
    with pytest.raises(InputError, match=f"no file for the secret of this start can be written: .*{FOLDER}"):
        StartFile("slurm-1.0")
    folder.unlink()
    file = StartFile("slurm-1.0")
    folder.rmdir()
    with pytest.raises(
        InputError, match=r"no file for the secret of this start can be written: .*all nodes share"
    ):
        file.write(START)


def test_files_that_killed_starts_have_left_are_removed_after_a_time(folder):
    old, recent = StartFile("slurm-1.0"), StartFile("slurm-2.0")
    old.write(START)
    recent.write(START)
    then = time.time() - SECONDS_KEPT - 1
    os.utime(old.path, (then, then))
    StartFile("slurm-3.0").write(START)
    assert not old.path.exists() and recent.path.exists()
