"""Mutation testing: how many mistakes in the code the tests detect.

``python benchmarks/mutants.py [--only NAME ...] [--jobs N] [--full] [--json PATH]``: every mutant of
``mutants.yaml`` is applied by itself in a copy of the checkout, and the tests listed for its file run there;
it is killed if one of them fails. Tests that start no workers run first, about half a minute per mutant; with
``--full`` the distributed ones run for the survivors, until three have failed. PATH preserves the results of
other mutants, so that survivors can be run again with ``--full``.

``python benchmarks/mutants.py --compare BEFORE AFTER``: the mutants that were killed in BEFORE and not in
AFTER; exit code 1 if there are any.

All these tests must first pass without a mutant. Exit codes: 0 even if mutants survive, 1 if tests fail
without a mutant, 2 if a mutant's text is not in its file exactly once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml
from arguments import Parser, errors_in_one_line, existing_file, file_to_write, whole
from tabulate import tabulate

from hpcdat.errors import HpcdatError, InputError
from hpcdat.storage.atomic_files import write_text

ROOT = Path(__file__).resolve().parents[1]
LISTED = ROOT / "benchmarks" / "mutants.yaml"
KINDS = {
    "serial": ["-m", "not distributed", "--timeout=60"],
    "distributed": ["-m", "distributed and not full", "--maxfail=3"],
}
"""Kinds of tests, by their key in mutants.yaml, with their options for pytest."""
MAX_SECONDS = {"serial": 600, "distributed": 3600}
"""Time limit of the tests of one mutant; exceeding it counts as a kill."""

Results = dict[str, dict[str, Any]]
"""By the mutant's name: its ``file``, what it ``breaks``, the tests it is ``killed_by``, and the ``kinds`` of
tests that have run."""


@dataclass(frozen=True)
class Mutant:
    """A mistake in one place.

    Attributes:
        name: identifies it in results.
        breaks: the mistake, in one sentence.
        file: path from the root of the checkout.
        text: occurs exactly once in the file.
        becomes: replaces the text.
    """

    name: str
    breaks: str
    file: str
    text: str
    becomes: str

    def applied(self, source: str) -> str:
        """The file's contents with the mistake.

        Raises:
            InputError: the text does not occur exactly once.
        """
        found = source.count(self.text)
        if found != 1:
            raise InputError(f"{self.name}: found {found} times, not once, in {self.file}:\n{self.text}")
        return source.replace(self.text, self.becomes)


@dataclass(frozen=True)
class Listed:
    """The contents of mutants.yaml.

    Attributes:
        mutants: by name.
        tests: files of tests, by the mutants' file and the kind of tests.
        left_out: tests in these files that are not run.
    """

    mutants: dict[str, Mutant]
    tests: dict[str, dict[str, list[str]]]
    left_out: list[str]

    @staticmethod
    def read(path: Path = LISTED) -> Listed:
        """Read the file."""
        listed = yaml.safe_load(path.read_text())
        mutants = {name: Mutant(name, **fields) for name, fields in listed["mutants"].items()}
        return Listed(mutants, listed["tests"], listed["left_out"])

    def failing(self, copy: Path, kind: str, mutants: Iterable[Mutant]) -> list[str]:
        """The failing tests, in a copy of the checkout, among those listed for the files of some mutants.

        Raises:
            HpcdatError: pytest was ended by a signal, or failed without reporting a failed test.
        """
        files = sorted({file for mutant in mutants for file in self.tests[mutant.file][kind]})
        if not files:
            return []
        options = ["-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", *KINDS[kind]]
        left_out = [f"--deselect={test}" for test in self.left_out]
        variables = {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *options, *left_out, *files],
                cwd=copy,
                env=os.environ | variables,
                capture_output=True,
                text=True,
                timeout=MAX_SECONDS[kind],
            )
        except subprocess.TimeoutExpired:
            return [f"not finished within {MAX_SECONDS[kind]} s"]
        if done.returncode == 0:
            return []
        failed = failed_in(done.stdout)
        if done.returncode < 0 or not failed:
            # Not caused by the mutant: pytest was killed, or its files are missing.
            raise HpcdatError(
                f"pytest ended with code {done.returncode} in {copy}:\n{done.stdout}{done.stderr}"
            )
        return failed


def failed_in(summary: str) -> list[str]:
    """The names of failed tests and errors in pytest's summary."""
    found = re.findall(r"(?m)^(?:FAILED|ERROR) (\S+\.py(?:::.+?)?)(?: - .*)?$", summary)
    return list(dict.fromkeys(found))


