"""RA over radii and over steps of several runs: Figure 3 of the DAT paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpcdat.evaluation.attack_text import in_pixel_units
from hpcdat.evaluation.intervals import with_interval
from hpcdat.evaluation.sweep import sweep_name
from hpcdat.report.plots import plot_sweep
from hpcdat.report.result_table import INTERVALS
from hpcdat.report.runs import Run, folder_names
from hpcdat.report.section import Section
from hpcdat.report.sweep_files import in_255ths, value_text
from hpcdat.storage.evaluated import ATTACK_SETTINGS
from hpcdat.storage.run_folder import RunError, RunFolder

SWEEP_MEANINGS = {
    "plain": "At each value, one PGD attack from its own start",
    "accumulating": "An image counts as robust only if it also is at all smaller values",
}
"""What each kind of sweep measures, for the notes below its table."""
SWEEP_TITLES = {
    "plain": "RA over {}, as in Figure 3 of the DAT paper: plain PGD at each value",
    "accumulating": "RA over {}, accumulating: robust at all smaller values too",
}
"""The title of each kind of sweep; {} is what it varies."""
CAPTIONS = {
    "eps": "RA of each run against the radius of the attack.",
    "steps": "RA of each run against the number of steps of the attack.",
}
"""What the plot of each kind of sweep shows."""


@dataclass(frozen=True)
class Swept:
    """A sweep of a run, measured by ``hpcdat evaluate``.

    Attributes:
        run: the run.
        label: the run's method and folder, and settings that differ from its own.
        curve: RA in [0, 1] by radius or number of steps.
        settings: those in which sweeps must agree to be comparable.
        images: signature of the test images.
    """

    run: Run
    label: str
    curve: Mapping[float, float]
    settings: Mapping[str, Any]
    images: str


def sweep_sections(runs: Sequence[Run]) -> list[Section]:
    """Sweeps over eps and over steps, one section for each kind and setting; none if there are no sweeps.

    Radii have the same unit in all tables and plots.

    Raises:
        RunError: the evaluation of a run cannot be read.
    """
    names = folder_names(runs)
    found: dict[tuple[str, str], dict[str, list[Swept]]] = {}
    for over in ("eps", "steps"):
        for kind in SWEEP_MEANINGS:
            for swept in (one for run in runs for one in _read(run, names[run.folder], over, kind)):
                settings = _describe(swept.settings)
                _add(swept, found.setdefault((over, kind), {}).setdefault(settings, []))
    radii = [
        value
        for (over, _), alike in found.items()
        for some in alike.values()
        for one in some
        for value in one.curve
        if over == "eps"
    ]
    fine = in_255ths(radii)
    return [
        _section(over, kind, number, settings, alike, fine=fine)
        for (over, kind), alike in found.items()
        for number, settings in enumerate(alike, start=1)
    ]


def _add(swept: Swept, sweeps: list[Swept]) -> None:
    """Add a sweep to those with the same settings, unless it repeats one of its run."""
    names = (swept.label, *(f"{swept.label} ({number})" for number in range(2, len(sweeps) + 2)))
    repeats = [one for one in sweeps if one.label in names]
    if swept.curve not in [one.curve for one in repeats]:
        label = f"{swept.label} ({len(repeats) + 1})" if repeats else swept.label
        sweeps.append(replace(swept, label=label))


def _section(
    over: str, kind: str, number: int, settings: str, alike: Mapping[str, Sequence[Swept]], *, fine: bool
) -> Section:
    """One plot, of the sweeps with these settings.

    Args:
        over, kind: of the sweeps.
        number: of the section among those of this kind.
        settings: of the sweeps.
        alike: all sweeps of this kind by settings.
        fine: whether radii are in 255ths.
    """
    sweeps = alike[settings]
    values = sorted({value for one in sweeps for value in one.curve})
    header = ["run", *(value_text(over, value, fine=fine) for value in values)]
    rows = [[one.label, *(_cell(one, value) for value in values)] for one in sweeps]
    notes = [
        f"RA (%) under PGD: {settings}. {SWEEP_MEANINGS[kind]}. Steps are 2.5 eps / steps long. {INTERVALS}",
        *(note for one in sweeps if (note := _other_ra(one, over, kind))),
    ]
    if len({one.images for one in sweeps}) > 1:
        notes.append("Not all of these runs were measured on the same files of test images (or copies).")
    notes += [
        f"Not in this plot: {'; '.join(one.label for one in some)}, measured differently: {other}."
        for other, some in alike.items()
        if other != settings
    ]
    title = SWEEP_TITLES[kind].format(over) + (f" ({settings})" if len(alike) > 1 else "")
    ending = ("" if kind == "plain" else f"-{kind}") + (f"-{number}" if number > 1 else "")
    plot = plot_sweep(over, {one.label: one.curve for one in sweeps}, fine=fine)
    return Section(f"ra-over-{over}{ending}", title, header, rows, 1, plot, notes, CAPTIONS[over])


def _cell(one: Swept, value: float) -> str:
    return with_interval(one.curve[value], one.settings["images"]) if value in one.curve else ""


def _other_ra(one: Swept, over: str, kind: str) -> str | None:
    """Why a sweep has another RA than the run's result at the radius and number of steps of the latter."""
    result, own = one.run.result, one.run.job.evaluation
    value = own.resolved_eps if over == "eps" else own.steps
    fixed = one.settings.get("steps") == own.steps if over == "eps" else one.settings.get("eps") == own.eps
    here = one.curve.get(value)
    if not fixed or one.settings["norm"] != own.norm or here is None or here == result.ra:
        return None
    place = f"eps {in_pixel_units(value)}" if over == "eps" else f"{value} steps"
    how = SWEEP_MEANINGS[kind]
    return (
        f"{one.label}: at {place} RA is {100 * here:.2f} here and {100 * result.ra:.2f} in the run's result: "
        f"here {how[0].lower()}{how[1:]}, on {one.settings['images']:,} images; there {result.conditions} on "
        f"{result.images:,} images."
    )


