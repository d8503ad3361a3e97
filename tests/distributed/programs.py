"""What the ranks of the distributed tests do; each program returns a JSON value."""

import copy
import hashlib
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyautoattack
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import hpcdat.certify
import hpcdat.models
from hpcdat import run
from hpcdat.attacks import inner_maximisation
from hpcdat.cluster.agreement import BatchNormStatistics, check_equal, make_equal, named_state
from hpcdat.cluster.apart import apart
from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import start_workers
from hpcdat.data import find_images, open_loader
from hpcdat.data.batches import training_shares
from hpcdat.errors import HpcdatError, InputError, Stopped
from hpcdat.evaluation.accuracy import Evaluator
from hpcdat.evaluation.certification import SmoothedClassifier
from hpcdat.evaluation.findings import examine
from hpcdat.evaluation.outcomes import Shelf
from hpcdat.evaluation.sharding import Subject
from hpcdat.evaluation.wanted import Wanted
from hpcdat.exchange.choice import settle
from hpcdat.exchange.compression import QuantizedSum
from hpcdat.exchange.plan import make_plan
from hpcdat.exchange.protocols import Draw, Memory
from hpcdat.job import Exchange
from hpcdat.job_file import read_job
from hpcdat.judge import Judge
from hpcdat.models.split_batch_norm import routed
from hpcdat.objectives import clean_loss
from hpcdat.optim import build_optimizer
from hpcdat.progress import Progress
from hpcdat.record import RunFolder
from hpcdat.run import train
from hpcdat.seeds import derive
from hpcdat.trainer import Trainer, build_model_for
from tests.conftest import DEMO


def collectives(workers):
    """Every collective, with values that tell the ranks apart."""
    rank = workers.rank
    tensors = [torch.full((3,), float(rank + 1)), torch.tensor([rank], dtype=torch.int64)]
    workers.sum([tensors[0]], "floats")
    workers.sum([tensors[1]], "integers")
    rows = torch.arange(2 * workers.size).view(workers.size, 2) + 100 * rank
    team = workers.divided([r % 2 for r in range(workers.size)])
    own = torch.tensor([rank, rank])
    received = torch.full((2,), float(rank))
    workers.broadcast([received], "from worker 0")

    def fail():
        if rank == workers.size - 1:
            raise OSError("no space left")
        if rank == 0:
            raise InputError("bad folder")

    try:
        workers.together("write", fail)
        failure = None
    except HpcdatError as error:
        failure = [type(error).__name__, str(error), error.everywhere]
    return {
        "rank": rank,
        "size": workers.size,
        "local": [workers.local_rank, workers.local_size, workers.nodes],
        "transport": workers.transport,
        "sums": [tensors[0].tolist(), tensors[1].tolist()],
        "alltoall": workers.start_alltoall(rows, "rows").wait().tolist(),
        "allgather": workers.start_allgather(own, "row").wait().tolist(),
        "gather": workers.start_gather(own, "row to worker 0").wait().tolist(),
        "team": [
            team.rank,
            team.size,
            team.start_sum([own.clone()], "sum").wait()[0].tolist(),
            team.start_broadcast(own.clone(), "first").wait().tolist(),
            team.start_max(own, "largest").wait().tolist(),
        ],
        "max": workers.max(torch.tensor([rank, -rank]), "max").tolist(),
        "broadcast": received.tolist(),
        "gathered": workers.gather({"rank": rank, "é": None}, "gather"),
        "failure": failure,
    }


