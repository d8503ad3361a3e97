"""Collectives, and models made equal."""

import random
import threading
import time

import torch
from torch import nn

from hpcdat.errors import HpcdatError, InputError
from hpcdat.models.fingerprint import named_state
from hpcdat.training.replicas import BatchNormStatistics, check_equal, make_equal, row_blocks


def every_collective(workers, patch=None):
    """Every collective, with values that tell the ranks apart."""
    rank = workers.rank
    tensors = [torch.full((3,), float(rank + 1)), torch.tensor([rank], dtype=torch.int64)]
    workers.all_reduce([tensors[0]], "floats")
    workers.all_reduce([tensors[1]], "integers")
    rows = torch.arange(2 * workers.size).view(workers.size, 2) + 100 * rank
    team = workers.split([r % 2 for r in range(workers.size)])
    own = torch.tensor([rank, rank])
    dealt = torch.full(((rank + 1) * workers.size, 1), rank)
    received = torch.full((2,), float(rank))
    workers.broadcast([received], "from worker 0")

    def fail():
        if rank == workers.size - 1:
            raise OSError("no space left")
        if rank == 0:
            raise InputError("bad folder")

    try:
        workers.on_all_ranks("write", fail)
        failure = None
    except HpcdatError as error:
        failure = {"kind": type(error).__name__, "text": str(error), "everywhere": error.everywhere}
    return {
        "rank": rank,
        "size": workers.size,
        "local": {"rank": workers.local_rank, "size": workers.local_size, "nodes": workers.nodes},
        "transport": [workers.engine, workers.transport],
        "sums": {"float32": tensors[0].tolist(), "int64": tensors[1].tolist()},
        "alltoall": workers.iall_to_all(rows, "rows").wait().tolist(),
        "allgather": workers.iall_gather(own, "row").wait().tolist(),
        "gather": workers.igather(own, "row to worker 0").wait().tolist(),
        "deal": workers.iall_to_all_v(dealt, [rank + 1] * workers.size, "rows to all").wait().tolist(),
        "sent": workers.isend(torch.tensor([7 - rank]), 0, workers.size - 1, "row").wait().tolist(),
        "team": {
            "rank": team.rank,
            "size": team.size,
            "sum": team.iall_reduce([own.clone()], "sum").wait()[0].tolist(),
            "first": team.ibroadcast(own.clone(), "first").wait().tolist(),
            "largest": team.iall_reduce_max(own, "largest").wait().tolist(),
        },
        "max": workers.all_reduce_max(torch.tensor([rank, -rank]), "max").tolist(),
        "broadcast": received.tolist(),
        "gathered": workers.all_gather_object({"rank": rank, "é": None}, "gather"),
        "gathered on worker 0": workers.gather_object(["é\n" * rank, rank], "gather on worker 0"),
        "value of worker 0": workers.broadcast_object({"é": [rank]}, "value of worker 0"),
        "failure": failure,
    }


