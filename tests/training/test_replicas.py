"""Running statistics of many workers in one process: averaged as one population, collected block by block."""

import threading
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.distributed.loopback import Loopback, loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import Stopped
from hpcdat.models.split_batch_norm import routed, split_batch_norm
from hpcdat.storage.run_folder import RunFolder
from hpcdat.storage.worker_rows import check_rows, read_row, write_rows
from hpcdat.training.replicas import BatchNormStatistics, row_blocks
from tests.conftest import DEMO, Never
from tests.training.test_resume import AfterPolls


def batch_norm_of(workers, *, split=False, features=3, virtual=1, momentum=1.0):
    """A net of a batch norm alone, all of whose workers train all branches, with its statistics."""
    model = nn.Sequential(nn.BatchNorm1d(features, momentum=momentum, affine=False))
    if split:
        split_batch_norm(model)
    trained = {"clean": virtual, "adversarial": virtual if split else 0}
    return model, BatchNormStatistics(model, workers, trained)


def population(parts):
    """Mean and variance of several samples as one, from counts, means and variances, in float64."""
    n, m, v = (np.array(values, dtype=np.float64) for values in zip(*parts, strict=True))
    n = n[:, None] if m.ndim == 2 else n
    mean = (n * m).sum(0) / n.sum(0)
    return mean, (n * (v + (m - mean) ** 2)).sum(0) / n.sum(0)


