"""Draw the README's picture: RA over eps of the demo's two runs, and images under attack.

Commands:

    hpcdat demo
    for run in demo demo-plain; do hpcdat evaluate runs/$run --sweep-eps 0,0.05,0.1,0.15,0.2,0.25,0.3; done
    python docs/pictures/robustness.py runs/demo runs/demo-plain
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from drawing import save
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from hpcdat.attacks.pgd import PGD
from hpcdat.commands.trained_model import images_for, load_model
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.storage.run_folder import RunFolder

OUT = Path(__file__).with_name("robustness.svg")
CLASSES = (1, 3, 5, 7, 9)
"""Of each of these digits the first test image is shown, whichever way it comes out."""
LABELS = ("DAT-PGD", "plain")
"""Methods of the two runs."""
COLOURS = ("#1f6fb2", "#b5482a")
WRONG = "#b00020"


def main() -> None:
    """Read the runs, attack the images, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs=2, type=Path, metavar="RUN", help="trained adversarially, trained plainly"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="FILE", help="SVG file (default: %(default)s)"
    )
    arguments = parser.parse_args()
    figure = Figure(figsize=(9, 3.4), layout="constrained", facecolor="white")
    curves, grid = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    _draw_curves(curves.add_subplot(), arguments.runs)
    _draw_images(grid, arguments.runs)
    save(figure, arguments.out)


def _draw_curves(axes: Axes, runs: list[Path]) -> None:
    for run, label, colour in zip(runs, LABELS, COLOURS, strict=True):
        section = json.loads((run / "evaluation.json").read_text())["sections"]["sweep-eps"]
        radii, accuracies = zip(*section["curve"], strict=True)
        axes.plot(radii, [100 * each for each in accuracies], "o-", color=colour, label=label)
    axes.set_xlabel("largest change of a pixel in [0, 1]: eps", fontsize=9)
    axes.set_ylabel(f"robust accuracy (%), {section['images']} images", fontsize=9)
    axes.set_ylim(0, 103)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def _draw_images(figure: SubFigure, runs: list[Path]) -> None:
    rows = figure.subplots(len(runs) + 1, len(CLASSES))
    for row, run in enumerate(runs, start=1):
        images, labels, attacked, eps, predicted = _attack(run)
        for column, (image, label) in enumerate(zip(images, labels, strict=True)):
            _show(rows[0, column], image, f"a {label}", "black")
            colour = "black" if predicted[column] == label else WRONG
            _show(rows[row, column], attacked[column], f"taken for a {predicted[column]}", colour)
        rows[row, 0].set_ylabel(f"{LABELS[row - 1]},\nattacked", fontsize=8, color=COLOURS[row - 1])
    rows[0, 0].set_ylabel("test image", fontsize=8)
    figure.suptitle(f"The same attack on both networks: PGD-20, eps {eps:g}", fontsize=9)


def _show(axes: Axes, image: Tensor, text: str, colour: str) -> None:
    axes.imshow(image[0], cmap="gray", vmin=0, vmax=1)
    axes.set_title(text, fontsize=8, color=colour, pad=2)
    axes.set_xticks([])
    axes.set_yticks([])


def _attack(run: Path) -> tuple[Tensor, list[int], Tensor, float, list[int]]:
    """The first test image of each class, its label, and what the run's network makes of it under attack.

    Returns:
        Images (N, C, H, W), labels, attacked images, eps, predicted labels.
    """
    folder, workers = RunFolder(run), SingleProcess()
    job = folder.read_job([])
    trained = load_model(folder, job, workers)
    batches = ImageBatches(images_for(trained, job, workers), job.data, 100, trained.device)
    x, y = (
        torch.cat(each)
        for each in zip(*batches.loader.read([*batches.batches.values()], seed=0), strict=True)
    )
    batches.close()
    first = [int((y == label).nonzero()[0]) for label in CLASSES]
    x, y = x[first], y[first]
    attack = PGD.from_settings(job.evaluation, job.evaluation.resolved_norm)
    loss = partial(torch.nn.functional.cross_entropy, target=y, reduction="none")
    attacked = attack(trained.model, loss, x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        predicted = trained.model(attacked).argmax(1)
    return x, y.tolist(), attacked, job.evaluation.resolved_eps, predicted.tolist()


if __name__ == "__main__":
    main()
