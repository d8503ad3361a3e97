"""Paths with ~ and variables: expanded alike everywhere, and written so that they are read as they are."""

import functools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.config.job_file import JobError, parse_job, read_job, write_job
from hpcdat.config.paths import escape, expand
from tests.config.test_job_file import MINIMAL
from tests.conftest import DEMO

KEYS = ("run_dir", "data.root", "data.train", "data.test", "data.unlabelled", "model.pretrained")


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch $HOME"))
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize("key", KEYS)
def test_every_path_of_a_job_is_expanded(key, tmp_path):
    for text, expected in [
        ("~/x", tmp_path / "home" / "x"),
        ("~", tmp_path / "home"),
        ("$SCRATCH/x", tmp_path / "scratch $HOME" / "x"),
        ("${SCRATCH}x", f"{tmp_path}/scratch $HOMEx"),
        ("a$$HOME", "a$HOME"),
        ("a$(b)`c`~", "a$(b)`c`~"),
    ]:
        job = parse_job(MINIMAL, "x.yaml", [f"{key}={json.dumps(text)}"])
        assert str(functools.reduce(getattr, key.split("."), job)) == str(expected)
        assert parse_job(write_job(job), "copy") == job, "a run that resumes reads the same path"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "text, complaint",
    [
        ("$NOWHERE/x", "the environment variable NOWHERE is not set or empty"),
        ("~nobody-of-this-name/x", "the home folder of ~nobody-of-this-name is unknown"),
        ('""', "expected a path"),
        ('"a\\0b"', "expected a path without null characters"),
        (f"a/{'x' * 256}/b", "expected a path; a name in it is longer than 255 bytes"),
        ('"\\ud800"', "surrogates not allowed"),
    ],
)
def test_a_path_that_cannot_be_expanded_is_refused_with_its_key(key, text, complaint):
    with pytest.raises(JobError, match=f"{key}: .*{complaint}"):
        parse_job(MINIMAL, "x.yaml", [f"{key}={text}"])


def test_an_empty_home_is_unknown(monkeypatch):
    monkeypatch.setenv("HOME", "")
    with pytest.raises(ValueError, match="the home folder of ~ is unknown; write the whole path"):
        expand("~/x")


def test_a_null_is_no_path():
    with pytest.raises(JobError, match=r"x\.yaml:1: run_dir: null: expected a path"):
        parse_job(MINIMAL.replace("runs/x", "~"), "x.yaml")


@given(st.text(st.sampled_from("~$HOME{}/a. \\'\""), min_size=1, max_size=12))
def test_what_is_escaped_is_read_as_it_was(text):
    assert Path(expand(escape(text))) == Path(text)


def test_another_jobs_path_is_expanded(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "base.yaml").write_text(MINIMAL)
    job = tmp_path / "job.yaml"
    job.write_text("like: ~/base.yaml\nseed: 3\n")
    assert read_job(job).seed == 3
    job.write_text("like: $NOWHERE/base.yaml\n")
    with pytest.raises(JobError, match=r"job\.yaml:1: like: .*NOWHERE is not set"):
        read_job(job)


@pytest.mark.parametrize(
    "command",
    [
        ["train", "$NOWHERE"],
        ["evaluate", "$NOWHERE"],
        ["certify", "$NOWHERE"],
        ["pseudo-label", "runs/x", "$NOWHERE", "out.npz"],
        ["pseudo-label", "runs/x", "images", "$NOWHERE"],
        ["report", "runs/x", "$NOWHERE"],
        ["report", "runs/x", "--out=$NOWHERE"],
        ["doctor", "$NOWHERE"],
        ["doctor", "--json=$NOWHERE"],
        ["plan", "$NOWHERE"],
        ["plan", DEMO, "--calibration=$NOWHERE"],
        ["plan", DEMO, "--save=$NOWHERE"],
        ["submit", "$NOWHERE"],
        ["submit", DEMO, "--site=$NOWHERE/x.yaml"],
    ],
    ids=lambda command: " ".join(map(str, command)),
)
def test_every_path_of_a_command_is_expanded(command):
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
    assert "the environment variable NOWHERE is not set" in done.stderr


def test_the_commands_read_a_path_in_the_home_folder(tmp_path):
    run = tmp_path / "home" / "run"
    done = CliRunner().invoke(app, ["report", "~/run"])
    assert done.exit_code == 2 and str(run) in done.stderr


def test_a_file_whose_name_has_a_dollar_sign_is_found_as_a_shell_names_it(tmp_path):
    job = tmp_path / "$NOWHERE.yaml"
    job.write_text("epocs: 3")
    for name in (str(job), str(job).replace("$", "$$")):
        done = CliRunner().invoke(app, ["train", name])
        assert f"{job}:1: epocs: unknown key" in done.stderr