def agreement(workers):
    """Models that differ are made equal, told apart, and their batch norm averaged."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(3, 3))
    with torch.no_grad():
        for tensor in named_state(model).values():
            tensor.add_(workers.rank)
    make_equal(workers, model)
    check_equal(workers, model)
    if workers.rank == workers.size - 1:
        with torch.no_grad():
            # The smallest change there is.
            model[2].bias[1] = torch.nextafter(model[2].bias[1], torch.tensor(9.0))
    try:
        check_equal(workers, model)
        found = None
    except HpcdatError as error:
        found = str(error)
    model[1].running_mean.fill_(float(workers.rank))
    model[1].running_var.fill_(float(2 + workers.rank))
    model[1].num_batches_tracked.fill_(10 + workers.rank)
    everybody = list(range(workers.size))
    batch_norm = BatchNormStatistics(model, workers, {"clean": everybody, "adversarial": []})
    gathered = batch_norm.gather()
    local = batch_norm.local()
    batch_norm.average()
    norm = model[1]
    averaged = [norm.running_mean.tolist(), norm.running_var.tolist(), norm.num_batches_tracked.item()]
    batch_norm.scatter(gathered)
    scattered = batch_norm.local()
    batch_norm.average()
    batch_norm.restore(local)
    return {
        "found": found,
        "own": all(torch.equal(a, b) for a, b in zip(*local, *scattered, strict=True))
        and all(torch.equal(a, b) for a, b in zip(*local, *batch_norm.local(), strict=True))
        and norm.running_mean[0].item() == workers.rank,
        "statistics": averaged,
    }


EXCHANGES = [
    {"protocol": protocol, "bits": bits, **more}
    for protocol, choices in {
        "ring": [{}, {"lane_bits": 8}, {"block": "bucket"}],
        "allgather": [{}],
        "parameter_server": [{}, {"two_sided": True}, {"sum_format": "bfloat16"}],
        "sharded_server": [{}, {"two_sided": True}, {"sum_format": "bfloat16"}],
    }.items()
    for more in choices
    for bits in (1, 3, 4, 8, 16)
    if "lane_bits" not in more or bits >= 4
] + [
    {"protocol": protocol, "bits": bits}
    for protocol in ("ring", "allgather", "parameter_server", "sharded_server")
    for bits in (32, "float16")
]
COUNT = 4 * 64 + 13
"""Coordinates: some blocks of 64 and a rest that fills none."""


def vector_of(rank, step):
    """A worker's vector: wild in scale, with a block of zeros and one where all is at its largest."""
    generator = np.random.default_rng([rank, step])
    x = (generator.standard_normal(COUNT) * 10.0 ** generator.integers(-3, 3, COUNT)).astype(np.float32)
    x[:64] = 0
    x[64:128] = np.float32(0.7)
    return x


def exchanges(workers):
    """Two steps of every protocol: the sums this rank got, as hexadecimal bytes."""
    answers = []
    for number, settings in enumerate(EXCHANGES):
        coded = settings["bits"] not in (32, "float16")
        memory = Memory() if coded else None
        plan = make_plan(Exchange(**{"block": 64, "error_feedback": coded} | settings), workers)
        for step in range(2):
            draw = Draw(5, 1, step, number, torch.device("cpu"))
            x = torch.from_numpy(vector_of(workers.rank, step))
            total = run_now(plan.protocol(workers, x, draw, f"exchange {number}", memory))
            if memory:
                memory.settle(counts=True)
            answers.append(total.numpy().tobytes().hex())
    return answers


def run_now(exchanging):
    """Carry an exchange through by itself."""
    result = None
    while True:
        try:
            pending = exchanging.send(result)
        except StopIteration as end:
            return end.value
        result = pending.wait()


