"""What a run's own job has measured, and other evaluations below it."""

import json
import re
from dataclasses import asdict, replace

import pytest

from hpcdat.commands.certify import certify
from hpcdat.commands.run_result import (
    AGAIN,
    EVALUATION_SETTINGS,
    changed_settings,
    summarise,
    with_evaluation,
)
from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.evaluation.accuracy import Accuracy
from hpcdat.report.certificates import read_certificates
from hpcdat.report.result_table import result_rows, result_table
from hpcdat.report.runs import read_run
from hpcdat.storage.evaluated import Evaluated
from hpcdat.storage.run_folder import Result, RunFolder
from tests.conftest import DEMO, Never, run_here

OWN = Result(
    **{"method": "at", "seed": 0, "p": 1, "q": 1, "batches": 1, "batch": 9, "communication": None},
    **{"total": 1.0, "exchange": "ring", "megabytes": None, "images": 100, "ta": 0.9, "ra": 0.5},
    **{"attack": "PGD-20, linf, eps 0.2", "epoch": 3, "weights": "abc"},
)
L2 = replace(
    OWN, ra=0.8, attack="PGD-20, l2, eps 0.5", changed=("evaluation.norm: l2", "evaluation.eps: 0.5")
)
VAL = replace(OWN, images=50, changed=("data.test: val",))


def accuracies(result):
    return Evaluated(**{key: getattr(result, key) for key in asdict(VAL) if key in Evaluated.__annotations__})


def test_other_evaluations_stand_below_the_runs_own_and_never_replace_it():
    result = with_evaluation(OWN, L2, replaces=False)
    result = with_evaluation(result, VAL, replaces=False)
    assert result == replace(OWN, others=(accuracies(L2), accuracies(VAL)))
    # The same settings again.
    result = with_evaluation(result, replace(L2, ra=0.7), replaces=False)
    assert result == replace(OWN, others=(accuracies(VAL), replace(accuracies(L2), ra=0.7)))
    assert accuracies(L2).conditions == "PGD-20, l2, eps 0.5"
    assert accuracies(VAL).conditions == "PGD-20, linf, eps 0.2; data.test: val"


def test_the_first_evaluation_of_an_unfinished_run_gives_way_to_its_own():
    first = with_evaluation(None, L2, replaces=True)
    assert first == L2
    # Of a later checkpoint.
    later = replace(L2, epoch=4, weights="def")
    assert with_evaluation(first, later, replaces=True) == later
    assert with_evaluation(first, VAL, replaces=True) == replace(L2, others=(accuracies(VAL),))
    assert with_evaluation(first, OWN, replaces=True) == replace(OWN, others=(accuracies(L2),))
    assert with_evaluation(OWN, replace(OWN, epoch=5), replaces=True).epoch == 5


def test_what_the_end_of_the_training_measured_stays_where_it_is_measured_again():
    assert with_evaluation(OWN, OWN, replaces=False) == OWN
    aa = {"aa": 0.4, "aa_images": 20, "aa_ta": 0.9, "aa_ra": 0.45}
    attacked = with_evaluation(OWN, replace(OWN, **aa), replaces=False)
    assert attacked == replace(OWN, **aa) and with_evaluation(attacked, OWN, replaces=False) == attacked
    bound = {"fast_bound": 0.45}
    bounded = with_evaluation(attacked, replace(OWN, **bound), replaces=False)
    assert bounded == replace(OWN, **aa, **bound) and with_evaluation(bounded, OWN, replaces=False) == bounded
    # On another processor one image ends differently.
    other = replace(OWN, ra=0.51)
    assert with_evaluation(OWN, other, replaces=False) == replace(
        OWN, others=(replace(accuracies(other), changed=(AGAIN,)),)
    )


def test_rows_of_other_evaluations_have_their_attack_images_and_intervals():
    result = with_evaluation(replace(OWN, aa=0.95, aa_images=20, aa_ta=0.95, aa_ra=0.9), L2, replaces=False)
    header, rows = result_rows({"run": result})
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["Attack"] for row in cells] == [OWN.attack, OWN.attack, L2.attack]
    assert [row["Images"] for row in cells] == ["100", "20", "100"]
    assert [row["RA (%)"] for row in cells] == [
        "50.00 [40.4, 59.6]",
        "90.00 [69.9, 97.2]",
        "80.00 [71.1, 86.7]",
    ]
    assert [row["AA (%)"] for row in cells] == ["-", "95.00 [76.4, 99.1]", "-"]
    assert [row["T (s)"] for row in cells] == ["1.00", "", ""] and "MiB / iteration" in header
    table = result_table({"run": result})
    assert "Where AA is above RA, PGD breaks images that AutoAttack does not" in table


def test_energy_stands_where_it_was_measured_and_a_dash_where_not():
    cells = {"a": replace(OWN, gpu_wh=10.25, package_wh=2.0), "b": OWN, "c": replace(OWN, dram_wh=0.25)}
    header, rows = result_rows(cells)
    place = header.index("Energy (Wh)")
    assert [row[place] for row in rows] == ["12.2: GPUs 10.2, processors 2", "-", "0.25: memory 0.25"]
    assert "Energy: watt-hours of all epochs" in result_table(cells)
    assert "Energy" not in result_table({"b": OWN}) and "Images/s" not in result_table({"b": OWN})
    fast = result_rows({"a": replace(OWN, images_per_second=12345.6), "b": OWN}, mean=True)
    assert [dict(zip(fast[0], row, strict=True))["Images/s"] for row in fast[1]] == ["12,346", "-", "-"]


