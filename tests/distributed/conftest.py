"""Teams of real ranks, one at a time, and images for them."""

import pytest

from hpcdat.data.digits import write_digits
from tests.distributed.team import Team


@pytest.fixture(scope="session")
def team(request):
    """The team that a test names: see :func:`tests.distributed.ranks.on`."""
    transport, size, *divisible = request.param.split()
    with Team(transport, int(size), divisible=bool(divisible)) as made:
        yield made


def pytest_collection_modifyitems(items):
    """Tests with a team come last and by team: each is launched once, and its idle threads poll."""

    def name(item):
        return (getattr(item, "callspec", None) and item.callspec.params.get("team")) or ""

    items.sort(key=name)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """scikit-learn's digits as image files; not to be written to."""
    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(root)
    return root
