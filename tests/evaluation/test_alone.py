"""Two commands at once in one folder."""

import pytest

from hpcdat.certify import certify
from hpcdat.cluster.workers import Workers
from hpcdat.errors import InputError
from hpcdat.evaluation.alone import alone_in
from hpcdat.evaluation.wanted import Wanted
from hpcdat.record import RunFolder
from hpcdat.run import evaluate
from tests.conftest import Never


def test_a_second_command_is_told_and_touches_nothing(run_dir):
    folder = RunFolder(run_dir)
    for work, at in (
        (lambda: certify(run_dir, [], Workers(), Never()), folder.certification_folder),
        (lambda: evaluate(run_dir, [], Wanted(), Workers(), Never()), folder.outcomes_folder),
    ):
        with alone_in(at, Workers()):
            with pytest.raises(InputError, match=f"another command is at work in {at}"):
                work()
            assert [file.name for file in at.iterdir()] == [".lock"]
        # Free again, also for one that fails.
        with pytest.raises(KeyboardInterrupt), alone_in(at, Workers()):
            raise KeyboardInterrupt
        with alone_in(at, Workers()):
            pass
