"""Whether a command line would be understood: its command, options and settings, without running it."""

import ast
import re
import shlex
from functools import cache

import typer

from hpcdat.cli.app import app
from hpcdat.config.job import Job
from hpcdat.config.settings import Settings
from tests.conftest import CHECKOUT

BEGINS = re.compile(
    r"\s*(\$ )?((\w+=\S*|while|for|if|docker|apptainer|nice|timeout)\s.*)?(\S*/)?"
    r"(hpcdat|make|mpirun|horovodrun|srun|torchrun|python|bash)\s"
)
WORDS = {"do", "then", "else", "!", "{", "done", "fi", "}"}
SETTING = re.compile(r"([a-z_][a-z_0-9.]*)=")
OUTSIDE = {"-m", "-c", "--help", "--version"}


class Wrong(Exception):
    """What is wrong with a command line."""


def commands_in(block):
    """The commands in a block of shell code, lists of words, without comments and the shell's own words."""
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        if BEGINS.match(line + " "):
            words = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";&|()")
            words.whitespace_split = True
            command = []
            for word in [*words, ";"]:
                if set(word) <= set(";&|()"):
                    if command:
                        yield command
                    command = []
                elif command or word not in WORDS:
                    command.append(word)


def check(words):
    """Raise Wrong if a command that is this project's is not as it says."""
    if words[0] == "make":
        _check_make(words[1:])
    for place, word in enumerate(words):
        rest = words[place + 1 :]
        if word.rpartition("/")[2] == "hpcdat" and not _is_image(words, place):
            return _check_hpcdat(rest)
        if word.startswith(("benchmarks/", "containers/", "examples/")):
            return _check_script(word, rest)
    return None


def _is_image(words, place):
    """Whether this word is the name of docker's image, not of the command in it."""
    return words[0] == "docker" and (words[place - 1] == "--tag" or "hpcdat" in words[place + 1 :])


@cache
def program():
    """The command hpcdat."""
    return typer.main.get_command(app)


def _check_make(words):
    text = (CHECKOUT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)", text, re.M)[1].split())
    variables = set(re.findall(r"^(\w+) [?:]?=", text, re.M)) | {"TORCHS"}
    for word in words:
        name, is_variable, _ = word.partition("=")
        if name not in (variables if is_variable else targets):
            raise Wrong(f"the Makefile has no {name}")


def _check_hpcdat(words):
    command, name = program(), "hpcdat"
    while commands := getattr(command, "commands", None):
        if not words or words[0] in OUTSIDE | {"-h", "COMMAND"}:
            return
        if words[0] not in commands:
            raise Wrong(f"{name} has no command {words[0]}")
        command, name, words = commands[words[0]], f"{name} {words[0]}", words[1:]
    after = []
    if "--" in words:
        words, after = words[: words.index("--")], words[words.index("--") + 1 :]
    context = command.context_class(command, info_name=name, **command.context_settings)
    try:
        given, left, _ = command.make_parser(context).parse_args(args=list(words))
    except Exception as error:  # click's, which typer keeps private
        raise Wrong(f"{name}: {error.format_message()}") from None
    values = [v for value in given.values() for v in (value if isinstance(value, list | tuple) else [value])]
    words = [*map(str, values), *left]
    _check_leftovers(name, given, [each for each in words if each.startswith("-") and not _is_number(each)])
    is_box = name in ("hpcdat box run", "hpcdat box login")
    if is_box and after:
        check(after)
    elif after:
        _check_script(f"benchmarks/{given['benchmark']}.py", after)
    for parameter in command.params:
        value = given.get(parameter.name)
        if parameter.required and not (is_box and parameter.name == "command") and value in (None, (), []):
            raise Wrong(f"{name}: {parameter.name} is missing")
        if parameter.name in ("settings", "set_") or "KEY=" in (parameter.metavar or ""):
            _check_settings(name, value or ())
    if left and not given.get("command"):
        raise Wrong(f"{name}: not understood: {' '.join(left)}")


def _check_leftovers(name, given, options):
    """Options that the command does not have itself: those of the command that it submits."""
    if options and name == "hpcdat submit" and given.get("command"):
        known = {o for p in program().commands[given["command"]].params for o in p.opts}
        options = [option for option in options if option.partition("=")[0] not in known]
    if options:
        raise Wrong(f"{name} has no option {options[0]}")


def _check_settings(name, values):
    for value in [values] if isinstance(values, str) else values:
        key = SETTING.match(value)
        # A submitted evaluation has options of its own; their values look like settings here.
        if key is None and not value.startswith(("KEY=", "$")) and name != "hpcdat submit":
            raise Wrong(f"{name}: {value}: expected KEY=VALUE")
        if key and key[1] not in setting_names():
            raise Wrong(f"{name}: there is no setting {key[1]}")


@cache
def setting_names():
    """All settings of a job, by dotted name, and the sections."""
    names = set(Job.other_names)
    for name, field in Job.model_fields.items():
        names.add(name)
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Settings):
            names |= {f"{name}.{inner.alias or key}" for key, inner in section.model_fields.items()}
    return names


def _check_script(path, words):
    """A script of the checkout: that it is there, and that its sources have the options."""
    script = CHECKOUT / path
    if "$" in path or "NAME" in path:
        return
    if not script.exists():
        raise Wrong(f"there is no {path}")
    if script.suffix == ".sh":
        return
    known = _strings(script)
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        # argparse's BooleanOptionalAction makes --no-X of --X.
        if {option, option.replace("--no-", "--")}.isdisjoint(known | OUTSIDE):
            raise Wrong(f"{path} has no option {option}")


@cache
def _strings(script):
    """The texts in a script and in the modules beside it that it imports."""
    files, found, done = [*script.rglob("*.py")] if script.is_dir() else [script], set(), set()
    while files:
        file = files.pop()
        done.add(file)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            for name in [node.module] if isinstance(node, ast.ImportFrom) else []:
                beside = CHECKOUT / "benchmarks" / f"{(name or '').replace('.', '/')}.py"
                if beside.exists() and beside not in done:
                    files.append(beside)
    return frozenset(found)


def _is_number(text):
    return re.fullmatch(r"-[\d.]+", text) is not None
