"""Runs beside the papers' numbers."""

import csv
import json
import re

import pytest
from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.errors import InputError
from hpcdat.report.comparison import compare, differences
from hpcdat.report.comparison_section import comparison_section
from hpcdat.report.papers import TABLES
from hpcdat.report.result_table import result_rows, result_table
from hpcdat.report.runs import read_run
from hpcdat.report.runs_section import runs_section
from hpcdat.storage.run_folder import RunFolder


def test_runs_stand_in_the_rows_that_they_reproduce(make_run):
    full = make_run("full", "dat-1/dat-pgd, dat-4/dat-pgd-32", c=4.0, t=10.0)
    codes = [make_run(f"codes {seed}", "dat-4/dat-pgd-8", c=c, ta=0.8) for seed, c in ((0, 0.9), (1, 1.1))]
    at = make_run("at", "dat-1/at", method="at", p=1, c=0.5, t=12.0)
    runs = [read_run(folder) for folder in (full, *codes, at)]
    rows = {row.row.key: row for row in compare("dat-4", runs).rows}
    assert rows["dat-pgd-8"].ours["c"] == pytest.approx(1.0)
    assert rows["dat-pgd-8"].ours["c_of_reference"] == pytest.approx(0.25)
    assert rows["dat-pgd-8"].ratio("c_of_reference") == pytest.approx(0.25 / (592 / 898))
    assert rows["dat-pgd-8"].ratio("ta") == pytest.approx(80 / 56.53)
    assert not rows["dat-pgd-16"].ours and rows["dat-pgd-16"].ratio("c") is None
    rows = {row.row.key: row for row in compare("dat-1", runs).rows}
    assert rows["dat-pgd"].ours["speed_up"] == pytest.approx(12 / (10 - 4))
    # One worker exchanges nothing, and what was not measured is not there.
    assert "c" not in rows["at"].ours and "aa" not in rows["at"].ours
    told = differences(TABLES["dat-1"].work, runs[0])
    assert "data.images: 600, the paper's 1,281,167" in told and "batch_size: 25, the paper's 85" in told
    assert not any(line.startswith("data.root") for line in told)