def nodes_of_two(workers):
    """Hierarchical exchange over nodes of two workers each, of whole numbers that any order adds exactly."""
    workers.node_of = [rank // 2 for rank in range(workers.size)]
    sums = {}
    for across in ("ring", "allgather", "parameter_server", "sharded_server"):
        for bits in (32, 8):
            plan = make_plan(Exchange(protocol="hierarchical", across=across, bits=bits, block=64), workers)
            x = torch.arange(100.0) * (workers.rank + 1)
            draw = Draw(0, 0, 0, 0, torch.device("cpu"))
            sums[f"{across} {bits}"] = run_now(plan.protocol(workers, x, draw, across, None)).tolist()
    return sums


def teams_that_end_apart(workers):
    """The second team is still at its last sum when the first has nothing left to do."""
    team = workers.divided([rank // 2 for rank in range(workers.size)])
    time.sleep(workers.rank // 2)
    total = torch.ones(3)
    team.sum([total], "the last sum")
    return total.tolist()


def bytes_on_the_wire(workers):
    """What was predicted, and what the network cards of all nodes have sent, by protocol."""
    count, answers = 3_000_000, {}
    x = torch.randn(count, generator=torch.Generator().manual_seed(workers.rank))
    for name, settings in {
        "ring": Exchange(),
        "ring of lanes": Exchange(bits=8),
        "allgather": Exchange(protocol="allgather", bits=8),
        "parameter_server": Exchange(protocol="parameter_server", bits=8, two_sided=True),
        "sharded_server": Exchange(protocol="sharded_server", bits=8, two_sided=True),
        "sharded_server in bfloat16": Exchange(protocol="sharded_server", bits=4, sum_format="bfloat16"),
    }.items():
        plan = make_plan(settings, workers)
        workers.gather(None, "ready")
        before = sent_bytes()
        run_now(plan.protocol(workers, x, Draw(0, 0, 0, 0, torch.device("cpu")), name, None))
        workers.gather(None, "done")
        time.sleep(0.1)
        sent = sum(workers.gather(sent_bytes() - before, "sent"))
        answers[name] = [plan.traffic(count).total, sent]
    return answers


def settled_exchange(workers, record):
    """Protocol auto settled twice, and a third time by a record of other workers."""
    record, model = Path(record), nn.Linear(300, 300)
    progress, said = Progress(shown=workers.is_first), []
    progress.say = said.append
    settings = Exchange(protocol="auto", two_sided=True)
    first = settle(settings, workers, model, record, progress)
    written = record.read_text()
    again = settle(settings, workers, model, record, progress)
    assert first == again and record.read_text() == written
    workers.gather(None, "compared")
    if workers.is_first:
        kept = json.loads(written)
        kept["chosen"]["exchange"]["bits"] = 5
        record.write_text(json.dumps(kept))
    altered = settle(settings, workers, model, record, progress)
    workers.gather(None, "read")
    if workers.is_first:
        record.write_text(json.dumps(kept | {"workers": 17}))
    other = settle(settings, workers, model, record, progress)
    return [first.model_dump(), altered.bits, other.bits, len(json.loads(written)["network"]["links"]), said]


def sent_bytes():
    """By the node's network cards, as the kernel counts."""
    lines = [
        line.replace(":", " ").split() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]
    ]
    return sum(int(fields[9]) for fields in lines if fields[0] != "lo")


def one_gradient_is_not_a_number(workers, root, run_dir, *settings):
    """The last worker's gradient has a NaN in the second step of the first epoch, and only there."""
    gradient = Trainer.local_gradient

    def spoilt(trainer, *batch):
        cost = gradient(trainer, *batch)
        first = trainer.state.epoch == 0 and trainer.state.step == 1
        if first and trainer.workers.rank == trainer.workers.size - 1:
            trainer.model[1].classifier.weight.grad[0, 0] = float("nan")
        return cost

    Trainer.local_gradient = spoilt
    # Exchanged once the backward pass is over, when the gradient has been spoilt.
    always = ["epochs=1", "attack.steps=1", "evaluation.steps=1", "exchange.overlap=false"]
    job = read_job(DEMO, [f"data.root={root}", f"run_dir={run_dir}", *always, *settings])
    train(job, workers, StopRequest())
    folder = RunFolder(job.run_dir)
    weights = torch.cat([p.flatten().float() for p in folder.newest_checkpoint().model.values()])
    return [folder.metrics("epoch")[0]["skipped_steps"], bool(weights.isfinite().all())]


def drop_in(workers, op):
    """A plain Horovod script with the quantizer as its compression: loss before, loss after, weights."""
    import horovod.torch as hvd

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
    generator = torch.Generator().manual_seed(workers.rank)
    x = torch.randn(256, 20, generator=generator)
    y = x[:, :3].sum(1, keepdim=True)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.05),
        named_parameters=model.named_parameters(),
        op=getattr(hvd, op),
        compression=QuantizedSum(bits=8),
    )
    losses = []
    try:
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    except InputError as error:
        return str(error)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return [losses[0], losses[-1], weights.tolist()]


def without_batch_norm(channels, num_classes):
    """A net on which the samples of a batch do not see each other."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, num_classes)
    )


def train_small(workers, global_batch, root, run_dir, *settings):
    """Train the demo's job with a net without batch norm, in float64; its weights and costs."""
    torch.set_default_dtype(torch.float64)
    hpcdat.models.MODELS["digits-cnn"] = without_batch_norm
    batch = int(global_batch) // workers.size
    job = read_job(DEMO, [f"batch_size={batch}", f"data.root={root}", f"run_dir={run_dir}", *settings])
    train(job, workers, StopRequest())
    folder = RunFolder(job.run_dir)
    model = folder.newest_checkpoint().model
    return {
        "weights": torch.cat([p.flatten() for p in model.values()]).tolist(),
        "costs": [line["cost"] for line in folder.metrics("epoch")],
    }


def evaluate(workers, root, *settings):
    """Counts of an evaluation of a hastily trained net, random start and all."""
    job = read_job(DEMO, [f"data.root={root}", "attack.eps=0.1", *settings])
    train_images, test_images = find_images(job.data)
    model = fit(build_model_for(job, len(train_images.classes)), train_images, job)
    loader = open_loader(
        test_images,
        job.data,
        training=False,
        batch_size=job.evaluation.batch_size,
        device=torch.device("cpu"),
    )
    progress = Progress(shown=False)
    evaluator = Evaluator(
        loader,
        len(test_images),
        job.evaluation,
        job,
        workers,
        progress,
        StopRequest(),
    )
    accuracy = evaluator.measure(model)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    return [accuracy.images, accuracy.correct, accuracy.robust, digest]


def certify(workers, run_dir, last_image, *settings):
    """Certify a run; fingerprints of what it leaves. The worker that comes to the last image is killed."""
    sample = SmoothedClassifier.certify

    def sample_or_die(smoothed, x, *, image, **samples):
        if image == int(last_image):
            os.kill(os.getpid(), signal.SIGKILL)
        return sample(smoothed, x, image=image, **samples)

    SmoothedClassifier.certify = sample_or_die
    hpcdat.certify.certify(Path(run_dir), list(settings), workers, StopRequest())
    workers.gather(None, "written")
    return certificates(Path(run_dir))


def certify_slowly(workers, run_dir, *settings):
    """The same, but for the last image one worker takes longer than the other may wait without a word."""
    sample = SmoothedClassifier.certify

    def sample_slowly(smoothed, x, *, image, **samples):
        begin, last = time.monotonic(), smoothed.sigma == 0.12 and image in (360, 390)
        workers._watchdog.seconds = 3 if last else 60
        while last and image == 390 and time.monotonic() - begin < 5:
            smoothed.base(x[None])
        return sample(smoothed, x, image=image, **samples)

    SmoothedClassifier.certify = sample_slowly
    return certify(workers, run_dir, -1, *settings)


def certificates(run_dir):
    """A hash of every file of a certification but the plot, by name."""
    files = sorted(RunFolder(run_dir).certification_folder.glob("[!.]*"))
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest()[:16] for f in files if f.suffix != ".svg"}


