"""Gradients exchanged by every protocol."""

import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import hpcdat.exchange.horovod_compression
from hpcdat.config.job_file import read_job
from hpcdat.config.sections import Exchange
from hpcdat.errors import InputError
from hpcdat.exchange import gradient_exchange
from hpcdat.exchange.gradient_exchange import gradients_of
from hpcdat.exchange.horovod_compression import QuantizedSum
from hpcdat.exchange.protocols import Draw, ErrorFeedback
from hpcdat.exchange.resolve import make_plan
from hpcdat.models import build_model_for
from hpcdat.performance import forecast, microbenchmarks, trial_exchange
from hpcdat.performance.autotune import choose_exchange
from hpcdat.performance.network_bytes import crossing_of
from hpcdat.performance.step_timing import StepTiming
from hpcdat.progress import Progress

EXCHANGES = (
    [
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
    ]
    + [
        # As the DAT paper has it: one l2 norm for all.
        {
            "protocol": protocol,
            "bits": bits,
            "norm": "l2",
            "block": "tensor",
            "levels": levels,
            "two_sided": two_sided,
        }
        for protocol, two_sided in (("allgather", False), ("parameter_server", True))
        for bits, levels in ((8, 127), (8, 100), (16, 32767))
    ]
    + [
        {"protocol": protocol, "bits": bits, **more, **options}
        for protocol, more in (
            ("ring", {}),
            ("ring", {"lane_bits": 8}),
            ("allgather", {}),
            ("parameter_server", {"two_sided": True}),
            ("sharded_server", {"two_sided": True}),
        )
        for bits, options in (
            (8, {"rounding": "correlated"}),
            (4, {"rotation": "hadamard"}),
            (8, {"rounding": "correlated", "rotation": "hadamard"}),
        )
    ]
    + [
        {"protocol": protocol, "bits": bits}
        for protocol in ("ring", "allgather", "parameter_server", "sharded_server")
        for bits in (32, "float16")
    ]
)
COUNT = 4 * 64 + 13
"""Coordinates: some blocks of 64 and a rest that fills none."""


def vector_of(rank, step):
    """A worker's vector: wild in scale, with a block of zeros and one where all is at its largest."""
    generator = np.random.default_rng([rank, step])
    x = (generator.standard_normal(COUNT) * 10.0 ** generator.integers(-3, 3, COUNT)).astype(np.float32)
    x[:64] = 0
    x[64:128] = np.float32(0.7)
    return x


def exchanges(workers, patch=None):
    """Two steps of every protocol: the sums this rank got, as hexadecimal bytes, by exchange and step."""
    answers = []
    for number, settings in enumerate(EXCHANGES):
        coded = settings["bits"] not in (32, "float16")
        feedback = ErrorFeedback() if coded else None
        plan = make_plan(Exchange(**{"block": 64, "error_feedback": coded} | settings), workers)
        answers.append([])
        for step in range(2):
            draw = Draw(5, 1, step, number, torch.device("cpu"))
            x = torch.from_numpy(vector_of(workers.rank, step))
            total = run_now(plan.protocol(workers, x, draw, f"exchange {number}", feedback))
            if feedback:
                feedback.commit(counts=True)
            answers[-1].append(total.numpy().tobytes().hex())
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


