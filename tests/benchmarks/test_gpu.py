"""What benchmarks/gpu concludes from what it measured, and the reasons that it gives for what it did not."""

import json
import os
import subprocess
import sys

import pytest

from hpcdat.errors import InputError
from tests.conftest import CHECKOUT


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    import gpu.report

    return gpu


def run_of(ra, seconds, bfloat16):
    return {"ra": ra, "training_seconds": seconds, "ra_bfloat16": bfloat16, "ra_float32": 0.5}


@pytest.fixture
def sections(gpu):
    """Of three seeds one is not evaluated, foolbox is not installed, memory does not suffice once."""
    return {
        "speedrun": {"seeds": {"0": run_of(0.48, 50, 0.503), "1": run_of(0.45, 60, 0.501), "2": {}}},
        "step": {
            "network": "preact-resnet18",
            "attack": {"steps": 10},
            "batch": 512,
            "size": 32,
            "images_per_second": {gpu.step.OURS: 30.0, gpu.step.PLAIN: 10.0},
            "missing": {gpu.step.FOOLBOX: "not measured (foolbox is not installed)"},
        },
        "resnet50": {
            "network": "resnet50",
            "attack": {"steps": 4},
            "batch": 85,
            "size": 224,
            "images_per_second": {gpu.step.OURS: 7.0},
            "missing": {},
            "share_of_bfloat16_peak": {gpu.step.OURS: 0.3},
        },
        "concurrent": {
            "64 images, slow": {"medians": {"ConAdv": 2.0}, "ratios": {"beside_over_disadv": 1.5}},
            "64 images, fast": {"medians": {"ConAdv": 1.0}, "ratios": {"beside_over_disadv": 1.2}},
            "64 images, large": {"missing": "not measured (out of memory)"},
            "256 images, fast": {"medians": {"ConAdv": 0.5}, "ratios": {"beside_over_disadv": 9.0}},
        },
    }


def test_ratios_follow_from_the_sections_and_what_is_missing_has_a_reason(gpu, sections):
    names = gpu.report.GOALS
    ratios, reasons = gpu.report.ratios_of({})
    assert list(ratios) == list(names) and set(reasons) == set(names) and not any(ratios.values())
    ratios, reasons = gpu.report.ratios_of(sections)
    assert list(ratios) == list(names)
    assert ratios == {
        "seconds_to_46_robust": 55,
        "pgd10_over_eager_fp32": 3,
        "pgd10_over_foolbox": None,
        "resnet50_share_of_peak": 0.3,
        "codec_of_copy_bandwidth": None,
        "conadv_over_disadv_64": 1.2,
        "robust_bf16_minus_fp32": pytest.approx(0.2),
    }
    assert reasons == {
        "pgd10_over_foolbox": "not measured (foolbox is not installed)",
        "codec_of_copy_bandwidth": "not measured",
    }
    sections["speedrun"]["seeds"]["1"] = run_of(0.42, 60, 0.5)
    ratios, reasons = gpu.report.ratios_of(sections)
    assert ratios["seconds_to_46_robust"] is None
    assert reasons["seconds_to_46_robust"] == "RA is 45.00 %, the mean of 2 seeds"


def test_each_ratio_is_shown_beside_its_goal(gpu, sections):
    ratios, reasons = gpu.report.ratios_of(sections)
    report = {"device": "a GPU", "ratios": ratios, "reasons": reasons}
    _, rows = gpu.report.goals_of(report)
    assert rows == [
        ["seconds_to_46_robust", "0 to 60", "55", "yes"],
        ["pgd10_over_eager_fp32", "2.5 or more", "3", "yes"],
        ["pgd10_over_foolbox", "2.5 or more", "not measured (foolbox is not installed)", ""],
        ["resnet50_share_of_peak", "0.45 or more", "0.3", "no"],
        ["codec_of_copy_bandwidth", "0.8 or more", "not measured", ""],
        ["conadv_over_disadv_64", "1.15 or more", "1.2", "yes"],
        ["robust_bf16_minus_fp32", "-0.5 to 0.5", "0.2", "yes"],
    ]
    _, rows = gpu.report.goals_of(report | {"device": "a CPU, tiny test run"})
    assert {row[-1] for row in rows} == {""}


def test_files_of_parts_are_merged_if_they_are_of_one_device(gpu, sections, tmp_path):
    files = []
    for name, found in sections.items():
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps({"device": "a GPU", "date": "today", "sections": {name: found}}))
    merged = gpu.report.merge(files, tmp_path / "all.json")
    assert merged["sections"] == sections and merged["ratios"]["conadv_over_disadv_64"] == 1.2
    assert json.loads((tmp_path / "all.json").read_text()) == merged
    files[0].write_text(json.dumps({"device": "another", "sections": {}}))
    with pytest.raises(InputError, match="a GPU and another: expected reports of one device"):
        gpu.report.merge(files, tmp_path / "all.json")


def test_outcomes_of_tests_are_read_while_they_run(gpu):
    output = (
        "tests/a.py::test_one[x, y] PASSED    [ 50%]\ntests/a.py::test_two FAILED    [100%]\n"
        "FAILED tests/a.py::test_two - why\n"
    )
    outcomes = gpu.tests.outcomes_of(output)
    assert outcomes == {"tests/a.py::test_one[x, y]": "passed", "tests/a.py::test_two": "failed"}
    ((_, rows),) = gpu.tests.tables({"outcomes": outcomes}).values()
    assert rows == [["passed", "1"], ["failed", "1"], ["tests/a.py::test_two", "failed"]]


def test_measurements_of_two_devices_do_not_mix(gpu, tmp_path):
    import torch

    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"device": "another", "sections": {}}))
    call = gpu.section.Call(torch.device("cpu"), True, None, tmp_path, (0,), 1, None)
    with pytest.raises(InputError, match=r"gpu\.json holds another, this is .*: name another"):
        gpu.report.measure(call, ["codec"], file)


def test_the_page_of_an_earlier_report_is_made_by_the_folder_as_a_program(sections, tmp_path):
    """Run as a folder, whose modules are named as others that are needed."""
    sections |= {
        "ten-minutes": {"seeds": {"0": {"ra": 0.5, "training_seconds": 590.0, "epoch": 30}}},
        "codec": {
            "ratios": {"codec_of_copy_bandwidth": 0.5},
            "seconds": {"copy": [0.001, 0.002, 0.003]},
            "settings": {"count": 1000},
        },
        "horovod": {"all_reduce": {"exit_code": 0, "output": []}, "relative_difference": 0.25},
    }
    file, page = tmp_path / "gpu.json", tmp_path / "page"
    file.write_text(json.dumps({"device": "a GPU", "date": "today", "versions": {}, "sections": sections}))
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu", "page", "--json", file, "--page", page],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    for row in (
        ["mean", "", "55.0 ± 7.1", "", "", "46.50 ± 2.12", ""],
        ["0", "30", "590.0", "", "", "50.00", ""],
        ["trainer, bfloat16, compiled", "30.0"],
        ["foolbox's attack, float32", "not measured (foolbox is not installed)"],
        ["copy", "2.000"],
        ["not measured (out of memory)", ""],
        ["ConAdv", "500.00"],
        ["all_reduce", "done"],
        ["relative_difference", "0.25"],
        ["conadv_over_disadv_64", "1.15 or more", "1.2", "yes"],
    ):
        assert row in rows
    assert "On one GPU: a GPU" in (page / "report.html").read_text()