def examine_all(workers, root, folder, kill_after, *settings):
    """TA, RA, sweeps and a shortened AutoAttack of a hastily trained net; killed after so many batches."""

    class Quick(pyautoattack.AutoAttack):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 5
            self.square.n_queries = 50

    pyautoattack.AutoAttack, real = Quick, pyautoattack.AutoAttack
    write, written = Shelf.write, []

    def write_and_die(shelf, number, outcomes):
        write(shelf, number, outcomes)
        written.append(f"{shelf.folder.name}/{number}")
        if len(written) == int(kill_after):
            os.kill(os.getpid(), signal.SIGKILL)

    Shelf.write = write_and_die
    few = ["attack.eps=0.1", "data.test_images=100", "evaluation.batch_size=7"]
    job = read_job(DEMO, [f"data.root={root}", *few, *settings])
    train_images, test_images = find_images(job.data)
    model = fit(build_model_for(job, len(train_images.classes)), train_images, job).eval()
    wanted = Wanted(autoattack=30, radii=(0.0, 0.05, 0.2), steps=(1, 5))
    subject = Subject(model, job, Path(folder))
    found = examine(subject, wanted, test_images, workers, Progress(shown=False), StopRequest())
    pyautoattack.AutoAttack, Shelf.write = real, write
    return {"sections": found.sections, "written": written}


