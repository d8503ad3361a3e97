"""The forecast of a job, computed by hand, and its errors."""

import math
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from hpcdat.cli.plan import read_nodes
from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, Stopped
from hpcdat.models import build_model_for
from hpcdat.models.compiled import Compiled
from hpcdat.models.digits_cnn import DigitsCNN
from hpcdat.models.losses import Labelled
from hpcdat.performance.autotune import COLLECTIVE_KINDS
from hpcdat.performance.calibration import Calibration
from hpcdat.performance.cost_model import Link, Network
from hpcdat.performance.forecast import forecast, images_of_epoch, no_correction
from hpcdat.performance.samples import Sample
from hpcdat.performance.step_timing import StepTiming, time_share, timing_of
from hpcdat.performance.trial_step import MAX_CPU_IMAGES, TrialStep, trial_step
from hpcdat.training import step
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1
from tests.conftest import CHECKOUT, DEMO, Never, run_here

LATENCY, RATE = 0.001, 1e6
TIMING = StepTiming(0.02, 0.01, update=0.05, images=20, measured_on="paper", spread="a step takes 0.65 s")
CPU = torch.device("cpu")


def calibration(nodes):
    links = {kind: Link(points=[(0, LATENCY), (RATE, LATENCY + 1)]) for kind in COLLECTIVE_KINDS}
    return Calibration(network=Network(nodes=nodes, links=links), measured_on="paper")


def predict(settings, nodes, per_node=1, measured=6, images=1200, alone=TIMING):
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
        alone,
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


def test_speed_up_is_over_a_worker_that_has_a_node_to_itself():
    """It has more threads and cache than a worker that shares the node."""
    alone = StepTiming(0.01, 0.005, update=0.05, images=20, measured_on="paper", spread="")
    shared, known = predict([], 2, 2), predict([], 2, 2, alone=alone)
    assert known.total == shared.total
    assert known.speed_up * known.total == pytest.approx(60 * (20 * 0.015 + 0.05))


@pytest.fixture
def passes(monkeypatch):
    """Batches that have passed the network so far: images in each."""
    passed, forward = [], DigitsCNN.forward

    def counting(model, x):
        passed.append(len(x))
        return forward(model, x)

    monkeypatch.setattr(DigitsCNN, "forward", counting)
    return passed


def test_the_time_of_an_attack_is_in_proportion_to_its_steps(monkeypatch, passes):
    """By a clock that counts passes through the network."""
    monkeypatch.setattr("hpcdat.performance.trial_step.now", lambda device: float(len(passes)))
    forty = TrialStep(read_job(DEMO, ["attack.steps=40"]), 10, CPU, 4).sample()
    assert (forty.step, forty.attack, forty.gradient) == (41, 40, 1)
    plain = TrialStep(read_job(DEMO, ["method=plain"]), 10, CPU, 4).sample()
    assert (plain.step, plain.attack, plain.gradient) == (1, 0, 1)


def test_a_timing_is_the_median_of_its_samples():
    samples = [Sample(0.7, 0.4, 0.2), Sample(0.9, 0.5, 0.3), Sample(9.0, 0.3, 0.1)]
    timing = timing_of(samples, 20, "paper", slowdown=3)
    assert (timing.attack, timing.gradient) == pytest.approx((3 * 0.4 / 20, 3 * 0.2 / 20))
    assert timing.update == pytest.approx(3 * 0.1) and "median of 3 samples" in timing.spread


@pytest.mark.parametrize(
    "settings, seconds, images",
    [([], 0.01, 50), ([], 1.0, MAX_CPU_IMAGES), (["batch_size=5"], 1.0, 5)],
    ids=["short", "long", "small batch"],
)
def test_a_step_is_timed_with_the_jobs_batch_unless_that_takes_long(monkeypatch, settings, seconds, images):
    monkeypatch.setattr("hpcdat.performance.trial_step.seconds", lambda work, device: seconds)
    assert trial_step(read_job(DEMO, ["attack.steps=1", *settings]), 10, CPU).images == images


def test_a_step_leaves_the_weights_as_they_are():
    trial = TrialStep(read_job(DEMO, ["attack.steps=1"]), 10, CPU, 4)
    before = [p.clone() for p in trial.model.parameters()]
    trial.compute()
    assert all(map(torch.equal, before, trial.model.parameters()))


def test_one_worker_is_timed_while_the_others_of_its_node_compute(monkeypatch):
    computing = []

    class Recorded:
        def __init__(self, job, classes, images, share, poll):
            self.others = len(share.cores) - 1

        def __enter__(self):
            computing.append(self.others)
            return self

        def __exit__(self, *_):
            computing.append("ended")

        def check(self):
            computing.append("checked")

    module = "hpcdat.performance.step_timing"
    monkeypatch.setattr(f"{module}.OtherWorkers", Recorded)
    monkeypatch.setattr(f"{module}.take_until_agreed", lambda take, poll, own_cores: [take(), take()])
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    job = read_job(DEMO, ["attack.steps=1", "batch_size=4"])
    timing, device = time_share(job, 10, SingleProcess(), 3, Never())
    assert computing == [2, "checked", "checked", "ended"] and device == CPU
    assert "4 images a step, 3 workers at once, each with 1 thread" in timing.measured_on
    assert timing.attack > 0 and timing.gradient > 0 and timing.update > 0


