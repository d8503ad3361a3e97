"""Runs a tutorial: the blocks of a Markdown page in order, what they print compared with the page.

``python -m tests.docs.tutorial PAGE FOLDER`` runs a page in an empty folder, which stands for the checkout.
The exit code is 1 if a command fails or prints something else. What a fenced block does:

- ``python``: its lines run in one namespace for the whole page. What they print is in the ``text`` block
  that follows; without one they must print nothing.
- ``console``: lines that begin with ``$ `` are commands of bash, each of which must end with 0. A line that
  ends with a backslash continues on the next. What a command prints follows it.
- any language: a block whose first line is a comment with nothing but the name of a file is saved there.

Lines are compared one by one, runs of spaces as one space and rules of tables whatever their length, since
tables are as wide as their numbers. What hpcdat says about a busy machine is left out. ``...`` stands for any
text of a line, a line of its own for any number of lines. A comment in front of a block, which pages do not
show, changes what is done with the next block:

- ``<!-- tolerance: 3 -->``: numbers with a decimal point may differ by 3;
- ``<!-- tolerance: 20 % -->``: by 20 % of the page's number;
- ``<!-- tolerance: any -->``: there has to be a number, with or without a decimal point, whichever;
- ``<!-- not compared: REASON -->``: as many lines have to be printed, whichever;
- ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from markdown_it import MarkdownIt

from tests.conftest import CHECKOUT
from tests.distributed.ranks import BIN, environment

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
DIRECTIVE = re.compile(r"<!-- (tolerance|not compared|not run): (.+?) -->")
FILE_NAME = re.compile(r"# ([\w./-]+\.\w+)")
BUSY = re.compile(r"hpcdat: still working after .*|worker \d+ on \S+ is slow: .*|.*: step \d+ of \d+")
"""Lines that are only printed on a machine that is slow, or busy with something else."""
COMMAND_SECONDS = 300
"""Longest time that a command may take."""


class PageError(Exception):
    """The page cannot be understood, or is not true; the message begins with a line's number."""


@dataclass
class Block:
    """A fenced block, with the comments in front of it.

    Attributes:
        language: of the block.
        text: its lines.
        line: number of its first line in the page, from 1.
        tolerance: of its numbers, as the comment writes it; None: they must be equal.
        not_compared: why what it prints is not compared; None: it is.
        not_run: why it is not run; None: it is.
    """

    language: str
    text: str
    line: int
    tolerance: str | None = None
    not_compared: str | None = None
    not_run: str | None = None


def read_blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    blocks: list[Block] = []
    directives: dict[str, str] = {}
    for token in MarkdownIt().parse(page):
        if token.type == "fence":
            line = token.map[0] + 2
            comments = (directives.get(name) for name in ("tolerance", "not compared", "not run"))
            blocks.append(Block(token.info.strip(), token.content, line, *comments))
            directives = {}
        elif token.type == "html_block":
            directives |= dict(DIRECTIVE.findall(token.content))
    if directives:
        raise PageError(f"the end: no block follows the comment {directives}")
    return blocks


def matches(expected: str, found: str, tolerance: str | None) -> bool:
    """Whether a line is as the page has it."""
    pattern, numbers, end = "", [], 0
    expected, found = _squeezed(expected), _squeezed(found)
    for piece in re.finditer(rf"\.\.\.|{NUMBER.pattern}", expected):
        pattern += re.escape(expected[end : piece.start()])
        end = piece.end()
        if piece.group() == "...":
            pattern += ".*?"
        else:
            numbers.append(piece.group())
            pattern += rf"({NUMBER.pattern})"
    line = re.fullmatch(pattern + re.escape(expected[end:]), found)
    return line is not None and all(
        _close(number, printed, tolerance) for number, printed in zip(numbers, line.groups(), strict=True)
    )


def _without_busy(printed: str) -> str:
    """What was printed, without lines about a busy machine."""
    return "".join(line for line in printed.splitlines(True) if not BUSY.fullmatch(line.rstrip("\n")))


def compare(expected: str, found: str, tolerance: str | None = None) -> str:
    """What differs between the page and what was printed, as a diff; empty if nothing does."""
    wanted = expected.rstrip().splitlines()
    printed = _without_busy(found).rstrip().splitlines()
    fits = [[False] * (len(printed) + 1) for _ in range(len(wanted) + 1)]
    fits[-1][-1] = True
    for i in reversed(range(len(wanted))):
        for j in reversed(range(len(printed) + 1)):
            left = j < len(printed)
            if wanted[i].strip() == "...":
                fits[i][j] = fits[i + 1][j] or (left and fits[i][j + 1])
            else:
                fits[i][j] = left and fits[i + 1][j + 1] and matches(wanted[i], printed[j], tolerance)
    if fits[0][0]:
        return ""
    return "\n".join(difflib.unified_diff(wanted, printed, "the page", "what was printed", lineterm="", n=9))