def test_another_exchange_stands_below_its_row_under_its_own_name(make_run, tmp_path):
    """And the report names in what its exchange is not the row's."""
    paper = "protocol: hierarchical, across: allgather, norm: l2, block: tensor, exact_1d: false"
    lanes = "bits: 8, lane_bits: 8, error_feedback: true"
    folders = [
        make_run("full", "dat-4/dat-pgd-32", c=4.0, mb=320.0, exchange=paper),
        make_run("as-paper", "dat-4/dat-pgd-8", c=2.0, mb=80.0, exchange=f"{paper}, bits: 8"),
        *(
            make_run(
                f"lanes/seed-{seed}", "", seed=seed, c=c, more="beside: [dat-4/dat-pgd-8]", exchange=lanes
            )
            for seed, c in ((0, 0.9), (1, 1.1))
        ),
    ]
    runs = [read_run(folder) for folder in folders]
    comparison = compare("dat-4", runs)
    labels = [row.row.label for row in comparison.rows]
    place = [row.row.key for row in comparison.rows].index("dat-pgd-8")
    assert labels[place + 1] == "lanes" and labels.count("lanes") == 1
    own, row = comparison.rows[place + 1], comparison.rows[place]
    assert own.beside and own.row.setup == "beside 8 bits" and len(own.runs) == 2 and not own.paper
    assert own.ours["c"] == pytest.approx(1.0) and own.ours["c_of_reference"] == pytest.approx(0.25)
    assert own.ratio("c_of_reference") is None and own.ratio("ta") is None
    assert row.ours["mb_of_reference"] == row.paper["mb_of_reference"] == 0.25
    exchanges = [line for line in differences(own.row.work, runs[2]) if line.startswith("exchange.")]
    assert exchanges == [
        "exchange.protocol: ring, the paper's hierarchical",
        "exchange.between_nodes: ring, the paper's allgather",
        "exchange.norm: max, the paper's l2",
        "exchange.block: 512, the paper's tensor",
        "exchange.levels: 21, the paper's 127",
        "exchange.lane_bits: 8, the paper's none",
        "exchange.exact_1d: true, the paper's false",
        "exchange.error_feedback: true, the paper's false",
    ]
    assert not any(line.startswith("exchange.") for line in differences(row.row.work, runs[1]))
    notes = comparison_section(comparison).notes
    assert "Rows that are not in the paper, each below the row whose exchange it replaces: lanes." in notes
    assert any("lanes/seed-0, lanes/seed-1" in note and "exchange.norm: max" in note for note in notes)
    done = CliRunner().invoke(
        app, ["report", *map(str, folders), "--table", "dat-4", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0 and "| lanes" in done.output, done.output
    wrong = make_run("wrong", "", more="beside: [dat-4/dat-pgd-7]")
    with pytest.raises(InputError, match="is shown below dat-4/dat-pgd-7, but the rows are: dat-pgd-32"):
        compare("dat-4", [read_run(wrong)])


def test_the_fast_bound_has_a_column_in_table_and_page(make_run):
    runs = [make_run("with", "", fast_bound=0.4), make_run("again", "", seed=1, fast_bound=0.55)]
    results = {run: RunFolder(run).read_result() for run in runs}
    header, cells = result_rows(results, mean=True)
    place = header.index("Fast bound (%)")
    assert [row[place] for row in cells] == ["40.00 [35.3, 44.9]", "55.00 [50.0, 59.7]", "47.50 ± 10.61"]
    notes = result_table(results)
    assert "Fast bound: share that withstands a margin attack" in notes
    assert "Where the fast bound is above RA, PGD breaks images that the margin attack does not." in notes
    page = runs_section([read_run(run) for run in runs], {}).table
    column = page.header.index("Fast bound (%)")
    assert [row[column] for (row,) in page.groups] == [row[place] for row in cells[:2]]


def test_aa_stands_where_it_was_measured(make_run):
    runs = [
        make_run("full", "dat-1/dat-pgd", aa=(0.4, 397)),
        make_run("part", "dat-1/dat-fgsm", method="dat-fgsm", aa=(0.3, 100, 0.8, 0.45)),
        make_run("none", "dat-1/at", method="at", p=1),
    ]
    rows = {row.row.key: row for row in compare("dat-1", [read_run(run) for run in runs]).rows}
    assert rows["dat-pgd"].ours["aa"] == 40 and rows["dat-fgsm"].ours["aa"] == 30
    assert "aa" not in rows["at"].ours
    results = {run: RunFolder(run).read_result() for run in runs}
    header, cells = result_rows(results, mean=True)
    columns = [header.index(name) for name in ("RA (%)", "AA (%)", "Images")]
    half = "50.00 [45.0, 54.8]"
    assert [[row[column] for column in columns] for row in cells] == [
        [half, "40.00 [35.3, 44.9]", "397"],
        [half, "-", "397"],
        ["45.00 [35.6, 54.8]", "30.00 [21.9, 39.6]", "100"],
        [half, "-", "397"],
        ["50.00 ± 0.00", "35.00 ± 7.07", ""],
    ]
    assert "A row's accuracies are of the same images." in result_table(results)
    done = CliRunner().invoke(app, ["report", *map(str, runs), "--table", "dat-1", "--out", str(runs[0])])
    assert "AA (AutoAttack) was not measured of none." in done.output
    told = (
        "AA of part is measured on 100 test images, balanced over the classes; RA on the same images: 45.00"
    )
    assert told in done.output
    header, cells = result_rows({runs[2]: results[runs[2]]})
    assert "AA (%)" not in header and len(cells[0]) == len(header)


def test_a_report_is_whole_in_each_of_its_files(make_run, tmp_path):
    """The same numbers as text, as CSV, and in a page that fetches nothing."""
    folders = [
        make_run("thirty-two", "dat-4/dat-pgd-32", c=4.0),
        make_run("<eight>", "dat-4/dat-pgd-8", c=1.0),
    ]
    out = tmp_path / "out"
    command = ["report", *map(str, folders), "--table", "dat-4", "--out", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "| DAT-PGD" in done.output and "0.250" in done.output
    markdown, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    table = list(csv.reader((out / "report.csv").open()))
    header, eight = table[0], table[3]
    assert eight[header.index("C, of 32 bits")] == "0.250" and eight[header.index("ours")].startswith("6 x 1")
    for text in (markdown, page):
        assert "0.250" in text and "1091" in text and "both cannot be right" in text
        assert "6 emulated nodes on one machine (2 cores, Some CPU), emulated 100mbit links" in text
        assert "Not run: DAT-PGD (16 bits; 8 bits, 2-sided), DAT-PGD (HPC)" in text
    plots = {file.name: file.read_text() for file in out.glob("*.svg")}
    assert page.count("<svg") == len(plots) and plots["dat-4.svg"] in page
    assert "quantisation on ImageNet, ResNet-50](dat-4.svg)" in markdown
    assert not re.search(r"(src|href)=\"(?!#|data:,)", page)
    assert "<eight>" not in page
    folders.append(make_run("in $lanes$ of 8", ""))
    done = CliRunner().invoke(app, ["report", *map(str, folders), "--out", str(tmp_path / "plain")])
    assert done.exit_code == 0 and (tmp_path / "plain" / "report.html").exists()


def test_seconds_of_table_3_are_scaled_to_the_papers_epoch(make_run):
    """550,000 images, where the run's has 600; the images of all epochs are compared, not their number."""
    run = read_run(make_run("run", "dat-3/resnet18-dat-pgd", c=3.0, t=5.0))
    comparison = compare("dat-3", [run])
    rows = {row.row.key: row for row in comparison.rows}
    assert rows["resnet18-dat-pgd"].ours["t"] == pytest.approx(5 * 550_000 / 600)
    assert rows["resnet18-dat-pgd"].ratio("c") == pytest.approx(3 * 550_000 / 600 / 86)
    section = comparison_section(comparison)
    notes = " ".join(section.notes)
    assert "Our C and T are scaled to 550,000 images, assumed to be the paper's epoch." in notes
    assert "images in all epochs: 1,200, the paper's 55,000,000 (assumed)" in notes
    assert " epochs: 2" not in notes
    # What the paper quotes is there, and nobody has to run it.
    (carmon,) = [row for row in section.rows if row[0].startswith("Carmon")]
    assert "89.69" in carmon
    (missing,) = [note for note in section.notes if note.startswith("Not run:")]
    assert "Carmon" not in missing
    with pytest.raises(InputError, match="reproduces dat-3/carmon, but the rows are"):
        compare("dat-3", [read_run(make_run("quoted", "dat-3/carmon"))])


def test_a_papers_spread_stands_beside_its_mean(make_run):
    section = comparison_section(compare("dat-1", [read_run(make_run("run", "dat-1/dat-fgsm"))]))
    cells = {row[0]: row for row in section.rows}
    assert "40.27 ± 1.5" in cells["DAT-FGSM"] and "38.45 ± 0.5" in cells["DAT-PGD"]


def test_figure_2_is_drawn_over_the_batch(make_run):
    runs = [
        read_run(make_run(f"{method}-{batch}", f"conadv-fig2/{method}-{batch}", ta=ta))
        for method, batch, ta in (("vanilla", "64k", 0.7), ("aa", "64k", 0.71), ("aa", "256k", 0.6))
    ]
    section = comparison_section(compare("conadv-fig2", runs))
    assert len(section.rows) == 18 and ["62.50" in row for row in section.rows].count(True) == 1
    for text in ("ResNet-50 + AA, ours", "ResNet-50, paper", "256k"):
        assert text in section.plot


def test_times_and_throughputs_are_divided_by_those_of_the_same_batch(make_run):
    rows = "conadv-3/{0}-32k, conadv-fig4/{0}-32k"
    runs = [
        read_run(make_run(name, rows.format(name), t=t)) for name, t in (("disadv", 5.0), ("conadv", 2.5))
    ]
    by_key = {row.row.key: row for row in compare("conadv-3", runs).rows}
    # Without vanilla training there is nothing to divide by.
    assert by_key["disadv-32k"].ours == {"training": 10.0}
    runs.append(read_run(make_run("vanilla", "conadv-3/vanilla-32k", t=2.0)))
    by_key = {row.row.key: row for row in compare("conadv-3", runs).rows}
    assert by_key["disadv-32k"].ours["training_of_reference"] == pytest.approx(2.5)
    assert by_key["conadv-32k"].ours["training_of_reference"] == pytest.approx(1.25)
    by_key = {row.row.key: row for row in compare("conadv-fig4", runs).rows}
    assert by_key["conadv-32k"].ours["throughput_of_reference"] == pytest.approx(2.0)
    # The paper states this ratio, and neither side of it.
    assert by_key["conadv-32k"].ratio("throughput_of_reference") == pytest.approx(2.0 / 1.5)
    assert by_key["conadv-32k"].ratio("throughput") is None


def test_the_generalisation_gap_is_that_of_the_last_epoch(make_run):
    seen = read_run(make_run("seen", "conadv-4/conadv-32k", ta=0.9, seen=0.94))
    rows = {row.row.key: row for row in compare("conadv-4", [seen]).rows}
    assert rows["conadv-32k"].ours["training_accuracy"] == pytest.approx(94)
    assert rows["conadv-32k"].ours["gap"] == pytest.approx(4)
    assert rows["conadv-32k"].ratio("gap") == pytest.approx(4 / 3.5)
    # An objective without a clean part has no training accuracy.
    unseen = read_run(make_run("unseen", "conadv-4/conadv-64k"))
    rows = {row.row.key: row for row in compare("conadv-4", [seen, unseen]).rows}
    assert rows["conadv-64k"].ours.keys() == {"ta"}


def test_a_sweep_fills_its_rows_by_perturbation(make_run, tmp_path):
    folders = [
        make_run(f"attack.eps={p}_255", "conadv-5/conadv-32k", eps=f"{p}/255", ta=0.9 - p / 100)
        for p in (0, 3, 12)
    ]
    rows = {row.row.key: row for row in compare("conadv-5", list(map(read_run, folders))).rows}
    assert {key: row.ours["ta"] for key, row in rows.items() if row.runs} == pytest.approx(
        {"conadv-32k-p0": 90, "conadv-32k-p3": 87, "conadv-32k-p12": 78}
    )
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["report", *map(str, folders), "--table", "conadv-5", "--out", str(out)])
    assert done.exit_code == 0, done.output
    text, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    assert "87.00 [83.2, 89.9] |   77.40" in text and page.count("<svg") == 1
    assert "ResNet-50 + ConAdv, 32k (p = 1; p = 2; p = 4;" in text
    # What all runs share is told once, and the perturbation is the row's.
    assert text.count("global batch: 150, the paper's 32,768") == 1
    assert "optimizer.lr: 0.1, the paper's 35" in text and "attack.eps:" not in text


def test_where_only_some_runs_differ_they_are_named(make_run):
    folders = [make_run(f"{batch}/seed-0", f"conadv-1/conadv-{batch}") for batch in ("1k", "4k")]
    notes = comparison_section(compare("conadv-1", list(map(read_run, folders)))).notes
    assert "Differs from the paper (1k/seed-0): global batch: 150, the paper's 1,024." in notes
    assert "Differs from the paper (4k/seed-0): global batch: 150, the paper's 4,096." in notes
    shared = [note for note in notes if note.startswith("Differs from the paper: ")]
    assert len(shared) == 1 and "epochs: 2, the paper's 90" in shared[0] and "global" not in shared[0]


def test_what_cannot_be_read_or_written_is_told(make_run, tmp_path):
    run, damaged, empty = make_run("run", ""), make_run("damaged", ""), make_run("empty", "")
    (damaged / "environment.json").write_text("{}")
    listed, bare, void = make_run("listed", ""), make_run("bare", ""), make_run("void", "")
    (listed / "environment.json").write_text("[1]")
    (bare / "environment.json").write_text('{"nodes": 1, "workers": [{"host": "a"}]}')
    result = json.loads((void / "result.json").read_text())
    (void / "result.json").write_text(json.dumps(result | {"ta": None}))
    (empty / "metrics.jsonl").unlink()
    (tmp_path / "file").touch()
    for folder, out, told in (
        (tmp_path / "nowhere", "out", "nowhere is not the folder of a run"),
        (damaged, "out", "environment.json does not say what the run ran on"),
        (listed, "out", "environment.json does not say what the run ran on"),
        (bare, "out", "environment.json does not say what the run ran on"),
        (void, "out", "result.json cannot be read: ta: Input should be a valid number"),
        (empty, "out", "metrics.jsonl does not have the run's epochs"),
        (run, "file", "file cannot be written"),
    ):
        done = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / out)])
        assert done.exit_code == 2 and told in done.output.replace("\n", ""), done.output


