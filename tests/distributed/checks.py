"""What must hold of the ranks' answers, whatever carries their collectives."""


def check_collectives(answers, transport):
    """Of ``collectives.every_collective``."""
    size = len(answers)
    total = size * (size + 1) / 2
    for rank, answer in enumerate(answers):
        assert (answer["rank"], answer["size"], answer["transport"]) == (rank, size, transport)
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
        assert answer["gathered"] == [{"rank": r, "é": None} for r in range(size)]
        failure = answer["failure"]
        assert failure["everywhere"]
        if size == 1:
            assert failure["text"] == "cannot write: no space left"
            continue
        assert failure["kind"] == "WorkerError"
        assert "bad folder (worker 0 on " in failure["text"]
        assert f"cannot write: no space left (worker {size - 1} on " in failure["text"]


def check_agreement(answers):
    """Of ``collectives.agreement``."""
    size = len(answers)
    mean = (size - 1) / 2
    for answer in answers:
        if size > 1:
            assert "2.bias differ" in answer["found"] and "weight" not in answer["found"]
        assert answer["own"]
        assert answer["mean"] == [mean] * 2 and answer["variance"] == [2 + mean] * 2
        assert answer["batches"] == 10 + size - 1
