"""Roles of workers, and the settings of ConAdv that fit together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.config.job_file import JobError, read_job
from hpcdat.config.sections import Concurrent
from hpcdat.data.sampler import training_shares
from hpcdat.errors import InputError
from hpcdat.training.roles import Role, assign_roles, groups_of_batches
from tests.conftest import DEMO


def assign(settings, size):
    return assign_roles(read_job(DEMO).model_copy(update={"concurrent": settings}), size)


@given(
    st.integers(1, 60),
    st.sampled_from(["beside", "workers"]),
    st.sampled_from(["together", "apart"]),
    st.none() | st.integers(1, 5),
)
def test_every_half_and_every_attack_has_one_worker(size, place, halves, update_workers):
    settings = Concurrent(place=place, halves=halves, update_workers=update_workers)
    try:
        roles = assign(settings, size)
    except InputError as error:
        assert "take a multiple of" in str(error)
        return
    assert len(roles) == size
    batches = list(range(roles.batches))
    assert [number for role in roles for number in role.clean] == batches
    assert [number for role in roles for number in role.adversarial] == batches
    assert sorted(number for role in roles for number in role.attacked) == batches
    attackers = [role for role in roles if role.trains == ()]
    assert bool(attackers) == (place == "workers")
    assert all(number in roles[roles.first_with_attack(number)].attacked for number in batches)
    # Rows for the workers are sent in the order of ranks.
    takers = {number: rank for rank, role in enumerate(roles) for number in role.adversarial}
    assert all(
        [takers[n] for n in role.attacked] == sorted(takers[n] for n in role.attacked) for role in roles
    )


def test_an_attack_worker_has_as_many_update_workers_as_fit():
    def attacked(size):
        return [len(role.attacked) for role in assign(Concurrent(place="workers"), size) if role.attacked]

    assert attacked(2) == [1] and attacked(3) == [2] and attacked(8) == [3, 3] and attacked(6) == [2, 2]
    split = assign(Concurrent(place="workers", halves="apart"), 3)
    assert list(split) == [Role((0,), (), ()), Role((), (0,), ()), Role((), (), (0,))]


def test_a_worker_stands_for_its_virtual_ones():
    job = read_job(DEMO, ["virtual_workers=3"])
    assert list(assign_roles(job, 2)) == [Role(*[(0, 1, 2)] * 3), Role(*[(3, 4, 5)] * 3)]


def test_a_node_that_only_attacks_has_no_part_of_the_images():
    """Six nodes of a worker each, every other one of which attacks for the one before."""
    roles = assign(Concurrent(place="workers", update_workers=1), 6)
    groups = groups_of_batches("nodes", roles, [0, 1, 2, 3, 4, 5])
    assert groups == [0, 1, 2]
    shares = [training_shares(9, 3, rank=n, groups=groups, seed=0, epoch=0) for n in range(3)]
    assert sorted(int(i) for (share,) in shares for i in share.indices) == list(range(9))


CONADV = ["method=conadv"]


@pytest.mark.parametrize(
    "settings, told",
    [
        (["concurrent.delay=1"], "concurrent: .*not allowed with method dat-pgd"),
        (["attack.branch=adversarial"], "attack.branch"),
        (["objective.combine=sum"], "objective.combine"),
        (["method=disadv", "concurrent.delay=1"], "concurrent.delay"),
        ([*CONADV, "objective.lambda=1"], "objective.lambda"),
        ([*CONADV, "attack.batch_norm=eval"], "attack.batch_norm"),
        ([*CONADV, "concurrent.delay=0", "concurrent.place=workers"], "concurrent.place"),
        ([*CONADV, "concurrent.update_workers=2"], "concurrent.update_workers"),
        (["optimizer.name=lars"], "optimizer.name"),
        ([*CONADV, "concurrent.place=workers", "virtual_workers=2"], "virtual_workers"),
    ],
)
def test_what_does_not_go_together_is_told(settings, told):
    settings = [*settings, *(["attack.steps=1"] if "method" in settings[0] else [])]
    with pytest.raises(JobError, match=told):
        read_job(DEMO, settings)


def test_what_is_left_out_is_filled_in_and_read_again(tmp_path):
    from hpcdat.config.job_file import write_job

    job = read_job(DEMO, [*CONADV, "attack.steps=1"])
    assert job.delay == job.concurrent.delay == 1 and job.optimizer.name == "lars"
    assert (job.attack.batch_norm, job.attack.branch, job.attack.step_size) == ("train", "adversarial", 0.2)
    assert job.weights_of_cost == (0.5, 0.5)
    for settings in ([*CONADV, "attack.steps=1"], ["method=disadv", "attack.steps=1"], []):
        job = read_job(DEMO, settings)
        file = tmp_path / "job.yaml"
        file.write_text(write_job(job))
        assert read_job(file) == job
