"""Numbers, booleans and nulls of YAML: what the author wrote, or an error that quotes it."""

import functools
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.config.job_file import JobError, parse_job, write_job
from hpcdat.config.scalars import NUMBER, fraction, number
from tests.config.test_job_file import MINIMAL


def job_with(line, *settings):
    return parse_job(f"{MINIMAL}{line}", "x.yaml", settings)


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("attack: {eps: yes}", "x.yaml:8: attack.eps: 'yes': expected a number, not the boolean yes (radius"),
        ("attack: {steps: true}", "attack.steps: 'true': expected a whole number, not the boolean true"),
        ("attack: {steps: Off}", "attack.steps: 'Off': expected a whole number, not the boolean Off"),
        (
            "attack: {steps: 1:30}",
            "'1:30': expected a whole number in decimal digits; YAML 1.1 reads 1:30 as 90,",
        ),
        (
            "seed: 010",
            "x.yaml:8: seed: '010': expected a whole number in decimal digits; YAML 1.1 reads 010 as 8,",
        ),
        ("seed: 08", "seed: '08': expected a whole number without leading zeros"),
        (
            "seed: 1_000",
            "seed: '1_000': expected a whole number in decimal digits; YAML 1.1 reads 1_000 as 1000,",
        ),
        ("seed: 0x10", "seed: '0x10': expected a whole number in decimal digits; YAML 1.1 reads 0x10 as 16,"),
        ("seed: 0b11", "YAML 1.1 reads 0b11 as 3,"),
        ("seed: 0o17", "seed: '0o17': expected a whole number"),
        ('seed: "010"', "seed: '010': expected a whole number"),
        ("seed: 1.5", "seed: 1.5: expected a whole number"),
        ("seed: 2026-11-28", "seed: '2026-11-28': expected a whole number"),
        ("seed: ~", "seed: null: expected a whole number"),
        ("seed:", "seed: null: expected a whole number"),
        ("seed: !!int 010", "x.yaml:8: not YAML: could not determine a constructor for the tag"),
        ("attack: {eps: 1_0/255}", "attack.eps: '1_0/255': expected a number, or a fraction such as 8/255"),
        ("attack: {random_start: 1}", "attack.random_start: 1: expected true or false"),
        ("attack: {random_start: maybe}", "attack.random_start: 'maybe': expected true or false"),
        ("schedule: {decay_epochs: [1, 1:30]}", "schedule.decay_epochs: '1:30': expected a whole number"),
        ("schedule: {decay_epochs: 3}", "schedule.decay_epochs: 3: expected a list"),
        (
            "exchange: {bits: true}",
            "exchange.bits: 'true': expected one of 1, 2, 3, 4, 5, 6, 7, 8, 16, float16, 32",
        ),
        ("exchange: {bits: 010}", "exchange.bits: '010': expected one of 1, 2,"),
        ("exchange: {block: 0x10}", "exchange.block: '0x10': expected a whole number or bucket or tensor in"),
        ("exchange: {block: 4}", "x.yaml:8: exchange.block: 4: expected 8 or more"),
        ("exchange: 3", "exchange: 3: expected settings, as in {KEY: VALUE}"),
        ("exchange:", "exchange: null: expected settings"),
        ("certification: {sigma: []}", "certification.sigma: []: expected a list of 1 or more"),
        ('"o\\nne": 1', "x.yaml:8: o\\nne: unknown key"),
        ('seed: "1\\n2"', "seed: '1\\n2': expected a whole number"),
    ],
)
def test_what_yaml_1_1_would_change_is_refused_with_what_was_read(line, complaint):
    with pytest.raises(JobError) as refused:
        job_with(line)
    assert complaint in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("setting", ["optimizer.lr=yes", "attack.steps=true", "epochs=1:30", "seed=010"])
def test_settings_of_the_command_line_are_read_alike(setting):
    key, _, text = setting.partition("=")
    with pytest.raises(JobError, match=f"--set {setting}: {key}: '{text}': expected a (whole )?number"):
        job_with("", setting)


