"""Boxes for the tests."""

import uuid

import pytest

from hpcdat.cluster import box
from hpcdat.cluster.box import BoxError
from hpcdat.cluster.box_slurm import SlurmError


@pytest.fixture
def make_box():
    """Makes boxes with names of their own, and takes them away; skips, loudly, where none can be made."""
    names = []

    def make(**choices):
        name = f"test-{uuid.uuid4().hex[:8]}"
        names.append(name)
        try:
            return box.up(name, **choices)
        except (BoxError, SlurmError) as error:
            pytest.skip(f"NO CLUSTER IN A BOX HERE: {error}")

    yield make
    for name in names:
        if box.find(name):
            box.down(name)
