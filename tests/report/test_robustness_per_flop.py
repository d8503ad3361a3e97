"""The computation that an accuracy took: closed forms of curves, and the table of runs."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.report.robustness_per_flop import pflop_to, read_curve, robustness_sections
from hpcdat.storage.run_folder import RunFolder

PETA = 10**15


@pytest.mark.parametrize(
    "curve, expected",
    [
        ([(1, 30), (2, 50)], "1.5"),
        ([(1, 30), (2, 40), (4, 20), (8, 60)], "2"),
        ([(1, 38), (3, 39), (5, 41), (7, 60)], "4"),
        ([(2, 45), (4, 30)], "2 (at most)"),
        ([(1, 10), (2, 39.9)], "not reached"),
    ],
)
def test_the_computation_to_an_accuracy_is_on_the_line_where_it_was_first_reached(curve, expected):
    assert pflop_to(curve, 40) == expected


def counted(make_run, name, ra, flops):
    """A run with RA (%) and PFLOP after each of its epochs, in place of make_run's, which count nothing."""
    path = make_run(name, "")
    folder = RunFolder(path)
    folder.metrics_file.unlink()
    for epoch, (share, pflop) in enumerate(zip(ra, flops, strict=True), start=1):
        total = None if pflop is None else int(pflop * PETA)
        folder.log(event="epoch", epoch=epoch, images=600, total_seconds=1.0, flops=total)
        folder.log(event="evaluation", epoch=epoch, ta=0.9, ra=share / 100, held_out=False)
    result = dataclasses.replace(folder.read_result(), flops=total, aa=0.4, aa_images=10_000)
    folder.write_result(result, "")
    return path


def test_runs_stand_with_what_they_computed_and_with_what_each_accuracy_took(make_run, tmp_path):
    fast = counted(make_run, "fast", [38, 42, 45], [1, 2, 3])
    # Evaluated again after a stop, and on images that were held out, which are no test images.
    RunFolder(fast).log(event="evaluation", epoch=3, ta=0.9, ra=0.46, held_out=False)
    RunFolder(fast).log(event="evaluation", epoch=3, ta=0.9, ra=0.99, held_out=True)
    assert read_curve(RunFolder(fast)) == [(1, 38), (2, 42), (3, 46)]
    old = counted(make_run, "old", [50, 60], [None, None])
    results = {path: RunFolder(path).read_result() for path in (fast, old)}
    (section,) = robustness_sections(results)
    assert section.header[5:8] == ["PFLOP to RA 40 %", "PFLOP to RA 44 %", "PFLOP to RA 46 %"]
    assert section.rows[0][:2] == ["dat-pgd", "3"] and section.rows[0][4:8] == ["40.00", "1.5", "2.5", "3"]
    assert section.rows[1][1] == "not counted" and section.rows[1][5:8] == ["not counted"] * 3
    unknown = counted(make_run, "without evaluations", [50], [2])
    lines = [line for line in RunFolder(unknown).lines() if line["event"] == "epoch"]
    RunFolder(unknown).metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (section,) = robustness_sections({unknown: RunFolder(unknown).read_result()})
    assert section.rows[0][1] == "2" and section.rows[0][5:8] == ["not measured"] * 3
    shown = CliRunner().invoke(app, ["report", str(fast), str(old)])
    assert shown.exit_code == 0 and "PFLOP to RA 44 %" in shown.output
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["report", str(fast), "--out", str(out)])
    assert done.exit_code == 0 and "PFLOP to RA 44 %" in (out / "report.md").read_text()


def test_runs_that_counted_nothing_have_no_such_table(make_run):
    old = make_run("old", "")
    assert robustness_sections({old: RunFolder(old).read_result()}) == []
    assert "PFLOP" not in CliRunner().invoke(app, ["report", str(old)]).output
