"""``python -m tests.distributed.rank SOCKET DIVISIBLE``: one rank of a team, for one program after another.

A program is ``programs.MODULE.NAME(workers, patch, *arguments)`` and returns a JSON value. ``patch`` is
pytest's monkeypatch, undone when the program ends.
"""

import gc
import inspect
import json
import os
import signal
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path

import pytest
import torch

from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.single_process import SingleProcess

OBSERVED = ("hpcdat", "pyautoattack")
"""Packages in which a program may patch something."""


def state(workers):
    """What a program could leave behind, by name."""
    found = {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "working directory": Path.cwd(),
    }
    found |= {f"handler of {number.name}": signal.getsignal(number) for number in SIGNALS}
    found |= {f"environment variable {name}": value for name, value in os.environ.items()}
    found |= {f"workers.{name}": value for name, value in vars(workers).items() if name not in GROWING}
    found["stall timeout"] = workers._watchdog.seconds
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in OBSERVED:
            for attribute, value in vars(module).items():
                if attribute.startswith("__"):
                    continue
                found[f"{name}.{attribute}"] = dict(value) if isinstance(value, dict) else value
                if inspect.isclass(value) and value.__module__ == name:
                    # torch wraps the method step of every optimiser when the first one is made.
                    members = {a: inspect.unwrap(v) if callable(v) else v for a, v in vars(value).items()}
                    found |= {f"{name}.{attribute}.{a}": v for a, v in members.items() if a[0] != "_"}
    return found


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
GROWING = ("_process_sets", "_groups")


def left_behind(before, after):
    """Names of what is not as it was."""
    return [
        name for name, value in before.items() if not (after.get(name) is value or after.get(name) == value)
    ]


def find(program):
    """The function that ``MODULE.NAME`` names."""
    module, name = program.split(".")
    return getattr(import_module(f"tests.distributed.programs.{module}"), name)


def run_alone(program, *arguments):
    """Run a program in this process, as its only worker; the answer, as a rank of a team would give it."""
    with pytest.MonkeyPatch.context() as patch:
        return json.loads(json.dumps(find(program)(SingleProcess(), patch, *arguments)))


def answer_to(workers, program, arguments):
    run = find(program)
    torch.manual_seed(0)
    before = state(workers)
    try:
        with pytest.MonkeyPatch.context() as patch:
            answer = run(workers, patch, *arguments)
    except BaseException:
        return {"failure": traceback.format_exc()}
    if left := left_behind(before, state(workers)):
        return {"failure": f"{program} leaves behind: {', '.join(left)}"}
    return {"answer": answer}


def main():
    address, divisible = sys.argv[1:]
    workers = init_communicator(60, divisible=divisible == "1")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        lines = connection.makefile("rw")
        print(json.dumps({"rank": workers.rank}), file=lines, flush=True)
        for line in lines:
            print(json.dumps(answer_to(workers, **json.loads(line))), file=lines, flush=True)
    workers.close()
    # A quicker end, as the command hpcdat has it.
    gc.freeze()


if __name__ == "__main__":
    main()
