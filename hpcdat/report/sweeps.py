"""RA over radii and over steps of several runs: Figure 3 of the DAT paper."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcdat.evaluation.sweep import sweep_name
from hpcdat.report.pages import Section
from hpcdat.report.plots import plot_sweep
from hpcdat.report.result_table import in_pixel_units
from hpcdat.report.runs import Run, folder_names
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


@dataclass(frozen=True)
class Swept:
    """A sweep of a run, measured by ``hpcdat evaluate``.

    Attributes:
        run: the run.
        curve: RA in [0, 1] by radius or number of steps.
        settings: those in which sweeps must agree to be comparable.
        images: signature of the test images.
    """

    run: Run
    curve: Mapping[float, float]
    settings: Mapping[str, Any]
    images: str


def sweep_sections(runs: Sequence[Run]) -> list[Section]:
    """Sweeps over eps and over steps, one section for each kind and setting; none if there are no sweeps.

    Raises:
        RunError: the evaluation of a run cannot be read.
    """
    sections = []
    for over in ("eps", "steps"):
        for kind in SWEEP_MEANINGS:
            alike: dict[str, list[Swept]] = {}
            for run in runs:
                if swept := _read(run, over, kind):
                    alike.setdefault(_describe(swept.settings), []).append(swept)
            for number, settings in enumerate(alike, start=1):
                sections.append(_section(over, kind, number, settings, alike))
    return sections


def _section(
    over: str, kind: str, number: int, settings: str, alike: Mapping[str, Sequence[Swept]]
) -> Section:
    """One plot, of the sweeps with these settings."""
    names, sweeps = folder_names([one.run for some in alike.values() for one in some]), alike[settings]
    methods = Counter(one.run.result.method for one in sweeps)
    labels = [
        method if methods[method] == 1 else f"{method}, {names[one.run.folder]}"
        for one in sweeps
        for method in [one.run.result.method]
    ]
    values = sorted({value for one in sweeps for value in one.curve})
    header = ["run", *(in_pixel_units(value) if over == "eps" else str(value) for value in values)]
    rows = [
        [label, *(f"{100 * one.curve[value]:.2f}" if value in one.curve else "" for value in values)]
        for label, one in zip(labels, sweeps, strict=True)
    ]
    notes = [f"RA (%) under PGD: {settings}. {SWEEP_MEANINGS[kind]}. Steps are 2.5 eps / steps long."]
    if len({one.images for one in sweeps}) > 1:
        notes.append("Not all of these runs were measured on the same files of test images (or copies).")
    notes += [
        f"Not in this plot: {', '.join(names[s.run.folder] for s in some)}, measured differently: {other}."
        for other, some in alike.items()
        if other != settings
    ]
    title = SWEEP_TITLES[kind].format(over) + (f" ({settings})" if len(alike) > 1 else "")
    ending = ("" if kind == "plain" else f"-{kind}") + (f"-{number}" if number > 1 else "")
    curves = dict(zip(labels, (one.curve for one in sweeps), strict=True))
    return Section(f"ra-over-{over}{ending}", title, header, rows, 1, plot_sweep(over, curves), notes)


def _read(run: Run, over: str, kind: str) -> Swept | None:
    """A sweep of a run; None if it was not measured."""
    file = RunFolder(run.folder).evaluation_file
    try:
        evaluation = json.loads(file.read_text())
        # Before there were kinds, accumulating sweeps had the name of the plain ones.
        named = [evaluation["sections"].get(sweep_name(over, name)) for name in (kind, "plain")]
        found = [one for one in named if one is not None]
        alike = (one for one in found if one["attack"].get("kind", "accumulating") == kind)
        if (section := next(alike, None)) is None:
            return None
        fixed = {key: value for key, value in section["attack"].items() if key not in (over, "kind")}
        settings = {**fixed, "images": section["images"]}
        return Swept(run, dict(section["curve"]), settings, evaluation["images"]["signature"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{file} cannot be read ({error!r}): remove it and run `hpcdat evaluate {run.folder}` again"
        ) from None


def _describe(settings: Mapping[str, Any]) -> str:
    start = "a random start" if settings["random_start"] else "no random start"
    ball = f"eps {in_pixel_units(settings['eps'])}" if "eps" in settings else f"{settings['steps']} steps"
    return f"{settings['norm']}, {ball}, {start}, {settings['images']:,} images"
