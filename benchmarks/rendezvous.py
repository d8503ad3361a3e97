"""How long workers that srun starts need to connect, and what bounds it.

``python benchmarks/rendezvous.py [--engine torch] [--workers M,M] [--per-node Q] [--json PATH]`` forks so
many processes, with the variables that srun sets for the tasks of a step on nodes of Q, and lets them
connect as under ``hpcdat train``: they find the store of worker 0, through which every pair of them
connects over Gloo. All run on this machine; worker 0 counts the requests that its store answers.

Horovod connects three kinds of groups: all M workers, the Q of a node, and one of each of the p = M / Q
nodes. torch.distributed connects all M. In a group of n, each worker puts its addresses into the store, and
asks it for those of each of the n - 1 others, several times. In all there are M (M + Q + p - 3) such pairs
in Horovod, and M (M - 1) in torch.distributed, and one process answers all requests, one after the other.

Ratios:

- ``requests_per_pair_M``: requests over the pairs.
- ``seconds_exponent``: of M, of the time until all are connected.
- ``seconds_per_request``: seconds of a core in worker 0's process over the requests, with the largest M.
- ``minutes_at_1536``: their product for 1,536 workers on nodes of Q: how long the process of worker 0
  computes.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from arguments import Parser, errors_in_one_line, listed, whole
from tabulate import tabulate

from hpcdat.distributed.engine import horovod_is_installed
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.key_value_store import StoreServer
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, WorkerError
from hpcdat.performance.benchmark_file import BenchmarkFile, Row

REQUESTS: Counter[str] = Counter()
"""What the store of this process was asked, by operation."""
SECONDS_TO_CONNECT = 300
EXTRAPOLATED = 1536


def count_requests() -> None:
    """Let the store of this process count the requests that it answers."""
    answer = StoreServer.answer

    def counted(server: StoreServer, connection: Any, request: dict[str, Any], given: list[bytes]) -> None:
        REQUESTS[request["operation"]] += 1
        answer(server, connection, request, given)

    StoreServer.answer = counted  # type: ignore[method-assign]


def variables(rank: int, size: int, per_node: int, step: int) -> dict[str, str]:
    """What srun sets for a task; all nodes are this machine."""
    nodes = size // per_node
    return {
        "SLURM_JOB_ID": str(os.getppid()),
        "SLURM_STEP_ID": str(step),
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{nodes})",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % per_node),
        "SLURM_NODEID": str(rank // per_node),
        "SLURMD_NODENAME": f"node{rank // per_node}",
    }


def connect(engine: Literal["horovod", "torch"], answer: Path) -> None:
    """Connect as one of the workers; write how long it took."""
    began, cpu = time.monotonic(), time.process_time()
    workers = init_communicator(SECONDS_TO_CONNECT, engine=engine)
    report = {
        "began": began,
        "ended": time.monotonic(),
        "cpu": time.process_time() - cpu,
        "requests": dict(REQUESTS),
    }
    answer.write_text(json.dumps(report))
    workers.close()


def measure(engine: Literal["horovod", "torch"], size: int, per_node: int, step: int) -> dict[str, Any]:
    """Fork so many workers and let them connect."""
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(size):
            child = os.fork()
            if not child:
                try:
                    os.environ.update(variables(rank, size, per_node, step))
                    connect(engine, Path(folder) / str(rank))
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        endings = [os.waitpid(child, 0)[1] for child in children]
        if any(endings):
            raise WorkerError(f"a worker of {size} failed")
        answers = [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(size)]
    last, first = max(one["ended"] for one in answers), max(one["began"] for one in answers)
    return {"seconds": last - first, "cpu": answers[0]["cpu"], "requests": answers[0]["requests"]}


def pairs_of(engine: str, size: int, per_node: int) -> int:
    """Pairs of workers, in both directions, in the groups that an engine connects."""
    others = size - 1
    return size * (others if engine == "torch" else others + per_node - 1 + size // per_node - 1)


@errors_in_one_line
def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = Parser("how long workers of srun need to connect", alone="it starts others itself")
    parser.add_argument(
        "--engine", choices=["horovod", "torch"], default="horovod", help="default: %(default)s"
    )
    parser.add_argument(
        "--workers",
        type=listed(whole(2)),
        default="4,8,16,32",
        metavar="M,M",
        help="numbers of workers (default: %(default)s)",
    )
    parser.add_argument(
        "--per-node", type=whole(1), default=4, metavar="Q", help="workers of a node (default: %(default)s)"
    )
    parser.add_json()
    arguments = parser.parse_args()
    sizes, q = arguments.workers, arguments.per_node
    if any(size % q for size in sizes):
        parser.error(f"--workers: not all of {sizes} are multiples of {q}")
    torch.set_num_threads(1)
    # The modules are loaded once: the time to load them is not that of connecting.
    if arguments.engine == "horovod":
        if not horovod_is_installed():
            raise InputError("--engine horovod: Horovod is not installed; make setup builds it")
        import horovod.torch  # noqa: F401
    import hpcdat.distributed.torch_communicator  # noqa: F401

    count_requests()
    found, rows, ratios = {}, [], {}
    for step, size in enumerate(sizes):
        found[size] = measure(arguments.engine, size, q, step)
        requests = found[size]["requests"]
        total = sum(requests.values())
        ratios[f"requests_per_pair_{size}"] = total / pairs_of(arguments.engine, size, q)
        seconds, cpu = found[size]["seconds"], found[size]["cpu"]
        texts = [", ".join(f"{number} {kind}" for kind, number in sorted(requests.items()))]
        print(f"{size} workers: connected after {seconds:.2f} s", flush=True)
        rows.append(
            [size, f"{seconds:.2f}", f"{cpu:.2f}", total, pairs_of(arguments.engine, size, q), *texts]
        )
    header = ["M", "seconds", "of a core, worker 0", "requests", "pairs", "of which"]
    print(tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n")
    times = [found[size]["seconds"] for size in sizes]
    if len(sizes) > 1:
        ratios["seconds_exponent"] = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
    largest = found[sizes[-1]]
    ratios["seconds_per_request"] = largest["cpu"] / sum(largest["requests"].values())
    requests = pairs_of(arguments.engine, EXTRAPOLATED, q) * ratios[f"requests_per_pair_{sizes[-1]}"]
    ratios[f"minutes_at_{EXTRAPOLATED}"] = requests * ratios["seconds_per_request"] / 60
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3g}")
    if arguments.json:
        environment = describe_environment(SingleProcess(), torch.device("cpu"))
        settings = {"engine": arguments.engine, "workers_per_node": q, "repetitions": 1, "warm_up": 0}
        measured = [
            Row(
                parameters={"workers": size, "engine": arguments.engine},
                seconds=[one["seconds"]],
                figures={"processor_seconds": one["cpu"], **one["requests"]},
            )
            for size, one in found.items()
        ]
        BenchmarkFile.of("rendezvous", environment, settings, measured, ratios).write(arguments.json)


if __name__ == "__main__":
    main()
