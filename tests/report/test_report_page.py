"""The HTML page of a report: what it says, and what a browser makes of it."""

import json
import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.evaluation.certification.certificates import Certified, Counts
from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.report.certificates import write_certificates
from hpcdat.report.comparison import compare
from hpcdat.report.comparison_section import comparison_section
from hpcdat.report.drawing import COLOURS
from hpcdat.report.durations import duration
from hpcdat.report.headline import headline
from hpcdat.report.pixel_units import PixelUnit
from hpcdat.report.run_plots import MOST_MARKERS, run_plots
from hpcdat.report.runs import read_run
from hpcdat.report.section import Table
from hpcdat.storage.run_folder import RunFolder
from tests.browser import SECONDS

WORKERS = {"step_seconds": [0.05, 0.07], "longest_step_seconds": [0.2, 0.1]}
PAGE_COLOURS = {"light": "#ffffff", "dark": "#14171a"}


def evaluated(folder, *shares):
    """Log RA on the test images after each epoch."""
    for epoch, ra in enumerate(shares, start=1):
        RunFolder(folder).log(event="evaluation", epoch=epoch, ta=0.9, ra=ra, held_out=False)
    return folder


def certified(folder, sigma=0.25):
    counts = [Counts(image, 1, int(image < 30), 1000) for image in range(40)]
    (folder / "certification").mkdir()
    write_certificates([Certified(sigma, 100, 1000, 0.001, counts)], folder / "certification")
    return folder


def several_runs(make_run):
    """Two seeds, a run with 8 bits, one worker, and one with certificates and AA of fewer images."""
    of_epochs = {"cost": 0.5, "workers": WORKERS}
    rows = "dat-4/dat-pgd-32, dat-1/dat-pgd"
    runs = [
        make_run(f"thirty-two/seed-{seed}", rows, p=2, seed=seed, c=c, ta=ta, of_epochs=of_epochs, speed=200)
        for seed, c, ta in ((0, 2.0, 0.9), (1, 3.0, 0.8))
    ]
    eight = {"p": 2, "c": 1.0, "mb": 13.1, "exchange": "bits: 8", "of_epochs": of_epochs}
    runs.append(make_run("eight with a name as long as those of sweeps", "dat-4/dat-pgd-8", **eight))
    runs.append(make_run("one", "", p=1, c=0.0, mb=0.0, speed=120))
    runs.append(make_run("at", "dat-1/at", p=1, c=0.0, mb=None, method="at", aa=(0.3, 100, 0.8, 0.45)))
    certified(runs[-1])
    return [evaluated(run, 0.3, 0.5) for run in runs]


@pytest.fixture(scope="module")
def pages(runs_in, tmp_path_factory):
    """Pages of several runs, without a paper's numbers and beside them, and of benchmarks."""
    parent = tmp_path_factory.mktemp("runs")
    runs = [*map(str, several_runs(runs_in(parent)))]
    written = {}
    for name, tables in (("runs", ()), ("tables", ("--table", "dat-4", "--table", "dat-1"))):
        done = CliRunner().invoke(app, ["report", *runs, *tables, "--out", str(parent / name)])
        assert done.exit_code == 0, done.output
        written[name] = parent / name / "report.html"
    for name, seconds in (("before", 1e-3), ("after", 2e-3)):
        rows = [
            Row(parameters={"operation": "all-reduce", "bytes": size}, seconds=[seconds + size / 1e8])
            for size in (2**10, 2**16, 2**22)
        ]
        settings = {"workers": 4, "nodes": 4, "workers_per_node": 1, "transport": "MPI"}
        BenchmarkFile.of("communication", {}, settings, rows).write(parent / f"{name}.json")
    files = str(parent / "before.json"), str(parent / "after.json")
    done = CliRunner().invoke(app, ["report", "--benchmark", *files, "--out", str(parent / "times")])
    assert done.exit_code == 0, done.output
    return written | {"times": parent / "times" / "report.html"}


@contextmanager
def opened(browser, file, *, width=1280, scheme="light"):
    """The page in a tab; afterwards it must have asked for nothing and complained of nothing."""
    complaints, requests = [], []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(1000 * SECONDS)
    try:
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        yield tab
        assert complaints == [] and requests == [file.as_uri()]
    finally:
        context.close()