def unequal_shares(workers):
    """Worker 1 has much to do; how long it took the others too, and how it ended, four times."""
    workers._watchdog.seconds = 2
    endings = {ending: _share(workers, ending) for ending in ("end", "failure", "stop")}
    return endings | {"evaluation": _evaluation_stopped_by_one(workers)}


class _SlowForOne:
    """A loader that worker 1 waits three seconds for, and then wants to stop; it has ten batches."""

    def __init__(self, workers, stop):
        self.workers, self.stop = workers, stop

    def read(self, batches, seed):
        for number in range(len(batches)):
            if number and self.workers.rank == 1:
                time.sleep(1 / 3)
                self.stop.wanted = number == 9
            yield torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)


def _evaluation_stopped_by_one(workers):
    stop, job, model = StopRequest(), read_job(DEMO), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    loader = _SlowForOne(workers, stop)
    try:
        Evaluator(loader, 3000, job.evaluation, job, workers, Progress(shown=False), stop).measure(model)
    except HpcdatError as error:
        return [type(error).__name__, str(error), error.everywhere]


def _share(workers, ending):
    stop, begin = StopRequest(), time.monotonic()

    def work(look):
        while workers.rank >= 1 and time.monotonic() - begin < (5 if workers.rank == 1 else 1):
            stop.wanted = ending == "stop" and time.monotonic() - begin > 0.5
            if ending == "failure" and workers.rank == 1 and time.monotonic() - begin > 0.5:
                raise OSError("no space left")
            look()
            time.sleep(0.01)
        return workers.rank

    try:
        told = apart(workers, "work", work, stop)
    except HpcdatError as error:
        told = [type(error).__name__, str(error), error.everywhere]
    return [told, time.monotonic() - begin]


def collapse(workers, root, run_dir, *settings):
    """Train a job whose classifier is wiped out at the end of the fourth epoch and of all later ones."""
    look_at = Judge.has_overfitted

    def wipe_and_look(judge):
        if judge.state.epoch >= 4:
            torch.nn.init.zeros_(judge.state.model[1].classifier.weight)
        return look_at(judge)

    Judge.has_overfitted = wipe_and_look
    job = read_job(DEMO, [f"data.root={root}", f"run_dir={run_dir}", "epochs=9", *settings])
    result = train(job, workers, StopRequest())
    folder = RunFolder(job.run_dir)
    checkpoint = folder.checkpoint_of_result(job)
    return {
        "epoch": result.epoch,
        "ra": result.ra,
        "trained": [line["epoch"] for line in folder.metrics("epoch")],
        "judged": [line["ra"] for line in folder.metrics("evaluation")],
        "overfitting": [line["epoch"] for line in folder.metrics("overfitting")],
        "kept": [checkpoint.epoch, bool(checkpoint.model["1.classifier.weight"].any())],
    }