def nodes_of_two(workers, patch):
    """Hierarchical exchange over nodes of two workers each, of whole numbers that any order adds exactly."""
    patch.setattr(workers, "node_of", [rank // 2 for rank in range(workers.size)])
    sums = {}
    for across in ("ring", "allgather", "parameter_server", "sharded_server"):
        for bits in (32, 8):
            plan = make_plan(Exchange(protocol="hierarchical", across=across, bits=bits, block=64), workers)
            x = torch.arange(100.0) * (workers.rank + 1)
            draw = Draw(0, 0, 0, 0, torch.device("cpu"))
            sums[f"{across} {bits}"] = run_now(plan.protocol(workers, x, draw, across, None)).tolist()
    return sums


def bytes_on_the_wire(workers, patch):
    """The predicted bytes, and those that the network cards of all nodes have sent, by protocol."""
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
        workers.all_gather_object(None, "ready")
        before = sent_bytes()
        run_now(plan.protocol(workers, x, Draw(0, 0, 0, 0, torch.device("cpu")), name, None))
        workers.all_gather_object(None, "done")
        time.sleep(0.1)
        sent = sum(workers.all_gather_object(sent_bytes() - before, "sent"))
        answers[name] = {"predicted": plan.traffic(count).total, "sent": sent}
    return answers


def rows_on_the_wire(workers, patch, *files):
    """The same of all gradients of a job's model at full width, by the name of the job."""
    # Compiling would take minutes on shared cores.
    patch.setattr(gradient_exchange, "pays_to_compile", lambda count: False)
    answers = {}
    for file in map(Path, files):
        job = read_job(file, ["model.width=1"])
        named = gradients_of(build_model_for(job, 10))
        exchange = gradient_exchange.GradientExchange(workers, named, job.exchange, 0)
        generator = torch.Generator().manual_seed(workers.rank)
        for _, parameter in named:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        # In the first step Horovod's workers agree on every name, of which later ones only need a bit.
        for step in range(2):
            workers.all_gather_object(None, "ready")
            before = sent_bytes()
            exchange.begin(0, step)
            exchange.finish(torch.zeros(1))
            workers.all_gather_object(None, "done")
            time.sleep(0.1)
            sent = sum(workers.all_gather_object(sent_bytes() - before, "sent"))
        exchange.close()
        predicted = crossing_of(job.exchange, named, workers.nodes, 1).traffic.total
        assert predicted == exchange.traffic().total
        answers[file.stem] = {"predicted": predicted, "sent": sent}
    return answers


def chosen_exchange(workers, patch, record):
    """Protocol auto: the choice, read again, edited, and recorded by other workers.

    Measured hastily, since any choice will do.
    """
    patch.setattr(microbenchmarks, "MESSAGE_SIZES", [2**16])
    patch.setattr(microbenchmarks, "VECTOR_LENGTH", 2**12)
    patch.setattr(trial_exchange, "TRIAL_SECONDS", 0.1)
    record, model = Path(record), nn.Linear(300, 300)
    progress, lines = Progress(shown=workers.is_rank0), []
    progress.say = lines.append
    settings = Exchange(protocol="auto", two_sided=True)
    first = choose_exchange(settings, workers, model, record, progress)
    written = record.read_text()
    again = choose_exchange(settings, workers, model, record, progress)
    assert first == again and record.read_text() == written
    workers.all_gather_object(None, "compared")
    if workers.is_rank0:
        record_json = json.loads(written)
        record_json["chosen"]["exchange"]["bits"] = 5
        record.write_text(json.dumps(record_json))
    altered = choose_exchange(settings, workers, model, record, progress)
    workers.all_gather_object(None, "read")
    if workers.is_rank0:
        record.write_text(json.dumps(record_json | {"workers": 17}))
    other = choose_exchange(settings, workers, model, record, progress)
    return {
        "first": first.model_dump(),
        "altered bits": altered.bits,
        "bits with other workers": other.bits,
        "links": len(json.loads(written)["network"]["links"]),
        "lines": lines,
    }


def planned(workers, patch, job, save, *settings):
    """``hpcdat plan`` for one node and two: its output, and each worker's own correction of an exchange.

    The step is not timed, which a busy machine refuses, and the links are measured hastily.
    """
    timing = StepTiming(0.02, 0.01, update=0.05, images=20, measured_on="paper", spread="none")
    patch.setattr(forecast, "time_share", lambda *_: (timing, torch.device("cpu")))
    patch.setattr(microbenchmarks, "MESSAGE_SIZES", [2**16])
    patch.setattr(microbenchmarks, "VECTOR_LENGTH", 2**12)
    patch.setattr(trial_exchange, "TRIAL_SECONDS", 0.1)
    corrections = []

    def measured(*given):
        corrections.append(trial_exchange.measure_correction(*given))
        return corrections[-1]

    patch.setattr(forecast, "measure_correction", measured)
    output = forecast.predict_job(
        read_job(Path(job), list(settings)), [1, 2], 1, 1000, None, Path(save), workers, None
    )
    return {"output": output, "corrections": corrections}


def sent_bytes():
    """By the node's network cards, as the kernel counts."""
    lines = [
        line.replace(":", " ").split() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]
    ]
    return sum(int(fields[9]) for fields in lines if fields[0] != "lo")


def drop_in(workers, patch, op):
    """A plain Horovod script with the quantizer as its compression: loss before, loss after, weights."""
    import horovod.torch as hvd

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
    generator = torch.Generator().manual_seed(workers.rank)
    x = torch.randn(256, 20, generator=generator)
    y = x[:, :3].sum(1, keepdim=True)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        named_parameters=model.named_parameters(),
        op=getattr(hvd, op),
        compression=QuantizedSum(bits=8),
    )
    losses = []
    try:
        for _ in range(20):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    except InputError as error:
        return {"error": str(error)}
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return {"first": losses[0], "last": losses[-1], "weights": weights.tolist()}


def example(workers, patch):
    """The example in the docstring of ``QuantizedSum``: how many lines were run, and how many failed."""
    import doctest

    result = doctest.testmod(hpcdat.exchange.horovod_compression)
    return {"attempted": result.attempted, "failed": result.failed}
