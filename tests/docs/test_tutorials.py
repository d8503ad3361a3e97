"""Every page of docs/tutorials, run as it stands; and what the harness notices."""

import re
import subprocess
import sys
from contextlib import contextmanager

import pytest

from hpcdat.emulation.cluster import find_box, remove_box
from tests.cluster.conftest import making_boxes
from tests.conftest import CHECKOUT
from tests.distributed.ranks import environment
from tests.docs.tutorial import PageError, compare, read_blocks, run_page

TUTORIALS = CHECKOUT / "docs" / "tutorials"
ELSEWHERE = {"index", "measure-your-cluster"}
"""The list of pages, and the page that tests/cluster/test_measure_your_cluster.py runs with smaller sizes."""
PAGES = sorted(page.stem for page in TUTORIALS.glob("*.md") if page.stem not in ELSEWHERE)


@contextmanager
def boxes_of(page):
    """Nothing is left of a page's emulated clusters; skips where none can be made."""
    names = re.findall(r"hpcdat box up (\S+)", page)
    assert not [name for name in names if find_box(name)], "somebody's box has a tutorial's name"
    if names:
        with making_boxes() as make:
            make(nodes=1, slurm="--slurm" in page)
    try:
        yield
    finally:
        for name in names:
            if find_box(name):
                remove_box(name)


@pytest.mark.full
@pytest.mark.distributed
@pytest.mark.computes
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_prints_what_it_says(name, tmp_path):
    page = TUTORIALS / f"{name}.md"
    with boxes_of(page.read_text()):
        done = subprocess.run(
            [sys.executable, "-m", "tests.docs.tutorial", page, tmp_path],
            cwd=CHECKOUT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=800,
        )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "expected, found, tolerance",
    [
        ("TA 97.2 %", "TA 97.2 %", None),
        ("TA 97.2 %", "TA 95.4 %", "3"),
        ("TA 97.2 %, RA 50.00 %", "TA 99.9 %, RA 52.99 %", "3"),
        ("| 2.0 | ring  |", "| 2.35 | ring |", "20 %"),
        ("sent 1,606.5 images", "sent 1,700.1 images", "20 %"),
        ("took 3 s", "took 12.5 s", "any"),
        ("epoch   1/2 ... cost 0.5", "epoch   1/2  T  0.17 s   cost 0.5", None),
        ("first\n...\nlast", "first\n1\n2\nlast", None),
        ("first\n...\nlast", "first\nlast", None),
        ("-----  ----", "---  -----", None),
        ("done", "hpcdat: still working after 10 s: load torch\nworker 1 on n2 is slow: 0.2 s\ndone", None),
        ("done", "measure accuracy: step 2 of 4\ndone", None),
        ("", "", None),
    ],
)
def test_what_is_as_the_page_says(expected, found, tolerance):
    assert compare(expected, found, tolerance) == ""


@pytest.mark.parametrize(
    "expected, found, tolerance",
    [
        ("TA 97.2 %", "TA 97.1 %", None),
        ("TA 97.2 %", "TA 94.1 %", "3"),
        ("2.0 MB", "2.5 MB", "20 %"),
        ("360 images", "361 images", "3"),
        ("TA 97.2 %", "TA nan %", "any"),
        ("TA 97.2 %", "TA -97.2 %", "3"),
        ("resnet18", "resnet50", "any"),
        ("TA 97.2 %", "RA 97.2 %", "3"),
        ("first\nlast", "first", None),
        ("first", "first\nlast", None),
        ("first\n...\nlast", "first\nlast\nmore", None),
        ("first\n...\nmiddle\n...\nlast", "first\nlast", None),
        ("", "a warning", None),
        ("what was not printed", "", None),
    ],
)
def test_what_is_not_as_the_page_says(expected, found, tolerance):
    assert compare(expected, found, tolerance)


PAGE = """# A page

```yaml
# folder/mine.yaml
epochs: 3
```

```python
from pathlib import Path
text = Path("folder/mine.yaml").read_text()
```

Numbers differ by 0.5.

<!-- tolerance: 0.5 -->

```console
$ cat folder/mine.yaml
# folder/mine.yaml
epochs: 3
$ echo \\
    2.25
2.0
```

```python
print(text.count("epochs"), "line")
```

```text
1 line
```
"""