def run_page(page: str, folder: Path, environment: dict[str, str] | None = None) -> None:
    """Run the blocks of a page.

    Args:
        page: Markdown.
        folder: in which its files are written and its commands run.
        environment: of the commands.

    Raises:
        PageError: a block failed, or printed something else than the page says; of the latter all are listed.
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    differences = []
    blocks = deque(read_blocks(page))
    while blocks:
        block = blocks.popleft()
        name = FILE_NAME.fullmatch(block.text.partition("\n")[0])
        if block.not_run:
            continue
        if name:
            file = folder / name.group(1)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
            continue
        if block.language == "python":
            follows = bool(blocks) and blocks[0].language == "text"
            shown = replace(blocks.popleft(), line=block.line) if follows else Block("text", "", block.line)
            results = [(shown, _run_python(block, namespace))]
        elif block.language == "console":
            results = list(_run_commands(block, folder, environment))
        else:
            raise PageError(
                f"line {block.line}: a block of {block.language or 'no language'} is neither run nor saved"
            )
        for shown, printed in results:
            if shown.not_compared and shown.text.count("\n") == _without_busy(printed).count("\n"):
                continue
            difference = compare(shown.text, printed, shown.tolerance)
            if difference:
                differences.append(f"line {shown.line}:\n{difference}")
    if differences:
        raise PageError("\n\n".join(differences))


def _run_python(block: Block, namespace: dict[str, object]) -> str:
    """Run a block; what it printed."""
    printed = io.StringIO()
    # Line numbers of a traceback are the page's.
    code = "\n" * (block.line - 1) + block.text
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            exec(compile(code, "the page", "exec"), namespace)
    except Exception:
        raise PageError(f"line {block.line}: {printed.getvalue()}{traceback.format_exc()}") from None
    return printed.getvalue()


def _run_commands(
    block: Block, folder: Path, environment: dict[str, str] | None
) -> Iterator[tuple[Block, str]]:
    """Run a block's commands; each with what the page shows and what was printed."""
    if not block.text.startswith("$ "):
        raise PageError(f"line {block.line}: the block does not begin with a command ('$ ')")
    for part in re.finditer(r"^\$ (.*(?:(?<=\\)\n.*)*)\n((?:(?!\$ ).*\n?)*)", block.text, re.MULTILINE):
        line = block.line + block.text[: part.start()].count("\n")
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", part.group(1)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise PageError(f"line {line}: no end in {COMMAND_SECONDS} s of: {part.group(1)}") from None
        if process.returncode:
            raise PageError(f"line {line}: exit code {process.returncode} of: {part.group(1)}\n{printed}")
        yield replace(block, language="text", text=part.group(2), line=line), printed


def _squeezed(line: str) -> str:
    """A line with single spaces, and rules of tables that do not depend on the widths of columns."""
    return re.sub(r"-{3,}", "---", re.sub(r"\s+", " ", line)).strip()


def _close(expected: str, found: str, tolerance: str | None) -> bool:
    if tolerance == "any" or expected == found:
        return True
    if tolerance is None or "." not in expected:
        return False
    wanted, value = (float(number.replace(",", "")) for number in (expected, found))
    number, percent, _ = tolerance.partition("%")
    return abs(value - wanted) <= float(number) * (abs(wanted) / 100 if percent else 1)


def stand_in(folder: Path) -> dict[str, str]:
    """Let a folder stand for the checkout; the environment of its commands, with hpcdat's own activated."""
    for name in ("benchmarks", "examples", "jobs"):
        (folder / name).symlink_to(CHECKOUT / name)
    command = folder / "bin" / "hpcdat"
    command.parent.mkdir()
    # This checkout's package, whichever one is installed.
    command.write_text(f"#!{sys.executable}\nfrom hpcdat.cli import main\nmain()\n")
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), str(BIN), os.environ["PATH"]])
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return environment() | as_root | {"PATH": path}


def main(page: str, folder: str) -> int:
    """Run a page; the exit code."""
    text, variables = Path(page).read_text(), stand_in(Path(folder))
    os.chdir(folder)
    try:
        run_page(text, Path(folder), variables)
    except PageError as error:
        print(f"{Path(page).name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
