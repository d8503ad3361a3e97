"""The mutants, the parser of pytest's summary, and the comparison of results; no mutant is tested here."""

import pytest

from hpcdat.errors import InputError
from tests.conftest import CHECKOUT


@pytest.fixture
def mutants(monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    import mutants

    return mutants


def test_every_mutant_can_be_made_and_compiles(mutants):
    for mutant in mutants.Listed.read().mutants.values():
        source = (CHECKOUT / mutant.file).read_text()
        mutated = mutant.applied(source)
        assert mutated != source
        compile(mutated, mutant.file, "exec")


def test_the_tests_named_for_the_mutants_are_there(mutants):
    listed = mutants.Listed.read()
    assert set(listed.tests) == {mutant.file for mutant in listed.mutants.values()}
    named = [file for kinds in listed.tests.values() for files in kinds.values() for file in files]
    left_out = [test.partition("::") for test in listed.left_out]
    assert all((CHECKOUT / file).exists() for file in named)
    assert all(f"def {test}(" in (CHECKOUT / file).read_text() for file, _, test in left_out)


def test_a_missing_text_is_an_error_with_file_and_text(mutants):
    mutant = mutants.Mutant("name", "It breaks.", "hpcdat/seeds.py", "a + b", "a - b")
    assert mutant.applied("c = a + b\n") == "c = a - b\n"
    for source in ("c = b + a", "c = a + b + a + b"):
        with pytest.raises(InputError, match=r"hpcdat/seeds.py.*\na \+ b$"):
            mutant.applied(source)


SUMMARY = """F.E
=========================== short test summary info ============================
FAILED tests/test_a.py::test_one[inside the box-1] - AssertionError: 1 - 2
FAILED tests/test_a.py::test_two
ERROR tests/test_a.py::test_three - OSError: gone
ERROR tests/exchange/test_b.py - ImportError
SKIPPED [1] tests/test_a.py:68: without data
2 failed, 1 passed, 1 skipped, 2 errors in 0.12s
"""


def test_failing_tests_are_read_from_the_summary(mutants):
    assert mutants.failed_in(SUMMARY) == [
        "tests/test_a.py::test_one[inside the box-1]",
        "tests/test_a.py::test_two",
        "tests/test_a.py::test_three",
        "tests/exchange/test_b.py",
    ]


def test_a_lost_kill_is_reported_also_if_the_mutant_did_not_run(mutants):
    def results(**killers):
        return {name: {"killed_by": tests} for name, tests in killers.items()}

    before = results(kept=["a"], lost=["a", "b"], gone=["a"], never=[])
    after = results(kept=["b"], lost=[], never=["a"], new=[])
    assert mutants.lost_kills(before, after) == ["lost", "gone"]
    assert mutants.lost_kills(before, before) == []