@pytest.mark.parametrize(
    "line, key, value",
    [
        ("attack: {eps: 1e-3}", "attack.eps", 0.001),
        ("attack: {eps: .5}", "attack.eps", 0.5),
        ("attack: {eps: 8 / 255}", "attack.eps", 8 / 255),
        ("model: {name: digits-cnn, mean: [1/2], std: [1]}", "model.mean", [0.5]),
        ("seed: 1e3", "seed", 1000),
        ("seed: +7", "seed", 7),
        ('seed: "7"', "seed", 7),
        ("attack: {random_start: no}", "attack.random_start", False),
        ("attack: {random_start: On}", "attack.random_start", True),
        ("exchange: {bits: 8}", "exchange.bits", 8),
        ("exchange: {bits: float16}", "exchange.bits", "float16"),
        ("exchange: {block: 1e3}", "exchange.block", 1000),
        (
            "exchange: {exact: [010, no, 1.10, 2026-11-28]}",
            "exchange.exact",
            ["010", "no", "1.10", "2026-11-28"],
        ),
        ("data: {source: digits, channels: 1, train: 2012, test: on}", "data.train", "2012"),
        ("data: {source: digits, channels: 1, root: 1e3}", "data.root", Path("1e3")),
    ],
)
def test_a_value_is_what_its_author_wrote(line, key, value):
    text = "\n".join(each for each in MINIMAL.splitlines() if each.split(":")[0] != line.split(":")[0])
    read = functools.reduce(getattr, key.split("."), parse_job(f"{text}\n{line}", "x.yaml"))
    assert read == value and type(read) is type(value)


@given(st.text(max_size=12) | st.from_regex(NUMBER, fullmatch=True) | st.floats().map(yaml.safe_dump))
def test_a_number_is_one_or_none_whatever_the_text(text):
    read = number(text.removesuffix("\n...\n"))
    assert read is None or isinstance(read, int | float)
    if NUMBER.fullmatch(text) and read is not None and math.isfinite(read):
        assert read == pytest.approx(float(text))


@given(st.floats(allow_nan=False))
def test_every_float_survives_being_written_to_a_job(value):
    dumped = yaml.safe_dump(value).removesuffix("\n...\n")
    assert number(dumped) == value


@pytest.mark.parametrize("text", ["", "1/2/3", "nan", "1_0", "8/", "/8", "0x1", "٣"])
def test_what_is_no_fraction_is_refused(text):
    with pytest.raises(ValueError, match="expected a number, or a fraction such as 8/255"):
        fraction(text)


def test_digits_by_the_thousand_are_a_number_out_of_range():
    with pytest.raises(JobError, match=r"seed: 9+\.\.\.: expected less than 4294967296"):
        job_with(f"seed: {'9' * 4000}")
    with pytest.raises(JobError, match=r"optimizer\.lr: 9+\.\.\.: expected a finite number"):
        job_with("", f"optimizer.lr={'9' * 9000}")


def test_what_is_written_is_read_again_by_yaml_1_1_as_well():
    job = job_with("exchange: {exact: [no, 010, 1e3]}\nseed: 7")
    written = yaml.safe_load(write_job(job))
    assert written["exchange"]["exact"] == ["no", "010", "1e3"] and written["seed"] == 7
    assert parse_job(write_job(job), "copy") == job


@pytest.mark.parametrize(
    "line, complaint",
    [
        (
            "eps: 0.1",
            "eps: unknown key; did you mean 'evaluation.eps' or 'attack.eps'? (known here: run_dir,",
        ),
        ("attack: {lr: 1}", "attack.lr: unknown key; did you mean 'optimizer.lr'?"),
        ("objective: {lambd: 1}", "objective.lambd: unknown key; did you mean 'lambda'?"),
    ],
)
def test_an_unknown_key_points_at_the_section_that_has_it(line, complaint):
    with pytest.raises(JobError) as refused:
        job_with(line)
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    "setting, complaint",
    [
        ("method=trades", "conadv; trades is a value of objective.regulariser"),
        ("model.name=dali", "resnet50; dali is a value of data.loader"),
        ("method=lamb", "conadv; lamb is a value of optimizer.name"),
    ],
)
def test_a_value_of_another_setting_points_at_it(setting, complaint):
    with pytest.raises(JobError) as refused:
        job_with("", setting)
    assert complaint in str(refused.value)
