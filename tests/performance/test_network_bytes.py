"""MiB per iteration by a job's settings: those of the DAT paper's Table 4, without timing anything."""

import pytest
import torch
from torch import nn

from hpcdat.config.job_file import read_job
from hpcdat.config.sections import Data, Exchange
from hpcdat.errors import InputError
from hpcdat.exchange.gradient_exchange import GradientExchange, gradients_of
from hpcdat.models import build_model_for
from hpcdat.performance.microbenchmarks import SimulatedCommunicator
from hpcdat.performance.network_bytes import DEFAULT_CLASSES, count_classes, crossing_of, describe_bytes
from hpcdat.report.papers import TABLES
from tests.conftest import CHECKOUT, DEMO, run_here

JOBS = CHECKOUT / "jobs"


@pytest.fixture(scope="module")
def resnet50():
    with torch.device("meta"):
        return gradients_of(build_model_for(read_job(JOBS / "imagenet-dat-fgsm.yaml"), 1000))


def megabytes(job, named):
    return crossing_of(job.exchange, named, 6, 6).traffic.total / 2**20


@pytest.mark.parametrize("method", ["dat-fgsm", "dat-pgd"])
@pytest.mark.parametrize("end", ["", "-16", "-8", "-8-two-sided"])
def test_the_rows_of_table_4_send_the_papers_megabytes(resnet50, method, end):
    job = read_job(JOBS / f"imagenet-{method}{end}.yaml")
    (key,) = (name.removeprefix("dat-4/") for name in job.reproduces if name.startswith("dat-4/"))
    stated = next(row.values["mb"] for row in TABLES["dat-4"].rows if row.key == key)
    assert megabytes(job, resnet50) == pytest.approx(stated, rel=0.002)


@pytest.mark.parametrize(
    "end, least",
    [("-ring", 10 * 97.49), ("-16-lanes", 5 * 97.49), ("-8-lanes", 2.5 * 97.49), ("-8-sharded", 2.5 * 97.49)],
)
def test_what_hpcdat_offers_for_the_same_bits_sends_ten_vectors_of_them(resnet50, end, least):
    """And the norms of blocks of 512, 1 to 2 %, and the exact float32 of biases and batch norm."""
    sent = megabytes(read_job(JOBS / f"imagenet-dat-fgsm{end}.yaml"), resnet50)
    assert least * 0.9999 < sent < 1.02 * least


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "allgather", "bits": 8, "norm": "l2", "block": "tensor", "exact_1d": False},
        {"protocol": "parameter_server", "bits": 4, "two_sided": True},
        {"protocol": "ring", "bits": 8, "lane_bits": 8},
    ],
    ids=lambda settings: settings["protocol"],
)
def test_training_counts_the_same_bytes(settings):
    named, settings = gradients_of(nn.Sequential(nn.Linear(300, 40), nn.Linear(40, 7))), Exchange(**settings)
    exchange = GradientExchange(SimulatedCommunicator(6), named, settings, 0)
    assert exchange.traffic() == crossing_of(settings, named, 2, 3).traffic


def test_one_node_sends_nothing_through_a_hierarchy():
    named = gradients_of(nn.Linear(300, 40))
    assert crossing_of(Exchange(protocol="hierarchical"), named, 1, 6) is None
    assert crossing_of(Exchange(), named, 1, 1) is None


def test_the_table_says_what_it_counts():
    job = JOBS / "imagenet-dat-fgsm-8.yaml"
    done = run_here("plan", job, "--nodes", "1,6", "--workers-per-node", "6", "--bytes")
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert ["1 x 6", "", "", "0"] in lines
    codes = "l2 norm of each tensor, 127 levels"
    assert ["6 x 6", "hierarchical (allgather), 8 bits", codes, "731.2"] in lines
    assert "25,557,032 numbers in 161 tensors (resnet50, 1,000 classes), 97.49 MiB in float32" in done.stdout


@pytest.mark.parametrize(
    "options, told",
    [
        (["--link", "1gbit"], "--link: not allowed with --bytes"),
        (["--images", "9"], "--images: not allowed with --bytes"),
        (["-np", "2"], "-np: not allowed with --bytes"),
        (["--set", "exchange.protocol=auto"], "exchange.protocol auto chooses by measuring links"),
        (["--set", "method=at"], "is centralised training"),
    ],
)
def test_what_does_not_go_with_bytes_is_refused(options, told):
    done = run_here("plan", DEMO, "--bytes", *options)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr


def test_a_lane_too_narrow_is_reported_before_anything_starts():
    with pytest.raises(InputError, match="4 bits cannot hold the sum of 36 workers' codes"):
        describe_bytes(read_job(DEMO, ["exchange.bits=8", "exchange.lane_bits=4"]), [6], 6)


def test_classes_are_counted_where_the_images_are(tmp_path):
    data = Data(root=tmp_path)
    assert count_classes(data) == DEFAULT_CLASSES["folder"] == 1000
    for name in ("ant", "bee", "cat"):
        (tmp_path / "train" / name).mkdir(parents=True)
    assert count_classes(data) == 3 and count_classes(Data(source="cifar100")) == 100


def test_a_network_that_cannot_be_built_without_memory_is_built_with_it():
    text = describe_bytes(read_job(DEMO, ["model.name=tests.own_networks:reads_values"]), [2], 1)
    assert "650 numbers in 2 tensors" in text