def agreement(workers, patch=None):
    """Models that differ are made equal, told apart, and their batch norm averaged."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(3, 3))
    with torch.no_grad():
        for tensor in named_state(model).values():
            tensor.add_(workers.rank)
    make_equal(workers, model)
    check_equal(workers, model)
    if workers.rank == workers.size - 1:
        with torch.no_grad():
            # The smallest change there is.
            model[2].bias[1] = torch.nextafter(model[2].bias[1], torch.tensor(9.0))
    try:
        check_equal(workers, model)
        found = None
    except HpcdatError as error:
        found = str(error)
    model[1].running_mean.fill_(float(workers.rank))
    model[1].running_var.fill_(float(2 + workers.rank))
    model[1].num_batches_tracked.fill_(10 + workers.rank)
    batch_norm = BatchNormStatistics(model, workers, {"clean": 1, "adversarial": 0})
    batch_norm.count(workers.rank + 1)
    blocks = list(row_blocks(workers, batch_norm.row(), columns=4))
    # Each worker gets its row back, as from a file.
    counts = [int(workers.is_rank0)] * workers.size
    row = workers.iall_to_all_v(torch.cat(blocks, 1), counts, "rows").wait()[0]
    local = batch_norm.local()
    batch_norm.average()
    norm = model[1]
    averaged = {
        "mean": norm.running_mean.tolist(),
        "variance": norm.running_var.tolist(),
        "batches": norm.num_batches_tracked.item(),
        "received": [len(block) for block in blocks],
    }
    batch_norm.restore_row(row)
    restored = batch_norm.local()
    batch_norm.average()
    batch_norm.restore(local)
    return {
        "found": found,
        "own": all(torch.equal(a, b) for a, b in zip(*local, *restored, strict=True))
        and all(torch.equal(a, b) for a, b in zip(*local, *batch_norm.local(), strict=True))
        and norm.running_mean[0].item() == workers.rank,
    } | averaged


def teams_that_end_apart(workers, patch=None):
    """The second team is still at its last sum when the first has nothing left to do."""
    team = workers.split([rank // 2 for rank in range(workers.size)])
    time.sleep(workers.rank // 2)
    total = torch.ones(3)
    team.all_reduce([total], "the last sum")
    return total.tolist()


def neighbors(workers, patch=None, in_pairs=False):
    """Rows of several dtypes from some workers to others, in two channels that odd ranks start the other way.

    Args:
        workers, patch: as always.
        in_pairs: whether no all-to-all may carry them.
    """
    rank, last, partner = workers.rank, workers.size - 1, workers.rank ^ 1
    channels = {name: workers.channel(name, neighbors=True) for name in ("first", "second")}
    if in_pairs:
        patch.delattr(type(workers), "iall_to_all_v")
    # Longer than what MPI sends before the receiver asks for it.
    long = torch.full((2, 200_000), float(rank))
    alone = partner > last

    def start(name):
        channel = channels[name]
        to_0 = torch.full((max(0, rank - 1), 2), rank, dtype=torch.int32)
        others = range(1, workers.size)
        return [
            channel.ineighbor_all_to_all_v(
                to_0,
                {0: len(to_0)} if rank else {},
                {} if rank else dict.fromkeys(others, last),
                f"{name}: to worker 0",
            ),
            *(
                channel.ineighbor_all_to_all_v(
                    torch.tensor([1, 0, turn], dtype=torch.uint8)[: 0 if rank else 3],
                    {} if rank else {last: 3},
                    {0: 5} if rank == last else {},
                    f"{name}: from worker 0, {turn}",
                )
                for turn in range(2)
            ),
            channel.ineighbor_all_to_all_v(
                long[: 0 if alone else 2],
                {} if alone else {partner: 2},
                {} if alone else {partner: 2},
                f"{name}: long",
            ),
        ]

    started = {name: start(name) for name in sorted(channels, reverse=rank % 2 == 1)}
    answers = []
    for name in ("second", "first"):
        *short, exchanged = (pending.wait() for pending in started[name])
        answers.append([*(rows.tolist() for rows in short), exchanged.unique().tolist(), len(exchanged)])
    return answers


def pairs_one_after_the_other(workers, patch=None):
    """The second pair hands over after the first has, and not before; then odd and even ranks in teams."""
    channel, turn = workers.channel("hand-over", neighbors=True), workers.rank // 2
    rows = torch.tensor([workers.rank])
    received = []
    for now in range(workers.size // 2):
        if now == turn:
            pair = {workers.rank ^ 1: 1}
            received += channel.ineighbor_all_to_all_v(rows, pair, pair, "in turns").wait().tolist()
        workers.barrier("the next pair")
    team = workers.split([rank % 2 for rank in range(workers.size)]).channel("team", neighbors=True)
    mate = {1 - team.rank: 1}
    return [*received, *team.ineighbor_all_to_all_v(rows, mate, mate, "in the team").wait().tolist()]


def flood(workers, patch, threads, count):
    """Collectives of every kind in several threads at once, each after a delay of its own.

    On every worker another thread begins: on a busy machine delays alone do not make sure that orders differ.

    Returns what was wrong, and how many different orders of their starts the workers had.
    """
    rank, size, wrong, order = workers.rank, workers.size, [], []
    channels = [workers.channel(f"flood {number}") for number in range(threads)]
    teams = [channel.split([r % 2 for r in range(size)]) for channel in channels]
    mates = list(range(rank % 2, size, 2))

    def run(number):
        delays, channel, team = random.Random(f"{rank} {number}"), channels[number], teams[number]
        for turn in range(count):
            if turn == 0:
                while len(order) < (number - rank) % threads:
                    time.sleep(0.001)
            else:
                time.sleep(delays.uniform(0, 0.004))
            order.append(number)
            name, own = f"flood {number} {turn}", torch.tensor([float(number), float(rank), float(turn)])
            sums = channel.iall_reduce([own.clone(), torch.tensor([rank])], f"{name} sum")
            dealt = channel.iall_to_all_v(own.expand(sum(range(size)), 3), range(size), f"{name} deal")
            mate = team.iall_gather(own, f"{name} team")
            total, integers = sums.wait()
            expected = [[number * size, sum(range(size)), turn * size], [sum(range(size))]]
            seen = [[total.tolist(), integers.tolist()] == expected]
            seen.append(
                dealt.wait().tolist() == [[number, r, turn] for r in range(size) for _ in range(rank)]
            )
            seen.append(mate.wait().tolist() == [[number, r, turn] for r in mates])
            if not all(seen):
                wrong.append([name, seen])

    started = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    orders = workers.all_gather_object(order, "orders")
    return {"wrong": wrong, "orders": len({tuple(one) for one in orders})}
