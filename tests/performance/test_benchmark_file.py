"""What a benchmark writes is what the report reads; other files are refused in one sentence."""

import math

import pytest

from hpcdat.errors import InputError
from hpcdat.performance.benchmark_file import BenchmarkFile, Row


def test_a_file_is_read_as_it_was_written(tmp_path):
    row = Row(
        parameters={"collective": "all-reduce", "bits": 8, "two_sided": True, "protocol": None},
        seconds=[0.25, 0.5],
        figures={"busbw": 1e9, "sent": None},
    )
    file = BenchmarkFile.of(
        "communication", {"python": "3.11"}, {"workers": 4}, [row], {"x": 0.5}, ["not quiet"]
    )
    file.write(tmp_path / "a.json")
    assert BenchmarkFile.read(tmp_path / "a.json") == file


def test_statistics_of_a_row():
    row = Row(parameters={}, seconds=[float(i) for i in range(1, 101)])
    assert (row.median, row.p99) == (50.5, 99.0)
    assert math.isclose(row.variation, math.sqrt(100 * 101 / 12) / 50.5)
    assert Row(parameters={}, seconds=[2.0, 2.0, 3.0]).p99 == 3.0
    assert Row(parameters={}, seconds=[2.0]).variation is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not a benchmark file: Invalid JSON"),
        ('{"format": "hpcdat benchmark"}', "is not a benchmark file: benchmark: Field required"),
        ('{"format": "other"}', "is not a benchmark file: format: "),
        (b"\xff\xfe\x00", "is not a benchmark file: it is not text"),
    ],
)
def test_other_files_are_refused(tmp_path, text, expected):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=expected):
        BenchmarkFile.read(path)


def test_a_missing_file_and_one_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"a\.json cannot be read: No such file"):
        BenchmarkFile.read(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be written"):
        BenchmarkFile.of("x", {}, {}, []).write(tmp_path / "none" / "a.json")