def check_page(browser, file, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with opened(browser, file, width=width, scheme=scheme) as tab:
        assert tab.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), "it scrolls sideways"
        found = axe.run(tab).response
        problems = {one["id"]: [node["html"][:200] for node in one["nodes"]] for one in found["violations"]}
        assert problems == {}
        # Of these two rules there was something to check.
        assert {"color-contrast", "role-img-alt"} <= {one["id"] for one in found["passes"]}


def test_a_page_is_whole_in_a_browser(browser, pages):
    check_page(browser, pages["runs"], 1280, "light")


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["runs", "tables", "times"])
def test_every_page_is_whole_in_a_browser(browser, pages, name, width, scheme):
    if (name, width, scheme) != ("runs", 1280, "light"):
        check_page(browser, pages[name], width, scheme)


@pytest.mark.full
@pytest.mark.parametrize("name", ["runs", "tables", "times"])
def test_tables_fit_a_screen_of_1280_pixels(browser, pages, name):
    with opened(browser, pages[name]) as tab:
        fits = "all => all.map(one => one.scrollWidth <= one.clientWidth)"
        assert set(tab.eval_on_selector_all(".wide", fits)) == {True}


def column(tab, section, heading):
    """The first lines of a column's cells, of the first row of each group."""
    return tab.evaluate(
        """([section, heading]) => {
            const table = document.getElementById(section).parentElement.querySelector("table");
            const heads = [...table.tHead.rows[0].cells];
            const place = heads.findIndex(one => one.textContent.trim() === heading);
            return [...table.tBodies].map(one => one.rows[0].cells[place].firstChild.textContent.trim());
        }""",
        [section, heading],
    )


@pytest.mark.full
def test_tables_are_sorted_by_mouse_and_keyboard(browser, pages):
    with opened(browser, pages["runs"]) as tab:
        of_runs = tab.locator("section", has=tab.locator("#runs"))
        head = of_runs.get_by_role("columnheader", name="MiB / iteration")
        assert head.get_attribute("aria-sort") == "none"
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert column(tab, "runs", "MiB / iteration") == ["0", "13.1", "52.3", "52.3", "-", "-"]
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        # What has no number stays at the end.
        assert column(tab, "runs", "MiB / iteration") == ["52.3", "52.3", "13.1", "0", "-", "-"]
        of_runs.get_by_role("columnheader", name="TA (%)").get_by_role("button").click()
        assert column(tab, "runs", "TA (%)") == ["80.00", "80.00", "90.00", "90.00", "90.00", "90.00"]
        assert head.get_attribute("aria-sort") == "none"
    with opened(browser, pages["tables"]) as tab:
        of_table = tab.locator("section", has=tab.locator("#dat-4"))
        of_table.get_by_role("columnheader", name="MiB / iteration").get_by_role("button").click()
        # Ours, with the paper's row below it; rows that were not run stay at the end.
        assert column(tab, "dat-4", "MiB / iteration")[:2] == ["13.1", "52.3"]
        second = tab.evaluate(
            "document.getElementById('dat-4').parentElement.querySelector('tbody').rows[1].textContent"
        )
        assert "paper" in second and "731.0" in second


@pytest.mark.full
def test_a_dark_page_is_printed_black_on_white(browser, pages):
    with opened(browser, pages["runs"], scheme="dark") as tab:
        look = "getComputedStyle(document.body)"
        assert tab.evaluate(f"{look}.backgroundColor") == "rgb(20, 23, 26)"
        tab.emulate_media(media="print")
        assert tab.evaluate(f"{look}.backgroundColor") == "rgb(255, 255, 255)"
        assert not tab.locator("nav").is_visible()
        assert tab.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


def test_a_page_is_one_small_file_with_a_text_for_every_plot(pages):
    for name, file in pages.items():
        page = file.read_text()
        assert len(page) < 2_000_000 and "src=" not in page and "@import" not in page, name
        assert page.count("<svg") == len(re.findall('role="img"[^>]* aria-label="[^"]+[.]"', page)) > 0, name
        # The same name twice would be wrong, and links would go to the first.
        names = [part.split('"')[0] for part in page.split(' id="')[1:]]
        assert len(set(names)) == len(names), name


