"""Time, bytes and error of the exchange protocols over real links, compared with other all-reduces.

``python benchmarks/communication.py [--rates 100mbit,1gbit] [--engines horovod,torch] [--nodes 6] [--count N]
[--json PATH]`` creates emulated nodes for every rate and engine (root) and starts one worker per node, with
one thread each; under mpirun, horovodrun, srun or torchrun it uses the workers and the network as they are
(``--rates`` then is the rate of a card, ``--engines`` one engine).

Every protocol sums the same gradient over all workers, in buckets as in training, including encode and
decode. After a warm-up all protocols run in every round; a run lasts from a common start until the slowest
worker is done, and medians are compared. MiB are predicted from the messages and measured at the network
cards. Emulated nodes share the cores of this machine. Therefore the tables have the processor time of a
worker, too, and what a node with a core of its own would need at least: the longer of that time and the time
that its bytes need on the link.

Ratios (for all rates but the first, with the rate as a suffix; over torch.distributed, with the suffix
``torch``, where Horovod is measured as well):

- ``fp32_of_limit``: 2 (M - 1) / M of the gradient's bytes over the rate, over the time of our float32.
- ``int8_one_sided_over_fp32``, ``int8_two_sided_over_fp32``, ``int4_two_sided_over_fp32``: time over that of
  our float32; with the suffix ``best``, of the engine where the quantised exchange is faster.
- ``overlap_over_max``: time of a step with an exchange that overlaps a backward pass of the same duration,
  over the longer of the two.
- ``bytes_measured_over_predicted``: the value farthest from 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from communication_steps import work
from tabulate import tabulate

from hpcdat.distributed.launcher import launched
from hpcdat.emulation.cluster import CARD, BoxError, bytes_per_second, create_box, remove_box, run_over_gloo

QUANTISED = {
    "int8_one_sided_over_fp32": "int8 one-sided, ring of 8-bit lanes",
    "int8_two_sided_over_fp32": "int8 two-sided, sharded server",
    "int4_two_sided_over_fp32": "int4 two-sided, sharded server",
}
"""Ratios and the exchanges that they are of."""


def ratios_of(report: dict[str, Any]) -> dict[str, float]:
    """The ratios of a report."""
    medians = {name: median(values) for name, values in report["seconds"].items()}
    ours = float32_of(medians)
    size, rate = report["settings"]["workers"], report["settings"]["rate"]
    rows = report["rows"].values()
    off = [row["sent"] / row["predicted"] for row in rows if row["predicted"] and row["sent"]]
    overlap = report["overlap"]
    ratios = {ratio: medians[name] / ours for ratio, name in QUANTISED.items()}
    ratios["overlap_over_max"] = overlap["step"] / max(overlap["computation"], overlap["communication"])
    if rate:
        limit = 2 * (size - 1) / size * 4 * report["settings"]["count"] / bytes_per_second(rate)
        ratios["fp32_of_limit"] = limit / ours
        if "float32, torch.distributed" in medians:
            ratios["torch_distributed_of_limit"] = limit / medians["float32, torch.distributed"]
    if off:
        ratios["bytes_measured_over_predicted"] = max(off, key=lambda ratio: abs(ratio - 1))
    return ratios


def float32_of(medians: dict[str, float]) -> float:
    """Seconds of our float32."""
    return min(medians["float32, ring"], medians["float32, sharded server"])


def best_of(reports: list[dict[str, Any]]) -> dict[str, float]:
    """Ratios of the engine where each quantised exchange is faster, for reports of one rate."""
    medians = [{name: median(values) for name, values in r["seconds"].items()} for r in reports]
    best = {name: min(medians, key=lambda found: found[exchange]) for name, exchange in QUANTISED.items()}
    return {name: found[QUANTISED[name]] / float32_of(found) for name, found in best.items()}


def table_of(report: dict[str, Any]) -> str:
    """A table like that of nccl-tests, bandwidths in MB/s; effective: of the float32 numbers it replaces."""
    settings, lines = report["settings"], []
    size, count, rate = settings["workers"], settings["count"], settings["rate"]
    for name, row in report["rows"].items():
        spent = median(report["seconds"][name])
        processor = median(report["processor_seconds"][name])
        wire = row["most_sent"] / bytes_per_second(rate) if rate else 0.0
        sent = row["predicted"] or row["sent"] or 0
        lines.append(
            [
                name,
                f"{4 * count / 2**20:.1f}",
                f"{1e3 * spent:.0f}",
                f"{1e3 * row['codec']:.0f}" if "codec" in row else "",
                f"{1e3 * processor:.0f}",
                f"{1e3 * wire:.0f}" if rate else "",
                f"{1e3 * max(wire, processor):.0f}" if rate else "",
                f"{4 * count / spent / 1e6:.1f}",
                f"{sent / size / spent / 1e6:.1f}",
                f"{2 * (size - 1) / size * 4 * count / spent / 1e6:.1f}",
                f"{row['error']:.2g}",
                row["wrong"],
                f"{row['predicted'] / 2**20:.1f}" if row["predicted"] else "",
                "not counted" if row["sent"] is None else f"{row['sent'] / 2**20:.1f}",
            ]
        )
    header = [
        "protocol",
        "MiB",
        "ms",
        "codec ms",
        "processor ms",
        "wire ms",
        "own cores ms",
        "algbw",
        "busbw",
        "eff. busbw",
        "error",
        "#wrong",
    ]
    header += ["MiB sent, predicted", "measured"]
    title = (
        f"{size} workers over {settings['engine']} ({settings['transport']}), {rate or 'rate not given'}, "
    )
    title += f"{count:,} numbers"
    overlap = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in report["overlap"].items())
    return (
        f"{title}\n{tabulate(lines, header, tablefmt='github', disable_numparse=True)}\noverlap: {overlap}\n"
    )


def in_a_box(rate: str, engine: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the workers in a box of this rate, over an engine; worker 0's report."""
    name = f"bench-{os.getpid()}"
    made = create_box(name, nodes=arguments.nodes, rate=rate)
    try:
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "report.json"
            program = [sys.executable, __file__, "--rates", rate, "--engines", engine]
            program += ["--worker-report", str(answer)]
            sizes = ["--count", str(arguments.count), "--rounds", str(arguments.rounds)]
            card = {"GLOO_SOCKET_IFNAME": CARD}
            code = run_over_gloo(made, arguments.nodes, [*program, *sizes], {**os.environ, **card})
            if code:
                raise SystemExit(f"a worker ended with code {code}")
            return json.loads(answer.read_text())
    finally:
        remove_box(name)


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description="the exchange protocols over real links")
    parser.add_argument("--rates", default="100mbit,1gbit", help="rates of the links (default: %(default)s)")
    parser.add_argument(
        "--engines", default="horovod,torch", help="engines to compare (default: %(default)s)"
    )
    parser.add_argument("--nodes", type=int, default=6, help="nodes of the box")
    parser.add_argument("--count", type=int, default=12_000_000, help="numbers in the gradient")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions after a warm-up")
    parser.add_argument("--json", type=Path, help="write environment, seconds and ratios here")
    parser.add_argument("--worker-report", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rates, engines = arguments.rates.split(","), arguments.engines.split(",")
    if unknown := set(engines) - {"auto", "horovod", "torch"}:
        parser.error(f"--engines: expected horovod or torch, or both, not {sorted(unknown)[0]}")
    place = launched()
    if place.size > 1:
        engine = engines[0] if len(engines) == 1 else "auto"
        report = work(arguments.count, arguments.rounds, rates[0], engine)
        if place.rank > 0:
            return
        if arguments.worker_report:
            arguments.worker_report.write_text(json.dumps(report))
            return
        by_rate = [[report]]
    else:
        try:
            by_rate = [[in_a_box(rate, engine, arguments) for engine in engines] for rate in rates]
        except BoxError as error:
            raise SystemExit(str(error)) from None
    ratios: dict[str, float] = {}
    for number, reports in enumerate(by_rate):
        suffix = f"_{reports[0]['settings']['rate']}" if number else ""
        for second, report in enumerate(reports):
            print(table_of(report))
            engine_suffix = f"_{report['settings']['engine']}" if second else ""
            ratios |= {name + suffix + engine_suffix: ratio for name, ratio in ratios_of(report).items()}
        if len(reports) > 1:
            ratios |= {f"{name}{suffix}_best": ratio for name, ratio in best_of(reports).items()}
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")
    if arguments.json:
        found = {"reports": [report for reports in by_rate for report in reports], "ratios": ratios}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
