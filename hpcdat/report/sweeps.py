"""RA over radii and over steps of several runs: Figure 3 of the DAT paper."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcdat.report.comparison import Run, folder_names
from hpcdat.report.pages import Section
from hpcdat.report.plots import plot_sweep
from hpcdat.report.result_table import in_pixel_units
from hpcdat.storage.run_folder import RunError, RunFolder


@dataclass(frozen=True)
class Swept:
    """A sweep that ``hpcdat evaluate`` measured of a run.

    Attributes:
        run: whose.
        curve: RA in [0, 1] by radius or number of steps.
        settings: what a sweep has to share with another to be held against it.
        images: signature of the test images.
    """

    run: Run
    curve: Mapping[float, float]
    settings: Mapping[str, Any]
    images: str


def sweep_sections(runs: Sequence[Run]) -> list[Section]:
    """Sweeps over eps and over steps, those with the same settings together; none where there are none.

    Raises:
        RunError: what was measured of a run cannot be read.
    """
    sections = []
    for over in ("eps", "steps"):
        alike: dict[str, list[Swept]] = {}
        for run in runs:
            if swept := _read(run, over):
                alike.setdefault(_in_words(swept.settings), []).append(swept)
        for number, settings in enumerate(alike, start=1):
            sections.append(_section(over, number, settings, alike))
    return sections


def _section(over: str, number: int, settings: str, alike: Mapping[str, Sequence[Swept]]) -> Section:
    """One plot, of the sweeps that have these settings."""
    called, sweeps = folder_names([one.run for some in alike.values() for one in some]), alike[settings]
    methods = Counter(one.run.result.method for one in sweeps)
    labels = [
        method if methods[method] == 1 else f"{method}, {called[one.run.folder]}"
        for one in sweeps
        for method in [one.run.result.method]
    ]
    values = sorted({value for one in sweeps for value in one.curve})
    header = ["run", *(in_pixel_units(value) if over == "eps" else str(value) for value in values)]
    rows = [
        [label, *(f"{100 * one.curve[value]:.2f}" if value in one.curve else "" for value in values)]
        for label, one in zip(labels, sweeps, strict=True)
    ]
    notes = [f"RA (%) under PGD: {settings}. An image counts if it is robust at all smaller values, too."]
    if len({one.images for one in sweeps}) > 1:
        notes.append("Not all of these runs were measured on the same files of test images (or copies).")
    notes += [
        f"Not in this plot: {', '.join(called[one.run.folder] for one in some)}, measured otherwise: {other}."
        for other, some in alike.items()
        if other != settings
    ]
    title = f"RA over {over}, as Figure 3 of the DAT paper" + (f" ({settings})" if len(alike) > 1 else "")
    name = f"ra-over-{over}" + (f"-{number}" if number > 1 else "")
    curves = dict(zip(labels, (one.curve for one in sweeps), strict=True))
    return Section(name, title, header, rows, 1, plot_sweep(over, curves), notes)


def _read(run: Run, over: str) -> Swept | None:
    """The sweep of a run, if it was measured."""
    file = RunFolder(run.folder).evaluation_file
    try:
        evaluation = json.loads(file.read_text())
        section = evaluation["sections"].get(f"sweep-{over}")
        if section is None:
            return None
        fixed = {key: value for key, value in section["attack"].items() if key != over}
        settings = {**fixed, "images": section["images"]}
        return Swept(run, dict(section["curve"]), settings, evaluation["images"]["signature"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{file} cannot be read ({error!r}): remove it and run `hpcdat evaluate {run.folder}` again"
        ) from None


def _in_words(settings: Mapping[str, Any]) -> str:
    start = "a random start" if settings["random_start"] else "no random start"
    ball = f"eps {in_pixel_units(settings['eps'])}" if "eps" in settings else f"{settings['steps']} steps"
    return f"{settings['norm']}, {ball}, {start}, {settings['images']:,} images"
