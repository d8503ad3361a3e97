"""``hpcdat help``: topics that say what is so, and completion in shells."""

import os
import re
import subprocess
import sys

import pytest
import typer

from hpcdat.cli import help as help_command
from hpcdat.cli.app import app
from hpcdat.config.complaints import setting_names
from hpcdat.config.job import Job
from hpcdat.config.sections import Exchange
from hpcdat.errors import Exit
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import CHECKOUT, run_here

TOPICS = sorted(file.stem for file in help_command.FOLDER.glob("*.md"))
COMMANDS = typer.main.get_command(app).commands


def text_of(topic):
    done = run_here("help", topic)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_topics_are_listed_each_with_what_it_is_about():
    done = run_here("help")
    assert done.returncode == 0
    listed = dict(re.findall(r"^  (\S+) +(.+)$", done.stdout, re.MULTILINE))
    assert sorted(listed) == TOPICS and {"exchange", "slurm", "exit-codes"} < listed.keys()
    assert all(text_of(topic).startswith(f"# {topic}: {about}\n") for topic, about in listed.items())


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_fits_a_terminal_and_names_what_there_is(topic):
    text = text_of(topic)
    assert max(map(len, text.splitlines())) <= 80
    sections = {name.partition(".")[0] for name in setting_names(Job) if "." in name}
    named = {f"{a}.{b}" for a, b in re.findall(r"\b([a-z_]+)\.([a-z0-9_]+)\b", text) if a in sections}
    assert named <= {*setting_names(Job), "evaluation.json", "exchange.json"}
    for command, rest in re.findall(r"hpcdat ([a-z-]+)((?: [^`\n#]*)?)", text):
        known = {name for one in COMMANDS[command].params for name in one.opts} | {"--help"}
        # Of a box and of an evaluation in the queue, the options of other commands follow.
        if command not in ("box", "submit"):
            assert set(re.findall(r"(?<= )--[a-z0-9-]+", rest)) <= known, rest
    for other in re.findall(r"hpcdat help ([a-z-]+)", text):
        assert other in TOPICS


def test_the_exit_codes_are_those_of_the_commands():
    found = re.findall(r"^- \*\*(\d+)\*\*", text_of("exit-codes"), re.MULTILINE)
    assert sorted(map(int, found)) == sorted(Exit)


def test_the_protocols_are_those_of_the_setting():
    found = re.findall(r"^- `(\w+)`", text_of("exchange"), re.MULTILINE)
    assert found == list(Exchange.model_fields["protocol"].annotation.__args__)


def test_the_files_of_a_run_are_those_that_it_writes(trained):
    listed = re.findall(r"^- `([\w.]+)/?`", text_of("files"), re.MULTILINE)
    known = {path.name for path in vars(RunFolder(trained)).values() if hasattr(path, "name")}
    assert {path.name for path in trained.iterdir() if not path.name.startswith(".")} <= {
        *listed,
        "result.md",
    }
    assert set(listed) <= known | {"checkpoints", "ra-over-eps.csv"}


@pytest.mark.parametrize(
    "topic, message",
    [
        ("slrum", "no help on slrum; did you mean slurm? (topics: evaluation, exchange,"),
        ("train", "train is a command, not a topic: `hpcdat train --help` explains it"),
        ("../../setup", "no help on ../../setup (topics: evaluation"),
    ],
)
def test_an_unknown_topic_is_refused_with_what_there_is(topic, message):
    done = run_here("help", topic)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_a_pager_shows_a_long_text_on_a_terminal_only(monkeypatch, capsys):
    pages = []
    monkeypatch.setattr(help_command.pydoc, "pager", pages.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    context = typer.Context(typer.main.get_command(app))
    for lines in (10, 1000):
        monkeypatch.setattr(
            help_command.shutil, "get_terminal_size", lambda lines=lines: os.terminal_size((80, lines))
        )
        help_command.help_(context, "resume")
    assert pages == [capsys.readouterr().out]


def test_the_documentation_includes_every_topic():
    page = (CHECKOUT / "docs" / "reference" / "topics.md").read_text()
    assert re.findall(r"include} ../../hpcdat/help/(\S+)\.md", page) == TOPICS


@pytest.mark.parametrize(
    "line, completed",
    [
        ("hpcdat tr", ["train"]),
        ("hpcdat train job.yaml attack.st", ["attack.steps=", "attack.step_size="]),
        ("hpcdat train job.yaml --set exchange.bi", ["exchange.bits=", "exchange.bits_allowed="]),
        ("hpcdat help ex", ["exchange", "exit-codes"]),
        ("hpcdat jobs copy miniature/van", ["miniature/vanilla"]),
    ],
)
def test_a_shell_completes(line, completed):
    variables = {"_HPCDAT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", "from hpcdat.cli.app import app; app(prog_name='hpcdat')"],
        env=os.environ | variables,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == completed, done.stderr
