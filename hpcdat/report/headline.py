"""The headlines of a report's page: how good the best run is, what it cost, how it compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from hpcdat.evaluation.intervals import with_interval
from hpcdat.report.certificates import read_certificates
from hpcdat.report.comparison import Comparison
from hpcdat.report.comparison_notes import differences_of
from hpcdat.report.durations import duration
from hpcdat.report.quantities import QUANTITIES, training_seconds
from hpcdat.report.result_table import energy_text, of_seeds
from hpcdat.report.runs import Run, by_job, short_names
from hpcdat.report.section import Card
from hpcdat.storage.evaluated import Evaluated, WeightsResult
from hpcdat.storage.run_folder import Result, RunFolder

MOST_ATTACKS = 2
"""Largest number of attacks with a card for each."""
MOST_ROWS = 4
"""Largest number of a paper's rows on a card."""


def headline(
    runs: Sequence[Run], given: Mapping[Path, WeightsResult], comparisons: Sequence[Comparison]
) -> list[Card]:
    """The cards of a report.

    Args:
        runs, given: what it is about.
        comparisons: with papers' tables.

    Raises:
        InputError: the certificates of a run are damaged.
    """
    if not runs:
        evaluations = {name: [given[folder]] for folder, name in short_names(list(given)).items()}
        return _robust(evaluations) if given else []
    jobs = by_job(runs)
    accuracies = {name: [run.result for run in seeds] for name, seeds in jobs.items()}
    cards = [*_robust(accuracies), *_autoattacked(runs), *_certified(runs)]
    _, alike = _by_attack(accuracies)[0]
    best = _best(alike)
    cards += _cost(best, jobs[best], alone=len(jobs) == 1)
    if len(jobs) > 1:
        cards.append(_shortest(jobs))
    return [*cards, *(card for comparison in comparisons for card in _compared(comparison))]


def _robust(jobs: Mapping[str, Sequence[Evaluated]]) -> list[Card]:
    """For each attack the job with the highest RA, its TA and its fast bound; those of most jobs first."""
    cards = []
    for attack, alike in _by_attack(jobs)[:MOST_ATTACKS]:
        best = _best(alike)
        seeds = alike[best]
        ta, ra = (
            of_seeds([100 * getattr(one, key) for one in seeds], seeds[0].images) for key in ("ta", "ra")
        )
        which = "Robust accuracy (RA)" if len(alike) == 1 else f"Highest RA of {len(alike)} jobs"
        several = f", mean ± s.d. of {len(seeds)} seeds" if len(seeds) > 1 else ""
        lines = [f"{best}{several}", f"clean accuracy (TA) {ta} %", f"under {attack}"]
        bounds = [100 * one.fast_bound for one in seeds if one.fast_bound is not None]
        if len(bounds) == len(seeds):
            lines.append(f"fast bound {of_seeds(bounds, seeds[0].images)} %")
        cards.append(Card(which, f"{ra} %", lines))
    return cards


def _by_attack(jobs: Mapping[str, Sequence[Evaluated]]) -> list[tuple[str, dict[str, Sequence[Evaluated]]]]:
    """Jobs whose RA is under the same attack and of as many images, most jobs first."""
    by_attack: dict[str, dict[str, Sequence[Evaluated]]] = {}
    for name, seeds in jobs.items():
        conditions = f"{seeds[0].conditions}, {seeds[0].images:,} test images"
        by_attack.setdefault(conditions, {})[name] = seeds
    return sorted(by_attack.items(), key=lambda item: -len(item[1]))


def _best(jobs: Mapping[str, Sequence[Evaluated]]) -> str:
    """The job with the highest RA, the mean of its seeds."""
    return max(jobs, key=lambda name: fmean(one.ra for one in jobs[name]))


def _autoattacked(runs: Sequence[Run]) -> list[Card]:
    """The highest AA among runs with the same ball, version and number of images, as most runs have them."""
    measured: dict[tuple[str, str, int], dict[str, Result]] = {}
    for run, name in _names(runs):
        if run.result.aa is not None:
            ball = run.result.attack.partition(", ")[2]
            key = (ball, run.result.aa_version or "standard version", run.result.aa_images or 0)
            measured.setdefault(key, {})[name] = run.result
    if not measured:
        return []
    (ball, version, most), alike = max(measured.items(), key=lambda item: (len(item[1]), item[0][2]))
    best = max(alike, key=lambda name: alike[name].aa or 0.0)
    result = alike[best]
    lines = [best, f"{version}, {ball}, {most:,} test images"]
    if result.aa_ra is not None and most != result.images:
        lines.append(f"RA on the same images {with_interval(result.aa_ra, most)} %")
    which = "AutoAttack (AA)" if len(alike) == 1 else f"Highest AA of {len(alike)} runs"
    return [Card(which, f"{with_interval(result.aa or 0.0, most)} %", lines)]


