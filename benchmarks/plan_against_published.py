"""What ``hpcdat plan``'s cost model predicts for published systems, over what their authors measured.

``python benchmarks/plan_against_published.py [--json PATH] [--page PATH]`` reads the calibration files in
``benchmarks/published``, each with links, sources and published figures, predicts every figure with
:func:`hpcdat.performance.forecast.forecast`, and prints a table for each file; with ``--page``, which is
docs/papers/plan-against-published.md, it replaces the tables of that page. Nothing is measured, so every run
has the same result.

The computation of a worker is not predicted. It comes from a published figure too (``alone``): the time of an
epoch, or the throughput, on one node or one GPU. An attack step counts as two passes through the network
(forward, gradient of the images) and a local gradient as three for each half of the batch's cost (gradient of
the weights as well). The time of encoding gradients, for which no source gives a figure, counts as zero.

Every figure is predicted a second time as by ``hpcdat plan --link RATE``, without the parameters that a file
sets or fits: collectives reach the nominal rate, a message takes 0.2 ms, all-reduces are rings, and workers
are equally fast.

Ratios: predicted over published of every row, ``FILE: ROW, QUANTITY``, and of the row farthest from 1

- ``worst_fitted``: of those on which a parameter was fitted,
- ``worst_checked``: of the others, without those that a file marks as unexplained,
- ``worst``: of all.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from arguments import Parser, errors_in_one_line, existing_file
from pydantic import BaseModel, ConfigDict, Field
from tabulate import tabulate
from torch import nn

from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.config.yaml_text import load
from hpcdat.errors import InputError
from hpcdat.performance.calibration import Calibration, assume_links
from hpcdat.performance.cost_model import slowdown_by_slowest
from hpcdat.performance.forecast import Forecast, forecast, images_of_epoch, no_correction
from hpcdat.performance.network_bytes import shapes_of
from hpcdat.performance.step_timing import StepTiming
from hpcdat.storage.atomic_files import write_text

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "benchmarks" / "published").glob("*.yaml"))
IMAGENET = 1_281_167
"""Training images of ImageNet."""
PASSES_OF_ATTACK_STEP, PASSES_OF_GRADIENT = 2, 3

Quantity = Literal["C", "T", "training", "efficiency", "T over"]
"""C and T: seconds an epoch; training: seconds of all epochs; efficiency: speed-up over M; T over: T over
that of another run."""


class Run(BaseModel):
    """A job on p x q workers.

    Attributes:
        job: file, relative to the repository.
        settings: that replace some of the file.
        images: of an epoch, those that the job holds out included.
        nodes, per_node: p and q.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Path
    settings: tuple[str, ...] = ()
    images: int = IMAGENET
    nodes: int = 1
    per_node: int = 1

    def read(self) -> Job:
        """The job."""
        return _read(self.job, self.settings)


class Alone(Run):
    """A run whose computation is published; the time that its workers wait for a network is neglected.

    Attributes:
        epoch: seconds of an epoch; None if the throughput is published.
        images_per_second: of all workers.
        update: seconds of a step that do not grow with its images; not published, but fitted.
    """

    epoch: float | None = None
    images_per_second: float | None = None
    update: float = 0.0

    def timing(self, jitter: float, job: Job) -> StepTiming:
        """The computation of a worker of this system.

        Args:
            jitter: of the calibration; what is published has waited for the slowest worker.
            job: of the same model and size of images; attack, method and batch may be others.
        """
        mine, workers = self.read(), self.nodes * self.per_node
        epoch = self.epoch or self.images / (self.images_per_second or math.nan)
        step = epoch * mine.batch_size * workers / self.images / slowdown_by_slowest(jitter, workers)
        one_pass = (step - self.update) / mine.batch_size / sum(passes(mine))
        attack, gradient = (one_pass * count for count in passes(job))
        return StepTiming(attack, gradient, self.update, mine.batch_size, "a published figure", "")


class Row(BaseModel):
    """A published figure and what to predict for it.

    Attributes:
        name: what ran.
        source: table, figure, section or file of the source.
        quantity, value: what is published.
        about: whether the source gives the value as approximate.
        fitted: parameter of the calibration that was fitted on this row; None if it only checks.
        unexplained: whether the page says that the model lacks what this row shows.
        run: what is predicted.
        over: the run whose T divides that of ``run``.
        alone: source of the computation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    quantity: Quantity
    value: float = Field(gt=0)
    about: bool = False
    fitted: str | None = None
    unexplained: bool = False
    run: Run
    over: Run | None = None
    alone: Alone

    def predicted(self, calibration: Calibration) -> float:
        """The cost model's value."""
        known = predict(self.run, self.alone, calibration)
        match self.quantity:
            case "C":
                return known.communication
            case "T":
                return known.total
            case "training":
                return known.total * self.run.read().epochs
            case "efficiency":
                return known.speed_up / (known.nodes * known.per_node)
        assert self.over is not None
        return known.total / predict(self.over, self.alone, calibration).total

    def predicted_by_link(self, rate: str) -> float:
        """The cost model's value for links of this nominal rate, with nothing fitted."""
        alone = self.alone.model_copy(update={"update": 0.0})
        return self.model_copy(update={"alone": alone}).predicted(assume_links(rate))


