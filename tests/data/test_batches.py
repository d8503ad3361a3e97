"""Which worker reads which images."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.data.batches import evaluation_batches, training_shares

counts, batches, sizes = st.integers(1, 60), st.integers(1, 9), st.integers(1, 6)


@given(counts, batches, sizes, st.integers(0, 3))
def test_every_image_is_trained_on_once_an_epoch(count, batch, size, epoch):
    workers = [training_shares(count, batch, rank=r, size=size, seed=5, epoch=epoch) for r in range(size)]
    assert len({len(shares) for shares in workers}) == 1, "unequal numbers of steps would hang the workers"
    seen = np.concatenate([share.indices for shares in workers for share in shares])
    assert sorted(seen) == list(range(count))
    for step in zip(*workers, strict=True):
        lengths = [len(share.indices) for share in step]
        assert {share.global_size for share in step} == {sum(lengths)}
        assert max(lengths) <= batch and max(lengths) - min(lengths) <= 1


@given(counts, batches, sizes)
def test_many_workers_see_the_global_batches_of_one(count, batch, size):
    one = training_shares(count, batch * size, rank=0, size=1, seed=1, epoch=2)
    many = [training_shares(count, batch, rank=r, size=size, seed=1, epoch=2) for r in range(size)]
    for share, *parts in zip(one, *many, strict=True):
        assert np.array_equal(share.indices, np.concatenate([part.indices for part in parts]))


def test_each_epoch_and_seed_has_its_own_order():
    orders = {
        tuple(training_shares(50, 50, rank=0, size=1, seed=seed, epoch=epoch)[0].indices)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


@given(counts, batches, sizes)
def test_evaluation_batches_do_not_depend_on_the_number_of_workers(count, batch, size):
    serial = evaluation_batches(count, batch, rank=0, size=1)
    shared = [b for r in range(size) for b in evaluation_batches(count, batch, rank=r, size=size)]
    assert [(n, list(i)) for n, i in sorted(shared, key=lambda b: b[0])] == [(n, list(i)) for n, i in serial]
    assert sorted(np.concatenate([i for _, i in serial])) == list(range(count))
