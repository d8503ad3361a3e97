"""Two parts of the tests at the same time: what is printed, which exit code it is, and how both end."""

import signal
import subprocess
import sys

import pytest

from tests.cluster.nodes import wait_for
from tests.conftest import CHECKOUT
from tests.side_by_side import side_by_side

INTERRUPTED = """
import sys
from pathlib import Path
from tests.side_by_side import end_on_signals, side_by_side

end_on_signals()
commands = [["sh", "-c", f"exec > {sys.argv[2]}/{name}; {sys.argv[1]}"] for name in ("front", "beside")]
try:
    side_by_side(*commands, Path(sys.argv[2], "log"))
except KeyboardInterrupt:
    print("interrupted")
"""
ENDS_TIDILY = "trap 'kill $!; echo ended; exit' INT; sleep 60 & echo begun; wait"


@pytest.mark.parametrize(
    "front, beside, code", [("exit 0", "exit 0", 0), ("exit 1", "exit 0", 1), ("exit 0", "exit 2", 2)]
)
def test_both_have_to_pass_and_one_follows_the_other(front, beside, code, tmp_path, capfd):
    log = tmp_path / "runs" / "log"
    commands = [["sh", "-c", f"echo {name}; {end}"] for name, end in (("front", front), ("beside", beside))]
    assert side_by_side(*commands, log) == code
    assert capfd.readouterr().out == f"front\n\n{log}:\nbeside\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_reaches_both_once(number, tmp_path):
    command = [sys.executable, "-c", INTERRUPTED, ENDS_TIDILY, str(tmp_path)]
    # As a shell starts what runs in the background.
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    process = subprocess.Popen([*ignoring, *command], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    files = [tmp_path / "front", tmp_path / "beside"]
    wait_for(lambda: all(file.exists() and file.read_text() == "begun\n" for file in files), 60)
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "interrupted\n"
    assert [file.read_text() for file in files] == ["begun\nended\n"] * 2
