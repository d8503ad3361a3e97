"""Which worker reads which images."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.data.sampler import evaluation_batches, training_shares

counts, batches, sizes = st.integers(1, 60), st.integers(1, 9), st.integers(1, 6)


@st.composite
def teams(draw):
    """Workers in groups, numbered in the order in which they appear."""
    places = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    return [list(dict.fromkeys(places)).index(place) for place in places]


@given(counts, batches, teams(), st.integers(0, 3))
def test_every_image_is_trained_on_once_an_epoch(count, batch, groups, epoch):
    workers = [
        training_shares(count, batch, rank=r, groups=groups, seed=5, epoch=epoch) for r in range(len(groups))
    ]
    assert len({len(shares) for shares in workers}) == 1, "unequal numbers of steps would hang the workers"
    seen = np.concatenate([share.indices for shares in workers for share in shares])
    assert sorted(seen) == list(range(count))
    for step in zip(*workers, strict=True):
        lengths = [len(share.indices) for share in step]
        assert {share.global_size for share in step} == {sum(lengths)}
        assert max(lengths) <= batch
        for group in set(groups):
            own = [n for n, g in zip(lengths, groups, strict=True) if g == group]
            assert max(own) - min(own) <= 1


@given(counts, batches, teams())
def test_a_group_keeps_its_own_part_of_the_images(count, batch, groups):
    def part(group, epoch):
        ranks = [rank for rank, g in enumerate(groups) if g == group]
        shares = [
            share
            for rank in ranks
            for share in training_shares(count, batch, rank=rank, groups=groups, seed=1, epoch=epoch)
        ]
        return set(np.concatenate([share.indices for share in shares]).tolist())

    for group in set(groups):
        assert part(group, 0) == part(group, 7)
        fair = count * groups.count(group) / len(groups)
        assert abs(len(part(group, 0)) - fair) <= 1


@given(counts, batches, sizes)
def test_many_workers_see_the_global_batches_of_one(count, batch, size):
    one = training_shares(count, batch * size, rank=0, groups=[0], seed=1, epoch=2)
    many = [training_shares(count, batch, rank=r, groups=[0] * size, seed=1, epoch=2) for r in range(size)]
    for share, *parts in zip(one, *many, strict=True):
        assert np.array_equal(share.indices, np.concatenate([part.indices for part in parts]))


def test_each_seed_divides_the_images_otherwise_among_the_groups():
    parts = [
        frozenset(
            i
            for share in training_shares(50, 5, rank=0, groups=[0, 1], seed=seed, epoch=0)
            for i in share.indices
        )
        for seed in range(3)
    ]
    assert len(set(parts)) == 3 and all(len(part) == 25 for part in parts)


def test_each_epoch_and_seed_has_its_own_order():
    orders = {
        tuple(training_shares(50, 50, rank=0, groups=[0], seed=seed, epoch=epoch)[0].indices)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


@given(counts, batches)
def test_evaluation_batches_hold_every_image_once_in_order(count, batch):
    cut = evaluation_batches(count, batch)
    assert np.concatenate([*cut, np.empty(0, int)]).tolist() == list(range(count))
    assert all(len(indices) == batch for indices in cut[:-1]) and all(0 < len(i) <= batch for i in cut)