def test_autoattack_for_few_classes_is_named_as_what_it_is():
    version = "AutoAttack for 5 classes: 4 targets in place of 9"
    attacked = replace(OWN, aa=0.4, aa_images=20, aa_ta=0.9, aa_ra=0.45, aa_version=version)
    header, rows = result_rows({"run": attacked})
    attacks = [row[header.index("Attack")] for row in rows]
    assert attacks == [OWN.attack, f"{OWN.attack}; {version}"]
    table = result_table({"run": attacked})
    assert f"AA: under {version} in the ball" in table and "standard version" not in table
    assert "AA: under AutoAttack's standard version in" in result_table(
        {"run": replace(attacked, aa_version=None)}
    )


def test_weights_that_were_chosen_on_the_test_images_are_reported_as_such():
    note = "were chosen by their RA on these test images"
    assert note not in result_table({"run": OWN})
    assert f"The weights of {OWN.method} {note}" in result_table({"run": replace(OWN, chosen_on_test=True)})


@pytest.mark.parametrize(
    "settings, chosen",
    [
        (["early_stopping.best_weights=true"], True),
        (["early_stopping.best_weights=true", "early_stopping.held_out=10"], False),
        ([], False),
    ],
)
def test_only_weights_chosen_on_held_out_images_are_chosen_on_others(run_dir, settings, chosen):
    job = read_job(DEMO, [f"run_dir={run_dir}", *settings])
    assert summarise(RunFolder(run_dir), job, Accuracy(9, 8, 7), 1, "", (), None).chosen_on_test == chosen


def test_an_evaluation_with_another_attack_leaves_the_headline_alone(run_dir):
    """From the command line to result.md, the table of `hpcdat report` and the pages of `--out`."""
    folder = RunFolder(run_dir)
    before = folder.read_result()
    few = ["data.test_images=30", "evaluation.steps=2"]
    done = run_here("evaluate", run_dir, "--set", "attack.norm=l2", "evaluation.eps=0.5", *few)
    assert done.returncode == 0, done.stderr
    result = folder.read_result()
    assert replace(result, others=()) == before and len(result.others) == 1
    assert result.others[0].attack == "PGD-2, l2, eps 0.5" and result.others[0].images == 30
    out = run_dir.parent / "out"
    for text in (
        folder.table_file.read_text(),
        done.stdout,
        run_here("report", run_dir).stdout,
        run_here("report", run_dir, "--out", out).stdout,
        re.sub("<[^>]*>", "", (out / "report.html").read_text()),
    ):
        first, second = (
            text.index("PGD-20, linf, eps 0.2"),
            text.index("PGD-2, l2, eps 0.5; data.test_images: 30"),
        )
        assert first < second
        assert f"{100 * before.ra:.2f} [" in text and f"{100 * result.others[0].ra:.2f} [" in text
    assert read_run(run_dir).result.ra == before.ra


def test_a_result_that_another_evaluation_had_replaced_is_not_taken_for_the_runs_own(run_dir):
    """Of an earlier version."""
    folder = RunFolder(run_dir)
    own = folder.read_result()
    folder.write_result(replace(own, attack="PGD-20, l2, eps 0.5", ra=0.99), "")
    few = ["evaluation.steps=20", "evaluation.eps=0.2"]
    assert run_here("evaluate", run_dir, "--set", *few).returncode == 0
    result = folder.read_result()
    assert result.ra == own.ra and [one.ra for one in result.others] == [0.99]


def test_certificates_at_another_noise_level_or_of_fewer_images_replace_none(run_dir):
    settings = ["data.test_images=6", "certification.n0=5", "certification.n=20"]

    def certified(*more):
        return certify(run_dir, [*settings, *more], SingleProcess(), Never())

    (own,) = certified("certification.sigma=[0.25]")
    (other,) = certified("certification.sigma=[0.5]")
    (few,) = certified("certification.sigma=[0.25]", "certification.every=3")
    assert few.changed == (*own.changed, "certification.every: 3") and len(few.counts) == 2
    assert read_certificates(RunFolder(run_dir).certification_folder) == [own, other, few]
    summary = json.loads((RunFolder(run_dir).certification_folder / "certified.json").read_text())
    assert [one["images"] for one in summary] == [6, 6, 2]


@pytest.mark.parametrize(
    "setting, changed",
    [
        *(("data.threads=1", ()), ("evaluation.every=3", ()), ("optimizer.lr=0.01", ())),
        ("data.test_images=9", ("data.test_images: 9",)),
        ("model.precision=bfloat16", ("model.precision: bfloat16",)),
        ("evaluation.eps=1e-6", ("evaluation.eps: 1e-06", "evaluation.step_size: 1.25e-07")),
        ("data.augmentation=crop-flip", ("data.augmentation: crop-flip",)),
    ],
)
def test_settings_that_make_a_difference_to_an_evaluation(trained, setting, changed):
    folder = RunFolder(trained)
    assert changed_settings(folder, folder.read_job([setting]), EVALUATION_SETTINGS) == changed