def test_a_run_that_is_named_twice_is_one_and_seeds_are_in_the_order_of_their_numbers(make_run, tmp_path):
    run, several = make_run("run", ""), tmp_path / "several"
    done = CliRunner().invoke(app, ["report", str(run), f"{run}/"])
    assert done.exit_code == 0 and done.output.count(str(run)) == 1
    for seed in (10, 2):
        make_run(f"several/seed-{seed}", "")
    done = CliRunner().invoke(app, ["report", str(several)])
    assert done.output.index("seed-2") < done.output.index("seed-10")


def test_what_does_not_fit_is_told(make_run):
    plain, wrong = make_run("plain", ""), make_run("wrong", "dat-4/dat-pgd-7")
    swept = make_run("swept", "conadv-5/conadv-32k", eps="11/255")
    for folder, table, told in (
        (plain, "dat-4", "none of these runs reproduces a row of dat-4"),
        (plain, "conadv-5", "as in reproduces: [conadv-5/conadv-32k]"),
        (plain, "dat-9", "dat-9: there are dat-1, dat-2, dat-3, dat-4, conadv-1, conadv-2"),
        (swept, "conadv-5", "reproduces conadv-5/conadv-32k-p11, but the rows are: conadv-32k-p0"),
        (wrong, "dat-4", "reproduces dat-4/dat-pgd-7, but the rows are: dat-pgd-32"),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            compare(table, [read_run(folder)])
        done = CliRunner().invoke(app, ["report", str(folder), "--table", table])
        assert done.exit_code == 2 and "Traceback" not in done.output
