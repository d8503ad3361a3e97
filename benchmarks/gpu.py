"""What one GPU does: robust CIFAR-10 in a minute and in ten, the attack step, the codec, ConAdv, Horovod.

``python benchmarks/gpu.py SECTION... [--json docs/gpu-h200.json] [--cifar ROOT] [--page FOLDER]``: sections
are measured one after the other and merged into the JSON, which is written after each; a section that is
asked for again replaces what is there. Asked to stop by ``--limit``, the command ends with exit code 75 and
the same command goes on: training from its checkpoint, evaluations from the batches that are done.

- ``speedrun``: jobs/cifar10-speedrun.yaml for each of ``--seeds``; the result evaluated in float32 under
  PGD-50 with ten restarts on all test images, under AutoAttack on 1,000, and under PGD-20 of the bfloat16
  net beside that of the float32 net, both judged in float32.
- ``ten-minutes``: the same for jobs/cifar10-ten-minutes.yaml.
- ``step``: training steps of pre-activation ResNet-18 (PGD-10, 512 images of 32x32) and ResNet-50 (PGD-4,
  85 of 224x224) by the trainer, by the same algorithm written plainly, and with foolbox's attack.
- ``codec``: encode and decode of 25.6 million numbers.
- ``concurrent``: ConAdv, DisAdv and vanilla training of ResNet-50 on 64 and 256 images of 224x224.
- ``horovod``: an all-reduce on the GPU, and two workers that share it against two on the CPU.
- ``page``: nothing is measured; the page is made of the JSON.

Seconds of training are those from the start, images on disk, to the last checkpoint; compiling, which a run
of two steps before it does, is told beside them. ``--device cpu --tiny`` tries everything out in small,
faster without the compiler (TORCH_COMPILE_DISABLE=1).
torch, torchvision, numpy, Pillow, pydantic, PyYAML, filelock, tqdm, tabulate and matplotlib are needed, for
the page jinja2; foolbox, pyautoattack and Horovod are measured where they are installed.

Ratios, null with a reason where they were not measured:

- ``seconds_to_46_robust``: seconds of the speed run's training, mean of the seeds, if their mean RA is 46 %
  or more.
- ``pgd10_over_eager_fp32``, ``pgd10_over_foolbox``: images per second of our PGD-10 step over those of the
  plain one in eager float32 (with torch's own settings: TF32 in convolutions), and over foolbox's in the
  same loop.
- ``codec_of_copy_bandwidth``: bytes that encode and decode must move over their time, over the same of a
  copy.
- ``conadv_over_disadv_64``: throughput of ConAdv over DisAdv at 64 images, in the way in which ConAdv is
  fastest.
- ``robust_bf16_minus_fp32``: points of RA between the two PGD-20 of the speed run, mean of the seeds.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import codec
import conadv
import numpy as np
import torch
from attack_step import Pgd, training_step
from tabulate import tabulate
from timing import in_turns

from hpcdat.commands.evaluate import evaluate
from hpcdat.commands.train import train
from hpcdat.commands.trained_model import load_trained
from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.data import find_images, open_loader
from hpcdat.distributed.environment import describe_environment, device_name
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import Exit, HpcdatError, Stopped
from hpcdat.evaluation.autoattack import AutoAttack
from hpcdat.evaluation.pgd import attack_generator, is_correct, pgd
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.models.compiled import fastest_convolutions
from hpcdat.models.losses import Labelled
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.concurrent_attack import Batch

JOBS = Path(__file__).resolve().parents[1] / "jobs"
RATIOS = (
    "seconds_to_46_robust",
    "pgd10_over_eager_fp32",
    "pgd10_over_foolbox",
    "codec_of_copy_bandwidth",
    "conadv_over_disadv_64",
    "robust_bf16_minus_fp32",
)
GOAL = 0.46
"""Robust accuracy of the speed run: Fast AT reports 46.06 %."""
OURS, PLAIN, FOOLBOX = "trainer, bfloat16, compiled", "plain, float32", "foolbox's attack, float32"
SMALL = ["data.source=digits", "data.image_size=8", "data.channels=1", "model.mean=[0.5]", "model.std=[0.25]"]
SMALL += [
    "model.name=digits-cnn",
    "batch_size=20",
    "data.train_images=40",
    "data.test_images=20",
    "epochs=2",
]
Section = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """What the command line asks for.

    Attributes:
        device: to measure.
        tiny: try it out in small.
        cifar: folder that holds cifar-10-batches-py; None: the user's cache.
        work: folder of the runs.
        seeds: of the speed run.
        rounds: repetitions of what is timed.
        stop: set when the time is up.
    """

    device: torch.device
    tiny: bool
    cifar: Path | None
    work: Path
    seeds: tuple[int, ...]
    rounds: int
    stop: StopRequest

    def job(self, name: str, *settings: str) -> Job:
        """A shipped job on this device."""
        always = [f"device={self.device.type}", *([f"data.root={self.cifar}"] if self.cifar else [])]
        return read_job(JOBS / name, [*always, *(SMALL if self.tiny else []), *settings])


Keep = Callable[[Section], None]
"""Takes what is known of a section so far, and writes it."""


def speedrun(call: Call, before: Section, keep: Keep) -> None:
    """The speed run of every seed."""
    _runs("cifar10-speedrun.yaml", call.seeds, call, before, keep)


def ten_minutes(call: Call, before: Section, keep: Keep) -> None:
    """The longer run, of one seed."""
    _runs("cifar10-ten-minutes.yaml", call.seeds[:1], call, before, keep)


def _runs(name: str, seeds: Sequence[int], call: Call, before: Section, keep: Keep) -> None:
    runs: dict[str, Section] = dict(before.get("seeds", {}))
    folder, warm = call.work / Path(name).stem, False
    for seed in seeds:
        job = call.job(name, f"seed={seed}", f"run_dir={folder / str(seed)}")
        finished = RunFolder(job.run_dir).metrics_file.exists() and RunFolder(job.run_dir).metrics("finished")
        run = runs[str(seed)] = runs.get(str(seed), {}) if RunFolder(job.run_dir).job_file.exists() else {}
        if not finished:
            if not warm:
                run["compile_seconds"] = _compile(job, call)
                warm = True
            try:
                with _adding_seconds(run, RunFolder(job.run_dir)):
                    train(job, SingleProcess(), call.stop)
            finally:
                keep({"job": name, "seeds": runs})
        run |= _evaluated(job, call)
        run["ra_bfloat16"], run["ra_float32"], run["compared_images"] = _both_precisions(job, call)
        keep({"job": name, "seeds": runs})


def _compile(job: Job, call: Call) -> float:
    """Seconds of a run of two steps, by which all code is compiled."""
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
def _adding_seconds(run: Section, folder: RunFolder) -> Iterator[None]:
    """Count the seconds to the last end of an epoch that is on disk, or to the end of what failed."""
    start, done = time.time(), False
    try:
        yield
        done = True
    finally:
        end = folder.checkpoints.epoch_file.stat().st_mtime if done else time.time()
        run["training_seconds"] = run.get("training_seconds", 0.0) + end - start


def _evaluated(job: Job, call: Call) -> Section:
    """TA, RA and AA of a finished run, computed in float32."""
    steps, restarts, images = (4, 2, 10) if call.tiny else (50, 10, 1000)
    settings = [f"evaluation.steps={steps}", f"evaluation.restarts={restarts}", "model.precision=float32"]
    found: Section = {}
    try:
        AutoAttack(job.evaluation.eps, job.attack.norm, 10, job.seed)
    except HpcdatError as error:
        images, found["aa_missing"] = None, str(error)
    result = evaluate(job.run_dir, settings, EvaluationRequest(images), SingleProcess(), call.stop)
    sections = json.loads(RunFolder(job.run_dir).evaluation_file.read_text())["sections"]
    keys = ("ta", "ra", "images", "attack", "aa", "aa_images", "epoch", "total")
    return found | {
        **{key: getattr(result, key) for key in keys},
        "warnings": [warning for section in sections.values() for warning in section["warnings"]],
    }


def _both_precisions(job: Job, call: Call) -> tuple[float, float, int]:
    """RA under PGD-20 of the bfloat16 net and of the float32 net, both judged by the latter without TF32."""
    nets = {}
    for precision in ("bfloat16", "float32"):
        given = job.model_copy(update={"model": job.model.model_copy(update={"precision": precision})})
        nets[precision] = load_trained(RunFolder(job.run_dir), given, SingleProcess()).model
    _, test = find_images(job.data)
    count = min(len(test), 40 if call.tiny else 2000)
    some = test.equal_part(count)
    loader = open_loader(some, job.data, training=False, batch_size=500, device=call.device)
    standing = dict.fromkeys(nets, 0)
    with _without_tf32():
        batches = np.array_split(np.arange(count), -(-count // 500))
        for number, (x, y) in enumerate(loader.read(batches, seed=0)):
            for precision, net in nets.items():
                generator = attack_generator(call.device, job.seed, number)
                x_adv = pgd(net, x, y, job.evaluation, job.attack.norm, generator)
                robust = is_correct(nets["float32"], x, y) & is_correct(nets["float32"], x_adv, y)
                standing[precision] += int(robust.sum())
    return standing["bfloat16"] / count, standing["float32"] / count, count


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Convolutions of float32 in all its digits."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def step(call: Call, before: Section, keep: Keep) -> None:
    """Images per second of training steps, ours and others'."""
    preact = ["model.name=preact-resnet18", "model.mean=[0.5,0.5,0.5]", "model.std=[0.25,0.25,0.25]"]
    always = ["data.channels=3", "data.augmentation=none", "data.loader=device"]
    small = ["batch_size=4", "model.width=0.1"] if call.tiny else ["batch_size=512"]
    large = ["batch_size=2", "data.image_size=32"] if call.tiny else []
    jobs = {
        "preact-resnet18": call.job(
            *("cifar10-speedrun.yaml", "attack.steps=10", "attack.step_size=2/255", *preact, *small, *always)
        ),
        "resnet50": call.job(
            *("imagenet-dat-pgd.yaml", "model.name=resnet50", *preact[1:], "data.image_size=224"),
            *("batch_size=85", "exchange.protocol=ring", *large, *always),
        ),
    }
    measured: Section = {}
    for name, job in jobs.items():
        seconds, missing = _steps_of(job, call)
        speeds = {part: job.batch_size / median(times) for part, times in seconds.items()}
        attack = job.attack.model_dump(include={"eps", "step_size", "steps"})
        measured[name] = {
            "batch": job.batch_size,
            "size": job.data.image_size,
            "attack": attack,
            "optimizer": job.optimizer.name,
            "seconds": seconds,
            "images_per_second": speeds,
            "missing": missing,
        }
        keep(measured)
        _clear(call.device)


