"""The report: sections are measured and merged into its JSON; ratios and tables follow from them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from tabulate import tabulate

from gpu import codec, concurrent, horovod, resnet50, speedrun, step, ten_minutes, tests
from gpu.section import Call, Measured, Section, Table
from hpcdat.distributed.environment import describe_environment, device_name
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.storage.atomic_files import write_text

SECTIONS: dict[str, Section] = {
    "tests": tests,
    "speedrun": speedrun,
    "ten-minutes": ten_minutes,
    "step": step,
    "resnet50": resnet50,
    "codec": codec,
    "concurrent": concurrent,
    "horovod": horovod,
}
GOALS = {
    "seconds_to_46_robust": (0.0, 60.0),
    "pgd10_over_eager_fp32": (2.5, math.inf),
    "pgd10_over_foolbox": (2.5, math.inf),
    "resnet50_share_of_peak": (0.45, math.inf),
    "codec_of_copy_bandwidth": (0.8, math.inf),
    "conadv_over_disadv_64": (1.15, math.inf),
    "robust_bf16_minus_fp32": (-0.5, 0.5),
}
"""The ratios, in the order of the JSON, with the smallest and the largest value that is aimed at."""
TINY = ", tiny test run"
"""Added to the device's name where everything is tiny, so that no ratio is a measurement."""

Report = dict[str, Any]
"""The JSON: device, versions, date, environment, sections, ratios, and reasons for those that are null."""


def measure(call: Call, names: Sequence[str], file: Path | None) -> Report:
    """Measure sections, and write the report whenever a part of one is done.

    Args:
        call: the arguments.
        names: of sections; ``page`` measures nothing.
        file: the JSON, which is made or merged into; None: nothing is written.

    Raises:
        InputError: the file holds measurements of another device, or is not a report.
        Stopped: a stop was requested.
        HpcdatError: something failed.
        OSError: the file cannot be read or written.
    """
    report = _begin(call, names, file)
    report["ratios"], report["reasons"] = ratios_of(report["sections"])
    for name in names:
        if name == "page":
            continue

        def keep(measured: Measured, name: str = name) -> None:
            report["sections"][name] = measured
            report["ratios"], report["reasons"] = ratios_of(report["sections"])
            if file:
                write_text(file, json.dumps(report, indent=2) + "\n")

        SECTIONS[name].measure(call, report["sections"].get(name, {}), keep)
    return report


def ratios_of(sections: dict[str, Measured]) -> tuple[dict[str, float | None], dict[str, str]]:
    """The ratios of all sections, and the reason for each that is null."""
    found: dict[str, float | str] = dict.fromkeys(GOALS, "not measured")
    for name, section in SECTIONS.items():
        if name in sections:
            found |= section.ratios(sections[name])
    ratios = {name: None if isinstance(ratio, str) else ratio for name, ratio in found.items()}
    return ratios, {name: reason for name, reason in found.items() if isinstance(reason, str)}


def tables_of(sections: dict[str, Measured]) -> dict[str, Table]:
    """The tables of all sections, by their titles."""
    tables: dict[str, Table] = {}
    for name, section in SECTIONS.items():
        if name in sections:
            tables |= section.tables(sections[name])
    return tables


def show(report: Report) -> None:
    """Print tables, and ratios beside their goals."""
    for title, (header, rows) in tables_of(report["sections"]).items():
        print(f"{title}\n\n{tabulate(rows, header, tablefmt='github', disable_numparse=True)}\n")
    header, rows = goals_of(report)
    print(tabulate(rows, header, tablefmt="github", disable_numparse=True))


def goals_of(report: Report) -> Table:
    """Each ratio beside its goal, and whether it is reached, which a tiny run cannot tell."""
    rows = []
    tiny = report["device"].endswith(TINY)
    for name, (least, most) in GOALS.items():
        ratio = report["ratios"][name]
        goal = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
        if ratio is None:
            rows.append([name, goal, report["reasons"][name], ""])
        else:
            reached = "" if tiny else "yes" if least <= ratio <= most else "no"
            rows.append([name, goal, format(ratio, ".4g"), reached])
    return ["ratio", "goal", "measured", "reached"], rows


def merge(files: Sequence[Path], file: Path) -> Report:
    """Join reports of the same device, and write what comes of it.

    Args:
        files: reports with sections of their own, the oldest first.
        file: that is written.

    Raises:
        InputError: there is none, one cannot be read, or they are of several devices.
        OSError: the file cannot be written.
    """
    reports = [_read(one) for one in files]
    devices = sorted({report["device"] for report in reports})
    if len(devices) != 1:
        raise InputError(f"--merge: {' and '.join(devices) or 'no report'}: expected reports of one device")
    sections = {name: found for report in reports for name, found in report["sections"].items()}
    merged = {**reports[-1], "sections": sections}
    merged["ratios"], merged["reasons"] = ratios_of(sections)
    write_text(file, json.dumps(merged, indent=2) + "\n")
    return merged


def _begin(call: Call, names: Sequence[str], file: Path | None) -> Report:
    """The report before anything is measured, with the sections that the file has."""
    environment = describe_environment(SingleProcess(), call.device)
    report = {
        # With another name, a tiny run is neither mistaken for a measurement nor merged with one.
        "device": device_name(call.device) + (TINY if call.tiny else ""),
        "versions": {"python": environment["python"], "cuda": environment["cuda"], **environment["packages"]},
        "date": str(date.today()),
        "environment": environment,
        "sections": {},
    }
    if not file or not file.exists():
        return report
    before = _read(file)
    if names == ["page"]:
        return before
    if before["device"] != report["device"]:
        raise InputError(f"--json {file} holds {before['device']}, this is {report['device']}: name another")
    return {**report, "sections": before["sections"]}


def _read(file: Path) -> Report:
    """A report that was written before.

    Raises:
        InputError: the file is not a report.
        OSError: it cannot be read.
    """
    try:
        report: Report = json.loads(file.read_text())
    except ValueError:
        report = {}
    if not {"device", "sections"} <= report.keys():
        raise InputError(f"{file} is not a report of benchmarks/gpu: name another file")
    return report
