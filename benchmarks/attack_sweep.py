"""The sweep of attack_step.py over training steps: each is timed in every round, and what it takes."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from attack_comparison import STEP
from memory import NotEnoughMemory, growth_of, in_own_process
from peak import Peak
from timing import in_turns, rotated
from training_steps import Combination, Network

from hpcdat.distributed.communicator import Communicator
from hpcdat.errors import first_line
from hpcdat.models.pixel_model import Precision
from hpcdat.out_of_memory import is_out_of_memory
from hpcdat.performance.benchmark_file import Row
from hpcdat.training.flops import flops_of


@dataclass(frozen=True)
class Needs:
    """What a step takes.

    Attributes:
        flops: of a step.
        memory: bytes that it takes at most; None: could not be measured.
    """

    flops: int
    memory: int | None


def needs_of(combination: Combination, device: torch.device) -> Needs:
    """Build a step, run it, and measure its memory.

    Raises:
        NotEnoughMemory: it needs more than there is.
    """
    try:
        if device.type == "cpu":
            threads = torch.get_num_threads()
            memory = in_own_process(memory_on_cpu, combination, threads)
            return Needs(flops_of(combination.step(device)), memory)
        free(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step = combination.step(device)
        flops = flops_of(step)
        # The optimiser's state is there in the second step only.
        step()
        return Needs(flops, torch.cuda.max_memory_allocated(device) - before)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise NotEnoughMemory(f"out of memory: {first_line(error)}") from None
        raise


def free(device: torch.device) -> None:
    """Give back the memory of the step before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_on_cpu(combination: Combination, threads: int) -> int | None:
    """Bytes of resident memory that model, images and two steps take, in a process of its own.

    None if they are fewer than a tiny step leaves behind, or Linux does not let the process measure them.
    """
    torch.set_num_threads(threads)
    cpu = torch.device("cpu")
    # Loads code that every step needs.
    Combination(Network("digits-cnn", 8), 2, combination.precision, combination.attack).step(cpu)()

    def work() -> None:
        step = combination.step(cpu)
        step()
        step()

    try:
        return growth_of(work) or None
    except OSError:
        return None


def share_of_peak(flops: int, seconds: float, peak: Peak) -> float:
    """FLOP/s of a piece of work over those of the peak."""
    return flops / seconds / peak.rate


def sweep(
    combinations: Sequence[Combination],
    peaks: dict[Precision, Peak],
    rounds: int,
    device: torch.device,
    workers: Communicator,
) -> tuple[list[Row], list[str]]:
    """A row for each combination, and notes on those for which memory does not suffice on all workers.

    Worker 0 prints them.
    """
    needs: dict[Combination, Needs] = {}
    notes = []
    for combination in combinations:
        own, missing = None, None
        try:
            own = needs_of(combination, device)
        except NotEnoughMemory as error:
            missing = str(error)
        found = workers.all_gather_object([own and own.memory, missing], "memory of a step")
        memories, reasons = zip(*found, strict=True)
        if own is None or any(reasons):
            reason = next(reason for reason in reasons if reason)
            notes.append(f"{combination}: not measured ({reason})")
            if workers.is_rank0:
                print(notes[-1], flush=True)
            continue
        needs[combination] = Needs(own.flops, None if None in memories else max(memories))
    times = in_rounds(list(needs), rounds, device, workers)
    rows = []
    for combination, seconds in times.items():
        flops = needs[combination].flops
        figures = {
            "images_per_second": workers.size * combination.batch_size / median(seconds),
            "flops": flops,
            "share_of_peak": share_of_peak(flops, median(seconds), peaks[combination.precision]),
            "memory_bytes": needs[combination].memory,
        }
        parameters = combination.parameters(STEP, device)
        rows.append(Row(parameters=parameters, seconds=seconds, figures=figures))
        if workers.is_rank0:
            print(line_of(combination, rows[-1]), flush=True)
    return rows, notes


def in_rounds(
    combinations: Sequence[Combination], rounds: int, device: torch.device, workers: Communicator
) -> dict[Combination, list[float]]:
    """Seconds of a step of each combination in every round, of the slowest worker.

    A step is built when its turn comes, since memory may not suffice for all of them at once.
    """
    times: dict[Combination, list[float]] = {combination: [] for combination in combinations}
    for number in range(rounds if combinations else 0):
        if workers.is_rank0:
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for combination in rotated(combinations, number):
            free(device)
            step = combination.step(device)
            times[combination] += in_turns({STEP: step}, 1, device, workers)[STEP]
            del step
    return times


def line_of(combination: Combination, row: Row) -> str:
    """A row in a line."""
    figures = row.figures
    memory = shown(figures["memory_bytes"], ",.1f", 2**20)
    return (
        f"{combination}: {1e3 * row.median:.4g} ms, {figures['images_per_second']:.1f} images/s, "
        f"{figures['share_of_peak']:.3f} of the peak, {f'{memory} MiB' if memory else 'memory not measured'}"
    )


def shown(value: float | None, form: str, unit: float = 1.0) -> str:
    """A figure in a unit; empty if it could not be measured."""
    return "" if value is None else format(value / unit, form)
