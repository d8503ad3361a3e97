"""The processes that read images: what they send, and how they fail without a hang."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from hpcdat.config.sections import Data
from hpcdat.data import find_images, image_waits, open_loader, reading_processes
from hpcdat.data.digits import write_digits
from hpcdat.data.encoded_images import Files
from hpcdat.data.images import DataError
from hpcdat.data.reading_processes import ReadingProcesses, shared_bytes
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.waiting import Wait
from hpcdat.errors import InputError, Stopped, WorkerError
from tests.conftest import CHECKOUT


def numbers(batch):
    return torch.tensor(batch)


class Unsendable:
    """As a batch of images for which there is no shared memory, or no file descriptor."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


NO_ROOM = "unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)"


def without_room(batch):
    return Unsendable(RuntimeError(NO_ROOM)) if 3 in batch else numbers(batch)


def without_files(batch):
    return Unsendable(OSError(24, "Too many open files"))


def killed(batch):
    os.kill(os.getpid(), signal.SIGKILL)


def waits(batch):
    time.sleep(30)


def test_batches_come_in_order_epoch_after_epoch_and_after_an_interruption():
    processes = ReadingProcesses(numbers, 2, 1)
    batches = [[n, n + 1] for n in range(12)]
    for _ in range(2):
        assert [batch.tolist() for batch in processes.read(batches, 2)] == batches
    interrupted = processes.read(batches, 2)
    assert next(interrupted).tolist() == [0, 1]
    interrupted.close()
    assert [batch.tolist() for batch in processes.read(batches[5:], 2)] == batches[5:]
    assert list(processes.read([], 0)) == []


def test_a_lack_of_shared_memory_is_named_with_sizes_and_what_helps():
    processes = ReadingProcesses(without_room, 2, 3 * 224 * 224)
    read = processes.read([[1, 2], [3, 4], [5, 6]], 2)
    assert next(read).tolist() == [1, 2]
    with pytest.raises(InputError) as caught:
        next(read)
    message = str(caught.value)
    assert (
        message.startswith("/dev/shm is too small for data.loader: torchvision: it has ")
        and "\n" not in message
    )
    assert f"up to {5 * 2 * 3 * 224**2 / 2**20:.3g} MiB" in message
    for help_ in ("--shm-size", "--ipc=host", "data.threads", "data.loader: dali"):
        assert help_ in message
    assert shared_bytes(10, 2) == 50


def test_what_cannot_be_sent_for_another_reason_is_named():
    with pytest.raises(WorkerError, match=r"a process cannot send images: .*Too many open files"):
        next(ReadingProcesses(without_files, 1, 1).read([[1]], 1))


def test_a_process_that_is_killed_ends_the_wait():
    before = multiprocessing.active_children()
    read = ReadingProcesses(killed, 1, 1).read([[1], [2]], 1)
    with pytest.raises(WorkerError, match=r"has ended.* was killed, probably because memory ran out"):
        next(read)
    for process in multiprocessing.active_children():
        assert process in before or (process.join(10) is None and process.exitcode is not None)


def test_a_stop_request_ends_a_wait_for_images(monkeypatch):
    """The handler is that of a trainer; it gets the signal."""
    handlers = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
    monkeypatch.setattr(image_waits, "SECONDS_TO_FINISH", 0.5)
    try:
        StopRequest()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="waiting for images"):
            next(ReadingProcesses(waits, 1, 1).read([[1]], 1))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("read_before", [0, 1])
def test_a_stop_request_ends_a_wait_for_a_file_system_that_does_not_answer(
    tmp_path, monkeypatch, read_before
):
    """As a named pipe that nobody writes to; of DALI's loader, whose threads read the files."""
    settings = Data(source="digits", root=tmp_path / "digits", image_size=8, channels=1)
    images, _ = find_images(settings)
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    files = [*images.files]
    files[4:8] = [str(pipe)] * 4
    images = replace(images, files=Files.of(files))
    handlers = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
    monkeypatch.setattr(image_waits, "SECONDS_TO_FINISH", 0.5)
    reader = open_loader(images, settings, training=False, batch_size=4, device=torch.device("cpu"))
    batches = [np.arange(4)] * 3 * read_before + [np.arange(4, 8)]
    try:
        StopRequest().requested = True
        epoch = reader.read(batches, seed=0)
        with pytest.raises(Stopped, match="waiting for image files to be read"):
            list(epoch)
        reader.close()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # Let the threads go.
        for _ in range(4):
            with contextlib.suppress(OSError):
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            time.sleep(0.05)


