"""The published systems: their files, what is predicted for them, and the page that shows it."""

import re
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from hpcdat.errors import InputError
from hpcdat.performance.calibration import Calibration, assume_links
from hpcdat.report.papers import TABLES
from tests.conftest import CHECKOUT, DEMO, run_here
from tests.performance.test_forecast import TIMING

FILES = sorted((CHECKOUT / "benchmarks" / "published").glob("*.yaml"))
PAGE = (CHECKOUT / "docs" / "papers" / "plan-against-published.md").read_text()


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CHECKOUT / "benchmarks")
        yield import_module("plan_against_published")


@pytest.fixture(scope="module")
def files(script):
    """What the script computes for every file."""
    return {file.stem: script.compare(file) for file in FILES}


def published(script, name):
    return script.Published.model_validate(
        Calibration.read(CHECKOUT / "benchmarks" / "published" / f"{name}.yaml").published
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_names_its_sources(script, file):
    comments = "".join(line for line in file.read_text().splitlines(True) if line.startswith("#"))
    assert "Source" in comments
    for source in published(script, file.stem).sources:
        (address,) = re.findall(r"https://[^ ,:]+", source)
        assert address in comments, address


def test_the_tables_of_the_page_are_what_the_script_computes(script, files):
    assert script.with_tables(PAGE, files) == PAGE


def test_a_table_that_differs_is_seen(script, files):
    digits = PAGE.replace("| 898 ", "| 899 ")
    assert digits != PAGE and script.with_tables(digits, files) == PAGE
    with pytest.raises(InputError, match="0 lines <!-- horovod-tcp -->"):
        script.with_tables(PAGE.replace("<!-- horovod-tcp -->", ""), files)


def test_rows_on_which_a_parameter_was_fitted_agree(files):
    fitted = [row for file in files.values() for row in file["rows"] if row["fitted"]]
    assert sorted(row["fitted"] for row in fitted) == ["efficiency", "jitter", "message_seconds", "update"]
    for row in fitted:
        assert row["ratio"] == pytest.approx(1, abs=0.003), row["name"]


@pytest.mark.parametrize(
    "name, value, shown",
    [
        ("efficiency", 0.634, "0.634"),
        ("jitter", 0.031, "3.1 %"),
        ("message_seconds", 5.9e-5, "59 µs"),
        ("update", 0.0122, "12.2 ms"),
    ],
)
def test_a_fitted_parameter_has_one_value_in_all_files_and_on_the_page(name, value, shown):
    settings = re.findall(rf"\b{name}: ([0-9.e-]+)", "\n".join(file.read_text() for file in FILES))
    # Nothing is known about the messages of a TPU pod: they count as zero.
    assert {float(setting) for setting in settings} - {0.0} == {value}
    assert re.search(rf"`{name}` \|.*\| {shown} \|", PAGE)


def test_a_ring_at_1_gbit_takes_its_bytes(script):
    """C of DAT at the nominal rate: 417 steps of 3,060 images, each 2 * 5/6 of ResNet-50 in float32."""
    row = published(script, "dat-ethernet").rows[0]
    seconds = 417 * 2 * 5 / 6 * 4 * 25_557_032 / 1.25e8
    assert row.predicted(assume_links("1gbit")) == pytest.approx(seconds, rel=0.005)
    assert row.predicted_by_link("1gbit") == row.predicted(assume_links("1gbit"))


def test_computation_is_that_of_the_published_figure(script):
    """The run of which it was published takes as long as published."""
    rows = [row for file in FILES for row in published(script, file.stem).rows]
    for alone in {row.alone.model_dump_json(): row.alone for row in rows}.values():
        job = alone.read()
        workers = alone.nodes * alone.per_node
        timing = alone.timing(0.0, job)
        step = job.batch_size * (timing.attack + timing.gradient) + timing.update
        epoch = step * alone.images / (job.batch_size * workers)
        assert epoch == pytest.approx(alone.epoch or alone.images / alone.images_per_second)
        slower = alone.timing(0.1, job)
        assert slower.gradient < timing.gradient or workers == 1


def test_the_figures_are_those_of_the_papers(script):
    by_key = {f"{name}/{row.key}": row.values for name, table in TABLES.items() for row in table.rows}
    expected = {
        "DAT-PGD, float32, ring": ("C", "dat-1/dat-pgd"),
        "DAT-FGSM, float32, ring": ("C", "dat-1/dat-fgsm"),
        "DAT-PGD": ("T", "dat-1/dat-pgd"),
        "DAT-PGD w/o LALR": ("T", "dat-1/dat-pgd-without-lalr"),
        "DAT-FGSM": ("T", "dat-1/dat-fgsm"),
        "DAT-FGSM w/o LALR": ("T", "dat-1/dat-fgsm-without-lalr"),
        "DAT-PGD, 16 bits": ("C", "dat-4/dat-pgd-16"),
        "DAT-FGSM, 16 bits": ("C", "dat-4/dat-fgsm-16"),
        "DAT-PGD, 8 bits": ("C", "dat-4/dat-pgd-8"),
        "DAT-FGSM, 8 bits": ("C", "dat-4/dat-fgsm-8"),
        "DAT-PGD, 8 bits, two-sided": ("C", "dat-4/dat-pgd-8-two-sided"),
        "DAT-FGSM, 8 bits, two-sided": ("C", "dat-4/dat-fgsm-8-two-sided"),
        "DAT-PGD, ResNet-18, ring": ("C", "dat-3/resnet18-dat-pgd"),
        "DAT-PGD, WRN-28-10, ring": ("C", "dat-3/wrn-dat-pgd"),
        "DAT-PGD (HPC)": ("C", "dat-4/dat-pgd-hpc"),
    }
    rows = [*published(script, "dat-ethernet").rows, *published(script, "dat-infiniband").rows]
    found = {(row.name, row.quantity): row.value for row in rows}
    for name, (quantity, key) in expected.items():
        assert found[name, quantity] == by_key[key][quantity.lower()], name
    seconds = {key.split("/")[1]: row.get("training") for key, row in by_key.items() if "conadv-3/" in key}
    ratios = {row.name: row.value for row in published(script, "conadv-tpu").rows}
    for over, under, batch in (
        ("ConAdv", "vanilla", "16k"),
        ("ConAdv", "vanilla", "32k"),
        ("DisAdv", "vanilla", "16k"),
        ("DisAdv", "vanilla", "32k"),
        ("DisAdv", "ConAdv", "64k"),
    ):
        published_ratio = seconds[f"{over.lower()}-{batch}"] / seconds[f"{under.lower()}-{batch}"]
        assert ratios[f"{over} over {under}, {batch}, own cores"] == pytest.approx(published_ratio, abs=0.006)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_plan_accepts_every_file(monkeypatch, file):
    device = torch.device("cpu")
    timed = replace(TIMING, spread="as published"), device
    monkeypatch.setattr("hpcdat.performance.forecast.time_share", lambda *_: timed)
    done = run_here("plan", DEMO, "--calibration", file, "--nodes", "2")
    assert done.returncode == 0, done.stderr
    assert f"Links: {Calibration.read(file).measured_on}." in done.stdout
    jitter = Calibration.read(file).jitter
    assert ("waiting for slower workers" in done.stdout) == (jitter == 0)
    assert ("with a jitter of 3.1 %" in done.stdout) == (jitter == 0.031)


def test_ratios_name_every_row_and_the_worst(script, files):
    ratios = script.ratios_of(files)
    assert len(ratios) == 3 + sum(len(file["rows"]) for file in files.values())
    assert ratios["worst_fitted"] == pytest.approx(1, abs=0.003)
    assert ratios["worst"] in ratios.values() and abs(ratios["worst"] - 1) >= abs(ratios["worst_checked"] - 1)