def test_rows_are_named_by_run_and_every_ra_has_its_attack(pages):
    page = pages["runs"].read_text()
    for text in ("thirty-two/seed-1", "PGD-10, linf, eps 0.1", "Certified accuracy", "MiB / iteration"):
        assert text in page
    assert "MB" not in page.replace("MiB", "")
    markdown = pages["runs"].with_name("report.md").read_text()
    assert "## Certified accuracy (CA, %) over the l2 radius r" in markdown


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", PAGE_COLOURS.values(), ids=PAGE_COLOURS)
def test_lines_of_plots_stand_out_from_the_page(page):
    """WCAG 2.1, 1.4.11: a contrast of 3 for graphics."""
    for colour in COLOURS:
        dark, light = sorted((luminance(colour), luminance(page)))
        assert (light + 0.05) / (dark + 0.05) >= 3, colour


def test_only_plots_that_the_runs_have_data_for(make_run):
    def names(*runs):
        return [plot.name for plot in run_plots([read_run(run) for run in runs])]

    bare = make_run("bare", "", p=1, c=0.0, mb=0.0)
    assert names(bare) == []
    many = names(*several_runs(make_run))
    assert many == ["ra-over-time", "learning-curves", "communication", "step-times", "throughput"]
    # One number of workers has no throughput over workers, and equal bytes no C over bytes.
    assert names(*(make_run(f"same {seed}", "", seed=seed, speed=100) for seed in (0, 1))) == []


def test_points_say_what_they_are(make_run):
    plots = {plot.name: plot.svg for plot in run_plots([read_run(run) for run in several_runs(make_run)])}
    assert "<title>one, epoch 2: RA 50.00 %</title></use>" in plots["ra-over-time"]
    assert "rank 1: 70 ms, longest 100 ms</title>" in plots["step-times"]
    assert "<title>2 workers: 200 images/s, 83% of ideal</title>" in plots["throughput"]
    # Seeds are of one job, whose runs have different names.
    assert "thirty-two, seed 1" in plots["learning-curves"]


def test_of_many_epochs_only_some_have_a_marker(make_run):
    run = evaluated(make_run("long", ""), 0.3, 0.5)
    for epoch in range(3, 200):
        RunFolder(run).log(event="epoch", epoch=epoch, images=600, total_seconds=1.0, cost=1 / epoch)
    (learning,) = [plot for plot in run_plots([read_run(run)]) if plot.name == "learning-curves"]
    assert 0 < learning.svg.count(": cost") <= MOST_MARKERS


def test_headlines_are_of_the_best_job_and_say_how_many_there_are(make_run):
    runs = several_runs(make_run)
    other = make_run("other", "", p=2)
    result = json.loads((other / "result.json").read_text())
    (other / "result.json").write_text(json.dumps(result | {"ra": 0.75}))
    read = [read_run(run) for run in (*runs, other)]
    cards = {card.title: card for card in headline(read, {}, [compare("dat-4", read)])}
    best = cards["Highest RA of 5 jobs"]
    assert best.value == "75.00 [70.6, 79.1] %"
    assert best.lines[0] == "other" and best.lines[-1] == "under PGD-10, linf, eps 0.1, 397 test images"
    assert cards["AutoAttack (AA)"].value == "30.00 [21.9, 39.6] %"
    assert "RA on the same images 45.00 [35.6, 54.8] %" in cards["AutoAttack (AA)"].lines
    assert cards["Mean certified radius (ACR)"].lines[0] == "at, sigma 0.25"
    assert cards["Training time"].value == "10 s" and "energy not measured" in cards["Training time"].lines
    assert cards["Communication"].value == "60 % of T"
    table = cards["DAT paper, Table 4"]
    assert table.value == "2 of 10 rows run" and "DAT-PGD, 8 bits: 0.400 / 0.659" in table.lines
    (alone,) = [card for card in headline(read[-1:], {}, []) if "RA" in card.title]
    assert alone.title == "Robust accuracy (RA)"


def test_a_headline_states_the_fast_bound_if_every_seed_has_one(make_run):
    bounds = (0.25, None)
    runs = [make_run(f"seed-{seed}", "", seed=seed, fast_bound=bound) for seed, bound in enumerate(bounds)]
    first, second = map(read_run, runs)

    def lines(*of):
        return headline(of, {}, [])[0].lines

    assert lines(first)[-1].startswith("fast bound 25.00 [")
    assert "fast bound" not in str(lines(second)) + str(lines(first, second))


def test_durations_are_in_the_units_that_people_use():
    seconds = (0.25, 59.9, 59.99, 61, 7201, 3600 * 47.5, 3600 * 50)
    expected = ["0.25 s", "59.9 s", "1 min 0 s", "1 min 1 s", "2 h 0 min", "47 h 30 min", "2 d 2 h"]
    assert [duration(one) for one in seconds] == expected


