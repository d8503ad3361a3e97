"""Certificates beside Table 2 of the DAT paper."""

import re

import pytest
from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.evaluation.certification.certificates import Certified, Counts
from hpcdat.report.certificates import write_certificates
from hpcdat.report.comparison import compare
from hpcdat.report.runs import read_run


@pytest.fixture
def certified(make_run):
    """Makes a run that was certified: of four images so many right ones, to the largest radius."""

    def make(name, row, *, right=None, seed=0, sigma=0.25, copies=2, n=100_000):
        more = f"smoothing: {{sigma: {sigma}, copies: {copies}}}\n"
        folder = make_run(name, f"dat-2/{row}", seed=seed, more=more)
        if right is not None:
            counts = [Counts(image, 1, int(image < right), n) for image in range(4)]
            (folder / "certification").mkdir()
            write_certificates(
                [Certified(s, 100, n, 0.001, counts) for s in (0.5, sigma)], folder / "certification"
            )
        return folder

    return make


def report(out, *folders):
    return CliRunner().invoke(
        app, ["report", *map(str, folders), "--table", "dat-2", "--out", str(out)], terminal_width=1000
    )


def test_seeds_of_a_job_are_a_row_beside_the_papers(certified, tmp_path):
    runs = [certified(f"several/seed-{seed}", "baseline-25", right=3 + seed, seed=seed) for seed in (0, 1)]
    runs.append(certified("dat", "dat-25", right=2, copies=20, n=10_000))
    rows = {row.row.key: row for row in compare("dat-2", [read_run(run) for run in runs]).rows}
    assert rows["baseline-25"].ours["ca-0.2"] == pytest.approx(87.5)
    assert rows["baseline-25"].ratio("ca-0.2") == pytest.approx(87.5 / 67.8)
    assert rows["dat-25"].ours["ca-0.5"] == 50 and not rows["dat-12"].runs
    out = tmp_path / "out"
    done = report(out, tmp_path / "several", runs[2])
    assert done.exit_code == 0, done.output
    text = (out / "report.md").read_text()
    assert re.search(r"\| +87\.5 ± 17\.7 \| +67\.8 \| +1\.29 \|", text)
    assert "4 images, n = 100,000, alpha = 0.001: r up to 0.953" in text
    assert "4 images, n = 10,000, alpha = 0.001: r up to 0.800" in text
    assert "Not run: Baseline (N = 2) (sigma 0.12), DAT (N = 20) (sigma 0.12)." in text
    assert "Ours are means of 1/2 runs a row, ± their standard deviation (n - 1)" in text
    plot = (out / "dat-2.svg").read_text()
    assert "paper, sigma 0.25, DAT (N = 20)" in plot and plot in (out / "report.html").read_text()


def test_runs_without_certificates_are_told_with_the_command(certified, tmp_path):
    bare = certified("bare", "baseline-25")
    done = report(tmp_path / "out", bare)
    assert done.exit_code == 2
    assert f"none of these runs is certified: run `hpcdat certify {bare}` first" in done.output
    done = report(tmp_path / "out", bare, certified("dat", "dat-25", right=2))
    assert done.exit_code == 0 and f"not among the numbers: `hpcdat certify {bare}`." in done.output


def test_what_is_no_mean_of_seeds_is_told(certified, tmp_path):
    runs = [certified("one", "dat-25", right=2), certified("two", "dat-25", right=3, copies=20, n=10_000)]
    done = report(tmp_path / "out", *runs)
    assert "The runs of DAT (N = 20), sigma 0.25, were certified with different settings" in done.output
    differing = "sigma 0.25, differ in more than their seeds: smoothing.copies: 2 / 20."
    assert f"The runs of DAT (N = 20), {differing}" in done.output


def test_damaged_certificates_are_told(certified, tmp_path):
    run = certified("run", "dat-25", right=2)
    for name, text in (("certified.csv", "sigma,image\n0.25,1\n"), ("certified.json", "[1]")):
        (run / "certification" / name).write_text(text)
        done = report(tmp_path / "out", run)
        assert done.exit_code == 2 and "`hpcdat certify` writes them again" in done.output.replace("\n", " ")