def test_a_request_to_stop_ends_the_timing():
    class Requested:
        requested = True

    with pytest.raises(Stopped, match="stopped; rerun the same command to time a step"):
        time_share(read_job(DEMO, ["attack.steps=1", "batch_size=4"]), 10, SingleProcess(), 1, Requested())


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
def test_as_many_images_pass_the_network_as_in_training(passes, settings):
    job = read_job(DEMO, ["batch_size=6", "attack.steps=1", *settings])
    algorithm = Algorithm1(job, build_model_for(job, 10), job.exchange, SingleProcess(), torch.device("cpu"))
    images = Labelled(torch.rand(6, 1, 8, 8), torch.arange(6))
    batch = Batch(0, 0, 6, {0: images})
    algorithm.adversary.begin_epoch([batch] * job.delay)
    passes.clear()
    algorithm.step(batch, batch if job.delay else None)
    trained = list(passes)
    trial = TrialStep(job, 10, CPU, 6)
    passes.clear()
    trial.compute()
    assert sorted(passes) == sorted(trained)


def test_what_is_trained_by_compiled_code_is_timed_so(monkeypatch):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(step, "Compiled", partial(Compiled, backend=counter))
    job = read_job(DEMO, ["attack.steps=1", "model.compiled=true"])
    TrialStep(job, 10, CPU, 16).compute()
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
    with pytest.raises(InputError, match=r"cluster\.json is not a calibration file"):
        Calibration.read(file)
    with pytest.raises(InputError, match=r"cannot be written"):
        calibration(3).write(tmp_path / "no" / "such" / "folder.json")


HELD_OUT = ["early_stopping.best_weights=true", "evaluation.every=1", "early_stopping.held_out=100"]


def test_images_that_are_held_out_are_not_trained_on():
    job = read_job(DEMO, HELD_OUT)
    images, classes = images_of_epoch(job, None)
    assert (images, classes) == images_of_epoch(job, images + 100) == (1300, 10)


def test_a_job_that_takes_a_part_of_the_images_takes_it_of_the_given_number():
    job = read_job(DEMO, [*HELD_OUT, "data.train_images=700"])
    assert images_of_epoch(job, None) == images_of_epoch(job, 5000) == (600, 10)
    with pytest.raises(InputError, match=r"--images 500: data\.train_images takes 700 of them"):
        images_of_epoch(job, 500)
    with pytest.raises(InputError, match="held_out: 100 leaves none of the 90 training images"):
        images_of_epoch(read_job(DEMO, HELD_OUT), 90)


def test_classes_are_those_of_the_folder_if_it_is_here(tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / "train" / name).mkdir(parents=True)
    folder = read_job(DEMO, ["data.source=folder", f"data.root={tmp_path}"])
    assert images_of_epoch(folder, 5000) == (5000, 3)


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
        ([], "--nodes 1,2,6: the links between 6 workers are unknown"),
        (["--nodes", "1", "--workers-per-node", "2"], "the links between 2 workers are unknown"),
        (["--link", "fast"], "--link 'fast': expected a value like 1gbit"),
        (["--link", "1gbit", "--calibration", "x"], "--calibration: not allowed with --link"),
        (["--calibration", "nowhere.json"], "nowhere.json is not a calibration file"),
        (["--link", "1gbit", "--nodes", "x"], "expected numbers of nodes"),
        (["--link", "1gbit", "--set", "data.source=folder", "data.root=/nowhere"], "--images N gives"),
    ],
)
def test_a_plan_without_what_it_needs_is_refused(options, message):
    done = run_here("plan", DEMO, *options)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_unknown_links_are_reported_without_importing_torch():
    """Whose import takes seconds."""
    code = "import sys; sys.modules['torch'] = None; from hpcdat.cli import main; main()"
    command = [sys.executable, "-c", code, "plan", DEMO, "--nodes", "6"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "assume some by --link RATE" in done.stderr and done.stderr.endswith("--nodes 1 needs no links\n")


@pytest.fixture
def timed(monkeypatch):
    """Attacks of one worker a node take half the time. The workers per node that were timed."""
    asked = []

    def fixed(job, classes, workers, per_node, stop):
        asked.append(per_node)
        share = 1 if per_node > 1 else 0.5
        return replace(TIMING, attack=share * TIMING.attack, spread=f"{per_node} at once"), CPU

    monkeypatch.setattr("hpcdat.performance.forecast.time_share", fixed)
    return asked


def test_a_plan_says_what_it_is_made_from(timed):
    done = run_here("plan", DEMO, "--nodes", "1,2000", "--link", "10gbit", "--images", "100000")
    assert done.returncode == 0, done.stderr
    assert "| 2000 x 1 | 1 " in done.stdout and timed == [1]
    assert "Computation: measured on paper; per image 10 ms for the attack and 10 ms" in done.stdout
    assert "Timing: 1 at once." in done.stdout
    assert "Links: not measured; assuming 10 Gbit/s and 0.2 ms a message." in done.stdout


def test_several_workers_a_node_are_timed_with_their_share_of_it(timed):
    options = ["--nodes", "1", "--workers-per-node", "2", "--link", "10gbit", "batch_size=20"]
    done = run_here("plan", DEMO, *options)
    assert done.returncode == 0 and timed == [1, 2], done.stderr
    assert "Timing: 2 at once." in done.stdout
    (row,) = (line.split("|") for line in done.stdout.splitlines() if line.startswith("| 1 x 2"))
    steps, total, speed_up = int(row[2]), float(row[7]), float(row[8])
    assert steps == 35 and total > 35 * (20 * 0.03 + 0.05)
    assert speed_up == pytest.approx(70 * (20 * 0.02 + 0.05) / total, abs=0.01)


def test_one_node_with_one_worker_needs_no_links(timed):
    done = run_here("plan", DEMO, "--nodes", "1")
    assert done.returncode == 0 and "Links: none needed." in done.stdout
