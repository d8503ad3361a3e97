"""Robust CIFAR-10 in a minute: jobs/cifar10-speedrun.yaml for each of the seeds.

Each result is evaluated in float32, without TF32: under PGD-50 from one random start on all test images, and
under AutoAttack on 400. In addition, examples are made with PGD-20 by the network in bfloat16 and by that in
float32, and both are evaluated by the one in float32.

``training_seconds`` run from the start, with the images on disk, to the last checkpoint. A run of two steps
before them compiles the code; its duration, ``compile_seconds``, is reported separately.

Ratios:

- ``seconds_to_46_robust``: training seconds, mean of the seeds, if their mean RA is 46 % or more.
- ``robust_bf16_minus_fp32``: RA under the bfloat16 network's PGD-20 minus that under the float32 network's,
  in percentage points, mean of the seeds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from gpu.section import Call, Keep, Measured, Table, number, with_model
from hpcdat.attacks.pgd import PGD
from hpcdat.commands.evaluate import evaluate
from hpcdat.commands.train import train
from hpcdat.commands.trained_model import load_trained
from hpcdat.config.job import Job
from hpcdat.data import find_images, open_loader
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import HpcdatError
from hpcdat.evaluation.autoattack import AutoAttack
from hpcdat.evaluation.pgd import attack_generator, is_correct
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.evaluation.results import read_evaluations
from hpcdat.models.float32 import without_tf32
from hpcdat.models.losses import clean_loss
from hpcdat.storage.run_folder import RunFolder

GOAL = 0.46
"""Robust accuracy, in [0, 1]: Fast AT reports 46.06 %."""


def measure(call: Call, before: Measured, keep: Keep) -> None:
    """Train and evaluate every seed."""
    measure_job("cifar10-speedrun.yaml", call.seeds, call, before, keep)


def ratios(measured: Measured) -> dict[str, float | str]:
    """Training seconds to the goal, and the difference in RA in percentage points."""
    runs = [run for run in measured.get("seeds", {}).values() if {"ra", "training_seconds"} <= set(run)]
    if not runs:
        return {}
    ra = fmean(run["ra"] for run in runs)
    found: dict[str, float | str] = {
        "seconds_to_46_robust": fmean(run["training_seconds"] for run in runs)
        if ra >= GOAL
        else f"RA is {100 * ra:.2f} %, the mean of {len(runs)} seeds"
    }
    apart = [100 * (run["ra_bfloat16"] - run["ra_float32"]) for run in runs if "ra_bfloat16" in run]
    if apart:
        found["robust_bf16_minus_fp32"] = fmean(apart)
    return found


def tables(measured: Measured) -> dict[str, Table]:
    """A row for each seed, and their means."""
    return tables_of_runs("Robust CIFAR-10 in a minute", measured)


def measure_job(name: str, seeds: Sequence[int], call: Call, before: Measured, keep: Keep) -> None:
    """Train and evaluate a job with every seed, or resume what an earlier command has left.

    Args:
        name: of the job's file.
        seeds: of its runs.
        call: the arguments.
        before: what an earlier command measured.
        keep: called after every training, also after one that stops or fails, and after every evaluation.

    Raises:
        Stopped: a stop was requested.
        HpcdatError: data or run folder cannot be used, or training or evaluation failed.
    """
    runs: dict[str, Measured] = dict(before.get("seeds", {}))
    parent, compiled = call.work / Path(name).stem, False
    for seed in seeds:
        job = call.job(name, f"seed={seed}", f"run_dir={parent / str(seed)}")
        folder = RunFolder(job.run_dir)
        run = runs[str(seed)] = runs.get(str(seed), {}) if folder.job_file.exists() else {}
        if not folder.metrics("finished"):
            if not compiled:
                run["compile_seconds"] = _compile(job, call)
                compiled = True
            try:
                with _timed(run, folder):
                    train(job, SingleProcess(), call.stop)
            finally:
                keep({"job": name, "seeds": runs})
        run |= _accuracies(job, call)
        run["ra_bfloat16"], run["ra_float32"], run["compared_images"] = _compare_precisions(job, call)
        keep({"job": name, "seeds": runs})


def tables_of_runs(title: str, measured: Measured) -> dict[str, Table]:
    """A row for each seed, and with several the mean and standard deviation of those evaluated."""
    runs = measured.get("seeds", {})
    if not runs:
        return {}
    header = ["seed", "epochs", "training (s)", "compiling (s)", "TA (%)", "RA (%)", "AA (%)"]
    columns = [("epoch", 0, 1), ("training_seconds", 1, 1), ("compile_seconds", 1, 1)]
    columns += [("ta", 2, 100), ("ra", 2, 100), ("aa", 2, 100)]
    rows = [
        [seed, *(number(run.get(key), digits, scale) for key, digits, scale in columns)]
        for seed, run in runs.items()
    ]
    evaluated = [run for run in runs.values() if "ra" in run]
    if len(evaluated) > 1:
        rows.append(["mean", *(_mean(evaluated, *column) for column in columns)])
    return {title: (header, rows)}


def _compile(job: Job, call: Call) -> float:
    """Seconds of a run of two steps, which compiles everything."""
    short = {"train_images": 2 * job.batch_size, "test_images": len(job.model.mean) * 10}
    few = job.model_copy(
        update={
            "run_dir": call.work / "compile",
            "epochs": 1,
            "data": job.data.model_copy(update=short),
            "schedule": job.schedule.model_copy(update={"peak_epoch": None}),
        }
    )
    start = time.perf_counter()
    train(few, SingleProcess(), call.stop, overwrite=True)
    return time.perf_counter() - start


@contextmanager
def _timed(run: Measured, folder: RunFolder) -> Iterator[None]:
    """Add the seconds until the last checkpoint, or until training stopped or failed."""
    start, done = time.time(), False
    try:
        yield
        done = True
    finally:
        end = folder.checkpoints.epoch_file.stat().st_mtime if done else time.time()
        run["training_seconds"] = run.get("training_seconds", 0.0) + end - start


def _accuracies(job: Job, call: Call) -> Measured:
    """TA, RA and AA of a finished run, computed in float32."""
    steps = 4 if call.tiny else 50
    images: int | None = 10 if call.tiny else 400
    settings = [f"evaluation.steps={steps}", "model.precision=float32", "model.channels_last=false"]
    found: Measured = {}
    try:
        AutoAttack(job.evaluation.eps, job.attack.norm, 10, job.seed)
    except HpcdatError as error:
        images, found["aa_missing"] = None, str(error)
    result = evaluate(job.run_dir, settings, EvaluationRequest(images), SingleProcess(), call.stop)
    # Of this evaluation, not of the job's own.
    measured = result.others[-1]
    evaluations = read_evaluations(RunFolder(job.run_dir).evaluation_file)
    sections = next(one["sections"] for one in evaluations if tuple(one["changed"]) == measured.changed)
    keys = ("ta", "ra", "images", "attack", "aa", "aa_images", "epoch")
    return found | {
        **{key: getattr(measured, key) for key in keys},
        "total": result.total,
        "warnings": [warning for section in sections.values() for warning in section["warnings"]],
    }


def _compare_precisions(job: Job, call: Call) -> tuple[float, float, int]:
    """RA under PGD-20 of the bfloat16 network, RA under that of the float32 network, number of images.

    Both are accuracies of the float32 network without TF32, in [0, 1].
    """
    networks = {
        precision: load_trained(
            RunFolder(job.run_dir), with_model(job, precision=precision), SingleProcess()
        ).model
        for precision in ("bfloat16", "float32")
    }
    _, test = find_images(job.data)
    count = min(len(test), 40 if call.tiny else 2000)
    some = test.equal_part(count)
    loader = open_loader(some, job.data, training=False, batch_size=500, device=call.device)
    robust = dict.fromkeys(networks, 0)
    pgd = PGD.from_settings(job.evaluation, job.attack.norm)
    with without_tf32():
        batches = np.array_split(np.arange(count), -(-count // 500))
        for index, (x, y) in enumerate(loader.read(batches, seed=0)):
            for precision, network in networks.items():
                generator = attack_generator(call.device, job.seed, index)
                x_adv = pgd(network, partial(clean_loss, y=y), x, generator)
                correct = is_correct(networks["float32"], x, y) & is_correct(networks["float32"], x_adv, y)
                robust[precision] += int(correct.sum())
    return robust["bfloat16"] / count, robust["float32"] / count, count


def _mean(runs: Sequence[Measured], key: str, digits: int, scale: float) -> str:
    """The mean, followed by the standard deviation where there are several values."""
    values = [scale * run[key] for run in runs if run.get(key) is not None]
    if len(values) < 2:
        return number(values[0], digits) if values else ""
    return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"