def test_ratios_stand_only_where_the_work_is_the_papers(make_run, monkeypatch):
    comparison = compare("dat-4", [read_run(make_run("run", "dat-4/dat-pgd-32"))])
    assert "ours / paper" not in comparison_section(comparison).page_table.texts
    monkeypatch.setattr("hpcdat.report.comparison_section.differences_of", lambda run, compared: [])
    groups = comparison_section(comparison).page_table.groups
    assert [row[1].split("\n")[0] for row in groups[0]] == ["ours", "paper", "ours / paper"]
    assert groups[0][2][2] == "1.41", "TA, 90 over 63.75"
    # Of a row that was not run there is the paper's only.
    assert [row[1] for row in groups[1]] == ["paper\nnot run"]


def test_a_page_has_one_unit_of_radii():
    unit = PixelUnit(["PGD-10, linf, eps 8/255", "attack.eps: 0.0078431, the paper's 0.0156863"])
    assert unit("steps of 0.0078431; 2.5 eps / steps") == "steps of 2/255; 2.5 eps / steps"
    assert unit("attack.eps: 0.0078431, the paper's 0.0156863") == "attack.eps: 2/255, the paper's 4/255"
    assert unit.note == "Radii (eps) and step sizes are in 255ths of a pixel's range."
    unit = PixelUnit(["eps 8/255", "eps 0.1", "steps of 2.5 eps / steps"])
    texts = "eps 8/255", "2/255", "eps 0.1"
    assert [unit(text) for text in texts] == ["eps 0.03137", "0.007843", "eps 0.1"]
    assert "[0, 1] pixel units" in unit.note
    paper = "attack.eps: 4/255, the paper's 0.031373."
    assert PixelUnit([paper])(paper) == "attack.eps: 4/255, the paper's 8/255."
    assert PixelUnit(["TA 90"]).note == "" and PixelUnit(["TA 90"])("4/255 of it") == "4/255 of it"


def test_a_run_resumed_with_other_workers_shows_those_of_its_last_epoch(make_run):
    run = make_run("resumed", "", p=2, c=1.0, of_epochs={"cost": 0.5, "workers": WORKERS})
    three = {"step_seconds": [0.01, 0.02, 0.03], "longest_step_seconds": [0.1, 0.2, 0.3]}
    lines = RunFolder(run).metrics_file.read_text().splitlines()
    epochs = [number for number, line in enumerate(lines) if json.loads(line)["event"] == "epoch"]
    assert len(epochs) > 1
    lines[epochs[-1]] = json.dumps({**json.loads(lines[epochs[-1]]), "workers": three})
    RunFolder(run).metrics_file.write_text("\n".join(lines) + "\n")
    read = [read_run(run)]
    (plot,) = [plot for plot in run_plots(read) if plot.name == "step-times"]
    assert "rank 2: 30 ms" in plot.svg and "rank 1: 20 ms" in plot.svg
    (card,) = [card for card in headline(read, {}, []) if card.title == "Training time"]
    assert "epochs on a changing number of workers" in card.lines[0]


def test_accuracies_under_autoattack_are_compared_in_one_ball(make_run):
    runs = {
        name: make_run(name, "", method="at", aa=(aa, 1000, 0.8, 0.45))
        for name, aa in (("weak", 0.9), ("a", 0.3), ("b", 0.4))
    }
    weak = RunFolder(runs["weak"])
    weak.write_result(replace(weak.read_result(), attack="PGD-10, linf, eps 0.01"), "")
    cards = headline([read_run(run) for run in runs.values()], {}, [])
    (card,) = [card for card in cards if "AA" in card.title]
    assert card.title == "Highest AA of 2 runs" and card.value.startswith("40.00") and card.lines[0] == "b"
    assert "linf, eps 0.1, 1,000 test images" in card.lines[1]


def test_columns_of_numbers_are_known_by_their_cells():
    rows = [["ring", "1,024", "90.00 [1, 2]", "-", "16 bits"], ["8", "64", "not measured", "-", "no bits"]]
    table = Table(["a", "b", "c", "d", "e"], [[row] for row in rows], 1)
    assert table.numbers == [True, True, True, False, True]
    assert Table(["a"], [[["ring 2"]], [["3"]]], 0).numbers == [False]
