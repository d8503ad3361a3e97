"""``python -m tests.distributed.programs MODULE.NAME FOLDER ARGUMENT...``: one rank of a program."""

import gc
import json
import sys
from importlib import import_module
from pathlib import Path

from hpcdat.cluster.workers import start_workers

DIVIDED = ("collectives.every_collective", "exchange.nodes_of_two", "collectives.teams_that_end_apart")

program, folder, *arguments = sys.argv[1:]
module, name = program.split(".")
teams = any(argument.startswith("smoothing.workers=") for argument in arguments)
run = getattr(import_module(f"tests.distributed.programs.{module}"), name)
workers = start_workers(60, divisible=teams or program in DIVIDED)
answer = run(workers, *arguments)
Path(folder, f"{program}.{workers.rank}.json").write_text(json.dumps(answer))
workers.close()
# A quicker end, as the command hpcdat has it.
gc.freeze()