class Published(BaseModel):
    """The section ``published`` of a calibration file.

    Attributes:
        title: heading of its table.
        sources: where its figures are from.
        rows: the figures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    sources: tuple[str, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)


def passes(job: Job) -> tuple[int, int]:
    """Passes through the network for the attack on an image, and for its local gradient."""
    attack = 0 if job.oracle == "none" else PASSES_OF_ATTACK_STEP * (job.attack.steps or 0)
    return attack, PASSES_OF_GRADIENT * sum(weight > 0 for weight in job.weights_of_cost)


def predict(run: Run, alone: Alone, calibration: Calibration) -> Forecast:
    """The forecast of a run on a published system."""
    job = run.read()
    images, classes = images_of_epoch(job, run.images)
    timing = alone.timing(calibration.jitter, job)
    return forecast(
        *(job, images, _shapes(run.job, run.settings, classes), timing, calibration, run.nodes, run.per_node),
        lambda exchange, senders: 0.0,
        no_correction,
        timing,
    )


@cache
def _read(job: Path, settings: tuple[str, ...]) -> Job:
    return read_job(ROOT / job, settings)


@cache
def _shapes(job: Path, settings: tuple[str, ...], classes: int) -> nn.Module:
    return shapes_of(_read(job, settings), classes)


def compare(file: Path) -> dict[str, Any]:
    """A calibration file's rows with predicted values and ratios."""
    calibration = Calibration.read(file)
    rate = load(file.read_text())[0]["network"]["rate"]
    published = Published.model_validate(calibration.published)
    rows = []
    for row in published.rows:
        predicted, by_link = row.predicted(calibration), row.predicted_by_link(rate)
        known = row.model_dump(mode="json", exclude={"run", "over", "alone"})
        known |= {"workers": f"{row.run.nodes} x {row.run.per_node}", "predicted": predicted}
        rows.append(known | {"ratio": predicted / row.value, "ratio_by_link": by_link / row.value})
    return {"title": published.title, "sources": published.sources, "rows": rows}


def table_of(rows: list[dict[str, Any]]) -> str:
    """The table of a file's rows."""
    cells = []
    for row in rows:
        predicted, about = row["predicted"], "about " if row["about"] else ""
        figures = [f"{predicted:.{0 if predicted >= 100 else 2}f}", f"{about}{row['value']:g}"]
        ratios = [f"{row['ratio']:.2f}", f"{row['ratio_by_link']:.2f}"]
        kind = "unexplained" if row["unexplained"] else "a check"
        if row["fitted"]:
            kind = f"fitted: {row['fitted']}"
        cells.append([row["name"], row["source"], row["workers"], row["quantity"], *figures, *ratios, kind])
    header = ["what ran", "source", "p x q", "quantity"]
    header += ["predicted", "published", "ratio", "by --link", "row is"]
    return tabulate(cells, header, tablefmt="github", disable_numparse=True)


def ratios_of(files: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The ratios of a report."""
    ratios = {
        f"{name}: {row['name']}, {row['quantity']}": row["ratio"]
        for name, file in files.items()
        for row in file["rows"]
    }
    rows = [row for file in files.values() for row in file["rows"]]
    groups = {
        "worst_fitted": [row["ratio"] for row in rows if row["fitted"]],
        "worst_checked": [row["ratio"] for row in rows if not row["fitted"] and not row["unexplained"]],
        "worst": [row["ratio"] for row in rows],
    }
    return ratios | {name: max(group, key=lambda r: abs(math.log(r))) for name, group in groups.items()}


def with_tables(page: str, files: dict[str, dict[str, Any]]) -> str:
    """The text of a page with its tables, each below a line ``<!-- FILE -->``, replaced."""
    for name, file in files.items():
        before, mark, after = parts_of(page, name)
        after = re.sub(r"^(?:[|].*\n)*", "", after)
        page = f"{before}{mark}{table_of(file['rows'])}\n{after}"
    return page


def parts_of(page: str, name: str) -> tuple[str, str, str]:
    """What is above the line ``<!-- FILE -->`` of a page, the line, and what is below."""
    mark = f"<!-- {name} -->\n"
    if page.count(mark) != 1:
        raise InputError(f"--page: the page has {page.count(mark)} lines {mark.strip()}, not 1")
    return page.partition(mark)


@errors_in_one_line
def main() -> None:
    """Predict, print the tables, write the JSON and the page."""
    parser = Parser("the cost model's predictions for published systems", alone="it measures nothing")
    parser.add_json()
    parser.add_argument("--page", type=existing_file, metavar="PATH", help="replace the tables of this page")
    arguments = parser.parse_args()
    if arguments.page:
        for file in FILES:
            parts_of(arguments.page.read_text(), file.stem)
    files = {file.stem: compare(file) for file in FILES}
    for name, file in files.items():
        print(f"{file['title']} ({name}.yaml)\n\n{table_of(file['rows'])}\n")
    if arguments.page:
        write_text(arguments.page, with_tables(arguments.page.read_text(), files))
    if arguments.json:
        write_text(arguments.json, json.dumps({"files": files, "ratios": ratios_of(files)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