def run(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    run_page(page, folder)


def test_a_page_runs_in_order_in_one_folder_and_one_namespace(tmp_path, monkeypatch):
    run(PAGE, tmp_path, monkeypatch)
    assert (tmp_path / "folder" / "mine.yaml").read_text() == "# folder/mine.yaml\nepochs: 3\n"


@pytest.mark.parametrize(
    "change, message",
    [
        (("\n2.0\n", "\n1.5\n"), r"line 21:[^$]*-1\.5\n\+2\.25"),
        (("\nepochs: 3\n$", "\n$"), r"line 18:[^$]*\+epochs: 3"),
        (("1 line\n```", "1 line\nand another\n```"), r"line 27:[^$]*-and another"),
        (("```text\n1 line\n```", ""), r"line 27:[^$]*\+1 line"),
        (("$ echo", "$ false; echo"), r"line 21: exit code 1 of: false; echo"),
        (("$ echo", "$ false | echo"), r"line 21: exit code 1 of: false | echo"),
        (("print(text", "print(test"), r'line 27: [^$]*"the page", line 27[^$]*NameError'),
        (("```console", "```bash"), r"line 18: a block of bash is neither run nor saved"),
        (("$ cat", "cat"), r"line 18: the block does not begin with a command"),
        (("1 line\n```", "1 line\n```\n\n<!-- not run: why -->"), "no block follows the comment"),
        (
            ("1 line\n```", "1 line\n```\n\n```text\n2\n```"),
            r"line 35: a block of text is neither run nor saved",
        ),
    ],
)
def test_a_page_that_is_not_true_fails(tmp_path, monkeypatch, change, message):
    assert PAGE.count(change[0]) == 1
    with pytest.raises(PageError, match=message):
        run(PAGE.replace(*change), tmp_path, monkeypatch)


def test_a_command_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.docs.tutorial.COMMAND_SECONDS", 0.2)
    with pytest.raises(PageError, match=r"line 2: no end in 0\.2 s of: sleep 60 \| cat"):
        run("```console\n$ sleep 60 | cat\n```\n", tmp_path, monkeypatch)


def test_all_differences_of_a_page_are_listed(tmp_path, monkeypatch):
    with pytest.raises(PageError, match=r"line 21:[^$]*line 27:"):
        run(PAGE.replace("\n2.0\n", "\n1\n").replace("1 line", "2 lines"), tmp_path, monkeypatch)


def test_what_is_not_compared_has_as_many_lines(tmp_path, monkeypatch):
    page = "<!-- not compared: times -->\n\n```console\n$ echo 1\n2\n```\n"
    run(page, tmp_path, monkeypatch)
    with pytest.raises(PageError, match="line 4:"):
        run(page.replace("2\n", "2\n3\n"), tmp_path, monkeypatch)


def test_a_block_that_is_not_run_says_why(tmp_path, monkeypatch):
    run("<!-- not run: needs a GPU -->\n\n```console\n$ false\n```\n", tmp_path, monkeypatch)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_one_title_and_says_what_is_not_run_and_how_much_numbers_differ(name):
    text = (TUTORIALS / f"{name}.md").read_text()
    blocks = read_blocks(text)
    prose = re.sub(r"(?ms)^```.*?^```$|<!--.*?-->", "", text)
    assert len(re.findall(r"(?m)^# ", prose)) == 1 and text.startswith("# ")
    assert sum(block.not_run is None for block in blocks) > len(blocks) / 2
    assert not any(block.not_run for block in blocks) or "not run by the tests" in prose
    assert not any(block.not_compared for block in blocks) or "not compared by the tests" in prose
    for tolerance in {block.tolerance for block in blocks if block.tolerance} - {"any"}:
        assert re.search(rf"differ[^.]* {re.escape(tolerance)}(?!\w)", prose), tolerance


def test_the_list_of_tutorials_has_every_page():
    links = re.findall(r"\]\(([\w-]+)\.md\)", (TUTORIALS / "index.md").read_text())
    assert sorted(links) == sorted({page.stem for page in TUTORIALS.glob("*.md")} - {"index"})