def test_a_long_wait_is_announced_once_for_all_batches(monkeypatch, capsys):
    monkeypatch.setattr(
        image_waits, "Wait", lambda *arguments, **options: Wait(*arguments, **options, notice=0)
    )
    processes = ReadingProcesses(brief, 1, 1)
    assert len(list(processes.read([[1], [2], [3]], 1))) == 3
    assert capsys.readouterr().err.count("waiting for images") == 1


def brief(batch):
    time.sleep(0.5)
    return batch


@pytest.mark.parametrize("where", ["ensure_running", "submit"])
def test_processes_that_cannot_be_started_say_what_they_need(monkeypatch, where):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if where == "submit":
        monkeypatch.setattr(reading_processes.ProcessPoolExecutor, "submit", full)
    else:
        monkeypatch.setattr(reading_processes.forkserver, "ensure_running", full)
    with pytest.raises(
        InputError, match=r"cannot be started: .*No space left on device.*/dev/shm.*TMPDIR"
    ) as one:
        next(ReadingProcesses(numbers, 1, 1).read([[1]], 1))
    assert "\n" not in str(one.value)

    def no_folder():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(reading_processes.tempfile, "gettempdir", no_folder)
    with pytest.raises(InputError, match="Set TMPDIR to a folder that exists"):
        next(ReadingProcesses(numbers, 1, 1).read([[1]], 1))


def test_digits_that_cannot_be_written_name_a_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=rf"{tmp_path}/file/.*: Not a directory.*data\.root.*XDG_CACHE_HOME"):
        find_images(Data(source="digits"))
    with pytest.raises(DataError, match=r"Set data\.root"):
        write_digits(tmp_path / "file" / "digits")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)

    def unknown(number):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(DataError, match="no home folder"):
        find_images(Data(source="digits"))


SLOW = "hpcdat: waiting for images from the processes of data.threads\n"
"""Printed where it takes more than ten seconds to start the processes."""

READER = """
import signal, sys
import numpy as np
import torch
from pathlib import Path
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.data import find_images, open_loader
from hpcdat.config.sections import Data

for number in StopRequest.SIGNALS:
    signal.signal(number, lambda *_: None)
print("begins", flush=True)
settings = Data(root=Path(sys.argv[1]), loader="torchvision", image_size=16)
images, _ = find_images(settings)
loader = open_loader(images, settings, training=True, batch_size=1, device=torch.device("cpu"))
print(len(list(loader.read([np.array([n % 5]) for n in range(200)], seed=0))), flush=True)
loader.close()
"""


@pytest.mark.parametrize(
    "number, end, code",
    [
        (signal.SIGTERM, "import os; os._exit(75)", 75),
        pytest.param(signal.SIGINT, "", 0, marks=pytest.mark.full),
        pytest.param(signal.SIGUSR2, "", 0, marks=pytest.mark.full),
    ],
)
def test_signals_to_all_processes_of_a_worker_are_left_to_the_one_that_trains(photos, number, end, code):
    """A terminal sends Ctrl-C to them, mpirun SIGUSR2, Slurm SIGTERM.

    A trainer that then has to end at once leaves no process and no word behind.
    """
    reader = subprocess.Popen(
        [sys.executable, "-c", f"{READER}sys.stdin.readline()\n{end}", str(photos)],
        cwd=CHECKOUT,
        start_new_session=True,
        # It ends when no more signals come: Python handles none while it ends.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout.readline() == "begins\n"
    has_read = threading.Event()

    def send():
        while not has_read.wait(0.005):
            os.killpg(reader.pid, number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        images = reader.stdout.readline()
    finally:
        has_read.set()
        sender.join()
    # Until all have ended that hold its output.
    _, told = reader.communicate("\n", timeout=60)
    assert (images, told.replace(SLOW, ""), reader.returncode) == ("200\n", "", code)


def test_a_trainer_can_end_the_processes_that_read_for_it(photos):
    settings = Data(root=photos, loader="torchvision", image_size=16)
    before = multiprocessing.active_children()
    reader = open_loader(
        find_images(settings)[0], settings, training=False, batch_size=4, device=torch.device("cpu")
    )
    list(reader.read([np.array([0])], seed=0))
    readers = [process for process in multiprocessing.active_children() if process not in before]
    assert readers
    for process in readers:
        process.terminate()
        process.join(5)
        assert process.exitcode is not None