def _read(run: Run, name: str, over: str, kind: str) -> list[Swept]:
    """The sweeps of a run: with its own settings, if there is one, and with others."""
    file = RunFolder(run.folder).evaluation_file
    try:
        stored = json.loads(file.read_text())
        evaluations = [stored, *stored.get("others", [])]
        return [
            swept for evaluation in evaluations if (swept := _read_one(evaluation, run, name, over, kind))
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{file} cannot be read ({error!r}): remove it and run `hpcdat evaluate {run.folder}` again"
        ) from None


def _read_one(evaluation: Mapping[str, Any], run: Run, name: str, over: str, kind: str) -> Swept | None:
    """A sweep in one evaluation; None if it was not measured."""
    # Before there were kinds, accumulating sweeps had the name of the plain ones.
    named = [evaluation["sections"].get(sweep_name(over, other)) for other in (kind, "plain")]
    found = [one for one in named if one is not None]
    alike = (one for one in found if one["attack"].get("kind", "accumulating") == kind)
    if (section := next(alike, None)) is None:
        return None
    fixed = {key: value for key, value in section["attack"].items() if key not in (over, "kind")}
    settings = {**fixed, "images": section["images"]}
    others = [text for text in evaluation.get("changed", ()) if text.partition(":")[0] not in ATTACK_SETTINGS]
    label = "; ".join([f"{run.result.method}, {name}", *others])
    return Swept(run, label, dict(section["curve"]), settings, evaluation["images"]["signature"])


def _describe(settings: Mapping[str, Any]) -> str:
    start = "a random start" if settings["random_start"] else "no random start"
    ball = f"eps {in_pixel_units(settings['eps'])}" if "eps" in settings else f"{settings['steps']} steps"
    return f"{settings['norm']}, {ball}, {start}, {settings['images']:,} images"
