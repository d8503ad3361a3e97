"""The files of an evaluation, and results preserved from earlier ones."""

import csv
import json
import re

import pyautoattack
import pytest
import torch

from hpcdat.commands.evaluate import evaluate
from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.evaluation.accuracy import Accuracy
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.evaluation.results import AutoAttacked, Results, read_evaluations
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import DEMO, Never
from tests.evaluation.test_autoattack import Quick

FEW_IMAGES = ["data.test_images=30", "evaluation.batch_size=15"]


def test_the_step_size_follows_a_changed_radius(run_dir):
    """The stored job has the step size of its own radius and number of steps."""
    folder = RunFolder(run_dir)
    assert folder.read_job([]).evaluation.step_size == pytest.approx(2.5 * 0.2 / 20)
    other = folder.read_job(["evaluation.eps=0.01", "evaluation.steps=50"]).evaluation
    assert other.step_size == pytest.approx(2.5 * 0.01 / 50)
    assert folder.read_job(["evaluation.step_size=0.3"]).evaluation.step_size == 0.3
    write_text(folder.job_file, folder.job_file.read_text().replace("step_size: 0.025", "step_size: 0.02"))
    assert folder.read_job(["evaluation.eps=0.01"]).evaluation.step_size == 0.02


def evaluated(run_dir, *settings, **requested):
    """The evaluation of some test images, and its sections."""
    result = evaluate(
        run_dir, [*FEW_IMAGES, *settings], EvaluationRequest(**requested), SingleProcess(), Never()
    )
    measured = result.others[-1]
    found = read_evaluations(RunFolder(run_dir).evaluation_file)
    return measured, next(one["sections"] for one in found if tuple(one["changed"]) == measured.changed)


def test_aa_is_in_the_result_with_the_settings_of_its_measurement(run_dir):
    """The one test with the attacks at full length, on few images."""
    result, sections = evaluated(run_dir, "evaluation.eps=0.2", autoattack=6)
    section = sections["autoattack"]
    assert (section["images"], section["test_images"], result.aa_images) == (6, 30, 6)
    assert section["aa"] == result.aa == section["robust"]["square"] < section["robust"]["correct"]
    assert section["attack"]["package"] == f"pyautoattack {pyautoattack.__version__}"
    assert section["attack"]["attacks"]["square"] == {"queries": 5000, "restarts": 1}
    assert section["warnings"] == []
    # On the same images.
    assert (result.aa_ta, result.aa_ra) == (section["robust"]["correct"], section["ra"])
    assert result.aa <= result.aa_ra <= result.aa_ta
    table = RunFolder(run_dir).table_file.read_text()
    assert f"| {100 * result.aa:.2f} [" in table and "AA: under AutoAttack's standard version" in table
    (row,) = [line for line in table.splitlines() if "| 6 " in line]
    assert f"| {100 * result.aa_ra:.2f} [" in row
    # Preserved while the weights are the same, and shown next to RA of the same ball.
    result, sections = evaluated(run_dir, "evaluation.eps=0.1")
    assert result.aa is None and "autoattack" not in sections
    result, sections = evaluated(run_dir, "evaluation.eps=0.2")
    assert result.aa == section["aa"] and sections["autoattack"] == section
    checkpoint = RunFolder(run_dir).newest_checkpoint()
    checkpoint.model["1.classifier.bias"][0] += 1
    RunFolder(run_dir).checkpoints.save(checkpoint)
    result, sections = evaluated(run_dir, "evaluation.eps=0.2")
    assert result.aa is None and list(sections) == ["accuracy"]


def test_anything_less_is_not_called_aa(run_dir, monkeypatch):
    monkeypatch.setattr(pyautoattack, "AutoAttack", Quick)
    result, sections = evaluated(run_dir, autoattack="all")
    assert result.aa is None and sections["autoattack"]["aa"] is None
    assert sections["autoattack"]["attack"]["attacks"]["square"]["queries"] == 50
    assert 0 <= sections["autoattack"]["robust"]["square"] < 1
    assert "AA" not in RunFolder(run_dir).table_file.read_text()


def test_sweeps_are_a_table_and_a_plot(run_dir):
    radii, steps = (0.0, 0.1, 0.2, 0.3), (1, 5, 20)
    result, sections = evaluated(run_dir, "evaluation.eps=0.2", radii=radii, steps=steps)
    by_eps, by_steps = dict(sections["sweep-eps"]["curve"]), dict(sections["sweep-steps"]["curve"])
    assert tuple(by_eps) == radii and tuple(by_steps) == steps and by_eps[0.0] == result.ta
    for over, curve, label in (("eps", by_eps, r"\[0, 1\] units"), ("steps", by_steps, "PGD steps")):
        assert list(curve.values()) == sorted(curve.values(), reverse=True)
        # Of the second evaluation: the run's own would be the first.
        rows = list(csv.DictReader((run_dir / f"ra-over-{over}-2.csv").open()))
        assert [(row[over], row["ra"], row["images"], row["norm"]) for row in rows] == [
            (str(value), str(ra), "30", "linf") for value, ra in curve.items()
        ]
        assert all(float(row["low"]) < float(row["ra"]) < float(row["high"]) for row in rows[1:-1])
        plot = (run_dir / f"ra-over-{over}-2.svg").read_text()
        assert plot.startswith("<svg") and re.search(rf">[^<]*{label}[^<]*</text>", plot)
    for other in ("attack.norm=l2", "evaluation.eps=0.3"):
        evaluated(run_dir, other)
    _, sections = evaluated(run_dir, "evaluation.eps=0.2")
    assert dict(sections["sweep-eps"]["curve"]) == by_eps
    _, sections = evaluated(run_dir, "evaluation.eps=0.2", "data.augmentation=crop-flip")
    assert list(sections) == ["accuracy"], "of other views of the images"