def _steps_of(job: Job, call: Call) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of a step in every round by who does it, and why some are missing."""
    generator = torch.Generator().manual_seed(0)
    size, device = job.data.image_size, call.device
    x = torch.rand(job.batch_size, 3, size, size, generator=generator).to(device)
    y = torch.randint(conadv.CLASSES, (len(x),), generator=generator).to(device)
    attack = Pgd(job.attack.eps, job.attack.step_size, job.attack.steps)

    def ours(**model: Any) -> Callable[[], object]:
        given = job.model_copy(update={"model": job.model.model_copy(update=model)})
        algorithm = conadv.algorithm_of(given, SingleProcess(), device)
        batch = Batch(0, 0, len(x), {0: Labelled(x, y)})

        def work() -> None:
            with fastest_convolutions(given.model.compiled):
                algorithm.step(batch, None)

        return work

    def theirs(attack: Callable, **model: Any) -> Callable[[], object]:
        given = job.model_copy(update={"model": job.model.model_copy(update=model)})
        net = conadv.algorithm_of(given, SingleProcess(), device).model
        return training_step(net, attack, x, y, job.optimizer)

    def exact(work: Callable[[], object]) -> None:
        with _without_tf32():
            work()

    reduced = {"precision": "bfloat16", "channels_last": True}
    usual = {"precision": "float32", "channels_last": False, "compiled": False}
    parts = {
        OURS: ours(**reduced, compiled=True),
        "trainer, bfloat16": ours(**reduced, compiled=False),
        "trainer, float32": ours(**usual),
        PLAIN: theirs(attack.plain, **usual),
        "plain, float32 without TF32": partial(exact, theirs(attack.plain, **usual)),
        FOOLBOX: theirs(attack.by_foolbox, **usual),
        "foolbox's attack, bfloat16": theirs(attack.by_foolbox, **reduced, compiled=False),
    }
    missing = {}
    try:
        import foolbox  # noqa: F401
    except ImportError:
        for name in [name for name in parts if "foolbox" in name]:
            del parts[name]
            missing[name] = "not measured (foolbox is not installed)"
    return in_turns(parts, call.rounds, device), missing


def code(call: Call, before: Section, keep: Keep) -> None:
    """The quantizer."""
    count = 2**16 if call.tiny else 25_600_000
    report = codec.measure(count, call.rounds, call.device)
    bandwidth = 8 * count / median(report["seconds"]["copy"])
    keep(report | {"copy_gigabytes_per_second": bandwidth / 1e9})


def concurrent(call: Call, before: Section, keep: Keep) -> None:
    """ConAdv, DisAdv and vanilla training."""
    reduced = ["model.precision=bfloat16", "model.channels_last=true"]
    ways = [
        *((64, way) for way in ("bfloat16", "bfloat16, compiled")),
        (256, "bfloat16"),
    ]
    given = {"model": "resnet50", "width": 1.0, "size": 224, "rounds": call.rounds, "steps": 3}
    if call.tiny:
        given |= {"model": "preact-resnet18", "width": 0.1, "size": 16, "steps": 1}
    measured: Section = {}
    for batch, way in ways:
        compiled = ["model.compiled=true"] if way.endswith("compiled") else []
        sizes = {"batch": batch // 16 if call.tiny else batch, "set": [*reduced, *compiled]}
        arguments = argparse.Namespace(device=call.device.type, **given, **sizes)
        name = f"{batch} images, {way}"
        try:
            report = conadv.on_one_worker(arguments)
            measured[name] = report | conadv.concluded(report, arguments)
        except torch.OutOfMemoryError as error:
            measured[name] = {"missing": f"not measured (out of memory: {str(error).splitlines()[0]})"}
        keep(measured)
        _clear(call.device)


def horovod(call: Call, before: Section, keep: Keep) -> None:
    """One worker's all-reduce, and weights of two workers on this device and on the CPU."""
    try:
        import horovod.torch  # noqa: F401
    except ImportError as error:
        keep({"missing": f"not measured (Horovod does not start: {error})"})
        return
    program = (
        "import horovod.torch as hvd, torch; hvd.init(); "
        f"x = torch.ones(1000, device='{call.device.type}'); "
        "print(hvd.allreduce(x, op=hvd.Sum).sum().item(), hvd.nccl_built())"
    )
    measured: Section = {"all_reduce": _told([sys.executable, "-c", program])}
    weights = {}
    for device in dict.fromkeys((call.device.type, "cpu")):
        run_dir = call.work / f"horovod-{device}"
        settings = ["epochs=2", "evaluation.steps=1", "attack.steps=2", "attack.random_start=false"]
        # What random numbers a device draws is its own affair.
        settings += [f"device={device}", f"run_dir={run_dir}", "data.loader=device", "data.train_images=400"]
        command = [
            sys.executable,
            "-m",
            "hpcdat",
            "train",
            str(JOBS / "demo.yaml"),
            "-np",
            "2",
            "--overwrite",
        ]
        measured[f"two workers, {device}"] = _told([*command, "--set", *settings])
        if RunFolder(run_dir).checkpoints.exist():
            state = RunFolder(run_dir).newest_checkpoint().model
            weights[device] = torch.cat([t.flatten().double() for t in state.values()])
    if {call.device.type, "cpu"} == set(weights):
        apart = (weights[call.device.type] - weights["cpu"]).norm() / weights["cpu"].norm()
        measured["relative_difference"] = apart.item()
    keep(measured)


