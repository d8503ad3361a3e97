"""RA over radii and steps of several runs."""

import json

import pytest
from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.report.runs import read_run
from hpcdat.report.sweeps import sweep_sections


@pytest.fixture
def swept(make_run):
    """Makes a run whose RA over eps was measured."""

    def make(name, method, curve, *, norm="linf", steps=20, images=397, signature="same", kind="plain"):
        folder = make_run(name, "", method=method)
        attack = {"eps": list(curve), "kind": kind, "norm": norm, "random_start": True, "steps": steps}
        if kind is None:
            del attack["kind"]
        section = {"images": images, "attack": attack, "curve": list(curve.items()), "warnings": []}
        sections = {"accumulating-sweep-eps" if kind == "accumulating" else "sweep-eps": section}
        evaluation = {"images": {"count": images, "signature": signature}, "sections": sections}
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        return folder

    return make


def sections_of(*folders):
    return sweep_sections([read_run(folder) for folder in folders])


def test_runs_with_one_setting_share_a_plot(swept, make_run):
    (section,) = sections_of(
        swept("one", "dat-pgd", {0.0: 0.9, 2 / 255: 0.5}),
        swept("two", "dat-pgd", {0.0: 0.8, 8 / 255: 0.25}),
        swept("three", "at", {0.0: 0.7, 2 / 255: 0.6, 8 / 255: 0.5}),
        make_run("unmeasured", ""),
    )
    assert section.header == ["run", "0", "2/255", "8/255"]
    assert section.rows == [
        ["dat-pgd, one", "90.00", "50.00", ""],
        ["dat-pgd, two", "80.00", "", "25.00"],
        ["at", "70.00", "60.00", "50.00"],
    ]
    assert "dat-pgd, two" in section.plot and len(section.notes) == 1
    assert section.notes[0].startswith("RA (%) under PGD: linf, 20 steps, a random start, 397 images.")


def test_what_was_measured_otherwise_stands_apart_and_is_told(swept):
    curve = {0.0: 0.9, 0.1: 0.5}
    runs = [swept("pgd", "dat-pgd", curve), swept("fgsm", "dat-fgsm", curve)]
    for name, other in (("l2", {"norm": "l2"}), ("few", {"images": 100}), ("short", {"steps": 5})):
        one, two = sections_of(*runs, swept(name, "at", curve, **other))
        assert (one.name, two.name) == ("ra-over-eps", "ra-over-eps-2")
        assert [row[0] for row in one.rows] == ["dat-pgd", "dat-fgsm"] and two.rows[0][0] == "at"
        assert one.notes[1].startswith(f"Not in this plot: {name}, measured differently: ")
        assert two.notes[1].startswith("Not in this plot: pgd, fgsm, measured differently: linf, 20 steps")
    (section,) = sections_of(*runs, swept("copy", "at", curve, signature="other"))
    assert "Not all of these runs were measured on the same files" in section.notes[1]


def test_sweeps_stand_in_the_report_and_damage_is_told(swept, tmp_path):
    run, out = swept("run", "dat-pgd", {0.0: 0.9, 0.1: 0.5}), tmp_path / "out"
    command = ["report", str(run), "--out", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (out / "ra-over-eps.svg").read_text() in (out / "report.html").read_text()
    assert "(ra-over-eps.svg)" in (out / "report.md").read_text()
    for damage in ("[1]", "{", '{"sections": {"sweep-eps": {}}}'):
        (run / "evaluation.json").write_text(damage)
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2 and "evaluation.json cannot be read" in done.output.replace("\n", "")


def test_plain_and_accumulating_sweeps_are_never_in_one_plot(swept):
    """Of earlier versions, whose sweeps all accumulate and do not say so, too."""
    curve = {0.0: 0.9, 0.1: 0.5}
    plain, other = sections_of(
        swept("plain", "dat-pgd", curve),
        swept("accumulating", "dat-fgsm", curve, kind="accumulating"),
        swept("earlier", "at", curve, kind=None),
    )
    assert (plain.name, other.name) == ("ra-over-eps", "ra-over-eps-accumulating")
    assert [row[0] for row in plain.rows] == ["dat-pgd"] and "Figure 3" in plain.title
    assert [row[0] for row in other.rows] == ["dat-fgsm", "at"] and "Figure 3" not in other.title
