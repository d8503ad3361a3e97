"""Accuracy against the global batch."""

from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.report.batches import batch_sections
from hpcdat.report.runs import read_run


def section_of(*folders):
    (section,) = batch_sections([read_run(folder) for folder in folders])
    return section


def test_a_method_is_a_line_with_the_mean_of_its_seeds(make_run):
    runs = [
        make_run(f"{method}/{p}/{seed}", "", method=method, p=p, ta=ta, seed=seed)
        for method, p, seed, ta in (
            *(("dat-fgsm", 6, 0, 0.8), ("dat-fgsm", 6, 1, 0.9), ("dat-fgsm", 1, 0, 0.95)),
            *(("dat-pgd", 6, 0, 0.5), ("dat-lsgd", 1, 0, 0.9), ("dat-lsgd", 3, 0, 0.7)),
        )
    ]
    section = section_of(*runs)
    half = "50.00 [45.0, 54.8]"
    assert section.rows == [
        ["dat-fgsm", "25", "0", "dat-fgsm/1/0", "95.00 [92.3, 96.7]", half],
        ["dat-fgsm", "150", "0, 1", "dat-fgsm/6/0, dat-fgsm/6/1", "85.00 ± 7.07", "50.00 ± 0.00"],
        ["dat-lsgd", "25", "0", "dat-lsgd/1/0", "90.00 [86.6, 92.5]", half],
        ["dat-lsgd", "75", "0", "dat-lsgd/3/0", "70.00 [65.3, 74.3]", half],
    ]
    assert any("PGD-10, linf, eps 0.1 on 397 test images" in note for note in section.notes)
    assert "dat-fgsm" in section.plot and "dat-pgd" not in section.plot
    assert not any("more than the batch" in note for note in section.notes)


def test_runs_of_one_batch_that_are_no_seeds_are_lines_of_their_own(make_run):
    runs = [make_run(f"{eps}/{p}", "", p=p, eps=eps) for eps, p in ((0.1, 1), (0.1, 6), (0.2, 1), (0.2, 6))]
    labels = dict.fromkeys(row[0] for row in section_of(*runs).rows)
    assert len(labels) == 2 and all("attack.eps 0." in label for label in labels)


def test_what_changes_along_a_line_is_told(make_run):
    runs = [make_run("slow", "", p=1), make_run("fast", "", p=6, more="schedule: {decay_epochs: [1]}")]
    (told,) = [note for note in section_of(*runs).notes if "more than the batch" in note]
    assert told == "Along the line of dat-pgd, more than the batch changes: schedule.decay_epochs ([] / [1])."


def test_a_report_has_it_in_each_of_its_files(make_run, tmp_path):
    runs, out = [make_run(f"{p}", "", p=p) for p in (1, 6)], tmp_path / "out"
    done = CliRunner().invoke(app, ["report", *map(str, runs), "--out", str(out)])
    assert done.exit_code == 0, done.output
    plot = (out / "batches.svg").read_text()
    assert plot.startswith("<svg") and plot in (out / "report.html").read_text()
    assert "(batches.svg)" in (out / "report.md").read_text()
    alone = CliRunner().invoke(app, ["report", str(runs[0]), "--out", str(tmp_path / "alone")])
    assert alone.exit_code == 0 and not (tmp_path / "alone" / "batches.svg").exists()
