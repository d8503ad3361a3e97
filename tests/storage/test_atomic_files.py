"""Atomic file writes."""

import pytest

from hpcdat.storage.atomic_files import check_writable, write_text


@pytest.mark.parametrize("name", ["nowhere/file", "."])
def test_a_failed_write_names_the_file_before_and_after_the_work(tmp_path, name):
    for write in (check_writable, lambda path: write_text(path, "text")):
        with pytest.raises(OSError) as failure:
            write(tmp_path / name)
        assert failure.value.filename == str(tmp_path / name)
        assert str(failure.value).endswith(f": '{tmp_path / name}'")
    assert list(tmp_path.iterdir()) == []


def test_checking_a_file_changes_nothing(tmp_path):
    check_writable(tmp_path / "new")
    (tmp_path / "old").write_text("old")
    check_writable(tmp_path / "old")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]