@given(st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), min_size=1, max_size=4), st.booleans())
def test_statistics_of_uneven_shares_are_those_of_one_population(counts, split):
    """Two virtual workers on each worker, some without images; means are far from 0 and from each other."""
    random = np.random.default_rng(0)
    # With momentum 1 the statistics are those of the last batch.
    images = [
        [1000 * worker + random.normal(size=(n and n + 1, 3)) for n in row]
        for worker, row in enumerate(counts)
    ]

    def program(workers):
        model, statistics = batch_norm_of(workers, virtual=2, split=split)
        model.train()
        for place, x in enumerate(images[workers.rank]):
            if len(x):
                statistics.enter(place)
                statistics.count(len(x))
                for branch, factor in (("clean", 1), ("adversarial", -2)) if split else (("clean", 1),):
                    with routed(model, branch):
                        model(torch.tensor(factor * x, dtype=torch.float32))
        statistics.average()
        state = {name: t.numpy().copy() for name, t in model.state_dict().items()}
        return state, [t.clone() for kept in statistics.local() for t in kept]

    given_images = [x.astype(np.float32).astype(np.float64) for row in images for x in row if len(x)]
    answers = run_threads(loopback(len(counts)), program)
    for state, local in answers:
        assert all(np.array_equal(t, answers[0][0][name]) for name, t in state.items())
        assert all(torch.equal(a, b) for a, b in zip(local, answers[0][1], strict=True))
        for prefix, factor in (("0.main.", 1), ("0.auxiliary.", -2)) if split else (("0.", 1),):
            if not given_images:
                mean, variance = np.zeros(3), np.ones(3)
            else:
                parts = [(len(x), factor * x.mean(0), factor**2 * x.var(0, ddof=1)) for x in given_images]
                mean, variance = population(parts)
            np.testing.assert_allclose(state[f"{prefix}running_mean"], mean, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(state[f"{prefix}running_var"], variance, rtol=1e-5)


def test_the_spread_between_workers_counts():
    """Half of all images are about -1 and half about 1: a variance of 2 where each worker sees 1."""

    def program(workers):
        model, statistics = batch_norm_of(workers)
        model[0].running_mean.fill_(2.0 * workers.rank - 1)
        statistics.count(64)
        statistics.average()
        return model[0].running_mean.tolist() + model[0].running_var.tolist()

    assert run_threads(loopback(2), program) == [[0.0] * 3 + [2.0] * 3] * 2


def test_only_workers_that_train_a_branch_count_for_it():
    """One worker has the clean half of a batch, one the adversarial half, and one attacks."""

    def program(workers):
        model, _ = batch_norm_of(workers, split=True)
        trained = {"clean": int(workers.rank == 0), "adversarial": int(workers.rank == 1)}
        statistics = BatchNormStatistics(model, workers, trained)
        for branch in (model[0].main, model[0].auxiliary):
            branch.running_mean.fill_(workers.rank + 5)
        statistics.count(30 if workers.rank < 2 else 0)
        statistics.average()
        return [branch.running_mean[0].item() for branch in (model[0].main, model[0].auxiliary)]

    assert run_threads(loopback(3), program) == [[5, 6]] * 3


def test_a_second_average_changes_no_bit():
    def program(workers):
        model, statistics = batch_norm_of(workers, momentum=0.1)
        model.train()
        for _ in range(3):
            statistics.count(5)
            model(torch.randn(5, 3, generator=torch.Generator().manual_seed(workers.rank)) + workers.rank / 3)
        statistics.average()
        once = [t.clone() for t in model.state_dict().values()]
        statistics.average()
        return all(torch.equal(a, b) for a, b in zip(once, model.state_dict().values(), strict=True))

    assert run_threads(loopback(7), program) == [True] * 7


class Counted(Loopback):
    """A rank that counts the bytes it receives."""

    received: ClassVar[Counter[int]] = Counter()
    most: ClassVar[Counter[int]] = Counter()

    def _start(self, kind, name, value, combine, take=lambda output: output):
        def count(output):
            result = take(output)
            size = sum(
                t.numel() * t.element_size() for t in (result if isinstance(result, list) else [result])
            )
            with LOCK:
                Counted.received[self.rank] += size
                Counted.most[self.rank] = max(Counted.most[self.rank], size)
            return result

        return super()._start(kind, name, value, combine, count)


LOCK = threading.Lock()


def counted(size, timeout=300.0):
    Counted.received.clear()
    Counted.most.clear()
    ranks = loopback(size, timeout=timeout)
    for rank in ranks:
        rank.__class__ = Counted
    return ranks


@pytest.mark.parametrize("size, most", [(384, 2**16), pytest.param(1536, 2**18, marks=pytest.mark.full)])
def test_workers_send_their_statistics_to_the_first_and_receive_none(size, most, tmp_path):
    """Split batch norm of 64 features: rows of 1,056 bytes, 1.6 MB with 1,536 workers, in blocks."""

    def program(workers):
        model, statistics = batch_norm_of(workers, split=True, features=64)
        for t in model.buffers():
            t.fill_(workers.rank)
        statistics.count(workers.rank)
        blocks = row_blocks(workers, statistics.row(), most // size)
        if workers.is_rank0:
            return write_rows(tmp_path / "rows.bin", blocks)
        for block in blocks:
            assert len(block) == 0
        return statistics.local()

    rows, *others = run_threads(counted(size), program)
    row = 2 * (2 * 64 * 4 + 8) + 8
    assert (rows.workers, rows.row_bytes) == (size, row)
    assert (tmp_path / "rows.bin").stat().st_size == size * row == Counted.received[0]
    assert Counted.most[0] <= most
    assert sum(Counted.received[rank] for rank in range(1, size)) == 0
    check_rows(tmp_path, rows)
    model, statistics = batch_norm_of(SingleProcess(), split=True, features=64)
    for rank in (1, 200, size - 1):
        statistics.restore_row(read_row(tmp_path, rows, rank))
        restored = statistics.local()
        assert all(torch.equal(a, b) for a, b in zip(*restored, *others[rank - 1], strict=True))
        assert model[0].auxiliary.running_var[5] == rank and restored[0][-1] == rank


def test_rows_are_sent_in_as_many_blocks_with_any_number_of_workers():
    row = torch.zeros(200_000, dtype=torch.uint8)

    def blocks_with(size):
        return len(run_threads(loopback(size), lambda workers: list(row_blocks(workers, row)))[1])

    assert blocks_with(2) == blocks_with(200) == 4


SETTINGS = ["epochs=2", "batch_size=25", "data.train_images=200", "data.test_images=20", "method=plain"]
SETTINGS += ["evaluation.steps=1", "evaluation.every=0"]


@pytest.mark.parametrize("step", [1, 2], ids=["within an epoch", "at its end"])
def test_virtual_workers_resume_with_their_own_statistics(tmp_path, step):
    """Four batches in each of two steps an epoch; the same bits as without the stop."""
    jobs = [
        read_job(DEMO, [f"run_dir={tmp_path / name}", *SETTINGS, "virtual_workers=4"])
        for name in ("undisturbed", "stopped")
    ]
    train(jobs[0], SingleProcess(), Never())
    with pytest.raises(Stopped):
        train(jobs[1], SingleProcess(), AfterPolls(step - 1))
    folder = RunFolder(jobs[1].run_dir).checkpoints.folder
    assert len(list(folder.glob("statistics-*.bin"))) == (step == 1)
    train(jobs[1], SingleProcess(), Never())
    assert not list(folder.glob("statistics-*.bin"))
    one, other = (RunFolder(job.run_dir).newest_checkpoint().model for job in jobs)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_pretrained_statistics_are_those_of_all_virtual_workers(tmp_path):
    """With a rate of next to nothing and one epoch, the averaged statistics stay near the pretrained ones."""
    first = read_job(
        DEMO, [f"run_dir={tmp_path / 'first'}", *SETTINGS, "epochs=1", "schedule.decay_epochs=[]"]
    )
    train(first, SingleProcess(), Never())
    with torch.no_grad():
        checkpoint = RunFolder(first.run_dir).newest_checkpoint()
        name = next(name for name in checkpoint.model if name.endswith("running_var"))
        checkpoint.model[name].fill_(1e6)
    state = {n.removeprefix("1."): t for n, t in checkpoint.model.items() if n.startswith("1.")}
    torch.save(state, tmp_path / "weights.pth")
    second = read_job(
        DEMO,
        [
            *(f"run_dir={tmp_path / 'second'}", *SETTINGS, "epochs=1", "schedule.decay_epochs=[]"),
            *("virtual_workers=4", f"model.pretrained={tmp_path / 'weights.pth'}"),
        ],
    )
    train(second, SingleProcess(), Never())
    # Two steps of momentum 0.1 leave 0.81 of it, on every virtual worker.
    variance = RunFolder(second.run_dir).newest_checkpoint().model[name]
    torch.testing.assert_close(variance, torch.full_like(variance, 0.81e6), rtol=1e-3, atol=0)
