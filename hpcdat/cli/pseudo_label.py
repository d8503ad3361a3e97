"""``hpcdat pseudo-label``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.options import SetOption, Settings, SourceArgument, WorkersOption, path
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.storage.evaluation_folder import open_for_evaluation

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator


def pseudo_label(
    run: SourceArgument,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="Folder of images, or .npy file of (N, H, W, C) uint8.",
            show_default=False,
            parser=path,
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT.npz", help="File to write.", show_default=False, parser=path)
    ],
    settings: Settings = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
) -> None:
    """Label unlabelled images with a run's model or with given weights.

    \b
    Examples:
      hpcdat pseudo-label runs/demo images/ labelled.npz
      hpcdat train JOB.yaml data.unlabelled=labelled.npz data.unlabelled_part=0.5

    The first argument may be a job file that has weights in model.pretrained; the labels are the classes of
    its data. A job trains on the labelled file in addition to its own images, as in the second example
    (self-training, Carmon et al. 2019).
    """
    replaced = [*(set_ or []), *(settings or [])]
    _, resolved = reported_once(lambda: open_for_evaluation(run, replaced))
    if workers > 1:
        start_locally(workers, resolved)

    def work(workers: Communicator, stop: StopRequest) -> dict[str, int]:
        from hpcdat.commands.pseudo_label import pseudo_label

        return pseudo_label(run, source, out, replaced, workers, stop)

    counts = as_worker(work, resolved)
    if counts is not None:
        by_class = ", ".join(f"{name} {count}" for name, count in counts.items())
        print(f"{out}: {sum(counts.values())} images: {by_class}")
