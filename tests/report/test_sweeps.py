"""RA over radii and steps of several runs."""

import json

import pytest
from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.report.plots import plot_sweep
from hpcdat.report.runs import read_run
from hpcdat.report.sweeps import sweep_sections


@pytest.fixture
def swept(make_run):
    """Makes a run whose RA over eps was measured."""

    def make(
        name, method, curve, *, norm="linf", steps=20, images=397, signature="same", kind="plain", others=()
    ):
        folder = make_run(name, "", method=method)
        attack = {"eps": list(curve), "kind": kind, "norm": norm, "random_start": True, "steps": steps}
        if kind is None:
            del attack["kind"]
        section = {"images": images, "attack": attack, "curve": list(curve.items()), "warnings": []}
        sections = {"accumulating-sweep-eps" if kind == "accumulating" else "sweep-eps": section}
        evaluation = {"images": {"count": images, "signature": signature}, "sections": sections}
        evaluation["others"] = [
            {**evaluation, "changed": changed, "sections": {"sweep-eps": {**section, **own}}}
            for changed, own in others
        ]
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
        ["dat-pgd, one", "90.00 [86.6, 92.5]", "50.00 [45.0, 54.8]", ""],
        ["dat-pgd, two", "80.00 [75.9, 83.7]", "", "25.00 [20.9, 29.4]"],
        ["at, three", "70.00 [65.3, 74.3]", "60.00 [55.1, 64.7]", "50.00 [45.0, 54.8]"],
    ]
    assert "dat-pgd, two" in section.plot and "at, three" in section.plot and len(section.notes) == 1
    assert section.notes[0].startswith("RA (%) under PGD: linf, 20 steps, a random start, 397 images.")


def test_what_was_measured_otherwise_stands_apart_and_is_told(swept):
    curve = {0.0: 0.9, 0.1: 0.5}
    runs = [swept("pgd", "dat-pgd", curve), swept("fgsm", "dat-fgsm", curve)]
    for name, other in (("l2", {"norm": "l2"}), ("few", {"images": 100}), ("short", {"steps": 5})):
        one, two = sections_of(*runs, swept(name, "at", curve, **other))
        assert (one.name, two.name) == ("ra-over-eps", "ra-over-eps-2")
        assert [row[0] for row in one.rows] == ["dat-pgd, pgd", "dat-fgsm, fgsm"]
        assert two.rows[0][0] == f"at, {name}"
        assert one.notes[-1].startswith(f"Not in this plot: at, {name}, measured differently: ")
        others = "Not in this plot: dat-pgd, pgd; dat-fgsm, fgsm, measured differently: linf, 20 steps"
        assert two.notes[-1].startswith(others)
    (section,) = sections_of(*runs, swept("copy", "at", curve, signature="other"))
    assert "Not all of these runs were measured on the same files" in section.notes[-1]


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
    assert [row[0] for row in plain.rows] == ["dat-pgd, plain"] and "Figure 3" in plain.title
    assert [row[0] for row in other.rows] == [
        "dat-fgsm, accumulating",
        "at, earlier",
    ] and "Figure 3" not in other.title


@pytest.mark.parametrize(
    "radii, header, label",
    [
        ([0.0, 0.1, 0.3], ["0", "0.1", "0.3"], "[0, 1] units"),
        ([0.0, 1.5 / 255, 8 / 255], ["0", "1.5/255", "8/255"], "over 255"),
        # One of them is no number of 255ths that anybody would write.
        ([0.0, 0.1, 8 / 255], ["0", "0.03137", "0.1"], "[0, 1] units"),
    ],
)
def test_tables_and_plots_of_a_page_have_one_unit(swept, radii, header, label):
    folders = [swept(f"run-{n}", "at", {0.0: 0.9, radius: 0.5}) for n, radius in enumerate(radii[1:])]
    folders.append(swept("other", "at", {0.0: 0.9, radii[-1]: 0.5}, steps=5))
    one, two = sections_of(*folders)
    assert one.header[1:] == header and set(two.header) < {"run", *header}
    assert all(f">perturbation size ({label})</text>" in section.plot for section in (one, two))


def test_another_ra_for_the_attack_of_the_result_is_explained(swept):
    """The run's own RA is 50 % under PGD-20 at eps 0.1 on 397 images."""
    (section,) = sections_of(swept("run", "at", {0.1: 0.45}))
    (note,) = [note for note in section.notes if note.startswith("at, run: ")]
    assert note.startswith("at, run: at eps 0.1 RA is 45.00 here and 50.00 in the run's result: here at each")
    assert note.endswith("on 397 images; there PGD-10, linf, eps 0.1 on 397 images.")
    (section,) = sections_of(swept("equal $x$", "at", {0.1: 0.5}))
    assert len(section.notes) == 1


def test_sweeps_of_evaluations_with_other_settings_are_sections_and_rows_of_their_own(swept):
    other = {"eps": [0.1], "kind": "plain", "norm": "l2", "random_start": True, "steps": 20}
    others = [
        (["evaluation.norm: l2"], {"attack": other}),
        (["data.test: val"], {"curve": [[0.1, 0.7]]}),
        # The same sweep again.
        (["evaluation.eps: 0.5"], {}),
    ]
    linf, l2 = sections_of(swept("run", "at", {0.1: 0.5}, others=others))
    assert [row[0] for row in linf.rows] == ["at, run", "at, run; data.test: val"]
    assert [row[0] for row in l2.rows] == ["at, run"] and "l2, 20 steps" in l2.title


def test_the_name_of_a_deep_run_folder_leaves_room_for_its_curve(recwarn):
    """Matplotlib warns where a legend leaves none."""
    name = "/scratch/project-" + "x" * 60 + "/" + "runs/" * 20 + "seed-0"
    svg = plot_sweep("eps", {name: {0.1: 0.5, 0.2: 0.3}, "b": {0.1: 0.4, 0.2: 0.2}}, fine=False)
    assert not [warning for warning in recwarn if "constrained_layout" in str(warning.message)]
    assert "seed-0" in svg
