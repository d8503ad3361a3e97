"""What must hold of the ranks' answers, whatever carries their collectives."""

import pytest


def check_collectives(answers, transport):
    """Of ``collectives.every_collective``; ``transport``: name of the engine and of its transport."""
    size = len(answers)
    total = size * (size + 1) / 2
    for rank, answer in enumerate(answers):
        assert (answer["rank"], answer["size"]) == (rank, size)
        assert tuple(answer["transport"]) == transport
        assert answer["local"] == {"rank": rank, "size": size, "nodes": 1}
        assert answer["sums"] == {"float32": [total] * 3, "int64": [total - size]}
        assert answer["alltoall"] == [[2 * rank + 100 * r, 2 * rank + 1 + 100 * r] for r in range(size)]
        assert answer["allgather"] == [[r, r] for r in range(size)]
        assert answer["gather"] == ([[r, r] for r in range(size)] if rank == 0 else [])
        # Rank r deals r + 1 rows of its own number to every rank.
        assert answer["deal"] == [[r] for r in range(size) for _ in range(r + 1)]
        assert answer["sent"] == ([[7]] if rank == size - 1 else [])
        mates = list(range(rank % 2, size, 2))
        assert answer["team"] == {
            "rank": mates.index(rank),
            "size": len(mates),
            "sum": [sum(mates)] * 2,
            "first": [mates[0]] * 2,
            "largest": [mates[-1]] * 2,
        }
        assert answer["max"] == [size - 1, 0]
        assert answer["broadcast"] == [0.0, 0.0]
        everybody = [["é\n" * r, r] for r in range(size)]
        assert answer["gathered on worker 0"] == (everybody if rank == 0 else [])
        assert answer["value of worker 0"] == {"é": [0]}
        assert answer["gathered"] == [{"rank": r, "é": None} for r in range(size)]
        failure = answer["failure"]
        assert failure["everywhere"]
        if size == 1:
            assert failure["text"] == "cannot write: no space left"
            continue
        assert failure["kind"] == "WorkerError"
        assert "bad folder (worker 0 on " in failure["text"]
        assert f"cannot write: no space left (worker {size - 1} on " in failure["text"]


def check_neighbors(answers):
    """Of ``collectives.neighbors``."""
    last = len(answers) - 1
    for rank, answer in enumerate(answers):
        partner = rank ^ 1
        to_0 = [[r, r] for r in range(1, last + 1) for _ in range(r - 1)] if rank == 0 else []
        from_0 = [[1, 0, 0], [1, 0, 1]] if rank == last else [[], []]
        long = [[float(partner)], 2] if partner <= last else [[], 0]
        assert answer == [[to_0, *from_0, *long]] * 2


def check_agreement(answers):
    """Of ``collectives.agreement``."""
    size = len(answers)
    # Worker r has mean r, variance 2 + r and r + 1 images.
    images = sum(range(size + 1))
    mean = sum((r + 1) * r for r in range(size)) / images
    variance = sum((r + 1) * (2 + r + (r - mean) ** 2) for r in range(size)) / images
    for rank, answer in enumerate(answers):
        if size > 1:
            assert "2.bias differ" in answer["found"] and "weight" not in answer["found"]
        assert answer["own"]
        # 32 bytes of statistics and counts, four of each worker at a time.
        assert answer["received"] == [0 if rank else size] * 8
        assert answer["mean"] == pytest.approx([mean] * 2)
        assert answer["variance"] == pytest.approx([variance] * 2)
        assert answer["batches"] == 10 + size - 1
