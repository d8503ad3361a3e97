"""What benchmarks/gpu.py concludes from what it measured, and what it says of what it did not."""

import json

import pytest

from tests.conftest import CHECKOUT


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    import gpu

    return gpu


def run_of(ra, seconds, bfloat16):
    return {"ra": ra, "training_seconds": seconds, "ra_bfloat16": bfloat16, "ra_float32": 0.5}


def test_ratios_follow_from_the_sections_and_what_is_missing_has_a_reason(gpu):
    ratios, reasons = gpu.ratios_of({})
    assert list(ratios) == list(gpu.RATIOS) and set(reasons) == set(gpu.RATIOS) and not any(ratios.values())
    sections = {
        "speedrun": {"seeds": {"0": run_of(0.48, 50, 0.503), "1": run_of(0.45, 60, 0.501), "2": {}}},
        "step": {
            "preact-resnet18": {
                "images_per_second": {gpu.OURS: 30.0, gpu.PLAIN: 10.0},
                "missing": {gpu.FOOLBOX: "not measured (foolbox is not installed)"},
            }
        },
        "concurrent": {
            "64 images, slow": {"medians": {"ConAdv": 2.0}, "ratios": {"beside_over_disadv": 1.5}},
            "64 images, fast": {"medians": {"ConAdv": 1.0}, "ratios": {"beside_over_disadv": 1.2}},
            "64 images, large": {"missing": "not measured (out of memory)"},
            "256 images, fast": {"medians": {"ConAdv": 0.5}, "ratios": {"beside_over_disadv": 9.0}},
        },
    }
    ratios, reasons = gpu.ratios_of(sections)
    assert ratios == {
        "seconds_to_46_robust": 55,
        "pgd10_over_eager_fp32": 3,
        "pgd10_over_foolbox": None,
        "codec_of_copy_bandwidth": None,
        "conadv_over_disadv_64": 1.2,
        "robust_bf16_minus_fp32": pytest.approx(0.2),
    }
    assert reasons["pgd10_over_foolbox"] == "not measured (foolbox is not installed)"
    assert set(reasons) == {name for name, ratio in ratios.items() if ratio is None}
    sections["speedrun"]["seeds"]["1"] = run_of(0.42, 60, 0.5)
    ratios, reasons = gpu.ratios_of(sections)
    assert ratios["seconds_to_46_robust"] is None
    assert reasons["seconds_to_46_robust"] == "RA is 45.00 %, the mean of 2 seeds"


def test_measurements_of_two_devices_do_not_mix(gpu, tmp_path):
    import torch

    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"device": "another", "sections": {}}))
    call = gpu.Call(torch.device("cpu"), True, None, tmp_path, (0,), 1, None)
    with pytest.raises(SystemExit, match=r"gpu\.json holds another, this is .*: name another"):
        gpu.measure(call, ["codec"], file, None)
