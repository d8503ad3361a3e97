"""Which worker reads which images."""

from functools import partial
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.data.sampler import evaluation_batches, steps_of_epoch, training_shares, with_unlabelled
from hpcdat.errors import InputError
from hpcdat.seeds import derive

counts, batches, sizes = st.integers(1, 60), st.integers(1, 9), st.integers(1, 6)
short_shares = partial(training_shares, last_batch="short")


@st.composite
def teams(draw):
    """Workers in groups, numbered in the order in which they appear."""
    places = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    return [list(dict.fromkeys(places)).index(place) for place in places]


def divided(count, groups, seed):
    """The images of every group, as whole lists."""
    ends = [count * workers // len(groups) for workers in accumulate(np.bincount(groups).tolist())]
    shuffled = np.random.default_rng(derive(seed, "split")).permutation(count)
    return [np.sort(part) for part in np.split(shuffled, ends[:-1])]


def written_out(count, batch, rank, groups, seed, epoch, last_batch):
    """A worker's shares, cut out of the batches of all workers of all groups."""
    sizes, steps = np.bincount(groups).tolist(), []
    limit = None if last_batch == "short" else steps_of_epoch(count, batch, len(groups), last_batch)
    for group, (part, size) in enumerate(zip(divided(count, groups, seed), sizes, strict=True)):
        order = np.random.default_rng(derive(seed, "order", epoch, group)).permutation(part)
        cuts = [order[at : at + batch * size] for at in range(0, len(order), batch * size)]
        steps.append(cuts[:limit])
    own, place = groups[rank], groups[:rank].count(groups[rank])
    for number in range(max(map(len, steps))):
        batches = [of_group[number] if number < len(of_group) else order[:0] for of_group in steps]
        yield np.array_split(batches[own], sizes[own])[place].tolist(), sum(map(len, batches))


def unlabelled_written_out(shares, unlabelled, mixture, rank, groups, seed, epoch):
    """Positions of the unlabelled images of a worker's batches, those of all workers counted one by one."""
    own = groups[rank]
    order = np.random.default_rng(derive(seed, "unlabelled", epoch, own)).permutation(
        divided(unlabelled, groups, seed)[own]
    )
    taken = 0
    for share in shares:
        more = round(share.global_size * mixture[1] / mixture[0])
        every = [len(part) for part in np.array_split(np.arange(more), len(groups))]
        ours = [size if group == own else 0 for size, group in zip(every, groups, strict=True)]
        places = np.arange(every[rank]) + taken + sum(ours[:rank])
        taken += sum(ours)
        yield order.take(places, mode="wrap").tolist(), more


def of_all(count, batch, groups, epoch, last_batch):
    """The shares of every worker."""
    place = {"groups": groups, "seed": 5, "epoch": epoch, "last_batch": last_batch}
    return [training_shares(count, batch, rank=rank, **place) for rank in range(len(groups))]


@given(counts, batches, teams(), st.integers(0, 3))
def test_with_a_short_batch_every_image_is_trained_on_once_an_epoch(count, batch, groups, epoch):
    workers = of_all(count, batch, groups, epoch, "short")
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


@given(counts, batches, teams(), st.integers(0, 3))
def test_no_worker_has_a_tiny_batch(count, batch, groups, epoch):
    """Each has as many steps of full batches as fit, however unequal the nodes are."""
    size = batch * len(groups)
    if count < size:
        with pytest.raises(InputError, match=rf"{count} images and a global batch {len(groups)} x {batch} "):
            of_all(count, batch, groups, epoch, "drop")
        return
    workers = of_all(count, batch, groups, epoch, "drop")
    assert {len(shares) for shares in workers} == {count // size}
    assert {len(share.indices) for shares in workers for share in shares} == {batch}
    assert {share.global_size for shares in workers for share in shares} == {size}
    seen = np.concatenate([share.indices for shares in workers for share in shares])
    assert len(set(seen)) == len(seen)


def test_over_the_epochs_all_images_are_left_out_equally_often():
    """15 of 25 images are in an epoch: about 60 of 100 epochs, with a standard deviation of 5."""
    times = np.zeros(25, dtype=int)
    for epoch in range(100):
        for shares in of_all(25, 5, [0, 1, 1], epoch, "drop"):
            times[np.concatenate([share.indices for share in shares])] += 1
    assert times.sum() == 1500 and times.min() >= 40 and times.max() <= 80


def test_the_papers_jobs_have_no_tiny_last_step():
    imagenet = partial(steps_of_epoch, 1_281_167, 64, 1536)
    assert (imagenet("drop"), imagenet("short")) == (13, 14), (
        "the 14th has 3,215 images, two or three a worker"
    )
    table_3 = partial(steps_of_epoch, 50_000, 1024, 12)
    assert (table_3("drop"), table_3("short")) == (4, 5), "the fifth has 848 labelled images and 848 others"


@given(counts, batches, teams(), st.integers(0, 3), st.sampled_from(["drop", "short"]))
def test_a_share_is_that_of_the_batches_of_all_workers_written_out(count, batch, groups, epoch, last_batch):
    """Only the worker's own part is computed; order and sizes are those of the whole epoch."""
    if last_batch == "drop" and count < batch * len(groups):
        return
    for rank, shares in enumerate(of_all(count, batch, groups, epoch, last_batch)):
        whole = written_out(count, batch, rank, groups, 5, epoch, last_batch)
        assert [(share.indices.tolist(), share.global_size) for share in shares] == list(whole)


@given(counts, batches, teams(), st.integers(6, 40), st.integers(1, 9))
def test_unlabelled_images_are_those_of_all_workers_written_out(count, batch, groups, unlabelled, others):
    """Mixed into batches of any size."""
    for rank, shares in enumerate(of_all(count, batch, groups, 1, "short")):
        place = {"rank": rank, "groups": groups, "seed": 5, "epoch": 1}
        mixed = with_unlabelled(shares, count, unlabelled, mixture=(batch, others), **place)
        whole = unlabelled_written_out(shares, unlabelled, (batch, others), **place)
        for share, one, (positions, more) in zip(shares, mixed, whole, strict=True):
            assert one.indices.tolist() == [*share.indices, *(count + at for at in positions)]
            assert one.global_size == share.global_size + more


@given(counts, batches, teams())
def test_a_group_keeps_its_own_part_of_the_images(count, batch, groups):
    def part(group, epoch):
        ranks = [rank for rank, g in enumerate(groups) if g == group]
        shares = [
            share
            for rank in ranks
            for share in short_shares(count, batch, rank=rank, groups=groups, seed=1, epoch=epoch)
        ]
        return set(np.concatenate([share.indices for share in shares]).tolist())

    for group in set(groups):
        assert part(group, 0) == part(group, 7)
        fair = count * groups.count(group) / len(groups)
        assert abs(len(part(group, 0)) - fair) <= 1


@given(counts, batches, sizes)
def test_many_workers_see_the_global_batches_of_one(count, batch, size):
    one = short_shares(count, batch * size, rank=0, groups=[0], seed=1, epoch=2)
    many = [short_shares(count, batch, rank=r, groups=[0] * size, seed=1, epoch=2) for r in range(size)]
    for share, *parts in zip(one, *many, strict=True):
        assert np.array_equal(share.indices, np.concatenate([part.indices for part in parts]))


def test_each_seed_divides_the_images_otherwise_among_the_groups():
    parts = [
        frozenset(
            i
            for share in short_shares(50, 5, rank=0, groups=[0, 1], seed=seed, epoch=0)
            for i in share.indices
        )
        for seed in range(3)
    ]
    assert len(set(parts)) == 3 and all(len(part) == 25 for part in parts)


def test_each_epoch_and_seed_has_its_own_order():
    orders = {
        tuple(short_shares(50, 50, rank=0, groups=[0], seed=seed, epoch=epoch)[0].indices)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


@given(counts, batches)
def test_evaluation_batches_hold_every_image_once_in_order(count, batch):
    cut = evaluation_batches(count, batch)
    assert np.concatenate([*cut, np.empty(0, int)]).tolist() == list(range(count))
    assert all(len(indices) == batch for indices in cut[:-1]) and all(0 < len(i) <= batch for i in cut)