def copy_checkout(folder: Path) -> Path:
    """Copy all files that git tracks or does not ignore."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in filter(None, files.split("\0")):
        if (ROOT / file).exists():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file, follow_symlinks=False)
    return folder


def try_all(
    listed: Listed, kind: str, mutants: Sequence[Mutant], jobs: int, save: Callable[[Mutant, list[str]], None]
) -> None:
    """Run the tests of one kind against every mutant.

    Args:
        listed: has the lists of tests.
        kind: of tests.
        mutants: one or more.
        jobs: number of mutants at a time, each in its own copy.
        save: called with each mutant and the tests that kill it, once they have run.

    Raises:
        HpcdatError: tests fail without any mutant.
    """
    copies: SimpleQueue[Path] = SimpleQueue()

    def attempt(mutant: Mutant) -> list[str]:
        copy = copies.get()
        file = copy / mutant.file
        source = file.read_text()
        try:
            file.write_text(mutant.applied(source))
            return listed.failing(copy, kind, [mutant])
        finally:
            file.write_text(source)
            copies.put(copy)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        for number in range(jobs):
            copies.put(copy_checkout(Path(folder) / str(number)))
        began = time.monotonic()
        broken = listed.failing(Path(folder) / "0", kind, mutants)
        if broken:
            raise HpcdatError("these tests fail without any mutant:\n" + "\n".join(broken))
        log(f"without a mutant the {kind} tests pass ({time.monotonic() - began:.0f} s)")
        running = {pool.submit(attempt, mutant): mutant for mutant in mutants}
        for done in as_completed(running):
            killers = done.result()
            log(f"{running[done].name}: {f'killed by {len(killers)}' if killers else 'survives'}")
            save(running[done], killers)


def results_in(text: str) -> Results:
    """The type of files with the results of an earlier call."""
    file = existing_file(text)
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all("killed_by" in result for result in found.values()):
        raise ArgumentTypeError(f"{file} is not a JSON file of benchmarks/mutants.py")
    return found


def results_file(text: str) -> Path:
    """The type of ``--json``: a file to write that may have earlier results."""
    file = file_to_write(text)
    if file.exists():
        results_in(text)
    return file


def measure(listed: Listed, names: Sequence[str], jobs: int, full: bool, path: Path | None) -> Results:
    """Results of some mutants, and those of other mutants in the file at ``path``.

    Raises:
        InputError: an unknown name, or a mutant's text does not occur exactly once in its file.
        HpcdatError: tests fail without any mutant.
    """
    unknown = sorted(set(names) - set(listed.mutants))
    if unknown:
        raise InputError(f"--only: {LISTED} has no {', '.join(unknown)}")
    chosen = [listed.mutants[name] for name in names or listed.mutants]
    for mutant in chosen:
        mutant.applied((ROOT / mutant.file).read_text())
    known = results_in(str(path)) if path and path.exists() else {}
    results = {name: known[name] for name in listed.mutants if name in known}
    for mutant in chosen:
        results.pop(mutant.name, None)

    for kind in KINDS if full else ["serial"]:

        def save(mutant: Mutant, killers: list[str], kind: str = kind) -> None:
            kinds = [*results.get(mutant.name, {}).get("kinds", []), kind]
            about = {"file": mutant.file, "breaks": mutant.breaks}
            results[mutant.name] = {**about, "killed_by": killers, "kinds": kinds}
            if path:
                write_text(path, json.dumps(results, indent=2) + "\n")

        left = [m for m in chosen if m.name not in results or not results[m.name]["killed_by"]]
        if left:
            try_all(listed, kind, left, jobs, save)
    return {name: results[name] for name in listed.mutants if name in results}


def lost_kills(before: Results, after: Results) -> list[str]:
    """Names of mutants that were killed before and are not now, including those that did not run."""
    killed = [
        {name for name, result in results.items() if result["killed_by"]} for results in (before, after)
    ]
    return [name for name in before if name in killed[0] - killed[1]]


def report(results: Results) -> str:
    """A table of all mutants, and a list of the survivors."""
    rows = [
        [name, r["file"], len(r["killed_by"]), "\n".join(r["killed_by"][:2])] for name, r in results.items()
    ]
    survivors = [f"{name}: {r['breaks']}" for name, r in results.items() if not r["killed_by"]]
    end = [f"{len(results) - len(survivors)} of {len(results)} killed; survivors:", *(survivors or ["none"])]
    return tabulate(rows, ["mutant", "file", "killed by", "among them"]) + "\n\n" + "\n".join(end)


def log(line: str) -> None:
    """Print progress on stderr."""
    print(line, file=sys.stderr, flush=True)


@errors_in_one_line
def main() -> None:
    """Entry point."""
    parser = Parser(__doc__.splitlines()[0], alone="it starts the tests itself")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of mutants")
    parser.add_argument("--jobs", type=whole(1), default=1, metavar="N", help="mutants at a time")
    parser.add_argument("--full", action="store_true", help="distributed tests too")
    parser.add_argument("--json", type=results_file, metavar="PATH", help="for the results")
    parser.add_argument("--compare", nargs=2, type=results_in, metavar=("BEFORE", "AFTER"))
    arguments = parser.parse_args()
    if arguments.compare:
        before, after = arguments.compare
        lost = lost_kills(before, after)
        for name in lost:
            now = "survives" if name in after else "did not run"
            print(f"{name} {now}: {before[name]['breaks']} Killed before by {before[name]['killed_by'][0]}")
        raise SystemExit(1 if lost else 0)
    results = measure(Listed.read(), arguments.only, arguments.jobs, arguments.full, arguments.json)
    print(report(results))


if __name__ == "__main__":
    main()
