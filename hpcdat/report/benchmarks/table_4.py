"""Measured exchanges beside C of the DAT paper's Table 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpcdat.performance.benchmark_file import Row, Value
from hpcdat.report.benchmarks.files import Files, machines
from hpcdat.report.benchmarks.fit import fit
from hpcdat.report.benchmarks.lines import Line, Series, varying
from hpcdat.report.benchmarks.values import describe, percent
from hpcdat.report.papers.dat import HPC, TABLES
from hpcdat.report.papers.paper_table import PaperRow
from hpcdat.report.section import Section

TABLE = next(table for table in TABLES if table.name == "dat-4")
GRADIENT = 4 * 25_557_032
"""Bytes of ResNet-50's gradient in float32."""
IMAGES, WORKERS, BATCH = 1_281_167, 6 * 6, 85
"""Of Table 4: images of an epoch, workers, and images of a worker in an iteration."""
ITERATIONS = IMAGES // (WORKERS * BATCH)
"""Of an epoch of Table 4: 418."""
NOTHING = "-"


def table_4_section(files: Files, series: Sequence[Series]) -> Section | None:
    """C of each measured exchange beside the paper's; None if no exchange was measured.

    Args:
        files: by name.
        series: what they have measured over sizes.
    """
    exchanges = [one for one in series if one.parameters.get("operation") == "exchange"]
    if not exchanges:
        return None
    others = varying([Line(one.parameters, {}) for one in exchanges])
    shown = ["protocol", *(key for key in others if key not in ("protocol", "bits", "two_sided"))]
    fgsm = {row.key: row.values["c"] for row in TABLE.rows}
    rows, missing = [], []
    for paper in TABLE.rows:
        if not paper.key.startswith("dat-pgd"):
            continue
        stated = [f"{paper.values['c']:g}", f"{fgsm[paper.key.replace('pgd', 'fgsm')]:g}"]
        comparable = [one for one in exchanges if _is_comparable(paper, one.parameters)]
        for one in comparable:
            own = [describe({key: one.parameters.get(key) for key in shown})]
            own.append("yes" if one.parameters.get("protocol") == _protocol_of(paper) else "no")
            rows.append([paper.setup, *own, *(_c(one.points.get(name, {})) for name in files), *stated])
        if not comparable:
            missing.append(paper.setup)
    header = ["row of Table 4", "our exchange", "the paper's protocol", *(f"C, {name} (s)" for name in files)]
    header += ["C, the paper's DAT-PGD (s)", "DAT-FGSM (s)"]
    notes = [
        f"C: seconds of {ITERATIONS} exchanges of ResNet-50's gradient, {GRADIENT:,} bytes in float32: the "
        f"iterations of the paper's epoch, {IMAGES:,} images, {BATCH} on each of {WORKERS} workers.",
        "From the fit: this size was not measured; the time is that of the fitted latency and bandwidth, "
        "within so many % of all measured ones. Extrapolated: it is not between the measured sizes either. "
        f"{NOTHING}: not in this file, at too few sizes for a fit, or only at sizes that latency dominates.",
        "The paper's protocol between its nodes is an all-gather one-sided, a parameter server two-sided and "
        "a ring with fast links, as the bytes of Table 4 have it; its text says ring for all.",
        f"Numbers of nodes and links differ: compare the rows within each column. Paper: {TABLE.hardware}. "
        f"Ours: {_ours(files)}.",
    ]
    if missing:
        notes.append(f"No exchange like these rows of the paper was measured: {'; '.join(missing)}.")
    return Section("table-4", "C beside the DAT paper's Table 4", header, rows, 3, "", notes)


def _ours(files: Files) -> str:
    """What each file was measured on."""
    texts = []
    for name, file in files.items():
        facts = machines(file)
        shown = f"{facts['p x q']} workers, {facts['devices']}, {facts['transport']}, card {facts['card']}"
        texts.append(f"{name}: {shown}")
    return "; ".join(texts)


def _protocol_of(paper: PaperRow) -> str:
    """The protocol between nodes of a row of the paper."""
    return str(paper.work.get("exchange.between_nodes", paper.work["exchange.protocol"]))


def _is_comparable(paper: PaperRow, parameters: Mapping[str, Value]) -> bool:
    """Whether an exchange has the bits and sides of a row; for the row with fast links, its protocol too."""
    sides = parameters.get("two_sided"), paper.work.get("exchange.two_sided", False)
    if parameters.get("bits") != paper.work["exchange.bits"] or sides[0] != sides[1]:
        return False
    return not HPC.items() <= paper.work.items() or parameters.get("protocol") == _protocol_of(paper)


def _c(points: Mapping[int, Row]) -> str:
    """C of an exchange, from the measured size or else from the fit to the others."""
    if row := points.get(GRADIENT):
        return f"{ITERATIONS * row.median:.4g}"
    line = fit(points)
    if line is None or not line.shows_bandwidth:
        return NOTHING
    how = f"from the fit, within {percent(line.deviation)}"
    if not line.smallest <= GRADIENT <= line.largest:
        how += ", extrapolated"
    return f"{ITERATIONS * line.seconds(GRADIENT):.4g} ({how})"
