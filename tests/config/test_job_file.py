"""Jobs that can be taken, and what is said of those that cannot."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.config.job import Job
from hpcdat.config.job_file import JobError, parse_job, read_job, write_job
from hpcdat.config.methods import METHODS
from tests.conftest import CHECKOUT, DEMO

SHIPPED = CHECKOUT / "jobs"
MINIMAL = """\
run_dir: runs/x
method: dat-pgd
epochs: 2
batch_size: 4
data: {source: digits, channels: 1}
model: {name: digits-cnn, mean: [0.5], std: [0.25]}
optimizer: {lr: 1e-2}
"""


@pytest.mark.parametrize(
    "path", sorted(SHIPPED.rglob("*.yaml")), ids=lambda path: str(path.relative_to(SHIPPED))
)
def test_every_job_that_is_shipped_is_valid_and_survives_writing(path):
    job = read_job(path)
    assert parse_job(write_job(job), "copy") == job


@pytest.mark.parametrize("data, steps", [("imagenet", 10), ("cifar10", 20)])
def test_ra_is_measured_with_the_papers_steps(data, steps):
    """DAT, Sec. 6.1: 20 on CIFAR, 10 on ImageNet."""
    assert {read_job(path).evaluation.steps for path in (CHECKOUT / "jobs").glob(f"{data}-*.yaml")} == {steps}


def test_what_is_left_out_is_filled_in():
    job = parse_job(MINIMAL, "x.yaml", ["attack.eps=8/255"])
    assert job.attack.steps == 10 and job.attack.step_size == pytest.approx(2.5 * 8 / 255 / 10)
    assert job.evaluation.eps == 8 / 255 and job.evaluation.step_size == pytest.approx(2.5 * 8 / 255 / 20)
    assert job.optimizer.name == "lamb" and job.optimizer.lr == 0.01
    assert (job.optimizer.c_l, job.optimizer.c_u) == (0, 10)
    assert job.attack.batch_norm == "eval"
    fgsm = parse_job(MINIMAL, "x.yaml", ["method=dat-fgsm", "attack.eps=0.1"])
    assert fgsm.attack.steps == 1 and fgsm.attack.step_size == pytest.approx(0.125)
    assert fgsm.attack.noise == 1 and fgsm.attack.projection
    noisy = parse_job(MINIMAL, "x.yaml", ["method=dat-fgsm", "attack={eps: 0.1, name: n-fgsm}"])
    assert noisy.attack.step_size == 0.1 and noisy.attack.noise == 2 and noisy.attack.projection is False


@pytest.mark.parametrize(
    "method, optimizer, oracle",
    [
        ("plain", "lamb", "none"),
        ("at", "sgd", "pgd"),
        ("fast-at", "sgd", "fgsm"),
        ("dat-pgd", "lamb", "pgd"),
        ("dat-fgsm", "lamb", "fgsm"),
        ("dat-pgd-without-lalr", "sgd", "pgd"),
        ("dat-fgsm-without-lalr", "sgd", "fgsm"),
        ("dat-lsgd", "sgd", "pgd"),
    ],
)
def test_a_method_decides_oracle_and_optimiser(method, optimizer, oracle):
    job = parse_job(MINIMAL, "x.yaml", [f"method={method}"])
    assert (job.optimizer.name, job.oracle) == (optimizer, oracle)


def test_the_methods_of_the_settings_and_of_the_table_are_the_same():
    assert set(METHODS) == set(Job.model_fields["method"].annotation.__args__)


@pytest.mark.parametrize(
    "line, settings, complaint",
    [
        ("epocs: 3", [], "x.yaml:8: epocs: unknown key; did you mean 'epochs'?"),
        ("attack: {epz: 0.1}", [], "x.yaml:8: attack.epz: unknown key; did you mean 'eps'?"),
        ("attack:\n  eps: -1", [], "x.yaml:9: attack.eps: -1: expected 0 or more (radius of the ball"),
        (
            "attack: {eps: 8}",
            [],
            "x.yaml:8: attack.eps: expected a radius in [0, 1] pixel units, as in 8/255 (found 8)",
        ),
        ("attack: {eps: 1/0}", [], "x.yaml:8: attack.eps: '1/0': division by zero"),
        ("attack: {eps: .nan}", [], "x.yaml:8: attack.eps: .nan: expected a finite number"),
        ("attack: {norm: l3}", [], "expected one of linf, l2; did you mean 'l2'?"),
        ("", ["method=dat-pdg"], "--set method=dat-pdg: method: 'dat-pdg': expected one of plain, at,"),
        (
            "",
            ["method=dat-fgsm", "attack.steps=10"],
            "--set attack.steps=10: attack.steps: expected 1: method dat-fgsm",
        ),
        ("", ["method=dat-pgd", "attack.name=n-fgsm"], "attack.name: expected pgd: n-fgsm attacks with one"),
        (
            "",
            ["method=dat-fgsm", "attack.name=n-fgsm", "attack.norm=l2"],
            "attack.norm: expected linf: n-fgsm",
        ),
        (
            "",
            ["method=dat-fgsm", "attack.name=n-fgsm", "attack.random_start=false"],
            "attack.random_start: expected true: n-fgsm",
        ),
        ("", ["method=at", "optimizer.name=lamb"], "optimizer.name: expected sgd: method at"),
        ("", ["method=plain", "objective.lambda=1"], "objective.lambda: expected 0"),
        ("", ["objective.beta=1"], "objective.beta: not allowed without objective.regulariser"),
        ("", ["objective.regulariser=trades", "objective.lambda=1"], "objective.lambda: expected 0"),
        ("", ["method=plain", "objective.regulariser=trades"], "objective.regulariser: expected loss"),
        (
            "",
            ["objective.regulariser=trades", "attack.random_start=false"],
            "attack.random_start: expected true",
        ),
        ("", ["data.unlabelled_part=0.3"], "data.unlabelled: expected a file"),
        ("", ["data.mixing_alpha=0.3"], "data.mixing_alpha: not allowed without data.mixing"),
        (
            "",
            ["method=conadv", "concurrent.place=workers", "data.mixing=mixup"],
            "data.mixing: expected none",
        ),
        (
            "",
            ["data.unlabelled=x.npz", "data.unlabelled_part=0.999"],
            "data.unlabelled_part: expected a share",
        ),
        ("", ["model.name=resnet5"], "did you mean 'resnet50'?"),
        ("", ["data.source=folder"], "x.yaml:5: data.root: expected a folder with train/ and test/"),
        ("", ["data.channels=3"], "x.yaml:6: model.mean: expected one mean and one std for each"),
        ("", ["schedule.decay_epochs=[3,2]"], "schedule.decay_epochs: expected epochs in increasing order"),
        (
            "schedule: {power: 3}",
            [],
            "x.yaml:8: schedule.power: not allowed with schedule piecewise, only with polynomial",
        ),
        (
            "schedule: {name: cyclic, warmup_epochs: 1}",
            [],
            "schedule.warmup_epochs: expected 0: schedule cyclic has",
        ),
        ("schedule: {name: cyclic, peak_epoch: 2}", [], "schedule.peak_epoch: expected less than epochs = 2"),
        (
            "",
            ["data.loader=device", "data.augmentation=crop-flip"],
            "data.augmentation: expected none or pad-crop",
        ),
        (
            "",
            ["evaluation.restarts=2", "evaluation.random_start=false"],
            "evaluation.restarts: expected 1",
        ),
        ("", ["epochs"], "--set epochs: expected key=value"),
        ("", ["epochs=[1"], "--set epochs=[1: the value is not YAML"),
        ("", ["optimizer.c_l=11"], "optimizer.c_l: expected at most optimizer.c_u = 10"),
        ("seed: 1\nseed: 2", [], "x.yaml:9: seed: duplicate key"),
        ("seed: [1", [], "x.yaml:8: not YAML: expected"),
        ("seed: 2020-13-45", [], "x.yaml:8: seed: '2020-13-45': expected a whole number"),
        ("seed: &a [*a]", [], "x.yaml: a value cannot be read: an alias holds itself"),
        ("seed: !!python/object/apply:os.getcwd []", [], "not YAML: could not determine a constructor"),
    ],
)
def test_mistakes_are_told_with_place_and_remedy(line, settings, complaint):
    with pytest.raises(JobError) as error:
        parse_job(MINIMAL + line, "x.yaml", settings)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    "line, settings",
    [
        (f"{'k' * 500}: 1", []),
        (f"epochs: {'v' * 500}", []),
        (f"like: [{'p' * 500}]", []),
        ("", ["k" * 500]),
    ],
)
def test_long_keys_and_values_are_shortened_in_messages(line, settings):
    with pytest.raises(JobError) as error:
        parse_job(MINIMAL.replace("epochs: 2\n", "") + line, "x.yaml", settings)
    assert "..." in str(error.value) and not any(letter * 81 in str(error.value) for letter in "kvp")


def test_all_mistakes_are_told_at_once():
    with pytest.raises(JobError) as error:
        parse_job("epochs: 0\nbatch_size: many\nzzz: 1", "x.yaml")
    lines = str(error.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "run_dir",
        "method",
        "epochs",
        "batch_size",
        "optimizer",
        "zzz",
    ]


@pytest.mark.parametrize("text", ["", "3", "[a]", "- a: 1"])
def test_a_file_that_is_no_mapping_is_refused(text):
    with pytest.raises(JobError, match=r"x\.yaml"):
        parse_job(text, "x.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(JobError, match=r"nowhere\.yaml: cannot be read: No such file"):
        read_job(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobError, match=r"binary\.yaml: cannot be read"):
        read_job(tmp_path / "binary.yaml")


def test_set_replaces_single_keys_and_later_ones_win():
    job = read_job(DEMO, ["attack.eps=4/255", "attack.eps=2/255", "run_dir=a b'c"])
    assert job.attack.eps == 2 / 255 and job.attack.steps == 10 and job.run_dir == Path("a b'c")


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3)
)
keys = st.sampled_from(sorted(Job.model_fields)) | st.text(max_size=8)


@given(st.dictionaries(keys, values, max_size=6))
def test_no_mapping_whatever_ends_in_anything_but_a_job_or_a_job_error(mapping):
    import yaml

    try:
        parse_job(MINIMAL + yaml.safe_dump(mapping, allow_unicode=True).replace("{}\n", ""), "x.yaml")
    except JobError as error:
        assert str(error)


@pytest.mark.parametrize(
    "settings, told",
    [
        (
            ["exchange.two_sided=true"],
            "exchange.two_sided: expected false, or codes (exchange.bits) and a server",
        ),
        (["exchange.bits=9"], "exchange.bits: 9"),
        (["exchange.bits=8", "exchange.sum_format=bfloat16"], "exchange.sum_format: expected float32"),
        (["exchange.lane_bits=8"], "exchange.lane_bits: not allowed without codes in a ring"),
        (["exchange.error_feedback=true"], "exchange.error_feedback: expected false"),
        (["exchange.rounding=correlated"], "exchange.rounding: expected independent: with bits [32]"),
        (["exchange.rotation=hadamard"], "exchange.rotation: expected none: with bits [32]"),
        (
            ["exchange.bits=8", "exchange.rotation=hadamard", "exchange.norm=l2"],
            "exchange.norm: expected max",
        ),
        (
            ["exchange.bits=8", "exchange.rotation=hadamard", "exchange.block=bucket"],
            "exchange.block: expected a power of two",
        ),
        (
            ["exchange.bits=8", "exchange.rotation=hadamard", "exchange.block=500"],
            "exchange.block: expected a power of two",
        ),
        (["exchange.levels=127"], "exchange.levels: not allowed without codes of 2 to 8 or 16 bits"),
        (
            ["exchange.bits=8", "exchange.levels=128"],
            "exchange.levels: expected at most 127: sign and levels",
        ),
        (["exchange.bits_allowed=[8]"], "exchange.bits_allowed: not allowed without exchange.protocol"),
        (
            ["exchange.protocol=auto", "exchange.bits=8"],
            "exchange.bits: not allowed with exchange.protocol: auto",
        ),
        (
            ["exchange.protocol=auto", "exchange.lane_bits=8"],
            "exchange.lane_bits: not allowed without codes in a ring",
        ),
        (["exchange.protocol=rings"], "did you mean 'ring'"),
        (["early_stopping.patience=2"], "evaluation.every: expected 1 or more"),
        (["early_stopping.best_weights=true"], "evaluation.every: expected 1 or more"),
        (["early_stopping.held_out=9"], "early_stopping.best_weights: expected true, or a patience"),
        (["data.download=true"], "data.download: expected false"),
        (["data.source=cifar10"], "data.channels: expected 3"),
        (["data.policy=autoaugment"], "data.policy: expected none"),
        (["model.width=0.5"], "model.width: expected 1"),
    ],
)
def test_settings_that_do_not_go_together_are_told(settings, told):
    with pytest.raises(JobError) as refused:
        read_job(DEMO, ["evaluation.every=0", *settings])
    assert told in str(refused.value)


def test_a_job_like_another_takes_from_it_what_it_does_not_set(tmp_path):
    (tmp_path / "base.yaml").write_text(MINIMAL + "attack: {eps: 0.1, steps: 3}\n")
    (tmp_path / "jobs").mkdir()
    middle, last = tmp_path / "jobs" / "middle.yaml", tmp_path / "jobs" / "last.yaml"
    middle.write_text("like: ../base.yaml\nattack: {steps: 5}\nexchange: {bits: 8}\n")
    last.write_text("like: middle.yaml\nrun_dir: runs/last\nexchange: {lane_bits: 8}\n")
    job = read_job(last, ["attack.eps=0.2"])
    assert (job.attack.eps, job.attack.steps, job.batch_size) == (0.2, 5, 4)
    assert (job.exchange.bits, job.exchange.lane_bits, job.run_dir) == (8, 8, Path("runs/last"))
    # Mistakes are told where they stand, and where the way there began.
    middle.write_text("like: ../base.yaml\nattack: {stepz: 5}\n")
    with pytest.raises(JobError, match=r"middle\.yaml:2: attack\.stepz: unknown key"):
        read_job(last)
    middle.write_text("like: last.yaml\n")
    with pytest.raises(JobError, match=r"last\.yaml:1: like: .*middle\.yaml:1: like: .*refers to itself"):
        read_job(last)
    last.write_text("like: nowhere.yaml\n")
    with pytest.raises(JobError, match=r"last\.yaml:1: like: .*nowhere\.yaml: cannot be read: No such file"):
        read_job(last)
    last.write_text("like: [1]\n")
    with pytest.raises(JobError, match=r"last\.yaml:1: like: expected the path of another job"):
        read_job(last)


def test_gradient_accumulation_is_another_name_of_virtual_workers(tmp_path):
    text = MINIMAL + "gradient_accumulation: 4\n"
    job = parse_job(text, "x.yaml")
    assert job.virtual_workers == 4
    assert job == parse_job(MINIMAL + "virtual_workers: 4\n", "x.yaml")
    # Written under one name, whichever was given.
    assert "virtual_workers: 4" in write_job(job) and "accumulation" not in write_job(job)
    assert parse_job(MINIMAL, "x.yaml", ["gradient_accumulation=3"]).virtual_workers == 3
    # A setting on the command line, and one of a job that is `like` another, replaces the other name.
    assert parse_job(text, "x.yaml", ["virtual_workers=2"]).virtual_workers == 2
    (tmp_path / "first.yaml").write_text(MINIMAL + "virtual_workers: 2\n")
    (tmp_path / "second.yaml").write_text("like: first.yaml\ngradient_accumulation: 5\n")
    assert read_job(tmp_path / "second.yaml").virtual_workers == 5


@pytest.mark.parametrize(
    "text, settings, message",
    [
        (
            "gradient_accumulation: 4\nvirtual_workers: 4\n",
            [],
            "x.yaml:8: gradient_accumulation: is virtual_workers, which is also set (x.yaml:9): keep one",
        ),
        (
            "",
            ["gradient_accumulation=4", "virtual_workers=2"],
            "--set gradient_accumulation=4: gradient_accumulation: is virtual_workers, which is also set "
            "(--set virtual_workers=2): keep one",
        ),
        ("gradient_accumulation: 0\n", [], "x.yaml:8: virtual_workers: 0: expected 1 or more"),
        (
            "gradient_accumulation_steps: 4\n",
            [],
            "x.yaml:8: gradient_accumulation_steps: unknown key; did you mean 'gradient_accumulation'?",
        ),
        (
            "exchange: {gradient_accumulation: 4}\n",
            [],
            "x.yaml:8: exchange.gradient_accumulation: unknown key; did you mean 'gradient_accumulation'?",
        ),
    ],
)
def test_mistakes_with_gradient_accumulation_are_explained(text, settings, message):
    with pytest.raises(JobError) as failure:
        parse_job(MINIMAL + text, "x.yaml", settings)
    assert str(failure.value).startswith(message)
