"""The report: sections are measured and merged into its JSON; ratios and tables follow from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from tabulate import tabulate

from gpu import codec, concurrent, horovod, speedrun, step, ten_minutes
from gpu.section import Call, Measured, Section, Table
from hpcdat.distributed.environment import describe_environment, device_name
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.storage.atomic_files import write_text

SECTIONS: dict[str, Section] = {
    "speedrun": speedrun,
    "ten-minutes": ten_minutes,
    "step": step,
    "codec": codec,
    "concurrent": concurrent,
    "horovod": horovod,
}
RATIOS = (
    "seconds_to_46_robust",
    "pgd10_over_eager_fp32",
    "pgd10_over_foolbox",
    "codec_of_copy_bandwidth",
    "conadv_over_disadv_64",
    "robust_bf16_minus_fp32",
)
"""In the order of the JSON."""

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
    found: dict[str, float | str] = dict.fromkeys(RATIOS, "not measured")
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
    """Print tables and ratios."""
    for title, (header, rows) in tables_of(report["sections"]).items():
        print(f"{title}\n\n{tabulate(rows, header, tablefmt='github', disable_numparse=True)}\n")
    for name, ratio in report["ratios"].items():
        print(f"{name}: {report['reasons'][name] if ratio is None else format(ratio, '.4g')}")


def _begin(call: Call, names: Sequence[str], file: Path | None) -> Report:
    """The report before anything is measured, with the sections that the file has."""
    environment = describe_environment(SingleProcess(), call.device)
    report = {
        # With another name, a tiny run is neither mistaken for a measurement nor merged with one.
        "device": device_name(call.device) + (", tiny test run" if call.tiny else ""),
        "versions": {"python": environment["python"], "cuda": environment["cuda"], **environment["packages"]},
        "date": str(date.today()),
        "environment": environment,
        "sections": {},
    }
    if not file or not file.exists():
        return report
    try:
        before: Report = json.loads(file.read_text())
    except ValueError:
        before = {}
    if not {"device", "sections"} <= before.keys():
        raise InputError(f"--json {file} is not a report of benchmarks/gpu: name another file")
    if names == ["page"]:
        return before
    if before["device"] != report["device"]:
        raise InputError(f"--json {file} holds {before['device']}, this is {report['device']}: name another")
    return {**report, "sections": before["sections"]}
