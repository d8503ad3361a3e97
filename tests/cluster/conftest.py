"""Boxes for the tests."""

import uuid
from contextlib import contextmanager

import pytest

from hpcdat.cluster import box
from hpcdat.cluster.box import BoxError
from hpcdat.cluster.box_slurm import SlurmError


@contextmanager
def making_boxes():
    names = []

    def make(**choices):
        name = f"test-{uuid.uuid4().hex[:8]}"
        names.append(name)
        try:
            return box.up(name, **choices)
        except (BoxError, SlurmError) as error:
            pytest.skip(f"NO CLUSTER IN A BOX HERE: {error}")

    try:
        yield make
    finally:
        for name in names:
            if box.find(name):
                box.down(name)


@pytest.fixture
def make_box():
    """Makes boxes with names of their own, and takes them away; skips, loudly, where none can be made."""
    with making_boxes() as make:
        yield make


@pytest.fixture(scope="module")
def make_shared_box():
    """The same, for boxes that the tests of a file share."""
    with making_boxes() as make:
        yield make
