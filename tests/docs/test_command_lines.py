"""Every command line in README and docs names commands, options, settings, targets and scripts that exist."""

import re

import pytest

from tests.conftest import CHECKOUT
from tests.docs.command_lines import Wrong, check, commands_in
from tests.docs.pages import code, hand_written

PAGES = [str(page.relative_to(CHECKOUT)) for page in hand_written()]
WITHIN_TEXT = re.compile(r"(\.venv/bin/)?(hpcdat|make|python benchmarks/\S+)\s+\S")
# The name of a file format (docs/developers/benchmarks.md).
NO_COMMAND = "hpcdat benchmark"
# In a sentence a command line may lack what the command needs, or the value of its last option.
INCOMPLETE = re.compile(r"is missing$|requires an argument|expected one argument")


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_are_understood(page):
    wrong = []
    for whole, text in code((CHECKOUT / page).read_text()):
        if text == NO_COMMAND or not (whole or WITHIN_TEXT.match(text)):
            continue
        for words in commands_in(text):
            try:
                check(words)
            except Wrong as error:
                if whole or not INCOMPLETE.search(str(error)):
                    wrong.append(f"{' '.join(words)}: {error}")
    assert not wrong


def test_there_are_command_lines():
    lines = [words for page in PAGES for whole, text in code((CHECKOUT / page).read_text()) if whole
             for words in commands_in(text) if any(word.endswith("hpcdat") for word in words)]  # fmt: skip
    assert len(lines) > 100


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("hpcdat trian JOB.yaml", "hpcdat has no command trian"),
        ("hpcdat train JOB.yaml --seed 3", "No such option: --seed"),
        ("hpcdat train JOB.yaml attack.epz=1", "there is no setting attack.epz"),
        ("hpcdat train JOB.yaml --set attack.epz=1", "there is no setting attack.epz"),
        ("hpcdat train", "job is missing"),
        ("mpirun -np 4 hpcdat train", "job is missing"),
        ("A=1 srun -N 2 .venv/bin/hpcdat plan JOB.yaml --nods 6", "No such option: --nods"),
        ("hpcdat submit JOB.yaml --node-count 2", "has no option --node-count"),
        ("hpcdat submit RUN --command evaluate --nodes 1 --autoatack 5", "has no option --autoatack"),
        ("hpcdat submit --benchmark communication --nodes 2 -- --min-byte 1K", "no option --min-byte"),
        ("hpcdat submit JOB.yaml --sweep attack.epz=1,2", "there is no setting attack.epz"),
        ("hpcdat box run six -np 6 -- .venv/bin/hpcdat trian JOB.yaml", "hpcdat has no command trian"),
        ("for m in a b; do hpcdat trian $m.yaml; done", "hpcdat has no command trian"),
        ("torchrun --nproc-per-node 4 -m hpcdat trian JOB.yaml", "hpcdat has no command trian"),
        ("docker run --rm hpcdat hpcdat trian JOB.yaml", "hpcdat has no command trian"),
        ("make demos", "the Makefile has no demos"),
        ("make setup ENGIN=torch", "the Makefile has no ENGIN"),
        ("python benchmarks/comunication.py", "there is no benchmarks/comunication.py"),
        ("mpirun -np 4 python benchmarks/communication.py --jason FILE", "has no option --jason"),
    ],
)
def test_mistakes_are_found(line, error):
    with pytest.raises(Wrong, match=re.escape(error)):
        for words in commands_in(line):
            check(words)