def train_virtually(workers, virtual, root, run_dir, *settings):
    """Train the demo's net, batch norm and random starts and all, in float64; its weights and statistics."""
    torch.set_default_dtype(torch.float64)
    always = [f"virtual_workers={virtual}", f"data.root={root}", f"run_dir={run_dir}", "batch_size=75"]
    always += ["epochs=2", "attack.steps=2", "evaluation.steps=1", "evaluation.every=0"]
    job = read_job(DEMO, [*always, *settings])
    result = train(job, workers, StopRequest())
    state = RunFolder(job.run_dir).newest_checkpoint().model
    return {"state": torch.cat([t.flatten().double() for t in state.values()]).tolist(), "ta": result.ta}


def train_concurrently(workers, root, folder, delays, *settings):
    """Train with each delay, undisturbed and stopped once; fingerprints by name, of both by delay."""
    return {
        delay: [
            trained_concurrently(
                workers, root, f"{folder}/{delay}-{stop_after}", stop_after, delay, *settings
            )
            for stop_after in (0, STOPPED_AFTER[delay])
        ]
        for delay in delays.split(",")
    }


STOPPED_AFTER = {"0": 3, "1": 7, "2": 2}
"""By delay, the step in the midst of the first (1 to 5) or second epoch (6 to 10)."""


def trained_concurrently(workers, root, run_dir, stop_after, delay, *settings):
    """Stopped after so many steps (0: never) and gone on with."""
    fixed = [f"data.root={root}", f"run_dir={run_dir}", *CONCURRENTLY, *settings]
    job = read_job(DEMO, fixed if "method=disadv" in fixed else [*fixed, f"concurrent.delay={delay}"])
    if stop_after:
        stop, step = StopRequest(), Trainer.step

        def step_and_stop(trainer, *batches):
            stop.wanted = trainer.state.epoch * 5 + trainer.state.step + 1 == stop_after
            return step(trainer, *batches)

        Trainer.step = step_and_stop
        try:
            train(job, workers, stop)
            raise AssertionError("it was to be stopped")
        except Stopped:
            stop.wanted = False
            Trainer.step = step
    train(job, workers, StopRequest())
    return fingerprints(RunFolder(job.run_dir).newest_checkpoint().model)


CONCURRENTLY = [
    *("method=conadv", "epochs=2", "batch_size=30", "data.train_images=130", "data.test_images=20"),
    *("optimizer.lr=8", "optimizer.momentum=0.5", "evaluation.every=0", "evaluation.steps=1"),
    *("schedule.decay_epochs=[1]", "attack.eps=0.1", "attack.steps=1"),
]
"""Five steps an epoch with one batch of 30 in each, the last of 10 images; three with two."""


