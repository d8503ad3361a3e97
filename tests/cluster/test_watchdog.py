"""Every wait is bounded, independently of waits in other threads."""

import subprocess
import sys

TWO_THREADS = """
import threading, time
from hpcdat.distributed.watchdog import Watchdog

watchdog, begun = Watchdog(0.4, "worker 1 on node2"), threading.Event()

def wait():
    with watchdog.waiting("gradients 0"):
        begun.set()
        time.sleep(20)

threading.Thread(target=wait, daemon=True).start()
begun.wait()
with watchdog.waiting("labels 0"):
    pass
time.sleep(10)
"""

MEETING = """
import time
from hpcdat.distributed.watchdog import Watchdog

watchdog = Watchdog(0.2, "worker 1 on node2")
with watchdog.waiting("connecting", at_least=1):
    time.sleep(0.6)
print("met", flush=True)
with watchdog.waiting("gradients 0"):
    time.sleep(20)
"""


def test_workers_may_take_longer_to_meet_than_for_a_step():
    done = subprocess.run([sys.executable, "-c", MEETING], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == "met\n"
    assert "has waited 0.2 s for the other workers (gradients 0)" in done.stderr


def test_a_short_wait_of_one_thread_does_not_hide_a_long_one_of_another():
    done = subprocess.run([sys.executable, "-c", TWO_THREADS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "worker 1 on node2 has waited 0.4 s for the other workers (gradients 0)" in done.stderr