def _certified(runs: Sequence[Run]) -> list[Card]:
    """The largest mean certified radius."""
    found = [
        (name, one)
        for run, name in _names(runs)
        for one in read_certificates(RunFolder(run.folder).certification_folder)
    ]
    if not found:
        return []
    name, best = max(found, key=lambda pair: pair[1].average_radius)
    which = (
        "Mean certified radius (ACR)" if len(found) == 1 else f"Largest ACR of {len(found)} certifications"
    )
    settings = f"{len(best.counts):,} images, n = {best.n:,}, alpha = {best.alpha:g}"
    clean = with_interval(best.accuracy(0.0), len(best.counts), 1)
    return [
        Card(
            which,
            f"{best.average_radius:.3f}",
            [f"{name}, sigma {best.sigma:g}", settings, f"accuracy at r = 0: {clean} %"],
        )
    ]


def _cost(name: str, seeds: Sequence[Run], *, alone: bool) -> list[Card]:
    """Time, communication and energy of a job, means over its seeds."""
    first, of = seeds[0].result, "" if alone else f"{name}, the job with the highest RA"
    workers = first.p * first.q
    seconds = fmean(map(training_seconds, seeds))
    epochs = len(seeds[0].epochs)
    if _changed_workers(seeds):
        lines = [of, f"{epochs} epochs on a changing number of workers, evaluations not counted"]
    else:
        on = f"{workers} {'worker' if workers == 1 else 'workers'}"
        lines = [of, f"{epochs} epochs on {on}, evaluations not counted"]
        lines.append(f"{duration(workers * seconds)} of workers' time")
    if rate := _mean(seeds, lambda run: run.result.images_per_second):
        lines.append(f"{rate:,.0f} images/s")
    energy = energy_text(first)
    of_one = f" of seed {first.seed}" if len(seeds) > 1 else ""
    lines.append("energy not measured" if energy == "-" else f"energy{of_one} (Wh) {energy}")
    cards = [Card("Training time", duration(seconds), list(filter(None, lines)))]
    c, t = (_mean(seeds, QUANTITIES[key].measure or (lambda run: None)) for key in ("c", "t"))
    if c is not None and t:
        sent = _mean(seeds, lambda run: run.result.megabytes)
        lines = [of, f"C {c:.3g} s of T {t:.3g} s an epoch", first.exchange]
        if sent is not None:
            lines.append(f"{sent:.3g} MiB per iteration, all workers")
        cards.append(Card("Communication", f"{100 * c / t:.0f} % of T", list(filter(None, lines))))
    return cards


def _changed_workers(seeds: Sequence[Run]) -> bool:
    """Whether a run was resumed with another number of workers, as far as its epochs record that."""
    return any(
        len(epoch["workers"]["step_seconds"]) != run.result.p * run.result.q
        for run in seeds
        for epoch in run.epochs
        if epoch.get("workers")
    )


def _shortest(jobs: Mapping[str, Sequence[Run]]) -> Card:
    """The job with the least training time, whatever it trained."""
    name = min(jobs, key=lambda job: fmean(map(training_seconds, jobs[job])))
    seeds = jobs[name]
    accuracies = of_seeds([100 * run.result.ra for run in seeds], seeds[0].result.images)
    lines = [
        name,
        f"RA {accuracies} %",
        f"under {seeds[0].result.conditions}",
        f"{len(seeds[0].epochs)} epochs",
    ]
    return Card(
        f"Shortest training of {len(jobs)} jobs", duration(fmean(map(training_seconds, seeds))), lines
    )


def _compared(comparison: Comparison) -> list[Card]:
    """How many of a paper's rows were run, and ours and its ratios within each side."""
    table = comparison.table
    rows = [row for row in comparison.rows if not row.beside and not row.row.cited]
    run = sum(bool(row.runs) for row in rows)
    lines = []
    for key in table.quantities:
        both = [
            row for row in rows if key in row.ours and key in row.paper and row.row.key != row.row.reference
        ]
        if QUANTITIES[key].derive is None or not both:
            continue
        digits = QUANTITIES[key].digits
        lines.append(f"{QUANTITIES[key].header}, ours / the paper's:")
        lines += [
            f"{row.row.label}, {row.row.setup}: {row.ours[key]:.{digits}f} / {row.paper[key]:.{digits}f}"
            for row in both[:MOST_ROWS]
        ]
        break
    if any(differences_of(run, row) for row in rows for run in row.runs):
        lines.append("other work than the paper's: see the notes")
    return [Card(table.title.partition(":")[0], f"{run} of {len(rows)} rows run", lines)]


def _names(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    names = short_names([run.folder for run in runs])
    return [(run, names[run.folder]) for run in runs]


def _mean(runs: Sequence[Run], value: Callable[[Run], float | None]) -> float | None:
    known = [measured for run in runs if (measured := value(run)) is not None]
    return fmean(known) if known else None
