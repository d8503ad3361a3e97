"""Shards written by real workers, from the command line."""

import pytest

from tests.conftest import run_here
from tests.distributed.command_line import hpcdat

pytestmark = pytest.mark.distributed


def test_two_workers_write_what_one_writes(digits, tmp_path):
    options = ["--shard-size", "200KB"]
    done = hpcdat("pack", digits, tmp_path / "two", "-np", 2, *options)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'two' / 'train'}: 1,400 images in " in done.stdout and "\r" not in done.stderr
    assert run_here("pack", digits, tmp_path / "one", *options).returncode == 0
    written = [
        {file.relative_to(out): file.read_bytes() for file in out.rglob("*.*") if file.name != ".lock"}
        for out in (tmp_path / "one", tmp_path / "two")
    ]
    assert written[0] == written[1] and len(written[0]) > 20
