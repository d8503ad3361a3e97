"""Files that are whole or not there."""

import pytest

from hpcdat.storage.atomic_files import check_place, write_text


@pytest.mark.parametrize("name", ["nowhere/file", "."])
def test_what_cannot_be_written_is_told_by_its_own_name_before_and_after(tmp_path, name):
    for write in (check_place, lambda path: write_text(path, "text")):
        with pytest.raises(OSError) as told:
            write(tmp_path / name)
        assert told.value.filename == str(tmp_path / name)
        assert str(told.value).endswith(f": '{tmp_path / name}'")
    assert list(tmp_path.iterdir()) == []


def test_a_look_at_the_place_leaves_what_is_there(tmp_path):
    check_place(tmp_path / "new")
    (tmp_path / "old").write_text("old")
    check_place(tmp_path / "old")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]
