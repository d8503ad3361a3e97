"""Teams of real ranks, one at a time, and images and a finished run for them."""

import pytest

from hpcdat.data.digits import write_digits
from tests.distributed.command_line import hpcdat, short
from tests.distributed.ranks import launcher
from tests.distributed.team import Team


@pytest.fixture(scope="session")
def team(request):
    """The team that a test names: see :func:`tests.distributed.ranks.on`."""
    transport, size, *divisible = request.param.split()
    with Team(transport, int(size), divisible=bool(divisible)) as made:
        yield made


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Tests with a team come last and by team: each is launched once, and its idle threads poll.

    Those that end it come after its other tests. pytest itself orders tests by the place of a parameter in
    its list, before this.
    """

    def place(item):
        team = (getattr(item, "callspec", None) and item.callspec.params.get("team")) or ""
        return team, item.get_closest_marker("ends_its_team") is not None

    items.sort(key=place)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """scikit-learn's digits as image files; not to be written to."""
    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(root)
    return root


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of two workers under mpirun, not to be written to, and what it printed."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    done = hpcdat("train", *short(run_dir), prefix=launcher("MPI", 2))
    assert done.returncode == 0, done.stderr
    return run_dir, done