def test_warnings_are_printed(run_dir, capsys):
    evaluated(run_dir, "evaluation.eps=0.2")
    assert "warning:" not in capsys.readouterr().err
    evaluated(run_dir, "evaluation.eps=0.4", "evaluation.step_size=0.01")
    assert "warning: 20 steps of 0.01 cannot cross a ball of radius 0.4" in capsys.readouterr().err


def test_threads_are_as_before_once_it_is_measured(run_dir, capsys):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        evaluated(run_dir, "evaluation.steps=1")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert "start 2 times as many workers to use all cores" in capsys.readouterr().out


def test_more_images_than_there_are_cannot_be_attacked(run_dir):
    with pytest.raises(InputError, match="cannot take 31 images of 30"):
        evaluated(run_dir, autoattack=31)


BALL = {"eps": 0.2, "norm": "linf"}
WHOLE = {
    "autoattack": {"images": 9, "warnings": [], "aa": 0.5, "attack": BALL},
    "sweep-eps": {"images": 9, "warnings": [], "attack": {"kind": "plain"}, "curve": [[0.1, 0.5]]},
    "sweep-steps": {"images": 9, "warnings": [], "attack": {"kind": "plain"}, "curve": [[10, 0.5]]},
}


def test_sections_of_a_file_that_lack_something_are_left_out(tmp_path):
    """A file of an older version, or one that was edited."""
    file, key = tmp_path / "evaluation.json", {"weights": "abc"}
    damaged = [(name, field, None) for name, section in WHOLE.items() for field in section]
    damaged += [
        ("autoattack", "attack", {"eps": 0.2}),
        ("autoattack", "aa", "high"),
        ("sweep-eps", "curve", []),
    ]
    damaged += [("sweep-steps", "curve", [[10]]), ("sweep-eps", "images", "many")]
    for name, field, value in damaged:
        section = {k: v for k, v in WHOLE[name].items() if k != field} | (
            {field: value} if value is not None else {}
        )
        file.write_text(json.dumps({**key, "sections": {**WHOLE, name: section, "list": []}}))
        found = Results(key, Accuracy(9, 5, 5), {}).merged_with(file)
        assert found.sections == {other: section for other, section in WHOLE.items() if other != name}
        found.autoattack(read_job(DEMO, ["evaluation.eps=0.2"]).evaluation, "linf")
        found.write(file, epoch=1)
        assert read_evaluations(file)[0]["sections"] == found.sections
    for sections in ([], None, "sections"):
        file.write_text(json.dumps({**key, "sections": sections}))
        assert Results(key, Accuracy(9, 5, 5), {}).merged_with(file).sections == {}


def test_aa_stands_with_ta_and_ra_of_its_own_images():
    """Of an earlier version, whose sections had neither, too."""
    settings = read_job(DEMO, ["evaluation.eps=0.2"]).evaluation
    for more, expected in (({}, (None, None)), ({"ta": 0.9, "ra": 0.6}, (0.9, 0.6))):
        section = {**WHOLE["autoattack"], **more}
        found = Results({}, Accuracy(20, 5, 5), {"autoattack": section})
        assert found.autoattack(settings, "linf") == AutoAttacked(0.5, 9, *expected)
        assert found.autoattack(settings, "l2") is None


def test_evaluations_with_other_settings_have_a_place_of_their_own_in_the_file(tmp_path):
    file = tmp_path / "evaluation.json"

    def results(count, *changed, weights="abc"):
        section = {"images": count, "warnings": []}
        return Results({"weights": weights}, Accuracy(9, 5, 5), {"accuracy": section}, changed)

    def found():
        return [
            (one["weights"], tuple(one["changed"]), one["sections"]["accuracy"]["images"])
            for one in read_evaluations(file)
        ]

    l2, own = ("evaluation.norm: l2",), ()
    results(1, *l2).write(file, epoch=3)
    assert found() == [("abc", l2, 1)]
    results(2).write(file, epoch=3)
    results(3, "data.test: val").write(file, epoch=3)
    results(4, *l2).write(file, epoch=3)
    assert found() == [("abc", own, 2), ("abc", l2, 4), ("abc", ("data.test: val",), 3)]
    assert json.loads(file.read_text())["sections"]["accuracy"]["images"] == 2
    results(5, *l2, weights="later").write(file, epoch=4)
    assert found() == [("later", l2, 5)]


def test_other_values_of_a_plain_sweep_are_added_to_it(tmp_path):
    file = tmp_path / "evaluation.json"

    def swept(curve, kind="plain", steps=20):
        attack = {"eps": list(curve), "kind": kind, "steps": steps}
        section = {"images": 9, "attack": attack, "curve": list(curve.items()), "warnings": []}
        name = "sweep-eps" if kind == "plain" else "accumulating-sweep-eps"
        found = Results({"weights": "abc"}, Accuracy(9, 5, 5), {name: section}).merged_with(file)
        found.write(file, epoch=1)
        assert found.sections[name]["attack"]["eps"] == list(dict(found.sections[name]["curve"]))
        return dict(found.sections[name]["curve"])

    swept({0.1: 0.5, 0.3: 0.2})
    assert swept({0.2: 0.4, 0.3: 0.1}) == {0.1: 0.5, 0.2: 0.4, 0.3: 0.1}
    # Of an accumulating sweep the values depend on one another, and those of other attacks are others.
    swept({0.1: 0.5}, "accumulating")
    assert swept({0.2: 0.4}, "accumulating") == {0.2: 0.4}
    assert swept({0.2: 0.3}, steps=5) == {0.2: 0.3}
