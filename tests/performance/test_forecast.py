"""The forecast of a job, computed by hand, and its errors."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.models import build_model_for
from hpcdat.models.compiled import Compiled
from hpcdat.models.digits_cnn import DigitsCNN
from hpcdat.models.losses import Labelled
from hpcdat.performance.autotune import COLLECTIVE_KINDS
from hpcdat.performance.calibration import Calibration
from hpcdat.performance.cost_model import Link, Network
from hpcdat.performance.forecast import forecast, no_correction, read_nodes
from hpcdat.performance.step_timing import StepTiming, time_step
from hpcdat.training import step
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1
from tests.conftest import DEMO, run_here

LATENCY, RATE = 0.001, 1e6
TIMING = StepTiming(attack=0.02, gradient=0.01, update=0.05, measured_on="paper")


def calibration(nodes):
    links = {kind: Link(points=[(0, LATENCY), (RATE, LATENCY + 1)]) for kind in COLLECTIVE_KINDS}
    return Calibration(network=Network(nodes=nodes, links=links), measured_on="paper")


def predict(settings, nodes, per_node=1, measured=6, images=1200):
    job = read_job(DEMO, ["batch_size=20", *settings])
    model = nn.Linear(1000, 250)
    rate = 1e-6
    return forecast(
        job,
        images,
        model,
        TIMING,
        calibration(measured),
        nodes,
        per_node,
        lambda exchange, senders: rate,
        no_correction,
    )


def test_float32_in_a_ring_takes_its_bytes_and_its_messages():
    known = predict(["exchange.overlap=false"], 6)
    # 250,250 numbers: 2 * 5/6 of them through every card, in one all-reduce.
    # As long as four that are agreed upon together.
    seconds = 4 * LATENCY + 2 * 5 / 6 * 4 * 250250 / RATE
    assert known.steps == 10 and known.seconds == pytest.approx(seconds)
    assert known.communication == pytest.approx(10 * seconds)
    assert known.traffic.total == pytest.approx(2 * 5 * 4 * 250250)
    step = 20 * 0.03 + 0.05
    assert known.total == pytest.approx(10 * (step + seconds))
    assert known.speed_up == pytest.approx(60 * step / known.total)
    # Half of that is hidden where the backward pass is long enough, but never the last bucket.
    hidden = predict([], 6)
    assert hidden.total == pytest.approx(10 * (step + seconds)), "a single bucket"
    many = predict(["exchange.bucket_mb=0.001"], 6)
    assert many.total < 10 * (step + many.seconds) - 10 * 0.9 * 2 / 3 * 20 * 0.01


def test_codes_are_computed_while_the_network_transfers():
    known = predict(["exchange.bits=8", "exchange.protocol=sharded_server", "exchange.two_sided=true"], 6)
    norms = math.ceil(250000 / 6 / 512)
    row = norms * (4 + 512)
    wire = 5 * row / RATE * 2
    exact = 2 * 5 / 6 * 4 * 250 / RATE
    # Two buckets, one of codes and one of biases, agreed upon together: of the shorter sum one half is
    # not hidden.
    assert known.seconds == pytest.approx(wire + exact + 3 * LATENCY * 4 / 2 + 0.25 / 2, rel=1e-3)


def test_through_nodes_only_one_of_their_workers_crosses_the_network():
    flat, nodes = (
        predict(["exchange.protocol=hierarchical", *more], 3, 4) for more in ([], ["exchange.across=ring"])
    )
    assert flat.seconds == nodes.seconds == pytest.approx(predict([], 3).seconds)
    assert nodes.steps == 5


def test_one_worker_exchanges_nothing():
    known = predict([], 1, images=1190)
    assert (known.communication, known.traffic.total) == (0, 0) and known.speed_up == pytest.approx(1)


def test_steps_are_those_of_training():
    """1,190 images on six workers of 20: nine global batches, and 110 images that are left."""
    dropped, short = (predict([f"data.last_batch={how}"], 6, images=1190) for how in ("drop", "short"))
    assert (dropped.steps, short.steps) == (9, 10)
    # Speed-up: over one worker with the same images, 54 batches or 60.
    assert dropped.total == pytest.approx(9 / 10 * predict([], 6).total)
    assert dropped.speed_up * dropped.total == pytest.approx(54 * (20 * 0.03 + 0.05))
    assert short.speed_up * short.total == pytest.approx(1190 * 0.03 + 60 * 0.05)
    with pytest.raises(InputError, match="an epoch has 119 images and a global batch 6 x 20 = 120"):
        predict([], 6, images=119)


def test_auto_is_chosen_for_the_links():
    slow = predict(["exchange.protocol=auto"], 6).exchange
    assert slow.protocol != "auto" and slow.bits == 8


def test_the_time_of_an_attack_is_in_proportion_to_its_steps():
    job = read_job(DEMO, ["attack.steps=40"])
    _, forty, _ = time_step(job, 10, torch.device("cpu"))
    assert forty.attack > 5 * forty.gradient > 0
    _, plain, _ = time_step(read_job(DEMO, ["method=plain"]), 10, torch.device("cpu"))
    assert plain.attack == 0 < plain.gradient


@pytest.mark.parametrize(
    "settings",
    [
        ["method=plain"],
        ["method=dat-fgsm"],
        ["objective.regulariser=trades"],
        ["smoothing.sigma=0.1", "smoothing.copies=4"],
        ["method=conadv"],
    ],
    ids=lambda settings: settings[0],
)
def test_as_many_images_pass_the_network_as_in_training(monkeypatch, settings):
    passed, forward = [], DigitsCNN.forward

    def counting(model, x):
        passed.append(len(x))
        return forward(model, x)

    monkeypatch.setattr(DigitsCNN, "forward", counting)
    job = read_job(DEMO, ["batch_size=6", "attack.steps=1", *settings])
    algorithm = Algorithm1(job, build_model_for(job, 10), job.exchange, SingleProcess(), torch.device("cpu"))
    images = Labelled(torch.rand(6, 1, 8, 8), torch.arange(6))
    batch = Batch(0, 0, 6, {0: images})
    algorithm.adversary.begin_epoch([batch] * job.delay)
    passed.clear()
    algorithm.step(batch, batch if job.delay else None)
    trained = list(passed)
    _, _, compute = time_step(job, 10, torch.device("cpu"))
    passed.clear()
    compute()
    assert sorted(passed) == sorted(trained)


def test_what_is_trained_by_compiled_code_is_timed_so(monkeypatch):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(step, "Compiled", partial(Compiled, backend=counter))
    job = read_job(DEMO, ["attack.steps=1", "model.compiled=true"])
    time_step(job, 10, torch.device("cpu"))
    # The attack, which needs no gradients of the weights, and the local gradient.
    assert counter.frame_count == 2


def test_a_single_worker_takes_the_noisy_copies_of_all_that_share_them():
    """Two workers share the four copies of an image: a single one takes twice as long for it."""
    known = predict(["smoothing.sigma=0.1", "smoothing.copies=4", "smoothing.workers=2"], 4)
    assert known.steps == 30
    one_worker = 1200 * 2 * (TIMING.attack + TIMING.gradient) + 60 * TIMING.update
    assert known.speed_up == pytest.approx(one_worker / known.total)


def test_a_calibration_is_saved_and_a_damaged_one_reported(tmp_path):
    file = tmp_path / "cluster.json"
    calibration(3).write(file)
    assert Calibration.read(file) == calibration(3)
    file.write_text('{"network": 1}')
    with pytest.raises(InputError, match=r"cluster\.json is no calibration"):
        Calibration.read(file)
    with pytest.raises(InputError, match=r"cannot be written"):
        calibration(3).write(tmp_path / "no" / "such" / "folder.json")


@pytest.mark.parametrize("text", ["0", "-1", "2,", "six", "", "1.5"])
def test_what_is_no_number_of_nodes_is_refused(text):
    with pytest.raises(InputError, match="expected numbers of nodes"):
        read_nodes(text)


def test_a_long_text_is_shortened_in_the_message():
    with pytest.raises(InputError, match=r"--nodes n{77}\.\.\.: expected"):
        read_nodes("n" * 500)


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "the links are unknown"),
        (["--link", "fast"], "expected a value like 1gbit"),
        (["--link", "1gbit", "--calibration", "x"], "--calibration: not allowed with --link"),
        (["--calibration", "nowhere.json"], "nowhere.json is no calibration"),
        (["--link", "1gbit", "--nodes", "x"], "expected numbers of nodes"),
        (["--link", "1gbit", "--set", "data.source=folder", "data.root=/nowhere"], "--images N gives"),
    ],
)
def test_a_plan_without_what_it_needs_is_refused(options, message):
    done = run_here("plan", DEMO, *options)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_plan_says_what_it_is_made_from():
    done = run_here("plan", DEMO, "--nodes", "1,2000", "--link", "10gbit", "--images", "100000")
    assert done.returncode == 0, done.stderr
    assert "| 2000 x 1 | 1 " in done.stdout
    assert "Links: not measured; assuming 10 Gbit/s and 0.2 ms a message." in done.stdout
