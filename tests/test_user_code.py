"""Modules of users: where they are found, and what is said if they are not as they should be."""

import itertools
import sys

import pytest

from hpcdat.config.job_file import parse_job, read_job, write_job
from hpcdat.errors import InputError
from hpcdat.user_code import call, code_fingerprint, load_callable

NUMBERS = itertools.count()
JOB = (
    "{run_dir: runs/x, method: plain, epochs: 1, batch_size: 2, optimizer: {lr: 0.1}, "
    "data: {source: cifar10}, model: {name: '%s'}}"
)


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Write a module with a name of its own, and return the name."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(text, name=None, folder=tmp_path):
        name = name or f"own_{next(NUMBERS)}"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        return name

    return write


def test_a_callable_is_found_with_what_lies_beside_it(tmp_path, write_module):
    sibling = write_module("WIDTH = 3")
    name = write_module(
        f"class Net:\n    def build():\n        import {sibling}\n        return {sibling}.WIDTH"
    )
    assert call("model.name", name, load_callable("model.name", f"{name}:Net.build", [tmp_path])) == 3


def test_a_module_beside_the_job_comes_before_an_installed_one(tmp_path, write_module):
    write_module("def f(): return 'mine'", "this")
    sys.modules.pop("this", None)
    try:
        assert load_callable("model.name", "this:f", [tmp_path])() == "mine"
    finally:
        del sys.modules["this"]


def test_a_file_beside_a_module_does_not_replace_one_of_python(tmp_path, write_module):
    write_module("raise SystemExit('replaced')", "colorsys")
    name = write_module("import colorsys\ndef f(): return colorsys.__file__")
    sys.modules.pop("colorsys", None)
    assert str(tmp_path) not in load_callable("model.name", f"{name}:f", [tmp_path])()


def test_a_module_on_the_path_needs_no_folder():
    assert load_callable("model.name", "collections:OrderedDict", []) is __import__("collections").OrderedDict


@pytest.mark.parametrize(
    "text, reference, expected",
    [
        ("", "{}x:f", r"model.name: there is no module {}x in .* or on Python's path; did you mean {}\?"),
        ("", "{}.inner:f", r"there is no module {}\.inner in"),
        ("def build(): ...", "{}:biuld", r"there is no biuld in .*{}\.py; did you mean build\?"),
        ("import json as buildd", "{}:build", r"there is no build in .*{}\.py$"),
        ("build = 3", "{}:build", r"{}:build is of type int: expected a function or class"),
        ("import a_missing_one", "{}:f", r"{}\.py:1: ModuleNotFoundError: No module named 'a_missing_one'"),
        ("x = (", "{}:f", r"module {} cannot be imported: .*{}\.py:1: SyntaxError"),
        ("\n\nraise ValueError('of mine')", "{}:f", r"{}\.py:3: ValueError: of mine$"),
        ("import sys\nsys.exit(3)", "{}:f", r"{}\.py:2: SystemExit: 3$"),
    ],
)
def test_what_cannot_be_imported_is_one_line(tmp_path, write_module, text, reference, expected):
    name = write_module(text)
    with pytest.raises(InputError, match=expected.replace("{}", name)) as caught:
        load_callable("model.name", reference.replace("{}", name), [tmp_path])
    assert "\n" not in str(caught.value)
    assert name not in sys.modules or "raise" not in text


def test_what_fails_names_the_line_of_the_user(tmp_path, write_module):
    name = write_module("import json\ndef f(text):\n    return json.loads(text)")
    function = load_callable("data.source", f"{name}:f", [tmp_path])
    with pytest.raises(InputError, match=rf"data.source: {name}:f failed: .*{name}\.py:3: JSONDecodeError: "):
        call("data.source", f"{name}:f", function, "{")


def test_two_files_of_one_name_are_refused(tmp_path, write_module):
    name = write_module("def f(): return 1")
    load_callable("model.name", f"{name}:f", [tmp_path])
    write_module("def f(): return 2", name, tmp_path / "other")
    with pytest.raises(InputError, match=r"has the name of another module, .*: rename the file"):
        load_callable("model.name", f"{name}:f", [tmp_path / "other"])


def test_a_job_knows_its_folder_and_those_of_the_jobs_it_is_like(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "base.yaml").write_text(JOB % "net:build")
    (tmp_path / "inner" / "job.yaml").write_text("like: ../base.yaml\nepochs: 2\n")
    job = read_job(tmp_path / "inner" / "job.yaml")
    assert job.module_path == [tmp_path / "inner", tmp_path]
    again = parse_job(write_job(job), str(tmp_path / "elsewhere" / "job.yaml"))
    assert again == job
    assert read_job(tmp_path / "base.yaml", ["model.name=resnet50"]).module_path is None
    assert read_job(tmp_path / "base.yaml", ["model.name=timm:vit_tiny"]).module_path is None


def test_the_fingerprint_of_code_follows_its_text_and_that_of_modules_beside_it(tmp_path, write_module):
    sibling = write_module("WIDTH = 3")
    name = write_module(f"import {sibling}\ndef build(): ...")
    load_callable("model.name", f"{name}:build", [tmp_path])
    before = code_fingerprint(f"{name}:build", [tmp_path])
    assert code_fingerprint(f"{name}:build", [tmp_path]) == before
    write_module("WIDTH = 4", sibling)
    beside = code_fingerprint(f"{name}:build", [tmp_path])
    write_module(f"import {sibling}\ndef build(): return 1", name)
    assert len({before, beside, code_fingerprint(f"{name}:build", [tmp_path])}) == 3


def test_options_are_numbers_booleans_and_text(tmp_path):
    job = parse_job(
        JOB % "net:build", "x.yaml", ["model.options={a: 3, b: 0.5, c: true, d: relu, e: [1, x]}"]
    )
    assert job.model.options == {"a": 3, "b": 0.5, "c": True, "d": "relu", "e": [1, "x"]}
    assert parse_job(write_job(job), "x.yaml") == job