def _told(command: list[str]) -> Section:
    """Exit code and the last lines of a command."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return {"exit_code": done.returncode, "output": (done.stdout + done.stderr).splitlines()[-5:]}


def _clear(device: torch.device) -> None:
    """Give memory back between measurements."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


SECTIONS: dict[str, Callable[[Call, Section, Keep], None]] = {
    "speedrun": speedrun,
    "ten-minutes": ten_minutes,
    "step": step,
    "codec": code,
    "concurrent": concurrent,
    "horovod": horovod,
}


def ratios_of(sections: dict[str, Section]) -> tuple[dict[str, float | None], dict[str, str]]:
    """The ratios, and a reason for each that is null."""
    ratios: dict[str, float | None] = dict.fromkeys(RATIOS)
    reasons = dict.fromkeys(RATIOS, "not measured")
    seeds = sections.get("speedrun", {}).get("seeds", {})
    runs = [run for run in seeds.values() if {"ra", "training_seconds"} <= set(run)]
    if runs:
        ra = fmean(run["ra"] for run in runs)
        if ra >= GOAL:
            ratios["seconds_to_46_robust"] = fmean(run["training_seconds"] for run in runs)
        reasons["seconds_to_46_robust"] = f"RA is {100 * ra:.2f} %, the mean of {len(runs)} seeds"
        apart = [100 * (run["ra_bfloat16"] - run["ra_float32"]) for run in runs if "ra_bfloat16" in run]
        ratios["robust_bf16_minus_fp32"] = fmean(apart) if apart else None
    if "step" in sections:
        speeds = sections["step"]["preact-resnet18"]["images_per_second"]
        missing = sections["step"]["preact-resnet18"]["missing"]
        for name, other in (("pgd10_over_eager_fp32", PLAIN), ("pgd10_over_foolbox", FOOLBOX)):
            ratios[name] = speeds[OURS] / speeds[other] if other in speeds else None
            reasons[name] = missing.get(other, "not measured")
    if "codec" in sections:
        ratios["codec_of_copy_bandwidth"] = sections["codec"]["ratios"]["codec_of_copy_bandwidth"]
    ways = {name: way for name, way in sections.get("concurrent", {}).items() if name.startswith("64 ")}
    timed = [way for way in ways.values() if "ratios" in way]
    if timed:
        fastest = min(timed, key=lambda way: way["medians"]["ConAdv"])
        ratios["conadv_over_disadv_64"] = fastest["ratios"]["beside_over_disadv"]
    return ratios, {name: reason for name, reason in reasons.items() if ratios[name] is None}


