"""TA and RA over the epochs: Figure 4 of the DAT paper."""

from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.report.epochs import epoch_sections
from hpcdat.report.runs import read_run
from hpcdat.storage.run_folder import RunFolder


def measured(make_run, name, line, ra, *, seed=0):
    """A run of Figure 4 with RA (%) after every epoch, and one evaluation on images held out."""
    folder = make_run(name, f"dat-fig4/cifar10-{line}", seed=seed)
    for epoch, share in enumerate(ra, start=1):
        RunFolder(folder).log(event="evaluation", epoch=epoch, ta=0.9, ra=share / 100, held_out=False)
    RunFolder(folder).log(event="evaluation", epoch=len(ra), ta=0.1, ra=0.1, held_out=True)
    return folder


def test_lines_are_means_of_seeds_on_the_test_images(make_run):
    runs = [
        measured(make_run, "fine/0", "fine-tuned", [30, 40, 45, 46]),
        measured(make_run, "fine/1", "fine-tuned", [34, 40, 47, 48], seed=1),
        measured(make_run, "scratch", "from-scratch", [10, 20, 25, 44]),
    ]
    (section,) = epoch_sections([read_run(run) for run in (*runs, make_run("other", "dat-1/at"))])
    assert section.header[4:] == [
        *("TA (%), epoch 1", "TA (%), epoch 3", "TA (%), end"),
        *("RA (%), epoch 1", "RA (%), epoch 3", "RA (%), end"),
    ]
    fine, scratch = section.rows
    assert fine[:4] == ["CIFAR-10", "fine-tuned", "0, 1", "fine/0, fine/1"] and fine[4] == "90.00 ± 0.00"
    assert fine[7:] == ["32.00 ± 2.83", "46.00 ± 1.41", "47.00 ± 1.41"]
    assert scratch[1:4] == ["from scratch", "0", "scratch"]
    assert scratch[7:] == ["10.00 [7.5, 13.4]", "25.00 [20.9, 29.4]", "44.00 [39.3, 49.0]"]
    assert any("PGD-10, linf, eps 0.1 on 397 test images" in note for note in section.notes)
    assert "CIFAR-10" in section.plot and "from scratch" in section.plot
    assert not any("differ" in note or "once only" in note for note in section.notes)


def test_a_run_that_was_measured_at_its_end_only_is_named(make_run):
    (section,) = epoch_sections([read_run(measured(make_run, "run", "fine-tuned", [30]))])
    assert any("CIFAR-10, fine-tuned: measured once only" in note for note in section.notes)


def test_the_report_has_it_and_names_a_line_that_is_not_there(make_run, tmp_path):
    run, out = measured(make_run, "run", "fine-tuned", [30, 40]), tmp_path / "out"
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert (out / "epochs.svg").read_text() in (out / "report.html").read_text()
    wrong = make_run("wrong", "dat-fig4/cifar10-tuned")
    done = CliRunner().invoke(app, ["report", str(wrong), "--out", str(out)])
    assert done.exit_code == 2 and "fine-tuned, from-scratch" in done.output.replace("\n", " ")
