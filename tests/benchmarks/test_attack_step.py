"""benchmarks/attack_step.py: what a sweep computes from its measurements, counted FLOPs, and the ratios."""

import json
import mmap
import os
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.training.flops import flops_of
from tests.conftest import CHECKOUT

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """The modules of benchmarks."""
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")


@pytest.fixture
def bench():
    return import_module("attack_step")


@pytest.fixture
def sweeping():
    return import_module("attack_sweep")


@pytest.fixture
def comparison():
    return import_module("attack_comparison")


@pytest.fixture
def steps():
    return import_module("training_steps")


@pytest.fixture
def peak():
    return import_module("peak").Peak("matrix product", 2 * 10**9, "float32", [0.5, 0.25])


def combination(steps, network="digits-cnn", batch=2, k=1, precision="float32"):
    return steps.Combination(steps.Network.of(network), batch, precision, steps.Pgd(8 / 255, 2 / 255, k))


def passes(network, x):
    """FLOPs of a forward pass, and of its first convolution, from the shapes of weights and outputs."""
    found = []

    def count(layer, _, output):
        # Of each output a product and a sum for every weight that leads to it.
        found.append(2 * output.numel() * layer.weight[0].numel())

    handles = [
        layer.register_forward_hook(count)
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return sum(found), found[0]


@pytest.mark.parametrize("network", ["digits-cnn@8", "preact-resnet18@8"])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_flops_of_a_step_are_those_of_its_passes(steps, network, k):
    step = combination(steps, network, batch=3, k=k)
    model = step.network.build()
    forward, first = passes(model.eval(), step.network.images(3, CPU).x)
    # An input gradient takes as much as a forward pass, a gradient of the weights too; the images of the
    # update need no gradient.
    assert flops_of(step.step(CPU)) == k * 2 * forward + 3 * forward - first
    x, y = step.network.images(3, CPU)
    assert flops_of(lambda: steps.arithmetic_alone(model, x, y, k)) == k * 2 * forward + 3 * forward - first


def test_the_share_of_the_peak_is_a_quotient_of_rates(sweeping, peak):
    # 2 * 1000^3 FLOP in a quarter of a second, against 10^9 in two seconds.
    assert peak.rate == 8e9
    assert sweeping.share_of_peak(10**9, 2.0, peak) == 0.0625


@pytest.mark.parametrize(
    ("fastest", "flops"),
    [
        ("matrix product of 1024 x 1024", 2 * 1024**3),
        ("3 x 3 convolution of 128 channels, 16 x 16 pixels, NHWC", 2 * 9 * 128 * 128 * 16 * 16 * 16),
    ],
)
def test_the_peak_is_that_of_the_fastest_product_or_convolution(monkeypatch, fastest, flops):
    peak = import_module("peak")
    tried = []

    def in_turns(candidates, *_):
        tried.extend(candidates)
        # All take as long per operation but for one.
        return {name: [9.0, 0.1 if name == fastest else 8.0] for name in candidates}

    monkeypatch.setattr(peak, "in_turns", in_turns)
    found = peak.measure_peak("bfloat16", CPU, SingleProcess())
    assert (found.work, found.flops, found.rate) == (fastest, flops, flops / 0.1)
    assert found.what == f"{fastest} in bfloat16" and len(tried) == 3 + 3 * 2


def test_the_operations_of_the_peak_are_counted_as_those_of_the_steps(monkeypatch):
    """By torch's counter, which counts the steps, too."""
    peak = import_module("peak")
    monkeypatch.setattr(peak, "SIZES", {"cpu": (16, 32)})
    monkeypatch.setattr(peak, "CONVOLUTIONS", {"cpu": (peak.Convolution(4, 6, 3),)})
    seen = {}

    def in_turns(candidates, *_):
        seen.update({name: flops_of(run) for name, run in candidates.items()})
        return {name: [1.0] for name in candidates}

    monkeypatch.setattr(peak, "in_turns", in_turns)
    found = peak.measure_peak("float32", CPU, SingleProcess())
    assert seen["matrix product of 16 x 16"] == 2 * 16**3
    assert seen["3 x 3 convolution of 4 channels, 6 x 6 pixels, NCHW"] == peak.Convolution(4, 6, 3).flops
    assert found.flops == max(seen.values()) == 2 * 32**3


def test_a_sweep_has_a_row_for_each_combination_and_counts_all_workers(sweeping, steps, peak, monkeypatch):
    monkeypatch.setattr(sweeping, "needs_of", lambda *_: sweeping.Needs(flops=4 * 10**9, memory=3 * MIB))
    monkeypatch.setattr(sweeping, "in_rounds", lambda chosen, *_: {each: [1.0, 4.0, 2.0] for each in chosen})
    chosen = [combination(steps, batch=16, k=k) for k in (0, 10)]
    answers = run_threads(
        loopback(3), lambda workers: sweeping.sweep(chosen, {"float32": peak}, 3, CPU, workers)
    )
    for rows, notes in answers:
        assert [row.parameters["steps"] for row in rows] == [0, 10] and notes == []
        assert rows[0].parameters == {
            "part": "training step",
            "network": "digits-cnn",
            "image_size": 8,
            "batch_size": 16,
            "precision": "float32",
            "steps": 0,
            "device": "cpu",
        }
        assert rows[0].figures == {
            "images_per_second": 3 * 16 / 2.0,
            "flops": 4e9,
            "share_of_peak": 4e9 / 2.0 / 8e9,
            "memory_bytes": 3 * MIB,
        }


def test_every_round_times_every_combination_in_another_order(sweeping, steps, monkeypatch, capsys):
    """Each is built when its turn comes: memory may not suffice for all of them at once."""
    done = []

    def step(chosen, device):
        done.append(f"build {chosen.attack.steps}")
        return lambda: done.append(f"{chosen.attack.steps}")

    monkeypatch.setattr(steps.Combination, "step", step)
    monkeypatch.setattr("timing.seconds", lambda work, device: work() or float(len(done)))
    chosen = [combination(steps, k=k) for k in (1, 2, 3)]
    times = sweeping.in_rounds(chosen, 2, CPU, SingleProcess())
    rounds = [[f"build {k}", f"{k}", f"{k}"] for k in (1, 2, 3, 2, 3, 1)]
    assert done == [word for each in rounds for word in each]
    assert times == dict(zip(chosen, ([3.0, 18.0], [6.0, 12.0], [9.0, 15.0]), strict=True))
    assert capsys.readouterr().err == "round 1 of 2\nround 2 of 2\n"
    assert sweeping.in_rounds([], 2, CPU, SingleProcess()) == {}


def test_what_one_worker_has_no_memory_for_is_left_out_on_all_with_the_reason(
    sweeping, steps, peak, monkeypatch
):
    def needs_of(chosen, device):
        if device.index == 1 and chosen.attack.steps:
            raise sweeping.NotEnoughMemory("out of memory: 3 GiB")
        return sweeping.Needs(10**9, None)

    monkeypatch.setattr(sweeping, "needs_of", needs_of)
    chosen = [combination(steps, k=k) for k in (0, 1)]

    def run(workers):
        return sweeping.sweep(chosen, {"float32": peak}, 1, torch.device("cpu", workers.rank), workers)

    for rows, notes in run_threads(loopback(2), run):
        assert [row.parameters["steps"] for row in rows] == [0]
        assert notes == ["digits-cnn@8, 2 images, float32, 1 steps: not measured (out of memory: 3 GiB)"]
        assert rows[0].figures["memory_bytes"] is None


def row(part, seconds, network="preact-resnet18"):
    return Row(parameters={"part": f"{part}, in turns", "network": network}, seconds=[seconds])


def test_ratios_follow_from_the_parts_and_those_of_missing_parts_are_null(comparison):
    rows = [row(comparison.ALONE, 3.0), row(comparison.STEP, 4.0), row(comparison.PLAIN, 6.4)]
    rows += [row(comparison.STEP, 7.0, "resnet50"), row(comparison.PLAIN, 10.0, "resnet50")]
    rows += [row(comparison.FOOLBOX, 5.0), row(comparison.BFLOAT16, 1.0)]
    assert comparison.ratios_of(rows) == {
        "pgd10_fp32_efficiency": 0.75,
        "pgd10_bf16_over_fp32": 0.25,
        "over_foolbox": 0.8,
        "preact18_pgd10_over_plain": 0.625,
        "resnet50_pgd4_over_plain": 0.7,
    }
    ratios = comparison.ratios_of(rows[:5])
    missing = {name for name, ratio in ratios.items() if ratio is None}
    assert missing == {"pgd10_bf16_over_fp32", "over_foolbox"} == set(comparison.MISSING)


def test_a_network_is_named_with_the_size_of_its_images(steps):
    sizes = {
        text: steps.Network.of(text).image_size for text in ("preact-resnet18", "resnet50", "resnet50@64")
    }
    assert sizes == {"preact-resnet18": 32, "resnet50": 224, "resnet50@64": 64}


def test_the_growth_of_memory_is_that_of_the_pages_in_use():
    growth_of = import_module("memory").growth_of

    def fill(size):
        # Not from the heap, where earlier tests may have freed pages.
        np.frombuffer(mmap.mmap(-1, size), np.uint8)[:] = 1

    # Linux counts resident pages in batches of each processor (proc(5)).
    inexact = MIB
    assert abs(growth_of(lambda: fill(64 * MIB)) - 64 * MIB) < inexact
    # What has been freed again does not count.
    assert abs(growth_of(lambda: fill(32 * MIB)) - 32 * MIB) < inexact


def test_memory_is_measured_in_a_process_of_its_own_which_may_be_killed():
    memory = import_module("memory")
    assert memory.in_own_process(os.getpid) != os.getpid()
    with pytest.raises(memory.NotEnoughMemory, match="was killed"):
        memory.in_own_process(os._exit, 9)


def test_a_run_prints_its_tables_and_writes_what_the_report_reads(
    bench, sweeping, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(sweeping, "in_own_process", lambda work, *arguments: 5 * MIB)
    monkeypatch.setattr(import_module("peak"), "SIZES", {"cpu": (64,)})
    monkeypatch.setattr(import_module("peak"), "CONVOLUTIONS", {"cpu": ()})
    file = tmp_path / "steps.json"
    given = ["--networks", "digits-cnn", "--batch-sizes", "2,3", "--steps", "0,2", "--precisions", "float32"]
    monkeypatch.setattr(
        "sys.argv", ["attack_step.py", *given, "--rounds", "2", "--no-ratios", "--json", str(file)]
    )
    threads = torch.get_num_threads()
    bench.main()
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("| training step")]
    steps = [line for line in lines if line.startswith("digits-cnn@8, ")]
    assert [line.split(": ")[0] for line in steps] == [
        f"digits-cnn@8, {batch} images, float32, {k} steps" for batch in (2, 3) for k in (0, 2)
    ]
    assert lines.index(table[0]) > lines.index(steps[-1]) and all(" 5.0 MiB" in line for line in steps)
    assert lines[1].startswith("peak, float32: ") and lines[1].endswith(
        "matrix product of 64 x 64 in float32"
    )
    assert len(table) == 4 and all(line.split("|")[2].strip() == "digits-cnn@8" for line in table)
    found = BenchmarkFile.read(file)
    assert found.benchmark == "attack_step" and found.settings["repetitions"] == 2 and found.ratios == {}
    rows = {(r.parameters["batch_size"], r.parameters["steps"]): r for r in found.rows}
    assert set(rows) == {(None, None), (2, 0), (2, 2), (3, 0), (3, 2)}
    for (batch, _), of in rows.items():
        assert len(of.seconds) == (5 if batch is None else 2)
        if batch:
            assert of.figures["images_per_second"] == pytest.approx(batch / of.median)
            assert of.figures["memory_bytes"] == 5 * MIB
    assert rows[3, 2].figures["flops"] * 2 == rows[2, 2].figures["flops"] * 3
    assert json.loads(file.read_text())["format"] == "hpcdat benchmark"
