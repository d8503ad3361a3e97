"""What several runs cost and how they learnt, as plots for a report's page; only those with data for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from statistics import fmean, median
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpcdat.evaluation.attack_text import describe_evaluation
from hpcdat.report.drawing import legend_under, line_style, svg, wrapped
from hpcdat.report.runs import Run, by_job, evaluations_on_test_images
from hpcdat.report.section import Plot
from hpcdat.storage.run_folder import RunFolder

MOST_JOBS = 12
"""Largest number of jobs in a plot with a line for each."""

MOST_MARKERS = 40
"""Largest number of markers of a line."""

Jobs = Mapping[str, Sequence[Run]]
"""Runs by the name of their job; several runs of a job are its seeds."""
Point = tuple[float, float, str]
"""Horizontal and vertical coordinate, and the text that the mouse shows."""


def run_plots(runs: Sequence[Run]) -> list[Plot]:
    """RA over time, learning curves, C over MiB, throughput and step times, as far as the runs have them.

    Raises:
        RunError: the metrics of a run are damaged.
    """
    every = by_job(runs)
    jobs = dict(list(every.items())[:MOST_JOBS])
    only = f" Of {len(every)} jobs, the first {MOST_JOBS}." if len(jobs) < len(every) else ""
    found = [plot(jobs) for plot in (_ra_over_time, _learning, _communication, _step_times)]
    plots = [*found, _throughput(runs)]
    return [
        Plot(plot.name, plot.title, plot.svg, plot.caption + (only if plot in found else ""))
        for plot in plots
        if plot
    ]


def _ra_over_time(jobs: Jobs) -> Plot | None:
    """RA after each evaluation, over the seconds of training until then."""
    attacks = dict.fromkeys(describe_evaluation(run.job) for seeds in jobs.values() for run in seeds)
    lines: list[tuple[str, list[Point]]] = []
    for run, name in _each(jobs):
        seconds = dict(
            zip(
                [epoch["epoch"] for epoch in run.epochs],
                accumulate(epoch["total_seconds"] for epoch in run.epochs),
                strict=True,
            )
        )
        label = name if len(attacks) == 1 else f"{name}, {describe_evaluation(run.job)}"
        points = [
            (seconds[epoch], 100 * one["ra"], f"{label}, epoch {epoch}: RA {100 * one['ra']:.2f} %")
            for epoch, one in sorted(evaluations_on_test_images(RunFolder(run.folder)).items())
            if epoch in seconds
        ]
        lines.append((label, points))
    if sum(len(points) for _, points in lines) < 2:
        return None
    figure = _panel()
    titles = _draw(figure.axes[0], lines, "seconds of training", "RA (%)")
    legend_under(figure)
    caption = (
        "RA on the test images against the seconds that the training had taken, evaluations not counted; "
        f"under {'; '.join(attacks)}."
    )
    return Plot("ra-over-time", "RA over the time spent", svg(figure, titles), caption)


def _learning(jobs: Jobs) -> Plot | None:
    """Cost, training accuracy, TA and RA over the epochs."""
    if all(len(run.epochs) < 2 for seeds in jobs.values() for run in seeds):
        return None
    measures: dict[str, Callable[[Run], dict[int, float | None]]] = {
        "cost": lambda run: {epoch["epoch"]: epoch.get("cost") for epoch in run.epochs},
        "training accuracy (%)": lambda run: {
            epoch["epoch"]: _percent(epoch.get("training_accuracy")) for epoch in run.epochs
        },
        "TA (%)": lambda run: {
            epoch: _percent(one["ta"])
            for epoch, one in evaluations_on_test_images(RunFolder(run.folder)).items()
        },
        "RA (%)": lambda run: {
            epoch: _percent(one["ra"])
            for epoch, one in evaluations_on_test_images(RunFolder(run.folder)).items()
        },
    }
    panels: dict[str, list[tuple[str, list[Point]]]] = {}
    for label, measure in measures.items():
        lines = []
        for run, name in _each(jobs):
            known = {epoch: value for epoch, value in sorted(measure(run).items()) if value is not None}
            points = [(float(e), v, f"{name}, epoch {e}: {label} {v:.4g}") for e, v in known.items()]
            lines.append((name, points))
        if any(len(points) > 1 for _, points in lines):
            panels[label] = lines
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(7.2, 2.5 * rows), layout="constrained")
    titles: dict[Artist, list[str]] = {}
    for place, (label, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, min(len(panels), 2), place)
        titles |= _draw(axes, lines, "epoch", label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_under(figure)
    training = {"cost": "Cost", "training accuracy (%)": "training accuracy"}
    seen = " and ".join(text for label, text in training.items() if label in panels)
    caption = f"{', '.join(panels)[0].upper()}{', '.join(panels)[1:]} after each epoch."
    caption += f" {seen[0].upper()}{seen[1:]}: of the images of the training." if seen else ""
    return Plot("learning-curves", "Learning curves", svg(figure, titles), caption)


def _communication(jobs: Jobs) -> Plot | None:
    """C against the bytes of an iteration."""
    lines = []
    for name, seeds in jobs.items():
        measured = [(run.result.megabytes, run.result.communication) for run in seeds]
        label = f"{name}: {seeds[0].result.exchange}"
        points = [(mib, c, f"{name}: {mib:.3g} MiB, C {c:.3g} s") for mib, c in measured if mib and c]
        lines.append((label, points))
    if len({round(mib, 6) for _, points in lines for mib, _, _ in points}) < 2:
        return None
    figure = _panel()
    lines = [(name, points) for name, points in lines if points]
    titles = _draw(figure.axes[0], lines, "MiB per iteration, all workers", "C (s an epoch)", joined=False)
    figure.axes[0].set_xlim(left=0)
    figure.axes[0].set_ylim(bottom=0)
    legend_under(figure)
    caption = (
        "Seconds of an epoch in gradient exchanges against the MiB (2^20 bytes, computed) that all workers "
        "together send in an iteration."
    )
    return Plot("communication", "C against MiB", svg(figure, titles), caption)


def _throughput(runs: Sequence[Run]) -> Plot | None:
    """Images per second over the number of workers, for runs that differ in nothing else."""
    alike: dict[str, dict[int, list[Run]]] = {}
    for run in runs:
        if run.result.images_per_second:
            recipe = {key: value for key, value in run.recipe.items() if key != "RA"}
            recipe["devices"] = sorted({worker["device"] for worker in run.environment["workers"]})
            recipe["links"] = run.environment.get("emulated_links")
            workers = alike.setdefault(json.dumps(recipe, default=str, sort_keys=True), {})
            workers.setdefault(run.result.p * run.result.q, []).append(run)
    scaled = [dict(sorted(by_workers.items())) for by_workers in alike.values() if len(by_workers) > 1]
    if not scaled:
        return None
    figure = _panel()
    axes, titles = figure.axes[0], dict[Artist, list[str]]()
    names = {id(run): name for name, seeds in by_job(runs).items() for run in seeds}
    for number, by_workers in enumerate(scaled):
        label = ", ".join(dict.fromkeys(names[id(run)] for some in by_workers.values() for run in some))
        means = {count: fmean(_rates(some)) for count, some in by_workers.items()}
        fewest = min(means)
        style = line_style(number)
        ideal = [means[fewest] * count / fewest for count in means]
        axes.plot(list(means), ideal, color=style["color"], linestyle=":", label=f"ideal, from {fewest}")
        (line,) = axes.plot(list(means), list(means.values()), label=wrapped(label), **style)
        titles[line] = [
            f"{count} workers: {rate:,.0f} images/s, {rate / best:.0%} of ideal"
            for (count, rate), best in zip(means.items(), ideal, strict=True)
        ]
    axes.set_xlabel("workers", fontsize=9)
    axes.set_ylabel("images/s, all workers", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_under(figure)
    caption = (
        "Images that all workers together train on per second, means over seeds, for runs that differ only "
        "in the number of workers; dotted: proportional to it, from the fewest workers."
    )
    return Plot("throughput", "Throughput over workers", svg(figure, titles), caption)


def _step_times(jobs: Jobs) -> Plot | None:
    """The step times of each worker."""
    lines = []
    for run, name in _each(jobs):
        epochs = [epoch["workers"] for epoch in run.epochs if epoch.get("workers")]
        # A run may have been resumed with another number of workers: those of the last epoch count.
        epochs = [one for one in epochs if len(one["step_seconds"]) == len(epochs[-1]["step_seconds"])]
        if not epochs or len(epochs[0]["step_seconds"]) < 2:
            continue
        own = zip(*(epoch["step_seconds"] for epoch in epochs), strict=True)
        longest = zip(*(epoch["longest_step_seconds"] for epoch in epochs), strict=True)
        points = [
            (
                float(rank),
                1000 * median(times),
                f"{name}, rank {rank}: {1000 * median(times):.3g} ms, longest {1000 * max(worst):.3g} ms",
            )
            for rank, (times, worst) in enumerate(zip(own, longest, strict=True))
        ]
        lines.append((name, points))
    if not lines:
        return None
    figure = _panel()
    titles = _draw(figure.axes[0], lines, "rank of the worker", "step time (ms)")
    legend_under(figure)
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    caption = (
        "Milliseconds that each worker needs for its own part of a step, without waiting for images and "
        "other workers: medians of an epoch's steps, then of the epochs."
    )
    return Plot("step-times", "Step times by rank", svg(figure, titles), caption)


def _each(jobs: Jobs) -> list[tuple[Run, str]]:
    """Every run with the name of its job, and its seed if the job has several."""
    return [
        (run, f"{name}, seed {run.result.seed}" if len(seeds) > 1 else name)
        for name, seeds in jobs.items()
        for run in seeds
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _rates(runs: Sequence[Run]) -> list[float]:
    return [rate for run in runs if (rate := run.result.images_per_second)]


def _panel() -> Figure:
    """A figure with one panel and room for a legend beside it."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    figure.add_subplot()
    return figure


def _draw(
    axes: Axes,
    lines: Sequence[tuple[str, Sequence[Point]]],
    x_label: str,
    y_label: str,
    *,
    joined: bool = True,
) -> dict[Artist, list[str]]:
    """Draw a line for each label; the titles of its points, for :func:`~hpcdat.report.drawing.svg`."""
    titles: dict[Artist, list[str]] = {}
    for number, (label, points) in enumerate(lines):
        if not points:
            continue
        # Of many points only some have a marker and a title, which keeps pages small.
        every = -(-len(points) // MOST_MARKERS)
        style: dict[str, Any] = line_style(number) | {"markevery": every}
        if not joined:
            style["linestyle"] = "none"
        (line,) = axes.plot(
            [x for x, *_ in points], [y for _, y, _ in points], label=wrapped(label), clip_on=False, **style
        )
        titles[line] = [text for *_, text in points[::every]]
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    return titles
