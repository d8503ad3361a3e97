"""``hpcdat report``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.benchmark_report import percentage, report_benchmarks
from hpcdat.cli.live_report import report_live
from hpcdat.cli.options import path
from hpcdat.cli.worker_process import reported_once
from hpcdat.errors import InputError
from hpcdat.report.result_table import result_table
from hpcdat.storage.run_folder import Result, RunFolder

if TYPE_CHECKING:
    from hpcdat.report.section import Section


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of runs; with --benchmark, files or folders of benchmarks.",
            show_default=False,
            parser=path,
        ),
    ],
    live: Annotated[
        bool, typer.Option("--live", help="Show a run that is under way, until it has ended or Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, metavar="PORT", help="With --live: as a page on this port; 0: any free one."
        ),
    ] = None,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="Tabulate benchmarks, each compared with the first.")
    ] = False,
    fail_if_slower: Annotated[
        float | None,
        typer.Option(
            metavar="N%",
            help="End with 1 if a row of a benchmark is slower than the first file's by more than this.",
            parser=percentage,
        ),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A paper's table: dat-1 to dat-4, conadv-1 to -5, conadv-fig2, conadv-fig4."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write report.md, .csv and .html and plots to this folder.", parser=path
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the report.", show_default=False)] = None,
) -> None:
    """Tabulate the results of runs and of given weights, also next to those of a paper.

    \b
    Examples:
      hpcdat report runs/demo runs/other
      hpcdat report runs/* --out report
      hpcdat report runs/dat-* --table dat-1 --table dat-4
      hpcdat report --live runs/demo
      hpcdat report --benchmark A.json B.json --fail-if-slower 10%

    Folders may be of runs or of evaluations of given weights (`hpcdat evaluate JOB.yaml`), which have no
    training: of these the table has the accuracies. For a folder with several seeds (`hpcdat train
    --seeds N`) the table ends with their mean. `--table`, which may be repeated, compares runs with the
    paper's rows that their jobs name in `reproduces`: the paper's number, ours and the ratio. Tables, plots
    and notes are written to `--out` (default: `report`). They include accuracy over the global batch, if runs
    of a method differ in it; RA over eps and steps, if `hpcdat evaluate` measured it; certified accuracy, if
    `hpcdat certify` did, which dat-2 needs; and TA and RA over the epochs, for jobs that reproduce the DAT
    paper's Figure 4. RA stands beside the PFLOP of the training, with those that 40, 44 and 46 % took, if the
    runs counted them. report.html is a single file: headlines, tables that can be sorted, and plots of RA
    over time, learning curves, C, throughput and step times, as far as the runs have them.

    With `--live`, progress, curves, the training time that is left and warnings of a run, from the files in
    its folder alone, so also from another node and over ssh. `--port` serves them as a page to this machine
    only, and prints the ssh command for another one.

    With `--benchmark`, tables of times, of fitted latencies and bandwidths, and of C beside that of the DAT
    paper's Table 4. `--fail-if-slower` ends with 1 if both median and minimum of a row that
    is steady in both files are slower, and with 2 if there is no steady row.
    """
    reported_once(lambda: _check_arguments(runs, table, fail_if_slower, benchmark=benchmark))
    others = {"--benchmark": benchmark, "--table": table, "--out": out, "--title": title}
    reported_once(lambda: _check_live(runs, port, others, live=live))
    if live:
        report_live(runs[0], port)
        return
    if benchmark:
        report_benchmarks(runs, out, title or "Benchmarks of hpcdat", fail_if_slower)
        return
    if table and out is None:
        out = Path("report")
    # A folder given twice is one run.
    runs = list(dict.fromkeys(runs))
    folders = [seed for run in runs for seed in _seeds_in(run) or [run]]
    if out is None:
        results = reported_once(lambda: {run: RunFolder(run).read_any_result() for run in folders})
        print(result_table(results, mean=len(runs) == 1))
        # It takes the packages of the report's page, which other commands need not wait for.
        from hpcdat.report.robustness_per_flop import robustness_sections

        trained = {run: result for run, result in results.items() if isinstance(result, Result)}
        for section in reported_once(lambda: robustness_sections(trained)):
            print(f"\n{section.markdown}", end="")
        return

    def write() -> tuple[list[Section], list[Path]]:
        from hpcdat.report.batches import batch_sections
        from hpcdat.report.certificate_section import certificate_sections
        from hpcdat.report.comparison import compare
        from hpcdat.report.comparison_section import comparison_section
        from hpcdat.report.epochs import epoch_sections
        from hpcdat.report.headline import headline
        from hpcdat.report.pages import write_report
        from hpcdat.report.robustness_per_flop import robustness_sections
        from hpcdat.report.run_plots import run_plots
        from hpcdat.report.runs import read_run
        from hpcdat.report.runs_section import runs_section
        from hpcdat.report.sweeps import sweep_sections

        given = {folder: RunFolder(folder) for folder in folders if RunFolder(folder).is_evaluation}
        evaluations = {folder: run.read_weights_result() for folder, run in given.items()}
        read = [read_run(folder) for folder in folders if folder not in given]
        comparisons = [compare(name, read) for name in table or []]
        sections = [comparison_section(comparison) for comparison in comparisons]
        if not table or evaluations:
            sections.append(runs_section([] if table else read, evaluations))
        if not any(comparison.table.certified for comparison in comparisons):
            sections += certificate_sections(read)
        if read:
            sections += [*batch_sections(read), *sweep_sections(read), *epoch_sections(read)]
            sections += robustness_sections({run.folder: run.result for run in read})
        cards, plots = headline(read, evaluations, comparisons), run_plots(read)
        return sections, write_report(sections, out, title or "Runs of hpcdat", cards=cards, plots=plots)

    sections, files = reported_once(write)
    print("\n".join(section.markdown for section in sections), end="")
    for file in files:
        print(f"written: {file}")


def _check_arguments(
    runs: list[Path], table: list[str] | None, fail_if_slower: float | None, *, benchmark: bool
) -> None:
    """Refuse for runs what only benchmarks have, and the other way round."""
    if benchmark and table:
        raise InputError("--table: not allowed with --benchmark, which adds the DAT paper's Table 4 itself")
    if fail_if_slower is not None and not benchmark:
        raise InputError("--fail-if-slower: only with --benchmark")
    if not benchmark and (files := [run for run in runs if run.is_file()]):
        raise InputError(f"{files[0]} is not the folder of a run; --benchmark reads files of benchmarks")


def _check_live(runs: list[Path], port: int | None, others: Mapping[str, object], *, live: bool) -> None:
    """Refuse with ``--live`` what only a report of finished runs has, and the other way round."""
    if not live and port is not None:
        raise InputError("--port: only with --live")
    if live and len(runs) != 1:
        raise InputError(f"--live: expected one run, not {len(runs)}")
    if live and (given := [name for name, value in others.items() if value]):
        raise InputError(f"{', '.join(given)}: not allowed with --live")


def _seeds_in(run: Path) -> list[Path]:
    """The run folders of a job's seeds, in the order of their numbers."""
    return sorted(run.glob("seed-*"), key=lambda folder: (len(folder.name), folder.name))