def simulate_concurrently(workers, root, batches, delay, *settings):
    """The same in one process, plainly: old weights are stored, and all batches computed one by one."""
    batches, delay = int(batches), int(delay)
    job = read_job(DEMO, [f"data.root={root}", *CONCURRENTLY, *settings])
    images, _ = find_images(job.data)
    model = build_model_for(job, 10)
    optimizer = build_optimizer(model, job.optimizer)
    loader = open_loader(images, job.data, training=True, batch_size=30, device=torch.device("cpu"))
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    # Each update worker has running statistics of its own, which are averaged after every epoch.
    statistics = [[t.clone() for layer in layers for t in layer.buffers()] for _ in range(batches)]
    for epoch in range(job.epochs):
        shares = [
            training_shares(130, 30, rank=n, groups=[0] * batches, seed=job.seed, epoch=epoch)
            for n in range(batches)
        ]
        weights = []
        for step in range(len(shares[0])):
            weights.append([p.detach().clone() for p in model.parameters()])
            model.train()
            gradients = []
            for number in range(batches):
                share = shares[number][step]
                if not len(share.indices):
                    continue
                (x, y), *_ = list(loader.read([share.indices], derive(job.seed, "augmentation", epoch)))
                for layer, kept in zip(
                    (t for m in layers for t in m.buffers()), statistics[number], strict=True
                ):
                    layer.copy_(kept)
                old = copy.deepcopy(model)
                for p, earlier in zip(old.parameters(), weights[max(0, step - delay)], strict=True):
                    p.data.copy_(earlier)
                seed = derive(job.seed, "attack", epoch, step, number)
                x_adv = inner_maximisation(
                    old,
                    partial(clean_loss, y=y),
                    x,
                    **{"eps": 0.1, "step_size": 0.1, "steps": 1},
                    batch_norm="train",
                    branch="adversarial",
                    generator=torch.Generator().manual_seed(seed),
                )
                with routed(model, "adversarial"):
                    adversarial = cross_entropy(model(x_adv), y, reduction="none")
                clean = cross_entropy(model(x), y, reduction="none")
                loss = (0.5 * adversarial.sum() + 0.5 * clean.sum()) / share.global_size
                gradients.append(torch.autograd.grad(loss, list(model.parameters())))
                statistics[number] = [t.clone() for m in layers for t in m.buffers()]
            for p, *parts in zip(model.parameters(), *gradients, strict=True):
                # Laid out as its weight is: a norm adds in the order of memory.
                p.grad = torch.empty_like(p).copy_(sum(parts[1:], parts[0]))
            for group in optimizer.param_groups:
                group["lr"] = 8.0 if epoch == 0 else 0.8
            optimizer.step()
        means = [
            sum(parts) / batches if parts[0].is_floating_point() else max(parts)
            for parts in zip(*statistics, strict=True)
        ]
        statistics = [[t.clone() for t in means] for _ in range(batches)]
    for layer, mean in zip((t for m in layers for t in m.buffers()), means, strict=True):
        layer.copy_(mean)
    return fingerprints(model.state_dict())


def fingerprints(state):
    """A hash of every tensor, by name."""
    return {n: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()[:16] for n, t in state.items()}


def train_seeds(workers, root, run_dir, *settings):
    """TA and RA of three seeds of a shortened demo."""
    short = ["epochs=8", "attack.steps=3", "schedule.decay_epochs=[6]", "evaluation.every=0"]
    job = read_job(DEMO, [f"data.root={root}", f"run_dir={run_dir}", *short, *settings])
    results = run.train_seeds(job, 3, workers, StopRequest())
    return [[result.ta, result.ra] for result in results.values()]


def one_is_slow(workers, root, run_dir):
    """Worker 1 takes half a second longer for each of its steps; the workers are on nodes of their own."""
    workers.node_of = list(range(workers.size))
    gradient = Trainer.local_gradient

    def slow(trainer, *batch):
        time.sleep(0.5 * (trainer.workers.rank == 1))
        return gradient(trainer, *batch)

    Trainer.local_gradient = slow
    settings = ["epochs=1", "method=plain", "batch_size=400", "evaluation.steps=1", "data.split=nodes"]
    job = read_job(DEMO, [f"data.root={root}", f"run_dir={run_dir}", *settings])
    train(job, workers, StopRequest())
    ((times),) = [line["workers"] for line in RunFolder(job.run_dir).metrics("epoch")]
    return times


def fit(model, images, job):
    """Some steps of Adam, the same on every rank."""
    loader = open_loader(images, job.data, training=False, batch_size=1400, device=torch.device("cpu"))
    ((x, y),) = loader.read([np.arange(len(images))], seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(15):
        optimizer.zero_grad()
        clean_loss(model(x), y).mean().backward()
        optimizer.step()
    return model


DIVIDED = ("collectives", "nodes_of_two", "teams_that_end_apart")


def main():
    name, folder, *arguments = sys.argv[1:]
    teams = any(argument.startswith("smoothing.workers=") for argument in arguments)
    workers = start_workers(60, divisible=teams or name in DIVIDED)
    answer = globals()[name](workers, *arguments)
    Path(folder, f"{name}.{workers.rank}.json").write_text(json.dumps(answer))
    workers.close()


if __name__ == "__main__":
    main()