def tables_of(sections: dict[str, Section]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Header and rows of what was measured, by title."""
    tables: dict[str, tuple[list[str], list[list[str]]]] = {}
    for name, title in (
        ("speedrun", "Robust CIFAR-10 in a minute"),
        ("ten-minutes", "Robust CIFAR-10 in ten minutes"),
    ):
        runs = sections.get(name, {}).get("seeds", {})
        if not runs:
            continue
        header = ["seed", "epochs", "training (s)", "compiling (s)", "TA (%)", "RA (%)", "AA (%)"]
        columns = ("epoch", "training_seconds", "compile_seconds", "ta", "ra", "aa")
        scale = {"ta": 100, "ra": 100, "aa": 100}
        digits = {"epoch": 0, "training_seconds": 1, "compile_seconds": 1}
        rows = [
            [seed, *(_number(run.get(c), digits.get(c, 2), scale.get(c, 1)) for c in columns)]
            for seed, run in runs.items()
        ]
        whole = [run for run in runs.values() if "ra" in run]
        if len(whole) > 1:
            rows.append(["mean", *(_mean(whole, c, digits.get(c, 2), scale.get(c, 1)) for c in columns)])
        tables[title] = header, rows
    for name, part in sections.get("step", {}).items():
        title = (
            f"A PGD-{part['attack']['steps']} step, {name}, {part['batch']} images of {part['size']} pixels"
        )
        rows = [[who, _number(speed, 1)] for who, speed in part["images_per_second"].items()]
        tables[title] = ["by", "images / s"], rows + [[*pair] for pair in part["missing"].items()]
    if "codec" in sections:
        part = sections["codec"]
        rows = [[who, _number(1e3 * median(t), 3)] for who, t in part["seconds"].items()]
        tables[f"The codec, {part['settings']['count']:,} numbers"] = ["", "ms"], rows
    for name, part in sections.get("concurrent", {}).items():
        medians = part.get("medians", {})
        rows = [[what, _number(1e3 * time, 2)] for what, time in medians.items() if "busy" not in what]
        tables[f"Concurrency, {name}"] = ["a step of", "ms"], rows or [[part["missing"], ""]]
    if "horovod" in sections:
        rows = [[what, _in_words(found)] for what, found in sections["horovod"].items()]
        tables["Horovod"] = ["", ""], rows
    return tables


def _in_words(found: Any) -> str:
    """How a command ended, with what it said where it failed; anything else as it is."""
    if not isinstance(found, dict):
        return str(found)
    return (
        "done" if found["exit_code"] == 0 else f"exit code {found['exit_code']}: {' '.join(found['output'])}"
    )


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "" if value is None else f"{scale * value:.{digits}f}"


def _mean(runs: Sequence[Section], column: str, digits: int, scale: float) -> str:
    """With the standard deviation behind it."""
    values = [scale * run[column] for run in runs if run.get(column) is not None]
    if len(values) < 2:
        return _number(values[0], digits) if values else ""
    return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def write_page(report: dict[str, Any], folder: Path) -> list[Path]:
    """The tables with plots, as HTML, Markdown and CSV; the files."""
    from hpcdat.report.pages import Section, write_report
    from hpcdat.report.plots import plot_bars

    sections = []
    notes = [f"{report['device']}, {report['date']}; torch {report['versions'].get('torch')}."]
    for title, (header, rows) in tables_of(report["sections"]).items():
        bars = {row[0]: float(row[1]) for row in rows if len(row) == 2 and _is_number(row[1])}
        plot = plot_bars(bars, header[1]) if bars else ""
        sections.append(Section(f"table-{len(sections) + 1}", title, header, rows, 1, plot, notes))
    told = [
        [name, _number(value, 3), report["reasons"].get(name, "")] for name, value in report["ratios"].items()
    ]
    sections.append(Section("ratios", "Ratios", ["ratio", "value", "why not"], told, 1, "", notes))
    return write_report(sections, folder, f"On one GPU: {report['device']}", maker="benchmarks/gpu.py")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def main() -> None:
    """Measure the sections, print their tables, write the JSON and the page."""
    parser = argparse.ArgumentParser(description="what one GPU does; see the head of this file")
    parser.add_argument("sections", nargs="+", choices=[*SECTIONS, "page"], metavar="SECTION")
    parser.add_argument("--json", type=Path, help="merge device, versions, date, sections and ratios into it")
    parser.add_argument("--page", type=Path, metavar="FOLDER", help="write report.html, .md and .csv there")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small nets, few images: to try it out")
    parser.add_argument("--cifar", type=Path, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--work", type=Path, help="folder of the runs (default: one that is removed)")
    parser.add_argument("--seeds", default="0,1,2", help="of the speed run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="repetitions of what is timed")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="stop after that; needs --work")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU that torch can use; --device cpu --tiny tries it out")
    if arguments.limit and not arguments.work:
        raise SystemExit("--limit: what is stopped goes on from the folder --work, which is missing")
    stop = StopRequest()
    if arguments.limit:
        timer = threading.Timer(arguments.limit, lambda: setattr(stop, "requested", True))
        timer.daemon = True
        timer.start()
    with tempfile.TemporaryDirectory() as scratch:
        call = Call(
            device=torch.device(arguments.device, *([0] if arguments.device == "cuda" else [])),
            tiny=arguments.tiny,
            cifar=arguments.cifar,
            work=arguments.work or Path(scratch),
            seeds=tuple(int(seed) for seed in arguments.seeds.split(",")),
            rounds=arguments.rounds,
            stop=stop,
        )
        try:
            measure(call, arguments.sections, arguments.json, arguments.page)
        except Stopped as error:
            print(f"{error}\nthe same command goes on", file=sys.stderr)
            raise SystemExit(Exit.STOPPED_RESUMABLE) from None
        except HpcdatError as error:
            print(error, file=sys.stderr)
            raise SystemExit(error.exit_code) from None


def measure(call: Call, names: Sequence[str], file: Path | None, page: Path | None) -> dict[str, Any]:
    """Measure sections and merge them into the file; the report."""
    environment = describe_environment(SingleProcess(), call.device)
    report = {
        # What was only tried out is not taken for a measurement, nor merged with one.
        "device": device_name(call.device) + (", tried out in small" if call.tiny else ""),
        "versions": {"python": environment["python"], "cuda": environment["cuda"], **environment["packages"]},
        "date": str(date.today()),
        "environment": environment,
        "sections": {},
    }
    if file and file.exists():
        before = json.loads(file.read_text())
        if before["device"] != report["device"] and names != ["page"]:
            raise SystemExit(
                f"--json {file} holds {before['device']}, this is {report['device']}: name another"
            )
        report = before if names == ["page"] else {**report, "sections": before["sections"]}
    report["ratios"], report["reasons"] = ratios_of(report["sections"])
    for name in names:
        if name == "page":
            continue

        def keep(section: Section, name: str = name) -> None:
            report["sections"][name] = section
            report["ratios"], report["reasons"] = ratios_of(report["sections"])
            if file:
                write_text(file, json.dumps(report, indent=2) + "\n")

        SECTIONS[name](call, report["sections"].get(name, {}), keep)
    for title, (header, rows) in tables_of(report["sections"]).items():
        print(f"{title}\n\n{tabulate(rows, header, tablefmt='github', disable_numparse=True)}\n")
    for name, ratio in report["ratios"].items():
        print(f"{name}: {report['reasons'][name] if ratio is None else format(ratio, '.4g')}")
    if page:
        for written in write_page(report, page):
            print(f"written: {written}")
    return report


if __name__ == "__main__":
    main()
