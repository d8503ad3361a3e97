"""The papers' convergence bounds compared with measurements, on a problem where both can be computed.

``python benchmarks/theory.py [--out FOLDER] [--json PATH]``: five minutes on one core, with two plots.

The problem is a robust regression whose regulariser is strongly concave in the perturbation, as both papers
assume; the true gradient is exact (``convergence/regression.py``). The algorithms run with the package's own
LAMB, LARS and quantizer.

With the theorem's own constants, so that a violation would be seen (``bounds.svg``):

- DAT, Theorem 2 (LAMB, c_l > 0, kappa = 1 and 4), along T, M B, b, K of the inner ascent, and beta_2.
- ConAdv, Lemma 1 and Theorem 1 (gradient steps), along T, M B and tau.
- ConAdv with LARS and LAMB, for which the paper has no theorem: bounds derived in ``convergence/conadv.py``.
- Programs with a fault, to see which of them a bound notices (``convergence/faults.py``).

Where the constants come from is said there and in ``convergence/theorem_2.py``. Of DAT's Theorem 1, which is
O(...), only slopes are tested (``slopes.svg``): no measurement can contradict it (``convergence/slopes.py``).

Ratios, of each comparison:

- ``_least_ratio``, ``_largest_ratio``: of bound over measurement.
- ``_violated``: at how many values the measurement is above the bound.
- ``_telling``: at how many the bound is below a run that never moves, so that such a run would break it.
- ``_outside``: at how many the weights left the ball that the constants are for; these do not count.
- ``_least_ratio_proved``, ``_violated_proved``: with what the theorem's proof arrives at as the bound.

And ``slope_T``, ``slope_MB``, ``slope_b`` (of log2, a bit), ``slope_epsilon``, ``slope_tau``: fitted to
what was measured and is not lost in the spread of the seeds; the bounds' are -0.5, -0.5, -1 to -2, 1, 2.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import torch
from arguments import Parser, errors_in_one_line, folder_to_write
from convergence import conadv, faults, slopes, theorem_2
from convergence.comparison import Comparison
from convergence.figures import TITLES, draw_bounds, draw_slopes
from tabulate import tabulate

from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.storage.atomic_files import write_text


def print_comparison(title: str, comparison: Comparison) -> None:
    """A table."""
    columns = {
        comparison.along: comparison.x,
        comparison.of: comparison.measured,
        "error": comparison.error,
        "bound": comparison.bound,
        "bound / measured": comparison.ratios,
        "above the bound": comparison.violated,
        "inside the ball": comparison.inside,
    }
    if comparison.proved:
        columns["what its proof gives"] = comparison.proved
    if comparison.still:
        columns["a run that never moves"] = comparison.still
    print(f"{title}\n\n{tabulate(columns, headers='keys', tablefmt='github', floatfmt='.4g')}\n")


def print_slopes(panels: dict[str, slopes.Panel]) -> None:
    """A table for each panel."""
    for name, panel in panels.items():
        label, what, _ = slopes.BOUNDS[name]
        columns = {label: panel["x"], what: panel["y"], "error": panel["error"]}
        print(tabulate(columns, headers="keys", tablefmt="github", floatfmt=".4g") + "\n")


@errors_in_one_line
def main() -> None:
    """Measure, print the tables, draw, write the JSON."""
    parser = Parser(
        "the papers' convergence bounds compared with measurements", alone="it computes in one process"
    )
    parser.add_argument("--out", type=folder_to_write, default="runs/theory", help="folder of the plots")
    parser.add_json()
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comparisons = {**theorem_2.measure(), **conadv.measure()}
    for name, comparison in comparisons.items():
        print_comparison(TITLES[name], comparison)
    broken = faults.measure()
    print(tabulate(broken, headers="keys", tablefmt="github", floatfmt=".4g") + "\n")
    panels = slopes.measure()
    print_slopes(panels)
    ratios = {key: value for name, found in comparisons.items() for key, value in found.summary(name).items()}
    ratios |= slopes.slopes(panels)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.4g}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for ending in ("svg", "png"):
        draw_bounds(comparisons, arguments.out / f"bounds.{ending}")
        draw_slopes(panels, arguments.out / f"slopes.{ending}")
    print(f"plots: {arguments.out / 'bounds.svg'}, {arguments.out / 'slopes.svg'}")
    if arguments.json:
        report = {
            "environment": describe_environment(SingleProcess(), torch.device("cpu")),
            "comparisons": {name: asdict(comparison) for name, comparison in comparisons.items()},
            "faults": broken,
            "panels": panels,
            "ratios": ratios,
        }
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
